"""The machine's code is executed, too: PTX as Triton lowers it, by ptx.py, against the definition.

Triton's interpreter, which the other tests use, takes a kernel's Python and not what the compiler makes of it.
"""

import json
import math
import sys

import numpy as np
import pytest
import torch

from profiling.harness import lowering
from spiketriton_kernels import nn
from tests.child import ROOT
from tests.kernels.backends import ptx
from tests.processes import Forked

TARGET = "sm_90"
NEURONS = {
    "LIF": lambda: nn.LIF(2.0),
    "LIF to -0.25": lambda: nn.LIF(2.0, v_reset=-0.25, detach_reset=False),
    "IF": lambda: nn.IF(reset="soft"),
    "ILIF": lambda: nn.ILIF(levels=5),
    "ALIF": nn.ALIF,
    "CuBaLIF": lambda: nn.CuBaLIF(2.0, 3.0),
    "CLIF": lambda: nn.CLIF(2.0),
}
WINDOWS = [  # dtype, T, [B, C, H, W], layout
    ("fp32", 4, (3, 5, 7, 1), "contiguous"),
    ("bf16", 10, (3, 5, 7, 9), "channels_last"),
    ("fp32", 1, (2, 3, 5, 5), "channels_last"),
    ("bf16", 37, (2, 8, 4, 4), "contiguous"),
    ("fp16", 16, (2, 16, 3, 3), "channels_last"),
]
QUICK = [("LIF", 3), ("ALIF", 1), ("ILIF", 0)]
CASES = [
    pytest.param(name, at, marks=[pytest.mark.slow] * ((name, at) not in QUICK))
    for name in NEURONS
    for at in range(len(WINDOWS))
]


def executed(name: str, window: int) -> dict[str, float]:
    """How many spikes differ, how far gradients are apart by their largest, and how many neurons fire."""
    dtype, T, size, layout = WINDOWS[window]
    generator = torch.Generator().manual_seed(window)
    x = 1.5 * torch.randn(T, *size, generator=generator) + 0.6
    ties = torch.rand(x.shape, generator=generator) < 0.5
    x = torch.where(ties, (4 * x).round() / 4, x).to(lowering.PRECISIONS[dtype]).requires_grad_()
    upstream = torch.randn(x.shape, generator=generator).to(x.dtype)
    neuron, memory = NEURONS[name](), {"inputs.x": x.detach(), "upstream.spikes": upstream}
    for place, way in enumerate(("forward", "backward")):
        lowering.CASES[way] = (lambda given: lowering._training(neuron, given), place)
        launch, compiled = lowering.compile_for(TARGET, way, T, dtype, layout, size)
        run(launch, compiled, memory)
    spikes = neuron.define(x)
    (grad,) = torch.autograd.grad(spikes, x, upstream)
    apart = (memory["out.dx"] - grad).abs().max() / grad.abs().max()
    return {
        "differ": int((memory["out.spikes"] != spikes).sum()),
        "apart": float(apart),
        "fire": float(spikes.detach().float().mean()),
    }


def run(launch, compiled, memory: dict[str, torch.Tensor]) -> None:
    """Executes one launch: what it reads is in ``memory`` by name, where it leaves what it writes."""
    given = list(lowering.given(compiled, launch))
    sizes = [v.untyped_storage().nbytes() if isinstance(v, torch.Tensor) else 0 for _, v in given]
    starts = ptx.BEGIN + np.cumsum([0, *(256 * math.ceil(size / 256) for size in sizes)])
    everything = np.full(starts[-1] + 256, 0xFF, np.uint8)  # numbers that are none
    arguments, tensors = [], {}
    for (name, value), start, size in zip(given, starts, sizes, strict=False):
        if isinstance(value, torch.Tensor):
            cells = torch.from_numpy(everything)[start : start + size].view(value.dtype)
            tensors[name] = cells.as_strided(value.shape, value.stride())
            if (known := memory.get(name.rpartition("saved")[1] or name)) is not None:
                tensors[name].copy_(known)
        arguments.append(int(start) if name in tensors else value)
    grid = launch.compile.keywords["grid"]
    programs = math.prod(grid(launch.arguments) if callable(grid) else grid)
    threads = 32 * compiled.metadata.num_warps
    ptx.execute(compiled.asm["ptx"], [*arguments, 0, 0], everything, programs, threads)
    for name in tensors.keys() - {"inputs.x", "upstream.spikes"}:
        memory[name.rpartition("saved")[1] or name] = tensors[name].clone()


@pytest.fixture(scope="module")
def reports(request):
    """Of all cases that are asked for, from one process, in which Triton compiles."""
    module, every = request.module, request.config.getoption("--slow")
    items = [item for item in request.session.items if item.module is module]
    asked = [i.callspec.params for i in items if every or not i.get_closest_marker("slow")]
    wanted = [[params["name"], params["at"]] for params in asked]
    said, _ = Forked("-m", __name__, json.dumps(wanted), folder=ROOT).communicate(3600)
    return {tuple(case): found for case, found in map(json.loads, said.splitlines())}


@pytest.mark.parametrize(("name", "at"), CASES)
def test_lowered_code_gives_the_definitions_spikes_to_the_bit(name, at, reports):
    found, dtype = reports[name, at], WINDOWS[at][0]
    assert found["differ"] == 0
    assert found["fire"] > 0.02
    assert found["apart"] <= (1e-5 if dtype == "fp32" else 4e-3)


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        print(json.dumps([case, executed(*case)]), flush=True)
