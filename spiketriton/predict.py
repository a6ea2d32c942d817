"""spiketriton predict RUN IMAGE ... [--top N] [--json]"""

import argparse
import json

from spiketriton.commandline import Parser, number
from spiketriton.errors import importing, run_command
from spiketriton.runs.folder import refuse_unusable

EPILOG = """\
examples:
  spiketriton predict runs/flowers rose.jpg tulip.png
  spiketriton predict runs/flowers *.jpg --json > answers.json

Images are prepared as the recipe prepares its test images: resized, cropped, normalised. The numbers are
probabilities: the softmax of the mean logits over time. Neither the data nor the recipe's file is needed."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("predict", EPILOG)
    parser.add_trust()
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    count = number(1, 10**6)
    parser.add_argument(
        "--top", type=count, default=3, help="classes to show, the likeliest first (3)"
    )
    parser.add_checkpoint()
    parser.add_argument("--json", action="store_true", help="an object for each image, a line each")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    refuse_unusable(args.run)
    with importing():
        from spiketriton.api import Run
        from spiketriton.trained.run import load_run

    run = Run(load_run(args.run, checkpoint=args.checkpoint))
    top = min(args.top, len(run.classes))
    for path, row in zip(args.images, run.predict(args.images), strict=True):
        likeliest = zip(*(found.tolist() for found in row.topk(top)), strict=True)
        said = {run.classes[place]: round(share, 6) for share, place in likeliest}
        if args.json:
            print(json.dumps({"image": path, "classes": said}, ensure_ascii=False))
        else:
            words = (f"{name} {100 * share:.1f} %" for name, share in said.items())
            print(f"{path}: {', '.join(words)}")


if __name__ == "__main__":
    run_command(main)
