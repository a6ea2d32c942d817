"""Accuracy in bf16 beside fp32, by seed, where a processor has no instructions for bf16.

    python docs/bf16.py quickstart                      # with changes, as of `train`: time_steps=2 ...

Instructions for bf16 multiply numbers of bf16 exactly, add in float32 and round the sum. So do convolutions here: in
float32, of operands and with results that are rounded to bf16. Emulated by PyTorch they take 8 to 20 times as long.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from spiketriton.runs.rows import Rows
from spiketriton.system import machine
from spiketriton.train import main as train

SEEDS = (0, 1, 2)
conv2d = F.conv2d


class Convolution(torch.autograd.Function):
    """A convolution without bias, and its two gradients, in bf16."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride, padding, dilation, groups) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = None, stride, padding, dilation, False, [0, 0], groups
        return conv2d(x.float(), weight.float(), None, stride, padding, dilation, groups).bfloat16()

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        needs = [*ctx.needs_input_grad[:2], False]
        found = torch.ops.aten.convolution_backward(
            grad.float(), x.float(), weight.float(), *ctx.options, needs
        )
        return *(None if g is None else g.bfloat16() for g in found[:2]), None, None, None, None


def by_rounding(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """`F.conv2d`, whose products under autocast are rounded to bf16."""
    if bias is not None or not torch.is_autocast_enabled("cpu"):
        return conv2d(x, weight, bias, stride, padding, dilation, groups)
    return Convolution.apply(x.bfloat16(), weight.bfloat16(), stride, padding, dilation, groups)


def accuracy(recipe: str, changes: list[str], precision: str, seed: int) -> float:
    """Of all test images after the last epoch, in percent."""
    words = [*changes, f"seed={seed}", f"train.precision={precision}"]
    with tempfile.TemporaryDirectory() as folder:
        if code := train([recipe, *words, "--run-dir", f"{folder}/run", "--quiet"]):
            sys.exit(code)
        rows = Rows(Path(folder) / "run" / "metrics.jsonl").read()
    return 100 * [row["test_accuracy"] for row in rows if row["kind"] == "eval"][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("changes", nargs="*", metavar="key=value")
    given = parser.parse_args()
    if machine.bf16_instructions():
        print("this processor has instructions for bf16: they are used")
    else:
        F.conv2d = by_rounding
    print("| precision | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean |")
    print("|" + " --- |" * (len(SEEDS) + 2))
    for precision in ("fp32", "bf16"):
        found = [accuracy(given.recipe, given.changes, precision, seed) for seed in SEEDS]
        cells = " | ".join(f"{one:.2f}" for one in [*found, statistics.mean(found)])
        print(f"| {precision} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
