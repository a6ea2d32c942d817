"""Every kind of neuron with every option, on every backend, held to its definition in float64.

What two options do together is met in some case of one table. Spikes are the definition's, whatever the dtype: the
membrane is never rounded to 16 bits.
"""

import pytest
import torch

from spiketriton_kernels import fire
from spiketriton_kernels.definition import define
from tests.kernels.cases import EQUATIONS, OPTIONS, PLAIN, answered, called, drawn, learning
from tests.kernels.support import assert_rounded, membrane_dtype, pairwise


def assert_as_defined(case, device, monkeypatch):
    if case["as_operator"]:  # as where something traces
        monkeypatch.setattr(fire, "traced", lambda tensors: True)
    tensors = drawn(case, device)
    probe = tensors["x"].new_zeros(case["T"], 8, dtype=torch.float32).requires_grad_()
    found = answered(fire.fire, case, tensors, probe=probe if case["probe"] else None)
    exact = answered(define, case, tensors, torch.float64)
    assert found.keys() == exact.keys()
    for name, right in exact.items():
        value = found[name]
        if right is None or value is None:  # autograd says None where nothing depends on a value
            assert all(other is None or not other.any() for other in (right, value)), name
            assert value is None or learning(case, name.removeprefix("gradient of ")), name
        elif name == "spikes":
            assert torch.equal(value, right.to(value.dtype)), "spikes differ"
        else:
            assert_rounded(name, value, right)
    wide = membrane_dtype(case["dtype"])
    dtypes = dict(spikes=case["dtype"], current=case["dtype"], v_last=wide, m_last=wide, trace=wide)
    dtypes |= {f"gradient of {name}": tensor.dtype for name, tensor in tensors.items()}
    assert all(v is None or v.dtype == dtypes[n] for n, v in found.items() if n in dtypes)
    spikes = exact["spikes"] - tensors.get("spike_add", 0)
    assert spikes.numel() < 200 or 0.02 < float((spikes > 0).double().mean()) < 0.98


def name_of(case):
    words = ("equation", "shape", "layout", "dtype", "norm", "upstream", "learns")
    return "-".join(str(case[word]) for word in words)


@pytest.mark.parametrize("case", pairwise(OPTIONS), ids=name_of)
def test_every_pair_of_options(backend, device, case, monkeypatch):
    assert_as_defined(case, device, monkeypatch)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize(("T", "norm"), [(32, "none"), (37, "batch"), (64, "given")])
def test_long_windows_of_several_full_chunks(backend, device, T, norm, monkeypatch):
    case = PLAIN | dict(T=T, norm=norm, size=(1, 3, 2), dtype=torch.bfloat16)
    assert_as_defined(case, device, monkeypatch)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(3, 130), (1, 3, 33, 40), (2, 2, 1, 700)], ids=str)
def test_channels_and_images_larger_than_a_block(backend, device, size, layout, monkeypatch):
    case = dict(size=size, layout=layout, T=2, dtype=torch.bfloat16, norm="batch", residual=True)
    assert_as_defined(PLAIN | case, device, monkeypatch)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_spikes_and_states_agree_in_every_bit_on_any_input(backend, device, equation):
    """No contraction into multiply-adds, no reordering; but for the sigmoids of CLIF."""
    case = PLAIN | dict(equation=equation, T=12, size=(2, 5, 9), states="wide", trace=True)
    tensors = drawn(case, device)
    ours, plain = (called(function, case, tensors) for function in (fire.fire, define))
    for name, value in plain.items():
        torch.testing.assert_close(
            ours[name], value, **({} if equation == "clif" else dict(rtol=0, atol=0))
        )
