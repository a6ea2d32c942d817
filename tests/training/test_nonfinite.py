"""A loss or gradient that is not finite: nothing is changed by it, and its first place is named."""

import copy
import dataclasses
import json
import math
import re
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spiketriton import nonfinite
from spiketriton.data import TrainStream
from spiketriton.data.stream import CPU
from spiketriton.errors import EXIT_DONE, EXIT_NONFINITE, UserError
from spiketriton.gradients.probing import Prober
from spiketriton.runs import checkpoint
from spiketriton.runs.folder import RunFolder
from spiketriton.train import main
from spiketriton.trainer import Trainer
from spiketriton.training import nonfinite as module
from spiketriton.training.nonfinite import Diverged, Finding, locate
from tests.small_runs import Lines, assert_equal, last_state, small_recipe, small_trainer
from tests.test_trainer import weights

SKIP = ["train.nonfinite=skip", "train.max_skips=2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poisoned(TrainStream):
    """An image of each of the steps `bad` holds an infinity; batch norm's statistics do then, too."""

    bad: tuple[int, ...]

    def from_step(
        self, step: int, device: torch.device = CPU
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        for part, (images, labels) in enumerate(super().from_step(step, device)):
            if step + 1 + part // self.accumulate in self.bad:
                images = images.clone()
                images[0, 0, 0, 0] = math.inf
            yield images, labels


def poison(trainer: Trainer, *steps: int) -> Trainer:
    stream = Poisoned(**vars(trainer.data.train), bad=steps)
    trainer.data = dataclasses.replace(trainer.data, train=stream)
    return trainer


def all_state(trainer: Trainer) -> dict:
    return copy.deepcopy(
        {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.update.optimizer.state_dict()["state"],
        }
    )


# ---- a bad step changes nothing

KINDS = {
    "adamw": ["train.accumulate=2", "train.weight_decay=0.1"],
    "sgd": ["train.optimizer=sgd", "train.weight_decay=0.1", "train.clip_grad_norm=1"],
    "sgd without momentum": ["train.optimizer=sgd", "train.momentum=0"],
    "plif, tebn": ["neuron.kind=plif", "model.norm=tebn"],
    "fp16": ["train.precision=fp16"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_changes_no_bit(tmp_path, kind):
    trainer = poison(small_trainer(tmp_path / "run", *KINDS[kind], *SKIP), 3)
    trainer.fit(until=2)
    before = all_state(trainer)
    trainer.fit(until=3)
    assert_equal(all_state(trainer), before)
    trainer.fit(until=9)
    assert not torch.equal(trainer.model.fc.weight, before["model"]["fc.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_first_step_may_be_skipped(tmp_path, optimizer):
    """Torch begins the optimizer's state in it."""
    same = [f"train.optimizer={optimizer}", "train.schedule=constant", "train.warmup=0", *SKIP]
    trainer = poison(small_trainer(tmp_path / "run", *same), 1)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.fit(until=1)
    assert_equal(trainer.model.state_dict(), before)
    assert all(
        not value.any()
        for state in trainer.update.optimizer.state.values()
        for value in state.values()
    )
    trainer.fit(until=2)
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_under_stop_the_model_is_that_of_before_the_bad_step(tmp_path):
    """Read five steps later, and yet exactly known."""
    trainer = poison(small_trainer(tmp_path / "run", "train.log_every=8", "train.epochs=2"), 3)
    clean = small_trainer(tmp_path / "clean", "train.log_every=8", "train.epochs=2")
    clean.fit(until=2)
    with pytest.raises(
        Diverged, match=r"gradient is nan at step 3; it began in the images \(1 of 1024"
    ):
        trainer.fit()
    assert trainer.step > 3
    assert_equal(all_state(trainer), all_state(clean))


def test_no_checkpoint_is_written_of_a_run_that_has_gone_wrong(tmp_path):
    same = ["train.log_every=100", "checkpoint.every=2"]
    trainer = poison(small_trainer(tmp_path / "run", *same), 3)
    with pytest.raises(Diverged):
        trainer.fit()
    assert last_state(tmp_path / "run")["step"] == 2
    trainer = poison(small_trainer(tmp_path / "tested", *same[:1]), 6)
    with pytest.raises(Diverged):
        trainer.fit()
    assert not list((tmp_path / "tested" / "checkpoints").iterdir())  # step 7 ends an epoch


# ---- skipping


def test_a_bad_batch_is_left_out_and_reported(tmp_path):
    display = Lines()
    trainer = poison(small_trainer(tmp_path / "run", *SKIP, display=display), 6)
    outcome = trainer.fit()
    assert outcome.finished
    assert display.warnings == [
        "1 step was left out, the last one step 6, where the norm of the gradient is nan; 1 in total"
    ]
    rows = [row for row in RunFolder(tmp_path / "run").metrics.read() if row["kind"] == "train"]
    assert all(row["loss"] > 0 for row in rows)
    assert all(value.isfinite().all() for value in last_state(tmp_path / "run")["model"].values())


def test_the_loss_of_a_row_is_the_mean_over_the_steps_that_count(tmp_path):
    same = [*SKIP, "neuron.kind=relu"]  # spikes would hide the infinity from the loss
    trainer = poison(small_trainer(tmp_path / "run", *same, "train.log_every=1"), 3)
    trainer.fit(until=4)
    single = [row["loss"] for row in RunFolder(tmp_path / "run").metrics.read()]
    trainer = poison(small_trainer(tmp_path / "mean", *same, "train.log_every=4"), 3)
    trainer.fit(until=4)
    (row,) = RunFolder(tmp_path / "mean").metrics.read()
    assert single[2] is None
    assert row["loss"] == pytest.approx((single[0] + single[1] + single[3]) / 3, rel=1e-6)


def test_a_resumed_run_keeps_counting(tmp_path):
    poison(small_trainer(tmp_path / "run", *SKIP), 8, 9).fit(until=9)
    display = Lines()
    resumed = small_trainer(tmp_path / "run", *SKIP, resume=True, display=display)
    poison(resumed, 11).fit(until=12)
    assert [line[:16] + line[-10:] for line in display.warnings] == ["1 step was left 3 in total"]

    poison(small_trainer(tmp_path / "row", *SKIP), 8, 9).fit(until=9)
    resumed = small_trainer(tmp_path / "row", *SKIP, resume=True)
    with pytest.raises(Diverged, match="at step 10;"):
        poison(resumed, 10).fit()


# ---- naming the place


def located(trainer: Trainer) -> Finding | None:
    """What `locate` says of the next step; it leaves the model as it was."""
    before = {name: x.nan_to_num(7.0) for name, x in trainer.model.state_dict().items()}
    with trainer.session():
        batches = [trainer.next_batch() for _ in range(trainer.accumulate)]
    found = locate(trainer.model, batches, trainer.loss, trainer.placement.autocast)
    after = {name: x.nan_to_num(7.0) for name, x in trainer.model.state_dict().items()}
    assert_equal(after, before)
    assert all(p.grad is None for p in trainer.model.parameters())
    return found


def test_a_finite_step_has_no_place(tmp_path):
    assert located(small_trainer(tmp_path / "run")) is None


@pytest.mark.parametrize("neuron", ["lif", "relu"])
def test_a_weight_is_named(tmp_path, neuron):
    trainer = small_trainer(tmp_path / "run", f"neuron.kind={neuron}", "train.accumulate=2")
    for name in ("layer2.0.conv1", "layer3.0.conv1"):  # the first one counts
        trainer.model.get_submodule(name).weight.data[0, 0, 1, 1] = math.nan
    found = located(trainer)
    assert found is not None
    assert (found.what, found.layer, found.parameters) == ("output", "layer2.0.conv1", ("weight",))
    assert found.time_step == (0 if neuron == "lif" else None)
    assert found.of == 8 * 8 * 4 * 4  # of a micro-batch at one time step
    assert found.count == found.of / 8  # one channel
    assert "layer2.0.conv1" in found.in_words()
    assert "whose weight is not finite" in found.in_words()


def test_a_current_is_named_that_no_spike_shows(tmp_path):
    """The stem's: a current that is not finite fires or not, and both are finite."""
    trainer = small_trainer(tmp_path / "run")
    trainer.model.bn1.bias.data[1] = math.nan  # type: ignore[union-attr]
    found = located(trainer)
    assert found is not None
    assert (found.what, found.layer, found.time_step) == ("input current", "neuron1", 0)
    batch = 16 * 4 * 8 * 8
    assert (found.count, found.of) == (batch // 4, batch)  # one channel of four


# a surrogate 1e6 high, in blocks that are open and whose shortcuts pass it
EXPLODES = (
    *("neuron.surrogate.height=1e6", "neuron.surrogate.width=1", "model.residual_gain=1"),
    *("model.residual_bias=0", "model.shortcut_gradient=surrogate"),
)


@pytest.mark.parametrize(
    "changed",
    ["neuron.detach_reset=true", "neuron.detach_reset=false", "model.checkpoint_blocks=true"],
)
def test_the_first_gradient_on_the_way_back_is_named(tmp_path, changed):
    """A surrogate so high that the gradient overflows; the kernels' own probes know where."""
    trainer = small_trainer(tmp_path / "run", *EXPLODES, changed)
    with trainer.session():
        batch = trainer.next_batch()
    measured = Prober(trainer.model, [batch], trainer.loss).measure()
    bad = [
        (measured.names[layer], step)
        for layer, steps in enumerate(measured.nonfinite)
        for step, count in enumerate(steps)
        if count
    ]
    found = located(trainer)
    assert found is not None
    assert found.what == "gradient"
    assert (found.layer, found.time_step) == bad[-1]
    assert 0 < len({layer for layer, _ in bad}) < len(measured.names)


def test_a_loss_and_a_norm_may_overflow_by_themselves(tmp_path):
    trainer = small_trainer(tmp_path / "run", "neuron.kind=relu", "loss.kind=tet")
    trainer.model.fc.weight.data.fill_(1e20)
    assert located(trainer) == Finding("loss")
    trainer = small_trainer(tmp_path / "norm")
    real = trainer.loss
    trainer.loss = lambda currents, labels: 1e25 * real(currents, labels)
    found = located(trainer)
    assert found is not None
    assert found.what == "norm"
    assert found.layer in weights(trainer)


@pytest.mark.parametrize(
    ("neuron", "layer", "again"), [("relu", "fc", "false"), ("lif", "layer3.0.neuron2", "true")]
)
def test_a_gradient_that_the_loss_breaks_is_that_of_the_last_layer(tmp_path, neuron, layer, again):
    keys = [f"neuron.kind={neuron}", f"model.checkpoint_blocks={again}"]
    trainer = small_trainer(tmp_path / "run", *keys)
    trainer.loss = lambda currents, labels: (0 * currents).abs().sqrt().sum()  # 0 / 0 in backward
    found = located(trainer)
    assert found is not None
    assert (found.what, found.layer, found.parameters) == ("gradient", layer, ())
    assert found.time_step == (2 if neuron == "lif" else None)
    assert found.count == found.of == (16 * 10 if neuron == "relu" else 16 * 16 * 2 * 2)


class Parameters(torch.nn.Module):
    """Parameters a, b and c with these gradients."""

    def __init__(self, **grads: list[float] | None) -> None:
        super().__init__()
        for name, grad in grads.items():
            p = torch.nn.Parameter(torch.zeros(0 if grad is None else len(grad)))
            p.grad = None if grad is None else torch.tensor(grad)
            self.register_parameter(name, p)


@pytest.mark.parametrize(
    ("grads", "finding"),
    [
        ({"a": [1.0, 2.0], "b": None, "c": [3.0]}, None),
        (
            {"a": [math.nan], "b": [math.inf, math.nan, 1.0], "c": [1.0]},
            Finding("gradient", "b", None, 2, 3, ("a", "b")),
        ),
        ({"a": [1.0], "b": [1.0, -2e38, 2e38], "c": [3e38]}, Finding("norm", "c")),
        ({"a": [1.0], "b": [3e38, -3.1e38], "c": [3e38]}, Finding("norm", "b")),
    ],
)
def test_parameters_whose_gradient_is_not_finite(grads, finding):
    assert module._in_parameters(Parameters(**grads)) == finding


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        (["neuron.kind=relu", "train.clip_grad_norm=1"], "a lower train.lr"),
        (
            ["train.precision=fp16", "neuron.surrogate.width=1"],
            "a lower train.lr, train.clip_grad_norm=1, train.precision=fp32 or "
            "neuron.surrogate.width=0.3",
        ),
    ],
)
def test_only_advice_that_is_not_taken_is_given(keys, advice):
    recipe = small_recipe(*keys)
    assert module.advice(recipe.train, recipe.neuron, recipe.clipping) == advice


# ---- through the command


@pytest.mark.usefixtures("no_pictures")
def test_a_weight_gone_wrong_ends_a_run_that_says_where(recipe, capsys):
    tebn = "model.norm=tebn"
    assert main([recipe, tebn, "train.max_steps=7", "--run-dir", "run"]) == EXIT_DONE
    path = Path("run/checkpoints/last.pt")
    state = checkpoint.read_checkpoint(path)
    state["model"]["layer2.0.bn2.step_gain"][2] = math.nan
    state["recipe"] = state["recipe"].replace("max_steps = 7", "max_steps = 0")
    Path("run/recipe.toml").write_text(state["recipe"])
    checkpoint._rename(checkpoint._write_part(path, state), path)
    capsys.readouterr()
    assert main(["--resume", "run"]) == EXIT_NONFINITE
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    place = "it began at time step 2 (of 0, 1, ...) in the output of layer2.0.bn2"
    assert f"error: the norm of the gradient is nan at step 8; {place}" in error
    for words in ("a lower train.lr", "train.clip_grad_norm=1"):
        assert words in error

    report = json.loads(Path("run/nonfinite.json").read_text())
    assert report["step"] == 8
    assert (report["found"]["layer"], report["found"]["time_step"]) == ("layer2.0.bn2", 2)
    assert report["message"] in error
    nonfinite.main(["run/nonfinite.pt"])
    assert f"step 8: {place}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"a checkpoint, not a bad step; accepted: a nonfinite\.pt"):
        nonfinite.main(["run/checkpoints/last.pt"])


def test_a_run_whose_gradient_explodes_names_the_layer(recipe, capsys):
    """Nothing is injected: 7 layers of a surrogate 1e6 high."""
    assert main([recipe, *EXPLODES, "--run-dir", "run"]) == EXIT_NONFINITE
    error = capsys.readouterr().err
    assert "the norm of the gradient is " in error
    assert " at step 1; forward is finite, backward it began at time step " in error
    assert re.search(r" in the gradient of (layer\d\.0\.)?neuron\d \(\d+ of \d+ values\);", error)
    nonfinite.main(["run/nonfinite.pt"])
    place = capsys.readouterr().out.strip().removeprefix("step 1: ")
    assert place in error
