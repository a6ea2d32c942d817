"""A training step of this tree beside that of another commit, in turns: rows into before.csv.

    git worktree add ../before 3317ca80
    python studies/speed/before.py ../before fashion_mnist_r20 fp32 time_steps=1      # more keys as a recipe has them
    python studies/speed/before.py ../before fashion_mnist_r20 fp32 --avx2            # both by AVX2 alone

A process each, which take their steps in turns; one thread, random images, medians of processor time.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from spiketriton.system import machine
from studies.speed.shares import appended, by_avx2, instructions

ROWS = Path(__file__).with_name("before.csv")
ROUNDS = 11
FIELDS = ("recipe", "precision", "T", "batch", "instructions", "processor", "commit", "ms")
WORK = """
import sys, time, torch
from profiling.sections.recipes import find_recipe
from profiling.sections.step import Bench, Step, TrainingStep
from spiketriton.training.environment import keep_freed_memory
class Options: quick, device = False, torch.device("cpu")
keep_freed_memory()
torch.set_num_threads(1)
bench = Bench(TrainingStep(find_recipe(sys.argv[1], sys.argv[2:]), Options), Options.device)
step = Step(bench, bench.model())
step()
print(bench.spec["T"], bench.spec["batch"], flush=True)
for _ in sys.stdin:
    step()  # with its own data and code in the caches
    before = time.process_time()
    step()
    print(1e3 * (time.process_time() - before), flush=True)
"""


class Tree:
    """A tree's training step in a process of its own."""

    def __init__(self, folder: Path, name: str, keys: list[str]) -> None:
        asked = ["git", "-C", str(folder), "rev-parse", "--short=8", "HEAD"]
        self.commit = subprocess.run(
            asked, capture_output=True, text=True, check=True
        ).stdout.strip()
        paths = os.pathsep.join(map(str, (folder, folder / "kernels")))
        command, given = (
            [sys.executable, "-c", WORK, name, *keys],
            os.environ | {"PYTHONPATH": paths},
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=folder, env=given, **pipes)
        self.T, self.batch = self.told().split()
        self.times: list[float] = []

    def told(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.times.append(float(self.told()))


def main(before: str, name: str, precision: str, *keys: str) -> None:
    given = [f"train.precision={precision}", *keys]
    trees = [
        Tree(folder.resolve(), name, given) for folder in (Path(before), Path(__file__).parents[2])
    ]
    for _ in range(ROUNDS):
        for tree in trees:
            tree.step()
    with appended(ROWS, FIELDS) as rows:
        for tree in trees:
            ms = f"{statistics.median(tree.times):.1f}"
            where = instructions(), machine.cpu_name(), tree.commit
            row = name, precision, tree.T, tree.batch, *where, ms
            rows.writerow(row)
            print(*row, f"(shortest {min(tree.times):.1f})", flush=True)


if __name__ == "__main__":
    if "--avx2" in sys.argv and not os.environ.get("SHARES_AVX2"):
        by_avx2()
    main(*[argument for argument in sys.argv[1:] if argument != "--avx2"])
