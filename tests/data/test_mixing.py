"""mixup and CutMix: pixel for pixel, and a batch stays a function of (seed, step)."""

import numpy as np
import pytest
import torch

from spiketriton.data import build_data
from spiketriton.data.mixing import Mixing, boxes
from tests.small_data import all_of, data_recipe, mentions, mistake, same, take


def images_and_labels(b: int = 6, size: tuple[int, int] = (8, 10)):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(b, 3, *size, generator=generator)
    return images, torch.tensor([0, 1, 2, 2, 3, 0])[:b]


@pytest.mark.parametrize("cuts", [False, True])
def test_images_and_labels_of_a_pair_are_blended_or_exchange_a_box(cuts):
    mixing = Mixing(0.4 * (not cuts), 1.0 * cuts, classes=4)
    images, labels = images_and_labels()
    draws = mixing.draw(seed=3, step=7, pairs=3)
    found, probabilities = mixing.mixed(images, labels, draws)
    for at, other in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)):
        share = draws[at // 2, 1]
        expected = share * images[at].double() + (1 - share) * images[other].double()
        if cuts:
            top, left, high, wide = boxes(draws, 8, 10)[at // 2]
            inside = (slice(None), slice(top, top + high), slice(left, left + wide))
            expected, share = images[at].double(), 1 - high * wide / 80
            expected[inside] = images[other].double()[inside]
        torch.testing.assert_close(found[at].double(), expected, rtol=0, atol=1e-6)
        wanted = torch.zeros(4)
        wanted[labels[at]] += share
        wanted[labels[other]] += 1 - share
        torch.testing.assert_close(probabilities[at], wanted)


def test_boxes_have_the_share_of_the_area_before_they_are_cut_off():
    draws = np.array([[1, 0.75, 0.5, 0.5], [1, 0.75, 0.0, 0.95], [1, 1, 0.3, 0.3], [0, 0.5, 0, 0]])
    found = boxes(draws, 20, 40).tolist()
    assert found == [[5, 10, 10, 20], [0, 28, 5, 12], [6, 12, 0, 0], [0, 0, 0, 0]]
    whole = boxes(np.array([[1.0, 0.0, 0.5, 0.5]]), 20, 40).tolist()
    assert whole == [[0, 0, 20, 40]]


def test_all_frames_of_a_recording_are_cut_alike():
    mixing = Mixing(0.3, 1.0, classes=4)
    images, labels = images_and_labels()
    draws = mixing.draw(0, 0, 3)
    assert set(draws[:, 0]) == {0, 1}
    frames = torch.stack([images, images + 1])
    found, _ = mixing.mixed(frames, labels, draws)
    for at in range(2):
        assert torch.equal(found[at], mixing.mixed(frames[at], labels, draws)[0])


@pytest.mark.parametrize("alpha", [1e-300, 0.2, 1.0, 1000.0])
def test_shares_follow_the_beta_distribution(alpha):
    share = Mixing(alpha, 0.0, classes=2).draw(1, 2, 20_000)[:, 1]
    assert np.isfinite(share).all()
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_the_draws_of_a_seed_are_these_for_ever():
    """Or a resumed run would see other images."""
    found = Mixing(0.2, 1.0, classes=2).draw(5, 11, 2)
    np.testing.assert_allclose(found, KNOWN, rtol=1e-12)


KNOWN = [
    [1.0, 0.3159642415622104, 0.3319720997107789, 0.4530145527439867],
    [0.0, 0.8761450463218005, 0.6488610604592847, 0.3070395613567445],
]


@pytest.mark.parametrize("mixes", ["mixup = 0.4", "mixup = 0.2\ncutmix = 1"])
def test_a_batch_is_the_same_on_ranks_in_parts_with_workers_and_after_a_stop(mixes):
    def two(more="", count=2, step=88, data="", **ranks):
        """The last step of an epoch of 89, and the first of the next."""
        recipe = data_recipe("digits", data=data, train=f"batch_size = 16\n{mixes}\n{more}")
        return take(build_data(recipe, **ranks), count, step)

    whole = two()
    for _, probabilities in whole:
        torch.testing.assert_close(probabilities.sum(1), torch.ones(16))
    assert same(whole[1:], two(count=1, step=89))
    assert same(whole, two(data="workers = 1"))
    parts = two("accumulate = 4", count=8)
    assert same(whole, [all_of(parts[:4]), all_of(parts[4:])])
    ranks = zip(*(two(rank=rank, world_size=2) for rank in range(2)), strict=True)
    assert same(whole, [all_of(step) for step in ranks])


def test_tests_are_not_mixed():
    data = build_data(data_recipe("digits", data="validation = 0.1", train="mixup = 1"))
    plain = build_data(data_recipe("digits", data="validation = 0.1"))
    for mixed, ours in ((data.test, plain.test), (data.validation, plain.validation)):
        assert same([next(iter(mixed))], [next(iter(ours))])


@pytest.mark.parametrize(
    ("train", "ranks"),
    [("batch_size = 15", 1), ("batch_size = 12\naccumulate = 4", 1), ("batch_size = 6", 2)],
)
def test_images_that_make_no_pairs_are_refused(train, ranks):
    message = mistake(data_recipe("digits", train=f"mixup = 1\n{train}"), world_size=ranks)
    mentions(message, "train.batch_size = ", f"on {ranks} ranks leaves", "accepted: an even number")


def test_pairs_of_late_epochs_are_not_mixed():
    mixing = Mixing(0.4, 1.0, classes=4, epochs=2)
    drawn = mixing.draw(0, 0, 4000, epoch=1)
    assert drawn[:, 0].mean() == pytest.approx(0.5, abs=0.03)  # half of them by a box
    assert (drawn[:, 1] < 1).all()
    images, labels = images_and_labels()
    same, probabilities = mixing.mixed(images, labels, mixing.draw(0, 0, 3, epoch=2))
    assert torch.equal(same, images)
    assert torch.equal(probabilities, torch.nn.functional.one_hot(labels, 4).float())
