"""spiketriton export RUN --to nir|torch|onnx|safetensors [--out FILE]

Write a trained network in a format that other programs read.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spiketriton.runs.folder import RunFolder, refuse_unusable
from spiketriton.runs.outputs import mark_of, marked, output_folder, refuse_foreign
from spiketriton.system.commandline import Parser, number
from spiketriton.system.errors import EXIT_DONE, EXIT_ERROR, importing, need, run_command

if TYPE_CHECKING:
    from spiketriton.data.facts import Facts
    from spiketriton.training.trained import TrainedRun


@dataclass(frozen=True)
class Format:
    """How its files end, the packages that it needs with the extras that bring them, and the options that it has."""

    ending: str
    packages: tuple[tuple[str, str], ...]
    options: tuple[str, ...]


FORMATS = {
    "nir": Format(".nir", (("nir", "nir"),), ("dt", "images")),
    "torch": Format(".pt2", (), ("batch_size",)),
    "onnx": Format(".onnx", (("onnx", "onnx"), ("onnxruntime", "onnx")), ("batch_size", "stream")),
    "safetensors": Format(".safetensors", (("safetensors", "weights"),), ()),
}
EPILOG = """\
examples:
  spiketriton export runs/fashion --to nir
  spiketriton export runs/fashion --to torch --batch-size 8 --out net.pt2

A file is read back and compared with the network; one that differs is not written.
nir: it is run by NIR's equations in PyTorch, and compared
spike by spike, on test images and on noise. The time step is --dt long in the
file's unit of time (1); importers that assume another length need it: 0.0001 for snnTorch.
torch: torch.export of the network in eval mode, for one batch size and image size, of plain operators in float32:
torch.export.load needs nothing of spiketriton.
onnx: plain operators in float32, for any number of images of one size; the file is run by onnxruntime with several
numbers and compared. With --batch-size it takes that number alone. With --stream it is one time step: a frame and the
states go in, currents and the next states come out, and windows are shown to it step by step and compared.
safetensors: the weights, with the recipe in the metadata; every command takes the file as a run.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    differs = {1: "the file would differ from the network, or anything else"}
    parser = Parser("export", EPILOG, differs)
    parser.add_run()
    where = "snnTorch, norse, chips (nir), PyTorch (torch), onnxruntime (onnx), any (safetensors)"
    parser.add_argument("--to", choices=FORMATS, required=True, help=f"for {where}")
    parser.add_argument("--out", metavar="FILE", help="output file (RUN/<recipe>.nir, .pt2, ...)")
    parser.add_checkpoint()
    many = number(1, 10_000)
    parser.add_argument(
        "--dt", type=number(1e-9, 1e9, float), help="nir: length of a time step (1)"
    )
    parser.add_argument("--images", type=many, help="nir: test images of the comparison (4)")
    parser.add_argument("--batch-size", type=many, help="images per call; torch: 1; onnx: any")
    parser.add_argument(
        "--stream",
        action="store_const",
        const=True,
        help="onnx: one time step, with states in and out",
    )
    args = parser.parse_intermixed_args(arguments)
    for name in {"dt", "images", "batch_size", "stream"} - {*FORMATS[args.to].options}:
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} has no effect with --to {args.to}")
    return args


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    refuse_unusable(args.run, args.overrides)
    with importing():
        from spiketriton.export import nir_file  # noqa: F401
        from spiketriton.training.trained import load_run
        from spiketriton.training.weights import as_run

    args.run = as_run(args.run)
    mark = prepared(RunFolder.find(args.run), args.to, args.out)
    run = load_run(args.run, *args.overrides, checkpoint=args.checkpoint)
    options = {name: getattr(args, name) for name in FORMATS[args.to].options}
    path, agrees, lines = exported(run, args.to, args.out, mark, **options)
    print(*lines, sep="\n")
    if not agrees:
        print(f"error: {path} is not written: it would differ from the network", file=sys.stderr)
    return EXIT_DONE if agrees else EXIT_ERROR


