"""Data sets of run.py from which nothing can be learnt."""

from dataclasses import replace

import torch

from spiketriton import plugins
from spiketriton.config import DataConfig, parts
from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit, Split


def cifar10(config: DataConfig) -> Source:
    return parts.chosen("data", "cifar10").make(DataConfig(name="cifar10", root=config.root))


@plugins.data("shuffled_cifar10")
def shuffled(config: DataConfig) -> Source:
    """CIFAR-10 whose training labels say nothing of the images."""
    source = cifar10(config)
    return replace(source, train=relabelled(source.train))


def relabelled(split: Split) -> ArraySplit:
    assert isinstance(split, ArraySplit)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return ArraySplit(split.images, split.labels[order])


@plugins.data("other_test_cifar10")
def other_test(config: DataConfig) -> Source:
    """CIFAR-10 whose test labels say nothing of the images."""
    source = cifar10(config)
    return replace(source, test=relabelled(source.test))


@plugins.data("constant_cifar10")
def constant(config: DataConfig) -> Source:
    """CIFAR-10 with one grey image for all labels."""
    source = cifar10(config)
    return replace(source, train=grey(source.train), test=grey(source.test))


def grey(split: Split) -> ArraySplit:
    assert isinstance(split, ArraySplit)
    return ArraySplit(torch.full_like(split.images, 128), split.labels)


@plugins.data("one_class_cifar10")
def one_class(config: DataConfig) -> Source:
    """CIFAR-10 whose training labels are all the same."""
    source = cifar10(config)
    train = source.train
    assert isinstance(train, ArraySplit)
    return replace(source, train=ArraySplit(train.images, torch.zeros_like(train.labels)))


@plugins.data("dark_cifar10")
def dark(config: DataConfig) -> Source:
    """CIFAR-10, normalised by a deviation that is a million times too large."""
    source = cifar10(config)
    mean, std = source.statistics
    return replace(source, statistics=(mean, tuple(1e6 * value for value in std)))
