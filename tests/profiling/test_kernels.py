"""The kernels' cases: their data, their check, and that a wrong result is not timed."""

from dataclasses import replace

import pytest
import torch

from profiling.harness.contenders import EXCUSED, OURS, Status, agreement
from profiling.harness.timing import Timing
from profiling.sections import kernels
from profiling.sections.kernels import OPERATIONS, Arena, Fused, KernelCase, Operation, gb_per_s
from spiketriton_kernels import multistep_bn_lif, multistep_lif
from tests.covering import each

CPU = torch.device("cpu")
NAN = float("nan")


@pytest.mark.parametrize(
    ("differ", "error", "status", "excused"),
    [
        (1e-3, 1e-5, Status.OK, Status.OK),
        (1.1e-3, 0.0, Status.WRONG, Status.UNEQUAL),
        (0.0, 1.1e-5, Status.WRONG, Status.UNEQUAL),
        (EXCUSED, 0.5, Status.WRONG, Status.UNEQUAL),
        (EXCUSED + 0.01, 0.0, Status.WRONG, Status.WRONG),
        (0.0, NAN, Status.WRONG, Status.WRONG),
        (NAN, 0.0, Status.WRONG, Status.WRONG),
    ],
)
def test_a_reason_to_be_unequal_excuses_few_spikes_and_no_nan(differ, error, status, excused):
    allowed = (1e-3, 1e-5)
    assert agreement(differ, error, allowed)["status"] == status
    verdict = agreement(differ, error, allowed, "its reset")
    assert verdict["status"] == excused
    assert (verdict["why"] == "its reset") == (excused == Status.UNEQUAL)


@pytest.mark.parametrize(
    "mistake",
    [
        dict(reset="soft"),
        dict(threshold=1.0 + 1e-6 + 2**-4),
        dict(surrogate=kernels.Surrogate("atan", 1.0, 0.33)),
    ],
    ids=["spikes", "few spikes", "gradients alone"],
)
def test_a_wrong_result_is_not_timed(mistake, monkeypatch, measured, lif):
    monkeypatch.setattr(kernels, "multistep_lif", lambda x, **o: multistep_lif(x, **o | mistake))
    of = measured(lif, OURS, "eager")
    assert of[OURS]["status"] == Status.WRONG
    assert "allowed" in of[OURS]["why"]
    assert "median_ms" not in of[OURS]
    assert of["eager"]["status"] == Status.OK
    assert "median_ms" in of["eager"]
    assert "times_ours" not in of["eager"]


def test_a_single_gradient_that_is_nan_is_wrong(lif):
    def mistake(y, w, b, *rest, **o):
        b = b.clone()
        b.register_hook(lambda grad: grad * NAN)
        return multistep_bn_lif(y, w, b, *rest, **o)

    arena = Arena(replace(lif, op="bn_lif"), CPU)
    assert Operation(arena, Fused(arena, mistake)).check()["status"] == Status.WRONG


def test_a_current_that_is_not_that_of_the_neuron_is_wrong(lif):
    def mistake(*given, **o):
        spikes, current = multistep_bn_lif(*given, **o)
        return spikes, 1.1 * current

    for mode in kernels.MODES:
        arena = Arena(replace(lif, op="bn_lif_current", mode=mode), CPU)
        assert Operation(arena, Fused(arena, multistep_bn_lif)).check()["status"] == Status.OK
        assert Operation(arena, Fused(arena, mistake)).check()["status"] == Status.WRONG


@pytest.mark.parametrize(
    ("op", "layout", "dtype", "mode"),
    each(OPERATIONS, ["contiguous", "channels_last"], ["fp32", "bf16"], kernels.MODES),
)
def test_ours_and_the_definition_agree_in_every_case(op, layout, dtype, mode, quick):
    case = KernelCase(op=op, mode=mode, T=4, shape=(4, 8, 8, 8), dtype=dtype, layout=layout)
    names = []
    for one in case.contenders(quick):
        names.append(one.name)
        if "compile" not in one.name:
            assert one.build().check()["status"] == Status.OK, one.name
    behind = ["BatchNorm2d + torch.compile"] if op != "lif" else []
    assert names == ["copy", OURS, "torch.compile", "eager", *behind]


def test_a_large_case_is_checked_on_part_of_its_batch(monkeypatch, lif):
    whole = Arena(lif, CPU)
    assert whole.to_check.leaves[0].shape == whole.inputs[0].leaves[0].shape
    monkeypatch.setattr(kernels, "LARGEST_CHECK", 3 * 256 // 2)
    arena = Arena(replace(lif, op="bn_lif_residual", layout="channels_last"), CPU)
    assert [x.shape for x in arena.to_check.leaves] == [(3, 1, 8, 4, 4)] * 2
    assert [x.shape for x in arena.to_check.grads] == [(3, 1, 8, 4, 4)]
    assert Operation(arena, Fused(arena, multistep_bn_lif)).check()["status"] == Status.OK


def test_currents_never_meet_the_threshold_and_buffers_are_beyond_the_cache(lif, monkeypatch):
    asked = []
    monkeypatch.setattr(
        kernels, "buffers_beyond_cache", lambda size, device: asked.append(size) or 2
    )
    case = replace(lif, T=16, shape=(4, 8, 16, 16))
    inputs = Arena(case, CPU).inputs
    assert asked == [2 * 4 * 16 * 8192]  # currents and dL/ds
    assert not torch.equal(inputs[0].leaves[0], inputs[1].leaves[0])
    (x,) = (leaf.detach().double() for leaf in inputs[0].leaves)
    v = torch.zeros_like(x[0])
    for x_t in x:
        h = 0.5 * v + x_t
        assert not (h == 1.0).any()
        v = torch.where(h > 1.0, 0.0, h)
    assert 0.1 < multistep_lif(x.float()).mean() < 0.9
    (_, residual) = Arena(replace(case, op="bn_lif_residual"), CPU).inputs[0].leaves
    assert asked[-1] == 3 * 4 * 16 * 8192
    assert set(residual.unique().tolist()) == {0, 1}
    assert residual.requires_grad
    (first, _) = Arena(replace(case, op="bn_lif_current"), CPU).inputs
    assert asked[-1] == 4 * 4 * 16 * 8192  # and dL/dx of the current
    assert not torch.equal(*first.grads)


def test_gb_per_s_count_what_the_fused_operation_moves(lif):
    elements = 3 * 256
    passes = {
        "lif": (5, 2),
        "bn_lif": (8, 2),
        "bn_lif_residual": (11, 3),
        "bn_lif_current": (13, 4),
    }
    assert passes.keys() == {*OPERATIONS}
    for op, of_modes in passes.items():
        for mode, number in zip(kernels.MODES, of_modes, strict=True):
            spec = replace(lif, op=op, mode=mode, dtype="bf16").spec
            assert gb_per_s(spec, 1e-9 * 2 * elements) == pytest.approx(number)
    timings = {"copy": Timing((1e-9 * 4 * elements,)), OURS: Timing((1e-9 * 8 * elements,))}
    assert lif.numbers(timings)[OURS] == pytest.approx(
        {"N": 256, "gb_per_s": 2.5, "copy_gb_per_s": 2.0, "of_copy": 1.25}
    )
    assert lif.numbers({OURS: timings[OURS]})[OURS].keys() == {"N", "gb_per_s"}
