"""A user's typed code: mypy reads it as with --strict, and refuses an `ignore` where it finds nothing."""

from typing import assert_type

import pytest
import torch
from torch import Tensor, nn

import spiketriton
from spiketriton.system.errors import UserError
from spiketriton_kernels import (
    Surrogate,
    multistep_bn_lif,
    multistep_lif,
    use_backend,
)
from spiketriton_kernels.nn import CLIF, LIF, PLIF, BatchNormLIF, Leaky, SwapReport, swap


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.neuron = LIF(tau=2.0, detach_reset=False, surrogate=Surrogate.atan(2.0))

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.neuron(self.layer(x))
        return spikes


def test_a_call_has_the_type_of_what_it_returns() -> None:
    x, ones = torch.randn(3, 2, 4), torch.ones(4)
    with use_backend("torch"):
        assert_type(multistep_lif(x, 0.5, reset="soft"), Tensor)
        spikes, v = assert_type(multistep_lif(x, return_v=True), tuple[Tensor, ...])
        assert (spikes.shape, v.shape) == (x.shape, x.shape[1:])
        normed = assert_type(multistep_bn_lif(x, ones, ones, None, None, residual=x), Tensor)
        assert normed.shape == x.shape


def test_modules_and_swap_are_typed() -> None:
    net = Net()
    report = assert_type(swap(net), SwapReport)
    assert "0 neurons" in str(report)
    norm = BatchNormLIF(4, PLIF(per_channel=4, stateful=True))
    leaky = Leaky(0.9, reset_delay=True, step_mode="s", store_v_seq=True)
    clif = CLIF(2.0, step_mode="m")
    for module in (net, norm, leaky, clif):
        assert_type(module.training, bool)


def test_a_run_is_typed(quick: str) -> None:
    run = spiketriton.train(quick, max_steps=1, quiet=True, overrides={"neuron.kind": "if"})
    assert_type(run, spiketriton.Run)
    assert assert_type(run.predict(torch.rand(2, 1, 16, 16)), Tensor).shape == (2, 10)
    assert str(run.recipe.neuron.kind) == "if"
    loaded = spiketriton.load_run(run.path, checkpoint="last", overrides={"train.device": "cpu"})
    assert assert_type(loaded.step, int) == 1
    with pytest.raises(UserError, match="bst"):
        spiketriton.load_run(run.path, checkpoint="bst")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"neuron\.kynd"):
        spiketriton.train(quick, overrides={"neuron.kynd": "if"})


def test_mistakes_are_found_before_they_run() -> None:
    x = torch.randn(3, 2, 4)
    with pytest.raises(TypeError, match="taux"):
        LIF(taux=2.0)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="step_mode"):
        LIF(step_mode="multi")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reset"):
        multistep_lif(x, reset="zero")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="decai"):
        multistep_lif(x, decai=0.5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="tritn"), use_backend("tritn"):  # type: ignore[arg-type]
        pass
    spikes: Tensor
    with pytest.raises(ValueError, match="unpack"):
        spikes, _ = multistep_lif(x)  # a tensor of three steps, which mypy lets through
    spikes = multistep_lif(x, return_v=True)  # type: ignore[assignment]
    assert isinstance(spikes, tuple)
