"""CIFAR-10 and sequences by the training loops of SpikingJelly and snnTorch, as their users write them.

    python studies/results/peers.py --library spikingjelly --steps 1 --epochs 10 --lr 3e-3 1e-2 3e-2 --out runs/sj
    python studies/results/run.py --add runs/sj --name cifar10_r20_t1_spikingjelly     # its row, curve and line
    python studies/results/peers.py --library snntorch --recipe spoken_digits --lr 3e-3 1e-2 3e-2 --out runs/snn

CIFAR-10: no code of ours runs. The network, data, batch and schedule are those of recipes/cifar10_r20.toml: ResNet-20
of 16 channels with MS blocks (Hu et al. 2021, arXiv 2112.08954), with LIF neurons of tau 2 that do not decay their
input, a hard reset without a gradient, atan surrogate, AdamW, one cycle. Layers, their first weights and surrogate
widths are each library's own; the last norm of each block starts at 0, as with LIF here and in SpikingJelly's own
MS-ResNet. Images are decoded into memory before the clock starts, as in `spiketriton train`.

Sequences: `--recipe NAME key=value ...` is a recipe whose network is `sequence`, and which has LIF, PLIF or, in
SpikingJelly alone, masked PSN. Its batches are those of `spiketriton train`, number by number, so that data and changes
to them are the same; network, loop and optimizer are the library's and PyTorch's. Their batch norms see the padding of
shorter sequences, SpikingJelly's all steps at once and those of a loop of snnTorch each step by itself.

Of several rates the one with the most held-out images right after two epochs is taken. Minutes include the tests. The
same command goes on where it was stopped.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

BATCH, DECAY, WARMUP = 64, 0.01, 0.1
SEARCH_EPOCHS, SEARCH_IMAGES = 2, 15_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
LIBRARIES = {"spikingjelly": "SpikingJelly", "snntorch": "snnTorch"}


class Library(NamedTuple):
    """layers: its modules of a step, or window. neuron: makes one. over_time: runs part of a network on a window."""

    layers: ModuleType
    neuron: Callable[..., nn.Module]
    over_time: Callable[[nn.Module, Callable[[Tensor], Tensor], Tensor], Tensor]
    kinds: tuple[str, ...]


def spikingjelly() -> Library:
    """Its multi-step layers, on all of [T, B, ...] at once."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def made(kind: str = "lif", tau: float = 2.0, order: int = 0, steps: int = 0) -> nn.Module:
        if kind == "masked_psn":
            return neuron.MaskedPSN(order, steps, 1.0, surrogate.ATan(), step_mode="m")
        options = {"decay_input": False, "surrogate_function": surrogate.ATan()}
        if kind == "plif":
            return neuron.ParametricLIFNode(tau, detach_reset=True, **options)
        return neuron.LIFNode(tau=tau, detach_reset=True, **options)

    def over_time(net: nn.Module, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        functional.set_step_mode(net, "m")
        functional.reset_net(net)
        return part(x)

    return Library(layer, made, over_time, ("lif", "plif", "masked_psn"))


def snntorch() -> Library:
    """PyTorch's layers and its neurons in a loop over time."""
    import snntorch as snn
    from snntorch import surrogate

    def made(kind: str = "lif", tau: float = 2.0, order: int = 0, steps: int = 0) -> nn.Module:
        return snn.Leaky(
            beta=1 - 1 / tau,
            learn_beta=kind == "plif",
            spike_grad=surrogate.atan(),
            init_hidden=True,
            reset_mechanism="zero",
        )

    def over_time(net: nn.Module, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        for module in net.modules():  # utils.reset looks for neurons among direct children alone
            if isinstance(module, snn.Leaky):
                module.reset_mem()
        return torch.stack([part(step) for step in x])

    return Library(nn, made, over_time, ("lif", "plif"))


MAKERS = {"spikingjelly": spikingjelly, "snntorch": snntorch}


class Block(nn.Module):
    """Currents to currents, [B, C, H, W] or with time in front."""

    def __init__(self, library: Library, before: int, after: int, stride: int) -> None:
        super().__init__()
        layer = library.layers
        self.lif1 = library.neuron()
        self.conv1 = layer.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = layer.BatchNorm2d(after)
        self.lif2 = library.neuron()
        self.conv2 = layer.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = layer.BatchNorm2d(after)
        nn.init.zeros_(self.bn2.weight)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(
                layer.Conv2d(before, after, 1, stride, bias=False), layer.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(self.lif1(x)))
        return self.bn2(self.conv2(self.lif2(out))) + self.shortcut(x)


class ResNet20(nn.Module):
    """Images [B, 3, H, W] -> logits [B, 10]; the first convolution runs once for all steps."""

    def __init__(self, library: Library, steps: int) -> None:
        super().__init__()
        self.library, self.steps = library, steps
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*[Block(library, *plan) for plan in plans()])
        self.lif = library.neuron()
        self.pool = library.layers.AdaptiveAvgPool2d(1)
        self.fc = library.layers.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        shown = x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)
        return self.library.over_time(self, self.step, shown).mean(0)

    def step(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.lif(self.blocks(x))).flatten(-3))


