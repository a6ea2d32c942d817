"""CIFAR-10 by the training loops of SpikingJelly and snnTorch, as their users write them: no code of ours runs here.

    python studies/results/peers.py --library spikingjelly --steps 1 --epochs 10 --lr 3e-3 1e-2 3e-2 --out runs/sj
    python studies/results/run.py --add runs/sj --name cifar10_r20_t1_spikingjelly     # its row, curve and line

The network, data, batch and schedule are those of recipes/cifar10_r20.toml: ResNet-20 of 16 channels with MS blocks (Hu
et al. 2021, arXiv 2112.08954), with LIF neurons of tau 2 that do not decay their input, a hard reset without a
gradient, atan surrogate, AdamW, one cycle. Layers, their first weights and surrogate widths are each library's own; the
last norm of each block starts at 0, as with LIF here and in SpikingJelly's own MS-ResNet. Of several rates the one with
the most held-out images right after two epochs is taken. Images are decoded into memory before the clock starts, as in
`spiketriton train`, and minutes include the tests. The same command goes on where it was stopped.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
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


def spikingjelly_net(steps: int) -> nn.Module:
    """Images [B, 3, H, W] -> logits [B, 10], by multi-step layers on [T, B, C, H, W]."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def lif() -> nn.Module:
        return neuron.LIFNode(
            tau=2.0,
            decay_input=False,
            surrogate_function=surrogate.ATan(),
            detach_reset=True,
        )

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.lif1 = lif()
            self.conv1 = layer.Conv2d(before, after, 3, stride, 1, bias=False)
            self.bn1 = layer.BatchNorm2d(after)
            self.lif2 = lif()
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

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn = nn.BatchNorm2d(16)
            self.blocks = nn.Sequential(*[Block(*plan) for plan in plans()])
            self.lif = lif()
            self.pool = layer.AdaptiveAvgPool2d(1)
            self.fc = layer.Linear(64, 10)
            functional.set_step_mode(self.blocks, "m")
            for module in (self.lif, self.pool, self.fc):
                functional.set_step_mode(module, "m")

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self)
            x = self.bn(self.conv(x))
            out = self.pool(self.lif(self.blocks(x.unsqueeze(0).repeat(steps, 1, 1, 1, 1))))
            return self.fc(out.flatten(2)).mean(0)

    return Net()


