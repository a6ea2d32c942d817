"""Passes over memory of a residual block, counted: what joining the MS blocks' sum with the next neuron saves."""

import json
from pathlib import Path

from tests.processes import done

ROOT = Path(__file__).parents[2]
COUNT = """
import json
from unittest import mock
import torch
from tests.profiling.traffic import launches, of_bottleneck
from spiketriton_kernels import PROBE_FIELDS, multistep_bn_lif, multistep_lif
found = {block: of_bottleneck(block) for block in ("plain", "sew", "ms")}
with mock.patch("spiketriton.models.blocks.gives_current", return_value=False):
    found["ms, one by one"] = of_bottleneck("ms")
x = torch.zeros(4, 2, 8, 4, 4, requires_grad=True)
norm = [torch.ones(8, requires_grad=i < 2) for i in range(4)]
def both(function, *given, **options):
    out = []
    names = launches(lambda: out.append(function(x, *given, **options)))
    gradient, wanted = torch.zeros_like(x), [x, *given[:2], *options.values()]
    return names, launches(lambda: torch.autograd.grad(out[0], wanted, gradient))
found["launches"] = {
    "lif": both(multistep_lif),
    "plif": both(multistep_lif, decay=torch.tensor(0.5, requires_grad=True)),
    "probe": both(multistep_lif, probe=torch.zeros(4, len(PROBE_FIELDS), requires_grad=True)),
    "bn_lif": both(multistep_bn_lif, *norm),
    "bn_lif+residual": both(multistep_bn_lif, *norm, residual=torch.zeros_like(x, requires_grad=True)),
}
print(json.dumps(found))
"""


def test_an_ms_bottleneck_moves_26_tensors_instead_of_32_and_few_launches_are_small(tmp_path):
    """In tensors of 4 width channels; in a child process, because the interpreter launches nothing."""
    counted = done("-c", COUNT, folder=tmp_path)
    assert counted.returncode == 0, counted.stderr
    found = json.loads(counted.stdout)
    launched = found.pop("launches")
    fire, walk, join = ["fire_kernel"], ["walk_kernel"], ["join_kernel"]
    measured = ["statistics_kernel", "join_statistics_kernel", *fire]
    assert launched == {
        "lif": [fire, walk],
        "plif": [fire, [*walk, "join_groups_kernel"]],
        "probe": [fire, [*walk, "join_groups_kernel"]],
        "bn_lif": [measured, [*walk, *join, *walk]],
        "bn_lif+residual": [measured, [*walk, *join, "norm_backward_kernel"]],
    }
    assert found == {
        "plain": [8.5, 18.5],
        "sew": [8.5, 16.5],
        "ms": [9.5, 16.5],
        "ms, one by one": [12.5, 19.5],
    }
    page = " ".join((ROOT / "docs/performance.md").read_text(encoding="utf-8").split())
    for words in ("26 with one kernel, 32 one by one", "27 `plain`", "25 `sew`"):
        assert words in page
