"""What the instrument says of nets that were drawn before any of them was trained: rows.csv.

    python studies/verdicts/run.py --draw                    # settings that are not there: before any training
    python studies/verdicts/run.py --train RUNS --root data  # trains the rows without an answer, in a run folder each
    python studies/verdicts/run.py --again RUNS --root data  # asks again about the runs that are there
    python studies/verdicts/run.py --table                   # the tables of log.md
    python studies/verdicts/run.py --untrained --root data   # the score of nets that were never trained

Groups: `recipe`, shipped recipes of spiking nets for still images, narrow; `drawn`, nets of random parts (in the
second draw `fifty` layers, `residual`, `chain` and `deep`, where the verdict has limits); `chance`, nets that cannot
learn; `sought`, nets chosen by whoever had read the rules and sought a wrong word. On CIFAR-10 (in data/cifar10) or
Imagenette at 64 pixels (in data/imagenette). Asked are `diagnose` and Python before training, `train` at each of its
rows, `diagnose RUN` and Python at the end.
"""

import argparse
import contextlib
import csv
import io
import json
import random
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import spiketriton
from spiketriton.config import Recipe, load_recipe
from spiketriton.config.shipped import folder_of_recipes, shipped_recipes
from spiketriton.data import build_data
from spiketriton.diagnose.__main__ import main as diagnose
from spiketriton.diagnose.ablations import Experiment
from spiketriton.gradients.verdict import Word, learned_by, planned_steps
from spiketriton.models import build_model
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.request import Request
from spiketriton.runs.rows import replace_file
from spiketriton.system import machine
from spiketriton.system.errors import UserError, one_line
from spiketriton.system.ranks import Ranks
from spiketriton.training.display import make_display
from spiketriton.training.environment import undisturbed
from spiketriton.training.nonfinite import Diverged
from spiketriton.training.session import Session
from studies.pages import filled, interval

