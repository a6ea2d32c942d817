"""Processors that others use, and what follows for threads; before torch is imported."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spiketriton import processors
from tests.child import environment

#         user nice system idle iowait irq softirq steal guest guest_nice
BEFORE = (100, 200, 300, 5000, 600, 10, 20, 30, 40, 50)


@pytest.fixture
def stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with processors 0 to 3, of which this process may use 1 and 2."""
    path = tmp_path / "stat"
    monkeypatch.setattr(processors, "_STAT", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    processors.taken.cache_clear()
    yield path
    processors.taken.cache_clear()


def written(path: Path, one: tuple[int, ...], two: tuple[int, ...]) -> None:
    rows = {"cpu": BEFORE, "cpu0": BEFORE, "cpu1": one, "cpu2": two, "cpu3": BEFORE, "intr": (7,)}
    lines = (f"{name} {' '.join(map(str, columns))}" for name, columns in rows.items())
    path.write_text("\n".join(lines) + "\n")


def later(changes: dict[int, int]) -> tuple[int, ...]:
    return tuple(value + changes.get(place, 0) for place, value in enumerate(BEFORE))


@pytest.mark.parametrize(
    ("one", "two", "ours", "taken", "free"),
    [
        ({3: 10}, {3: 10}, 0.0, 0.0, 2),  # idle
        ({3: 10, 4: 10}, {}, 0.0, 0.0, 2),  # waiting for a disk
        ({0: 10}, {3: 10}, 0.0, 1.0, 1),
        ({1: 10}, {3: 10}, 0.0, 1.0, 1),  # a process with a low priority counts
        ({2: 2, 5: 2, 6: 2, 7: 4}, {}, 0.0, 1.0, 1),
        ({0: 10, 8: 10, 9: 10}, {}, 0.0, 1.0, 1),  # guests are counted as users, too
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
    assert processors.taken() == pytest.approx(taken)
    assert processors.free() == free  # measured once: the clocks have nothing more to say
    assert processors.usable() == 2


@pytest.mark.parametrize("text", [None, "", "cpu1 a b c\n"])
def test_a_system_that_does_not_say_counts_as_idle(stat, text):
    if text is not None:
        stat.write_text(text)
    assert processors.taken() == 0.0
    assert processors.free() == 2


@pytest.mark.parametrize(
    ("taken", "chosen", "policy"),
    [(0.0, "", None), (0.3, "", None), (0.5, "", "PASSIVE"), (2.0, "", "PASSIVE")]
    + [(2.0, name, None) for name in processors.CHOSEN if name != "OMP_WAIT_POLICY"],
)
def test_threads_sleep_only_on_busy_machines_and_unless_the_user_chose(
    taken, chosen, policy, monkeypatch
):
    for name in processors.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(chosen, "4")
    monkeypatch.setattr(processors, "taken", lambda: taken)
    monkeypatch.delitem(sys.modules, "torch")
    try:
        processors.wait_without_spinning_if_busy()
        assert os.environ.get("OMP_WAIT_POLICY") == policy
    finally:
        os.environ.pop("OMP_WAIT_POLICY", None)


def test_it_is_decided_before_any_command_imports_torch():
    """Every module of the package runs the package's own first."""
    code = (
        "import sys, spiketriton; assert 'torch' not in sys.modules; "
        "print('measured' if spiketriton.processors.taken.cache_info().currsize else 'not')"
    )
    clean = {k: v for k, v in environment().items() if k not in processors.CHOSEN}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert (done.stdout, done.stderr) == ("measured\n", "")
