"""Augmentation of frames: each move does what it says, and depends on the recording's key alone."""

import numpy as np
import pytest
import torch

from spiketriton.config import recipe_from_toml
from spiketriton.data.counter_rng import mix
from spiketriton.events.augment import EventTransform, Moves, kept_steps, turned

KEYS = mix(7, np.arange(64))


def frames(count=64, steps=4, size=12, most=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, steps, 2, size, size)
    return torch.randint(0, most, shape, dtype=torch.uint8, generator=generator)


def moved(moves, x, keys=KEYS, count="raw"):
    """Batch first, as they were given."""
    return EventTransform(count, moves)(x, keys).transpose(0, 1)


EVERYTHING = Moves(flip=True, roll=3, rotate=20, shear=0.2, cutout=4, delete=1)


def test_test_recordings_are_left_alone_and_time_comes_first():
    x = frames()
    shown = EventTransform("raw", EVERYTHING)(x, None)
    assert shown.dtype == torch.float32
    assert shown.is_contiguous()
    assert torch.equal(shown, x.transpose(0, 1).float())


@pytest.mark.parametrize(
    ("count", "expected"),
    [("raw", [0, 1, 2, 255]), ("clip", [0, 1, 1, 1]), ("log", np.log([1, 2, 3, 256]).tolist())],
)
def test_counts_are_shown_in_three_ways(count, expected):
    x = torch.tensor([0, 1, 2, 255], dtype=torch.uint8).view(1, 1, 1, 2, 2)
    torch.testing.assert_close(
        EventTransform(count, Moves())(x, None).flatten(), torch.tensor(expected).float()
    )


def test_half_of_the_recordings_are_mirrored():
    x = frames(1)
    out = moved(Moves(flip=True), x.expand(2000, -1, -1, -1, -1), mix(7, np.arange(2000)))
    mirrored = (out == x.flip(4)).flatten(1).all(1)
    assert torch.equal(mirrored, ~(out == x).flatten(1).all(1))
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.04)


def test_rolls_reach_every_distance_and_keep_every_event():
    x = frames(count=64, steps=2)
    out = moved(Moves(roll=2), x)
    seen = set()
    for a, b in zip(out, x, strict=True):
        at = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(a, b.roll((dy, dx), (2, 3)).float())
        ]
        assert len(at) == 1
        seen |= {at[0]}
    assert {dy for dy, _ in seen} == {dx for _, dx in seen} == set(range(-2, 3))


def test_a_cut_out_square_is_empty_in_all_frames():
    x = torch.ones((64, 3, 2, 12, 12), dtype=torch.uint8)
    out = moved(Moves(cutout=5), x)
    sizes, last = set(), set()  # last: heights of those at the last row
    for one in out:
        assert torch.equal(one, one[:1, :1].expand_as(one))
        rows, columns = (one[0, 0] == 0).any(1), (one[0, 0] == 0).any(0)
        assert torch.equal(one[0, 0] == 0, rows[:, None] & columns[None])
        sizes.add((int(rows.sum()), int(columns.sum())))
        last.add(int(rows.sum()) if rows[-1] else 5)
    assert max(sizes) == (5, 5)
    assert min(map(min, sizes)) >= 1
    assert min(last) < 5


def test_random_temporal_delete_leaves_frames_in_order():
    x = torch.arange(16, dtype=torch.uint8).view(1, 16, 1, 1, 1).expand(64, 16, 2, 4, 4)
    out = moved(Moves(delete=4), x)
    kept = out[:, :, 0, 0, 0]
    assert kept.shape == (64, 12)
    assert (kept.diff(dim=1) > 0).all()
    assert (kept[:, None] == torch.arange(16)[:, None]).any(2).float().mean(0).min() > 0.5
    assert len({tuple(row.tolist()) for row in kept}) > 50
    assert kept_steps(KEYS[0], 5, 0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_turns_by_right_angles_are_exact(quarter):
    x = frames(count=1, size=9)[0]
    assert torch.equal(turned(x, quarter * np.pi / 2, 0.0), x.rot90(-quarter, (2, 3)))


def test_shear_moves_rows_and_leaves_the_middle():
    x = torch.zeros((1, 2, 9, 9), dtype=torch.uint8)
    x[:, :, :, 4] = 1
    out = turned(x, 0.0, 0.4)[0, 0]
    assert out.argmax(1).tolist() == [2, 3, 3, 4, 4, 4, 5, 5, 6]


def test_turns_stay_within_what_was_asked():
    x = torch.zeros((64, 1, 2, 33, 33), dtype=torch.uint8)
    x[:, :, :, 15:18, 27:30] = 1
    out = moved(Moves(rotate=30), x)[:, 0, 0]
    at = torch.arange(33) - 16.0
    y, x_at = (out.sum(2) @ at, out.sum(1) @ at)
    angles = torch.rad2deg(torch.atan2(y, x_at))
    assert 20 < angles.max() < 33
    assert -33 < angles.min() < -20


def test_a_recording_depends_on_its_key_and_on_nothing_else():
    x, state = frames(), torch.get_rng_state()
    before, random = x.clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    whole = moved(EVERYTHING, x)
    for part in (slice(0, 1), slice(5, 9), slice(63, 64)):
        assert torch.equal(moved(EVERYTHING, x[part], KEYS[part]), whole[part])
    assert not torch.equal(moved(EVERYTHING, x, mix(8, KEYS)), whole)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], random)  # noqa: NPY002


def moves_of(lines, size=48, mirrors=True):
    text = f'[data]\nname = "n_mnist"\n{lines}\n[model]\nname = "resnet8"'
    return Moves.of(recipe_from_toml(text, "t").data, size, mirrors=mirrors)


def test_moves_come_from_augment_unless_they_are_given():
    assert moves_of('augment = "none"') == Moves()
    assert moves_of("") == Moves(flip=True, roll=5)
    assert moves_of("", mirrors=False) == Moves(roll=5)
    assert moves_of("", size=128).roll == 13
    strong = Moves(flip=True, roll=5, rotate=15.0, shear=0.15, cutout=8)
    assert moves_of('augment = "strong"') == strong
    given = "[data.augmentation]\nflip = true\nroll = 1\ncutout = 0\ndelete = 2"
    assert moves_of(f'augment = "strong"\n{given}', mirrors=False) == Moves(
        flip=True, roll=1, rotate=15.0, shear=0.15, delete=2
    )