HERE = Path(__file__).resolve().parent
ROWS, PAGE = HERE / "rows.csv", HERE / "log.md"
COLUMNS = (
    *("draw", "group", "recipe", "settings", "before", "python", "said", "told", "run", "python_run"),
    *("loss", "test", "guessing", "registered", "commit", "machine", "hours"),
)  # fmt: skip
Row = dict[str, str]
REFUSED = "refused"
OBSTACLES = (Word.LOST, Word.SILENT, Word.EXPLODING)
SEED, SEED_AGAIN = 4029, 7201
# recipes that came after the draws
LATER = "vgg8|cifar10_r18|digits_rows|spoken_digits|mnist_rows|mnist_permuted|cifar10_columns"
MOVED = {
    "cifar100_r50": "papers/cifar100_r50.toml"
}  # where recipes lay at the draws, which go through them by path
AS_DRAWN = {  # what was in recipes that have changed since
    "cifar100_r50": "model.stem=cifar train.epochs=100 train.batch_size=64 train.optimizer=adamw train.lr=1e-3"
    " train.weight_decay=0.05",
    "cifar10_r20": "time_steps=4 neuron.kind=lif neuron.v_threshold=1 train.epochs=30 train.optimizer=adamw"
    " train.lr=1e-2 train.weight_decay=0.01",
    "cifar100_r18": "train.clip_grad_norm=1",
}
COMMON = (
    *("data.workers=0", "data.test_images=1000", "train.threads=1", "train.precision=fp32"),
    *("train.accumulate=1", "train.micro_batch=0"),
)
CIFAR, IMAGENETTE = "data.name=cifar10", "data.name=imagenette data.image_size=64"
CELLS = "cells"
SIZES = {  # of networks whose sizes are arguments
    "cifar10_qkformer": "model.arguments.embed_dims=64",
    "cifar10_sdt": "model.arguments.embed_dims=64 model.arguments.depths=1",
    "cifar10_spikformer": "model.arguments.embed_dims=48 model.arguments.depths=2",
}
USUAL = "model.residual_gain=1 model.residual_bias=0 model.shortcut_gradient=surrogate"
TINY = f"{CIFAR} data.image_size=16 model.width=8"
STILL = "train.max_steps=200 train.batch_size=32 train.schedule=constant train.warmup=0"
UNLEARNABLE = (
    f"plugins.modules=['{Path('studies/verdicts') / 'unlearnable.py'}'] data.image_size=16 {STILL}"
)
CHANCE = (
    ("quickstart", f"{CIFAR} {STILL} model.width=8 train.lr=1e-7"),
    ("cifar10_r20", f"{TINY} {STILL} train.lr=1e-7 seed=1"),
    ("imagenette_r18_64", f"{IMAGENETTE} {STILL} train.batch_size=16 model.width=8 train.lr=1e-7"),
    ("cifar10_r19_tet", f"{TINY} {STILL} train.lr=1e-7"),
    ("cifar10_speedrun", f"{TINY} {STILL} train.freeze=['*']"),
    ("quickstart", f"{TINY} {STILL} neuron.v_threshold=50"),
    (CELLS, f"{TINY} {STILL} model.name=vgg11 neuron.v_threshold=50 neuron.surrogate.shape=rectangle"),
    ("cifar10_r20", f"{TINY} {STILL} train.lr=10 seed=2"),
    (CELLS, f"{TINY} {STILL} model.name=vgg11 train.optimizer=sgd train.lr=10"),
    (CELLS, f"{CIFAR} data.image_size=16 {STILL} model.name=resnet110 model.width=1 {USUAL} train.lr=1e-2"),
    ("quickstart", f"data.name=shuffled_cifar10 {UNLEARNABLE} model.width=8"),
    ("quickstart", f"data.name=shuffled_cifar10 {UNLEARNABLE} model.width=16 data.train_images=64 train.epochs=200"),
    ("quickstart", f"data.name=dark_cifar10 {UNLEARNABLE} model.width=8"),
)  # fmt: skip
UNLIMITED = f"{TINY} train.optimizer=sgd train.lr=auto train.clip_grad_norm=0 train.max_steps=200 train.batch_size=32"
GROWING = (
    f"{TINY} train.optimizer=sgd train.clip_grad_norm=0 train.max_steps=300 train.batch_size=32"
)
LOSING = f"{TINY} model.start=kaiming train.lr=2e-3 train.max_steps=300 train.batch_size=32"
STRAIGHT = f"{TINY} model.block=plain train.lr=1e-2 train.max_steps=200 train.batch_size=32"
EQUAL = f"[{','.join(['0.1'] * 10)}]"
SOUGHT = (  # a gradient that grows in nets of which no row tells; a loss that is not what it seems
    ("sought", CELLS, f"{UNLIMITED} model.name=resnet20 model.block=sew time_steps=2 neuron.surrogate.width=2"),
    ("chance", "quickstart", f"data.name=other_test_cifar10 {UNLEARNABLE} model.width=8"),
    ("sought", CELLS, f"{UNLIMITED} model.name=resnet32 model.block=sew time_steps=2 neuron.surrogate.width=1"),
    ("chance", "quickstart", f"{TINY} {STILL} train.lr=1e-7 loss.class_weights={EQUAL}"),
    ("sought", CELLS, f"{UNLIMITED} model.name=resnet20 time_steps=2 neuron.surrogate.width=2 {USUAL}"),
    ("chance", "quickstart", f"data.name=constant_cifar10 {UNLEARNABLE} model.width=8"),
    ("sought", CELLS, f"{UNLIMITED} model.name=resnet56 model.block=ms model.residual_gain=1 neuron.surrogate.width=1"),
    ("sought", "cifar10_r20", f"{TINY} train.max_steps=120 train.batch_size=32 neuron.v_threshold=100"),
    ("sought", "quickstart", f"{TINY} train.max_steps=120 train.batch_size=32 train.mixup=1"),
    ("sought", "quickstart", f"{TINY} train.max_steps=120 train.batch_size=32 train.weight_decay=10"),
    ("chance", "quickstart", f"data.name=one_class_cifar10 {UNLEARNABLE} model.width=8"),
    # obstacles at rates and in blocks of which no row tells; few test images; slow ones
    ("sought", CELLS, f"{GROWING} model.name=plain model.depth=20 train.lr=1e-3 neuron.surrogate.width=1"),
    ("sought", CELLS, f"{GROWING} model.name=mlp model.depth=20 model.width=64 train.lr=1e-3 neuron.surrogate.width=1"),
    ("sought", CELLS, f"{LOSING} model.name=plain model.depth=20 model.width=32 time_steps=1 neuron.kind=if"),
    ("sought", CELLS, f"{LOSING} model.name=plain model.depth=20 time_steps=8 neuron.surrogate.width=1"),
    ("sought", CELLS, f"{LOSING} model.name=plain model.depth=20 neuron.kind=psn"),
    ("sought", CELLS, f"{STRAIGHT} model.name=resnet56 model.residual_gain=0.5"),
    ("sought", CELLS, f"{STRAIGHT} model.name=resnet50 model.residual_gain=0.5 neuron.kind=alif time_steps=2"),
    ("sought", CELLS, f"{STRAIGHT} model.name=resnet56 model.residual_gain=1 neuron.kind=if time_steps=1"),
    ("sought", "quickstart", f"{TINY} train.max_steps=200 train.batch_size=32 train.lr=5e-4 data.test_images=100"),
    ("sought", "cifar10_preact18", f"{TINY} train.max_steps=150 train.batch_size=32 model.width=4 seed=1"),
    ("sought", "cifar10_r19_tet", f"{TINY} train.max_steps=200 train.batch_size=32 seed=1"),
    ("chance", "quickstart", f"data.name=shuffled_cifar10 {UNLEARNABLE} model.width=8 loss.label_smoothing=0.9"),
)  # fmt: skip

