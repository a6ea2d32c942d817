"""Whose milliseconds a step's are. There is no GPU here: its events are made up; operators and launches are real."""

import gzip
import json
from dataclasses import replace

import pytest
import torch

from profiling.harness import attribution
from profiling.harness.attribution import (
    OTHER,
    OURS,
    Launched,
    by_part,
    launches,
    of_kernels,
    part_of,
)
from profiling.harness.contenders import OURS as SPIKETRITON
from profiling.render import tables
from profiling.sections.kernels import FLOOR, Arena, Fused, KernelCase, Operation
from profiling.sections.recipes import find_recipe
from profiling.sections.step import TrainingStep
from spiketriton_kernels import multistep_bn_lif, multistep_lif, use_backend
from tests.profiling.test_device import MS, event

CONVOLUTION = "kernel sm90_xmma_fprop_implicit_gemm_bf16"


def test_kernels_of_a_step_by_name_with_bytes_and_the_share_of_a_copy():
    launched = [
        Launched("kernel_walk", "kernel_walk(x)", 6_000_000),
        Launched("kernel_fire", "kernel_fire(x)", 1_000_000),
        Launched("kernel_walk", "kernel_walk(x, residual)", 8_000_000),
    ]
    of_a_call = [
        ("kernel_walk", 4),
        (CONVOLUTION, 3),
        ("kernel_fire", 1),
        ("kernel_walk", 8),
    ]
    events, at = [event("aten::add"), event("kernel annotated", annotation=True)], 0
    for name, length in [*of_a_call, *of_a_call]:
        events.insert(0, event(name, at * MS, length * MS))  # the order is that of their starts
        at += length
    rows = of_kernels(events, 2, launched, roof=2e9)
    assert [(r["part"], r["kernel"], r["calls"], r["ms"], r["bytes"]) for r in rows] == [
        (OURS, "kernel_walk(x, residual)", 1, 8, 8_000_000),
        (OURS, "kernel_walk(x)", 1, 4, 6_000_000),
        ("convolutions and matrix products", CONVOLUTION, 1, 3, None),
        (OURS, "kernel_fire(x)", 1, 1, 1_000_000),
    ]
    # a copy at 2 GB/s takes 4, 3 and 0.5 ms
    assert [r["of_copy"] for r in rows] == [0.5, 0.75, None, 0.5]
    ours, convolutions = by_part(rows)
    assert ours == {
        "part": OURS,
        "calls": 3,
        "ms": 13,
        "bytes": 15_000_000,
        "of_copy": pytest.approx(7.5 / 13),
    }
    assert (convolutions["bytes"], convolutions["of_copy"]) == (0, None)
    # one launch more than was told of: whose is whose is not known
    events.append(event("kernel_walk", at * MS))
    rows = of_kernels(events, 2, launched, roof=2e9)
    assert {r["kernel"]: r["bytes"] for r in rows} == {
        "kernel_walk": None,
        "kernel_fire(x)": 1_000_000,
        CONVOLUTION: None,
    }
    assert {r["part"] for r in rows if r["kernel"] == "kernel_walk"} == {OURS}
    assert of_kernels([event("kernel_fire")], 1, launched[1:2], roof=0.0)[0]["of_copy"] is None


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float>", "norms of torch"),
        ("batch_norm_collect_statistics_channels_last_kernel", "norms of torch"),
        ("cutlass_80_tensorop_bf16_s16816gemm", "convolutions and matrix products"),
        ("sm80_xmma_wgrad_implicit_gemm_indexed", "convolutions and matrix products"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", "convolutions and matrix products"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<float>", "copies and layouts"),
        ("Memcpy DtoD (Device -> Device)", "copies and layouts"),
        ("void at::native::elementwise_kernel<direct_copy_kernel_cuda>", "copies and layouts"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("void at::native::reduce_kernel<512, SumOps>", OTHER),
        ("spiketriton::neuron_backward", OURS),
    ],
)
def test_parts_are_told_apart_by_name(name, part):
    assert part_of(name) == part


def test_launches_move_the_bytes_of_the_floor(triton_backend):
    """Counted by their tensors: what is read and written once, and the norm's few values beside it."""
    case = KernelCase(op="bn_lif_current", mode="training", T=4, shape=(4, 8, 16, 16), dtype="bf16")
    arena = Arena(replace(case, layout="channels_last"), torch.device("cpu"))
    operation = Operation(arena, Fused(arena, multistep_bn_lif))
    with use_backend("triton"):
        found = [launches(operation) for _ in range(2)]
    assert found[0] == found[1]  # what is repeated at once is told, too
    large = {one.words for one in found[0] if "join" not in one.kernel}
    assert large == {
        "statistics_kernel(y)",
        "fire_kernel(x, residual, spikes, current)",
        "walk_kernel(spikes, current, x, residual, dx)",
        "norm_backward_kernel(dx, y, dy)",
    }
    whole = sum(one.bytes for one in found[0]) / (2 * arena.elements)
    assert FLOOR["bn_lif_current"][0] < whole < 1.1 * FLOOR["bn_lif_current"][0]


def test_what_is_told_of_is_launched_too(triton_backend):
    x, spikes = torch.tensor([[[2.0, 0.0, 2.0, 2.0, 0.0]]]), []
    with use_backend("triton"):
        found = launches(lambda: spikes.append(multistep_lif(x)))
    assert [one.words for one in found] == ["fire_kernel(x, spikes)"]
    assert spikes[0].flatten().tolist() == [1, 0, 1, 1, 0]


def test_a_step_is_told_apart_with_a_trace(measured, quick, monkeypatch):
    monkeypatch.setattr("tests.profiling.conftest.QUICK", replace(quick, trace=True))
    case = TrainingStep(find_recipe("quickstart", ["train.precision=fp32"]), quick)
    (row,) = measured(case, SPIKETRITON, section="step").values()
    assert row["status"] == "ok", row
    parts = {part["part"]: part for part in by_part(row["parts"])}
    assert parts.keys() >= {OURS, "convolutions and matrix products", "optimizer", OTHER}
    neurons = [r for r in row["parts"] if r["kernel"] == "spiketriton::neuron_forward"]
    assert [r["calls"] for r in neurons] == [7]
    assert 0 < sum(part["ms"] for part in parts.values()) < 100 * row["median_ms"]
    (grid,) = (g for g in tables.tables([row], "step") if g.header[0] == "part, kernel")
    assert grid.title.startswith("where a step of spiketriton goes: quickstart")
    assert sum(float(line[3].split()[0]) for line in grid.lines if line[0][0] != " ") == (
        pytest.approx(100, abs=0.5)
    )
    assert "step-quickstart-fp32-spiketriton.trace.json.gz" in row["trace"]


def test_a_trace_is_for_chrome(tmp_path):
    trace, x = tmp_path / "one.trace.json.gz", torch.randn(64, 64)
    row = attribution.of_call(lambda: x @ x, lambda: None, x.device, trace)
    (mm,) = (part for part in row["parts"] if part["kernel"] == "aten::mm")
    assert (mm["calls"], mm["part"]) == (1, "convolutions and matrix products")
    names = [e.get("name") for e in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert names.count("aten::mm") == attribution.CALLS
    assert row["trace"] == trace.name
