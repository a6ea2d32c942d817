"""A training step: the definition's check, block by block, and what takes part."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from profiling.harness.contenders import OURS, Options, Status, Unavailable
from profiling.harness.timing import QUICK, Timing
from profiling.render import tables
from profiling.render.rows import case_of
from profiling.sections import recipes
from profiling.sections import step as steps
from profiling.sections.recipes import find_recipe
from profiling.sections.step import (
    FLOOR,
    TWIN,
    Bench,
    Replayed,
    Step,
    TrainingStep,
    in_precisions,
    modes,
)
from spiketriton.config.names import SEQUENCES, Events, Images
from spiketriton.config.shipped import shipped_recipes
from spiketriton.models import Network
from spiketriton.models.convolutions import FasterConv2d
from spiketriton.training.gpu.graphs import WARM_UP
from tests.training.gpu.test_graphs import Tapes

CPU = torch.device("cpu")


def bench(quick: Options, *changes: str) -> Bench:
    return Bench(TrainingStep(find_recipe("quickstart", changes), quick), CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_wrong_network_is_found_block_by_block(precision, quick):
    one = bench(quick, f"train.precision={precision}")
    right = Step(one, one.model(), checked=True).check()
    assert right["status"] == Status.OK, right
    assert right.keys() >= {"spikes_differ", "loss_error", "gradient_norm_error"}
    # what half precision itself is off by hides the finer mistakes, which fp32 must find
    fine = ("neuron.tau=2.2", "neuron.surrogate.width=0.4", "neuron.reset=soft")
    coarse = ("neuron.tau=10.0", "neuron.surrogate.width=0.05", "neuron.v_threshold=0.5")
    for mistake in fine if precision == "fp32" else coarse:
        wrong = Step(one, one.model(mistake), checked=True).check()
        assert wrong["status"] == Status.WRONG, (mistake, wrong)
        if precision == "fp32":  # the width of the surrogate is the gradients' alone
            assert (wrong["spikes_differ"] > 1e-3) == ("width" not in mistake), (mistake, wrong)


@pytest.mark.parametrize("kind", ["ilif", "clif", "psn"])
def test_the_network_of_every_neuron_is_held_to_its_definition(kind, quick):
    one = bench(quick, f"neuron.kind={kind}", "train.precision=fp32")
    right = Step(one, one.model(), checked=True).check()
    assert right["status"] == Status.OK, right
    wrong = Step(one, one.model("neuron.v_threshold=0.7"), checked=True).check()
    assert wrong["status"] == Status.WRONG, wrong


@pytest.mark.parametrize("model", ["resnet8", "mlp"])
def test_blocks_of_a_large_batch_are_checked_on_its_first_images(model, monkeypatch):
    changes = [f"model.name={model}", *(["model.depth=3"] if model != "resnet8" else [])]
    changes += ["train.batch_size=4", "time_steps=2"]
    monkeypatch.setattr(steps, "MOST_CHECKED", 2 * 2 * 16 * 16)
    one = bench(Options(CPU), *changes)
    assert len(one.batches[0][1]) > 2
    seen, searched, right = [], [], Network.forward

    def forward(self, images, *rest):
        seen.append((images.shape[-4], torch.backends.cudnn.allow_tf32))
        searched.append(torch.backends.cudnn.benchmark)
        return right(self, images, *rest)

    monkeypatch.setattr(Network, "forward", forward)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    for name, ((_, _, grad), output, _) in one.truth.blocks.items():
        assert output.shape[:2] == grad.shape[:2] == (2, 2), name
        assert output.dtype == torch.float64, "the definition itself is too far off in float32"
    for mistakes, status in ([], Status.OK), (["neuron.tau=2.2"], Status.WRONG):
        assert Step(one, one.model(*mistakes), checked=True).check()["status"] == status
    assert torch.backends.cudnn.benchmark
    assert not any(searched[:-2]), "cuDNN searches in vain for what is computed once"
    assert {count for count, _ in seen} == {2}, "what the definition saves of all would fill a GPU"
    assert not seen[-1][1], "TF32 is no mistake of the kernels"
    assert torch.backends.cudnn.allow_tf32


def test_what_two_spikes_inside_a_block_reach_is_no_mistake(quick, monkeypatch):
    one = bench(quick, "model.name=resnet8", "data.image_size=8")
    step, right = Step(one, one.model()), Step.block
    moved = 2

    def block(self, name, x, rest, grad):
        output, by_input = right(self, name, x, rest, grad)
        if name == last:  # on maps of 2x2 pixels
            assert output.shape[3:] == (2, 2)
            output.flatten(0, 1)[:moved] += 1
        return output, by_input

    *_, last = one.truth.blocks
    assert one.truth.errors(step)[0] == 0
    monkeypatch.setattr(Step, "block", block)
    assert one.truth.errors(step)[0] == 0
    moved = 3
    T, images = one.truth.blocks[last][1].shape[:2]
    assert one.truth.errors(step)[0] == pytest.approx(1 / (T * images))


def test_right_blocks_with_a_wrong_loss_are_wrong(quick):
    one = bench(quick)
    step = Step(one, one.model(), checked=True)
    right = step.loss
    step.loss = lambda *given: 1.02 * right(*given)
    verdict = step.check()
    assert verdict["status"] == Status.WRONG
    assert verdict["spikes_differ"] == 0
    assert verdict["loss_error"] == pytest.approx(0.02, rel=1e-3)
    assert verdict["gradient_norm_error"] == pytest.approx(0.02, rel=1e-2)


def test_a_step_trains_on_the_next_batch_and_leaves_no_gradient(quick):
    one = bench(quick)
    step = Step(one, one.model())
    before = step.parameters[0].detach().clone()
    losses = [step.forward().item()]
    step()
    losses.append(step.forward().item())
    assert not torch.equal(step.parameters[0], before)
    assert all(p.grad is None for p in step.parameters)
    assert losses[0] != losses[1]
    starts = [one.model().state_dict(), one.model().state_dict()]
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


def test_who_takes_part(quick):
    found = {
        one.name: one for one in TrainingStep(find_recipe("quickstart"), quick).contenders(quick)
    }
    checked = [
        OURS,
        f"{OURS} unfused",
        f"{OURS} packed",
        f"{OURS} compiled",
        "torch.compile",
    ]
    assert list(found) == [*checked[:3], TWIN, FLOOR, *checked[3:]]
    built = {name: one.build() for name, one in found.items()}
    assert [name for name, work in built.items() if work.checked] == checked
    assert [name for name, work in built.items() if work.network is not work.model] == checked[3:]
    assert not built[TWIN].model.spiking_layers()
    ours = {
        name
        for name, work in built.items()
        if any(type(module) is FasterConv2d for module in work.model.modules())
    }
    assert ours == {*built} - {FLOOR, "torch.compile"}, "others have torch's convolutions"
    assert built[TWIN].check().keys() == {"status", "loss"}
    for name in (f"{OURS} unfused", f"{OURS} packed"):
        assert built[name].check()["status"] == Status.OK


def test_a_peers_network_is_the_same_network(quick):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import layer, neuron

    case = TrainingStep(find_recipe("quickstart"), quick)
    everyone = case.contenders(replace(quick, peers=("spikingjelly",)))
    step = next(one for one in everyone if one.name == "spikingjelly default").build()
    kinds = [type(module) for module in step.model.modules()]
    assert kinds.count(neuron.LIFNode) == 7
    assert kinds.count(layer.BatchNorm2d) == 9
    assert step.check()["status"] == Status.OK


def test_times_become_images_and_ratios(quick):
    case = TrainingStep(find_recipe("quickstart"), quick)  # T = 2, a batch of 2
    timings = {OURS: Timing((3.0, 4.0, 9.0)), TWIN: Timing((1.0, 2.0, 3.0))}
    assert case.numbers(timings) == {
        OURS: {"images_per_s": 0.5, "twin_ratio": 1.5},
        TWIN: {"images_per_s": 1.0},
    }
    assert case.numbers({OURS: timings[OURS]}) == {OURS: {"images_per_s": 0.5}}


def test_a_step_is_measured_in_fp32_and_in_what_the_device_has(quick, monkeypatch):
    for found, expected in ((["amx_bf16"], ["bf16", "fp32"]), ([], ["fp32"])):
        monkeypatch.setattr(
            "spiketriton.system.machine.bf16_instructions", lambda found=found: found
        )
        cases = in_precisions(find_recipe("quickstart"), quick)
        assert [case.spec["precision"] for case in cases] == expected
        assert [case.recipe.train.precision for case in cases] == expected
    (named,) = in_precisions(find_recipe("quickstart", ["train.precision=bf16"]), quick)
    assert named.spec["precision"] == "bf16"


def test_a_step_has_its_memory_beside_its_time(measured, quick):
    (case,) = in_precisions(find_recipe("quickstart"), quick)
    (row,) = measured(case, OURS, section="step").values()
    assert row["images_per_s"] > 0
    assert row["peak_bytes"] > row["saved_bytes"] > 0
    (grid,) = tables.tables([row], "step")
    assert grid.header[4:6] == ["images/s", "peak MB"]
    assert grid.lines[0][5] == tables.megabytes(row["peak_bytes"])


def test_the_images_of_every_shipped_recipe_are_known_here():
    """Or `step` would not know what to feed its network."""
    shipped = {find_recipe(name).data.name for name in shipped_recipes()}
    assert shipped <= {*recipes.IMAGES} <= {*get_args(Images), *get_args(Events), *SEQUENCES}


def test_each_kind_of_block_in_each_mode(measured, quick):
    """Without a GPU eagerly and compiled. Each kind is a case; their rows are one table."""
    cases = modes(find_recipe("quickstart", ["time_steps=2"]), quick)
    for case, block in zip(cases, ("plain", "sew", "ms"), strict=True):
        assert [one.name for one in case.contenders(quick)] == [block, f"{block} compiled"]
        assert f'block = "{block}"' in case.spec["toml"]
    (row,) = measured(case, block, section="modes").values()
    assert row["status"] == Status.OK, row
    assert row["images_per_s"] > 0
    assert len({case_of({"section": "modes"} | one.spec) for one in cases}) == 1
    (grid,) = tables.tables([row, row | {"contender": f"{block} graph", "busy": 0.5}], "modes")
    assert "50.0 %" in grid.lines[1]


@pytest.fixture
def replayed(quick, monkeypatch) -> tuple[Replayed, Tapes]:
    """A step by a tape of its operations, in place of a CUDA graph."""
    tapes = Tapes(lambda: step.state())
    monkeypatch.setattr(steps, "obstacle_of", lambda *_: "")
    monkeypatch.setattr(steps, "CudaGraphs", lambda device: tapes)
    one = bench(quick)
    step = Replayed(one, one.model())
    return step, tapes


def test_a_graph_is_timed_once_it_has_proved_itself(replayed):
    step, tapes = replayed
    assert step.check()["status"] == Status.OK
    step.prepare(QUICK)
    assert (tapes.warmed, tapes.captures) == (WARM_UP, 1)
    before, replays = step.parameters[0].detach().clone(), tapes.replays
    step.sample()
    assert tapes.replays == replays + 1
    assert not torch.equal(step.parameters[0], before)


def test_eager_steps_are_not_timed_in_the_name_of_a_graph(replayed, monkeypatch):
    step, tapes = replayed
    tapes.capture = lambda call: (_ for _ in ()).throw(RuntimeError("no capture today"))
    with pytest.raises(RuntimeError, match="steps run eagerly, because no capture today"):
        step.prepare(QUICK)
    monkeypatch.undo()
    with pytest.raises(Unavailable, match="a CUDA graph needs a GPU"):
        Replayed(step.bench, step.bench.model())
