"""Several ranks compute the run of one rank, and end together.

Two gloo processes. What needs no launch of its own runs in a shared one, `play`; the tests read its folders.
"""

import json
import signal
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from spiketriton.system.errors import EXIT_DONE, EXIT_SIGTERM
from spiketriton.system.group import TIMEOUT
from spiketriton.system.ranks import Ranks
from spiketriton.system.torchrun import ranks_of_torchrun
from spiketriton.training.guard import Diverged
from spiketriton.training.trainer import Trainer
from tests.processes import said, start_ranks
from tests.small_runs import (
    assert_equal,
    last_state,
    small_trainer,
    untimed,
)

SHORT = ["train.max_steps=5", "train.log_every=2", "data.test_images=51", "data.train_images=80"]
SYNC = [*SHORT, "train.sync_bn=true"]
MLP = ["model.name=mlp", "model.depth=3", "model.width=16"]
SAME = {
    "resnet8": [],
    "accumulate": [*MLP, "train.accumulate=2", "train.clip_grad_norm=0.5"],
    "unfused": ["model.fused=false", "train.optimizer=sgd", "neuron.kind=plif"],
    # by SGD: while its branches are closed, biases before a norm have gradients of rounding alone, and Adam divides
    # them by their size
    "ms": [
        *("model.block=ms", "model.norm=tebn", "loss.kind=tet", "model.memory=packed"),
        "train.optimizer=sgd",
    ],
    "mixed": [
        *("data.augmentation.cutout=3", "data.augmentation.erasing=0.3"),
        *MLP,
        *("train.mixup=0.2", "train.cutmix=1", "train.accumulate=2", "loss.kind=tet"),
        "loss.class_weights=balanced",
    ],
    "sequence": ["data.sequence=rows", "time_steps=8", "model.name=sequence", "model.depth=2"],
    "ragged": [  # sequences of different lengths
        *('plugins.modules=["tests.small_sequences"]', "data.name=tones", "data.image_size=0"),
        *("time_steps=12", "model.name=sequence", "model.depth=2", "model.norm=none"),
        *("data.train_images=0", "data.test_images=0"),
    ],
    # somebody's network, with a weight that nothing reads, and none of our norms
    "spare": ["model.name=tests.models.foreign_nets:Spare", "train.ema=0.9"],
    # without spikes: a membrane within rounding of the threshold would make two runs differ
    "averaged": [
        *(*MLP, "neuron.kind=relu", "data.validation=0.1"),
        *("train.ema=0.9", "train.freeze=layers.0", "train.decay_norms=true"),
        *("train.weight_decay=0.1", "train.schedule=step", "train.milestones=[0.4]"),
    ],
}


def synchronised(keys: list[str]) -> list[str]:
    """Of all runs whose norms are ours."""
    return [*(SHORT if keys is SAME["spare"] else SYNC), *keys]


def play(root: Path) -> None:
    """All runs of two ranks that the tests look at; called by both."""
    torch.set_num_threads(1)
    with ranks_of_torchrun() as ranks:
        wait_for_a_slow_disk(ranks)
        exchanges: list[int] = []
        for name, keys in SAME.items():
            trainer = small_trainer(root / name, *synchronised(keys), ranks=ranks)
            if name == "accumulate":
                trainer.forward.register_comm_hook(exchanges, counted)
            trainer.fit()
        assert len(exchanges) == 5, "gradients are exchanged once a step, not once a micro-batch"

        small_trainer(root / "apart", *SHORT, ranks=ranks).fit(until=2)
        apart = small_trainer(root / "apart", *SHORT, resume=True, ranks=ranks)
        apart.fit()
        torch.save(apart.model.state_dict(), root / f"apart of rank {ranks.rank}.pt")
        small_trainer(root / "unbroken", *SHORT, ranks=ranks).fit()

        small = ["train.precision=bf16", "train.sync_bn=true"]
        half = small_trainer(root / "bf16", *SHORT, *small, ranks=ranks)
        half.fit(until=2)
        half = small_trainer(root / "bf16", *SHORT, *small, resume=True, ranks=ranks)
        half.fit()
        torch.save(half.model.state_dict(), root / f"bf16 of rank {ranks.rank}.pt")
        small_trainer(root / "bf16 unbroken", *SHORT, *small, ranks=ranks).fit()

        small_trainer(root / "two then one", *SYNC, *MLP, ranks=ranks).fit(until=2)
        small_trainer(root / "one then two", *SYNC, *MLP, resume=True, ranks=ranks).fit()

        stopped = small_trainer(root / "stopped", *SHORT, *MLP, ranks=ranks)
        signal_after(stopped, 3, rank=1)
        assert stopped.fit().exit_code == EXIT_SIGTERM

        broken = small_trainer(root / "broken", *SHORT, *MLP, ranks=ranks)
        break_loss_at(broken, 4, rank=1)
        with pytest.raises(Diverged):
            broken.fit()
        torch.save(broken.model.state_dict(), root / f"broken of rank {ranks.rank}.pt")


def wait_for_a_slow_disk(ranks: Ranks) -> None:
    """The first rank may take longer for what all wait for than any collective may."""
    set_timeout = dist.distributed_c10d._set_pg_timeout
    set_timeout(timedelta(seconds=1))
    assert ranks.decide(lambda: time.sleep(2) or "written") == "written"
    set_timeout(TIMEOUT)


