"""What it costs that a training measures its gradients: a table for log.md.

    python studies/speed/measuring.py quickstart spoken_digits digits_rows data.root=data

A training in a process of its own, one thread. Counted are the net's measurements before, in and after training, rows
that are written, and what measured steps take beyond others, which take turns with them; by the processor's time.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from spiketriton.config import load_recipe
from spiketriton.data import build_data
from spiketriton.runs.folder import RunFolder
from spiketriton.training.display import Quiet
from spiketriton.training.trainer import Trainer

HEAD = """| recipe | training, s | measuring, % of it | before training | later | rows | measured steps |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |"""


class Timed(Trainer):
    """Knows the seconds of its parts, each of which is no part of another."""

    def __init__(self, *args: Any) -> None:
        self.seconds_of, self.took = (
            defaultdict[str, float](float),
            defaultdict[bool, list[float]](list),
        )
        super().__init__(*args)
        self.monitor.read = self.counted("rows", self.monitor.read)  # type: ignore[method-assign]
        self.run = self.stepping(self.run)

    def counted(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return call(*args, **options)
            finally:
                self.seconds_of[what] += time.process_time() - start

        return timed

    def stepping(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(parts: Iterable[Any], measured: bool) -> Any:
            start = time.process_time()
            out = run(parts, measured)
            self.took[measured].append(time.process_time() - start)
            return out

        return timed

    def judge(self) -> None:
        self.counted("later" if self.step else "before training", super().judge)()

    def known_ways(self, step: int) -> Any:
        before = self.seconds_of["later"]
        found = self.counted("later", super().known_ways)(step)
        self.seconds_of["rows"] -= self.seconds_of["later"] - before  # by which it is called
        return found


def row(name: str, keys: list[str]) -> str:
    """The table's row of a recipe."""
    torch.set_num_threads(1)
    recipe = load_recipe(name, [*keys, "train.threads=1"])
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder.create(Path(place, "run"), recipe.name)
        trainer = Timed(recipe, build_data(recipe), folder, Quiet())
        trainer.begin()
        folder.begin_session(recipe, {})
        start = time.process_time()
        trainer.fit()
        seconds = time.process_time() - start
    spent, took = trainer.seconds_of, trainer.took
    more = statistics.median(took[True]) - statistics.median(took[False])
    spent["measured steps"] = more * len(took[True])
    parts = [spent[part] for part in ("before training", "later", "rows", "measured steps")]
    whole = seconds - sum(parts)
    shares = " | ".join(f"{100 * part / whole:.1f}" for part in (sum(parts), *parts))
    return f"| `{recipe.name}` | {whole:.1f} | {shares} |"


def main(arguments: list[str]) -> None:
    names, keys = ([one for one in arguments if ("=" in one) is keyed] for keyed in (False, True))
    if len(names) == 1:
        print(row(*names, keys))
        return
    print(HEAD)
    for name in names:
        subprocess.run([sys.executable, __file__, name, *keys], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
