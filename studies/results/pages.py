"""The tables and pictures of the results' pages, from the rows of rows.csv.

docs/rows.md has all rows. README.md and docs/results.md name the rows that they show, between the marks
`<!-- rows COLUMN, COLUMN: NAME, NAME/TWIN -->` and `<!-- end -->`: of rows that differ by the seed alone the mean.
"""

import csv
import difflib
import re
import shlex
import statistics
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from spiketriton.config import Recipe, load_recipe
from spiketriton.config.words import some
from spiketriton.runs.rows import Rows, replace_file
from spiketriton.show.figures import BLUE, GREEN, GREY, ORANGE, STYLE, png
from spiketriton.system.errors import UserError
from studies.pages import filled

ROOT = Path(__file__).parents[2]
CURVES = Path(__file__).parent / "curves"
WITHOUT_TIME = Path(__file__).parent / "without_time.csv"
ALL_ROWS, IMAGES = ROOT / "docs" / "rows.md", ROOT / "docs" / "img"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "README.zh.md",
    ROOT / "docs" / "results.md",
    ROOT / "studies" / "paper_claims" / "log.md",
)
WEIGHTS_PAGE = ROOT / "examples" / "weights" / "README.md"
MADE = "made by studies/results/run.py"
NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny-ImageNet",
    "imagenette": "Imagenette",
    "spoken_digits": "spoken digits",
    "dvs_biolab": "DVS128 BioLab",
    "mnist": "MNIST",
    "masked_psn": "masked PSN",
    "ilif": "I-LIF",
    "vgg8": "VGG-8",
    "resnet8": "ResNet-8",
    "resnet18": "ResNet-18",
    "resnet20": "ResNet-20",
    "resnet50": "ResNet-50",
    "resnet56": "ResNet-56",
}
LOOKS = (("o-", BLUE), ("s--", GREEN), ("^-.", ORANGE), ("d:", GREY))  # of a picture's curves
PICTURES = {
    "imagenette.png": (
        "Imagenette at 64 pixels, one thread",
        {
            "imagenette_vgg8w24_40": "VGG-8, 0 to 4 spikes (EPYC)",
            "imagenette_vgg8w24_ann_40": "its ANN twin (EPYC)",
            "r50im_t10": "ResNet-50, 0 or 1 (Xeon)",
            "r50im_ann": "its ANN twin (Xeon)",
        },
    ),
}
Row = dict[str, str]


def make(rows: Sequence[Row]) -> None:
    """Writes every table and picture again."""
    for path, made in ((ALL_ROWS, table(rows)), (WEIGHTS_PAGE, table_of_weights(rows))):
        replace_file(path, page(path, made))
    for path in PAGES:
        replace_file(path, with_tables(path, rows))
    for name, (title, curves) in PICTURES.items():
        draw(rows, title, curves, IMAGES / name)


def ranked(rows: Sequence[Row]) -> list[Row]:
    """By data and accuracy."""
    return sorted(rows, key=lambda row: (row["data"], -float(row["accuracy"])))


def trainings(row: Row, rows: Sequence[Row]) -> list[Row]:
    """A row behind those whose weights it begins with, the first one first; alone where it begins with none of ours."""
    begins = re.search(r"train\.init_from=(?:examples/weights|runs)/([^ /]+)", row["command"])
    name = begins[1].removesuffix(".safetensors") if begins else ""
    first = [one for one in rows if begins and one["name"] == name]
    return [*(trainings(first[0], rows) if first else []), row]


def epochs_of(row: Row, rows: Sequence[Row]) -> str:
    """Those of a row and of all whose weights it goes on with."""
    return f"{sum(float(one['epochs']) for one in trainings(row, rows)):g}"


