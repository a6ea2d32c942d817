"""What stands in the place of our kernels, to be compiled: no more than a compiler can take whole."""

import pytest
import torch

from profiling.sections.kernels import Reference
from spiketriton_kernels.nn import ILIF, LIF


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("make", [LIF, ILIF])
def test_the_definition_is_compiled_as_one_graph(make, half):
    """A graph in pieces would take longer than torch.compile can."""
    torch._dynamo.reset()
    layers = torch.nn.Sequential(*(Reference(make()) for _ in range(3)))
    compiled = torch.compile(layers, backend="eager", fullgraph=True)
    x = torch.randn(4, 2, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(compiled(x), layers(x))