MANY = "data.image_size=16 train.batch_size=32 data.train_images=3200 train.epochs=4"
BROKEN = f"plugins.modules=['{Path('studies/verdicts') / 'unlearnable.py'}'] {MANY}"
CHANCE_AGAIN = (  # four tests each
    ("cifar10_speedrun", f"data.name=shuffled_cifar10 {BROKEN} model.width=4"),
    ("cifar10_r19_tet", f"data.name=shuffled_cifar10 {BROKEN} model.width=4 loss.label_smoothing=0.3"),
    ("cifar10_r20", f"data.name=other_test_cifar10 {BROKEN} model.width=4"),
    ("cifar10_vgg16", f"data.name=constant_cifar10 {BROKEN} model.width=4"),
    (CELLS, f"{CIFAR} {MANY} model.name=vgg8 model.width=8 neuron.v_threshold=100 time_steps=2"),
    (CELLS, f"{CIFAR} {MANY} model.name=resnet56 model.block=sew neuron.kind=ilif time_steps=1 train.lr=1e-7"),
)  # fmt: skip


def settings() -> list[Row]:
    """All of them: first those that were drawn, then those that were sought, and those that were drawn again."""
    return [*drawn(), *(row_of(*net) for net in SOUGHT), *drawn_again()]


def drawn() -> list[Row]:
    """The settings, of a generator's seed, in the order in which they are trained."""
    rng = random.Random(SEED)
    rows = [*of_recipes(rng), *of_random_parts(rng)]
    rows += [row_of("chance", *net) for net in CHANCE]
    rng.shuffle(rows)
    return rows


def recipes_as_drawn() -> list[tuple[str, Path]]:
    """The shipped recipes in the order in which the draws went through them."""
    root = folder_of_recipes()
    places = {name: root / MOVED.get(name, path) for name, path in shipped_recipes().items()}
    return sorted(shipped_recipes().items(), key=lambda one: places[one[0]])


