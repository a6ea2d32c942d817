"""Out of memory: what is said, the micro-batch that fits, and blocks that are computed again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from profiling.harness.memory import peak_bytes
from spiketriton.data import Data, Facts, build_data
from spiketriton.models import build_model
from spiketriton.plugins.tasks import Classification
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import EXIT_USER, UserError
from spiketriton.system.ranks import Ranks
from spiketriton.training.gpu import memory_limit
from spiketriton.training.gpu.memory_limit import OutOfMemory, explained, settle
from spiketriton.training.meters import is_out_of_memory
from spiketriton.training.randomness import random_state, seed_everything
from tests.processes import done
from tests.small_runs import QUICK, assert_equal, last_state, small_recipe, small_trainer, untimed

CPU = torch.device("cpu")
GPU_ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")
CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 1048576000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture
def tried_here(monkeypatch):
    """Sizes are tried on this CPU, as on a GPU."""
    monkeypatch.setattr(memory_limit, "TRIED", ("cpu",))


# ---- the one line


def test_what_counts_as_out_of_memory():
    for error in (GPU_ERROR, CPU_ERROR, MemoryError(), RuntimeError("std::bad_alloc")):
        assert is_out_of_memory(error)
    for other in (RuntimeError("shapes differ"), OSError("can't allocate memory"), ValueError()):
        assert not is_out_of_memory(other)


@pytest.mark.usefixtures("tried_here")
@pytest.mark.parametrize(("error", "asked"), [(GPU_ERROR, "2.50 GiB"), (CPU_ERROR, "1000.0 MiB")])
def test_the_line_says_what_was_asked_and_what_lowers_it(error, asked):
    line = str(explained(error, small_recipe(), CPU, 16))
    assert f"{asked} more was asked for, the peak of this process was " in line
    assert "a micro-batch is 16 images (train.batch_size = 16)" in line
    keys = [
        "train.micro_batch=8 or auto",
        "model.memory=packed",
        "train.precision=bf16",
        "a lower train.batch_size",
        "model.checkpoint_blocks=true",
    ]
    places = [line.index(key) for key in keys]
    assert places == sorted(places)


@pytest.mark.usefixtures("tried_here")
@pytest.mark.parametrize(
    ("changes", "images", "gone"),
    [
        (["train.micro_batch=auto"], 8, ["or auto"]),
        ([], 1, ["train.micro_batch"]),
        (["neuron.kind=relu"], 8, ["model.memory"]),
        (["model.memory=packed", "train.precision=bf16"], 8, ["model.memory", "train.precision"]),
        (["train.batch_size=1", "model.checkpoint_blocks=true"], 1, ["batch_size", "blocks"]),
        (["model.name=plain", "model.width=4"], 8, ["checkpoint_blocks"]),
        (["model.name=mlp", "model.memory=recomputed"], 8, ["checkpoint_blocks", "model.memory"]),
        (["train.compile=true"], 8, ["checkpoint_blocks"]),
    ],
)
def test_what_the_recipe_has_done_already_is_not_proposed(changes, images, gone):
    line = str(explained(CPU_ERROR, small_recipe(*changes), CPU, images))
    tips = line.partition("lowers it:")[2]
    assert tips
    assert not any(key in tips for key in gone)


def test_a_run_that_is_too_large_says_so_in_one_line(recipe):
    """Really: 252 MB for one tensor, of the 150 MB that the system gives to that process."""
    small_trainer(Path("warm")).fit(until=1)  # a compiler would not live on so little
    code = (
        "import pathlib, re, resource\n"
        "from spiketriton.train import main\n"
        "from spiketriton.training import session\n"
        "from spiketriton.system.errors import run_command\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "limit = 1024 * int(re.search(r'VmData:\\s+(\\d+)', status)[1]) + 150 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))\n"
        "run_command(main)"
    )
    large = ["time_steps=8", "model.width=64", "data.image_size=32", "train.batch_size=120"]
    ended = done("-c", code, recipe, *large, "--run-dir", "run", folder=Path.cwd())
    assert ended.returncode == EXIT_USER, ended.stderr
    assert ended.stderr.startswith("error: out of memory on cpu: ")
    assert "a micro-batch is 120 images" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(("error", "place"), [(GPU_ERROR, "train_step"), (CPU_ERROR, "evaluate")])
def test_wherever_a_run_meets_it(tmp_path, monkeypatch, error, place):
    trainer = small_trainer(tmp_path / "run", *QUICK, "train.micro_batch=8")

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(trainer, place, fails)
    with pytest.raises(OutOfMemory, match=r"a micro-batch is 8 images.*train\.micro_batch=4"):
        trainer.fit()


# ---- the micro-batch that fits


def trial_of(limit: int, tried: list[int]) -> Callable[..., None]:
    """Fits so many images and no more; draws random numbers, as a real one does."""

    def trial(
        recipe: object, facts: object, frames: int, share: int, ranks: int, images: int
    ) -> None:
        tried.append(images)
        torch.rand(3)
        if images > limit:
            raise CPU_ERROR

    return trial


def settled(path: Path, *overrides: str, ranks: Ranks | None = None) -> tuple[Data, list[str]]:
    """The data of a run in this folder, and what was noted."""
    recipe, ranks, notes = small_recipe("train.micro_batch=auto", *overrides), ranks or Ranks(), []
    data = build_data(recipe, world_size=ranks.world_size)
    return settle(recipe, data, RunFolder.create(path, "small"), notes.append, ranks), notes


@pytest.mark.usefixtures("tried_here")
@pytest.mark.parametrize(
    ("batch", "limit", "tries", "more"),
    [
        (16, 99, [16], []),
        (60, 19, [60, 30, 20, 15], []),
        (7, 6, [7, 1], []),
        (60, 19, [60, 30, 20, 12], ["train.mixup=1"]),  # only even ones make pairs
    ],
)
def test_the_largest_divisor_that_fits(tmp_path, monkeypatch, batch, limit, tries, more):
    tried: list[int] = []
    monkeypatch.setattr(memory_limit, "trial", trial_of(limit, tried))
    seed_everything(5)
    before = random_state()
    found, notes = settled(tmp_path, f"train.batch_size={batch}", *more)
    assert_equal(random_state(), before)
    size = tries[-1]
    assert tried == tries
    assert (found.train.batch_size, found.train.accumulate) == (batch, batch // size)
    assert found.test.batch_size == size
    assert notes == [f"micro-batch: {size} of {batch} images, the largest that fits in memory"]

    again, notes = settled(tmp_path, f"train.batch_size={batch}", *more)
    assert tried == tries  # it is not tried again: the run has begun
    assert again.train.accumulate == found.train.accumulate
    assert notes == [f"micro-batch: {size} of {batch} images, as this run began"]


def test_on_a_cpu_nothing_is_tried(tmp_path, monkeypatch):
    tried: list[int] = []
    monkeypatch.setattr(memory_limit, "trial", trial_of(0, tried))
    assert "or auto" not in str(explained(CPU_ERROR, small_recipe(), CPU, 16))
    found, notes = settled(tmp_path)
    assert (tried, found.train.accumulate) == ([], 1)
    assert notes == ["micro-batch: 16 of 16 images, as none is tried on a CPU"]
    assert json.loads((tmp_path / "micro_batch.json").read_text()) == {"micro_batch": 16}


@pytest.mark.usefixtures("tried_here")
def test_not_even_one_image_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_limit, "trial", trial_of(0, []))
    with pytest.raises(OutOfMemory, match="a micro-batch is 1 images"):
        settled(tmp_path)
    assert not (tmp_path / "micro_batch.json").exists()


@pytest.mark.parametrize("content", ["{}", '{"micro_batch": 3}', '{"micro_batch": 0}'])
def test_a_damaged_result_is_named(tmp_path, content):
    (tmp_path / "micro_batch.json").write_text(content)
    with pytest.raises(UserError, match=r"micro_batch\.json is damaged: no divisor of 16 images"):
        settled(tmp_path)


@pytest.mark.usefixtures("tried_here")
def test_an_automatic_run_is_the_run_of_its_number_and_resumes(tmp_path, monkeypatch):
    """It trains as the number that was found says, and goes on so where more would fit."""
    auto, steps = "train.micro_batch=auto", ("train.max_steps=9", *QUICK)
    monkeypatch.setattr(memory_limit, "trial", trial_of(4, []))
    small_trainer(tmp_path / "auto", auto, *steps).fit(until=5)
    found = json.loads((tmp_path / "auto" / "micro_batch.json").read_text())
    assert found == {"micro_batch": 4}
    monkeypatch.setattr(memory_limit, "trial", trial_of(99, []))
    small_trainer(tmp_path / "auto", auto, *steps, resume=True).fit()
    small_trainer(tmp_path / "number", "train.micro_batch=4", *steps).fit()
    small_trainer(tmp_path / "parts", "train.accumulate=4", *steps).fit()
    states = [last_state(tmp_path / name) for name in ("auto", "number", "parts")]
    for state in states:
        del state["recipe"]
        assert_equal(state, states[0])


@pytest.mark.usefixtures("tried_here")
def test_ranks_agree_and_wait_for_each_other(tmp_path, monkeypatch):
    """The smaller one of what fits is taken by all, after they have met: tries take minutes."""
    said: list[str] = []

    class Two(Ranks):
        ranks_here, world_size = 2, 2

        def meet(self) -> None:
            said.append("met")

        def most(self, value: float) -> float:
            said.append("agreed")
            return max(value, -2.0)  # the other one has room for two

    tried: list[int] = []
    monkeypatch.setattr(memory_limit, "trial", trial_of(99, tried))
    found, _ = settled(tmp_path, ranks=Two())
    assert tried == [8]  # of 16 images on two ranks
    assert found.train.accumulate == 4
    assert said == ["met", "agreed"]


@pytest.mark.parametrize("compiles", [False, True])
def test_a_trial_is_a_step_and_one_more_backward_on_noise(monkeypatch, compiles):
    """The second one has gradients, optimizer state and activations at once."""
    seen: list[tuple] = []
    compiled: list[object] = []

    def loss(currents: Tensor, labels: Tensor) -> Tensor:
        seen.append((list(currents.shape), labels.tolist()))
        return currents.sum()

    monkeypatch.setattr(Classification, "loss", lambda task, *given: loss(*given))
    monkeypatch.setattr(
        memory_limit.environment, "compiled", lambda model: compiled.append(model) or model
    )
    pixels = {"mean": (0.0,), "std": (1.0,), "move": "none"}
    facts = Facts(name="seven", classes=tuple("abcdefg"), channels=2, image_size=12, **pixels)
    memory_limit.trial(small_recipe(f"train.compile={str(compiles).lower()}"), facts, 0, 20, 1, 5)
    assert seen == [([3, 5, 7], [0] * 5)] * 2
    assert len(compiled) == compiles


@pytest.mark.parametrize(
    ("changes", "ranks", "obstacle", "more"),
    [
        ([], 1, "no GPU", 0),
        (["train.ema=0.9"], 1, "no GPU", "average"),
        ([], 2, "2 ranks", "buckets"),
        (["train.ema=0.9"], 2, "2 ranks", "both"),
        ([], 1, "", "images"),
        (["train.graph=false"], 1, "", 0),
    ],
)
def test_a_trial_holds_what_training_holds_beside_a_step(
    monkeypatch, changes, ranks, obstacle, more
):
    """Averages, the buckets of ranks, and the other images of a step that a graph replays: counted at the peak."""
    monkeypatch.setattr(memory_limit, "obstacle_of", lambda *given: obstacle)
    pixels = {"mean": (0.0,), "std": (1.0,), "move": "none"}
    facts = Facts(name="seven", classes=tuple("abcdefg"), channels=2, image_size=12, **pixels)
    plain, recipe = small_recipe(), small_recipe(*changes)
    model = build_model(recipe, **facts.sizes)
    weights = sum(p.nbytes for p in model.parameters())
    floating = weights + sum(b.nbytes for b in model.buffers() if b.is_floating_point())
    images = 15 * 2 * 12 * 12 * 4
    expected = {
        "average": floating,
        "buckets": weights,
        "both": weights + floating,
        "images": images,
    }.get(more, 0)

    def peak(recipe, *rest):
        return peak_bytes(lambda: memory_limit.trial(recipe, facts, 0, *rest), CPU)

    first, second = peak(plain, 5, 1, 5), peak(recipe, 20, ranks, 5)
    assert second - first == pytest.approx(expected, abs=2000)


# ---- blocks that are computed again


@pytest.mark.parametrize(
    "changes", [["model.block=ms", "train.precision=bf16"], ["model.norm=tebn", "neuron.kind=plif"]]
)
def test_runs_with_and_without_are_the_same_to_the_last_bit(tmp_path, changes):
    """Weights, batch norm's statistics, and the monitor's measurements, none of them twice."""
    for name in ("false", "true"):
        again = f"model.checkpoint_blocks={name}"
        small_trainer(tmp_path / name, *changes, again, "train.log_every=1").fit(until=2)
    kept, again = (last_state(tmp_path / name) for name in ("false", "true"))
    assert kept.pop("recipe") != again.pop("recipe")
    assert_equal(again, kept)
    rows = [untimed(RunFolder(tmp_path / name).gradients.read()) for name in ("false", "true")]
    assert rows[0] == rows[1]
    counted = [value for key, value in kept["model"].items() if key.endswith("batches_tracked")]
    assert all(value == 2 for value in counted)


def net_of(*changes: str):
    seed_everything(0)
    recipe = small_recipe("model.width=8", *changes)
    return build_model(recipe, classes=10, channels=1, image_size=8)


def test_streams_and_tests_are_as_without():
    """A membrane that is carried on would start again from its end."""
    images = torch.randn(4, 1, 8, 8)
    nets = net_of(), net_of("model.checkpoint_blocks=true")
    for train in (True, False):
        outs = []
        for net in nets:
            net.train(train)
            net.set_stateful(True)
            chunks = [net(images, time_steps=1), net(images, time_steps=2)]
            sum(chunk.sum() for chunk in chunks).backward()
            grads = [p.grad.clone() for p in net.parameters()]
            membranes = [layer.v.detach() for _, layer in net.spiking_layers()]
            outs.append([chunks[0].detach(), chunks[1].detach(), grads, membranes])
            net.set_stateful(False)
            net.zero_grad()
        assert_equal(outs[1], outs[0])