def table(rows: Sequence[Row]) -> str:
    """All rows in Markdown, by data and accuracy, and their commands."""
    head = (
        "row | data | net | neuron | D | T | read | epochs | seed | accuracy | best | minutes | threads | images/s | "
        "MB | spikes | machine | commit"
    )
    lines = [f"| {head} |", "|" + " --- |" * (head.count("|") + 1)]
    for row in ranked(rows):
        processor, precision, threads = row["machine"].split(", ")
        cells = [
            f"[{row['name']}](#command-{row['name']})",
            data_of(row),
            net_of(row),
            row["neuron"],
        ]
        cells += [row["levels"], row["T"], row["read"], row["epochs"], row["seed"]]
        cells += [
            row["accuracy"],
            row["best"],
            f"{whole_minutes(row, rows):.1f}",
            threads.split()[0],
        ]
        cells += [row["images_per_s"], row["memory_mb"], row["spikes"]]
        lines.append("| " + " | ".join([*cells, f"{processor}, {precision}", row["commit"]]) + " |")
    lines += ["", "## Commands", "", "| row | command |", "| --- | --- |"]
    for row in ranked(rows):
        lines.append(f'| <a id="command-{row["name"]}"></a>{row["name"]} | `{row["command"]}` |')
    return "\n".join(lines) + "\n"


def whole_minutes(row: Row, rows: Sequence[Row]) -> float:
    """Those of a row and of all whose weights it goes on with."""
    return sum(float(one["minutes"]) for one in trainings(row, rows))


def data_of(row: Row) -> str:
    name, _, changed = row["data"].partition(" ")
    changed = changed.replace("(split official)", "").replace("split speaker:", "without ")
    return f"{NAMES.get(name, name)} {changed}".strip()


def net_of(row: Row) -> str:
    """The network of a row; another library's name beside it."""
    recipe = recipe_of(row)
    if recipe is None:
        library = row["neuron"].partition(" (")[2].rstrip(")")
        words = shlex.split(row["command"])
        if "--recipe" not in words:
            return f"ResNet-20 ({library})"
        given = words[words.index("--recipe") + 1 :]
        path, *changes = takewhile(lambda word: not word.startswith("--"), given)
        net = load_recipe(path, changes).model
        return f"{net.depth} layers of {net.width} ({library})"
    model = recipe.model
    if model.name == "sequence":
        more = ", recurrent" * model.recurrent
        more += f", delays of up to {model.delays}" if model.delays else ""
        return f"{model.depth} layers of {model.width}{more}"
    if ":" in model.name:  # one of rivals.py
        given = model.arguments
        return f"{given.get('depth', 2)} layers of {given['width']}"
    net = NAMES.get(model.name, model.name) + (f" of width {model.width}" if model.width else "")
    net += ", shortcuts of spikes" * (model.shortcut == "spikes")
    net += ", usual start" * (model.block == "plain" and model.shortcut_gradient == "surrogate")
    net += ", without norms" * (model.norm == "none")
    width = recipe.neuron.surrogate.width
    net += f", surrogate {width:g} wide" * (model.block == "plain" and width != 0.3)
    return {"sew": "SEW ", "plain": "plain "}.get(model.block, "") + net