def snntorch_net(steps: int) -> nn.Module:
    """Images [B, 3, H, W] -> logits [B, 10], by a loop over time."""
    import snntorch as snn
    from snntorch import surrogate, utils

    def leaky() -> nn.Module:
        return snn.Leaky(
            beta=0.5,
            spike_grad=surrogate.atan(),
            init_hidden=True,
            reset_mechanism="zero",
        )

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.lif1 = leaky()
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(after)
            self.lif2 = leaky()
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(after)
            nn.init.zeros_(self.bn2.weight)
            self.shortcut = nn.Sequential()
            if stride != 1:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
                )

        def forward(self, x: Tensor) -> Tensor:
            out = self.bn1(self.conv1(self.lif1(x)))
            return self.bn2(self.conv2(self.lif2(out))) + self.shortcut(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn = nn.BatchNorm2d(16)
            self.blocks = nn.Sequential(*[Block(*plan) for plan in plans()])
            self.lif = leaky()
            self.fc = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            utils.reset(self)
            x = self.bn(self.conv(x))
            logits = [self.fc(self.lif(self.blocks(x)).mean((2, 3))) for _ in range(steps)]
            return torch.stack(logits).mean(0)

    return Net()


def plans() -> Iterator[tuple[int, int, int]]:
    """Channels before and after each block of a ResNet-20, and its stride."""
    before = 16
    for after in (16, 32, 64):
        for i in range(3):
            yield before, after, 2 if i == 0 and after != 16 else 1
            before = after


NETS = {"spikingjelly": spikingjelly_net, "snntorch": snntorch_net}


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


class Data(NamedTuple):
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    files: str  # "JPEG", or what the files are

    def loaders(self, threads: int) -> tuple[DataLoader, DataLoader]:
        end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        moves = [
            transforms.RandomCrop(self.train[0].shape[1], padding=4),
            transforms.RandomHorizontalFlip(),
        ]
        train = Images(*self.train, transforms.Compose([*moves, *end]))
        test = Images(*self.test, transforms.Compose(end))
        workers = threads - 1
        return (
            DataLoader(train, BATCH, shuffle=True, drop_last=True, num_workers=workers),
            DataLoader(test, 4 * BATCH, num_workers=workers),
        )

    def held_out(self, count: int) -> "Data":
        """For a choice of rates: so many training images to test on, and up to SEARCH_IMAGES others to train on."""
        pixels, labels = self.train
        order = np.random.default_rng(0).permutation(len(labels))
        test, train = order[:count], order[count : count + SEARCH_IMAGES]
        return self._replace(
            train=(pixels[train], labels[train]), test=(pixels[test], labels[test])
        )


def read(root: Path) -> Data:
    """root/train/<class>/* and root/test/<class>/*, or val/."""
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise SystemExit(f"{root} has no folders train/ and test/ (or val/) of class folders")
    endings = {path.suffix.lower() for path in (root / "train").rglob("*.*")}
    files = "JPEG" if endings & {".jpg", ".jpeg"} else ", ".join(sorted(endings))
    return Data(decoded(root / "train"), decoded(test), files)


@contextlib.contextmanager
def spikes_counted(net: nn.Module) -> Iterator[list[tuple[float, int]]]:
    """Spikes and outputs of every neuron's calls within the block."""
    neurons = [m for m in net.modules() if type(m).__name__ in ("LIFNode", "Leaky")]
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
def test(net: nn.Module, batches: DataLoader) -> tuple[float, float, int]:
    """Accuracy, loss and number of images."""
    net.eval()
    right, loss, count = 0, 0.0, 0
    for images, labels in batches:
        logits = net(images)
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    net.train()
    return right / count, loss / count, count


def train(
    given: argparse.Namespace, data: Data, epochs: int, lr: float, out: Path, label: str
) -> float:
    """Trains, or goes on; returns the last accuracy. Writes metrics.jsonl and checkpoint.pt after each epoch."""
    torch.manual_seed(given.seed)
    net = NETS[given.library](given.steps)
    batches, tests = data.loaders(given.threads)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=epochs * len(batches),
        pct_start=WARMUP,
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
            for i, (images, labels) in enumerate(batches):
                if i == max(0, len(batches) - 10):
                    counts = counting.enter_context(spikes_counted(net))
                loss = nn.functional.cross_entropy(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach()
        speed = len(batches) * BATCH / (time.perf_counter() - began)
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


def git(*words: str) -> str:
    """What git says of this file's folder; "" where it cannot."""
    here = Path(__file__).parent
    done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def session(library: str) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": version(library),
    }


def command(given: argparse.Namespace) -> str:
    """What a stranger types, without the places on a disk."""
    words = ["python", "studies/results/peers.py", "--library", given.library]
    words += ["--steps", given.steps, "--epochs", given.epochs, "--lr", *given.lr]
    words += ["--seed", given.seed, "--threads", given.threads]
    if len(given.lr) > 1:
        words += ["--validation", given.validation]
    return " ".join(map(str, words))


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--library", choices=NETS, required=True)
    add("--steps", type=int, default=4, help="time steps")
    add("--epochs", type=int, default=10)
    add("--lr", nargs="+", default=["1e-2"], help="a rate, or several to choose from")
    add("--minutes", type=float, default=0.0, help="stop after the epoch that reaches them")
    add("--validation", type=int, default=5000, help="images held out to choose a rate")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--data", type=Path, default=Path("data/cifar10"), help="its train/<class>/* and test/")
    add("--out", type=Path, required=True, help="the folder of rows and checkpoints")
    given = parser.parse_args(words)
    for name, least in (("steps", 1), ("epochs", 1), ("threads", 1), ("validation", 1)):
        if getattr(given, name) < least:
            parser.error(f"--{name} = {getattr(given, name)}; accepted: an integer from {least}")
    for rate in given.lr:
        try:
            good = float(rate) > 0
        except ValueError:
            good = False
        if not good:
            parser.error(f"--lr = {rate!r}; accepted: numbers above 0")
    return given


def main(words: list[str] | None = None) -> None:
    given = arguments(words)
    torch.set_num_threads(given.threads)
    about, record = given.out / "peer.json", {}
    if about.exists():
        record = json.loads(about.read_text("utf-8"))
        if record["command"] != command(given):
            raise SystemExit(
                f"{given.out} is a run of another command:\n  {record['command']}\ngiven:\n  {command(given)}"
            )
    data = read(given.data)
    record = {
        "command": command(given),
        "library": LIBRARIES[given.library],
        "steps": given.steps,
        "epochs": given.epochs,
        "seed": given.seed,
        "files": data.files,
        "parameters": sum(p.numel() for p in NETS[given.library](given.steps).parameters()),
        "search": record.get("search", {}),
        "sessions": [*record.get("sessions", []), session(given.library)],
    }
    write(about, json.dumps(record, indent=2) + "\n")
    if len(given.lr) > 1:
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
