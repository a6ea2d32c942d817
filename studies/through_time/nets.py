"""The nets of the study and their tasks: a pulse that has to be remembered, spoken digits, permuted pixels.

Each batch is (x [T, B, C] float32, labels [B] int64).
"""

import functools
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from spiketriton_kernels import Surrogate
from spiketriton_kernels import nn as kernels

Row = dict[str, Any]
PULSE, CHANNELS, CLASSES = (
    4,
    32,
    4,
)  # steps of most pulses; of what they are read in; how many there are
KINDS = ("if", "lif", "plif", "ilif", "clif", "alif", "cuba", "psn", "masked_psn", "sliding_psn")
LEAKY = ("lif", "plif", "ilif", "clif", "alif", "cuba")
PARALLEL = ("psn", "masked_psn", "sliding_psn")


class EachStep(nn.Module):
    """Batch norm of [T, B, C] over time and batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).view_as(x)


class Net(nn.Module):
    """[T, B, C] -> [B, K]: hidden layers of `width` neurons, and a linear readout that `read` reads."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        torch.manual_seed(row["seed"])
        layers, size = list[nn.Module](), row["channels"]
        for _ in range(row["depth"]):
            linear = nn.Linear(size, row["width"])
            linear.weight.data.mul_(1.0 if row["norm"] else row["gain"])
            norm = [EachStep(row["width"])] if row["norm"] else []
            layers += [linear, *norm, returning(row)]
            size = row["width"]
        self.layers, self.readout, self.read = (
            nn.Sequential(*layers),
            nn.Linear(size, row["classes"]),
            row["read"],
        )

    def currents(self, x: Tensor) -> Tensor:
        """[T, B, K]"""
        out: Tensor = self.readout(self.layers(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out = self.currents(x)
        return out[-1] if self.read == "last" else out.mean(0)


def returning(row: Row) -> nn.Module:
    """A layer's neurons; with `feedback` their spikes come back by a matrix of so many times its usual start."""
    if not row["feedback"]:
        return neuron(row)
    layer = kernels.Recurrent(neuron(row), row["width"])
    layer.weight.data.mul_(row["feedback"])
    return layer


def neuron(row: Row) -> nn.Module:
    kind, tau = row["kind"], row["tau"]
    surrogate = Surrogate("atan", row["height"], row["surrogate_width"])
    if kind == "psn":
        return kernels.PSN(row["T"], surrogate=surrogate)
    if kind == "masked_psn":
        return kernels.MaskedPSN(row["order"], row["T"], 1.0, surrogate=surrogate)
    if kind == "sliding_psn":
        return kernels.SlidingPSN(row["order"], surrogate=surrogate)
    options: dict[str, Any] = {"detach_reset": row["detach"]}
    if kind == "ilif":
        return kernels.ILIF(tau, **options)
    if kind == "clif":
        return kernels.CLIF(tau, surrogate=surrogate, **options)
    options |= {"surrogate": surrogate, "v_reset": None if row["reset"] == "soft" else 0.0}
    if kind == "if":
        return kernels.IF(**options)
    if kind == "alif":
        return kernels.ALIF(tau, **options)
    of_kind = {"lif": kernels.LIF, "plif": kernels.PLIF, "cuba": kernels.CuBaLIF}[kind]
    made: nn.Module = of_kind(tau, decay_input=False, **options)
    return made


Batches = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def pulse(row: Row, at_end: bool = False) -> tuple[Batches, tuple[Tensor, Tensor]]:
    """A class for a few steps, then noise; `at_end`: noise, then the class. Batches drawn anew, and a test of 1,000."""
    classes, channels, length = row["classes"], row["channels"], row["pulse"]
    patterns = 1.5 * torch.randn(
        classes, channels, generator=torch.Generator().manual_seed(row["seed"])
    )

    def drawn(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(classes, (count,), generator=random)
        x = 0.5 * torch.randn(row["T"], count, channels, generator=random)
        place = slice(-length, None) if at_end else slice(length)
        x[place] += patterns[y]
        return x, y

    return drawn, drawn(1000, torch.Generator().manual_seed(10_000 + row["seed"]))


def _of_split(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> tuple[Batches, tuple[Tensor, Tensor]]:
    """Batches of recordings drawn at random from [N, T, C], and the test set, time first."""

    def drawn(count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(train[1]), (count,), generator=random)
        return train[0][chosen].transpose(0, 1).contiguous(), train[1][chosen]

    return drawn, (test[0].transpose(0, 1).contiguous(), test[1])


def digits(row: Row, root: str) -> tuple[Batches, tuple[Tensor, Tensor]]:
    """Spoken digits, 32 log-mel bands in 64 frames of 16 ms, padded with silence; takes 0 to 4 are the test."""
    x, y, test = _spoken(root)
    return _of_split((x[~test], y[~test]), (x[test], y[test]))


@functools.cache
def _spoken(root: str) -> tuple[Tensor, Tensor, Tensor]:
    frames, rate, size, hop, bands = 64, 8000, 256, 128, 32
    edges = 2595 * np.log10(1 + np.array([60.0, rate / 2]) / 700)
    centres = 700 * (10 ** (np.linspace(*edges, bands + 2) / 2595) - 1)
    at = np.linspace(0, rate / 2, size // 2 + 1)
    rising = (at - centres[:-2, None]) / np.diff(centres)[:-1, None]
    falling = (centres[2:, None] - at) / np.diff(centres)[1:, None]
    filters = torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None)).float()
    found, labels, test = [], [], []
    for path in sorted(Path(root, "spoken_digits", "recordings").glob("*.wav")):
        with wave.open(str(path)) as file:
            sound = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        wanted = frames * hop
        sound = np.pad(sound[:wanted], (0, max(0, wanted - len(sound))))
        spectrum = torch.stft(
            torch.from_numpy(sound).float(),
            size,
            hop,
            window=torch.hann_window(size),
            return_complex=True,
        )
        found.append((filters @ spectrum.abs().square()[:, :frames] + 1e-6).log().T)
        digit, _, take = path.stem.split("_")
        labels.append(int(digit))
        test.append(int(take) < 5)
    x, held = torch.stack(found), torch.tensor(test)
    known = x[~held]
    return (x - known.mean()) / known.std(), torch.tensor(labels), held


def pixels(row: Row, root: str, at_end: bool = False) -> tuple[Batches, tuple[Tensor, Tensor]]:
    """MNIST, a pixel at each of 784 steps, in one fixed permutation: 2,000 images to train, 500 to test.

    at_end: the control, of which less has to be remembered: each image in 49 pixels, the means of 16.
    """
    made = [_mnist(root, part, each) for part, each in (("train", 200), ("test", 50))]
    if at_end:
        made = [(F.avg_pool2d(x.view(-1, 1, 28, 28), 4).flatten(1), y) for x, y in made]
    order = torch.randperm(made[0][0].shape[1], generator=torch.Generator().manual_seed(0))
    train, test = ((x[:, order, None], y) for x, y in made)
    return _of_split(train, test)


@functools.cache
def _mnist(root: str, part: str, each: int) -> tuple[Tensor, Tensor]:
    found, labels = [], []
    for digit in range(10):
        for path in sorted(Path(root, "mnist_src", part, str(digit)).glob("*.png"))[:each]:
            found.append(torch.from_numpy(np.array(Image.open(path).convert("L"))).flatten())
            labels.append(digit)
    return torch.stack(found).float() / 128 - 0.5, torch.tensor(labels)


def trained(
    net: Net,
    row: Row,
    batches: Batches,
    test: tuple[Tensor, Tensor],
    rate: float,
    steps: int,
    limit: float = 0.0,
) -> tuple[float, int]:
    """Test accuracy after training, 0 where the loss or a gradient was not finite, and the steps taken.

    Fewer where it is learnt: the mean loss of 20 steps is below a fifth of guessing's. limit: on the gradient's norm.
    """
    made = (
        torch.optim.AdamW
        if row["optimizer"] == "adamw"
        else functools.partial(torch.optim.SGD, momentum=0.9)
    )
    optimizer = made(net.parameters(), lr=rate)
    random, losses = torch.Generator().manual_seed(20_000 + row["seed"]), list[float]()
    net.train()
    for step in range(1, steps + 1):
        x, y = batches(row["batch"], random)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        finite = all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
        if not (finite and np.isfinite(losses[-1])):
            return 0.0, step
        if limit:
            nn.utils.clip_grad_norm_(net.parameters(), limit)
        optimizer.step()
        if step % 20 == 0 and np.mean(losses[-20:]) < 0.2 * np.log(row["classes"]):
            break
    net.eval()
    with torch.no_grad():
        out = torch.cat([net(part) for part in test[0].split(250, 1)])
    return float((out.argmax(1) == test[1]).float().mean()), step