def of_recipes(rng: random.Random) -> Iterator[Row]:
    for name, path in recipes_as_drawn():
        if re.search(f"dvs|_ann|{LATER}", name):
            continue
        photographs = "imagenet" in name
        batch = "16" if photographs or "r50" in name else "32"
        words = [IMAGENETTE if photographs else CIFAR]
        words += [] if photographs else ["data.image_size=16"]
        width = rng.choice((4, 8))
        words += [SIZES.get(name, f"model.width={width}")]
        words += [f"train.max_steps={rng.choice((60, 120))} train.batch_size={batch}"]
        if "spikingjelly:" in path.read_text("utf-8"):
            words[1] = "data.image_size=32"
        yield row_of("recipe", name, " ".join([*words, f"seed={rng.randrange(100)}"]))


def of_random_parts(rng: random.Random) -> Iterator[Row]:
    """Four nets of 50 layers and more, and sixteen at random; what a recipe refuses is drawn again."""
    fifty = [
        f"{TINY} model.name=resnet{depth} {block} {kind}train.batch_size=16 train.max_steps={rng.choice((120, 200))}"
        f" train.lr=1e-2 seed={rng.randrange(100)}"
        for depth, block, kind in (
            (56, "model.block=plain", "neuron.kind=ilif "),
            (50, "model.block=sew", "neuron.kind=ilif "),
            (56, "model.block=sew", "neuron.kind=plif "),
            (50, "model.block=ms", "neuron.kind=alif "),
        )
    ]
    for settings in fifty:
        yield row_of("drawn", CELLS, settings)
    found: list[Row] = []
    while len(found) < 16:
        row = row_of("drawn", CELLS, at_random(rng))
        with contextlib.suppress(UserError):
            load_recipe(recipe_of(row), row["settings"].split())
            found.append(row)
    yield from found


def at_random(rng: random.Random) -> str:
    """A net and its training."""
    name = rng.choice(("resnet20", "resnet32", "resnet56", "resnet110", "vgg11", "vgg16", "plain", "mlp"))  # fmt: skip
    steps, photographs = rng.choice((1, 2, 4, 8)), rng.random() < 0.25
    deep = steps * int(re.sub(r"\D", "", name) or 20) > 80
    words = [IMAGENETTE if photographs and not deep else f"{CIFAR} data.image_size=16"]
    width = rng.choice((8,) if deep else (8, 16))
    words += [f"model.name={name} model.width={width} time_steps={steps}"]
    kind = rng.choice(("if", "lif", "plif", "ilif", "clif", "alif"))
    words += [f"neuron.kind={kind} model.norm={rng.choice(('none', 'bn', 'tdbn', 'tebn'))}"]
    if kind != "ilif":
        shape, width = rng.choice(("atan", "triangle", "rectangle")), rng.choice((0.1, 0.3, 0.5, 1))
        words += [f"neuron.surrogate.shape={shape} neuron.surrogate.width={width}"]
    usual = rng.random() < 0.5
    if name.startswith("resnet"):
        block = rng.choice(("plain", "sew", "ms"))
        start = USUAL if block == "plain" else "model.residual_gain=1"
        words += [f"model.block={block}", *([start] if usual else [])]
    elif name in ("plain", "mlp"):
        words += [f"model.depth={rng.choice((10, 20, 40))}", *["model.start=kaiming"] * usual]
    optimizer = rng.choice(("adamw", "sgd"))
    clip = f"train.clip_grad_norm={rng.choice(('0', 'auto'))}"
    words += [f"train.optimizer={optimizer} train.lr=auto", *[clip] * (optimizer == "sgd")]
    words += [f"train.max_steps={rng.choice((120, 200))}"]
    words += [f"train.batch_size={16 if deep or photographs else 32}"]
    return " ".join([*words, f"seed={rng.randrange(100)}"])


GROUPS_AGAIN = (("fifty", 6), ("residual", 5), ("chain", 6), ("deep", 7))


