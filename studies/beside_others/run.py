"""A recipe beside the code that it was published with: one process, one step of each in turn, the same images.

    python studies/beside_others/run.py spikformer qkformer sdt          # SpikingJelly's networks, with its own neurons
    python studies/beside_others/run.py csnn --epochs 6 --seeds 0 1 2    # and its script for Fashion-MNIST

    git clone https://github.com/Gus-Lab/temporal_efficient_training
    git clone https://github.com/fangwei123456/Parallel-Spiking-Neuron
    python studies/beside_others/run.py tet --code temporal_efficient_training --seeds 0 1 --same-start
    python studies/beside_others/run.py psn --code Parallel-Spiking-Neuron --seeds 0 1 --same-start

The images are Fashion-MNIST's, the sizes those of SIZES, all else as the shipped recipe has it. The other side is a
plain loop around somebody else's network and loss, with torchvision's augmentation and the recipe's hyperparameters. On
a GPU the same commands run there. A line of JSON for each seed, ours first: seconds a step (of the processor, so that
other programs count little; on a GPU by the clock), the most memory of one forward and backward pass, and the accuracy
of both after the same number of steps.
"""

import argparse
import importlib
import inspect
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

import spiketriton
from profiling.harness.memory import peak_bytes
from spiketriton.config import Recipe, load_recipe
from spiketriton.data import build_data
from spiketriton.models import build_model
from spiketriton.runs.folder import RunFolder
from spiketriton.training.randomness import seed_everything

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

SMALL_IMAGES = {
    "data.name": "fashion_mnist",
    "data.image_size": 16,
    "data.test_images": 1000,
    "train.precision": "fp32",
}
SMALL = SMALL_IMAGES | {
    "data.train_images": 2500,
    "data.test_images": 2000,
    "train.batch_size": 32,
}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "spikformer": (
        "cifar10_spikformer",
        SMALL_IMAGES
        | {"model.arguments": {"embed_dims": 48, "num_heads": 4, "depths": 2, "patch_size": 4}},
    ),
    "qkformer": (
        "cifar10_qkformer",
        SMALL_IMAGES
        | {"model.arguments": {"embed_dims": 48, "num_heads": (4, 4, 4), "depths": (1, 1, 1)}},
    ),
    "sdt": (
        "cifar10_sdt",
        SMALL_IMAGES
        | {
            "model.arguments": {
                "embed_dims": 48,
                "num_heads": 4,
                "depths": 2,
                "pooling_stat": "0011",
            }
        },
    ),
    "tet": (
        "cifar10_r19_tet",
        SMALL
        | {"data.augmentation.policy": "auto", "data.augmentation.cutout": "auto"}
        | {"model.width": 8},
    ),
    "psn": ("cifar10_csnn_psn", SMALL | {"model.width": 16}),
    "csnn": (str(Path(__file__).parents[2] / "examples" / "own_parts" / "csnn.toml"), {}),
}


class Images(Dataset):
    """The recipe's images as PIL images, in the way of torchvision."""

    def __init__(self, split: Any, members: Any, transform: Callable[..., Tensor]) -> None:
        self.images, self.labels = (
            np.asarray(split.read(members)),
            split.labels[torch.from_numpy(members)],
        )
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index, 0])), int(self.labels[index])


