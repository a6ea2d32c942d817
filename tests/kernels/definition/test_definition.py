"""Every kind of neuron with every option, on every backend, held to its definition in float64.

What two options do together is met in some case of one table. Spikes are the definition's, whatever the dtype: the
membrane is never rounded to 16 bits.
"""

import pytest
import torch

from spiketriton_kernels.window import fire
from tests.kernels.cases import (
    EQUATIONS,
    OPTIONS,
    PLAIN,
    assert_as_defined,
    by_kernels,
    called,
    define,
    drawn,
    on_each_backend,
)
from tests.kernels.support import pairwise


def name_of(case):
    words = ("equation", "shape", "layout", "dtype", "norm", "upstream", "learns")
    return "-".join(str(case[word]) for word in words)


CASES = [
    *pairwise(OPTIONS),
    PLAIN | dict(equation="lif soft, delayed", layout="channels_last", dtype=torch.float16),
    PLAIN
    | dict(equation="clif", shape="gaussian", other_layout="time_inside", dtype=torch.float64),
    PLAIN | dict(dtype=torch.bfloat16),
]
"""The last three are pairs that C++ would lack, which has few kinds of each dtype without --slow."""


@pytest.mark.parametrize(("backend", "case"), on_each_backend(CASES, name_of), indirect=["backend"])
def test_every_pair_of_options(backend, device, case, monkeypatch):
    if case["as_operator"]:  # as where something traces
        monkeypatch.setattr(fire, "traced", lambda tensors: True)
    spikes = assert_as_defined(case, device)["spikes"]
    fired = float((spikes > case["spike_add"] * 2).double().mean())
    assert fired < 0.98
    assert case["spike_add"] or spikes.numel() < 200 or fired > 0.02


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize(("T", "norm"), [(32, "none"), (37, "batch"), (64, "given")])
def test_long_windows_of_several_full_chunks(backend, device, T, norm):
    case = PLAIN | dict(T=T, norm=norm, size=(1, 3, 2), dtype=torch.bfloat16)
    assert_as_defined(case, device)


LARGE = [(3, 130), (1, 3, 33, 40), (2, 5, 1021), (1, 5, 1250)]


@pytest.mark.parametrize(
    ("backend", "size", "layout"),
    [
        (backend, size, layout)
        for backend in ("triton", "native", "torch")
        for size in LARGE
        for layout in ("contiguous", "channels_last")
        if backend != "triton" or layout == "contiguous" or len(size) == 4  # interpreted
    ],
    ids=str,
    indirect=["backend"],
)
def test_channels_and_images_larger_than_a_block(backend, device, size, layout):
    """Blocks of one channel or of two, or of whole runs of channels; the last ones are shorter."""
    case = dict(size=size, layout=layout, T=2, norm="batch", residual=True, threshold="channel")
    assert_as_defined(PLAIN | case, device)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_spikes_and_states_agree_in_every_bit_on_any_input(backend, device, equation):
    """No contraction into multiply-adds, no reordering; but for the sigmoids of CLIF."""
    case = PLAIN | dict(equation=equation, T=12, size=(2, 5, 9), states="wide", trace=True)
    tensors = drawn(case, device)
    ours, plain = (called(function, case, tensors) for function in (by_kernels, define))
    for name, value in plain.items():
        torch.testing.assert_close(
            ours[name], value, **({} if equation == "clif" else dict(rtol=0, atol=0))
        )