def plans() -> Iterator[tuple[int, int, int]]:
    """Channels before and after each block of a ResNet-20, and its stride."""
    before = 16
    for after in (16, 32, 64):
        for i in range(3):
            yield before, after, 2 if i == 0 and after != 16 else 1
            before = after


class Layers(nn.Module):
    """Sequences [T, B, C] and perhaps their lengths [B] -> logits [B, K]: the network of `model.name = "sequence"`.

    read: "mean" over the valid steps, or the "last" of them.
    """

    def __init__(
        self,
        library: Library,
        channels: int,
        width: int,
        depth: int,
        classes: int,
        read: str,
        **neuron: Any,
    ) -> None:
        super().__init__()
        self.library, self.read, layer = library, read, library.layers
        parts: list[nn.Module] = []
        for before in [channels] + [width] * (depth - 1):
            parts.append(layer.Linear(before, width, bias=False))
            parts.append(layer.BatchNorm1d(width))
            parts.append(library.neuron(**neuron))
        self.layers = nn.Sequential(*parts)
        self.fc = layer.Linear(width, classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        logits = self.library.over_time(self, self.step, x)
        if lengths is None:
            lengths = torch.full((x.shape[1],), len(x))
        at = torch.arange(len(x)).unsqueeze(1)
        valid = at < lengths if self.read == "mean" else at == lengths - 1
        return (logits * valid.unsqueeze(2)).sum(0) / valid.sum(0).unsqueeze(1)

    def step(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x))


class Images(Dataset[tuple[Tensor, int]]):
    """Decoded images, uint8 [N, H, W, 3], and what becomes of them when they are taken."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: Any) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])


def decoded(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All images of class folders, and their labels."""
    files = datasets.ImageFolder(str(folder))
    pixels = [np.asarray(files.loader(path)) for path, _ in files.samples]
    return np.stack(pixels), np.array(files.targets)


Batch = tuple[Tensor, ...]  # inputs, labels and perhaps lengths


class Shuffled:
    """Batches of an epoch of images."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int) -> Iterable[Batch]:
        return self.loader


class Pictures(NamedTuple):
    """CIFAR-10's images."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    files: str  # "JPEG", or what the files are
    steps: int
    name = "cifar10"
    neuron, read = "lif", "mean"

    @property
    def batch(self) -> int:
        return BATCH

    @property
    def decay(self) -> float:
        return DECAY

    @property
    def warmup(self) -> float:
        return WARMUP

    def net(self, library: Library) -> nn.Module:
        return ResNet20(library, self.steps)

    def loaders(self, seed: int, threads: int) -> tuple[Shuffled, DataLoader]:
        end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        moves = [
            transforms.RandomCrop(self.train[0].shape[1], padding=4),
            transforms.RandomHorizontalFlip(),
        ]
        train = Images(*self.train, transforms.Compose([*moves, *end]))
        test = Images(*self.test, transforms.Compose(end))
        workers = threads - 1
        shuffled = DataLoader(train, BATCH, shuffle=True, drop_last=True, num_workers=workers)
        return Shuffled(shuffled), DataLoader(test, 4 * BATCH, num_workers=workers)

    def held_out(self, count: int) -> "Pictures":
        """For a choice of rates: so many training images to test on, and up to SEARCH_IMAGES others to train on."""
        pixels, labels = self.train
        order = np.random.default_rng(0).permutation(len(labels))
        test, train = order[:count], order[count : count + SEARCH_IMAGES]
        return self._replace(
            train=(pixels[train], labels[train]), test=(pixels[test], labels[test])
        )