class Other:
    """Somebody else's network in a plain loop. `logits` maps images [B, 1, S, S] to [T, B, K]."""

    def __init__(
        self, recipe: Recipe, augment: list[Any], erase: float = 0.0, same_start: bool = False
    ) -> None:
        self.recipe, train = recipe, recipe.train
        data = build_data(recipe)
        size, normal = data.image_size, v2.Normalize(data.facts.mean, data.facts.std)
        resized = [v2.Resize(size, antialias=True)]  # which leaves images of this size alone
        tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), normal]
        erased = [v2.RandomErasing(erase)] if erase else []
        made = v2.Compose([*resized, *augment, *tensor, *erased])
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.loader = DataLoader(
            Images(data.train.dataset.split, data.train.members, made),
            train.batch_size, shuffle=True, drop_last=True, generator=self.generator,
            collate_fn=lambda items: self.mixed(*default_collate(items)),
        )  # fmt: skip
        tests = Images(data.test.dataset.split, data.test.members, v2.Compose([*resized, *tensor]))
        self.tests = [(x.to(DEVICE), y.to(DEVICE)) for x, y in DataLoader(tests, 500)]
        torch.manual_seed(recipe.seed)
        self.net = self.network().to(DEVICE)
        if same_start:
            take_weights(self.net, recipe)
        self.optimizer, self.schedule = self.learning()
        self.random = torch.get_rng_state()
        self.batches = self.endless()
        self.loading: list[float] = []

    def network(self) -> nn.Module:
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.recipe.loss.label_smoothing
        return nn.functional.cross_entropy(logits.mean(0), labels, label_smoothing=smoothing)

    def learning(self) -> tuple[Any, Any]:
        """Optimizer, and its schedule: down to 0 by steps; the papers' code goes down by epochs, which are few."""
        train, weights = self.recipe.train, self.net.parameters()
        sgd = partial(torch.optim.SGD, momentum=train.momentum)
        optimizer = (sgd if train.optimizer == "sgd" else torch.optim.Adam)(weights, lr=train.lr)
        steps = train.epochs * len(self.loader)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images, labels

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> float:
        """Seconds, without those of loading the batch. The random numbers of ours are left alone."""
        with torch.random.fork_rng():
            torch.set_rng_state(self.random)
            began = clock()
            images, labels = next(self.batches)
            self.loading.append(clock() - began)
            began = clock()
            self.net.train()
            self.optimizer.zero_grad()
            self.loss(self.logits(images.to(DEVICE)), labels.to(DEVICE)).backward()
            self.optimizer.step()
            self.schedule.step()
            self.random = torch.get_rng_state()
        return clock() - began

    @torch.no_grad()
    def accuracy(self) -> float:
        self.net.eval()
        right = sum(int((self.logits(x).mean(0).argmax(1) == y).sum()) for x, y in self.tests)
        return right / sum(len(y) for _, y in self.tests)


class SpikingJelly(Other):
    """Its transformers as its scripts train them; optimizer and schedule are timm's, written out."""

    def network(self) -> nn.Module:
        from spikingjelly.activation_based import model

        config = self.recipe.model
        kind = getattr(model, config.name.partition(":")[2])
        sizes = {"in_channels": 1, "num_classes": 10, "T": self.recipe.time_steps}
        if config.name.endswith("Spikformer"):
            sizes |= {"img_size_h": 16, "img_size_w": 16}
        taken = inspect.signature(kind).parameters.keys() & sizes.keys()
        return kind(**{name: sizes[name] for name in taken} | dict(config.arguments))

    def logits(self, images: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self.net)
        found = self.net(images.unsqueeze(0).repeat(self.recipe.time_steps, 1, 1, 1, 1))
        return found if found.ndim == 3 else found.unsqueeze(0)

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return v2.MixUp(alpha=self.recipe.train.mixup, num_classes=10)(images, labels)

    def learning(self) -> tuple[Any, Any]:
        train, steps = self.recipe.train, self.recipe.train.max_steps
        matrices = [p for p in self.net.parameters() if p.ndim > 1]
        others = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": train.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        rise, low, end = train.warmup * steps, train.warmup_lr / train.lr, train.min_lr / train.lr

        def rate(step: int) -> float:
            if step < rise:
                return low + (1 - low) * step / rise
            return end + (1 - end) * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2

        optimizer = torch.optim.AdamW(groups, lr=train.lr)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


