"""Trains the cells of rows.csv again: every number of docs/gradient_flow.md.

    python studies/gradient_flow/run.py --group race connected clinic --out again.csv    # hours of one core
    python studies/gradient_flow/run.py --group full --settings "model.block=sew" --out new.csv    # other rows
    python studies/gradient_flow/run.py --draw     # the pictures, from the rows as they are
    python studies/gradient_flow/run.py --judge    # the table of what predicts learning
    python studies/gradient_flow/tables.py         # the page's other tables, and its sentences' numbers

A row's settings are cells.toml with some keys changed; `net=linear` and
`net=hidden` stand for a linear classifier and a net with one hidden layer of 128, `width=learnt` for
surrogate widths that are parameters, one a layer, `heads=linear` for a classifier behind each stage. Rows that the new
file already has are kept, so that it continues where it was stopped. Settings are compared on 2,000
training images that are held out (`validation`), and reported on 5,000 test images (`test`). Of the rows that
were there first, `commit` is the one that published them; machine and hours were not written down.
"""

import argparse
import csv
import math
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from spiketriton.config import DataConfig, Recipe, load_recipe, parts
from spiketriton.gradients.prober import Prober
from spiketriton.gradients.verdict import LIMITS, last_layers
from spiketriton.models import build_model
from spiketriton.models.blocks import Block
from spiketriton.neurons import SpikingNeuron
from spiketriton.plugins.tasks import Loss, build_loss
from spiketriton.show.figures import BLUE, GREEN, GREY, ORANGE, STYLE
from spiketriton.system import machine
from spiketriton.training.optim import build_optimizer, build_schedule
from studies.gradient_flow.tables import ROWS, Rows, on_cifar
from studies.pages import share

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "img" / "deep_nets.png"
GROUPS = (
    "race",
    "rate",
    "steps",
    "grid",
    "connected",
    "clinic",
    "fresh",
    "cured",
    "cifar",
    "widths",
    "starts",
    "full",
)
HELD_OUT, TESTED = 2000, 5000
# percent of a training, after which the blocks' gains are written down
MOMENTS = (5, 10, 25, 50, 100)
Images = tuple[Tensor, Tensor]


def load(recipe: Recipe) -> tuple[Images, Images, Images]:
    """Training, validation and test images, normalised, with their labels."""
    source = parts.chosen("data", recipe.data.name).make(
        DataConfig(name=recipe.data.name, root=recipe.data.root)
    )
    side = recipe.data.image_size or source.image_size
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in source.statistics)

    def ready(images: Tensor) -> Tensor:
        parts = [part.float() / 255 for part in images.split(5000)]
        if side != images.shape[-1]:
            parts = [F.resize(part, [side, side], antialias=True) for part in parts]
        return (torch.cat(parts) - mean) / std

    (x, y), (xt, yt) = ((ready(s.images), s.labels) for s in (source.train, source.test))
    if recipe.data.name == "cifar10":  # whose folders are a class each
        (x, y), (xt, yt) = (mixed(*images) for images in ((x, y), (xt, yt)))
    held, test = slice(HELD_OUT), slice(TESTED)
    return (x[HELD_OUT:], y[HELD_OUT:]), (x[held], y[held]), (xt[test], yt[test])


def mixed(images: Tensor, labels: Tensor) -> Images:
    """In an order that is always the same."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


class OneStep(nn.Sequential):
    """A net without time: logits [1, B, K]."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[None]


