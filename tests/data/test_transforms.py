"""Augmentation: what it does to the pixels, and that an image's key alone decides it."""

import numpy as np
import pytest
import torch

from spiketriton.data.draws import mix, uniforms
from spiketriton.data.transforms import ArrayTransform, PhotoTransform, affine, crop_and_flip
from tests.small_data import noise_image


def keys_of(count: int) -> np.ndarray:
    return mix(7, np.arange(count))


def noise(count: int, channels: int = 3, size: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


def test_crop_and_flip_equals_slicing_one_image_at_a_time():
    images, keys, padding = noise(50)[..., :9], keys_of(50), 3
    batch = crop_and_flip(images, keys, padding)
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
    moved = affine(images, keys_of(400), reach=1.0)
    still = affine(images, keys_of(400), reach=0.0)
    torch.testing.assert_close(still, images / 255, atol=1e-5, rtol=0)
    y, x = np.unravel_index(moved.flatten(1).argmax(1).numpy(), (33, 33))
    shift = np.stack([x, y]) - 16
    # 0.1 of half the image's 33 pixels, give or take the scale
    assert 1 <= np.abs(shift).max() <= 3
    assert (np.abs(shift.mean(1)) < 0.3).all()


def arrays(move: str, augment: str, size: int, channels: int = 3) -> ArrayTransform:
    return ArrayTransform(size, (0.5,) * channels, (0.25,) * channels, augment, move)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [12, 17])
@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
@pytest.mark.parametrize("move", ["crop", "affine"])
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


def test_smaller_images_are_averages_not_samples():
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[..., ::4] = 255  # one column of four: sampling at 4 x 4 would see none or all
    out = arrays("crop", "none", 4)(images, None) * 0.25 + 0.5
    assert 0.15 < float(out.min()) <= float(out.max()) < 0.4


def test_strong_moves_characters_twice_as_far():
    images, keys = noise(100, 1), keys_of(100)
    strong = arrays("affine", "strong", 12, 1)(images, keys)
    moved = (affine(images, keys, reach=2.0) - 0.5) / 0.25
    unerased = (strong == moved).flatten(1).all(1).float().mean()
    assert 0.55 < float(unerased) < 0.9  # all but the quarter that was erased


def test_strong_erases_and_changes_colours_beyond_standard():
    images, keys = torch.full((200, 3, 16, 16), 255, dtype=torch.uint8), keys_of(200)
    standard = arrays("crop", "standard", 16)(images, keys)
    strong = arrays("crop", "strong", 16)(images, keys)
    # standard shows white and the black border only; erasing writes the mean, which is 0
    assert set(standard.unique().tolist()) == {-2.0, 2.0}
    erased = (strong == 0).all(1).flatten(1).any(1).float().mean()
    assert 0.1 < float(erased) < 0.45  # a quarter of the images
    assert len(strong.unique()) > 10


def test_characters_are_never_mirrored():
    images = torch.zeros(300, 1, 16, 16, dtype=torch.uint8)
    images[..., :, :4] = 255  # bright on the left
    moved = affine(images, keys_of(300), reach=2.0)
    assert bool((moved[..., :8].sum((1, 2, 3)) > moved[..., 8:].sum((1, 2, 3))).all())


@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
@pytest.mark.parametrize("size", [(64, 48), (31, 90), (300, 20), (1, 1)])
def test_photographs_of_any_size(size, augment):
    transform = PhotoTransform(24, (0.5,) * 3, (0.25,) * 3, augment)
    photo = noise_image(np.random.default_rng(0), "RGB", size)
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
    transform = PhotoTransform(224, (0.0,) * 3, (1.0,) * 3, "standard")
    expected = torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 255
    torch.testing.assert_close(transform([photo], None)[0], expected)
