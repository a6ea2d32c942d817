"""The import and a first call of this tree beside those of another commit, in turns, in fresh processes.

    git worktree add ../before 3317ca80
    python studies/speed/first_call.py ../before float32 empty     # or "compiled": by an earlier process

Processor time of LIF, forward and backward of [4, 2, 128], one thread, compilers included; torch is imported before.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PAIRS = 5
WORK = """
import resource, sys, torch
torch.set_num_threads(1)
def seconds():
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)
x = torch.randn(4, 2, 128, dtype=getattr(torch, sys.argv[1]), requires_grad=True)
(2 * x).sum().backward()
before = seconds()
from spiketriton_kernels.nn import LIF
LIF()(x).sum().backward()
print(seconds() - before)
"""


def first(folder: Path, cache: str, dtype: str) -> float:
    paths = os.pathsep.join(map(str, (folder, folder / "kernels")))
    more = {"PYTHONPATH": paths, "SPIKETRITON_CACHE": cache, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", WORK, dtype]
    pipes = {"capture_output": True, "text": True, "check": True}
    return float(subprocess.run(command, cwd=folder, env=os.environ | more, **pipes).stdout)


def main(before: str, dtype: str, cache: str) -> None:
    trees = [Path(before).resolve(), Path(__file__).parents[2]]
    took: list[list[float]] = [[], []]
    with tempfile.TemporaryDirectory() as kept:
        for pair in range(-1, PAIRS):  # the first one writes bytecode
            for tree, times in zip(trees, took, strict=True):
                with tempfile.TemporaryDirectory() as empty:
                    there = empty if cache == "empty" else f"{kept}/{tree.name}"
                    seconds = first(tree, there, dtype)
                if pair >= 0:
                    times.append(seconds)
    for tree, times in zip(trees, took, strict=True):
        print(
            tree.name, dtype, cache, f"{statistics.median(times):.3f}", *map("{:.3f}".format, times)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
