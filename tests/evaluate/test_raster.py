"""The raster of one image: the network's own answers and spikes, step by step."""

import numpy as np
import torch
from PIL import Image

from spiketriton.evaluate.evaluation import Evaluation, evaluate
from spiketriton.evaluate.pictures import sample
from spiketriton.evaluate.raster import SHOWN, raster_of
from spiketriton.training.trained import load_run
from tests.small_runs import QUICK, small_trainer

RED = (200, 60, 30)


def photographs(root, splits, colour):
    for split, classes in splits.items():
        for name, number in classes.items():
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (12, 10), colour).save(root / split / name / f"{i}.jpg")


def test_answers_and_spikes_are_the_networks_own(tmp_path):
    small_trainer(tmp_path / "run", "train.max_steps=3").fit()
    run = load_run(tmp_path / "run")
    found = raster_of(run)
    assert found is not None
    images, labels = next(iter(run.data.test))
    with torch.inference_mode():
        currents = run.model(run.to_device(images[:1]), 3)[:, 0]
    for t in range(3):
        mean = currents[: t + 1].mean(0)
        assert found.answers[t] == run.data.classes[int(mean.argmax())]
        assert abs(found.shares[t] - float(mean.softmax(0).max())) < 1e-5
    assert found.label == run.data.classes[int(labels[0])]
    assert list(found.spikes) == [name for name, _ in run.model.spiking_layers()]
    assert all(len(steps) == 3 for steps in found.spikes.values())
    assert all(len(row) == SHOWN for steps in found.spikes.values() for row in steps)
    assert {spike for steps in found.spikes.values() for row in steps for spike in row} == {0, 1}
    assert (min(map(min, found.image)), max(map(max, found.image))) == (0, 255)

    whole = evaluate(run)
    assert whole.raster == found
    assert Evaluation.from_json(whole.to_json()).raster == found
    figure = sample(whole, "title")
    assert figure is not None
    image, raster = figure.axes
    assert image.get_title() == f"A test image of class {found.label}"
    assert image.get_xlabel().count(" of 3 steps: ") == 3
    assert raster.get_xticks().tolist() == [0, 1, 2]  # as in every picture
    drawn = sum(len(ticks.get_segments()) for ticks in raster.collections)
    assert drawn == sum(sum(row) for steps in found.spikes.values() for row in steps)


def test_a_photograph_is_shown_in_its_colours(tmp_path):
    """And not as the network sees it, or grey."""
    photographs(tmp_path / "red", {split: {"a": 20, "b": 20} for split in ("train", "val")}, RED)
    keys = [
        "data.name=imagefolder",
        f"data.root={tmp_path / 'red'}",
        "data.train_images=40",
        "data.test_images=40",
    ]
    small_trainer(tmp_path / "run", *keys, "train.max_steps=1").fit()
    one = evaluate(load_run(tmp_path / "run"))
    (axes, _) = sample(one, "title").axes
    shown = np.asarray(axes.get_images()[0].get_array())
    assert shown.shape == (8, 8, 3)
    assert np.abs(shown - np.array(RED)).max() <= 3  # JPEG
    assert np.array(Evaluation.from_json(one.to_json()).raster.image).shape == (8, 8, 3)


def test_an_ann_has_no_spikes_to_show(tmp_path):
    small_trainer(tmp_path / "run", *QUICK, "train.max_steps=1", "neuron.kind=relu").fit()
    run = load_run(tmp_path / "run")
    assert raster_of(run) is None
    assert sample(evaluate(run), "") is None
