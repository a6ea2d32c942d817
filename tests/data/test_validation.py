"""Images held out of training, and samplers: deterministic, stratified, apart from each other."""

import numpy as np
import pytest
import torch

from spiketriton.data import build_data
from tests.small_data import all_of, data_recipe, make_class_tree, mentions, mistake


def built(data: str = "", seed: int = 0, train: str = "", **ranks: int):
    return build_data(data_recipe("digits", data=data, seed=seed, train=train), **ranks)


def labels_of(test) -> np.ndarray:
    return test.dataset.split.labels.numpy()[test.members]


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_a_share_is_taken_from_every_class_and_from_training(share):
    data = built(f"validation = {share}")
    held_out, trained = set(data.validation.members), set(data.train.members)
    assert not held_out & trained
    assert held_out | trained == set(range(1437))
    whole = np.bincount(built().train.dataset.split.labels.numpy())
    assert np.bincount(labels_of(data.validation)).tolist() == [round(share * n) for n in whole]
    assert data.facts.class_counts == tuple(n - round(share * n) for n in whole.tolist())


def test_the_choice_depends_on_no_seed_no_rank_and_is_no_prefix():
    first, other = built("validation = 0.2"), built("validation = 0.2", seed=5)
    second = built("validation = 0.2", rank=1, world_size=2)
    assert np.array_equal(first.validation.members, other.validation.members)
    assert np.array_equal(first.validation.members, second.validation.members)
    assert first.validation.members.max() > 1400
    images, labels = all_of(first.validation)
    assert len(images) == len(labels) == first.validation.images
    again, _ = all_of(first.validation)
    assert torch.equal(images, again)  # as test images: not augmented


def test_a_class_keeps_an_image_to_train_on_and_gives_one():
    data = built("validation = 0.999")
    assert (
        np.bincount(data.train.dataset.split.labels.numpy()[data.train.members]).tolist()
        == [1] * 10
    )
    few = built("validation = 0.0001")
    assert few.validation.images == 10


def test_train_images_are_counted_without_those_held_out():
    data = built("validation = 0.5\ntrain_images = 700")
    assert len(data.train.members) == 700
    assert not set(data.train.members) & set(data.validation.members)
    message = mistake(data_recipe("digits", data="validation = 0.5\ntrain_images = 800"))
    mentions(message, "data.train_images = 800", "left beside data.validation")


def folders(tmp_path, names, validation):
    make_class_tree(tmp_path, names, ("a", "b"), 4)
    return data_recipe("imagefolder", tmp_path, data=f'validation = "{validation}"')


def test_a_folder_of_validation_images(tmp_path):
    data = build_data(folders(tmp_path, ("train", "val", "test"), "val"))
    assert (data.train.images, data.validation.images, data.test.images) == (8, 8, 8)
    assert b"/val/" in data.validation.dataset.split.paths[0]
    assert b"/test/" in data.test.dataset.split.paths[0]


@pytest.mark.parametrize(
    ("names", "validation", "words"),
    [
        (("train", "val"), "val", "no folder"),
        (("train", "val"), "held", "no folder"),
        (("train", "val"), "train", "is the folder of other images"),
    ],
)
def test_folders_that_are_missing_or_taken_are_named(tmp_path, names, validation, words):
    mentions(mistake(folders(tmp_path, names, validation)), "imagefolder", words)


def test_a_folder_of_other_classes_is_refused(tmp_path):
    recipe = folders(tmp_path, ("train", "val", "held"), "held")
    (tmp_path / "held" / "b").rename(tmp_path / "held" / "c")
    mentions(mistake(recipe), "different classes in train and held", "only in held: c")


def unbalanced(tmp_path, train="batch_size = 4", **ranks):
    make_class_tree(tmp_path, ("train", "val"), ("a",), 9)
    make_class_tree(tmp_path, ("train", "val"), ("b",), 3)
    recipe = data_recipe("imagefolder", tmp_path, data='sampler = "balanced"', train=train)
    return build_data(recipe, **ranks)


def test_a_balanced_epoch_shows_as_many_of_each_class(tmp_path):
    stream = unbalanced(tmp_path).train
    labels = stream.dataset.split.labels.numpy()
    seen = []
    for epoch in range(3):
        order, repeats = stream._order(epoch)
        assert np.bincount(labels[order]).tolist() == [6, 6]
        counts = np.bincount(order, minlength=12)
        assert sorted(counts[labels == 1]) == [2, 2, 2]
        assert counts[labels == 0].max() == 1
        assert sorted(repeats[labels[order] == 1]) == [0, 0, 0, 1, 1, 1]
        seen.append(order.tolist())
    assert seen[0] != seen[1]
    assert stream._order(0)[0].tolist() == seen[0]


def test_an_image_that_is_repeated_is_augmented_anew(tmp_path):
    stream = unbalanced(tmp_path).train
    shown = [
        (int(index), int(key))
        for (indices, keys, _), _ in zip(stream.requests(0), range(3), strict=False)
        for index, key in zip(indices, keys, strict=True)
    ]
    assert len(set(shown)) == 12
    assert len({index for index, _ in shown}) < 12


def test_balanced_batches_depend_on_no_rank_and_no_start(tmp_path):
    whole = unbalanced(tmp_path).train
    parts = [unbalanced_again(tmp_path, rank=rank, world_size=2).train for rank in range(2)]
    for step, (indices, keys, _) in zip(range(4), whole.requests(0), strict=False):
        halves = [next(part.requests(step)) for part in parts]
        assert np.array_equal(np.concatenate([half[0] for half in halves]), indices)
        assert np.array_equal(np.concatenate([half[1] for half in halves]), keys)


def unbalanced_again(tmp_path, **ranks):
    recipe = data_recipe("imagefolder", tmp_path, data='sampler = "balanced"')
    return build_data(recipe, **ranks)
