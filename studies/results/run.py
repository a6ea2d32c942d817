"""The tables of docs/results.md and of its weights, and the picture, from rows.csv; a row from a run.

    python studies/results/run.py                                    # tables and docs/img/results.png, from the rows
    python studies/results/run.py --add RUN --name NAME              # first a row and its curve
    python studies/results/run.py --add RUN --name NAME --weights    # and examples/weights/NAME.safetensors

A row says what the run folder holds and nothing else, but for a fuller name of the processor (--processor). The
accuracy of the last epoch is that of the last test; the best one is chosen by the test images, and stands beside it
only because others report it. Weights are for rows of the front page: the matrices are rounded to bf16, and all files
together take at most 12 MB. A folder of peers.py gives a row, too, without weights.
"""

import argparse
import csv
import io
import json
import re
import shlex
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from spiketriton.config import Recipe, load_recipe
from spiketriton.export.weights import export_safetensors
from spiketriton.models import count_parameters
from spiketriton.runs.rows import Rows, read_json, replace_file
from spiketriton.show.figures import BLUE, GREEN, ORANGE, STYLE
from spiketriton.system.errors import UserError
from spiketriton.training.trained import TrainedRun, load_run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS, CURVES = HERE / "rows.csv", HERE / "curves"
PAGE, PICTURE = ROOT / "docs" / "results.md", ROOT / "docs" / "img" / "results.png"
WEIGHTS = ROOT / "examples" / "weights"
WEIGHTS_PAGE = WEIGHTS / "README.md"
BEGIN, END = "<!-- made by studies/results/run.py: begin -->\n", "<!-- end -->"
LARGEST = 12_000_000  # bytes of all weights that the repository keeps
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
NAMES = {
    "cifar10": "CIFAR-10",
    "imagenette": "Imagenette",
    "ilif": "I-LIF",
    "vgg8": "VGG-8",
    "resnet18": "ResNet-18",
    "resnet20": "ResNet-20",
    "resnet50": "ResNet-50",
    "resnet56": "ResNet-56",
}
MARKERS = "os^DvP*Xp<>h"
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
    neuron, last = run.recipe.neuron.kind, tests[-1]
    first = sessions[0]
    place, threads = first["cuda"], ""
    if first["device"] == "cpu":
        place, threads = first["cpu"], f", {threads_of(first)}"
    return {
        "name": name,
        "data": run.recipe.data.label + (" (JPEG)" if "JPEG" in run.data.note else ""),
        "command": command(first["command"]),
        "neuron": "relu (ANN)" if neuron == "relu" else neuron,
        "levels": levels_of(run.recipe),
        "T": "-" if neuron == "relu" else str(run.recipe.time_steps),
        "read": run.recipe.loss.read,
        "parameters": str(count_parameters(run.model)),
        "epochs": f"{run.recipe.train.epochs:g}",
        "seed": str(run.recipe.seed),
        "accuracy": percent(last["test_accuracy"]),
        "best": percent(max(row["test_accuracy"] for row in tests)),
        "minutes": f"{last['seconds'] / 60:.1f}",
        "images_per_s": f"{statistics.median(row['images_per_s'] for row in steps):.0f}",
        "memory_mb": f"{max(row['peak_memory_mib'] for row in steps) * 1.048576:.0f}",
        "spikes": "-" if neuron == "relu" else f"{steps[-1]['firing_rate']:.3f}",
        "machine": f"{place}, {first['precision']}{threads}",
        "commit": str(first["commit"])[:9],
        "weights": weights,
    }


def levels_of(recipe: Recipe) -> str:
    """D, the most spikes of a neuron in a step, which are D steps of binary ones; "-" of an ANN."""
    kind = recipe.neuron.kind
    return "-" if kind == "relu" else str(recipe.neuron.levels if kind == "ilif" else 1)


def steps_of(row: Row) -> str:
    """T; "T x D" of neurons with up to D spikes a step; "-" of an ANN."""
    return row["T"] if row["levels"] in ("-", "1") else f"{row['T']} x {row['levels']}"


