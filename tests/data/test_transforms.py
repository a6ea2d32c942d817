"""Augmentation: what it does to the pixels, and that an image's key alone decides it."""

from functools import partial

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
    erased_boxes,
    seeded_each,
    small_maps,
    squares,
    windows,
)
from spiketriton.errors import UserError
from tests.covering import pairwise
from tests.small_data import noise_image

ZERO, ONE = (0.0,) * 3, (1.0,) * 3


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


def test_affine_moves_a_little_and_keeps_the_identity_between():
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


def arrays(move: str, augment: str, size: int, channels: int = 3) -> ArrayTransform:
    return ArrayTransform(size, (0.5,) * channels, (0.25,) * channels, asked(augment), move)


@pytest.mark.parametrize(
    ("move", "augment", "size", "channels"),
    pairwise(["crop", "affine"], ["none", "standard", "strong"], [12, 17], [1, 3]),
)
def test_an_image_does_not_depend_on_its_neighbours(move, augment, size, channels):
    """Bit for bit, or the number of ranks would change a run."""
    transform = arrays(move, augment, size, channels)
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


@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
@pytest.mark.parametrize("move", ["crop", "affine"])
def test_test_images_are_only_normalised(move, augment):
    images = noise(5)
    expected = (images / 255 - 0.5) / 0.25
    torch.testing.assert_close(arrays(move, augment, 12)(images, None), expected)


def test_characters_are_never_mirrored():
    images = torch.zeros(300, 1, 16, 16, dtype=torch.uint8)
    images[..., :, :4] = 255  # bright on the left
    moved = affine(images, small_maps(keys_of(300), reach=2.0))
    assert bool((moved[..., :8].sum((1, 2, 3)) > moved[..., 8:].sum((1, 2, 3))).all())


@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
@pytest.mark.parametrize("size", [(64, 48), (300, 20), (1, 1)])
def test_photographs_of_any_size(size, augment):
    transform = PhotoTransform(24, (0.5,) * 3, (0.25,) * 3, asked(augment))
    photo = Opened(noise_image(np.random.default_rng(0), "RGB", size))
    keys = keys_of(6)
    batch = transform([photo] * 6, keys)
    assert batch.shape == (6, 3, 24, 24)
    assert batch.dtype == torch.float32
    assert torch.equal(transform([photo] * 2, keys[3:5]), batch[3:5])
    tests = transform([photo] * 2, None)
    assert torch.equal(tests[0], tests[1])
    if augment == "none":
        assert torch.equal(batch[0], tests[0])
    elif size != (1, 1):
        assert not torch.equal(batch[0], batch[1])


def test_the_centre_of_a_photograph_is_tested():
    """The shorter side becomes 256/224 of the size, then the centre is cut out."""
    photo = noise_image(np.random.default_rng(0), "L", (512, 256)).convert("RGB")
    cut = photo.crop((144, 16, 368, 240))
    transform = PhotoTransform(224, (0.0,) * 3, (1.0,) * 3, asked("standard"))
    expected = torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 255
    torch.testing.assert_close(transform([Opened(photo)], None)[0], expected)


@pytest.mark.parametrize(
    ("move", "augment", "channels"),
    pairwise(["crop", "affine"], ["none", "standard", "strong"], [1, 3]),
)
def test_a_batch_equals_torchvision_image_by_image(move, augment, channels):
    """Bit for bit: torchvision's own transforms, each image's with the generator seeded by its key."""
    count, size = 400, 14
    images, keys = noise(count, channels, size), keys_of(count)
    images[::5] //= 3  # something for contrast and equalisation to do
    statistics = (0.4,) * channels, (0.3,) * channels
    ready = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics)])
    moved = images
    if augment != "none" and move == "crop":
        moved = crop_and_flip(images, windows(keys, 2), 2)
    elif augment != "none":
        moved = affine(images, small_maps(keys, 2.0 if augment == "strong" else 1.0))
    colours = [v2.TrivialAugmentWide()] if move == "crop" else []
    strong = v2.Compose([*colours, ready, v2.RandomErasing(0.25)])
    expected = torch.stack(
        seeded_each(strong, moved, keys) if augment == "strong" else [ready(one) for one in moved]
    )
    transform = ArrayTransform(size, *statistics, asked(augment), move)
    assert torch.equal(transform(images, keys), expected)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 9, 13), (3, 2, 2)])