class TET(Other):
    """github.com/Gus-Lab/temporal_efficient_training: its ResNet-19, narrower, and its loss."""

    def network(self) -> nn.Module:
        there = importlib.import_module("models.resnet_models")
        self.tet = importlib.import_module("functions").TET_loss
        net = there.ResNet(there.BasicBlock, [3, 3, 2], num_classes=10)
        width = self.recipe.model.width
        net.inplanes, net.T = width, self.recipe.time_steps
        net.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        net.conv1_s = there.tdLayer(net.conv1, there.tdBatchNorm(width))
        net.layer1 = net._make_layer(there.BasicBlock, width, 3)
        net.layer2 = net._make_layer(there.BasicBlock, 2 * width, 3, stride=2)
        net.layer3 = net._make_layer(there.BasicBlock, 4 * width, 2, stride=2)
        net.fc1_s = there.tdLayer(nn.Linear(4 * width, 2 * width))
        net.fc2_s = there.tdLayer(nn.Linear(2 * width, 10))
        del net.bn1, net.fc1, net.fc2
        return net

    def logits(self, images: Tensor) -> Tensor:
        return self.net(images.clone()).transpose(0, 1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        lamb = self.recipe.loss.tet_lambda
        return self.tet(logits.transpose(0, 1), labels, nn.CrossEntropyLoss(), 1.0, lamb)


class PSN(Other):
    """github.com/fangwei123456/Parallel-Spiking-Neuron, cifar10/train_cf10.py: its network and its mixing."""

    def network(self) -> nn.Module:
        from spikingjelly.activation_based import functional, layer, surrogate

        there = importlib.import_module("cifar10.train_cf10")
        self.mixings = [there.RandomMixup(10, 1.0, 0.2), there.RandomCutmix(10, 1.0, 1.0)]
        width, T = self.recipe.model.width, self.recipe.time_steps
        net = there.CIFAR10Net(width, "if5", T)
        net.conv[0] = layer.Conv2d(1, width, kernel_size=3, padding=1, bias=False)
        hidden, features = width * 16 // 4, width * 16
        net.fc[1] = layer.Linear(features, hidden)
        net.fc[2] = there.create_neuron("if5", T=T, surrogate_function=surrogate.ATan())
        net.fc[3] = layer.Linear(hidden, 10)
        functional.set_step_mode(net, "m")
        return net

    def logits(self, images: Tensor) -> Tensor:
        return self.net(images.unsqueeze(0).repeat(self.recipe.time_steps, 1, 1, 1, 1))

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return torchvision.transforms.RandomChoice(self.mixings)(images, labels)


class CSNN(Other):
    """SpikingJelly's examples/conv_fashion_mnist.py: its network, which takes images and gives rates, and its loss."""

    def network(self) -> nn.Module:
        from spikingjelly.activation_based.examples import conv_fashion_mnist

        return conv_fashion_mnist.CSNN(self.recipe.time_steps, **self.recipe.model.arguments)

    def logits(self, images: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self.net)
        return self.net(images).unsqueeze(0)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.mse_loss(logits[0], nn.functional.one_hot(labels, 10).float())


def other(case: str, recipe: Recipe, same: bool) -> Other:
    if case == "csnn":
        return CSNN(recipe, [], same_start=same)
    size = recipe.data.image_size or 28
    moved = [v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip()]
    if case == "tet":
        return TET(recipe, moved, same_start=same)
    if case == "psn":  # whose code does not move images
        return PSN(recipe, [*moved, v2.TrivialAugmentWide()], 0.1, same)
    drawn = recipe.data.augmentation
    policy = v2.RandAugment(drawn.operations, drawn.magnitude)
    return SpikingJelly(recipe, [*moved, policy], 0.0 if drawn.erasing == "auto" else drawn.erasing)


@torch.no_grad()
def take_weights(net: nn.Module, recipe: Recipe) -> None:
    """Starts from the weights from which the recipe's network starts; those of one shape come in one order."""
    seed_everything(recipe.seed)
    size = recipe.data.image_size or 28
    ours = build_model(recipe, classes=10, channels=1, image_size=size)
    left = [weight.squeeze() for weight in ours.parameters()]
    for theirs in net.parameters():
        place = next(i for i, w in enumerate(left) if w.shape == theirs.squeeze().shape)
        theirs.copy_(left.pop(place).reshape(theirs.shape))
    assert not left, "the networks differ"


def clock() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def beside(case: str, seed: int, keys: dict[str, Any], same: bool) -> dict[str, Any]:
    """Trains both; the numbers of both."""
    name, sizes = SIZES[case]
    values = sizes | keys | {"seed": seed, "train.threads": 1, "data.workers": 0}
    theirs = other(case, load_recipe(name, (), values), same)
    if case in ("spikformer", "qkformer", "sdt"):
        images, labels = next(theirs.batches)
        T = theirs.recipe.time_steps
        found = spiketriton.diagnose(
            theirs.net, (images.repeat(T, 1, 1, 1, 1).to(DEVICE), labels.to(DEVICE))
        )
        print(f"{case}: {found}", flush=True)
    ours: list[float] = []
    mine: list[float] = []
    curve: list[tuple[int, float, float]] = []
    state = {"began": clock()}

    def step(number: int) -> None:
        ours.append(clock() - state["began"])
        mine.append(theirs.step())
        state["began"] = clock()

    def row(row: dict[str, Any]) -> None:
        if row["kind"] == "eval":
            curve.append((row["step"], row["test_accuracy"], theirs.accuracy()))
            print(f"{case}, seed {seed}, step {row['step']}: {curve[-1][1:]}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        run = spiketriton.train(
            name, run_dir=f"{folder}/run", quiet=True, plugins=True, on_step=step, on_row=row, **values
        )  # fmt: skip
        waits = [r["data_wait"] for r in RunFolder(run.path).metrics.read() if r["kind"] == "train"]
    images, labels = (x.to(DEVICE) for x in next(theirs.batches))
    run.model.train()
    theirs.net.train()

    def pass_of(logits: Callable[[Tensor], Tensor]) -> None:
        theirs.loss(logits(images), labels).backward()

    peaks = [peak_bytes(partial(pass_of, net), DEVICE) for net in (run.model, theirs.logits)]
    return {
        "case": case,
        "seed": seed,
        "same start": same,
        "steps": len(ours),
        "device": str(DEVICE),
        "curve": curve,
        "seconds a step, with loading": (
            statistics.median(ours),
            statistics.median(a + b for a, b in zip(mine, theirs.loading, strict=False)),
        ),
        "seconds a step, without": (
            statistics.median(ours) * (1 - statistics.median(waits)),
            statistics.median(mine),
        ),
        "peak MB": tuple(peak / 1e6 for peak in peaks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("cases", nargs="+", choices=SIZES)
    parser.add_argument("--code", help="where the paper's code was cloned to: tet, psn")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=4, help="of tet, psn and csnn")
    parser.add_argument("--images", type=int, help="of tet, psn and csnn: training images")
    parser.add_argument(
        "--same-start", action="store_true", help="tet, psn: from the recipe's weights"
    )
    parser.add_argument("--steps", type=int, default=300, help="of the others")
    parser.add_argument("--batch", type=int, default=16, help="of the others")
    args = parser.parse_args()
    sys.path.insert(0, args.code or "")
    for case in args.cases:
        keys: dict[str, Any] = {"train.max_steps": args.steps, "train.batch_size": args.batch}
        if case in ("tet", "psn", "csnn"):
            keys = {"train.epochs": args.epochs}
            keys |= {"data.train_images": args.images} if args.images else {}
        for seed in args.seeds:
            print(json.dumps(beside(case, seed, keys, args.same_start)), flush=True)


if __name__ == "__main__":
    main()