def row_of_peer(folder: Path, name: str) -> Row:
    """The row of a folder of peers.py, as that of a run of ours."""
    about, tests = read_json(folder / "peer.json"), Rows(folder / "metrics.jsonl").read()
    if not tests or tests[-1]["epoch"] < about["epochs"]:
        raise UserError(f"{folder} has not been tested after its last epoch; a row has")
    refuse_changed_code(folder, about["sessions"])
    first, last = about["sessions"][0], tests[-1]
    return {
        "name": name,
        "data": "cifar10" + (" (JPEG)" if about["files"] == "JPEG" else ""),
        "command": about["command"],
        "neuron": f"lif ({about['library']} {first['version']})",
        "levels": "1",
        "T": str(about["steps"]),
        "read": "mean",
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
    """A file of a run's weights, the matrices in bf16. UserError: the repository would keep too many bytes."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / file.name
        export_safetensors(load_run(path, "data.root=data", "data.workers=auto"), whole)
        with safe_open(whole, "pt") as opened:
            metadata = opened.metadata()
        tensors = {name: rounded(value) for name, value in load_file(whole).items()}
    content = save(tensors, metadata)
    others = [other.stat().st_size for other in file.parent.glob("*.safetensors") if other != file]
    if (total := sum(others) + len(content)) > LARGEST:
        raise UserError(
            f"{file} would make {total:,} bytes of weights; accepted: {LARGEST:,} in all"
        )
    replace_file(file, content)


def rounded(value: Tensor) -> Tensor:
    """A matrix in bf16; norms and widths, which are few numbers, as they are."""
    return value.bfloat16() if value.is_floating_point() and value.ndim > 1 else value


def add(path: str, name: str, processor: str = "", with_weights: bool = False) -> None:
    """Writes the row of a run, in place of one of that name, with its curve; with its weights where they are wanted."""
    if (Path(path) / "peer.json").exists():
        if with_weights:
            raise UserError(f"{path}: --weights is for runs of spiketriton, not for others' loops")
        folder = Path(path)
        row = row_of_peer(folder, name)
    else:
        run, file = load_run(path), WEIGHTS / f"{name}.safetensors"
        folder = run.folder.path
        row = row_of(run, name, file.name if with_weights else "")
        if with_weights:
            write_weights(path, file)
    if processor:
        row["machine"] = f"{processor}, {row['machine'].partition(', ')[2]}"
    CURVES.mkdir(parents=True, exist_ok=True)
    replace_file(CURVES / f"{name}.jsonl", curve(folder))
    rows = [other for other in read() if other["name"] != name] + [row]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(ROWS, text.getvalue())


def ranked(rows: Sequence[Row]) -> list[Row]:
    """By data and accuracy."""
    return sorted(rows, key=lambda row: (row["data"], -float(row["accuracy"])))


def trainings(row: Row, rows: Sequence[Row]) -> list[Row]:
    """A row behind those whose weights it begins with, the first one first; alone where it begins with none of ours."""
    begins = re.search(r"train\.init_from=(?:examples/weights|runs)/([^ /]+)", row["command"])
    name = begins[1].removesuffix(".safetensors") if begins else ""
    first = [one for one in rows if begins and one["name"] == name]
    return [*(trainings(first[0], rows) if first else []), row]


def minutes_before(row: Row, rows: Sequence[Row]) -> float:
    return sum(float(one["minutes"]) for one in trainings(row, rows)[:-1])


def epochs_of(row: Row, rows: Sequence[Row]) -> str:
    return " + ".join(one["epochs"] for one in trainings(row, rows))


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, by data and accuracy."""
    head = (
        "data | command | neuron | D | T | read | epochs | seed | accuracy | best | minutes | images/s | MB | "
        "spikes | machine | commit | weights"
    )
    lines = [f"| {head} |", "|" + " --- |" * (head.count("|") + 1)]
    for row in ranked(rows):
        link = f"[{row['weights']}](../examples/weights/{row['weights']})" if row["weights"] else ""
        cells: list[Any] = [row["data"], f"`{row['command']}`", row["neuron"]]
        cells += [row["levels"], row["T"], row["read"]]
        before = minutes_before(row, rows)
        minutes = f"{before:.1f} + {row['minutes']}" if before else row["minutes"]
        cells += [row["epochs"], row["seed"], f"**{row['accuracy']}**", row["best"], minutes]
        cells += [row["images_per_s"], row["memory_mb"], row["spikes"], row["machine"]]
        lines.append("| " + " | ".join([*cells, row["commit"], link]) + " |")
    return "\n".join(lines) + "\n"


def table_of_weights(rows: Sequence[Row]) -> str:
    """The rows whose weights the repository has, in Markdown, by data and accuracy."""
    lines = ["| file | data | net | epochs | test accuracy |", "| --- | --- | --- | --- | --- |"]
    for row in ranked(rows):
        if not row["weights"]:
            continue
        images = Rows(CURVES / f"{row['name']}.jsonl").read()[-1]["test_images"]
        net = line_of(row)[0] + (f", seed {row['seed']}" if row["seed"] != "0" else "")
        cells = [
            f"`{row['name']}`",
            row["data"],
            net,
            epochs_of(row, rows),
            f"{row['accuracy']} % of {images:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row]) -> None:
    """Accuracy against minutes, the best row of each net, neuron and machine: green for ANNs, orange for others' loops,
    faint without bf16.

    Rows that differ by the seed alone share a marker. What begins with another row's weights goes on where that ends.
    """
    sets = {row["data"].partition(" ")[0]: None for row in rows}
    with plt.rc_context(STYLE):
        size = (7 * len(sets), 6.5)
        figure, places = plt.subplots(
            1, len(sets), figsize=size, layout="constrained", squeeze=False
        )
        panels = dict(zip(sets, places[0], strict=True))
        markers = dict.fromkeys(panels.values(), 0)
        for mean, seeds in best_of_each(rows):
            axes = panels[seeds[0]["data"].partition(" ")[0]]
            label, colour = line_of(seeds[0])
            label += ", JPEGs" * ("(JPEG)" in seeds[0]["data"])
            label += f", {epochs_of(seeds[0], rows)} epochs: {mean:.2f} %"
            label += f" (mean of {len(seeds)} seeds)" * (len(seeds) > 1)
            marker = MARKERS[markers[axes] % len(MARKERS)]
            markers[axes] += 1
            for row in seeds:
                minutes, accuracy, before = [], [], 0.0
                for part in trainings(row, rows):
                    tests = Rows(CURVES / f"{part['name']}.jsonl").read()
                    minutes += [before + test["seconds"] / 60 for test in tests]
                    accuracy += [100 * test["test_accuracy"] for test in tests]
                    before += float(part["minutes"])
                clear = 1.0 if "bf16" in row["machine"] else 0.4
                axes.plot(minutes, accuracy, marker + "-", color=colour, alpha=clear, label=label)
                label = "_"  # of the same name: none in the legend
        for name, axes in panels.items():
            axes.set_title(f"{NAMES.get(name, name)}: accuracy of all test images after each epoch")
            axes.set_xlabel("minutes, tests included")
            axes.set_ylabel("test accuracy, %")
            axes.set_xlim(left=0)
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.15), fontsize=9)
        figure.savefig(PICTURE, dpi=150)
        plt.close(figure)