def test_every_operation_of_trivial_augment_equals_torchvision(channels, height, width):
    count = 700
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images[::3] = images[::3] // 4 + 60
    images[5::97] = 7  # nothing to stretch or equalise
    keys = keys_of(count)
    operation, row, _ = trivial_augment.draw(torch_words(keys, trivial_augment.WORDS))
    assert set(operation) == set(range(14))
    assert len(set(zip(operation, row, strict=True))) > 250
    expected = torch.stack(seeded_each(v2.TrivialAugmentWide(), images, keys))
    before = images.clone()
    assert torch.equal(trivial_augment.augment(images, operation, row), expected)
    assert torch.equal(images, before)


def test_words_are_those_of_torchs_generator():
    keys = np.array([0, 1, 2**32 + 5, 2**64 - 1], dtype=np.uint64)
    for key, words in zip(keys, torch_words(keys, 700).tolist(), strict=True):
        generator = torch.Generator().manual_seed(int(key))
        drawn = [int(torch.randint(1009, (), generator=generator)) for _ in words]
        assert drawn == [word % 1009 for word in words]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 40), (1, 1)])
def test_boxes_are_those_of_random_erasing(height, width):
    keys, pixels = keys_of(2000), torch.ones(3, height, width)
    boxes = erased_boxes(torch_words(keys, 23), np.zeros(2000, np.int64), height, width, 0.25)
    erasing = v2.RandomErasing(0.25)
    for box, image in zip(boxes, seeded_each(erasing, [pixels] * 2000, keys), strict=True):
        top, left, high, wide = box
        expected = pixels.clone()
        expected[:, top : top + high, left : left + wide] = 0
        assert torch.equal(image, expected)
    assert (boxes[:, 2] > 0).any() == (height * width > 1)


@pytest.mark.parametrize("move", ["crop", "affine"])
def test_finishing_reads_nothing_back_from_the_device(move):
    """Tensors of the meta device have no values, so whatever depends on one fails."""
    more = Augmentation("strong", erasing=0.5, cutout=4)
    transform = ArrayTransform(12, ZERO, ONE, more, move)
    images, draws = transform.load(noise(400), keys_of(400))
    assert transform.finish(images.to("meta"), draws).shape == (400, 3, 12, 12)


@pytest.mark.parametrize("augment", ["standard", "strong"])
def test_a_photograph_is_cut_and_coloured_as_torchvision_does(augment):
    """But for the resizing, which rounds by at most one level: the photograph is one flat colour."""
    photo, keys, size = Image.new("RGB", (90, 60), (200, 90, 30)), keys_of(60), 24
    statistics = (0.4,) * 3, (0.3,) * 3
    crop = [v2.RandomResizedCrop(size, scale=(0.35, 1.0)), v2.RandomHorizontalFlip()]
    ready = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics)]
    strong = [v2.TrivialAugmentWide(), *ready, v2.RandomErasing(0.25)]
    whole = v2.Compose([*crop, *(strong if augment == "strong" else ready)])
    expected = torch.stack(seeded_each(whole, [photo] * 60, keys))
    got = PhotoTransform(size, *statistics, asked(augment))([Opened(photo)] * 60, keys)
    assert torch.equal(got, expected)


def test_a_crop_of_a_photograph_is_torchvisions_within_a_level():
    photo, keys, size = noise_image(np.random.default_rng(0), "RGB", (90, 60)), keys_of(40), 24
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.35, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    expected = torch.stack(seeded_each(crop, [photo] * 40, keys)).int()
    transform = PhotoTransform(size, (0.0,) * 3, (1.0,) * 3, asked("standard"))
    got, draws = transform.load([Opened(photo)] * 40, keys)
    assert draws == {}
    assert int((got - expected).abs().max()) <= 1


@pytest.mark.parametrize(
    ("size", "reduced"),
    [((255, 300), 1), ((256, 900), 1), ((511, 600), 1), ((512, 600), 2), ((5000, 1100), 4)],
)
def test_a_test_photograph_is_reduced_to_no_less_than_it_needs(size, reduced):
    photo = Opened(Image.new("RGB", size))
    PhotoTransform(224, (0.5,) * 3, (0.5,) * 3, asked("standard")).load([photo], None)
    assert photo.reduced == [reduced]


def test_a_random_crop_is_reduced_to_no_less_than_it_needs():
    transform, keys = PhotoTransform(24, (0.5,) * 3, (0.5,) * 3, asked("standard")), keys_of(60)
    for key in keys:
        photo = Opened(Image.new("RGB", (200, 150)))
        transform.load([photo], np.array([key]))
        (window,) = seeded_each(transform.crop.make_params, [[photo.image]], [key])
        smaller = min(window["height"], window["width"])
        (by,) = photo.reduced
        assert smaller // by >= 24
        assert by == 8 or smaller // (2 * by) < 24


