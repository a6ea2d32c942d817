"""Images for training and testing: `build_data(recipe)`.

sources.py finds the images, transforms.py turns them into tensors, stream.py batches them.
"""

import os
from dataclasses import dataclass

import torch

from spiketriton.config import Recipe, TrainConfig
from spiketriton.data.sources import SOURCES, Source
from spiketriton.data.splits import ArraySplit
from spiketriton.data.stream import Batches, Loading, TestSet, TrainStream, auto_workers, subset
from spiketriton.data.transforms import ArrayTransform, PhotoTransform
from spiketriton.errors import UserError

__all__ = ["Data", "TestSet", "TrainStream", "build_data"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set ready to train on; images are float32 [b, channels, image_size, image_size]."""

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    train: TrainStream
    test: TestSet
    synthetic: bool  # random images: every number measured on them must say so


def build_data(recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> Data:
    """The recipe's data for one of `world_size` ranks; all ranks call it with the same recipe.

    Raises `UserError`, before any image is decoded, when data are missing (naming the archive, the
    folder it belongs in and data.root), damaged, or too few for a batch.
    """
    config, train = recipe.data, recipe.train
    accumulate = _micro_batches(train, world_size)
    source = SOURCES[config.name](config)
    _check_counts(recipe, source)
    size = config.image_size or source.image_size
    transform: PhotoTransform | ArrayTransform
    if source.move == "photo":
        transform = PhotoTransform(size, *source.statistics, config.augment)
    else:
        transform = ArrayTransform(size, *source.statistics, config.augment, source.move)

    cuda = train.device != "cpu" and torch.cuda.is_available()
    workers = config.workers
    if workers == "auto":
        workers = auto_workers(
            in_memory=isinstance(source.train, ArraySplit),
            cuda=cuda,
            ranks_here=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
        )
    loading = Loading(workers=workers, pin_memory=cuda)
    return Data(
        name=config.name,
        classes=source.classes,
        channels=source.channels,
        image_size=size,
        train=TrainStream(
            dataset=Batches(source.train, transform),
            members=subset(source.train, config.train_images),
            seed=recipe.seed,
            batch_size=train.batch_size,
            accumulate=accumulate,
            rank=rank,
            world_size=world_size,
            loading=loading,
        ),
        test=TestSet(
            dataset=Batches(source.test, transform),
            members=subset(source.test, config.test_images),
            batch_size=train.batch_size // (accumulate * world_size),
            rank=rank,
            world_size=world_size,
            loading=loading,
        ),
        synthetic=source.synthetic,
    )


def _micro_batches(train: TrainConfig, world_size: int) -> int:
    """Micro-batches per step on each rank; `accumulate` while micro_batch = "auto" is not found."""
    given = train.micro_batch not in (0, "auto")
    key = "micro_batch" if given else "accumulate"
    value = getattr(train, key)
    if train.batch_size % (value * world_size):
        raise UserError(
            f"train.batch_size = {train.batch_size} does not divide by train.{key} = {value} on "
            f"{world_size} ranks; accepted: a multiple of {value * world_size}"
        )
    return train.batch_size // (value * world_size) if given else value


def _check_counts(recipe: Recipe, source: Source) -> None:
    config = recipe.data
    if len(source.classes) < 2:
        raise UserError(
            f"{config.name} has only one class, {source.classes[0]}; accepted: two or more"
        )
    for key, wanted, split in (
        ("data.train_images", config.train_images, source.train),
        ("data.test_images", config.test_images, source.test),
    ):
        if wanted > len(split):
            raise UserError(f"{key} = {wanted:,}, but {config.name} has only {len(split):,} images")
    images = config.train_images or len(source.train)
    if images < recipe.train.batch_size:
        raise UserError(
            f"train.batch_size = {recipe.train.batch_size:,} is more than the {images:,} training "
            f"images of {config.name} (data.train_images = {config.train_images:,}; 0 means all)"
        )
