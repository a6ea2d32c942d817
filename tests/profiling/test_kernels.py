"""The kernels' cases: their data, their check, and that a wrong result is not timed."""

from dataclasses import replace

import pytest
import torch

from profiling.harness.contenders import OURS, Status
from profiling.harness.timing import Timing
from profiling.sections import kernels
from profiling.sections.kernels import (
    OPERATIONS,
    Arena,
    Fused,
    KernelCase,
    Operation,
    gb_per_s,
)
from spiketriton_kernels import multistep_lif

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x, **o: multistep_lif(x, **o | dict(reset="soft")),
        lambda x, **o: multistep_lif(x, **o | dict(threshold=1.0 + 1e-6 + 2**-4)),
        lambda x, **o: multistep_lif(x, **o | dict(surrogate=kernels.Surrogate("atan", 1.0, 0.33))),
        lambda x, **o: multistep_lif(x, **o) * float("nan"),
    ],
    ids=["spikes", "few spikes", "gradients alone", "nan"],
)
def test_a_wrong_result_is_not_timed(mistake, monkeypatch, measured, lif):
    monkeypatch.setattr(kernels, "multistep_lif", mistake)
    of = measured(lif, OURS, "eager")
    assert of[OURS]["status"] == Status.WRONG
    assert "allowed" in of[OURS]["why"]
    assert "median_ms" not in of[OURS]
    assert of["eager"]["status"] == Status.OK
    assert "median_ms" in of["eager"]
    assert "times_ours" not in of["eager"]


def test_a_single_gradient_that_is_nan_is_wrong(monkeypatch, measured, lif):
    right = kernels.multistep_bn_lif

    def mistake(y, w, b, *rest, **o):
        b = b.clone()
        b.register_hook(lambda grad: grad * float("nan"))
        return right(y, w, b, *rest, **o)

    monkeypatch.setattr(kernels, "multistep_bn_lif", mistake)
    assert measured(replace(lif, op="bn_lif"), OURS)[OURS]["status"] == Status.WRONG


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_ours_and_the_definition_agree_in_every_case(op, layout, dtype, quick):
    shape = dict(T=4, shape=(4, 8, 8, 8), dtype=dtype, layout=layout)
    for mode in ("training", "inference"):
        names = []
        for one in KernelCase(op=op, mode=mode, **shape).contenders(quick):
            names.append(one.name)
            if "compile" not in one.name:
                assert one.build().check()["status"] == Status.OK, (one.name, mode)
        behind = ["BatchNorm2d + torch.compile"] if op != "lif" else []
        assert names == ["copy", OURS, "torch.compile", "eager", *behind]


def test_a_large_case_is_checked_on_part_of_its_batch(monkeypatch, lif):
    whole = Arena(lif, CPU)
    assert whole.to_check.leaves[0].shape == whole.inputs[0].leaves[0].shape
    monkeypatch.setattr(kernels, "LARGEST_CHECK", 3 * 256 // 2)
    arena = Arena(replace(lif, op="bn_lif_residual", layout="channels_last"), CPU)
    assert [x.shape for x in arena.to_check.leaves] == [(3, 1, 8, 4, 4)] * 2
    assert arena.to_check.grad.shape == (3, 1, 8, 4, 4)
    operation = Operation(arena, Fused(arena, kernels.multistep_bn_lif))
    assert operation.check()["status"] == Status.OK
    monkeypatch.setattr(kernels, "LARGEST_CHECK", 1)
    assert Arena(lif, CPU).to_check.grad.shape == (3, 1, 8, 4, 4)


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


def test_gb_per_s_count_what_the_fused_operation_moves(lif):
    elements = 3 * 256
    passes = {}
    for op in OPERATIONS:
        for mode in ("training", "inference"):
            spec = replace(lif, op=op, mode=mode, dtype="bf16").spec
            passes[op, mode] = gb_per_s(spec, 1e-9 * 2 * elements)
            assert gb_per_s(spec, 1e-9 * 2 * elements, "copy") == pytest.approx(2)
    assert passes == pytest.approx({
        ("lif", "training"): 5, ("lif", "inference"): 2, ("bn_lif", "training"): 8,
        ("bn_lif", "inference"): 2, ("bn_lif_residual", "training"): 11,
        ("bn_lif_residual", "inference"): 3,
    })  # fmt: skip
    timings = {"copy": Timing((1e-9 * 4 * elements,)), OURS: Timing((1e-9 * 8 * elements,))}
    rows = lif.numbers(timings)
    assert rows[OURS] == pytest.approx(
        {"N": 256, "gb_per_s": 2.5, "copy_gb_per_s": 2.0, "of_copy": 1.25}
    )
    assert rows["copy"]["of_copy"] == pytest.approx(1)
    assert lif.numbers({OURS: timings[OURS]})[OURS].keys() == {"N", "gb_per_s"}