def test_a_reduced_photograph_shows_the_same(tmp_path):
    y, x = np.mgrid[:600, :800] / 40
    waves = np.stack([np.sin(x + shift) * np.cos(y) for shift in range(3)], axis=-1)
    Image.fromarray((127 + 120 * waves).astype(np.uint8)).save(tmp_path / "w.jpg", quality=95)
    path, transform, keys = (
        tmp_path / "w.jpg",
        PhotoTransform(32, ZERO, ONE, asked("standard")),
        keys_of(12),
    )
    assert [Photo(path, "x").decode(reduce=by).size for by in (1, 2, 8)] == [
        (800, 600),
        (400, 300),
        (100, 75),
    ]
    with Image.open(path) as image:
        whole = Opened(image.convert("RGB"))
    for chosen in (keys, None):
        reduced = transform([Photo(path, "x") for _ in keys], chosen)
        full = transform([whole] * len(keys), chosen)
        assert max(whole.reduced[-len(keys) :]) >= 4
        assert 0 < (reduced - full).abs().mean() < 0.02  # a crop's edges are whole pixels


def test_erasing_on_its_own_is_random_erasing():
    """With its own probability, beside no preset."""
    images, keys, statistics = noise(200, size=14), keys_of(200), ((0.5,) * 3, (0.25,) * 3)
    erased = ArrayTransform(14, *statistics, Augmentation("none", erasing=0.6), "crop")(
        images, keys
    )
    ready = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics)]
    whole = v2.Compose([*ready, v2.RandomErasing(0.6)])
    assert torch.equal(erased, torch.stack(seeded_each(whole, images, keys)))


def test_a_square_of_cutout_is_about_any_pixel():
    """DeVries and Taylor's: it may reach over the border, where less is cut out."""
    keys, size, side = keys_of(2000), 12, 4
    images = noise(2000)
    statistics = size, (0.5,) * 3, (0.25,) * 3
    cut = ArrayTransform(*statistics, Augmentation("none", cutout=side), "crop")(images, keys)
    whole = ArrayTransform(*statistics, Augmentation("none"), "crop")(images, keys)
    middles = squares(keys, size, side)[:, :2] + side // 2
    assert set(middles.flatten()) == set(range(size))
    for one, other, (down, across) in zip(cut, whole, middles, strict=True):
        rows = slice(max(0, down - 2), down + 2)
        columns = slice(max(0, across - 2), across + 2)
        expected = other.clone()
        expected[:, rows, columns] = 0
        assert torch.equal(one, expected)


def test_erasing_and_cutout_change_no_test_image():
    more = Augmentation("strong", erasing=1.0, cutout=6)
    images, photo = noise(5), Opened(Image.new("RGB", (30, 20), (200, 90, 30)))
    statistics = 12, (0.5,) * 3, (0.25,) * 3
    for make, given in (
        (PhotoTransform, [photo] * 5),
        (partial(ArrayTransform, move="crop"), images),
    ):
        assert torch.equal(
            make(*statistics, more)(given, None),
            make(*statistics, Augmentation("none"))(given, None),
        )


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.5)])
def test_a_crop_takes_the_share_that_is_asked_for(scale):
    photo, keys, size = Image.new("RGB", (90, 60), (200, 90, 30)), keys_of(60), 24
    transform = PhotoTransform(size, ZERO, ONE, Augmentation("standard", crop_scale=scale))
    ours = seeded_each(transform.crop.make_params, [[photo]] * 60, keys)
    theirs = seeded_each(v2.RandomResizedCrop(size, scale=scale).make_params, [[photo]] * 60, keys)
    assert ours == theirs
    shares = [one["height"] * one["width"] / 5400 for one in ours]
    assert min(shares) == pytest.approx(scale[0], abs=0.1)
    if scale[0] == scale[1]:
        assert max(shares) == pytest.approx(scale[1], abs=0.02)


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
    expected = []
    for image, window, key in zip(images, windows(keys, 2), keys, strict=True):
        torch.manual_seed(int(key))
        expected.append(theirs(crop_and_flip(image[None], window[None], 2)[0]).float() / 255)
    torch.testing.assert_close(ours(images, keys), torch.stack(expected), rtol=0, atol=1e-6)
    assert torch.equal(ours(images[2:4], keys[2:4]), ours(images, keys)[2:4])
    with pytest.raises(UserError, match="is for grey and colour images, and these have 2 channels"):
        ArrayTransform(16, (0.0,) * 2, (1.0,) * 2, augmentation, "crop")
