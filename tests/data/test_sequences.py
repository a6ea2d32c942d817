"""Sequences: their split, statistics, padding, changes in time; and images that are shown as sequences."""

import numpy as np
import pytest
import torch

from spiketriton.config import recipe_from_toml
from spiketriton.data import build_data
from spiketriton.data.sequences import TimeMoves, given_sequences, resampled, unrolled
from spiketriton.data.sources import ArraySplit, SequenceSplit, Source
from spiketriton.plugins import data as register
from spiketriton.system.errors import UserError
from tests.small_data import data_recipe, mentions, mistake, take
from tests.small_sequences import CHANNELS, STEPS, sequence_recipe, tones


def raw(split, index):
    return split.values[index][: split.lengths[index]]


def test_statistics_are_those_of_the_valid_steps_of_each_channel():
    split = tones(30)
    valid = torch.cat([raw(split, i) for i in range(30)]).double()
    means, stds = split.statistics()
    assert means == pytest.approx(valid.mean(0).tolist(), rel=1e-6)
    assert stds[:2] == pytest.approx(valid.std(0, correction=0)[:2].tolist(), rel=1e-6)
    assert stds[2] == 1.0  # it never changes
    whole = torch.zeros(30, STEPS, CHANNELS)
    for i in range(30):
        whole[i, : split.lengths[i]] = raw(split, i)
        whole[i, split.lengths[i] :] = 1e6  # whatever is behind the end
    padded = SequenceSplit(whole, split.labels, split.lengths)
    assert padded.statistics() == split.statistics()
    assert torch.equal(padded.read(np.array([3]))[0], split.read(np.array([3]))[0])


def test_a_batch_is_time_first_normalised_and_zero_behind_the_end():
    data = build_data(sequence_recipe("data.augment=none"))
    assert data.facts.image_shape == (CHANNELS,)
    assert data.facts.frames == STEPS
    source = tones(64, 0)
    mean = float(source.lengths.double().mean())
    assert data.note == (
        f"of the 12 steps of a sequence 7 to 12, {mean:.1f} on average are its own, the others padding"
    )
    means, stds = (torch.tensor(x, dtype=torch.float32) for x in source.statistics())
    for images, labels, lengths in take(data, 2):
        assert images.shape == (STEPS, 16, CHANNELS)
        assert images.dtype == torch.float32
        assert lengths.dtype == torch.int64
        assert (images[torch.arange(STEPS)[:, None] >= lengths] == 0).all()
        assert labels.shape == lengths.shape == (16,)
    tested = tones(20, 1)
    images, labels, lengths = next(iter(data.test))
    assert torch.equal(lengths, tested.lengths[:16])
    for i in range(16):
        expected = (raw(tested, i) - means) / stds
        torch.testing.assert_close(images[: lengths[i], i], expected)


def test_sequences_of_one_length_have_no_lengths():
    data = build_data(sequence_recipe("data.name=even_tones"))
    assert not data.facts.padded
    for batch in (*take(data, 1), next(iter(data.test))):
        assert len(batch) == 2
    assert data.note == ""
    longer = build_data(sequence_recipe("data.name=even_tones", "time_steps=20"))
    assert longer.note == "of the 20 steps of a sequence 12 are its own, the others padding"
    images, _, lengths = next(iter(longer.test))
    assert images.shape == (20, 16, CHANNELS)
    assert (lengths == STEPS).all()


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int64", "float16", "float64"])
def test_any_real_numbers_will_do(kind):
    values = np.arange(24).reshape(2, 4, 3).astype(kind)
    split = SequenceSplit(values, [0, 1])
    assert split.values.dtype == torch.float32
    assert np.array_equal(split.values.numpy(), values.astype("float32"))


@pytest.mark.parametrize("kind", ["uint16", "int64", "float64"])
def test_what_is_behind_the_end_of_a_sequence_may_be_anything(kind):
    """Padding is often NaN."""
    values = np.arange(24).reshape(2, 4, 3).astype(kind)
    if kind == "float64":
        values[0, 2:] = np.nan
        values[1, 3:] = np.inf
    split = SequenceSplit(values, [0, 1], [2, 3])
    first, second = split.read(np.array([0, 1]))
    assert np.array_equal(first.numpy(), values[0, :2])
    assert np.array_equal(second.numpy(), values[1, :3])
    valid = np.concatenate([values[0, :2], values[1, :3]])
    assert split.statistics()[0] == pytest.approx(valid.mean(0))
    with pytest.raises(UserError, match=r"not finite, the first at \[0, 1, 2\]"):
        SequenceSplit(np.where(values == 5, np.nan, values), [0, 1], [2, 3])


