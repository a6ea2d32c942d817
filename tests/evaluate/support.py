"""What the tests of trained networks share."""

from pathlib import Path

from spiketriton.training.trained import TrainedRun, load_run
from tests.small_runs import small_trainer

NETS = {
    "plain": ["model.block=plain"],
    "sew": ["model.block=sew"],
    "ms": ["model.block=ms"],
    "shortcuts of spikes": ["model.block=ms", "model.shortcut=spikes"],
    "pool": ["model.name=resnet18", "model.stem=imagenet", "data.image_size=16"],
    "pool ms": ["model.name=resnet18", "model.stem=imagenet", "model.block=ms"],
    "mlp": ["model.name=mlp", "model.depth=3", "model.width=16"],
    "no norm": ["model.name=plain", "model.depth=3", "model.norm=none"],
}


def ann(path: Path, *overrides: str) -> TrainedRun:
    """An ANN after a few steps."""
    small_trainer(path, "neuron.kind=relu", "train.max_steps=5", *overrides).fit()
    return load_run(path, augment=False)
