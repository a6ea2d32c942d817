"""spiketriton predict RUN [key=value ...] FILE ... [--top N] [--json]

Classes of image files, recordings and sequences, by a run.
"""

import argparse
import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spiketriton.runs.folder import refuse_unusable
from spiketriton.system.commandline import Parser, number
from spiketriton.system.errors import UserError, importing, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from spiketriton.api import Run

_KEY = re.compile(r"\w+(\.\w+)+=")

EPILOG = """\
examples:
  spiketriton predict runs/flowers rose.jpg tulip.png
  spiketriton predict runs/flowers *.jpg --json > answers.json
  spiketriton predict runs/flowers holidays/
  spiketriton predict runs/flowers plugins.modules=moved/my_net.py rose.jpg

A run on sequences answers .npy files of [T, C], and of spoken digits .wav files; one on recordings of event cameras
answers recordings in any format that it could be trained on.

Of a folder, all files in it and below that the run can answer are answered. A file that cannot be read is named, the
others are answered, and the exit code is 2.

Images are prepared as the recipe prepares its test images: resized, cropped, normalised. The numbers are
probabilities: the softmax of the logits that loss.read names: their mean over time or the last.
Neither the data nor the recipe's file is needed."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("predict", EPILOG)
    parser.add_trust()
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="FILE",
        help="images, recordings or sequences, folders of them, or a key=value that moves the run",
    )
    count = number(1, 10**6)
    parser.add_argument(
        "--top", type=count, default=3, help="classes to show, the likeliest first (3)"
    )
    parser.add_checkpoint()
    parser.add_argument("--json", action="store_true", help="an object for each image, a line each")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse(arguments)
    keys = [word for word in args.images if _KEY.match(word) and not Path(word).exists()]
    if len(keys) == len(args.images):
        raise UserError("no file is given; accepted: files, or folders of them")
    refuse_unusable(args.run, keys)
    with importing():
        from spiketriton.api import Run
        from spiketriton.plugins.tasks import task_of
        from spiketriton.training.trained import load_run

    run = Run(load_run(args.run, *keys, checkpoint=args.checkpoint))
    top = min(args.top, len(run.classes))
    classifies = task_of(run.recipe.loss).classifies
    paths = [path for given in args.images if given not in keys for path in _files(given, run)]
    broken = 0
    with warnings.catch_warnings(record=True) as notes:
        for path, row in _answers(run, paths):
            if isinstance(row, UserError):
                if len(paths) == 1:
                    raise row
                broken += 1
                print(f"error: {row}", file=sys.stderr, flush=True)
                continue
            if not classifies:
                print(_answer(path, row, run.classes, args.json))
                continue
            likeliest = zip(*(found.tolist() for found in row.topk(top)), strict=True)
            said = {run.classes[place]: round(share, 6) for share, place in likeliest}
            if args.json:
                print(json.dumps({"image": path, "classes": said}, ensure_ascii=False))
            else:
                words = (f"{name} {100 * share:.1f} %" for name, share in said.items())
                print(f"{path}: {', '.join(words)}")
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    if broken:
        raise UserError(f"{broken} of {len(paths)} files have no answer; each is named above")


def _answer(path: str, row: "Tensor", names: Sequence[str], as_json: bool) -> str:
    """A line with the answer of a task without classes. UserError: it does not fit in one."""
    named = dict(zip(names, row.tolist(), strict=False)) if row.shape == (len(names),) else None
    if as_json:
        answer = row.tolist() if named is None else named
        return json.dumps({"image": path, "answer": answer}, ensure_ascii=False)
    if named is None:
        shape = [*row.shape]
        raise UserError(f"{path}: an answer of {shape}; accepted: --json, or Run.predict in Python")
    return f"{path}: {', '.join(f'{name} {value:.4g}' for name, value in named.items())}"


def _files(given: str, run: "Run") -> list[str]:
    """The files of a folder, and below, that a run can answer; or the one that is given. UserError: there are none."""
    from spiketriton.data.given import endings

    if not Path(given).is_dir():
        return [given]
    wanted = endings(run.facts)
    found = (path for path in Path(given).rglob("*") if path.suffix.lower() in wanted)
    if not (files := sorted(str(path) for path in found if path.is_file())):
        raise UserError(
            f"{given} holds no {run.facts.what} file; accepted: files, or folders with some"
        )
    return files


def _answers(run: "Run", paths: Sequence[str]) -> "Iterator[tuple[str, Tensor | UserError]]":
    """Of each image its probabilities, or what is wrong with it; a batch at once where all can be read."""
    size = run.recipe.train.batch_size
    for start in range(0, len(paths), size):
        batch = paths[start : start + size]
        try:
            yield from zip(batch, run.predict(batch), strict=True)
        except UserError:
            for path in batch:
                try:
                    yield path, run.predict(path)[0]
                except UserError as error:
                    yield path, error


if __name__ == "__main__":
    run_command(main)