@pytest.mark.parametrize(
    ("values", "lengths", "words"),
    [
        (torch.zeros(3, 4), None, ("[3, 4]", "[N, T, C]")),
        (torch.zeros(3, 0, 2), None, ("[3, 0, 2]",)),
        (torch.zeros(3, 4, 2, dtype=torch.bool), None, ("torch.bool",)),
        (torch.full((3, 4, 2), torch.nan), None, ("not finite", "[0, 0, 0]")),
        ([torch.zeros(3, 2), torch.eye(2) / 0], None, ("sequence 1", "not finite", "[0, 0]")),
        (torch.zeros(3, 4, 2), [1, 5, 2], ("from 1 to 5", "1 to 4")),
        (torch.zeros(3, 4, 2), [0, 1, 2], ("from 0 to 2", "1 to 4")),
        (torch.zeros(3, 4, 2), [1, 2], ("[2]", "3 integers")),
        (torch.zeros(3, 4, 2), [1.0, 2.0, 3.0], ("torch.float32", "integers")),
        ([torch.zeros(3, 2), torch.zeros(3, 4)], None, ("[2, 4] channels",)),
        ([torch.zeros(3, 2)], [3], ("of its own",)),
        ([], None, ("no channels",)),
    ],
)
def test_what_is_no_sequence_is_refused(values, lengths, words):
    with pytest.raises(UserError) as error:
        SequenceSplit(values, torch.zeros(3, dtype=torch.int64), lengths)
    mentions(str(error.value), *words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["time_steps=11"], ("time_steps = 11", "12 steps", "time_steps = 12")),
        (["train.mixup=0.2"], ("mixup", "sequences")),
        (["data.image_size=8"], ("data.image_size = 8", "sequences")),
        (["data.sequence=rows"], ("data.sequence", "sequences")),
        (["data.augmentation.cutout=2"], ("cutout", "sequences")),
        (["data.augmentation.erasing=0.2"], ("erasing", "sequences")),
        (["data.augmentation.crop_scale=[0.5,0.9]"], ("crop_scale", "sequences")),
    ],
)
def test_what_does_not_fit_sequences_is_refused(overrides, words):
    mentions(mistake(sequence_recipe(*overrides)), *words)


def test_keys_of_time_have_no_effect_on_images():
    with pytest.raises(UserError, match="shift = 2 has no effect"):
        data_recipe("digits", data="augmentation.shift = 2")


def bad(train, test):
    return Source(train=train, test=test, classes=tuple("abcd"))


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (tones(8), SequenceSplit(torch.zeros(4, 5, 2), [0, 1, 2, 3]), ("2 channels", "3")),
        (tones(8), ArraySplit(np.zeros((4, 3, 2, 2), np.uint8), [0, 1, 2, 3]), ("ArraySplit",)),
        (SequenceSplit(torch.zeros(4, 5, 2), [0, 1, 2]), tones(8), ("4 sequences", "3 labels")),
        (SequenceSplit(torch.zeros(2, 5, 2), [0, 9]), tones(8), ("labels from 0 to 9",)),
    ],
)
def test_splits_that_do_not_fit_each_other_are_refused(train, test, words):
    register("bad_sequences")(lambda config: bad(train, test))
    recipe = sequence_recipe("data.name=even_tones")
    object.__setattr__(recipe.data, "name", "bad_sequences")
    mentions(mistake(recipe), *words)


