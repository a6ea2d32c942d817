"""From raw images to what the network sees: augmented (training) or centred (test), normalised.

`load(images, keys)` runs where images are read: uint8 [b, C, S, S], and the draws of their augmentation.
`finish(images, draws)` runs on the device: what is left of it, and float32. `keys` (uint64 [b]) seed the
augmentation, one key per image; None means test images. An image's augmentation depends on its key alone.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, pad
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from spiketriton.config import DataConfig
from spiketriton.data.counter_rng import mix, on_device, torch_words, uniforms, unit
from spiketriton.data.splits import DecodedPhoto, Photo, in_bytes
from spiketriton.system.errors import UserError

Draws: TypeAlias = Mapping[str, np.ndarray]
"""What was drawn for each image of a batch, by name; it stays on the host. Empty for test images.

Of sequences, `lengths`: int64 [b], of test ones too."""

ERASING_PROBABILITY = 0.25  # of "strong"

_CUTOUT = 6  # keeps these draws of a key apart from all others
_ERASING = v2.RandomErasing(ERASING_PROBABILITY)
_ERASING_LOG_RATIO: list[float] = torch.log(torch.tensor(_ERASING.ratio)).tolist()
_ERASING_TRIES = 10
_ERASING_WORDS = 1 + 2 * _ERASING_TRIES + 2
_NO_BOX = (0, 0, 0, 0)

Answer = TypeVar("Answer")


class Transform:
    """What turns the raw images of a split into those that the network sees."""

    def __call__(self, images: Any, keys: np.ndarray | None) -> Tensor:
        return self.finish(*self.load(images, keys))

    def load(self, images: Any, keys: np.ndarray | None) -> tuple[Tensor, Draws]:
        """On the host, where images are read."""
        raise NotImplementedError

    def finish(self, images: Tensor, draws: Draws) -> Tensor:
        """On the device of `images`, which may be changed; without waiting for it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed; `preset`: "none", "standard" or "strong", see the transforms.

    crop_scale: least and largest share of a photograph's area. erasing: probability of RandomErasing (Zhong et al.
    2017, arXiv 1708.04896). cutout: side of Cutout's square (DeVries and Taylor 2017, arXiv 1708.04552). policy:
    "auto" (TrivialAugmentWide if strong), "none", "autoaugment" (Cubuk et al. 2019, arXiv 1805.09501) or
    "randaugment" (2020, arXiv 1909.13719) with so many `operations` of that `magnitude`; torchvision's.
    """

    preset: str
    crop_scale: tuple[float, ...] = (0.35, 1.0)
    erasing: float = 0.0
    cutout: int = 0
    policy: str = "auto"
    operations: int = 2
    magnitude: int = 9

    @property
    def is_trivial(self) -> bool:
        return self.policy == "auto" and self.preset == "strong"

    @classmethod
    def of(cls, config: DataConfig) -> "Augmentation":
        """What a recipe asks for; of the presets, "strong" alone erases."""
        keys, strong = config.augmentation, config.augment == "strong"
        usual = ERASING_PROBABILITY if strong else 0.0
        return cls(
            config.augment,
            keys.crop_scale,
            usual if keys.erasing == "auto" else keys.erasing,
            0 if keys.cutout == "auto" else keys.cutout,
            keys.policy,
            keys.operations,
            keys.magnitude,
        )


@dataclass(eq=False)
class _Transform(Transform):
    """What all transforms of images share: floats of `size` x `size`, normalised, with boxes erased."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation

    def __post_init__(self) -> None:
        asked, self.operation = self.augmentation, None
        if asked.policy in ("auto", "none"):
            return
        if len(self.mean) not in (1, 3):
            raise UserError(
                f'data.augmentation.policy = "{asked.policy}" is for grey and colour images, and these '
                f'have {len(self.mean)} channels; accepted: "none"'
            )
        if asked.policy == "autoaugment":
            self.operation = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
        else:
            self.operation = v2.RandAugment(asked.operations, asked.magnitude)

    def _cut(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        side = self.augmentation.cutout
        return {"cut": squares(keys, self.size, side)} if side else {}

    def finish(self, images: Tensor, draws: Draws) -> Tensor:
        """images: uint8, or floats in 0..1."""
        images = normalise(images, self.mean, self.std)
        for name in ("erase", "cut"):
            if name in draws:  # zero is the mean
                images = images.masked_fill_(in_boxes(draws[name], images), 0.0)
        return images


class PhotoTransform(_Transform):
    """Photographs of any size. Training: a random crop, mirrored in half of the images.

    standard: RandomResizedCrop and flip; strong: also TrivialAugmentWide (arXiv 2103.10158) and RandomErasing. none
    and test: the shorter side is resized to size * 256/224 and the centre cropped. A JPEG is decoded at a half, a
    quarter or an eighth of its size where the cut still has at least `size` pixels each way.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.crop = v2.RandomResizedCrop(self.size, scale=self.augmentation.crop_scale)
        self.colours = v2.TrivialAugmentWide()

    def load(
        self, images: Iterable[Photo | DecodedPhoto], keys: np.ndarray | None
    ) -> tuple[Tensor, Draws]:
        if keys is None:
            return torch.stack([self._centre(photo) for photo in images]), {}
        loaded, boxes = zip(*seeded_each(self._random, images, keys), strict=True)
        draws = self._cut(keys)
        if self.augmentation.erasing:
            draws["erase"] = np.array(boxes)
        return torch.stack(loaded), draws

    def _centre(self, photo: Photo | DecodedPhoto) -> Tensor:
        """The test crop: uint8 [3, S, S]."""
        size, shorter = self.size, round(self.size * 256 / 224)
        image = photo.decode(reduce=_whole(min(photo.size) / shorter))
        return F.center_crop(F.resize(_tensor(image), [shorter], antialias=True), [size, size])

    def _random(self, photo: Photo | DecodedPhoto) -> tuple[Tensor, tuple[int, int, int, int]]:
        """A training image, uint8 [3, S, S], and the box to be erased from it.

        Drawn from torch's global generator, in torchvision's order.
        """
        pixels = self._centre(photo) if self.augmentation.preset == "none" else self._crop(photo)
        if self.operation is not None:
            pixels = self.operation(pixels)
        elif self.augmentation.is_trivial:
            pixels = _tensor(self.colours(Image.fromarray(pixels.permute(1, 2, 0).numpy())))
        return pixels, self._box(pixels) if self.augmentation.erasing else _NO_BOX

    def _crop(self, photo: Photo | DecodedPhoto) -> Tensor:
        """A random crop, mirrored or not: uint8 [3, S, S]."""
        size, (width, height) = self.size, photo.size
        window = self.crop.make_params([torch.empty((1, height, width), device="meta")])
        mirrored = torch.rand(1) < 0.5
        top, left, high, wide = (window[name] for name in ("top", "left", "height", "width"))
        image = photo.decode(reduce=_whole(min(high, wide) / size))
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + wide) * across, (top + high) * down)
        cut = image.crop(tuple(round(edge) for edge in box))
        pixels = F.resize(_tensor(cut), [size, size], antialias=True)
        return pixels.flip(-1) if mirrored else pixels

    def _box(self, pixels: Tensor) -> tuple[int, int, int, int]:
        if torch.rand(1) < self.augmentation.erasing:
            drawn = _ERASING.make_params([pixels])
            if drawn["v"] is not None:
                return drawn["i"], drawn["j"], drawn["h"], drawn["w"]
        return _NO_BOX


@dataclass(eq=False)
class ArrayTransform(_Transform):
    """Small images in memory, [b, C, H, W], uint8 or floats in 0..1: resized and moved as a batch, for speed.

    `move` is "crop" (objects: a window of the padded image, mirrored in half of them) or "affine" (characters: a
    small turn, shear, scale and shift). strong: crop adds TrivialAugmentWide, affine moves twice as far, both erase.
    """

    move: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.padding = max(1, round(self.size / 8))

    def load(self, images: Tensor, keys: np.ndarray | None) -> tuple[Tensor, Draws]:
        images = in_bytes(images)
        if images.shape[-2:] != (self.size, self.size):
            images = F.resize(images, [self.size, self.size], antialias=True)
        if keys is None:
            return images, {}
        draws: dict[str, np.ndarray] = {}
        asked, crops = self.augmentation, self.move == "crop"
        moves, strong = asked.preset != "none", asked.preset == "strong"
        if moves and crops:
            draws["window"] = windows(keys, self.padding)
        elif moves:
            draws["map"] = small_maps(keys, reach=2.0 if strong else 1.0)
        if self.operation is not None:
            images = in_bytes(self._moved(images, draws))
            images = torch.stack(seeded_each(self.operation, images, keys))
            draws = {}
        trivial = asked.is_trivial and crops
        if trivial or asked.erasing:
            from spiketriton.data import trivial_augment

            words = torch_words(keys, trivial_augment.WORDS + _ERASING_WORDS)
            used = np.zeros(len(keys), dtype=np.int64)
            if trivial:
                draws["operation"], draws["row"], used = trivial_augment.draw(words)
            if asked.erasing:
                draws["erase"] = erased_boxes(words, used, self.size, self.size, asked.erasing)
        return images, draws | self._cut(keys)

    def _moved(self, images: Tensor, draws: Draws) -> Tensor:
        if "window" in draws:
            images = crop_and_flip(images, draws["window"], self.padding)
        if "map" in draws:
            images = affine(images, draws["map"])
        return images

    def finish(self, images: Tensor, draws: Draws) -> Tensor:
        images = self._moved(images, draws)
        if "operation" in draws:
            from spiketriton.data import trivial_augment

            images = trivial_augment.augment(images, draws["operation"], draws["row"])
        return super().finish(images, draws)


def seeded_each(
    transform: Callable[[Any], Answer], images: Iterable[Any], keys: np.ndarray
) -> list[Answer]:
    """`transform(image)` of each, with torch's global CPU generator, put back afterwards, seeded by the image's key."""
    state = torch.get_rng_state()
    try:
        outputs = []
        for image, key in zip(images, keys, strict=True):
            torch.default_generator.manual_seed(int(key))
            outputs.append(transform(image))
        return outputs
    finally:
        torch.set_rng_state(state)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (or floats in 0..1) -> float32 by torchvision's arithmetic, the constants on the device once."""
    floats = images.float()
    if not images.is_floating_point():
        floats = floats * (1.0 / 255)
    return (floats - _constants(mean, images.device)).div_(_constants(std, images.device))


@lru_cache(maxsize=32)
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 [C, 1, 1]."""
    return torch.tensor(values).view(-1, 1, 1).to(device)


def windows(keys: np.ndarray, padding: int) -> np.ndarray:
    """Of each image: top and left edge of a window, and whether it is mirrored. int64 [b, 3]."""
    draws = uniforms(keys, 3)
    edges = (draws[:, :2] * (2 * padding + 1)).astype(np.int64)
    return np.concatenate([edges, draws[:, 2:] < 0.5], axis=1)


def crop_and_flip(images: Tensor, windows: np.ndarray, padding: int) -> Tensor:
    """A window of each zero-padded image [b, C, H, W], mirrored in some of them, in one gather."""
    batch, channels, height, width = images.shape
    top, left, mirrored = on_device(windows.T.copy(), images.device)[:, :, None]
    each = partial(torch.arange, device=images.device)
    rows = top + each(height)
    columns = left + torch.where(mirrored > 0, width - 1 - each(width), each(width))
    return pad(images, [padding] * 4)[
        each(batch)[:, None, None, None],
        each(channels)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def small_maps(keys: np.ndarray, reach: float) -> np.ndarray:
    """A small random linear map and shift of each image about the identity: float32 [b, 2, 3].

    With reach = 1: +-0.1 (scale), +-0.15 (turn and shear), +-0.1 (shift, in half image sides), uniform.
    """
    spread = torch.tensor([[0.1, 0.15, 0.1], [0.15, 0.1, 0.1]])
    draws = torch.from_numpy(uniforms(keys, 6)).float().view(-1, 2, 3)
    return (torch.eye(2, 3) + reach * spread * (2 * draws - 1)).numpy()


def affine(images: Tensor, maps: np.ndarray) -> Tensor:
    """Each image uint8 [C, H, W] through its map [2, 3], bilinear, zero outside: float32 in 0..1."""
    height, width = images.shape[-2:]
    each = partial(torch.arange, device=images.device)
    of = on_device(maps, images.device).view(-1, 1, 1, 2, 3)
    x = (2 * each(width)[:, None] + 1) / width - 1
    y = (2 * each(height)[:, None, None] + 1) / height - 1
    # Not affine_grid: its matrix product may round differently by batch size, so by number of ranks.
    grid = of[..., 0] * x + of[..., 1] * y + of[..., 2]
    return grid_sample(images.float() * (1.0 / 255), grid, mode="bilinear", align_corners=False)


def squares(keys: np.ndarray, size: int, side: int) -> np.ndarray:
    """Cutout's squares, about any pixel of each image, perhaps over its borders: top, left, height, width, [b, 4]."""
    middles = (uniforms(mix(keys, _CUTOUT), 2) * size).astype(np.int64)
    return np.concatenate([middles - side // 2, np.full((len(keys), 2), side)], 1)


def erased_boxes(
    words: np.ndarray, used: np.ndarray, height: int, width: int, probability: float
) -> np.ndarray:
    """The boxes that torchvision's RandomErasing draws: top, left, height, width, int64 [b, 4]; 0 for none.

    words: uint32 [b, n] of torch's generator, the first `used` [b] of which are spent.
    """
    each = np.arange(len(words))

    def uniform(at: np.ndarray, low: float, high: float) -> np.ndarray:
        least, most = np.float32(low), np.float32(high)
        return unit(words[each, at]) * (most - least) + least

    boxes = np.zeros((len(words), 4), dtype=np.int64)
    wanted = unit(words[each, used]) < np.float32(probability)
    at = used + 1
    for _ in range(_ERASING_TRIES):
        if not wanted.any():
            break
        area = height * width * uniform(at, *_ERASING.scale).astype(np.float64)
        logarithm = torch.from_numpy(uniform(at + 1, *_ERASING_LOG_RATIO))
        aspect = torch.exp(logarithm).double().numpy()
        high_of, wide_of = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        size = np.stack([high_of, wide_of]).astype(np.int64)
        fits = wanted & (size[0] < height) & (size[1] < width)
        for column, (side, part) in enumerate(zip((height, width), size, strict=True)):
            edge = words[each, at + 2 + column] % np.maximum(side - part + 1, 1).astype(np.uint32)
            boxes[fits, column], boxes[fits, column + 2] = edge[fits], part[fits]
        wanted, at = wanted & ~fits, at + 2
    return boxes


def in_boxes(boxes: np.ndarray, images: Tensor) -> Tensor:
    """Which pixels lie in the box [top, left, height, width] of their image: bool [b, 1, H, W]."""
    height, width = images.shape[-2:]
    top, left, high, wide = on_device(boxes.T.copy(), images.device)[:, :, None]
    each = partial(torch.arange, device=images.device)
    rows = (each(height) >= top) & (each(height) < top + high)
    columns = (each(width) >= left) & (each(width) < left + wide)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _whole(ratio: float) -> int:
    """The largest of 1, 2, 4, 8 up to `ratio`: what JPEGs can be reduced by while decoding."""
    return max((part for part in (2, 4, 8) if part <= ratio), default=1)


def _tensor(image: Image.Image) -> Tensor:
    """uint8 [3, H, W], a view of pixels that lie as Pillow has them."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
