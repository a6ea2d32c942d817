"""kernels/README.md and docs/coming_from.md: blocks run, a before is its after, and the table of neurons holds."""

import copy
import re
from pathlib import Path

import norse.torch as norse
import pytest
import snntorch
import torch
from norse.torch.functional.lif_box import LIFBoxParameters
from norse.torch.module.snn import SNNCell
from spikingjelly.activation_based import layer, neuron
from torch import nn as torch_nn

import spiketriton_kernels
from spiketriton_kernels import nn, use_backend
from spiketriton_kernels.nn import swap
from tests.kernels.backends.test_lowering import BUDGET
from tests.kernels.support import dyadic, normal

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "kernels" / "README.md").read_text("utf-8")
COMING_FROM = (ROOT / "docs" / "coming_from.md").read_text("utf-8")


def blocks(word, page=PAGE):
    return re.findall(rf"```python{word}\n(.*?)```", page, re.DOTALL)


@pytest.mark.parametrize("block", blocks(""), ids=range(len(blocks(""))))
def test_a_block_runs(block):
    exec(block, {})


@pytest.mark.parametrize(
    ("place", "x", "names", "pairs"),
    [
        (0, normal((4, 2, 3, 8, 8)), dict(layer=layer), [("out", "out")]),
        (1, normal((12, 4, 8), mean=0.3), dict(snntorch=snntorch), [("spk", "spikes"), ("mem", "mems")]),
        (2, normal((40, 4, 50), mean=1.0, std=2.0), dict(LIFBoxCell=norse.LIFBoxCell), [("z", "z")]),
    ],
    ids=["SpikingJelly", "snnTorch", "norse"],
)  # fmt: skip
def test_every_before_is_its_after(place, x, names, pairs):
    given, found = {"x": x}, {"x": x} | names
    for word, scope in ((" before", given), (" after", found)):
        torch.manual_seed(0)
        exec(blocks(word, COMING_FROM)[place], scope)
    assert found[pairs[0][1]].mean() > 0.01
    for before, after in pairs:  # of snnTorch the last step
        value = found[after]
        assert torch.equal(
            value if value.shape == given[before].shape else value[-1], given[before]
        )


# ---- the table

ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE[PAGE.index("| neuron |") :].split("\n\n")[0].splitlines()[2:]
]
every_row = pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
FUNCTIONS = dict(
    where=lambda s, a, b: torch.where(s, torch.as_tensor(a, dtype=b.dtype), b),
    sigmoid=torch.sigmoid,
    round=torch.round,
    clamp=torch.clamp,
)
T, B, C = 8, 3, 4


def made(row):
    return eval(row[0].strip("`"), vars(nn)).double()


def test_the_table_has_every_neuron():
    classes = {row[0].strip("`").split("(")[0] for row in ROWS}
    assert classes == {"IF", "LIF", "PLIF", "Leaky", "ILIF", "CLIF", "ALIF", "BatchNormLIF"}


@every_row
def test_the_equation_is_the_neurons(row):
    module, code = made(row), row[1].strip("`")
    x = dyadic((T, B, C), torch.float64, low=-2.0, high=4.0)
    norm = torch_nn.BatchNorm1d(C).double()
    normalised = norm(x.flatten(0, 1)).unflatten(0, (T, B))
    names = FUNCTIONS | {"v": torch.zeros_like(x[0]), "m": torch.zeros_like(x[0])}
    names |= {name: p.detach() for name, p in module.named_parameters() if "." not in name}
    expected = []
    for t in range(T):
        names |= {"x": x[t], "norm": lambda x, t=t: normalised[t]}
        for statement in code.split("; "):
            exec(statement.replace("(v >= 1)", "(v >= 1).double()"), names)
            if isinstance(names.get("s"), torch.Tensor) and statement.startswith("s ="):
                spikes = names["s"]
                if "where" not in code:
                    names["s"] = spikes.double()
        expected.append(spikes.double())
    with use_backend("torch"):  # in float64 C++ is compiled for few kinds
        spikes = module(x)
    assert 0.02 < (spikes > 0).double().mean() < 0.98
    assert torch.equal(spikes, torch.stack(expected))


PEERS = {
    "IFNode": lambda: neuron.IFNode(step_mode="m"),
    "LIFNode": lambda: neuron.LIFNode(tau=4.0, step_mode="m"),
    "ParametricLIFNode": lambda: neuron.ParametricLIFNode(init_tau=4.0, step_mode="m"),
    "ILIFNode": lambda: neuron.ILIFNode(step_mode="m"),
    "ComplementaryLIFNode": lambda: neuron.ComplementaryLIFNode(step_mode="m"),
    "BatchNorm1d` + `LIFNode": lambda: torch_nn.Sequential(
        layer.BatchNorm1d(C, step_mode="m"), neuron.LIFNode(tau=1.25, step_mode="m")
    ),
    "Leaky": lambda: snntorch.Leaky(beta=0.75),
    "LIFBoxCell": lambda: norse.LIFBoxCell(
        LIFBoxParameters(tau_mem_inv=torch.as_tensor(250.0)), dt=0.001
    ),
    "IAFCell": lambda: norse.IAFCell(),
}


def window(peer, x):
    """A peer over a window, by a loop where it takes single steps."""
    if isinstance(peer, (snntorch.Leaky, SNNCell)):
        state, out = None, []
        for step in x:
            spikes, state = peer(step, state)
            out.append(spikes)
        return torch.stack(out)
    return peer(x)


@every_row
def test_what_it_equals(row):
    """Spikes of the peer, of SpikingJelly's swapped, and of the neuron of the row, on the same currents."""
    module = made(row).float()
    names = re.findall(r"(?:SpikingJelly|snnTorch|norse) `(.*?)`(?:,|$)", row[2])
    assert names or row[2] == "none"
    x = normal((T, B, C), mean=1.0, std=3.0)
    for name in names:
        peer = PEERS[name]()
        expected = window(copy.deepcopy(peer), x)
        assert 0.02 < (expected > 0).float().mean() < 0.98
        assert torch.equal(module(x), expected)
        net = torch_nn.Sequential(copy.deepcopy(peer))
        report = swap(net, fuse=True)
        if isinstance(peer, (snntorch.Leaky, SNNCell)):
            assert "takes a whole window" in report.left["0"]
            continue
        assert report.swapped
        assert not report.left
        assert torch.equal(net[0](x), expected)
        assert bool(report.fused) == row[0].startswith("`BatchNormLIF")


@every_row
def test_the_kernel_and_its_bytes(row):
    """The function of the row is that of the module's kind, and its bytes are what the compiled code moves."""
    name, module = row[3].strip("`"), made(row)
    behind_norm = isinstance(module, nn.BatchNormLIF)
    assert name == ("multistep_bn_lif" if behind_norm else f"multistep_{module.kind}")
    assert hasattr(spiketriton_kernels, name)
    assert row[4] == f"{BUDGET[name][0]}e"
