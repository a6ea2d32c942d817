"""NIR files of networks in other libraries, as docs/evaluation.md says: the same currents, or the known refusal."""

import pytest
import torch
from torch import nn

from spiketriton.export.nir_graph import to_nir
from tests.export.test_nir_graph import SIZE, T, build, images

nir = pytest.importorskip("nir", reason="the extra nir is not installed")

PLAIN = ["model.name=plain", "model.depth=4"]
MLP = ["model.name=mlp", "model.depth=1", "model.width=32"]


def by_spikingjelly(graph, dt: float) -> nn.Module:
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    return exchange.import_from_nir(graph, dt=dt, step_mode="s")


def by_snntorch(graph, dt: float) -> nn.Module:
    return pytest.importorskip("snntorch.import_nir").import_from_nir(graph)


def by_norse(graph, dt: float) -> nn.Module:
    return pytest.importorskip("norse.torch.utils.import_nir").from_nir(graph, dt=dt)


def difference(load, dt: float, overrides: list[str], batch: int, tmp_path) -> float:
    """The largest of the currents', of a file that another library has read and run step by step."""
    model, x = build(*overrides), images()[:batch]
    path = tmp_path / "net.nir"
    nir.write(path, to_nir(model, (2, SIZE, SIZE), dt))
    net, state, found = load(nir.read(path), dt), None, []
    with torch.no_grad():
        expected = model(x)
        for _ in range(T):
            out = net(x) if state is None else net(x, state)
            out, state = out if isinstance(out, tuple) else (out, None)
            found.append(out)
    assert expected.std(0).max() > 0  # spikes differ from step to step
    return float((torch.stack(found).reshape(expected.shape) - expected).abs().max())


@pytest.mark.parametrize(
    ("load", "dt", "overrides", "batch"),
    [
        (by_spikingjelly, 1.0, [], 3),
        (by_spikingjelly, 1.0, ["model.block=sew"], 3),
        (by_spikingjelly, 1e-4, ["model.block=ms"], 1),
        (by_spikingjelly, 1.0, [*PLAIN, "neuron.kind=if"], 3),
        (by_spikingjelly, 1.0, [*PLAIN, "neuron.kind=cuba", "neuron.tau=3.0"], 3),
        (by_snntorch, 1e-4, [], 1),
        (by_snntorch, 1e-4, ["model.block=sew"], 1),
        (by_snntorch, 1e-4, ["model.block=ms"], 1),
        (by_snntorch, 1e-4, [*PLAIN, "neuron.kind=cuba", "neuron.tau=3.0"], 1),
        (by_norse, 1e-3, [*MLP, "neuron.decay_input=true"], 1),
    ],
)
def test_another_library_gives_the_same_currents(load, dt, overrides, batch, tmp_path):
    assert difference(load, dt, overrides, batch, tmp_path) < 1e-6


@pytest.mark.parametrize("load", [by_snntorch, by_norse])
def test_their_flattening_takes_one_image_a_call(load, tmp_path):
    """If this fails the page may say more of them."""
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        difference(load, 1e-4, [*MLP, "neuron.decay_input=true"], 3, tmp_path)


def test_norse_leaves_out_the_resistance_of_a_membrane(tmp_path):
    """If this fails the page may say more of it."""
    assert difference(by_norse, 1.0, MLP, 1, tmp_path) > 1e-3
