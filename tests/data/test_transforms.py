"""Augmentation: what it does to the pixels, and that an image's key alone decides it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from spiketriton.data import trivial_augment
from spiketriton.data.counter_rng import mix, torch_words, uniforms
from spiketriton.data.splits import Photo
from spiketriton.data.transforms import (
    ArrayTransform,
    Augmentation,
    PhotoTransform,
    affine,
    crop_and_flip,
    seeded_each,
    small_maps,
    squares,
    windows,
)
from spiketriton.system.errors import UserError
from tests.covering import pairwise
from tests.small_data import noise_image

FLAT = (0.4,) * 3, (0.3,) * 3
PLAIN = (0.0,) * 3, (1.0,) * 3


class Opened:
    """A photograph that lies in memory; it remembers how it was decoded."""

    def __init__(self, image):
        self.image, self.size, self.reduced = image, image.size, []

    def decode(self, *, reduce=1):
        self.reduced.append(reduce)
        return self.image


def asked(preset: str) -> Augmentation:
    """A preset as it is."""
    return Augmentation(preset, erasing=0.25 if preset == "strong" else 0.0)


def keys_of(count: int) -> np.ndarray:
    return mix(7, np.arange(count))


def noise(count: int, channels: int = 3, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


def photo(size=(90, 60)):
    return noise_image(np.random.default_rng(0), "RGB", size)


def test_crop_and_flip_equals_slicing_one_image_at_a_time():
    images, keys, padding = noise(50)[..., :9], keys_of(50), 3
    batch = crop_and_flip(images, windows(keys, padding), padding)
    seen = set()
    for image, crop, (u_top, u_left, u_flip) in zip(images, batch, uniforms(keys, 3), strict=True):
        top, left = int(u_top * 7), int(u_left * 7)
        padded = torch.zeros(3, 18, 15, dtype=torch.uint8)
        padded[:, 3:15, 3:12] = image
        window = padded[:, top : top + 12, left : left + 9]
        assert torch.equal(crop, window.flip(2) if u_flip < 0.5 else window)
        seen |= {("top", top), ("left", left), ("flip", bool(u_flip < 0.5))}
    assert len(seen) == 7 + 7 + 2  # every shift and both mirrors came up


def test_affine_moves_a_little_and_never_mirrors():
    images = torch.zeros(400, 1, 33, 33, dtype=torch.uint8)
    images[..., 16, 16] = 255  # a dot in the centre
    moved = affine(images, small_maps(keys_of(400), reach=1.0))
    still = affine(images, small_maps(keys_of(400), reach=0.0))
    torch.testing.assert_close(still, images / 255, atol=1e-5, rtol=0)
    y, x = np.unravel_index(moved.flatten(1).argmax(1).numpy(), (33, 33))
    shift = np.stack([x, y]) - 16
    # 0.1 of half the image's 33 pixels, give or take the scale
    assert 1 <= np.abs(shift).max() <= 3
    assert (np.abs(shift.mean(1)) < 0.3).all()
    images[..., :8] = 255  # bright on the left
    moved = affine(images, small_maps(keys_of(400), reach=2.0))
    assert bool((moved[..., :16].sum((1, 2, 3)) > moved[..., 17:].sum((1, 2, 3))).all())


@pytest.mark.parametrize(
    ("move", "augment", "size", "channels"),
    pairwise(["crop", "affine"], ["none", "standard", "strong"], [12, 17], [1, 3]),
)
def test_an_image_does_not_depend_on_its_neighbours(move, augment, size, channels):
    """Bit for bit, or the number of ranks would change a run."""
    transform = ArrayTransform(size, (0.5,) * channels, (0.25,) * channels, asked(augment), move)
    images, keys = noise(33, channels), keys_of(33)
    batch = transform(images, keys)
    assert batch.shape == (33, channels, size, size)
    assert batch.dtype == torch.float32
    for at in (0, 1, 31, 32):
        assert torch.equal(transform(images[at : at + 1], keys[at : at + 1])[0], batch[at])
    assert torch.equal(transform(images[5:], keys[5:]), batch[5:])
    # another key, another picture; unless nothing is augmented
    other = transform(images, keys_of(34)[1:])
    same = (other == batch).flatten(1).all(1)
    assert bool(same.all()) if augment == "none" else float(same.float().mean()) < 0.2


@pytest.mark.parametrize("move", ["crop", "affine"])
def test_test_images_are_only_normalised(move):
    images, more = noise(5), Augmentation("strong", erasing=1.0, cutout=6)
    expected = (images / 255 - 0.4) / 0.3
    torch.testing.assert_close(ArrayTransform(12, *FLAT, more, move)(images, None), expected)


@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
@pytest.mark.parametrize("size", [(64, 48), (300, 20), (1, 1)])
def test_photographs_of_any_size(size, augment):
    transform = PhotoTransform(24, *FLAT, asked(augment))
    opened, keys = Opened(photo(size)), keys_of(6)
    batch = transform([opened] * 6, keys)
    assert batch.shape == (6, 3, 24, 24)
    assert batch.dtype == torch.float32
    assert torch.equal(transform([opened] * 2, keys[3:5]), batch[3:5])
    test = transform([opened], None)[0]
    erasing = PhotoTransform(24, *FLAT, Augmentation("strong", erasing=1.0, cutout=6))
    assert torch.equal(erasing([opened], None)[0], test)
    if augment == "none":
        assert torch.equal(batch[0], test)
    elif size != (1, 1):
        assert not torch.equal(batch[0], batch[1])


def test_the_centre_of_a_photograph_is_tested():
    """The shorter side becomes 256/224 of the size, then the centre is cut out."""
    image = photo((512, 256)).convert("L").convert("RGB")
    expected = torch.from_numpy(np.array(image.crop((144, 16, 368, 240)))).permute(2, 0, 1) / 255
    transform = PhotoTransform(224, *PLAIN, asked("standard"))
    torch.testing.assert_close(transform([Opened(image)], None)[0], expected)


@pytest.mark.parametrize(
    ("move", "augment", "channels"),
    pairwise(["crop", "affine"], ["none", "standard", "strong", "erasing"], [1, 3]),
)
def test_a_batch_equals_torchvision_image_by_image(move, augment, channels):
    """Bit for bit: torchvision's own transforms, each image's with the generator seeded by its key."""
    count, size = 400, 14
    images, keys = noise(count, channels, size), keys_of(count)
    images[::5] //= 3  # something for contrast and equalisation to do
    statistics = (0.4,) * channels, (0.3,) * channels
    ready = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics)])
    moved = images
    if augment in ("standard", "strong"):
        if move == "crop":
            moved = crop_and_flip(images, windows(keys, 2), 2)
        else:
            moved = affine(images, small_maps(keys, 2.0 if augment == "strong" else 1.0))
    theirs = [ready]
    if augment == "strong":
        colours = [v2.TrivialAugmentWide()] if move == "crop" else []
        theirs = [*colours, ready, v2.RandomErasing(0.25)]
    ours = asked(augment)
    if augment == "erasing":  # on its own, with its own probability
        theirs, ours = [ready, v2.RandomErasing(0.6)], Augmentation("none", erasing=0.6)
    expected = torch.stack(seeded_each(v2.Compose(theirs), moved, keys))
    assert torch.equal(ArrayTransform(size, *statistics, ours, move)(images, keys), expected)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 9, 13), (3, 2, 2)])
def test_every_operation_of_trivial_augment_equals_torchvision(channels, height, width):
    generator = torch.Generator().manual_seed(0)
    shape = (700, channels, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images[::3] = images[::3] // 4 + 60
    images[5::97] = 7  # nothing to stretch or equalise
    keys, before = keys_of(700), images.clone()
    operation, row, _ = trivial_augment.draw(torch_words(keys, trivial_augment.WORDS))
    assert set(operation) == set(range(14))
    assert len(set(zip(operation, row, strict=True))) > 250
    expected = torch.stack(seeded_each(v2.TrivialAugmentWide(), images, keys))
    assert torch.equal(trivial_augment.augment(images, operation, row), expected)
    assert torch.equal(images, before)


@pytest.mark.parametrize("move", ["crop", "affine"])
def test_finishing_reads_nothing_back_from_the_device(move):
    """Tensors of the meta device have no values, so whatever depends on one fails."""
    more = Augmentation("strong", erasing=0.5, cutout=4)
    transform = ArrayTransform(12, *PLAIN, more, move)
    images, draws = transform.load(noise(400), keys_of(400))
    assert transform.finish(images.to("meta"), draws).shape == (400, 3, 12, 12)


@pytest.mark.parametrize("augment", ["standard", "strong"])
def test_a_photograph_is_cut_and_coloured_as_torchvision_does(augment):
    """But for the resizing, which rounds by at most one level: the photograph is one flat colour."""
    image, keys, size = Image.new("RGB", (90, 60), (200, 90, 30)), keys_of(60), 24
    crop = [v2.RandomResizedCrop(size, scale=(0.35, 1.0)), v2.RandomHorizontalFlip()]
    ready = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*FLAT)]
    strong = [v2.TrivialAugmentWide(), *ready, v2.RandomErasing(0.25)]
    whole = v2.Compose([*crop, *(strong if augment == "strong" else ready)])
    expected = torch.stack(seeded_each(whole, [image] * 60, keys))
    assert torch.equal(
        PhotoTransform(size, *FLAT, asked(augment))([Opened(image)] * 60, keys), expected
    )


@pytest.mark.parametrize("scale", [(0.35, 1.0), (0.5, 0.5)])
def test_a_crop_of_a_photograph_is_torchvisions_within_a_level(scale):
    keys, size = keys_of(40), 24
    crop = [v2.RandomResizedCrop(size, scale=scale), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    expected = torch.stack(seeded_each(v2.Compose(crop), [photo()] * 40, keys)).int()
    transform = PhotoTransform(size, *PLAIN, Augmentation("standard", crop_scale=scale))
    got, draws = transform.load([Opened(photo())] * 40, keys)
    assert draws == {}
    assert int((got - expected).abs().max()) <= 1


@pytest.mark.parametrize(
    ("size", "reduced"),
    [((255, 300), 1), ((511, 600), 1), ((512, 600), 2), ((5000, 1100), 4), ((2048, 2100), 8)],
)
def test_a_test_photograph_is_reduced_to_no_less_than_it_needs(size, reduced):
    opened = Opened(Image.new("RGB", size))
    PhotoTransform(224, *FLAT, asked("standard")).load([opened], None)
    assert opened.reduced == [reduced]


def test_a_reduced_photograph_shows_the_same(tmp_path):
    y, x = np.mgrid[:600, :800] / 40
    waves = np.stack([np.sin(x + shift) * np.cos(y) for shift in range(3)], axis=-1)
    path = tmp_path / "waves.jpg"
    Image.fromarray((127 + 120 * waves).astype(np.uint8)).save(path, quality=95)
    transform, keys = PhotoTransform(32, *PLAIN, asked("standard")), keys_of(12)
    with Image.open(path) as image:
        whole = Opened(image.convert("RGB"))
    for chosen in (keys, None):
        reduced = transform([Photo(path, "x") for _ in keys], chosen)
        full = transform([whole] * len(keys), chosen)
        assert max(whole.reduced[-len(keys) :]) >= 4
        assert 0 < (reduced - full).abs().mean() < 0.02  # a crop's edges are whole pixels


def test_a_square_of_cutout_is_about_any_pixel():
    """DeVries and Taylor's: it may reach over the border, where less is cut out."""
    keys, images, size, side = keys_of(2000), noise(2000), 12, 4
    cut = ArrayTransform(size, *FLAT, Augmentation("none", cutout=side), "crop")(images, keys)
    whole = ArrayTransform(size, *FLAT, Augmentation("none"), "crop")(images, keys)
    middles = squares(keys, size, side)[:, :2] + side // 2
    assert set(middles.flatten()) == set(range(size))
    for one, other, (down, across) in zip(cut, whole, middles, strict=True):
        other[:, max(0, down - 2) : down + 2, max(0, across - 2) : across + 2] = 0
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("policy", "theirs"),
    [
        ("autoaugment", v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)),
        ("randaugment", v2.RandAugment(3, 12)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_policy_is_torchvisions_behind_crop_and_flip(policy, theirs, channels):
    images, keys = noise(6, channels, 16), keys_of(6)
    augmentation = Augmentation("standard", policy=policy, operations=3, magnitude=12)
    ours = ArrayTransform(16, (0.0,) * channels, (1.0,) * channels, augmentation, "crop")
    moved = crop_and_flip(images, windows(keys, 2), 2)
    expected = torch.stack(seeded_each(theirs, moved, keys)).float() / 255
    torch.testing.assert_close(ours(images, keys), expected, rtol=0, atol=1e-6)
    assert torch.equal(ours(images[2:4], keys[2:4]), ours(images, keys)[2:4])
    with pytest.raises(UserError, match="is for grey and colour images, and these have 2 channels"):
        ArrayTransform(16, (0.0,) * 2, (1.0,) * 2, augmentation, "crop")
