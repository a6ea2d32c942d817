"""spiketriton pull OWNER/NAME|FILE [--run-dir DIR]"""

import argparse
from pathlib import Path

from spiketriton.system.commandline import Parser
from spiketriton.system.errors import importing, run_command

EPILOG = """\
examples:
  spiketriton pull me/fashion-snn --run-dir runs/theirs
  spiketriton pull net.safetensors
  spiketriton evaluate runs/theirs

The run can be evaluated, exported and fine-tuned (train.init_from), not resumed: it has no optimizer. Its recipe comes
from whoever pushed it; code that it names runs only with --trust-plugins."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("pull", EPILOG)
    parser.add_trust()
    parser.add_argument("source", metavar="OWNER/NAME|FILE", help="of the Hub, or a file here")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit (the newest)")
    parser.add_argument("--run-dir", metavar="DIR", help="run folder (runs/<recipe>-<time>)")
    args = parser.parse_intermixed_args(arguments)
    if args.revision is not None and is_file(args.source):
        parser.error("--revision has no effect with a file")
    return args


def is_file(source: str) -> bool:
    return source.endswith(".safetensors")


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    with importing():
        from spiketriton.export.weights import download, make_run

    file = Path(args.source) if is_file(args.source) else download(args.source, args.revision)
    folder = make_run(file, args.run_dir)
    print(f"{folder.path}\nnext: spiketriton evaluate {folder.path}")


if __name__ == "__main__":
    run_command(main)