def counted(exchanges: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    exchanges.append(bucket.index())
    return allreduce_hook(dist.group.WORLD, bucket)


def signal_after(trainer: Trainer, step: int, rank: int) -> None:
    def advance(done: int) -> None:
        if done == step and trainer.ranks.rank == rank:
            signal.raise_signal(signal.SIGTERM)

    trainer.display.advance = advance  # type: ignore[method-assign]


def break_loss_at(trainer: Trainer, step: int, rank: int) -> None:
    loss = trainer.loss

    def broken(currents: Tensor, labels: Tensor) -> Tensor:
        bad = trainer.step == step - 1 and trainer.ranks.rank == rank
        return loss(currents, labels) * (float("nan") if bad else 1.0)

    trainer.loss = broken


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("played")
    small_trainer(root / "one then two", *SYNC, *MLP).fit(until=2)
    code = "import sys, tests.ranks.test_ranks as t; t.play(t.Path(sys.argv[1]))"
    processes = start_ranks("-c", code, str(root), folder=root)
    output = said(processes)
    assert [process.returncode for process in processes] == [EXIT_DONE, EXIT_DONE], output
    return root


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """None of gradients, where there are no spiking layers."""
    lines = (folder / name).read_text().splitlines() if (folder / name).exists() else []
    return untimed([json.loads(line) for line in lines])


def assert_same_run(one: Path, two: Path) -> None:
    """Weights, statistics of batch norm, metrics and gradients, to float tolerance."""

    def near(value: Any) -> Any:
        return pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value

    for name in ("metrics.jsonl", "gradients.jsonl"):
        expected = [{key: near(value) for key, value in row.items()} for row in rows(one, name)]
        assert rows(two, name) == expected
    models = (dict(last_state(run)["model"]) for run in (two, one))
    torch.testing.assert_close(*models, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SAME)
def test_two_ranks_are_one_rank_with_the_same_batch(played, tmp_path, kind):
    small_trainer(tmp_path / "one", *synchronised(SAME[kind])).fit()
    assert_same_run(tmp_path / "one", played / kind)


def test_without_synchronised_statistics_ranks_hold_their_means(played, tmp_path):
    """Both ranks the same ones, which are in the checkpoint, and with which the test was made."""
    zero, one = (torch.load(played / f"apart of rank {rank}.pt") for rank in range(2))
    assert_equal(zero, one)
    assert_equal(dict(last_state(played / "apart")["model"]), dict(zero))
    with pytest.raises(AssertionError):
        assert_same_run(played / "resnet8", played / "apart")

    alone = small_trainer(tmp_path / "alone", *SHORT)
    alone.model.load_state_dict(zero)
    silent = replace(alone.tester, tell=lambda *_: None)
    found = silent.tested(alone.data.test, None)
    assert found is not None
    last = rows(played / "apart", "metrics.jsonl")[-1]
    assert last["test_accuracy"] == pytest.approx(found.score.value)
    assert last["test_loss"] == pytest.approx(found.loss, rel=1e-5)
    assert last["test_images"] == 51


def test_a_resumed_run_of_two_ranks_has_the_same_bits(played):
    assert_equal(last_state(played / "unbroken"), last_state(played / "apart"))
    for name in ("metrics.jsonl", "gradients.jsonl"):
        assert rows(played / "unbroken", name) == rows(played / "apart", name)


def test_ranks_in_bf16_hold_the_same_weights_and_resume_to_the_same_bits(played, tmp_path):
    """And train as one rank does, up to the rounding of each rank's gradients to bf16."""
    zero, one = (torch.load(played / f"bf16 of rank {rank}.pt") for rank in range(2))
    assert_equal(zero, one)
    assert_equal(last_state(played / "bf16 unbroken"), last_state(played / "bf16"))
    alone = small_trainer(tmp_path / "one", *SYNC, "train.precision=bf16")
    alone.fit()
    folders = (played / "bf16", tmp_path / "one", played / "resnet8")
    two, one, in_fp32 = (rows(folder, "metrics.jsonl")[0]["loss"] for folder in folders)
    assert two == pytest.approx(one, rel=0.01)
    assert two != pytest.approx(in_fp32, rel=1e-5)


@pytest.mark.parametrize("order", ["two then one", "one then two"])
def test_a_run_continues_with_another_number_of_ranks(played, tmp_path, order):
    if order == "two then one":
        small_trainer(played / order, *SYNC, *MLP, resume=True).fit()
    small_trainer(tmp_path / "unbroken", *SYNC, *MLP).fit()
    assert_same_run(tmp_path / "unbroken", played / order)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(played):
    assert last_state(played / "stopped")["step"] == 3


def test_a_loss_that_is_not_finite_on_one_rank_changes_no_weight_on_any(played):
    zero, one = (torch.load(played / f"broken of rank {rank}.pt") for rank in range(2))
    assert_equal(zero, one)
    assert all(value.isfinite().all() for value in zero.values())
    assert json.loads((played / "broken" / "nonfinite.json").read_text())["step"] == 4


def test_all_ranks_write_once(played):
    """One session, and each row once: the second rank wrote nothing."""
    steps = [row["step"] for row in rows(played / "resnet8", "metrics.jsonl")]
    assert steps == [2, 4, 5, 5]
    assert len(json.loads((played / "resnet8" / "environment.json").read_text())) == 1
