"""The tables of the results' pages and their pictures, from rows.csv; a row from a run.

    python studies/results/run.py                                    # all tables and pictures, from the rows
    python studies/results/run.py --add RUN --name NAME              # first a row and its curve
    python studies/results/run.py --add RUN --name NAME --weights    # and examples/weights/NAME.safetensors
    python studies/results/run.py --without-time RUN --name NAME     # what that row of sequences scores without time

A row says what the run folder holds and nothing else, but for a fuller name of the processor (--processor). The
accuracy of the last epoch is that of the last test; the best one is chosen by the test images, and stands beside it
only because others report it. Weights are for rows of the front page: the matrices are rounded to bf16, or to 8 bits
where the file would exceed 2 MB, and all files together take at most 12 MB. A folder of peers.py gives a row, too,
without weights. A row of sequences or recordings comes with what it scores without the order in time
(without_time.csv), as `spiketriton evaluate` says.
"""

import argparse
import csv
import io
import json
import shlex
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from spiketriton.config import Recipe
from spiketriton.evaluate.baselines import baselines_of
from spiketriton.export.weights import export_safetensors
from spiketriton.models import count_parameters
from spiketriton.runs.rows import Rows, read_json, replace_file
from spiketriton.system import consent
from spiketriton.system.errors import UserError
from spiketriton.training.trained import TrainedRun, load_run
from studies.results import pages

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS, CURVES = HERE / "rows.csv", HERE / "curves"
WEIGHTS = ROOT / "examples" / "weights"
LARGEST = 12_000_000  # bytes of all weights that the repository keeps
LARGE = 2_000_000  # bytes of a file whose matrices have 8 bits instead of 16
COLUMNS = (
    *(
        "name",
        "data",
        "command",
        "neuron",
        "levels",
        "T",
        "read",
        "parameters",
        "epochs",
        "seed",
        "accuracy",
        "best",
    ),
    *("minutes", "images_per_s", "memory_mb", "spikes", "machine", "commit", "weights"),
)
# what a stranger has elsewhere, or what changes no weight
ELSEWHERE = ("data.root=", "data.workers=", "data.cache=", "train.device=")
Row = dict[str, str]


def command(given: str) -> str:
    """A run's command without its places on the disk: what a stranger types."""
    words, kept = iter(shlex.split(given)), []
    for word in words:
        if word == "--run-dir":
            next(words, None)
        elif not word.startswith((*ELSEWHERE, "--run-dir=")):
            kept.append(word)
    return shlex.join(kept)


def row_of(run: TrainedRun, name: str, weights: str) -> Row:
    """The row of a run that has ended. UserError: it has not, or its code was not as committed."""
    rows = Rows(run.folder.path / "metrics.jsonl").read()
    tests = [row for row in rows if row["kind"] == "eval"]
    steps = [row for row in rows if row["kind"] == "train"]
    if not tests or not steps or tests[-1]["epoch"] < run.recipe.train.epochs:
        raise UserError(f"{run.folder.path} has not been tested after its last epoch; a row has")
    sessions = run.folder.sessions()
    refuse_changed_code(run.folder.path, sessions)
    data, neuron, last = run.recipe.data, neuron_of(run.recipe), tests[-1]
    spikes = steps[-1].get("firing_rate") if levels_of(run.recipe) != "-" else None
    first = sessions[0]
    place, threads = first["cuda"], ""
    if first["device"] == "cpu":
        place, threads = first["cpu"], f", {threads_of(first)}"
    return {
        "name": name,
        "data": f"{data.label} {data.sequence}".removesuffix(" none")
        + (" (JPEG)" if "JPEG" in run.data.note else ""),
        "command": command(first["command"]),
        "neuron": neuron,
        "levels": levels_of(run.recipe),
        "T": "-" if neuron.endswith("(ANN)") else str(run.recipe.time_steps),
        "read": run.recipe.loss.read,
        "parameters": str(count_parameters(run.model)),
        "epochs": f"{run.recipe.train.epochs:g}",
        "seed": str(run.recipe.seed),
        "accuracy": percent(last["test_accuracy"]),
        "best": percent(max(row["test_accuracy"] for row in tests)),
        "minutes": f"{last['seconds'] / 60:.1f}",
        "images_per_s": f"{statistics.median(row['images_per_s'] for row in steps):.0f}",
        "memory_mb": f"{max(row['peak_memory_mib'] for row in steps) * 1.048576:.0f}",
        "spikes": "-" if spikes is None else f"{spikes:.3f}",
        "machine": f"{place}, {first['precision']}{threads}",
        "commit": str(first["commit"])[:9],
        "weights": weights,
    }


def neuron_of(recipe: Recipe) -> str:
    """Its kind; "relu (ANN)" or "gru (ANN)" of a net without spikes, the latter one of rivals.py."""
    _, _, rival = recipe.model.name.partition(":")
    kind = rival or recipe.neuron.kind
    return f"{kind} (ANN)" if rival or kind == "relu" else kind


def levels_of(recipe: Recipe) -> str:
    """D, the most spikes of a neuron in a step, which are D steps of binary ones; "-" of an ANN."""
    if neuron_of(recipe).endswith("(ANN)"):
        return "-"
    return str(recipe.neuron.levels if recipe.neuron.kind == "ilif" else 1)


