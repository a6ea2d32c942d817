"""build_data: what a recipe asks of its data, checked before any image is read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spiketriton.config.parts import PARTS
from spiketriton.data import build_data
from spiketriton.data.digits import digits
from spiketriton.data.sources import Source
from spiketriton.data.splits import ArraySplit, FileSplit
from tests.small_data import all_of, data_recipe, make_class_tree, mentions, mistake, take


@pytest.mark.parametrize(
    ("data", "train", "words"),
    [
        ("", "batch_size = 2000", "train.batch_size = 2,000 is more than the 1,437 training images"),
        ("train_images = 100", "batch_size = 128", "100 training images of digits (data.train_images = 100"),
        ("train_images = 5000", "", "data.train_images = 5,000, but digits has only 1,437 images"),
        ("test_images = 5000", "", "data.test_images = 5,000, but digits has only 360 images"),
        ("", "batch_size = 24\nmicro_batch = 8", "train.micro_batch = 8 on 2 ranks; accepted: a multiple of 16"),
    ],
)  # fmt: skip
def test_counts_that_the_data_set_cannot_give(data, train, words):
    mentions(mistake(data_recipe("digits", data=data, train=train), world_size=2), words)


@pytest.mark.parametrize(
    ("train", "world_size", "accumulate", "test_batch"),
    [
        ("batch_size = 24", 1, 1, 24),
        ("batch_size = 24\naccumulate = 3", 2, 3, 4),
        ("batch_size = 24\nmicro_batch = 3", 2, 4, 3),
        ('batch_size = 24\nmicro_batch = "auto"', 2, 1, 12),
    ],
)
def test_a_step_is_divided_into_micro_batches_and_ranks(train, world_size, accumulate, test_batch):
    data = build_data(data_recipe("digits", train=train), rank=1, world_size=world_size)
    assert (data.train.accumulate, data.train.world_size, data.train.rank) == (
        *(accumulate, world_size, 1),
    )
    assert (data.test.batch_size, data.test.world_size, data.test.rank) == (
        *(test_batch, world_size, 1),
    )
    images, labels = next(data.train.from_step(0))
    assert len(images) == len(labels) == test_batch


@pytest.mark.parametrize(
    ("cuda", "device", "pinned"), [(1, "auto", 1), (0, "auto", 0), (1, "cpu", 0)]
)
def test_pages_are_pinned_and_workers_chosen_for_a_gpu(monkeypatch, cuda, device, pinned):
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(cuda))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    asked = {}
    monkeypatch.setattr("spiketriton.data.auto_workers", lambda **given: asked.update(given) or 0)
    recipe = data_recipe("digits", data='workers = "auto"', train=f'device = "{device}"')
    data = build_data(recipe, world_size=4)
    assert data.train.loading.pin_memory == bool(pinned)
    assert asked == {"in_memory": True, "cuda": bool(pinned), "ranks_here": 3}


def test_a_single_class(tmp_path):
    make_class_tree(tmp_path, ("train", "val"), ("cat",), 1)
    mentions(mistake(data_recipe("imagefolder", tmp_path)), "only one class, cat")


def test_subsets_are_fixed_and_need_no_seed():
    extra = "train_images = 12\ntest_images = 5\nimage_size = 21"
    one, two = (build_data(data_recipe("digits", data=extra, seed=seed)) for seed in (0, 1))
    assert (one.train.images, one.test.images, one.train.steps_per_epoch) == (12, 5, 3)
    assert np.array_equal(one.train.members, two.train.members)
    assert one.train.members.max() > 12  # not simply the first ones
    assert all_of(one.test)[0].shape == (5, 1, 21, 21)


@pytest.mark.parametrize(
    ("line", "move"), [("crop_scale = [0.1, 1.0]", "crop"), ("erasing = 0.5", "events")]
)
def test_keys_without_effect_on_the_images_of_a_plugin_are_refused(monkeypatch, line, move):
    """No rule of recipes knows what it will make; here it stands in for the image folders."""
    made = replace(digits(data_recipe("digits", "x").data), move=move)
    stand_in(monkeypatch, "imagefolder", lambda config: made)
    message = mistake(data_recipe("imagefolder", "x", data=f"augmentation.{line}"))
    mentions(message, f"data.augmentation.{line} has no effect", f'that move as "{move}"')


def stand_in(monkeypatch, name, make):
    monkeypatch.setitem(PARTS, ("data", name), replace(PARTS["data", name], make=make))


IMAGES, LABELS = np.zeros((20, 1, 16, 16), np.uint8), np.arange(20) % 3
SPLIT = ArraySplit(IMAGES, LABELS)
SOUND = Source(
    train=SPLIT, test=SPLIT, classes=("a", "b", "c"), channels=1, image_size=16,
    statistics=((0.5,), (0.3,)), move="crop",
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": ArraySplit(IMAGES, LABELS + 1)}, "train has labels from 1 to 3; accepted with 3 classes: 0 to 2"),
        ({"test": ArraySplit(IMAGES, LABELS - 1)}, "test has labels from -1 to 1"),
        ({"train": ArraySplit(IMAGES, LABELS / 2)}, "train has labels of shape [20] and torch.float32"),
        ({"train": ArraySplit(IMAGES[:9], LABELS)}, "train holds 9 images and 20 labels"),
        ({"test": ArraySplit(IMAGES[:0], LABELS[:0])}, "test holds no images"),
        ({"train": ArraySplit(IMAGES.astype(np.int16), LABELS)}, "train: images of torch.int16; accepted: uint8"),
        ({"test": ArraySplit(IMAGES + 4080.0, LABELS)}, "test: images with values from 4080 to 4080"),
        ({"train": ArraySplit(IMAGES - 0.5, LABELS)}, "train: images with values from -0.5 to -0.5"),
        ({"channels": 3}, "train holds images of shape [20, 1, 16, 16]; accepted: [N, 3, height, width]"),
        ({"classes": ("a", "b", "a")}, "two classes are named 'a'"),
        ({"move": "nothing"}, "move 'nothing'; accepted: photo, crop, affine, events"),
        ({"move": "photo"}, 'move "photo" of images in memory (ArraySplit); accepted: "crop", "affine", or files'),
        ({"image_size": -1}, "image_size -1; accepted: 1 or more"),
        ({"statistics": ((0.5, 0.5), (0.3, 0.3))}, "accepted: a mean and a standard deviation above 0 for each of 1"),
        ({"statistics": ((0.5,), (0.0,))}, "statistics ((0.5,), (0.0,)); accepted: a mean and"),
        ({"augment": lambda image: image / 2}, "augment of the data set returned torch.float32 [1, 16, 16]"),
        ({"augment": lambda image: image[:, 1:]}, "returned torch.uint8 [1, 15, 16]; accepted: uint8 [1, 16, 16]"),
        ({"augment": lambda image: None}, "augment of the data set returned NoneType"),
        ({"augment": lambda image: image.no}, "augment of the data set: failed: AttributeError: 'Tensor' object has"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_rightly_is_refused(monkeypatch, changes, said):
    """As a plugin may make it; here it stands in for the digits."""
    monkeypatch.setattr(
        "spiketriton.system.errors.named_code", {}
    )  # of other tests in this process
    stand_in(monkeypatch, "digits", lambda config: replace(SOUND, **changes))
    mentions(mistake(data_recipe("digits")), 'data.name = "digits": ', said)


@pytest.mark.parametrize("scale", [1, 255])
def test_what_is_not_given_is_that_of_the_training_images_in_memory(scale):
    drawn = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 5)).astype(np.uint8)
    split = ArraySplit(drawn if scale == 1 else drawn / 255, LABELS[:7])
    found = Source(train=split, test=SPLIT, classes=("a", "b", "c"))
    assert (found.channels, found.image_size, found.move) == (3, 5, "crop")
    pixels = drawn.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(found.statistics, [pixels.mean(1), pixels.std(1, ddof=1)], rtol=1e-5)
    given = replace(found, channels=1, image_size=9, statistics=((0.0,), (1.0,)), move="affine")
    assert (given.channels, given.image_size, given.statistics) == (1, 9, ((0.0,), (1.0,)))


def test_what_files_cannot_tell_is_asked_for(monkeypatch):
    files = FileSplit([("0.png", 0)], ("a",))
    made = Source(train=files, test=files, classes=("a", "b"), move="photo")
    stand_in(monkeypatch, "digits", lambda config: made)
    mentions(mistake(data_recipe("digits")), "image_size 0; accepted: 1 or more")


def noisy(image):
    return torch.randint(256, image.shape, dtype=torch.uint8)


def test_an_augmentation_of_ones_own_depends_on_image_and_epoch_alone(monkeypatch):
    names = np.arange(20, dtype=np.uint8)[:, None, None, None]  # images that tell which they are
    split = ArraySplit(np.broadcast_to(names, IMAGES.shape), np.arange(20) % 3)
    seen = lambda image: torch.where(torch.rand(()) < 0.5, image, noisy(image))  # noqa: E731
    made = replace(SOUND, train=split, test=split, augment=seen)
    stand_in(monkeypatch, "digits", lambda config: made)

    def batches(step: int, count: int, **more: str):
        return [
            images for images, _ in take(build_data(data_recipe("digits", **more)), count, step)
        ]

    before = torch.get_rng_state()
    all_steps = batches(0, 10)  # two epochs
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(torch.cat(all_steps[:5]).sort(0)[0], torch.cat(all_steps[5:]).sort(0)[0])
    for later in (batches(7, 3), batches(7, 3, data="workers = 2")):
        assert all(map(torch.equal, later, all_steps[7:]))
    plain = batches(0, 5, data='augment = "none"')
    assert all((images == images[:, :, :1, :1]).all() for images in plain)
    changed = sum(
        int((a != b).flatten(1).any(1).sum()) for a, b in zip(all_steps, plain, strict=False)
    )
    assert 3 <= changed <= 17, "of twenty images about half"
    tested = all_of(build_data(data_recipe("digits")).test)[0]
    assert (tested == tested[:, :, :1, :1]).all()
    message = mistake(data_recipe("digits", data='augment = "strong"'))
    mentions(message, 'data.augment = "strong" has no effect', "an augmentation of their own")


@pytest.mark.parametrize("move", ["crop", "affine"])
def test_images_of_floats_are_those_of_bytes(monkeypatch, move):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, IMAGES.shape).astype(np.uint8)
    shown = []
    for given in (pixels, (pixels / 255).astype(np.float32)):
        made = replace(SOUND, train=ArraySplit(given, LABELS), move=move)
        stand_in(monkeypatch, "digits", lambda config, made=made: made)
        recipe = data_recipe("digits", data='augment = "strong"')
        shown.append(next(build_data(recipe).train.from_step(0))[0])
    assert shown[0].std() > 0.1
    assert (shown[0] == shown[1]).all()
