"""The training loop: what it computes, what it writes, and what it leaves alone."""

import errno
import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spiketriton.runs import checkpoint
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import EXIT_SIGTERM, warn_once
from spiketriton.system.ranks import Ranks
from spiketriton.training import environment
from spiketriton.training import trainer as trainer_module
from spiketriton.training.environment import describe, flushes_denormals, undisturbed
from spiketriton.training.guard import Diverged
from spiketriton.training.plan import Outcome
from spiketriton.training.session import Session
from spiketriton.training.testing import Tester
from spiketriton.training.trainer import Trainer
from spiketriton_kernels import use_backend
from tests.small_runs import (
    QUICK,
    Lines,
    as_on_a_gpu,
    assert_equal,
    last_state,
    small_recipe,
    small_trainer,
    untimed,
)

TRAIN_KEYS = {
    "kind", "step", "epoch", "seconds", "lr", "loss", "grad_norm", "images_per_s", "data_wait",
    "firing_rate", "peak_memory_mib",
}  # fmt: skip
EVAL_KEYS = {
    "kind", "step", "epoch", "seconds", "test_accuracy", "test_loss", "test_images",
    "test_chance", "test_chance_spread",
    "test_seconds",
}  # fmt: skip


def quick_trainer(path: Path, *overrides: str, **options: Any) -> Trainer:
    return small_trainer(path, *QUICK, *overrides, **options)