def row_of_peer(folder: Path, name: str) -> Row:
    """The row of a folder of peers.py, as that of a run of ours."""
    about, tests = read_json(folder / "peer.json"), Rows(folder / "metrics.jsonl").read()
    if not tests or tests[-1]["epoch"] < about["epochs"]:
        raise UserError(f"{folder} has not been tested after its last epoch; a row has")
    refuse_changed_code(folder, about["sessions"])
    first, last = about["sessions"][0], tests[-1]
    return {
        "name": name,
        "data": about.get("data", "cifar10") + (" (JPEG)" if about["files"] == "JPEG" else ""),
        "command": about["command"],
        "neuron": f"{about.get('neuron', 'lif')} ({about['library']} {first['version']})",
        "levels": "1",
        "T": str(about["steps"]),
        "read": about.get("read", "mean"),
        "parameters": str(about["parameters"]),
        "epochs": str(about["epochs"]),
        "seed": str(about["seed"]),
        "accuracy": percent(last["test_accuracy"]),
        "best": percent(max(row["test_accuracy"] for row in tests)),
        "minutes": f"{last['seconds'] / 60:.1f}",
        "images_per_s": f"{statistics.median(row['images_per_s'] for row in tests):.0f}",
        "memory_mb": f"{max(row['peak_memory_mib'] for row in tests) * 1.048576:.0f}",
        "spikes": f"{last['firing_rate']:.3f}",
        "machine": f"{first['cpu']}, fp32, {threads_of(first)}",
        "commit": str(first["commit"])[:9],
        "weights": "",
    }


def refuse_changed_code(folder: Path, sessions: list[dict[str, Any]]) -> None:
    if changed := [one["time"] for one in sessions if one["dirty"] or not one["commit"]]:
        raise UserError(f"{folder}: the session of {changed[0]} ran code that is in no commit")


def threads_of(session: dict[str, Any]) -> str:
    return f"{session['threads']} thread" + ("s" if session["threads"] > 1 else "")


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def curve(folder: Path) -> str:
    """The tests of a run, a JSON object a line: epoch, seconds, accuracy, loss."""
    kept = ("step", "epoch", "seconds", "test_accuracy", "test_loss", "test_images")
    rows = Rows(folder / "metrics.jsonl").read()
    tests = [{key: row[key] for key in kept} for row in rows if row["kind"] == "eval"]
    return "".join(json.dumps(row) + "\n" for row in tests)


def read() -> list[Row]:
    if not ROWS.exists():
        return []
    with ROWS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_weights(path: str, file: Path) -> None:
    """A file of a run's weights, rounded. UserError: the repository would keep too many bytes."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / file.name
        export_safetensors(load_run(path, "data.root=data", "data.workers=auto"), whole)
        with safe_open(whole, "pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(whole)
    content = save(rounded(tensors, torch.bfloat16), metadata)
    if len(content) > LARGE:
        content = save(rounded(tensors, torch.float8_e4m3fn), metadata)
    others = [other.stat().st_size for other in file.parent.glob("*.safetensors") if other != file]
    if (total := sum(others) + len(content)) > LARGEST:
        raise UserError(
            f"{file} would make {total:,} bytes of weights; accepted: {LARGEST:,} in all"
        )
    replace_file(file, content)


def rounded(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Matrices in that dtype; norms and widths, which are few numbers, as they are."""
    return {
        name: value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value
        for name, value in tensors.items()
    }


def add(path: str, name: str, processor: str = "", with_weights: bool = False) -> None:
    """Writes the row of a run, in place of one of that name, with its curve; with its weights where they are wanted."""
    if (Path(path) / "peer.json").exists():
        if with_weights:
            raise UserError(f"{path}: --weights is for runs of spiketriton, not for others' loops")
        folder = Path(path)
        row = row_of_peer(folder, name)
    else:
        with consent.decided(True):  # to rivals.py
            run, file = load_run(path), WEIGHTS / f"{name}.safetensors"
        folder = run.folder.path
        row = row_of(run, name, file.name if with_weights else "")
        if with_weights:
            write_weights(path, file)
        add_without_time(run, name)
    if processor:
        row["machine"] = f"{processor}, {row['machine'].partition(', ')[2]}"
    CURVES.mkdir(parents=True, exist_ok=True)
    replace_file(CURVES / f"{name}.jsonl", curve(folder))
    write(ROWS, COLUMNS, list(({other["name"]: other for other in read()} | {name: row}).values()))


def add_without_time(run: TrainedRun, name: str) -> None:
    """Writes what a run's data and net score without the order in time, in place of that name's; nothing of images."""
    found = [
        {"name": name, "baseline": one.name, "accuracy": percent(one.value)}
        for one in baselines_of(run, run.data.test)
    ]
    if found:
        others = [other for other in pages.read_without_time() if other["name"] != name]
        write(pages.WITHOUT_TIME, ("name", "baseline", "accuracy"), others + found)


def write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    of_run = parser.add_mutually_exclusive_group()
    of_run.add_argument("--add", metavar="RUN", help="the folder of a run that has ended")
    of_run.add_argument("--without-time", metavar="RUN", help="that of a row that there is")
    parser.add_argument("--name", help="of its row, curve and weights")
    parser.add_argument(
        "--weights", action="store_true", help="keep them, too: a row of the front page"
    )
    parser.add_argument("--processor", default="", help='a fuller name: "AMD EPYC (AVX-512)"')
    given = parser.parse_args()
    if (given.add is None and given.without_time is None) != (given.name is None):
        parser.error("--name goes with --add or with --without-time")
    if given.weights and given.add is None:
        parser.error("--weights goes with --add")
    if given.add is not None:
        add(given.add, given.name, given.processor, given.weights)
    if given.without_time is not None:
        add_without_time(load_run(given.without_time), given.name)
    pages.make(read())


if __name__ == "__main__":
    main()
