"""TrivialAugmentWide (arXiv 2103.10158) for whole batches, on any device.

The draws are made first; each of the fourteen operations then runs once for the images that drew it. On the CPU the
result is torchvision's bit for bit. What moves pixels is looked up in maps that torchvision drew.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from spiketriton.data.counter_rng import on_device, unit

BINS = 31  # magnitudes of an operation
WORDS = 3  # most draws of an image: operation, magnitude, sign

MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
BLENDS = ("Brightness", "Color", "Contrast", "Sharpness")
OPERATIONS = ("Identity", *MOVES, *BLENDS, "Posterize", "Solarize", "AutoContrast", "Equalize")
"""In torchvision's order, which the draws refer to."""

_MAGNITUDES = {
    **{name: torch.linspace(0.0, 0.99, BINS) for name in ("ShearX", "ShearY", *BLENDS)},
    **{name: torch.linspace(0.0, 32.0, BINS) for name in ("TranslateX", "TranslateY")},
    "Rotate": torch.linspace(0.0, 135.0, BINS),
    "Posterize": (8 - torch.arange(BINS) / ((BINS - 1) / 6)).round(),
    "Solarize": torch.linspace(1.0, 0.0, BINS),
}
MAGNITUDES = np.array([_MAGNITUDES.get(name, torch.zeros(BINS)).tolist() for name in OPERATIONS])
"""float64 [14, 31]: the paper's wide ranges, rounded to float32 as torchvision rounds them."""

_SIGNED = np.array([name in MOVES + BLENDS for name in OPERATIONS])
_GRADED = np.array([name in _MAGNITUDES for name in OPERATIONS])


def draw(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each image draws: operation int64 [b], signed magnitude's row int64 [b], words used [b].

    Row r of an operation is its magnitude r below `BINS`, and minus that of r - BINS above.
    """
    each = np.arange(len(words))
    operation = (words[:, 0] % np.uint32(len(OPERATIONS))).astype(np.int64)
    graded, signed = _GRADED[operation], _SIGNED[operation]
    row = np.where(graded, words[each, 1] % np.uint32(BINS), 0).astype(np.int64)
    negative = signed & (unit(words[:, 2]) <= 0.5)
    return operation, row + BINS * negative, 1 + graded.astype(np.int64) + signed


def magnitude(operation: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The signed magnitude that an image drew, float64."""
    return np.where(row < BINS, 1.0, -1.0) * MAGNITUDES[operation, row % BINS]


def augment(images: Tensor, operation: np.ndarray, row: np.ndarray) -> Tensor:
    """uint8 [b, 1 or 3, H, W] -> the same, each image by the operation that it drew.

    `operation` and `row` (see `draw`) are on the host, so that nothing waits for the device.
    """
    images = images.clone()
    for at in np.unique(operation):
        name, chosen = OPERATIONS[at], np.flatnonzero(operation == at)
        if name == "Identity":
            continue
        where = on_device(chosen, images.device)
        rows = row[chosen]
        images[where] = _apply(name, images[where], rows, magnitude(operation[chosen], rows))
    return images


def _apply(name: str, images: Tensor, rows: np.ndarray, magnitudes: np.ndarray) -> Tensor:
    if name in MOVES:
        return _moved(images, MOVES.index(name) * 2 * BINS + rows)
    if name in BLENDS:
        return _blended(name, images, 1.0 + magnitudes)
    if name == "AutoContrast":
        return F.autocontrast(images)
    if name == "Equalize":
        return F.equalize(images)
    shape = (-1, 1, 1, 1)
    if name == "Posterize":
        masks = 256 - (1 << (8 - magnitudes.astype(np.int64)))
        return images & on_device(masks.astype(np.uint8), images.device).view(shape)
    thresholds = on_device((255.0 * magnitudes).astype(np.float32), images.device).view(shape)
    return torch.where(images >= thresholds, 255 - images, images)


def _moved(images: Tensor, maps: np.ndarray) -> Tensor:
    """Each image through one of the maps: the nearest pixel, 0 outside the image."""
    count, channels, height, width = images.shape
    sources = _maps(height, width, images.device)[on_device(maps, images.device)]
    bordered = torch.nn.functional.pad(images.flatten(2), (0, 1))  # the last "pixel" is the outside
    index = sources.long()[:, None].expand(count, channels, height * width)
    return bordered.gather(2, index).view_as(images)


@lru_cache(maxsize=4)
def _maps(height: int, width: int, device: torch.device) -> Tensor:
    """Where every pixel comes from by move, sign and magnitude: int32 [5 * 62, H * W].

    torchvision moves an image of pixel numbers. H * W stands for what lies outside the image.
    """
    outside = height * width
    numbers = torch.arange(outside, dtype=torch.float32).view(1, height, width)
    rows = np.arange(2 * BINS)
    maps = [
        _move(name, numbers, value, float(outside)).flatten()
        for name in MOVES
        for value in magnitude(np.full_like(rows, OPERATIONS.index(name)), rows).tolist()
    ]
    return torch.stack(maps).int().to(device)


def _move(name: str, image: Tensor, value: float, fill: float) -> Tensor:
    """torchvision's operation `name` of magnitude `value`."""
    if name == "Rotate":
        return F.rotate(image, angle=value, fill=[fill])
    along = [1, 0] if name.endswith("X") else [0, 1]
    how: dict[str, Any] = {"angle": 0.0, "scale": 1.0, "fill": [fill]}
    if name.startswith("Shear"):
        shear = [math.degrees(math.atan(value)) * axis for axis in along]
        return F.affine(image, translate=[0, 0], shear=shear, center=[0, 0], **how)
    return F.affine(image, translate=[int(value) * axis for axis in along], shear=[0.0, 0.0], **how)


def _blended(name: str, images: Tensor, factors: np.ndarray) -> Tensor:
    """Between each image and one without brightness, colour, contrast or sharpness."""
    if (name == "Color" and images.shape[1] == 1) or (
        name == "Sharpness" and min(images.shape[2:]) <= 2
    ):
        return images
    pixels = images.float()
    kept, rest = (
        on_device(share.astype(np.float32), images.device).view(-1, 1, 1, 1)
        for share in (factors, 1.0 - factors)
    )
    if name == "Sharpness":
        # a blur by the kernel of ones with 5 in its middle, over 13; borders stay
        inside = pixels[:, :, 1:-1, 1:-1]
        windows = torch.nn.functional.avg_pool2d(pixels, 3, stride=1, divisor_override=1)
        blurred = ((windows + 4 * inside) / 13).round()  # 13 is odd: no sum lies halfway
        inside.copy_(_fused(inside, blurred - inside, rest))
    else:
        pixels *= kept
    if name in ("Color", "Contrast"):
        other = F.rgb_to_grayscale(images).float()
        pixels = _fused(pixels, other if name == "Color" else other.mean((1, 2, 3), True), rest)
    return pixels.clamp(0, 255).to(torch.uint8)


def _fused(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    """a + factor * b in float32, rounded once, as `a.add(b, alpha=factor)` rounds on the CPU."""
    return (a.double() + b.double() * factor.double()).float()