class Shown:
    """A line of a page's table: rows that differ by the seed alone, and the name of the twin's."""

    def __init__(self, words: str, rows: Sequence[Row]) -> None:
        """UserError: there is no row of that name."""
        name, _, twin = words.strip().partition("/")
        self.rows, self.seeds = rows, seeds_of(name, rows)
        self.row, self.twin = self.seeds[0], seeds_of(twin, rows) if twin else []
        if any(other["data"] != self.row["data"] for other in self.twin):
            raise UserError(f"{twin} is no twin of {name}: it has other images")
        if any(net_of(other) != net_of(self.row) for other in self.twin):
            raise UserError(f"{twin} is no twin of {name}: it is another network")

    def cell(self, column: str) -> str:
        """One number or name. KeyError: no such column."""
        if column in BASELINES:
            return self.without_time(BASELINES[column])
        row, kind = self.row, self.row["neuron"].partition(" (")[0]
        minutes = statistics.mean(whole_minutes(one, self.rows) for one in self.seeds)
        of_seeds = {
            "lowest": min(float(one["accuracy"]) for one in self.seeds),
            "highest": max(float(one["accuracy"]) for one in self.seeds),
        }
        cells = {
            "data": data_of(row),
            "net": f"[{net_of(row)}]({{rows}}#command-{row['name']})",
            "neuron": NAMES.get(kind, kind.upper()) if kind != "relu" else "ReLU",
            "D": row["levels"],
            "T": row["T"],
            "spikes": f"{row['levels']} x {row['T']}" if row["T"] != "-" else "-",
            "accuracy": f"**{mean_accuracy(self.seeds):.1f}**",
            "read": row["read"],
            "seeds": str(len(self.seeds)),
            "twin": f"{mean_accuracy(self.twin):.1f}" if self.twin else "",
            "epochs": epochs_of(row, self.rows),
            "minutes": f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.1f}",
            "threads": row["machine"].rpartition(", ")[2].split()[0],
            "precision": row["machine"].split(", ")[1],
            "machine": row["machine"].partition(", ")[0],
            "MB": row["memory_mb"],
            "images/s": row["images_per_s"],
            **{name: f"{value:.1f}" for name, value in of_seeds.items()},
        }
        return cells[column]

    def without_time(self, baseline: str) -> str:
        """The mean of the seeds that it is known of. UserError: there is none."""
        names = [row["name"] for row in self.seeds]
        found = [
            float(one["accuracy"])
            for one in read_without_time()
            if one["name"] in names and one["baseline"] == baseline
        ]
        if not found:
            raise UserError(f"{WITHOUT_TIME.name} does not have {baseline} of {' or '.join(names)}")
        return f"{statistics.mean(found):.1f}"


def read_without_time() -> list[Row]:
    """What the runs of rows score without the order in time."""
    if not WITHOUT_TIME.exists():
        return []
    with WITHOUT_TIME.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


BASELINES = {
    "shuffled": "the same net, steps shuffled",
    "mean step": "a linear classifier of the mean step",
    "events": "the number of events alone",
}
"""Columns of what a row scores without the order in time."""


def seeds_of(name: str, rows: Sequence[Row]) -> list[Row]:
    """A row and those that differ from it by the seed alone. UserError: there is none of that name."""
    for _, seeds in by_seeds(rows):
        if name in (row["name"] for row in seeds):
            return seeds
    names = [row["name"] for row in rows]
    near = difflib.get_close_matches(name, names) or names
    raise UserError(f"rows.csv has no row {name!r}; it has {some(near)}")


def mean_accuracy(rows: Sequence[Row]) -> float:
    return statistics.mean(float(row["accuracy"]) for row in rows)