def weights(trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> tuple[Trainer, Outcome]:
    """The small run, trained to its end; nobody changes it."""
    trainer = quick_trainer(tmp_path_factory.mktemp("usual") / "run")
    return trainer, trainer.fit()


def test_rows_of_metrics(usual):
    rows = usual[0].folder.metrics.read()
    train = [row for row in rows if row["kind"] == "train"]
    tests = [row for row in rows if row["kind"] == "eval"]
    assert [row["step"] for row in train] == [4, 8, 12, 16, 20, 21]
    assert [(row["step"], row["epoch"]) for row in tests] == [(7, 1), (14, 2), (21, 3)]
    for row in train:
        assert row.keys() == TRAIN_KEYS
        assert min(row["loss"], row["grad_norm"], row["images_per_s"]) > 0
        assert 0 <= row["data_wait"] <= 1
        assert 0 < row["firing_rate"] < 1
        assert row["peak_memory_mib"] > 10
    for row in tests:
        assert row.keys() == EVAL_KEYS
        assert (0 <= row["test_accuracy"] <= 1, row["test_images"]) == (True, 50)
    for key in ("step", "seconds"):
        assert [row[key] for row in rows] == sorted(row[key] for row in rows)


def test_the_accuracy_is_that_of_the_whole_test_set(tmp_path):
    trainer = quick_trainer(tmp_path / "run", "train.epochs=2")
    outcome = trainer.fit()
    images, labels = (torch.cat(parts) for parts in zip(*trainer.data.test, strict=True))
    assert len(images) == 50  # in batches of 16: the last one is smaller
    trainer.model.eval()
    with torch.no_grad():
        currents = trainer.model(images).mean(0)
    right = (currents.argmax(1) == labels).sum().item()
    assert outcome.progress.test_score == right / 50
    assert 0 < right < 50
    loss = nn.functional.cross_entropy(currents, labels).item()
    assert outcome.progress.test_loss == pytest.approx(loss, rel=1e-4)


def test_testing_and_watching_leave_no_trace_in_training(tmp_path):
    few = ("data.train_images=48", "data.test_images=20")  # 9 steps
    often = small_trainer(tmp_path / "often", *few)
    often.fit()
    alone = small_trainer(tmp_path / "alone", *few, "monitor.enabled=false", "train.log_every=9")
    alone.plan = replace(alone.plan, test_every=alone.plan.steps)
    alone.fit()
    watched = small_trainer(tmp_path / "watched", *few, "train.log_every=1")
    watched.fit()
    for trainer in (alone, watched):
        assert_equal(weights(often), weights(trainer))
    assert often.model.training
    assert alone.folder.gradients.read() == []
    train, test = alone.folder.metrics.read()
    assert train["firing_rate"] is None
    assert test["step"] == 9


def test_the_ways_through_time_are_measured_once_after_a_step(tmp_path, monkeypatch):
    """Before training, which the first step's rows take, and after the last step, which the last verdict takes."""
    measured, through_time = [], trainer_module.Prober.through_time
    trainer = quick_trainer(tmp_path, "train.max_steps=4")

    def counted(prober):
        measured.append(prober)
        return through_time(prober)

    monkeypatch.setattr(trainer_module.Prober, "through_time", counted)
    trainer.fit()
    assert len(measured) == 2
    assert {*measured} == {trainer.probed}
    assert trainer.ways[0] == 4
    untrained, *_ = trainer.folder.judged.read()
    rows = trainer.folder.gradients.read()
    first, last = ([row["credit"] for row in rows if row["step"] == step] for step in (1, 4))
    assert first == pytest.approx([row["credit"] for row in untrained["rows"]])
    assert last == pytest.approx(trainer.ways[1].credit.flatten().tolist())


def test_a_seed_gives_one_run_and_another_seed_another(tmp_path):
    torch.rand(7)  # what happened before does not matter
    first = quick_trainer(tmp_path / "first")
    first.fit(until=5)
    second, other = quick_trainer(tmp_path / "second"), quick_trainer(tmp_path / "other", "seed=1")
    second.fit(until=5)
    other.fit(until=5)
    assert_equal(last_state(tmp_path / "first"), last_state(tmp_path / "second"))
    assert not torch.equal(first.model.fc.weight, other.model.fc.weight)


def test_parts_of_a_step_sum_to_the_gradient_of_the_whole(tmp_path):
    """Without batch norm and spikes, but for rounding."""
    alike = ["model.norm=none", "neuron.kind=relu", "train.optimizer=sgd", "train.lr=0.1"]
    whole = small_trainer(tmp_path / "whole", *alike)
    parts = small_trainer(tmp_path / "parts", *alike, "train.accumulate=4")
    start = weights(whole)
    for trainer in (whole, parts):
        trainer.fit(until=1)
    for name, value in weights(whole).items():
        moved = (value - start[name]).abs().max()
        assert 0 < moved >= 1e3 * (value - weights(parts)[name]).abs().max(), name
    assert whole.meters.peek()[0] == pytest.approx(parts.meters.peek()[0], rel=1e-5)


def test_clipping(tmp_path):
    """SGD without momentum moves by lr * gradient: by lr * limit when it is clipped."""
    sgd = ["train.optimizer=sgd", "train.momentum=0", "train.schedule=constant", "train.warmup=0"]
    norms = []
    for limit in (0, 0.01):
        trainer = quick_trainer(tmp_path / f"{limit}", *sgd, f"train.clip_grad_norm={limit}")
        start = weights(trainer)
        trainer.fit(until=1)
        changes = [value - start[name] for name, value in weights(trainer).items()]
        norms.append(trainer.meters.peek()[1])
        wanted = 0.01 * (limit or norms[0])
        assert nn.utils.get_total_norm(changes).item() == pytest.approx(wanted, rel=1e-3)
    assert norms[0] == norms[1] > 0.01  # what is logged is the norm before clipping
    assert quick_trainer(tmp_path / "auto", *sgd).update.limit == 1


@pytest.mark.parametrize(("world_size", "requested"), [(1, True), (1, False), (2, True)])
def test_a_failing_step_is_an_error_unless_a_signal_cut_it_off(tmp_path, requested, world_size):
    """With several ranks, which have lost each other by then, it is one either way."""

    class Some(Ranks):
        pass

    Some.world_size = world_size
    display = Lines()
    trainer = quick_trainer(tmp_path / "run", display=display, ranks=Some())

    def fails(currents: Tensor, labels: Tensor) -> Tensor:
        trainer.stop.signal = signal.SIGTERM if requested else None
        raise RuntimeError("worker exited")

    trainer.loss = fails
    if requested and world_size == 1:
        outcome = trainer.fit()
        assert (outcome.exit_code, outcome.saved_at) == (EXIT_SIGTERM, None)
        assert display.warnings == ["step 1 was cut off: worker exited"]
    else:
        with pytest.raises(RuntimeError, match="worker exited"):
            trainer.fit()
        assert display.warnings == []


def test_the_first_rank_alone_repeats_a_bad_step(tmp_path):
    class Second(Ranks):
        first = False

    trainer = quick_trainer(tmp_path / "run", ranks=Second())
    trainer.loss = lambda currents, labels: math.nan * currents.sum()
    with pytest.raises(Diverged, match="the first rank repeats the step"):
        trainer.fit()
    assert not (tmp_path / "run" / "nonfinite.json").exists()


@pytest.mark.parametrize("more", [[], ["train.mixup=0.2", "loss.class_weights=balanced"]])
def test_the_step_that_is_repeated_is_the_bad_one(tmp_path, monkeypatch, more):
    trainer = quick_trainer(tmp_path / "run", "train.accumulate=2", "train.log_every=1", *more)
    expected = list(islice(trainer.data.train.from_step(2), 2))
    loss, repeated = trainer.loss, []

    def breaks(currents: Tensor, labels: Tensor) -> Tensor:
        return loss(currents, labels) * (math.nan if trainer.step == 2 else 1.0)

    def locate(model, batches, *rest):
        repeated.extend(batches)

    trainer.loss = breaks
    monkeypatch.setattr("spiketriton.training.nonfinite.locate", locate)
    with pytest.raises(Diverged, match="the loss is nan at step 3; repeated layer by layer"):
        trainer.fit()
    for (images, labels), (theirs, answers) in zip(repeated, expected, strict=True):
        assert torch.equal(images, theirs)
        assert torch.equal(labels, answers)
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["step"] == 3


def test_max_steps_ends_within_an_epoch_with_a_test_and_a_checkpoint(tmp_path):
    outcome = quick_trainer(tmp_path / "run", "train.max_steps=10").fit()
    rows = RunFolder(tmp_path / "run").metrics.read()
    assert [(row["kind"], row["step"]) for row in rows[-2:]] == [("train", 10), ("eval", 10)]
    assert rows[-1]["epoch"] == pytest.approx(10 / 7, abs=1e-4)
    assert outcome.finished
    assert last_state(tmp_path / "run")["step"] == 10
    # without images held out nothing is called the best
    assert outcome.progress.best_score is None
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()


def test_the_best_is_chosen_by_validation_and_the_last_is_kept(tmp_path):
    keys = ["train.epochs=5", "train.lr=0.003", "data.validation=0.1"]
    trainer = quick_trainer(tmp_path / "run", *keys)
    outcome, held_out = trainer.fit(), trainer.data.validation.images
    tests = [row for row in RunFolder(tmp_path / "run").metrics.read() if row["kind"] == "eval"]
    assert [row["validation_images"] for row in tests] == [held_out] * 5
    best = max(tests, key=lambda row: row["validation_accuracy"])  # the first of the best
    saved = checkpoint.read_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    assert saved["step"] == outcome.progress.best_step == best["step"]
    found = outcome.progress
    assert saved["best_score"] == found.best_score
    assert found.best_score == pytest.approx(best["validation_accuracy"], rel=1e-6)
    assert found.best_test_score == best["test_accuracy"]
    assert last_state(tmp_path / "run")["step"] == 35


def test_a_class_of_few_images_weighs_as_much_as_one_of_many(tmp_path):
    trainer = quick_trainer(tmp_path / "run", "loss.class_weights=balanced")
    counts = trainer.data.facts.class_counts
    currents = torch.zeros(3, 1, 10)
    weighed = [n * trainer.loss(currents, torch.tensor([k])).item() for k, n in enumerate(counts)]
    assert weighed == pytest.approx([12 * math.log(10)] * 10)


@pytest.mark.parametrize(("every", "due"), [(0, [7, 14, 21]), (4, [4, 7, 8, 12, 14, 16, 20, 21])])
def test_checkpoints_are_written_when_due(tmp_path, every, due, monkeypatch):
    trainer = quick_trainer(tmp_path / "run", f"checkpoint.every={every}")
    steps: list[int] = []
    save = trainer.checkpoints.save_last
    monkeypatch.setattr(
        trainer.checkpoints, "save_last", lambda state: steps.append(state["step"]) or save(state)
    )
    trainer.fit()
    assert steps == sorted([*due, 7, 14, 21])  # those once more with the result of their test


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch):
    trainer = quick_trainer(tmp_path / "run")
    write = checkpoint._write_part

    def full(path, state):
        if state["step"] == 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, state)

    monkeypatch.setattr(checkpoint, "_write_part", full)
    assert trainer.fit().finished
    said = "\n".join(trainer.display.warnings)
    assert "last.pt of step 14 could not be written: No space left" in said
    assert last_state(tmp_path / "run")["step"] == 21