def best_of_each(rows: Sequence[Row]) -> list[tuple[float, list[Row]]]:
    """Of each data set, net, neuron and machine the most accurate rows, by their mean; the best first."""
    best: dict[tuple[str, ...], tuple[float, list[Row]]] = {}
    for mean, seeds in sorted(by_seeds(rows), key=lambda group: group[0]):
        row, recipe = seeds[0], recipe_of(seeds[0])
        processor, precision, _ = row["machine"].split(", ")
        net = recipe.model.name if recipe else ""
        best[row["data"], processor, precision, net, row["neuron"]] = (mean, seeds)
    return sorted(best.values(), key=lambda group: -group[0])


def by_seeds(rows: Sequence[Row]) -> list[tuple[float, list[Row]]]:
    """The mean accuracy of rows that differ by the seed alone, and these rows."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        words = [word for word in shlex.split(row["command"]) if not word.startswith("seed=")]
        groups.setdefault((row["data"], row["machine"], shlex.join(words)), []).append(row)
    return [(statistics.mean(float(r["accuracy"]) for r in g), g) for g in groups.values()]


def line_of(row: Row) -> tuple[str, str]:
    """The name of a row's line, and its colour."""
    kind, _, library = row["neuron"].partition(" (")
    spiking = row["T"] != "-"
    label = f"{NAMES.get(kind, kind.upper())}, T = {steps_of(row)}" if spiking else "ANN twin"
    recipe = recipe_of(row)
    processor, _, place = row["machine"].partition(", ")
    place = "" if place == "fp32, 1 thread" else f", {place}"  # of most rows
    fuller = processor.partition(" (")[2].removesuffix(")")  # as in "AMD EPYC (AVX-512)"
    place += f", {fuller}" if fuller else ""
    if recipe is None:
        return f"{library.rstrip(')')}, ResNet-20, {label}{place}", ORANGE
    model = recipe.model
    net = NAMES.get(model.name, model.name) + (f" of width {model.width}" if model.width else "")
    net = {"sew": "SEW ", "plain": "plain "}.get(model.block, "") + net
    net += ", Muon" if recipe.train.optimizer == "muon" else ""
    return f"{net}, {label}{place}", BLUE if spiking else GREEN


def recipe_of(row: Row) -> Recipe | None:
    """What a row's command trains; None for another library's loop."""
    program, *given = shlex.split(row["command"])
    if program != "spiketriton":
        return None
    _, path, *words = given
    # weights change no network
    changes = [word for word in words if not word.startswith("train.init_from=")]
    return load_recipe(ROOT / path, changes)


def page(path: Path, made: str) -> str:
    """The text of a page with a table between its marks. UserError: it has no marks."""
    before, mark, rest = path.read_text("utf-8").partition(BEGIN)
    _, ending, after = rest.partition(END)
    if not mark or not ending:
        raise UserError(f"{path} has no marks {BEGIN.strip()} and {END}; its table goes there")
    return before + BEGIN + made + END + after


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--add", metavar="RUN", help="the folder of a run that has ended")
    parser.add_argument("--name", help="of its row, curve and weights")
    parser.add_argument(
        "--weights", action="store_true", help="keep them, too: a row of the front page"
    )
    parser.add_argument("--processor", default="", help='a fuller name: "AMD EPYC (AVX-512)"')
    given = parser.parse_args()
    if (given.add is None) != (given.name is None):
        parser.error("--add and --name go together")
    if given.weights and given.add is None:
        parser.error("--weights goes with --add")
    if given.add is not None:
        add(given.add, given.name, given.processor, given.weights)
    rows = read()
    for path, made in ((PAGE, table(rows)), (WEIGHTS_PAGE, table_of_weights(rows))):
        replace_file(path, page(path, made))
    draw(rows)


if __name__ == "__main__":
    main()