def drawn_again() -> list[Row]:
    """The second draw: longer trainings, a test after each third of them; what a recipe refuses is drawn again."""
    rng = random.Random(SEED_AGAIN)
    recipes = [*narrow_recipes(rng)]
    found = [("recipe", *net) for net in rng.sample(recipes, 8)]
    for group, nets in GROUPS_AGAIN:
        for number in range(nets):
            while True:
                settings = parts_of(group, number, rng)
                with contextlib.suppress(UserError):
                    load_recipe(str(HERE / f"{CELLS}.toml"), settings.split())
                    break
            found.append((group, CELLS, settings))
    found += [("chance", *net) for net in CHANCE_AGAIN]
    rng.shuffle(found)
    return [row_of(*net, draw="2") for net in found]


def narrow_recipes(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Every shipped recipe of convolutions for still images, at its own rate."""
    for name, path in recipes_as_drawn():
        if re.search(f"dvs|_ann|quickstart|{LATER}", name) or name in SIZES:
            continue
        if "spikingjelly:" in path.read_text("utf-8"):
            continue
        photographs = "imagenet" in name
        words = IMAGENETTE if photographs else f"{CIFAR} data.image_size=16"
        steps = rng.choice((200, 300)) if photographs or "r50" in name else rng.choice((300, 450))
        batch = 16 if photographs or "r50" in name else 32
        words += f" model.width={rng.choice((4, 8))} {in_thirds(steps, batch)}"
        yield name, f"{words} seed={rng.randrange(100)}"


def in_thirds(steps: int, batch: int, epochs: int = 3) -> str:
    return f"train.batch_size={batch} data.train_images={steps * batch // epochs} train.epochs={epochs}"


def parts_of(group: str, number: int, rng: random.Random) -> str:
    """A net of a group, and its training. `fifty`: each block twice, half of them I-LIF; `deep`: one that is judged."""
    steps, usual, clip = rng.choice((1, 2, 4)), rng.random() < 0.5, rng.choice(("0", "auto"))
    kind, block, depth = rng.choice(KINDS), rng.choice(("plain", "sew", "ms")), rng.choice(DEPTHS)
    optimizer = rng.choice(("adamw", "adamw", "sgd"))
    if group == "fifty":
        name, block = rng.choice(("resnet50", "resnet56")), ("plain", "sew", "ms")[number % 3]
        kind, steps = ("ilif", kind)[number % 2], min(steps, 2)
    elif group == "residual":
        name = rng.choice(("resnet18", "resnet20", "resnet32", "resnet44"))
    elif group == "chain":
        name = rng.choice(("vgg8", "vgg11", "mlp", "plain"))
    else:
        name, block, usual = (
            rng.choice(("mlp", "mlp", "plain", "resnet50", "resnet56")),
            "plain",
            True,
        )
        kind, depth = rng.choice(KINDS[:-2]), max(20, depth)
        optimizer = rng.choice(("adamw", "sgd"))
        if number < 2:  # where the gradient's growth is judged
            name, depth, optimizer, clip = "mlp", 50, "sgd", "0"
    blocks = name.startswith("resnet")
    width = rng.choice((32, 128) if name == "mlp" else (8, 16))
    words = [f"{CIFAR} data.image_size=16 data.validation=0 model.name={name} model.width={width}"]
    words += [f"time_steps={steps} neuron.kind={kind}"]
    if blocks:
        start = USUAL if block == "plain" else f"model.residual_gain={rng.choice(('0', '1'))}"
        words += [f"model.block={block}", *[start] * usual]
    else:
        words += [f"model.start={'kaiming' if usual else 'identity'}"]
        words += [f"model.depth={depth}"] * (name in ("mlp", "plain"))
    words += [f"model.norm={rng.choice(('bn', 'bn', 'bn', 'tdbn', 'tebn', 'none'))}"]
    if kind != "ilif":
        shape, reach = rng.choice(("atan", "triangle", "rectangle", "sigmoid")), rng.choice(REACHES)
        words += [f"neuron.surrogate.shape={shape} neuron.surrogate.width={reach}"]
    words += [f"neuron.v_threshold={rng.choice((0.5, 2))}"] * (rng.random() < 0.2)
    words += ["loss.kind=tet"] * (rng.random() < 0.25)
    rate = rng.choice(("auto", *RATES[optimizer]))
    words += [f"train.optimizer={optimizer} train.clip_grad_norm={clip} train.lr={rate}"]
    layers = int(re.sub(r"\D", "", name) or depth)
    batch = 16 if layers >= 50 and blocks else 32
    cost = layers * steps * batch / 16 * 1.1e-3  # seconds of a step, at most
    count = 600 if name == "mlp" else max(200, min(600, 100 * int(0.5 / cost)))
    return " ".join([*words, in_thirds(count, batch), f"seed={rng.randrange(100)}"])


KINDS = ("if", "lif", "plif", "alif", "cuba", "ilif", "ilif")
DEPTHS, REACHES = (11, 20, 30, 50), (0.1, 0.3, 0.5, 1, 2)
RATES = {"adamw": (5e-4, 2e-3, 5e-3, 2e-2), "sgd": (0.01, 0.05, 0.1, 0.5)}


def row_of(group: str, recipe: str, settings: str, draw: str = "1") -> Row:
    common = [word for word in (*COMMON, "train.epochs=10") if word.split("=")[0] not in settings]
    settings = " ".join([settings, *common])
    return {"draw": draw, "group": group, "recipe": recipe, "settings": settings}


def recipe_of(row: Row) -> str:
    return str(HERE / f"{CELLS}.toml") if row["recipe"] == CELLS else row["recipe"]


def words_of(row: Row, root: str) -> list[str]:
    """What a row changes in its recipe as it is today."""
    settings = row["settings"]
    if "train.optimizer=sgd" in settings:  # what `auto` was under SGD for every net
        settings = settings.replace("train.clip_grad_norm=auto", "train.clip_grad_norm=1")
    return [*AS_DRAWN.get(row["recipe"], "").split(), *settings.split(), f"data.root={root}"]


def asked(*arguments: str) -> str:
    """What the command `diagnose` says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        diagnose([*arguments, "--json", "--tries", "0"])
    return str(json.loads(said.getvalue())["verdict"]["line"])


def before(row: Row, root: str) -> Row:
    """What is said of the untrained net, by the command and in Python."""
    words = words_of(row, root)
    recipe = load_recipe(recipe_of(row), words)
    data = build_data(recipe)
    torch.manual_seed(recipe.seed)
    net, batch = build_model(recipe, **data.facts.sizes), next(data.train.from_step(0))
    found = spiketriton.diagnose(net, batch, tries=0)
    return {"before": asked(recipe_of(row), *words), "python": str(found).splitlines()[0]}


def said_by(rows: Sequence[Mapping[str, Any]], recipe: Recipe, counts: Sequence[int]) -> str:
    """The words of a training without obstacles, each with the first step that had it: `100 the loss falls`."""
    steps = planned_steps(recipe.train, sum(counts))
    said: list[str] = []
    for number, row in enumerate(rows, 1):
        known = learned_by(rows[:number], recipe, counts, steps)
        word = Word.EARLY if known is None else known.word
        word = Word.HEALTHY if word == Word.LEARNING else word
        if not said or not said[-1].endswith(word):
            said.append(f"{row['step']} {word}")
    return "; ".join(said)


def after(run: Path) -> Row:
    """What is said of a run, row by row and at its end; of one that diverged before a checkpoint, row by row."""
    folder = RunFolder.find(run)
    recipe, rows = folder.load_recipe(), folder.metrics.read()
    data = build_data(recipe)
    tests = [row for row in rows if row["kind"] == "eval"]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    console = (run / "console.log").read_text("utf-8")
    told = [word for word in OBSTACLES if re.search(rf"\b{word}\b", console)]
    found = {
        "said": said_by(rows, recipe, data.facts.class_counts),
        "told": " ".join(told),
        "loss": f"{losses[-1]:.4f}" if losses else "",
        "test": f"{tests[-1]['test_accuracy']:.4f}" if tests else "",
        "guessing": f"{tests[-1]['test_chance']:.4f}" if tests else "",
    }
    if any((run / "checkpoints").iterdir()):
        model, batch = spiketriton.load_run(run).model, next(data.train.from_step(0))
        at_end = str(spiketriton.diagnose(model, batch, tries=0)).splitlines()[0]
        found |= {"run": asked(str(run)), "python_run": at_end}
    return found


def train(row: Row, run: Path, root: str) -> Row:
    """Trains a row in a run folder, and what is said of it then: also of a loss that is not finite, and of a refusal.

    UserError: it was interrupted.
    """
    words = words_of(row, root)
    recipe, folder = Request(recipe_of(row), words, run_dir=str(run)).find_run()
    try:
        with undisturbed():
            Session(recipe, folder, make_display(), Ranks(), draws=False).train()
    except Diverged as error:
        return {"run": f"diverged: {one_line(error)}"} | after(run)
    except UserError as error:
        return {"run": f"{REFUSED}: {error}"}
    if not any(one["kind"] == "eval" for one in folder.metrics.read()):
        raise UserError(f"{run} was interrupted: delete it, and train again")
    return after(run)


def untrained(root: str) -> list[float]:
    """Accuracies of 24 untrained nets on CIFAR-10's test images at 16x16, with each batch's own statistics."""
    rng, found, tiny = random.Random(7), [], [*TINY.split(), "model.width=4", "time_steps=1"]
    cells = str(HERE / f"{CELLS}.toml")
    given = ["data.validation=0", "data.test_images=0", f"data.root={root}"]
    data = build_data(load_recipe(cells, [*tiny, *given]))
    images, labels = map(torch.cat, zip(*data.test.rounds(torch.device("cpu")), strict=True))
    for seed in range(24):
        name = rng.choice(("resnet8", "mlp", "vgg11"))
        kind, block = rng.choice(("lif", "ilif", "if")), rng.choice(("plain", "sew", "ms"))
        words = [f"model.name={name}", f"neuron.kind={kind}"]
        words += [f"model.block={block}"] * name.startswith("resnet")
        torch.manual_seed(seed)
        net = build_model(load_recipe(cells, [*tiny, *words]), **data.facts.sizes)
        with torch.no_grad():
            answers = torch.cat([net(part)[0] for part in images.split(250)])
        found.append(float((answers.argmax(1) == labels).double().mean()))
    return found


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def read() -> list[Row]:
    with ROWS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(rows: Sequence[Row]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    replace_file(ROWS, text.getvalue())


def answer(row: Row, run: Path, root: str) -> None:
    """Trains a row, and fills in what was said of it."""
    registered = git("log", "-1", "--format=%h", "--abbrev=9", "--", str(ROWS))
    started = time.process_time()
    row.update(before(row, root))
    row.update(train(row, run, root))
    row["hours"] = f"{(time.process_time() - started) / 3600:.3f}"
    row["registered"] = row["registered"] or registered
    row["commit"] = git("describe", "--always", "--dirty", "--abbrev=9", "--exclude=*")
    row["machine"] = machine.cpu_name()


SAID = (  # what is said, the column, its words
    ("before training: no obstacle found", "before", (Word.FREE,)),
    ("before training: an obstacle", "before", (Word.LOST, Word.SILENT, Word.EXPLODING)),
    ("before a test: the loss falls", "said", (Word.FALLING,)),
    ("before a test: the loss has hardly fallen", "said", (Word.FLAT,)),
    ("at the end: healthy, or learning", "run", (Word.HEALTHY, Word.LEARNING)),
    ("at the end: too early to tell", "run", (Word.EARLY,)),
    ("at the end: at chance so far", "run", (Word.CHANCE,)),
)


def trained_of(rows: Sequence[Row], draw: str) -> list[Row]:
    trained = (row for row in rows if row["commit"] and not row["run"].startswith(REFUSED))
    return [row for row in trained if row["draw"] == draw]


def learnt(row: Row) -> bool:
    return float(row["test"] or 0) > 0.2


def named(row: Row) -> bool:
    """Whether an obstacle was named: before, while or after the net was trained."""
    said = " ".join(row[column] for column in ("before", "python", "told", "run", "python_run"))
    return any(word in said for word in OBSTACLES)


def table_again(rows: Sequence[Row]) -> str:
    """Of the second draw: what was said of nets that learnt, and of others."""
    trained = trained_of(rows, "2")
    groups = list(dict.fromkeys(row["group"] for row in rows if row["draw"] == "2"))
    lines = [
        "| second draw | nets | of these | what | is true of | % | 95 % from | to |\n"
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |\n"
    ]
    for group in ("all that can learn", *sorted(groups)):
        part = [
            r
            for r in trained
            if group == r["group"] or (group not in groups and r["group"] != "chance")
        ]
        did, others = [r for r in part if learnt(r)], [r for r in part if not learnt(r)]
        healthy = [r for r in part if Word.HEALTHY in r["said"]]
        stuck = [r for r in part if r["said"].endswith(Word.CHANCE)]
        for nets, of, what, holds in (
            ("all", part, "learnt (above 20 %)", learnt),
            ("that learnt", did, "an obstacle was named", named),
            ("that did not", others, "an obstacle was named", named),
            ("called healthy at a test", healthy, "learnt", learnt),
            ("at chance at the end", stuck, "learnt", learnt),
        ):
            if of:
                hits = sum(map(holds, of))
                told = f"{len(of)} | {what} | {hits} | {interval(hits, len(of))}"
                lines.append(f"| {group} | {nets} | {told} |\n")
    return "".join(lines)


def table(rows: Sequence[Row]) -> str:
    """Of the rows of the first draw that were trained: what was said, and how many learnt."""
    trained = trained_of(rows, "1")
    parts = {"drawn": ("recipe", "drawn"), "sought": ("sought",), "cannot learn": ("chance",)}
    lines = [
        "| what is said | nets | of them | said of | learnt (above 20 %) | % | 95 % from | to |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    ]
    for label, column, words in SAID:
        for name, groups in parts.items():
            part = [row for row in trained if row["group"] in groups]
            said = [row for row in part if any(word in row[column] for word in words)]
            if said:
                hits = sum(map(learnt, said))
                told = f"{len(part)} | {len(said)} | {hits} | {interval(hits, len(said))}"
                lines.append(f"| {label} | {name} | {told} |\n")
    return "".join(lines)


def page(text: str, rows: Sequence[Row]) -> str:
    made = table(rows) + "\n" + table_again(rows)
    return filled(text, "made by studies/verdicts/run.py", made)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--train", metavar="RUNS", type=Path)
    parser.add_argument("--again", metavar="RUNS", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--root", default="data")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no row after so many")
    asked = parser.parse_args()
    if asked.draw:
        rows = read()
        known = {row["settings"] for row in rows}
        write([*rows, *(row for row in settings() if row["settings"] not in known)])
    if asked.table:
        PAGE.write_text(page(PAGE.read_text("utf-8"), read()), "utf-8")
    if asked.untrained:
        print(" ".join(f"{100 * share:.2f}" for share in untrained(asked.root)))
    runs, started = asked.train or asked.again, time.monotonic()
    if runs is None:
        return
    torch.set_num_threads(1)
    # half of the time of `diagnose`, and nothing of its verdict
    Experiment.ablations = lambda _: []  # type: ignore[method-assign]
    rows = read()
    for number, row in enumerate(rows):
        run = runs / f"{number:02}"
        if asked.again and run.exists():
            row.update(before(row, asked.root) | after(run))
        elif asked.train and not row["commit"] and time.monotonic() - started < asked.seconds:
            answer(row, run, asked.root)
        else:
            continue
        print(number, row, flush=True)
        write(rows)


if __name__ == "__main__":
    main()
