"""A trained run, loaded: its checkpoint, its overrides, and what is missing or does not fit."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spiketriton.runs.checkpoint import Checkpoints, read_checkpoint
from spiketriton.system.errors import UserError
from spiketriton.training.trained import load_run
from tests.small_runs import QUICK, small_trainer


def mistake(path: Path, *overrides: str, checkpoint: str = "last") -> str:
    with pytest.raises(UserError) as error:
        load_run(path, *overrides, checkpoint=checkpoint)
    return str(error.value)


def test_runs_without_weights_or_with_others_are_named(tmp_path):
    path = tmp_path / "run"
    small_trainer(path, "train.max_steps=1", "data.validation=0.1").fit()
    recipe = path / "recipe.toml"
    text = recipe.read_text()
    recipe.write_text(text.replace("width = 4", "width = 6"))
    said = mistake(path)
    assert (
        "the weights of the checkpoint are not those of this recipe and data: ResNet: size" in said
    )
    for words in ("mismatch for conv1.weight", "([4, 1, 3, 3])", "([6, 1, 3, 3])"):
        assert words in said
    recipe.write_bytes(b"seed = \xff")
    assert "not UTF-8" in mistake(path)
    recipe.write_text(text)
    for checkpoint in (path / "checkpoints").iterdir():
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert "are damaged: last.pt, best.pt" in mistake(path)
    assert "is damaged" in mistake(path, checkpoint="best")
    for checkpoint in (path / "checkpoints").iterdir():
        checkpoint.unlink()
    assert "holds no checkpoint" in mistake(path)
    assert "has no best checkpoint" in mistake(path, checkpoint="best")


def test_a_damaged_last_checkpoint_is_not_called_last(tmp_path):
    keys = ["train.epochs=1", "data.validation=0.1"]
    small_trainer(tmp_path / "run", *QUICK, *keys).fit()
    assert load_run(tmp_path / "run").checkpoint == "last"
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    assert load_run(tmp_path / "run").checkpoint == "best"


def test_a_run_is_loaded_as_it_was_trained(tmp_path):
    trainer = small_trainer(tmp_path / "run", *QUICK, "train.max_steps=3", "data.augment=strong")
    trainer.fit()
    run = load_run(tmp_path / "run")
    assert (run.kind, run.time_steps, run.step, run.checkpoint) == ("spiking", 3, 3, "last")
    assert not run.model.training
    assert run.conversion is None
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
    assert run.data.test.images == 50
    assert load_run(tmp_path / "run", "train.device=cpu").recipe.train.device == "cpu"
    message = mistake(tmp_path / "run", "time_steps=9")
    assert message.startswith("override 'time_steps=9': a trained run takes only keys that change")
    message = mistake(tmp_path / "run", "runs/other")
    assert message.startswith("override 'runs/other' is no key=value; accepted: ")
    assert "; evaluate takes another run with --against" in message
    assert load_run(tmp_path / "run", test_images=20).data.test.images == 20
    first = next(run.data.train.from_step(0))[0]
    plain = load_run(tmp_path / "run", augment=False)
    assert not torch.equal(first, next(plain.data.train.from_step(0))[0])
    small_trainer(tmp_path / "ann", *QUICK, "neuron.kind=relu", "train.max_steps=1").fit()
    assert (load_run(tmp_path / "ann").kind, load_run(tmp_path / "ann").time_steps) == ("ann", 1)


def test_a_loaded_run_has_the_widths_that_were_measured_for_it(tmp_path):
    trainer = small_trainer(tmp_path / "run", *QUICK, "train.max_steps=1")
    wanted = {}
    for number, (name, layer) in enumerate(trainer.model.spiking_layers()):
        wanted[name] = 0.25 * 2**number
        layer.surrogate = replace(layer.surrogate, width=wanted[name])
    trainer.fit()

    def widths():
        layers = load_run(tmp_path / "run").model.spiking_layers()
        return {name: layer.surrogate.width for name, layer in layers}

    assert widths() == wanted


def test_weights_of_another_network_are_named(tmp_path):
    small_trainer(tmp_path / "run", *QUICK, "train.max_steps=1").fit()
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = read_checkpoint(last)
    model = state["model"]
    for weights, words in (
        ({name: model[name] for name in model if name != "fc.bias"}, "Missing.*fc.bias"),
        (model | {"extra": torch.ones(2)}, "Unexpected.*extra"),
        (model | {"fc.bias": "text"}, "fc.bias.*expected torch.Tensor"),
        (None, "holds no weights"),
    ):
        Checkpoints(last.parent, print).save_as(last, state | {"model": weights})
        assert re.search(words, mistake(tmp_path / "run"))
