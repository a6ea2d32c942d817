"""A loss or gradient that is not finite: nothing is changed by it, and its first place is named."""

import copy
import dataclasses
import json
import math
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spiketriton.data import TrainStream
from spiketriton.data.stream import CPU
from spiketriton.gradients.prober import Prober
from spiketriton.runs import checkpoint
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import EXIT_DONE, EXIT_NONFINITE
from spiketriton.train import main
from spiketriton.training import environment, optim
from spiketriton.training import nonfinite as module
from spiketriton.training.guard import Diverged
from spiketriton.training.nonfinite import Finding, locate
from spiketriton.training.trainer import Trainer
from tests.small_runs import (
    QUICK,
    Lines,
    as_on_a_gpu,
    assert_equal,
    last_state,
    small_recipe,
    small_trainer,
)

SKIP = ["train.nonfinite=skip"]


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
    optimizer = trainer.update.optimizer.state_dict()["state"]
    return copy.deepcopy({"model": trainer.model.state_dict(), "optimizer": optimizer})


# ---- a bad step changes nothing

KINDS = {
    "adamw": [
        "train.accumulate=2",
        "train.weight_decay=0.1",
        "neuron.kind=plif",
        "model.norm=tebn",
    ],
    "sgd": [*QUICK, "train.optimizer=sgd", "train.weight_decay=0.1", "train.clip_grad_norm=1"],
    "muon": [*QUICK, "train.optimizer=muon", "train.weight_decay=0.1", "neuron.kind=plif"],
    "sgd without momentum": [*QUICK, "train.optimizer=sgd", "train.momentum=0"],
    "fp16": [*QUICK, "train.precision=fp16"],
    "muon, fp16": [*QUICK, "train.optimizer=muon", "train.precision=fp16"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [1, 3])  # in the first step torch begins the optimizer's state
def test_a_skipped_step_changes_no_bit(tmp_path, monkeypatch, kind, bad):
    monkeypatch.setattr(environment, "choose_precision", as_on_a_gpu)
    trainer = poison(small_trainer(tmp_path / "run", *KINDS[kind], *SKIP, "train.warmup=0"), bad)
    trainer.fit(until=bad - 1)
    before = all_state(trainer)
    trainer.fit(until=bad)
    assert_equal(all_state(trainer), before)
    trainer.fit(until=bad + 1)
    assert not torch.equal(trainer.model.fc.weight, before["model"]["fc.weight"])
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_under_stop_the_model_is_that_of_before_the_bad_step(tmp_path):
    """Read five steps later, and yet exactly known."""
    slow = (*QUICK, "train.log_every=8", "train.epochs=2")
    trainer = poison(small_trainer(tmp_path / "run", *slow), 3)
    clean = small_trainer(tmp_path / "clean", *slow)
    clean.fit(until=2)
    with pytest.raises(
        Diverged, match=r"gradient is nan at step 3; it began in the images \(1 of 1024"
    ):
        trainer.fit()
    assert trainer.step > 3
    assert_equal(all_state(trainer), all_state(clean))


def test_no_checkpoint_is_written_of_a_run_that_has_gone_wrong(tmp_path):
    same = [*QUICK, "train.log_every=100", "checkpoint.every=2"]
    trainer = poison(small_trainer(tmp_path / "run", *same), 3)
    with pytest.raises(Diverged):
        trainer.fit()
    assert last_state(tmp_path / "run")["step"] == 2
    trainer = poison(small_trainer(tmp_path / "tested", *same[:-1]), 6)
    with pytest.raises(Diverged):
        trainer.fit()
    assert not list((tmp_path / "tested" / "checkpoints").iterdir())  # step 7 ends an epoch


# ---- skipping


def test_a_bad_batch_is_left_out_of_the_mean_and_reported(tmp_path):
    same = [*QUICK, *SKIP, "neuron.kind=relu"]  # spikes would hide the infinity from the loss
    rows = {}
    for every in (1, 4):
        display, path = Lines(), tmp_path / f"{every}"
        trainer = small_trainer(path, *same, f"train.log_every={every}", display=display)
        poison(trainer, 3).fit(until=4)
        rows[every] = [row["loss"] for row in RunFolder(path).metrics.read()]
        assert display.warnings == [
            "1 step was left out, the last one step 3, where the loss is nan; 1 in total"
        ]
    first, second, bad, last = rows[1]
    assert bad is None
    assert rows[4] == [pytest.approx((first + second + last) / 3, rel=1e-6)]


def test_a_resumed_run_keeps_counting(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "SKIPS", 2)
    poison(small_trainer(tmp_path / "run", *QUICK, *SKIP), 8, 9).fit(until=9)
    display = Lines()
    resumed = small_trainer(tmp_path / "run", *QUICK, *SKIP, resume=True, display=display)
    assert resumed.recorder.watch._rows == resumed.folder.metrics.read() != []
    poison(resumed, 11).fit(until=12)
    assert [line[:16] + line[-10:] for line in display.warnings] == ["1 step was left 3 in total"]

    poison(small_trainer(tmp_path / "row", *QUICK, *SKIP), 8, 9).fit(until=9)
    resumed = small_trainer(tmp_path / "row", *QUICK, *SKIP, resume=True)
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
    step, values = (0 if neuron == "lif" else None), 8 * 8 * 4 * 4  # of a micro-batch at that step
    bad = Finding("output", "layer2.0.conv1", step, values // 8, values, ("weight",))
    assert located(trainer) == bad
    assert "layer2.0.conv1" in bad.in_words()
    assert "whose weight is not finite" in bad.in_words()


def test_a_current_is_named_that_no_spike_shows(tmp_path):
    """The stem's: a current that is not finite fires or not, and both are finite."""
    trainer = small_trainer(tmp_path / "run")
    trainer.model.bn1.bias.data[1] = math.nan  # type: ignore[union-attr]
    batch = 16 * 4 * 8 * 8  # of four channels
    assert located(trainer) == Finding("input current", "neuron1", 0, batch // 4, batch)


# a surrogate 1e6 high, in blocks that are open and whose shortcuts pass it
EXPLODES = (
    *("neuron.surrogate.height=1e6", "neuron.surrogate.width=1", "model.residual_gain=1"),
    *("model.residual_bias=0", "model.shortcut_gradient=surrogate"),
)


@pytest.mark.parametrize("changed", ["neuron.detach_reset=false", "model.checkpoint_blocks=true"])
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
    assert found.layer in dict(trainer.model.named_parameters())


@pytest.mark.parametrize(
    ("neuron", "layer", "again"), [("relu", "fc", "false"), ("lif", "layer3.0.neuron2", "true")]
)
def test_a_gradient_that_the_loss_breaks_is_that_of_the_last_layer(tmp_path, neuron, layer, again):
    keys = [f"neuron.kind={neuron}", f"model.checkpoint_blocks={again}"]
    trainer = small_trainer(tmp_path / "run", *keys)
    trainer.loss = lambda currents, labels: (0 * currents).abs().sqrt().sum()  # 0 / 0 in backward
    found = located(trainer)
    step, values = (2, 16 * 16 * 2 * 2) if neuron == "lif" else (None, 16 * 10)
    assert found == Finding("gradient", layer, step, values, values)


@pytest.mark.parametrize(
    ("grads", "finding"),
    [
        ({"a": [1.0, 2.0], "b": None, "c": [3.0]}, None),
        (
            {"a": [math.nan], "b": [math.inf, math.nan, 1.0], "c": [1.0]},
            Finding("gradient", "b", None, 2, 3, ("a", "b")),
        ),
        ({"a": [1.0], "b": [3e38, -3.1e38], "c": [3e38]}, Finding("norm", "b")),
    ],
)
def test_parameters_whose_gradient_is_not_finite(grads, finding):
    net = torch.nn.Module()
    for name, grad in grads.items():
        p = torch.nn.Parameter(torch.zeros(len(grad or ())))
        p.grad = None if grad is None else torch.tensor(grad)
        net.register_parameter(name, p)
    assert module._in_parameters(net) == finding


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        (["neuron.kind=relu", "train.clip_grad_norm=1"], "a lower train.lr"),
        (
            ["train.precision=bf16", "neuron.surrogate.width=1"],
            "a lower train.lr, train.clip_grad_norm=1, train.precision=fp32 or "
            "neuron.surrogate.width=0.3",
        ),
        (
            ["neuron.detach_reset=false", "neuron.surrogate.height=5", "train.clip_grad_norm=1"],
            "a lower train.lr, neuron.surrogate.height=1 or neuron.detach_reset=true",
        ),
    ],
)
def test_only_advice_that_is_not_taken_is_given(keys, advice):
    recipe = small_recipe(*keys)
    half = recipe.train.precision != "fp32"
    assert module.advice(half, recipe.neuron, recipe.clipping) == advice


# ---- through the command


@pytest.mark.usefixtures("no_pictures")
def test_a_weight_gone_wrong_ends_a_run_that_says_where(recipe, capsys):
    changes = ["model.norm=tebn", "model.block=plain"]
    assert main([recipe, *changes, "train.max_steps=7", "--run-dir", "run"]) == EXIT_DONE
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
