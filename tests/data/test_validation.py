"""Images held out of training: deterministic, stratified, apart from the others."""

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
    assert built("validation = 0.999").facts.class_counts == (1,) * 10
    assert built("validation = 0.0001").validation.images == 10


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


def test_folders_that_are_missing_taken_or_of_other_classes_are_named(tmp_path):
    recipe = folders(tmp_path, ("train", "val", "held"), "held")
    (tmp_path / "held" / "b").rename(tmp_path / "held" / "c")
    mentions(mistake(recipe), "different classes in train and held", "only in held: c")
    for validation, words in (
        ("val", "no folder"),
        ("none", "no folder"),
        ("train", "is the folder of other images"),
    ):
        recipe = data_recipe("imagefolder", tmp_path, data=f'validation = "{validation}"')
        mentions(mistake(recipe), "imagefolder", words)