def network(kind: str, recipe: Recipe, channels: int, side: int) -> nn.Module:
    """That of the recipe, or the linear one, or the one with a hidden layer."""
    if kind == "linear":
        return OneStep(nn.Flatten(), nn.Linear(channels * side**2, 10))
    if kind == "hidden":
        hidden = nn.Linear(channels * side**2, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()
        return OneStep(nn.Flatten(), *hidden, nn.Linear(128, 10))
    net = build_model(recipe, classes=10, channels=channels, image_size=side)
    return net.to(memory_format=torch.channels_last)


def train(cell: str) -> dict[str, Any]:
    """Trains a cell; the columns of its row."""
    words = dict(word.split("=", 1) for word in cell.split())
    kind, learns_width = words.pop("net", ""), words.pop("width", "") == "learnt"
    has_heads = words.pop("heads", "") == "linear"
    recipe = load_recipe(HERE / "cells.toml", [f"{k}={v}" for k, v in words.items()])
    cfg, loss = recipe.train, build_loss(recipe.loss)
    (x, y), validation, test = load(recipe)
    torch.manual_seed(recipe.seed)
    net = network(kind, recipe, x.shape[1], x.shape[-1])
    if learns_width:
        learn_widths(net)
    drawn = torch.Generator().manual_seed(1000 + recipe.seed)
    epochs = 1 + cfg.max_steps * cfg.batch_size // len(x)
    order = torch.cat([torch.randperm(len(x), generator=drawn) for _ in range(epochs)])
    row: dict[str, Any] = {}
    if not kind and recipe.neuron.kind != "relu":
        row |= before_training(net, (x[order[:64]], y[order[:64]]), loss)
    heads = Heads(net) if has_heads else None
    optimizer = build_optimizer(cfg, net, recipe.peak_lr)
    schedule = build_schedule(cfg, optimizer, cfg.max_steps)
    losses, gains, started = [], [], time.monotonic()
    half = "train.precision=bf16" in cell  # tests are in fp32
    moments = [cfg.max_steps * percent // 100 for percent in MOMENTS]
    for batch in order[: cfg.max_steps * cfg.batch_size].split(cfg.batch_size):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = loss(net(x[batch]), y[batch])
        losses.append(found.item())
        if not math.isfinite(losses[-1]):
            return row | {"diverged": len(losses)}
        if heads:
            share_left = 1 - len(losses) / cfg.max_steps
            found = found + share_left * sum(loss(logits, y[batch]) for logits in heads.logits)
        found.backward()
        if recipe.clipping:
            nn.utils.clip_grad_norm_(net.parameters(), recipe.clipping)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if len(losses) in moments:
            gains.append(written(block_gains(net)))
    last = f"{np.mean(losses[-50:]):.4f}"
    row |= {"loss_100": f"{np.mean(losses[50:100]):.4f}", "loss": last}
    held, tested = accuracy(net, validation), accuracy(net, test)
    row |= {"validation": held[-1], "test": tested[-1], "by_step": written(tested)}
    row |= {"block_gain": written(block_gains(net)), "gain_over_training": ";".join(gains)}
    tenths = torch.tensor(losses).tensor_split(10)
    row["loss_by_tenth"] = written([float(tenth.mean()) for tenth in tenths])
    print(f"{cell}: {time.monotonic() - started:.0f} s", flush=True)
    return row


def block_gains(net: nn.Module) -> list[float]:
    """Mean size of the last norm's weights of each residual block; none without norms."""
    norms = [block.stages()[-1][1] for block in net.modules() if isinstance(block, Block)]
    return [
        float(norm.weight.detach().abs().mean())
        for norm in norms
        if not isinstance(norm, nn.Identity)
    ]


def learn_widths(net: nn.Module) -> None:
    """Makes the surrogate's width of each neuron a parameter, as LSG and ASGL do."""
    for neuron in net.modules():
        if isinstance(neuron, SpikingNeuron):
            width = nn.Parameter(torch.tensor(float(neuron.surrogate.width)))
            neuron.register_parameter("width", width)
            neuron.surrogate = replace(neuron.surrogate, width=width)


class Heads:
    """A linear classifier behind each stage but the last, whose loss goes back to the shallow layers directly.

    Of nets of plain or SEW blocks. After "Take A Shortcut Back" (2024, arXiv 2401.04486), whose code could not
    be had: the weight of their losses falls from 1 to 0 over the training.
    """

    def __init__(self, net: nn.Module) -> None:
        self.logits: list[Tensor] = []
        net.register_forward_pre_hook(lambda *_: self.logits.clear())
        for name in ("layer1", "layer2"):
            block = net.get_submodule(name)[-1]
            head = nn.Linear(block.channels_out, 10)
            net.add_module(f"{name}_head", head)
            block.register_forward_hook(lambda _, __, out, head=head: self.read(head, out))

    def read(self, head: nn.Module, spikes: Tensor) -> None:
        """Spikes [T, B, C, H, W] -> logits [T, B, 10], kept until the next batch."""
        self.logits.append(head(spikes.float().mean((3, 4))))


def before_training(net: nn.Module, batch: Images, loss: Loss) -> dict[str, Any]:
    """What `spiketriton diagnose` measures; the gradient from block to block, where there are blocks."""
    prober = Prober(net, [batch], loss)
    measured, similarity = prober.measure(), prober.signal().overlap
    first, *_, last = measured.depth_profile[last_layers(measured.names) or slice(None)]
    return {
        "similarity": round(float(similarity[-1]), 3),
        "gradient_ratio": f"{first / last:.3g}" if last > 0 and math.isfinite(first) else "inf",
        "firing": round(float(measured.firing_rate.mean(1).min()), 4),
    }


@torch.no_grad()
def accuracy(net: nn.Module, images: Images) -> list[float]:
    """Of the mean logits of the first 1, 2, ... T time steps."""
    net.eval()
    parts = zip(images[0].split(250), images[1].split(250), strict=True)
    right = sum((net(x).float().cumsum(0).argmax(2) == y).sum(1) for x, y in parts)
    net.train()
    assert isinstance(right, Tensor)
    return (right.double() / len(images[1])).tolist()


def written(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def again(groups: list[str], out: Path, settings: Sequence[str] = ()) -> None:
    """Trains the rows of some groups, or settings that become rows of a group, and writes them to `out`."""
    known = rows(ROWS)
    wanted = [row for row in known if row["group"] in groups]
    if settings:
        empty = dict.fromkeys(known[0], "")
        wanted = [empty | {"group": groups[0], "settings": words} for words in settings]
    done = {row["settings"] for row in rows(out)} if out.exists() else set()
    with out.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(wanted[0]), lineterminator="\n")
        if not done:
            table.writeheader()
        for row in wanted:
            if row["settings"] not in done:
                started = time.monotonic()
                found = train(row["settings"])
                found |= origin(row, (time.monotonic() - started) / 3600)
                table.writerow({k: row[k] for k in ("group", "settings")} | found)
                file.flush()


def origin(row: dict[str, str], hours: float) -> dict[str, str]:
    """What trained a row: seed, commit ("-dirty" where files were changed), processor and hours of the clock."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    commit = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    return {
        "seed": key_of(row, "seed", "0"),
        "commit": commit.stdout.strip(),
        "machine": machine.cpu_name(),
        "hours": f"{hours:.3f}",
    }


def key_of(row: dict[str, str], key: str, default: str = "") -> str:
    """The value of a key in a row's settings."""
    words = dict(word.split("=", 1) for word in row["settings"].split())
    return words.get(key, default)


def learnt(row: dict[str, str], above: float = 0.2) -> bool:
    """Whether a training ended above twice chance, or above another accuracy of the held-out images."""
    return float(row["validation"] or 0) > above


def beyond(limit: str, row: dict[str, str]) -> bool:
    """Whether a row is beyond one of the limits of gradients/verdict.py, in nets of which it tells something."""
    if not row["similarity"] or key_of(row, "heads"):  # whose loss goes around the net
        return False
    name, known = key_of(row, "model.name", "resnet20"), getattr(LIMITS, limit)
    if key_of(row, "neuron.kind", "lif") not in known.kinds or key_of(row, "model.norm") == "none":
        return False
    if limit == "growth":
        unlimited = key_of(row, "train.clip_grad_norm", "0") == "0"
        grown = float(row["gradient_ratio"]) > known.limit
        deep = name in CHAINS and int(key_of(row, "model.depth")) >= known.layers
        unlimited &= float(key_of(row, "train.lr", "2e-3")) >= LIMITS.lr
        return key_of(row, "train.optimizer") == "sgd" and unlimited and grown and deep
    grown = float(row["gradient_ratio"]) > LIMITS.large
    if float(row["similarity"]) >= known.limit or grown:
        return False
    if limit == "chain":
        return name in CHAINS and int(key_of(row, "model.depth")) >= known.layers
    deep = name in ("resnet50", "resnet56", "resnet110")
    usual = key_of(row, "model.shortcut_gradient", "straight_through") == "surrogate"
    return deep and usual and key_of(row, "model.block", "plain") == "plain"


def judge() -> None:
    """How often each sign of learning was right; the limit of the loss was chosen on the first 44 rows of `clinic`."""
    every = rows(ROWS)
    drawn = [row for row in every if row["group"] in ("clinic", "fresh")]
    for name, part in (("fitted", drawn[:44]), ("out of sample", drawn[44:])):
        for above in (0.2, 0.4):
            falls = [r for r in part if float(r["loss_100"] or "inf") < 0.95 * math.log(10)]
            both = [r for r in falls if not any(beyond(limit, r) for limit in KINDS)]
            for sign, said in (("none", part), ("loss", falls), ("loss, no obstacle", both)):
                right = share(sum(learnt(row, above) for row in said), len(said))
                print(f"{name}, above {above:.0%}: {sign}: {right}")
    for limit in KINDS:
        found = [row for row in every if beyond(limit, row)]
        print(f"{limit}: {share(sum(map(learnt, found)), len(found))} learn")
    followed = [row for row in every if row["loss_by_tenth"] and row["similarity"]]
    for tenth in (2, 3, 5):  # the warm-up is the first fifth
        stuck = [r for r in followed if float(r["loss_by_tenth"].split()[tenth - 1]) >= 0.95 * LN]
        others = [row for row in followed if row not in stuck]
        later, right = (share(sum(map(learnt, part)), len(part)) for part in (stuck, others))
        print(f"in tenth {tenth} of the training at chance: {later} learn; above it: {right}")


KINDS = ("chain", "plain", "growth")
CHAINS = ("plain", "mlp")
LN = math.log(10)


def draw() -> None:
    """A bar for each start of ResNet-56 on CIFAR-10, and a circle for ResNet-20's mean."""
    found = Rows()
    deep, shallow = on_cifar(found), on_cifar(found, net="resnet20")
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for name, settings in reversed(deep.items()):
            label = name.replace("**", "")
            bar, circle = (np.mean(found.seeds(s, "test")) for s in (settings, shallow[name]))
            colour = GREEN if "ANN" in label else GREY if "net=" in settings else ORANGE
            axes.barh(label, bar, color=BLUE if "default" in label else colour)
            axes.text(1, label, f"{bar:.1f}", va="center", color="white")
            if "net=" not in settings:
                axes.plot(circle, label, "o", color="black", markerfacecolor="white", markersize=6)
        axes.set_axisbelow(True)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("test accuracy after two epochs of CIFAR-10, %")
        figure.suptitle("ResNet-56 by its start (circles: ResNet-20)", x=0.01, ha="left")
        figure.savefig(PICTURE, dpi=110)


def setting_of(row: dict[str, str]) -> tuple[str, str]:
    """The net of a row of the grid, and what was changed: one of SETTINGS."""
    words = row["settings"].split()
    changed = {
        word
        for word in words
        if word.startswith(("train.lr", "train.clip", *(c for c, _ in CHANGES)))
    }
    net = " ".join(word for word in words if word not in changed)
    default = {"train.lr=0.3", "train.clip_grad_norm=1"} if "sgd" in net else {"train.lr=0.01"}
    if "model.residual_gain=1" in changed and "model.block=sew" in net and "ilif" not in net:
        changed.remove("model.residual_gain=1")  # the default of SEW blocks
    for key, name in CHANGES:
        if any(word.startswith(key) for word in changed):
            return net, name
    return net, "default" if changed == default else RATES_TRIED[" ".join(sorted(changed))]


def regret() -> None:
    """What each setting loses against the best of its net: a dot a net."""
    nets: dict[str, dict[str, float]] = {}
    for row in rows(ROWS):
        if row["group"] == "grid":
            net, name = setting_of(row)
            found = nets.setdefault(net, {})
            found[name] = max(found.get(name, 0), 100 * float(row["validation"] or 0.1))
    names = [name for name in SETTINGS if any(name in found for found in nets.values())]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
        for net, found in nets.items():
            best = max(found.values())
            print(f"{net}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
            for name, value in found.items():
                colour = BLUE if name == "default" else ORANGE
                axes.plot(best - value, names.index(name), "o", color=colour, alpha=0.7)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("points of validation accuracy below the best setting of the same net")
        most = max(max(found.values()) - found["default"] for found in nets.values())
        title = f"After changes for I-LIF and SEW the default loses at most {most:.1f} points"
        title += f"; a dot for each of {len(nets)} nets"
        figure.suptitle(title, x=0.01, ha="left")
        figure.savefig(HERE / "regret.png", dpi=150)


def draw_opening() -> None:
    """How far the blocks of ResNet-20 have opened, from 5 % of six epochs to their end."""
    found = {row["settings"]: row for row in rows(ROWS)}
    with plt.style.context(STYLE):
        figure, pair = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
        for axes, (label, settings) in zip(pair, LONG, strict=True):
            parts = found[settings]["gain_over_training"].split(";")
            for part, percent in zip(parts, MOMENTS, strict=True):
                gain = [float(value) for value in part.split()]
                shade = plt.colormaps["Blues"](0.3 + 0.007 * percent)
                axes.plot(range(1, len(gain) + 1), gain, "o-", color=shade, label=f"{percent} %")
            axes.set_title(label)
            axes.set_xlabel("block")
        pair[0].set_ylabel("weight of the last norm")
        pair[0].set_ylim(bottom=0)
        pair[1].legend(title="of training")
        figure.suptitle("Every block opens early in the training", x=0.01, ha="left")
        figure.savefig(HERE / "opening.png", dpi=150)


LONG = tuple(
    (label, f"data.image_size=16 {block}train.lr=1e-2 train.epochs=6 train.max_steps=10800")
    for label, block in (
        ("plain blocks, ResNet-20", ""),
        ("MS blocks, ResNet-20", "model.block=ms "),
    )
)
CHANGES = (  # of the grid, by what they begin with
    ("model.residual_gain=0", "from zero (I-LIF, SEW)"),
    ("neuron.surrogate.width=0.6", "width 0.6"),
    ("neuron.surrogate.width=0.15", "width 0.15"),
    ("model.residual_gain", "usual start"),
    ("model.residual_bias", "usual start"),
    ("model.shortcut_gradient", "usual start"),
)
RATES_TRIED = {
    "train.lr=0.03": "three times the rate (AdamW)",
    "train.lr=0.00333": "a third of the rate (AdamW)",
    "train.lr=0.3": "SGD without clipping",
    "train.lr=0.1": "SGD without clipping, a third of the rate",
}
SETTINGS = ("default", *RATES_TRIED.values(), *dict.fromkeys(name for _, name in CHANGES))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=[])
    parser.add_argument("--settings", nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=Path("gradient_flow.csv"))
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--judge", action="store_true")
    asked = parser.parse_args()
    if asked.settings and len(asked.group) != 1:
        parser.error("--settings become rows of one --group")
    if asked.group:
        torch.set_num_threads(1)
        again(asked.group, asked.out, asked.settings)
    if asked.judge:
        judge()
    if asked.draw:
        draw()
        regret()
        draw_opening()


if __name__ == "__main__":
    main()