def read(root: Path, steps: int) -> Pictures:
    """root/train/<class>/* and root/test/<class>/*, or val/."""
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise SystemExit(f"{root} has no folders train/ and test/ (or val/) of class folders")
    endings = {path.suffix.lower() for path in (root / "train").rglob("*.*")}
    files = "JPEG" if endings & {".jpg", ".jpeg"} else ", ".join(sorted(endings))
    return Pictures(decoded(root / "train"), decoded(test), files, steps)


class Stream:
    """Batches of an epoch of a recipe's data."""

    def __init__(self, train: Any) -> None:
        self.train = train

    def __len__(self) -> int:
        return int(self.train.steps_per_epoch)

    def epoch(self, number: int) -> Iterator[Batch]:
        batches = self.train.from_step((number - 1) * len(self))
        with contextlib.closing(batches):
            for _ in range(len(self)):
                yield next(batches)


class Sequences:
    """Those of a recipe, read and batched by our own code."""

    files = ""

    def __init__(self, words: list[str], root: Path, library: str, share: float = 0.0) -> None:
        """share: of the training sequences that is held out, and tested on."""
        from spiketriton.config import load_recipe

        given = [f"data.root={root}", "data.workers=0", f"data.validation={share}"]
        self.words, self.root, self.library, self.share = words, root, library, share
        self.recipe = recipe = load_recipe(words[0], [*words[1:], *given])
        model, train = recipe.model, recipe.train
        accepted = MAKERS[library]().kinds
        for name, value, known in (
            ("model.name", model.name, ("sequence",)),
            ("model.norm", model.norm, ("bn",)),
            ("model.delays", model.delays, (0,)),
            ("neuron.kind", recipe.neuron.kind, accepted),
            ("train.optimizer", train.optimizer, ("adamw",)),
            ("train.schedule", train.schedule, ("one_cycle",)),
        ):
            if value not in known:
                takes = " or ".join(map(repr, known))
                raise SystemExit(f"{name} = {value!r} with --library {library}; accepted: {takes}")
        self.name = f"{recipe.data.label} {recipe.data.sequence}".removesuffix(" none")
        self.neuron, self.read = recipe.neuron.kind, recipe.loss.read
        self.steps, self.batch = recipe.time_steps, train.batch_size
        self.decay, self.warmup = train.weight_decay, train.warmup
        self.epochs = max(1, round(train.epochs))
        self.read_before: dict[int, Any] = {}

    def data(self, seed: int) -> Any:
        from spiketriton.config import replace
        from spiketriton.data import build_data

        if seed not in self.read_before:
            self.read_before[seed] = build_data(replace(self.recipe, f"seed={seed}"))
        return self.read_before[seed]

    def net(self, library: Library) -> nn.Module:
        recipe, facts = self.recipe, self.data(next(iter(self.read_before), 0)).facts
        neuron = recipe.neuron
        return Layers(
            library,
            facts.sizes["channels"],
            recipe.model.width or 128,
            recipe.model.depth,
            len(facts.classes),
            self.read,
            kind=neuron.kind,
            tau=neuron.tau,
            order=getattr(neuron, "order", 0),
            steps=recipe.time_steps,
        )

    def loaders(self, seed: int, threads: int) -> tuple[Stream, Iterable[Batch]]:
        data = self.data(seed)
        return Stream(data.train), data.validation if self.share else data.test

    def held_out(self, share: float) -> "Sequences":
        return Sequences(self.words, self.root, self.library, share)


