"""Data sets of docs/verdicts.py from which nothing can be learnt."""

from dataclasses import replace

import torch

from spiketriton import plugins
from spiketriton.config import DataConfig, parts
from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit


def cifar10(config: DataConfig) -> Source:
    return parts.chosen("data", "cifar10").make(DataConfig(name="cifar10", root=config.root))


@plugins.data("shuffled_cifar10")
def shuffled(config: DataConfig) -> Source:
    """CIFAR-10 whose training labels say nothing of the images."""
    source = cifar10(config)
    train = source.train
    assert isinstance(train, ArraySplit)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return replace(source, train=ArraySplit(train.images, train.labels[order]))


@plugins.data("dark_cifar10")
def dark(config: DataConfig) -> Source:
    """CIFAR-10, normalised by a deviation that is a million times too large."""
    source = cifar10(config)
    mean, std = source.statistics
    return replace(source, statistics=(mean, tuple(1e6 * value for value in std)))
