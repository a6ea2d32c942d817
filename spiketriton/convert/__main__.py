"""spiketriton convert RUN [--method balanced|calibrated] [--per-channel]

Convert a trained ANN twin to a spiking network.
"""

import argparse
import shlex

from spiketriton.runs.folder import RunFolder, refuse_unusable
from spiketriton.system.commandline import Parser, number, spelled
from spiketriton.system.errors import importing, run_command

EPILOG = """\
examples:
  spiketriton convert runs/ann
  spiketriton convert runs/ann --method calibrated --steps 8 --run-dir runs/calibrated
  spiketriton evaluate runs/converted --steps 1,4,16,64,256,1024 --against runs/ann

The result is a run folder for evaluate and report. Only training images are read."""

METHODS = {"balanced": 128, "calibrated": 16}  # and the default T of each
HEAD = ("layer", "threshold", "largest", "mean shift")
LEGEND = (
    "threshold: the smallest of the layer's channels, and the largest; shift: "
    "what is added to a current at each step to correct its mean"
)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("convert", EPILOG)
    parser.add_run("run folder of an ANN (neuron.kind = relu)")
    ways = (
        "thresholds from activations (balanced), or corrected layer by layer for a short window "
        "(calibrated)"
    )
    parser.add_argument("--method", choices=METHODS, default="balanced", help=ways)
    steps, percent = number(1, 65536), number(1, 100, float)
    defaults = "time steps of the new run (128; calibrated: 16)"
    parser.add_argument("--steps", type=steps, metavar="T", help=defaults)
    only = "balanced only: percentile of the activations (99.9)"
    parser.add_argument("--percentile", type=percent, metavar="P", help=only)
    parser.add_argument("--per-channel", action="store_true", help="a threshold for each channel")
    many = number(1, 10**6)
    parser.add_argument(
        "--images", type=many, default=512, help="training images to measure on (512)"
    )
    parser.add_checkpoint()
    parser.add_argument("--run-dir", metavar="DIR", help="run folder (runs/<recipe>_<method>-...)")
    args = parser.parse_intermixed_args(arguments)
    if args.percentile is not None and args.method != "balanced":
        parser.error(f"--percentile has no effect with --method {args.method}")
    return args


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    refuse_unusable(args.run, args.overrides)
    with importing():
        from spiketriton.convert.conversion import Options, convert, neurons
        from spiketriton.show.screen import Table, console_of, show_table, show_whole
        from spiketriton.training.trained import load_run
        from spiketriton.training.weights import as_run

    options = Options(
        method=args.method,
        steps=args.steps or METHODS[args.method],
        percentile=args.percentile or Options.percentile,
        per_channel=args.per_channel,
        images=args.images,
    )
    args.run = as_run(args.run)
    run = load_run(args.run, *args.overrides, checkpoint=args.checkpoint, augment=False)
    folder = RunFolder.create(args.run_dir, f"{run.recipe.name}_{options.method}")
    with folder.held():
        converted = convert(run, options)
        converted.save(folder)
    console = console_of()
    rows = []
    for name, neuron in neurons(converted.model):
        (low, high), mean = neuron.threshold.aminmax(), neuron.shift.mean()
        rows.append([name, f"{low:.4g}", f"{high:.4g}", f"{mean:+.3g}" if mean else "-"])
    show_table(console, "", Table(HEAD, rows, legend=LEGEND))
    show_whole(console, f"converted for T = {options.steps}: {folder.path}")
    command = [*spelled("evaluate"), str(folder.path), "--against", args.run]
    command += ["--trust-plugins"] * converted.recipe.names_code
    show_whole(console, f"next: {shlex.join(command)}")


if __name__ == "__main__":
    run_command(main)