def prepared(folder: RunFolder, to: str, out: str | Path | None) -> str:
    """The mark of a file. UserError, before anything is loaded: a package is missing, or the file has no place."""
    for package, extra in FORMATS[to].packages:
        need(package, extra, f"--to {to}")
    mark = mark_of(folder, "export")
    if out:
        refuse_foreign([Path(out)], marked(mark))
    output_folder(Path(out).parent if out else folder.path)
    return mark


def exported(
    run: "TrainedRun",
    to: str,
    out: str | Path | None,
    mark: str,
    *,
    dt: float | None = None,
    images: int | None = None,
    batch_size: int | None = None,
    stream: bool | None = None,
) -> tuple[Path, bool, list[str]]:
    """Writes the file and reads it back: its path, whether it agrees with the network and is there, lines about it.

    UserError: see `refuse`, which comes first, and the writers.
    """
    from spiketriton.evaluate.tables import replayed
    from spiketriton.export.nir_file import export_nir
    from spiketriton.export.plain import export_onnx, export_torch
    from spiketriton.export.refused import refuse
    from spiketriton.export.weights import export_safetensors
    from spiketriton.plugins.tasks import Reading

    refuse(run, to, stream=bool(stream))
    name = run.recipe.name + ("_step" if stream else "")
    path = Path(out or run.folder.path / (name + FORMATS[to].ending))
    shown = "sequence" if run.model.sequence else "recording" if run.facts.frames else "image"
    calls = f"{run.time_steps} time steps"
    if to == "safetensors":
        difference = export_safetensors(run, path, mark)
        agrees, what = difference == 0, f"weights of step {run.step}"
        lines = [f"read back: they differ by {difference:g}"]
    elif to == "torch":
        compared = export_torch(run, path, batch_size or 1, mark)
        agrees, what = compared.agrees, f"{_many(batch_size or 1, shown)} per call, {calls}"
        lines = [f"read back: {compared}"]
    elif stream:
        from spiketriton.export.one_step import export_step

        compared = export_step(run, path, batch_size or 0, mark)
        agrees, what = compared.agrees, f"one time step, {_many(batch_size, 'stream')} per call"
        lines = [f"run by onnxruntime, step by step: {compared}"]
    elif to == "onnx":
        compared = export_onnx(run, path, batch_size or 0, mark)
        agrees, what = compared.agrees, f"{_many(batch_size, shown)} per call, {calls}"
        lines = [f"run by onnxruntime: {compared}"]
    else:
        found = export_nir(run, path, dt or 1.0, images or 4, mark)
        agrees, lines = found.agrees, replayed(found)
        what = f"{len(run.model.spiking_layers())} spiking layers, dt = {dt or 1.0:g}"
    if to != "safetensors":
        of = ", of a shorter sequence up to its end" * run.facts.padded
        lines.append(_input(run.facts))
        lines.append(f"its answer: the {Reading(run.recipe.loss.read).words} of its output{of}")
    return path, agrees, [f"{path}: {what}" if agrees else what, *lines]


def _input(facts: "Facts") -> str:
    """What is to be given to a file, whose metadata have the numbers."""
    from spiketriton.export.plain import COUNTS

    if facts.move == "events":
        return f"its input: {COUNTS[facts.count]} of the n events of each pixel, polarity and step"
    what = "values" if facts.move == "sequence" else "pixels in 0..1"
    behind = ", and 0 behind the end of a shorter sequence" * facts.padded
    shown = {"": "", "given": "", "permuted": ", permuted by order"}
    how = shown.get(facts.sequence, f", by {facts.sequence}")
    return f"its input: {what} less mean, divided by std, by channel{how} (metadata){behind}"


def _many(count: int | None, word: str) -> str:
    """None: any number."""
    return f"{count or 'any number of'} {word}{'' if count == 1 else 's'}"


if __name__ == "__main__":
    run_command(main)
