"""spiketriton push RUN OWNER/NAME [--private]"""

import argparse

from spiketriton.runs.folder import refuse_unusable
from spiketriton.system.commandline import Parser
from spiketriton.system.errors import importing, need, run_command

EPILOG = """\
examples:
  spiketriton evaluate runs/fashion
  spiketriton push runs/fashion me/fashion-snn

Writes model.safetensors, recipe.toml and a model card, with the accuracy if the run was evaluated, to RUN/hub and
uploads them. It needs pip install 'spiketriton[hub]' and a login (hf auth login)."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("push", EPILOG)
    parser.add_trust()
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("name", metavar="OWNER/NAME", help="repository on the Hub")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_checkpoint()
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    refuse_unusable(args.run)
    with importing():
        from spiketriton.export.weights import push
        from spiketriton.training.trained import load_run

    need("huggingface_hub", "hub")
    run = load_run(args.run, checkpoint=args.checkpoint)
    print(push(run, args.name, private=args.private))


if __name__ == "__main__":
    run_command(main)
