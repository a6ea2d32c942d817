"""Processors that others use, and what follows for threads; before torch is imported. Memory."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spiketriton.system import machine
from tests.child import environment

#         user nice system idle iowait irq softirq steal guest guest_nice
BEFORE = (100, 200, 300, 5000, 600, 10, 20, 30, 40, 50)


@pytest.fixture
def stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with processors 0 to 3, of which this process may use 1 and 2."""
    path = tmp_path / "stat"
    monkeypatch.setattr(machine, "_STAT", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    machine.taken.cache_clear()
    yield path
    machine.taken.cache_clear()


def written(path: Path, one: tuple[int, ...], two: tuple[int, ...]) -> None:
    rows = {"cpu": BEFORE, "cpu0": BEFORE, "cpu1": one, "cpu2": two, "cpu3": BEFORE, "intr": (7,)}
    lines = (f"{name} {' '.join(map(str, columns))}" for name, columns in rows.items())
    path.write_text("\n".join(lines) + "\n")


def later(changes: dict[int, int]) -> tuple[int, ...]:
    return tuple(value + changes.get(place, 0) for place, value in enumerate(BEFORE))


@pytest.mark.parametrize(
    ("one", "two", "ours", "taken", "free"),
    [
        ({3: 10, 4: 10}, {3: 10}, 0.0, 0.0, 2),  # idle, and waiting for a disk
        ({1: 10}, {3: 10}, 0.0, 1.0, 1),  # a process with a low priority counts
        ({2: 2, 5: 2, 6: 2, 7: 4, 8: 10, 9: 10}, {}, 0.0, 1.0, 1),  # guests are in user and nice
        ({0: 10}, {0: 10}, 0.0, 2.0, 1),  # never less than one thread
        ({0: 10}, {3: 10}, 0.1, 0.0, 2),  # it was this process
        ({0: 3}, {}, 0.0, 0.3, 2),
    ],
)
def test_what_others_take(stat, monkeypatch, one, two, ours, taken, free):
    written(stat, BEFORE, BEFORE)
    clocks = iter([0.0, 0.1])  # ten ticks
    monkeypatch.setattr("time.perf_counter", lambda: next(clocks))
    work = iter([0.0, ours])
    monkeypatch.setattr("time.process_time", lambda: next(work))
    monkeypatch.setattr("time.sleep", lambda _: written(stat, later(one), later(two)))
    assert machine.taken() == pytest.approx(taken)
    assert machine.free() == free  # measured once: the clocks have nothing more to say
    assert machine.usable() == 2


@pytest.mark.parametrize("text", ["", "cpu1 a b c\n"])
def test_a_system_that_does_not_say_counts_as_idle(stat, text):
    if text:
        stat.write_text(text)
    assert (machine.taken(), machine.free()) == (0.0, 2)


@pytest.mark.parametrize(
    ("taken", "chosen", "policy"),
    [(0.3, "", None), (0.5, "", "PASSIVE")]
    + [(2.0, name, None) for name in machine.CHOSEN if name != "OMP_WAIT_POLICY"],
)
def test_threads_sleep_only_on_busy_machines_and_unless_the_user_chose(
    taken, chosen, policy, monkeypatch
):
    for name in machine.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(chosen, "4")
    monkeypatch.setattr(machine, "taken", lambda: taken)
    monkeypatch.delitem(sys.modules, "torch")
    try:
        machine.wait_without_spinning_if_busy()
        assert os.environ.get("OMP_WAIT_POLICY") == policy
    finally:
        os.environ.pop("OMP_WAIT_POLICY", None)


def test_it_is_decided_by_a_command_before_it_imports_torch():
    code = (
        "import sys; from spiketriton.system import errors, machine\n"
        "def main(arguments):\n"
        "    assert 'torch' not in sys.modules\n"
        "    print('measured' if machine.taken.cache_info().currsize else 'not')\n"
        "errors.run_command(main, [])"
    )
    clean = {k: v for k, v in environment().items() if k not in machine.CHOSEN}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert (done.stdout, done.stderr) == ("measured\n", "")


def test_the_processor(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "Path", lambda path: info)
    monkeypatch.setattr(platform, "processor", lambda: "x86")
    for name in ("_cpu_info", "cpu_flags"):
        monkeypatch.setattr(machine, name, getattr(machine, name).__wrapped__)
    assert (machine.cpu_name(), machine.cpu_flags()) == ("x86", set())
    info.write_text("model name\t: Fast: 9\nflags\t: sse amx_bf16\n\nmodel name\t: Slow\n")
    assert (machine.cpu_name(), machine.cpu_flags()) == ("Fast: 9", {"sse", "amx_bf16"})


def test_the_free_memory_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert machine.available_memory() is None
    for path, text in (
        ("proc/meminfo", "MemTotal: 999 kB\nMemAvailable:   100 kB\n"),
        ("sys/fs/cgroup/memory.max", "max\n"),
        ("sys/fs/cgroup/memory.current", "2000\n"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for limit, free in (("max", 102_400), ("50000", 48_000), ("1000", 0), ("900000", 102_400)):
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(limit)
        assert machine.available_memory() == free


def test_importing_the_package_neither_waits_nor_changes_the_environment(tmp_path):
    code = (
        "import os, time\n"
        "before = dict(os.environ)\n"
        "time.sleep = None  # whoever calls it fails\n"
        "import spiketriton\n"
        "assert dict(os.environ) == before\n"
    )
    given = {k: v for k, v in environment().items() if k not in machine.CHOSEN}
    ended = subprocess.run([sys.executable, "-c", code], env=given, cwd=tmp_path)
    assert ended.returncode == 0


def test_shared_memory_is_what_is_free_where_it_can_be_written(monkeypatch, tmp_path):
    if not sys.platform.startswith("linux"):
        assert machine.shared_memory() is None
        return
    assert machine.shared_memory() > 0
    monkeypatch.setattr(machine, "_SHARED", tmp_path)
    room = os.statvfs(tmp_path)
    assert abs(machine.shared_memory() - room.f_bavail * room.f_frsize) < 1 << 30
    monkeypatch.setattr(machine, "_SHARED", tmp_path / "missing")
    assert machine.shared_memory() == 0
    monkeypatch.setattr(machine, "_SHARED", "/proc/1" if os.access("/proc/1", os.R_OK) else "/proc")
    assert machine.shared_memory() == 0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.shared_memory() is None