HEADINGS = {
    "en": {
        "accuracy": "accuracy, %",
        "spikes": "levels x steps",
        "twin": "ANN twin, %",
        "D": "levels",
        "T": "steps",
        "shuffled": "steps shuffled, %",
        "mean step": "linear, of the mean step, %",
        "events": "number of events alone, %",
    },
    "zh": {
        "data": "数据",
        "net": "网络",
        "neuron": "神经元",
        "spikes": "级数 x 步数",
        "accuracy": "准确率 %",
        "read": "读取",
        "seeds": "种子数",
        "twin": "对应 ANN %",
        "minutes": "分钟",
        "threads": "线程",
        "machine": "机器",
    },
}
SHOWN = re.compile(r"(<!-- rows ([^:]+): (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(path: Path, rows: Sequence[Row]) -> str:
    """The text of a page, each of its tables made again."""
    places = {"docs": "rows.md", "paper_claims": "../../docs/rows.md"}
    place = places.get(path.parent.name, "docs/rows.md")
    headings = HEADINGS["zh" if path.stem.endswith("zh") else "en"]

    def made(found: re.Match[str]) -> str:
        columns = [column.strip() for column in found[2].split(",")]
        lines = [f"| {' | '.join(headings.get(name, name) for name in columns)} |"]
        names = {"data", "net", "neuron", "read", "machine", "precision"}
        lines.append("|" + "".join(" --- |" if name in names else " ---: |" for name in columns))
        for words in found[3].split(","):
            shown = Shown(words, rows)
            cells = [shown.cell(column).replace("{rows}", place) for column in columns]
            lines.append("| " + " | ".join(cells) + " |")
        return found[1] + "\n".join(lines) + "\n" + found[4]

    return SHOWN.sub(made, path.read_text("utf-8"))


def table_of_weights(rows: Sequence[Row]) -> str:
    """The rows whose weights the repository has, in Markdown, by data and accuracy."""
    lines = [
        "| file | data | net | neuron | levels | steps | seed | epochs | accuracy, % | test images |",
        "| --- | --- | --- | --- |" + " ---: |" * 6,
    ]
    for row in ranked(rows):
        if not row["weights"]:
            continue
        images = Rows(CURVES / f"{row['name']}.jsonl").read()[-1]["test_images"]
        cells = [
            f"`{row['name']}`",
            *(data_of(row), net_of(row), NAMES.get(row["neuron"], row["neuron"].upper())),
            *(row["levels"], row["T"], row["seed"], epochs_of(row, rows)),
            *(row["accuracy"], f"{images:,}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], title: str, curves: dict[str, str], path: Path) -> None:
    """Accuracy against minutes, a curve for each row named, its label beside its end.

    Of rows that differ by the seed alone each is drawn, faint, and the first one clear. What goes on with another's
    weights begins where that ends.
    """
    with plt.rc_context(STYLE | {"font.size": 12, "lines.linewidth": 2}):
        figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
        ends = []
        for (name, label), (dashes, colour) in zip(curves.items(), LOOKS, strict=False):
            for number, row in enumerate(seeds_of(name, rows)):
                minutes, accuracy = zip(*curve_of(row, rows), strict=True)
                axes.plot(minutes, accuracy, dashes, color=colour, alpha=0.35 if number else 1)
                if number == 0:
                    ends.append((accuracy[-1], minutes[-1], label, colour))
        axes.set(title=title, xlabel="minutes, tests included", ylabel="test accuracy, %")
        axes.set_xlim(left=0)
        low, high = axes.get_ylim()
        free = -np.inf
        for accuracy, minutes, label, colour in sorted(ends):
            free = max(accuracy, free)  # above the label below
            axes.annotate(
                label, (minutes, accuracy), (minutes + 0.01 * axes.get_xlim()[1], free),
                color=colour, va="center", annotation_clip=False,
            )  # fmt: skip
            free += 0.05 * (high - low)
        replace_file(path, png(figure, dpi=100))
        plt.close(figure)


def curve_of(row: Row, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Minutes and accuracy in % of each test, those of the trainings before it among them."""
    points, before = [], 0.0
    for part in trainings(row, rows):
        tests = Rows(CURVES / f"{part['name']}.jsonl").read()
        points += [(before + one["seconds"] / 60, 100 * one["test_accuracy"]) for one in tests]
        before += float(part["minutes"])
    return points


def by_seeds(rows: Sequence[Row]) -> list[tuple[float, list[Row]]]:
    """The mean accuracy of rows that differ by the seed alone, and these rows."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["machine"], seedless(row["command"])), []).append(row)
    return [(statistics.mean(float(r["accuracy"]) for r in g), g) for g in groups.values()]


def seedless(command: str) -> str:
    """A command without its seed; one of peers.py also without the rate, which its first seed has searched."""
    words = [word for word in shlex.split(command) if not word.startswith("seed=")]
    joined = shlex.join(words)
    if "peers.py" not in joined:
        return joined
    return re.sub(r" --(seed|lr|validation)(?= )(?: (?!-)\S+)+", "", joined)


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
    return filled(path.read_text("utf-8"), MADE, made, path)