def test_a_training_sequence_changes_by_its_key_alone_and_tests_do_not():
    keys = ["data.augmentation.shift=3", "data.augmentation.stretch=0.3"]
    keys += ["data.augmentation.mask_steps=2", "data.augmentation.mask_channels=1"]
    one, two = (build_data(sequence_recipe(*keys, f"data.workers={n}")) for n in (0, 1))
    plain = build_data(sequence_recipe("data.augment=none"))
    for ours, theirs in zip(take(one, 3), take(two, 3), strict=True):
        assert all(map(torch.equal, ours, theirs))
    moved, still = take(one, 1)[0], take(plain, 1)[0]
    assert not torch.equal(moved[0], still[0])
    assert torch.equal(moved[1], still[1])
    assert (moved[2] != still[2]).any()
    assert 1 <= moved[2].min() <= moved[2].max() <= STEPS
    for ours, theirs in zip(one.test, plain.test, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_presets_say_how_far_sequences_move():
    def moves(*overrides):
        return TimeMoves.of(sequence_recipe(*overrides).data, 64, 40)

    assert moves("data.augment=none") == TimeMoves()
    assert moves() == TimeMoves(shift=4, stretch=0.1)
    assert moves("data.augment=strong") == TimeMoves(
        shift=4, stretch=0.1, mask_steps=8, mask_channels=5
    )
    assert moves("data.augmentation.shift=1").shift == 1


def test_the_moves_do_what_they_say():
    x = torch.arange(1.0, 7).unsqueeze(1).expand(6, 2)
    later = TimeMoves(shift=2).moved(x, [0, 0.999, 0, 0, 0, 0], 8)
    assert later[:, 0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert TimeMoves(shift=2).moved(x, [0, 0.999, 0, 0, 0, 0], 7)[:, 0].tolist()[-1] == 5
    earlier = TimeMoves(shift=2).moved(x, [0, 0.0, 0, 0, 0, 0], 8)
    assert earlier[:, 0].tolist() == [3, 4, 5, 6]
    assert len(TimeMoves(shift=9).moved(x, [0, 0.0, 0, 0, 0, 0], 8)) == 1
    longer = TimeMoves(stretch=0.5).moved(x, [1.0, 0, 0, 0, 0, 0], 20)
    assert longer[:, 0].tolist() == pytest.approx(np.linspace(1, 6, 9).tolist())
    assert len(TimeMoves(stretch=0.5).moved(x, [1.0, 0, 0, 0, 0, 0], 7)) == 7
    masked = TimeMoves(mask_steps=2).moved(x, [0, 0, 0.999, 0.5, 0, 0], 8)
    assert masked[:, 1].tolist() == [1, 2, 0, 0, 5, 6]
    masked = TimeMoves(mask_channels=1).moved(x, [0, 0, 0, 0, 0.999, 0.999], 8)
    assert masked.sum(0).tolist() == [21, 0]
    assert x.sum() == 42  # as it was
    assert torch.equal(resampled(x, 6), x)


ORDERS = {
    "rows": lambda x: x.permute(2, 0, 1, 3).reshape(4, 5, -1),
    "columns": lambda x: x.permute(3, 0, 1, 2).reshape(4, 5, -1),
    "pixels": lambda x: x.reshape(5, 2, 16).permute(2, 0, 1),
}


@pytest.mark.parametrize("order", ORDERS)
def test_an_image_is_unrolled(order):
    images = torch.randn(5, 2, 4, 4)
    assert torch.equal(unrolled(images, order, 0), ORDERS[order](images))


def test_pixels_are_permuted_by_one_order_of_the_seed():
    images = torch.arange(16.0).view(1, 1, 4, 4).repeat(3, 1, 1, 1)
    first, again, other = (unrolled(images, "permuted", seed)[:, :, 0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first[:, 0].sort().values.tolist() == list(range(16))
    assert (first[:, :1] == first).all()


@pytest.mark.parametrize(
    ("order", "steps", "features"), [("rows", 16, 16), ("columns", 16, 16), ("permuted", 64, 1)]
)
def test_any_images_are_shown_as_sequences(order, steps, features):
    size = "image_size = 8\n" if order == "permuted" else ""
    recipe = recipe_from_toml(
        f'time_steps = {steps}\n[data]\nname = "digits"\nworkers = 0\nsequence = "{order}"\n{size}'
        '[model]\nname = "sequence"\n[train]\nbatch_size = 8\n',
        "test",
    )
    data = build_data(recipe)
    assert (data.facts.features, data.facts.frames) == (features, steps)
    images, _ = take(data, 1)[0]
    assert images.shape == (steps, 8, features)
    plain = build_data(data_recipe("digits", data=size, train="batch_size = 8"))
    square = next(iter(plain.test))[0]
    shown = next(iter(data.test))[0]
    assert torch.equal(shown, unrolled(square, order, 0))


@pytest.mark.parametrize(
    ("sequence", "steps", "words"),
    [("rows", 4, ("16 steps", "16x16")), ("pixels", 255, ("256 steps", "16x16"))],
)
def test_another_number_of_steps_is_refused(sequence, steps, words):
    recipe = recipe_from_toml(
        f'time_steps = {steps}\n[data]\nname = "digits"\nsequence = "{sequence}"\n[model]\nname = "sequence"\n',
        "test",
    )
    mentions(mistake(recipe), *words)


def test_given_sequences_are_checked():
    assert given_sequences(np.zeros((2, 5, 3)), 3, 6).steps == 5
    assert len(given_sequences([torch.zeros(2, 3), torch.zeros(6, 3)], 3, 6)) == 2
    for wrong in (np.zeros((2, 7, 3)), np.zeros((2, 5, 4)), "a", [], [3], np.zeros((2, 3))):
        with pytest.raises(UserError):
            given_sequences(wrong, 3, 6)


def oblong(config):
    images = np.zeros((8, 1, 6, 4), np.uint8)
    split = ArraySplit(images, np.arange(8) % 2)
    return Source(train=split, test=split, classes=("a", "b"), statistics=((0.5,), (0.5,)))


register("oblong")(oblong)


def test_images_that_are_not_square_are_refused_or_said_to_be_stretched():
    recipe = data_recipe("digits")
    object.__setattr__(recipe.data, "name", "oblong")
    mentions(mistake(recipe), "6x4", "not square", "data.image_size", "SequenceSplit")
    object.__setattr__(recipe.data, "image_size", 8)
    assert "6x4 stretched to 8x8" in build_data(recipe).note
