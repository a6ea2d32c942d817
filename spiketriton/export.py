"""python -m spiketriton.export RUN --to nir|torch [--out FILE]"""

import argparse
import copy
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spiketriton.commandline import Parser
from spiketriton.errors import EXIT_DONE, EXIT_ERROR, UserError, one_line, run_command
from spiketriton.models import Network
from spiketriton.neurons import one_by_one
from spiketriton.trained.nir_graph import import_nir, to_nir
from spiketriton.trained.nir_replay import replay
from spiketriton.trained.run import Run, load_run

ENDINGS = {"nir": ".nir", "torch": ".pt2"}
TIE = 1e-5  # of the threshold: nearer to it, rounding to float32 may decide whether a neuron fires

EPILOG = """\
examples:
  python -m spiketriton.export runs/fashion --to nir
  python -m spiketriton.export runs/fashion --to torch --batch-size 8 --out net.pt2

nir: the file is read back, replayed by an interpreter of NIR's equations in numpy, and compared
with the network spike by spike, on test images and on noise. The time step is --dt long in the
file's unit of time (1); importers that take it for granted want another: 0.0001 for snnTorch.
torch: torch.export of the network in eval mode, for one batch size and image size; the file is read
back and compared. Load it after `import spiketriton_kernels`, which brings the operators.

Exit codes: 0 done, 2 a mistake in the command or the run, 1 the file does not do what the network
does."""


@dataclass(frozen=True)
class Comparison:
    """Spikes of a file against those of the network that it came from."""

    spikes: int
    compared: int  # neurons x time steps x images
    different: int
    first: str  # where the first difference is, in words; "" without one
    margin: float  # how far that membrane is from its threshold, as a share of it


def export_nir(run: Run, path: Path, dt: float, images: int) -> Comparison:
    """Writes the network as NIR and compares the file with the network.

    UserError: NIR cannot say the network, nir is not installed, or the file cannot be written.
    """
    nir = import_nir()
    size = run.data.image_size
    graph = to_nir(run.model, (run.data.channels, size, size), dt)
    try:
        nir.write(path, graph)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {one_line(error)}") from None
    return compare(run.model, nir.read(path), sample_images(run, images))


def sample_images(run: Run, count: int) -> Tensor:
    """The first `count` test images, and as many of noise with a fixed seed: [2 * count, ...]."""
    found: list[Tensor] = []
    for images, _ in run.data.test:
        found.append(images)
        if sum(map(len, found)) >= count:
            break
    real = torch.cat(found)[:count]
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([real, noise])


@torch.no_grad()
def compare(model: Network, graph: Any, images: Tensor) -> Comparison:
    """Replays a graph on images [B, C, H, W] and counts the spikes that differ from the network's.

    Both compute in float64, the graph with its float32 weights.
    """
    ours = spikes_of(copy.deepcopy(model).cpu().double(), images.cpu().double())
    theirs, membranes = replay(graph, images.cpu().numpy(), model.time_steps)
    spikes = compared = different = 0
    found: list[tuple[int, int, str, float]] = []  # time step, layer, words, margin
    for index, (name, expected) in enumerate(ours.items()):
        wrong = np.argwhere(theirs[name] != expected)
        spikes, compared = spikes + int(expected.sum()), compared + expected.size
        different += len(wrong)
        if len(wrong):
            at = tuple(wrong[0])
            threshold = graph.nodes[name].v_threshold[at[2:]]
            margin = float(abs(membranes[name][at] / threshold - 1))
            place = f"{name}, time step {at[0]}, image {at[1]}, neuron {[int(i) for i in at[2:]]}"
            found.append((int(at[0]), index, place, margin))
    _, _, first, margin = min(found, default=(0, 0, "", 0.0))
    return Comparison(spikes, compared, different, first, margin)


def spikes_of(model: Network, images: Tensor) -> dict[str, np.ndarray]:
    """The spikes of each layer by name, [T, B, ...], norms and neurons one by one."""
    spikes: dict[str, np.ndarray] = {}

    def keep(name: str, module: nn.Module, _: Any, out: Tensor) -> None:
        spikes[name] = out.numpy()

    hooks = [n.register_forward_hook(partial(keep, name)) for name, n in model.spiking_layers()]
    with one_by_one(model):
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return spikes


@torch.no_grad()
def export_torch(run: Run, path: Path, batch_size: int) -> float:
    """Writes `torch.export` of the network, reads it back; the largest difference of currents.

    UserError: the file cannot be written.
    """
    size = run.data.image_size
    shape = (batch_size, run.data.channels, size, size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(run.device)
    images = run.to_device(images)
    program = torch.export.export(run.model, (images,))
    with warnings.catch_warnings():
        # torch says it of every buffer that is a part of no larger one
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        try:
            torch.export.save(program, path)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path} cannot be written: {one_line(error)}") from None
        again = torch.export.load(path).module()
    return float((again(images) - run.model(images)).abs().max())


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("export", EPILOG)
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as data.root=/data")
    parser.add_argument("--to", choices=tuple(ENDINGS), required=True)
    parser.add_argument("--out", metavar="FILE", help="(RUN/<recipe>.nir or .pt2)")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last")
    parser.add_argument("--dt", type=float, help="nir: length of a time step (1)")
    parser.add_argument("--images", type=int, help="nir: test images to compare on (4)")
    parser.add_argument("--batch-size", type=int, help="torch: images of a call (1)")
    args = parser.parse_intermixed_args(arguments)
    idle = {"nir": ["batch_size"], "torch": ["dt", "images"]}[args.to]
    for name in idle:
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} has no effect with --to {args.to}")
    for name, low, high in (("dt", 1e-9, 1e9), ("images", 1, 10_000), ("batch_size", 1, 10_000)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name.replace('_', '-')} {value}: accepted: from {low:g} to {high:g}")
    return args


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    if args.to == "nir":
        import_nir()  # before the data are looked for
    run = load_run(args.run, *args.overrides, checkpoint=args.checkpoint)
    path = Path(args.out or run.folder.path / (run.recipe.name + ENDINGS[args.to]))
    if args.to == "torch":
        batch_size = args.batch_size or 1
        difference = export_torch(run, path, batch_size)
        print(f"{path}: {batch_size} image(s) a call, {run.time_steps} time steps")
        print(f"read back: currents differ by {difference:g}")
        return EXIT_DONE if difference == 0 else EXIT_ERROR
    found = export_nir(run, path, args.dt or 1.0, args.images or 4)
    print(f"{path}: {len(run.model.spiking_layers())} spiking layers, dt = {args.dt or 1.0:g}")
    print(
        f"replayed by NIR's equations: {found.different:,} of {found.compared:,} differ "
        f"({found.spikes:,} spikes)"
    )
    if found.different:
        print(f"first difference: {found.first}, {found.margin:.1e} of the threshold away from it")
    return EXIT_DONE if found.different == 0 or found.margin < TIE else EXIT_ERROR


if __name__ == "__main__":
    run_command(main)