@contextlib.contextmanager
def spikes_counted(net: nn.Module) -> Iterator[list[tuple[float, int]]]:
    """Spikes and outputs of every neuron's calls within the block."""
    names = ("LIFNode", "ParametricLIFNode", "MaskedPSN", "Leaky")
    neurons = [m for m in net.modules() if type(m).__name__ in names]
    counts: list[tuple[float, int]] = []

    def count(module: nn.Module, inputs: Any, spikes: Tensor) -> None:
        counts.append((float(spikes.detach().sum()), spikes.numel()))

    hooks = [neuron.register_forward_hook(count) for neuron in neurons]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def test(net: nn.Module, batches: Iterable[Batch]) -> tuple[float, float, int]:
    """Accuracy, loss and number of images."""
    net.eval()
    right, loss, count = 0, 0.0, 0
    for images, labels, *lengths in batches:
        logits = net(images, *lengths)
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    net.train()
    return right / count, loss / count, count


def train(
    given: argparse.Namespace,
    data: Pictures | Sequences,
    epochs: int,
    lr: float,
    out: Path,
    label: str,
) -> float:
    """Trains, or goes on; returns the last accuracy. Writes metrics.jsonl and checkpoint.pt after each epoch."""
    torch.manual_seed(given.seed)
    net = data.net(MAKERS[given.library]())
    batches, tests = data.loaders(given.seed, given.threads)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=data.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=epochs * len(batches),
        pct_start=data.warmup,
        cycle_momentum=False,
    )
    rows = resume(out, {"model": net, "optimizer": optimizer, "schedule": schedule})
    before = rows[-1]["seconds"] if rows else 0.0
    start = time.perf_counter()
    for epoch in range(len(rows) + 1, epochs + 1):
        if rows and given.minutes and (time.perf_counter() - start) >= 60 * given.minutes:
            print(f"stopped after {given.minutes:g} minutes; the same command goes on")
            raise SystemExit(3)
        torch.manual_seed(given.seed * 100_000 + epoch)  # the same after a break
        began, total = time.perf_counter(), torch.zeros(())
        with contextlib.ExitStack() as counting:
            for i, (images, labels, *lengths) in enumerate(batches.epoch(epoch)):
                if i == max(0, len(batches) - 10):
                    counts = counting.enter_context(spikes_counted(net))
                loss = nn.functional.cross_entropy(net(images, *lengths), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()
        speed = len(batches) * data.batch / (time.perf_counter() - began)
        accuracy, test_loss, count = test(net, tests)
        seconds = before + time.perf_counter() - start
        rows.append(
            {
                "kind": "eval",
                "step": epoch * len(batches),
                "epoch": float(epoch),
                "seconds": round(seconds, 3),
                "minutes": round(seconds / 60, 2),
                "loss": round(float(total) / len(batches), 5),
                "test_accuracy": accuracy,
                "test_loss": round(test_loss, 6),
                "test_images": count,
                "images_per_s": round(speed, 2),
                "firing_rate": round(sum(s for s, _ in counts) / sum(n for _, n in counts), 4),
                "peak_memory_mib": round(peak_memory(), 1),
            }
        )
        save(out, rows, {"model": net, "optimizer": optimizer, "schedule": schedule})
        print(
            f"{label}epoch {epoch}/{epochs}  loss {rows[-1]['loss']:.4f}  accuracy {accuracy:.4f}  "
            f"{speed:.1f} images/s  {seconds / 60:.1f} min",
            flush=True,
        )
    return float(rows[-1]["test_accuracy"])


def resume(out: Path, parts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the epochs that a checkpoint has behind it, and its state in `parts`."""
    if not (out / "checkpoint.pt").exists():
        return []
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    rows: list[dict[str, Any]] = saved["rows"]
    return rows


def save(out: Path, rows: list[dict[str, Any]], parts: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save(state | {"rows": rows}, out / "checkpoint.part")
    os.replace(out / "checkpoint.part", out / "checkpoint.pt")
    write(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def peak_memory() -> float:
    """MiB of this process, resident."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def session(library: str) -> dict[str, Any]:
    from importlib.metadata import version

    from spiketriton.training.environment import commit_of_package

    commit, dirty = commit_of_package()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit,
        "dirty": dirty,
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": version(library),
    }


def command(given: argparse.Namespace) -> str:
    """What a stranger types, without the places on a disk."""
    words = ["python", "studies/results/peers.py", "--library", given.library]
    words += ["--recipe", *given.recipe] if given.recipe else ["--steps", given.steps]
    words += ["--epochs", given.epochs, "--lr", *given.lr]
    words += ["--seed", given.seed, "--threads", given.threads]
    if len(given.lr) > 1:
        words += ["--validation", given.validation]
    return " ".join(map(str, words))


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--library", choices=MAKERS, required=True)
    recipe = "a recipe of sequences, and changes to it; none: ResNet-20 on CIFAR-10"
    add("--recipe", nargs="+", metavar=("NAME", "key=value"), default=[], help=recipe)
    add("--steps", type=int, default=4, help="time steps of CIFAR-10")
    add("--epochs", type=int, help="10, or the recipe's")
    add("--lr", nargs="+", default=["1e-2"], help="a rate, or several to choose from")
    add("--minutes", type=float, default=0.0, help="stop after the epoch that reaches them")
    held = "images held out to choose a rate; of sequences the percentage of them"
    add("--validation", type=int, help=f"{held} (5000, 10)")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--data", type=Path, help="data/cifar10, its train/<class>/* and test/; of sequences data")
    add("--out", type=Path, required=True, help="the folder of rows and checkpoints")
    given = parser.parse_args(words)
    if given.validation is None:
        given.validation = 10 if given.recipe else 5000
    given.data = given.data or Path("data" if given.recipe else "data/cifar10")
    for name, least in (("steps", 1), ("epochs", 1), ("threads", 1), ("validation", 1)):
        value = getattr(given, name)
        if value is not None and value < least:
            parser.error(f"--{name} = {getattr(given, name)}; accepted: an integer from {least}")
    for rate in given.lr:
        try:
            good = float(rate) > 0
        except ValueError:
            good = False
        if not good:
            parser.error(f"--lr = {rate!r}; accepted: numbers above 0")
    return given


def read_sequences(given: argparse.Namespace) -> Sequences:
    from spiketriton.system.errors import UserError

    try:
        return Sequences(given.recipe, given.data, given.library)
    except UserError as error:
        raise SystemExit(str(error)) from None


def main(words: list[str] | None = None) -> None:
    given = arguments(words)
    torch.set_num_threads(given.threads)
    sequences = read_sequences(given) if given.recipe else None
    given.epochs = given.epochs or (sequences.epochs if sequences else 10)
    about, record = given.out / "peer.json", {}
    if about.exists():
        record = json.loads(about.read_text("utf-8"))
        if record["command"] != command(given):
            raise SystemExit(
                f"{given.out} is a run of another command:\n  {record['command']}\ngiven:\n  {command(given)}"
            )
    data: Pictures | Sequences = sequences or read(given.data, given.steps)
    record = {
        "command": command(given),
        "library": LIBRARIES[given.library],
        "data": data.name,
        "neuron": data.neuron,
        "read": data.read,
        "steps": data.steps,
        "epochs": given.epochs,
        "seed": given.seed,
        "files": data.files,
        "parameters": sum(p.numel() for p in data.net(MAKERS[given.library]()).parameters()),
        "search": record.get("search", {}),
        "sessions": [*record.get("sessions", []), session(given.library)],
    }
    write(about, json.dumps(record, indent=2) + "\n")
    if len(given.lr) > 1:
        held_out: Pictures | Sequences
        if isinstance(data, Sequences):
            held_out = data.held_out(given.validation / 100)
        else:
            held_out = data.held_out(given.validation)
        for lr in given.lr:
            place, label = given.out / f"lr-{lr}", f"lr {lr}: "
            accuracy = train(given, held_out, SEARCH_EPOCHS, float(lr), place, label)
            record["search"][lr] = accuracy
            write(about, json.dumps(record, indent=2) + "\n")
    best = max(given.lr, key=lambda lr: record["search"].get(lr, 0.0))
    record["lr"] = best
    write(about, json.dumps(record, indent=2) + "\n")
    print(f"learning rate {best}", flush=True)
    train(given, data, given.epochs, float(best), given.out, "")


if __name__ == "__main__":
    main()
