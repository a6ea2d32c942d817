"""What the system says of this machine: its processors, which others may be using, and its memory.

OpenMP's threads spin while they wait: one busy core of two made a small training 20 times slower. So the processors
are looked at once, by a command before it imports torch, which reads the environment; importing this does nothing.
"""

import contextlib
import os
import platform
import re
import sys
import time
from functools import cache
from pathlib import Path

WATCHED = 0.1  # seconds
BUSY = 0.4  # processors in use by others from which on threads sleep while they wait
# the user's own choice, or a launcher's: nothing is changed
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
_STAT = Path("/proc/stat")
_SHARED = Path("/dev/shm")
_IDLE = (3, 4)  # columns of /proc/stat: idle and iowait
_COUNTED = 8  # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice


def usable() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def taken() -> float:
    """Processors that other processes use, measured once; 0 where Linux's /proc/stat does not say."""
    ours, start = time.process_time(), time.perf_counter()
    before = _seconds()
    if before is None:
        return 0.0
    time.sleep(WATCHED)
    after = _seconds()
    elapsed, ours = time.perf_counter() - start, time.process_time() - ours
    if after is None:
        return 0.0
    return min(max(0.0, (after - before - ours) / elapsed), float(usable()))


def free() -> int:
    """Threads for which there is a processor, at least 1."""
    return max(1, usable() - round(taken()))


def wait_without_spinning_if_busy() -> None:
    """Lets OpenMP's threads sleep while they wait, if other processes use the processors.

    On an idle machine nothing changes: there, threads that sleep make a small network 12 % slower.
    """
    if "torch" in sys.modules or any(name in os.environ for name in CHOSEN):
        return
    if taken() >= BUSY:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _seconds() -> float | None:
    """Time that the usable processors have been busy since the system started; None: not told."""
    try:
        lines = _STAT.read_text().splitlines()
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = 0
        for name, *columns in (line.split() for line in lines if line.startswith("cpu")):
            if name in mine:
                counted = enumerate(columns[:_COUNTED])
                ticks += sum(int(count) for place, count in counted if place not in _IDLE)
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None


@cache
def _cpu_info() -> dict[str, str]:
    """The first processor's entry of Linux's /proc/cpuinfo; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_name() -> str:
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


@cache
def cpu_flags() -> frozenset[str]:
    return frozenset(_cpu_info().get("flags", "").split())


def bf16_instructions() -> list[str]:
    """Those of this processor that multiply matrices in bfloat16, which is emulated without them; sorted."""
    return sorted(cpu_flags() & {"avx512_bf16", "amx_bf16"})


def available_memory() -> int | None:
    """Bytes that can still be allocated, also in a container; None where /proc does not say."""
    available = _bytes("/proc/meminfo", "MemAvailable")
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit reads "max"
        limit = int((group / "memory.max").read_text())
        free = max(0, limit - int((group / "memory.current").read_text()))
        return available and min(available, free)
    return available


def shared_memory() -> int | None:
    """Free bytes of what processes share, 0 where it cannot be written; None where the system does not say."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        room = os.statvfs(_SHARED)
    except OSError:  # it is missing
        return 0
    read_only = room.f_flag & os.ST_RDONLY or not os.access(_SHARED, os.W_OK)
    return 0 if read_only else room.f_bavail * room.f_frsize


def _bytes(path: str, name: str) -> int | None:
    """What a file of /proc says in kB."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
