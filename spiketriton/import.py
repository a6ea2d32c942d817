"""spiketriton import FILE RECIPE [key=value ...] [--dt DT] [--reset hard|soft]

Import a network from a NIR file, as a run.
"""

import argparse
import shlex
import sys
from pathlib import Path

from spiketriton.runs.folder import RunFolder
from spiketriton.system.commandline import RECIPE_HELP, Parser
from spiketriton.system.errors import EXIT_DONE, EXIT_ERROR, UserError, importing, run_command

EPILOG = """\
examples:
  spiketriton import cnn.nir n_mnist_recipe.toml --dt 1 --reset soft
  spiketriton evaluate runs/cnn-20260101-120000
  spiketriton train runs/cnn-20260101-120000/recipe.toml train.lr=0.001

The recipe says the data, the time steps and how the network would be trained further. The network is replayed by an
interpreter of NIR's equations in PyTorch and compared spike by spike, on test images and on noise. Neurons fire at
v >= v_threshold. The file is copied into the run folder."""


def parse(arguments: list[str]) -> argparse.Namespace:
    differs = {1: "the network would differ from its file, or anything else"}
    parser = Parser("import", EPILOG, differs)
    parser.add_argument("file", metavar="FILE", help="NIR file, written by nir.write")
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    parser.add_overrides()
    parser.add_argument("--dt", type=float, help="length of a time step (from the file)")
    parser.add_argument(
        "--reset", choices=("hard", "soft"), help="reset of the neurons (from the file, or hard)"
    )
    parser.add_argument("--run-dir", metavar="DIR", help="run folder (runs/FILE-<time>)")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    file = Path(args.file)
    if not file.is_file():
        raise UserError(f"{file} does not exist; accepted: a file of NIR")
    with importing():
        from spiketriton.config import load_recipe
        from spiketriton.data import build_data
        from spiketriton.evaluate.tables import replayed
        from spiketriton.export.nir_file import sample_images
        from spiketriton.export.nir_network import keys, verify
        from spiketriton.models import build_model
        from spiketriton.models.foreign import ForeignNetwork
        from spiketriton.training.placement import Placement
        from spiketriton.training.weights import save_run

    given = keys(file, args.dt, args.reset)
    recipe = load_recipe(args.recipe, args.overrides, given)
    data = build_data(recipe)
    model = build_model(recipe, **data.facts.sizes)
    assert isinstance(model, ForeignNetwork)
    found = verify(model, recipe.model.arguments["path"], sample_images(data, 4))
    said = [f"{len(model.spiking_layers())} spiking layers", *replayed(found)]
    if not found.agrees:
        print(*said, sep="\n")
        print(f"error: {file} is not imported: the network would differ from it", file=sys.stderr)
        return EXIT_ERROR
    folder = RunFolder.create(args.run_dir, file.stem)
    with folder.held():
        recipe = folder.keep_network(recipe)
        device = Placement.set_up(recipe.train).device
        save_run(folder, recipe, data.facts, model.state_dict(), device)
    print(f"{folder.path}: a run at step 0 of", *said, sep="\n")
    print(f"next: {shlex.join(['spiketriton', 'evaluate', str(folder.path)])}")
    return EXIT_DONE


if __name__ == "__main__":
    run_command(main)