@contextmanager
def reads(monkeypatch) -> Iterator[list[str]]:
    """Collects what makes the host wait for a device: values read from tensors."""
    found: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "__index__"):
            read = getattr(Tensor, name)
            seen = lambda *given, name=name, read=read: found.append(name) or read(*given)  # noqa: E731
            patch.setattr(Tensor, name, seen)
        yield found


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["train.mixup=0.2", "train.cutmix=1", "data.augmentation.cutout=3", "loss.kind=tet"],
        ["data.augmentation.erasing=0.5", "train.ema=0.9", "loss.class_weights=balanced"],
    ],
    ids=["plain", "mixed", "averaged"],
)
def test_a_step_reads_nothing_back_and_a_row_does(tmp_path, monkeypatch, more):
    """(SGD: AdamW keeps its step count on the host and reads it there, which waits for nothing.)"""
    overrides = ["train.optimizer=sgd", "train.accumulate=2", "train.clip_grad_norm=1", *more]
    trainer = small_trainer(tmp_path / "run", *overrides, "train.log_every=100")
    trainer.fit(until=2)
    with trainer.session():
        with reads(monkeypatch) as step:
            trainer.train_step()
        with reads(monkeypatch) as row:
            trainer.log()
    assert step == []
    assert row == ["tolist"] * 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(tmp_path, monkeypatch, precision):
    monkeypatch.setattr(environment, "choose_precision", as_on_a_gpu)
    # the ways through time are told apart in float32
    keys = (f"train.precision={precision}", "train.epochs=6", "monitor.enabled=false")
    trainer = small_trainer(tmp_path / "run", *keys)
    seen: set[torch.dtype] = set()
    trainer.model.get_submodule("layer2.0.conv1").register_forward_hook(
        lambda module, inputs, output: seen.add(output.dtype)
    )
    # in float16 C++ would be compiled for this alone
    with use_backend("torch" if precision == "fp16" else "auto"):
        trainer.fit()
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    losses = [row["loss"] for row in trainer.folder.metrics.read() if row["kind"] == "train"]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("wanted", ["auto", "fp16"])
@pytest.mark.parametrize("instructions", [["amx_bf16", "avx512_bf16"], []])
def test_a_cpu_computes_in_the_precision_that_it_has_instructions_for(
    tmp_path, monkeypatch, capsys, wanted, instructions
):
    monkeypatch.setattr("spiketriton.system.machine.bf16_instructions", lambda: instructions)
    warn_once.cache_clear()
    display = Lines()
    recipe, folder = (
        small_recipe(
            *QUICK, f"train.precision={wanted}", "train.max_steps=1", "monitor.enabled=false"
        ),
        RunFolder(tmp_path),
    )
    seen: list[torch.dtype] = []
    build = trainer_module.build_model

    def saw(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:  # in a step
            seen.append(output.dtype)

    def watched(*given: Any, **sizes: Any) -> Any:
        model = build(*given, **sizes)
        model.fc.register_forward_hook(saw)
        return model

    monkeypatch.setattr(trainer_module, "build_model", watched)
    outcome = Session(recipe, folder, display, Ranks(), draws=False).train()
    assert outcome.finished
    name, dtype = ("bf16", torch.bfloat16) if instructions else ("fp32", torch.float32)
    assert seen == [dtype]
    said = ", ".join(instructions) or "no bf16"
    assert f"precision: {name}, because this CPU has {said} instructions\n" in display.text
    warned = f'"fp16" is many times slower than fp32 on a CPU: this one computes in {name}\n'
    assert capsys.readouterr().err.endswith(warned) == (wanted == "fp16")
    assert folder.sessions()[0]["precision"] == name


def test_compiled_model_is_what_runs(tmp_path, monkeypatch):
    calls: list[nn.Module] = []

    def compiled(model: nn.Module, **options: Any) -> nn.Module:
        calls.append(model)
        return lambda images: model(images) * 1.0  # type: ignore[return-value]

    monkeypatch.setattr(torch, "compile", compiled)
    trainer = quick_trainer(tmp_path / "run", "train.compile=true", "train.max_steps=2")
    trainer.fit()
    assert calls == [trainer.model]
    assert "_orig_mod" not in "".join(last_state(tmp_path / "run")["model"])


@pytest.mark.slow
def test_a_compiled_run_trains_and_measures(tmp_path):
    compiled = small_trainer(tmp_path / "compiled", "train.compile=true", "train.max_steps=8")
    compiled.fit()
    eager = small_trainer(tmp_path / "eager", "train.max_steps=8")
    eager.fit()
    rows = [RunFolder(tmp_path / name).gradients.read() for name in ("compiled", "eager")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for a, b in zip(*rows, strict=True):
        if a["step"] == 1:
            assert a["grad_input_rms"] == pytest.approx(b["grad_input_rms"], rel=1e-2)


def test_the_time_of_tests_is_not_that_of_training(tmp_path, monkeypatch):
    class Clock(Lines):
        now = 0.0

        def testing(self, done: int, batches: int) -> None:
            self.now += 1000

    clock = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    trainer = quick_trainer(tmp_path / "run", display=clock)
    norm = trainer.update.gradient_norm

    def second() -> Tensor:
        clock.now += 1  # a step's
        return norm()

    trainer.update.gradient_norm = second  # type: ignore[assignment]
    trainer.fit()
    rows = RunFolder(tmp_path / "run").metrics.read()
    assert {row["images_per_s"] for row in rows if row["kind"] == "train"} == {16.0}
    assert {row["test_seconds"] for row in rows if row["kind"] == "eval"} == {4000.0}
    assert rows[-1]["seconds"] == 3 * 4000 + 21


def test_denormal_numbers_are_zero_while_it_trains(tmp_path, monkeypatch):
    trainer, seen = small_trainer(tmp_path / "run", *QUICK, "train.max_steps=2"), []
    step = trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda: (seen.append(flushes_denormals()), step()))
    trainer.fit()
    assert seen == [True, True]
    assert not flushes_denormals()


def test_two_calls_of_fit_are_one_run(usual, tmp_path):
    once, twice = usual[0], quick_trainer(tmp_path / "twice")
    twice.fit(until=9)
    twice.fit()
    assert_equal(last_state(once.folder.path), last_state(tmp_path / "twice"))
    rows = [untimed(trainer.folder.metrics.read()) for trainer in (once, twice)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("chosen", "kept"), [(0, 2), (1, 1)])
def test_a_resumed_run_has_the_threads_that_it_had(tmp_path, monkeypatch, chosen, kept):
    """They change the bits; a processor that is busy now must not."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("spiketriton.system.machine.usable", lambda: 2)
    monkeypatch.setattr("spiketriton.system.machine.taken", lambda: 0.0)
    words = [f"train.threads={chosen}", "train.max_steps=4"]
    with undisturbed():
        torch.set_num_threads(2)
        run = quick_trainer(tmp_path / "run", *words)
        run.folder.begin_session(run.recipe, describe(run.device))
        run.fit(until=2)
        monkeypatch.setattr("spiketriton.system.machine.taken", lambda: 1.0)
        quick_trainer(tmp_path / "run", *words, resume=True)
        assert torch.get_num_threads() == kept
        quick_trainer(tmp_path / "new", *words)
        assert torch.get_num_threads() == 1


def test_a_test_that_fails_costs_no_step(usual, tmp_path, monkeypatch):
    trainer = quick_trainer(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Tester, "tested", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.fit()
    assert last_state(tmp_path / "run")["step"] == 7
    quick_trainer(tmp_path / "run", resume=True).fit()
    unbroken = usual[0].folder
    assert_equal(last_state(unbroken.path), last_state(tmp_path / "run"))
    older = checkpoint.read_checkpoint(unbroken.checkpoints / "last.1.pt")
    assert older["step"] == 14  # the one before the test gave way to the one after it
