"""From raw images to what the network sees: augmented (training) or centred (test), normalised.

A transform is called with raw images and keys: `transform(images, keys) -> float32 [b, C, S, S]`.
`keys` (uint64 [b]) seed the augmentation, one key per image; None means test images. An image's
augmentation thus depends on its key alone, not on its neighbours, the worker or global state.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import grid_sample, pad
from torchvision.transforms import v2

from spiketriton.data.draws import uniforms

ERASING_PROBABILITY = 0.25


def normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Compose:
    """uint8 (or floats in 0..1) -> float32, about zero mean and unit deviation per channel."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def seeded_each(
    transform: Callable, images: Iterable[Image.Image | torch.Tensor], keys: np.ndarray
) -> torch.Tensor:
    """Stacks `transform(image)`, each with torch's CPU generator seeded by the image's key.

    torchvision's transforms draw from the global generator; its state is restored.
    """
    state = torch.get_rng_state()
    try:
        outputs = []
        for image, key in zip(images, keys, strict=True):
            torch.default_generator.manual_seed(int(key))
            outputs.append(transform(image))
        return torch.stack(outputs)
    finally:
        torch.set_rng_state(state)


class PhotoTransform:
    """Photographs of any size (PIL). Training: a random crop, mirrored in half of the images.

    standard: RandomResizedCrop (35 to 100 % of the area) and flip; strong: also TrivialAugmentWide
    (arXiv 2103.10158) and RandomErasing (arXiv 1708.04896). none and test: the shorter side is
    resized to size * 256/224 and the centre cropped.
    """

    def __init__(
        self, size: int, mean: tuple[float, ...], std: tuple[float, ...], augment: str
    ) -> None:
        finish = [v2.PILToTensor(), normalise(mean, std)]
        centre = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
        crop = [v2.RandomResizedCrop(size, scale=(0.35, 1.0)), v2.RandomHorizontalFlip()]
        self.test = v2.Compose([*centre, *finish])
        self.train = {
            "none": self.test,
            "standard": v2.Compose([*crop, *finish]),
            "strong": v2.Compose(
                [*crop, v2.TrivialAugmentWide(), *finish, v2.RandomErasing(ERASING_PROBABILITY)]
            ),
        }[augment]

    def __call__(self, images: Iterable[Image.Image], keys: np.ndarray | None) -> torch.Tensor:
        if keys is None:
            return torch.stack([self.test(image) for image in images])
        return seeded_each(self.train, images, keys)


class ArrayTransform:
    """Small images in memory, uint8 [b, C, H, W]: resized and moved as a batch, for speed.

    `move` is "crop" (objects: a window of the image padded by an eighth, mirrored in half of them) or
    "affine" (characters, which must not be mirrored: a small turn, shear, scale and shift).
    standard: move; strong: crop adds TrivialAugmentWide, affine moves twice as far, and both add
    RandomErasing, image by image through torchvision.
    """

    def __init__(
        self, size: int, mean: tuple[float, ...], std: tuple[float, ...], augment: str, move: str
    ) -> None:
        self.size = size
        self.augment = augment
        self.move = move
        self.normalise = normalise(mean, std)
        extra = [v2.TrivialAugmentWide()] if move == "crop" else []
        self.finish_strong = v2.Compose(
            [*extra, self.normalise, v2.RandomErasing(ERASING_PROBABILITY)]
        )

    def __call__(self, images: torch.Tensor, keys: np.ndarray | None) -> torch.Tensor:
        if images.shape[-2:] != (self.size, self.size):
            images = v2.functional.resize(images, [self.size, self.size], antialias=True)
        if keys is None or self.augment == "none":
            return self.normalise(images)
        if self.move == "crop":
            images = crop_and_flip(images, keys, padding=max(1, round(self.size / 8)))
        else:
            images = affine(images, keys, reach=2.0 if self.augment == "strong" else 1.0)
        if self.augment == "standard":
            return self.normalise(images)
        return seeded_each(self.finish_strong, images, keys)


def crop_and_flip(images: torch.Tensor, keys: np.ndarray, padding: int) -> torch.Tensor:
    """A random window of each zero-padded image, mirrored in half of them, in one gather.

    images: [b, C, H, W] of any dtype; all windows are equally likely.
    """
    batch, channels, height, width = images.shape
    draws = torch.from_numpy(uniforms(keys, 3))
    top, left = (draws[:, :2] * (2 * padding + 1)).long().T
    rows = top[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(batch, -1)
    columns = left[:, None] + torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    return pad(images, [padding] * 4)[
        torch.arange(batch)[:, None, None, None],
        torch.arange(channels)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def affine(images: torch.Tensor, keys: np.ndarray, reach: float) -> torch.Tensor:
    """A small random linear map and shift of each image, bilinear, zero outside the image.

    images: uint8 [b, C, H, W] -> float32 in 0..1. With reach = 1 each coefficient is uniform in
    +-0.1 (scale), +-0.15 (turn and shear), +-0.1 (shift, in half image sides) about the identity.
    """
    height, width = images.shape[-2:]
    spread = torch.tensor([[0.1, 0.15, 0.1], [0.15, 0.1, 0.1]])
    draws = torch.from_numpy(uniforms(keys, 6)).float().view(-1, 1, 1, 2, 3)
    maps = torch.eye(2, 3) + reach * spread * (2 * draws - 1)
    x = (2 * torch.arange(width)[:, None] + 1) / width - 1
    y = (2 * torch.arange(height)[:, None, None] + 1) / height - 1
    # Not affine_grid: its matrix product may round differently by batch size, so by number of ranks.
    grid = maps[..., 0] * x + maps[..., 1] * y + maps[..., 2]
    pixels = v2.functional.to_dtype(images, torch.float32, scale=True)
    return grid_sample(pixels, grid, mode="bilinear", align_corners=False)
