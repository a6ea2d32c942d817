"""The sums that a probe receives, against autograd in the definition of one step at a time."""

import pytest
import torch

from spiketriton_kernels import PROBE_FIELDS, REACH, SHAPES, Surrogate, multistep_lif
from tests.kernels.cases import (
    CONSTANTS,
    EQUATIONS,
    KINDS,
    PLAIN,
    answered,
    by_kernels,
    called,
    define,
    drawn,
)
from tests.kernels.support import case_id, normal, pairwise

COLUMN = {name: i for i, name in enumerate(PROBE_FIELDS)}


def probe(device: torch.device, steps: int) -> torch.Tensor:
    return torch.zeros(steps, len(PROBE_FIELDS), device=device, requires_grad=True)


def sums(case: dict, device: torch.device) -> torch.Tensor:
    """What a probe should find [T, 8], float64."""
    tensors = {name: value.double() for name, value in drawn(case, device).items()}
    ends = {
        name: normal(value.shape, case["dtype"], device, seed).double()
        for seed, (name, value) in enumerate(called(define, case, tensors).items(), start=50)
    }
    current = called(define, case | dict(current=True), tensors)["current"]
    alone = case | dict(norm="none", T=1, current=False, trace=True)
    given = {n: tensors[n] for n in (*CONSTANTS, "v_init", "m_init") if n in tensors}
    inputs, spikes, membranes, before, loss = [], [], [], [], 0.0
    for t, x in enumerate(current.unsqueeze(1)):
        inputs.append(x.clone().requires_grad_())
        before.append(given.get("v_init", torch.zeros_like(x[0])))
        out = called(define, alone, given | {"x": inputs[-1]})
        v = out["v_last"] * 1.0  # with reset="none" the definition's v is h itself
        v.retain_grad()
        spikes.append(out["spikes"])
        membranes.append(v)
        given |= {"v_init": v} | ({"m_init": out["m_last"]} if "m_last" in out else {})
        loss = loss + (out["spikes"] * ends["spikes"][t]).sum()
    if case["upstream"] == "all":
        loss = loss + (v * ends["v_last"]).sum()
        loss = loss + (out["m_last"] * ends["m_last"]).sum() if "m_last" in out else loss
    loss.backward(retain_graph=True)
    carries = [torch.zeros_like(v) if v.grad is None else v.grad.clone() for v in membranes]
    gradients = [x.grad.clone() for x in inputs]
    slopes, jumps = (
        [
            torch.autograd.grad(out.sum(), x, retain_graph=True)[0]
            for out, x in zip(outs, inputs, strict=True)
        ]
        for outs in (spikes, membranes)
    )
    constant = {n: tensors.get(n, torch.tensor(value).double()) for n, value in CONSTANTS.items()}
    decay, gain, threshold = (
        value if value.dim() == 0 else value.view(-1, *[1] * (current.dim() - 3))
        for value in (constant[name] for name in ("decay", "gain", "threshold"))
    )
    peak = gain / threshold if case["equation"] == "ilif" else gain * case["height"]
    rows = []
    steps = zip(spikes, gradients, carries, slopes, jumps, strict=True)
    for t, (s, by_x, carry, slope, jump) in enumerate(steps):
        passed = jump / gain
        if case["equation"] == "lif hard, delayed":  # by what the step makes of the membrane before
            passed = (before[t] < threshold).double()
        rows.append(
            [
                ends["spikes"][t].square().sum(), by_x.square().sum(), carry.square().sum(),
                (decay * passed).abs().sum(), (slope / peak < REACH).sum(), s.sum(), by_x.abs().max(), 0.0,
            ]
        )  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)


def assert_sums(case: dict, device: torch.device) -> None:
    found, expected = probe(device, case["T"]), sums(case, device)
    answered(by_kernels, case, drawn(case, device), probe=found)
    for name, i in COLUMN.items():
        torch.testing.assert_close(
            found.grad[:, i].double().cpu(), expected[:, i], rtol=1e-4, atol=1e-6, msg=name
        )
    assert expected[:, COLUMN["spikes"]].sum() > 0


CASES = [
    {"shape": [*SHAPES][at % len(SHAPES)]} | case
    for at, case in enumerate(
        pairwise(
            dict(
                equation=EQUATIONS, T=[5, 1], layout=["contiguous", "channels_last"], norm=["none", "batch", "given"],
                decay=["float", "channel"], detach_reset=[True, False], residual=[True, False],
                upstream=["spikes", "all"],
            )
        )
    )
]  # fmt: skip
"""Every pair but those of equation and surrogate, which test_definition.py has: of each equation three or more."""


def test_every_surrogate_and_kind_is_probed():
    assert {case["shape"] for case in CASES} == {*SHAPES}
    for equation in EQUATIONS:
        assert len({case["shape"] for case in CASES if case["equation"] == equation}) >= 3


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_sums_of_every_kind(backend, device, case):
    """dL/dx is the gradient at the neuron's input current: after norm, step gain and residual."""
    assert_sums(PLAIN | dict(size=(2, 3, 4, 2), step_gain=True, width="scalar") | case, device)


@pytest.mark.parametrize(
    ("size", "T", "equation"),
    [
        ((1, 2, 3), 37, "lif hard"),  # in chunks
        ((3, 7, 13, 11), 2, "lif soft"),  # more neurons than one program or block holds
    ],
    ids=str,
)
def test_sums_of_chunks_and_blocks(backend, device, size, T, equation):
    """No step and no neuron is counted twice, none left out."""
    assert_sums(PLAIN | dict(size=size, T=T, equation=equation, shape="triangle"), device)


@pytest.mark.parametrize("kind", KINDS)
def test_outside_is_where_the_slope_is_small(kind, backend, device):
    """A rectangle passes within its width; an integer neuron up to its levels."""
    x = torch.tensor([[-3.0, -0.5, 0.2, 0.9, 1.4, 3.5, 9.0]], device=device, requires_grad=True)
    found, case = (
        probe(device, 1),
        PLAIN | dict(equation=KINDS[kind], shape="rectangle", width="given"),
    )
    called(by_kernels, case, {"x": x, "width": torch.tensor(0.5, device=device)}, probe=found)[
        "spikes"
    ].sum().backward()
    assert found.grad[0, COLUMN["outside"]] == 7 - x.grad.count_nonzero()
    assert x.grad.count_nonzero() == (3 if kind == "ilif" else 2)


@pytest.mark.parametrize(
    ("size", "layout", "current"),
    [
        ((3, 5, 7), "contiguous", True),
        ((2, 16, 33, 3), "channels_last", False),
        ((2, 16, 33, 3), "contiguous", False),
    ],
    ids=str,
)
def test_a_probe_changes_nothing(backend, device, size, layout, current):
    """Results and gradients with and without it, to the bit; it measures the same where the current is used too."""
    case = PLAIN | dict(norm="batch", residual=True, dtype=torch.bfloat16, T=3, size=size)
    case |= dict(layout=layout, current=current)
    tensors, found = drawn(case, device), probe(device, 3)
    plain, probed = (answered(by_kernels, case, tensors, probe=one) for one in (None, found))
    for name, value in plain.items():
        assert torch.equal(probed[name], value), name
    alone = probe(device, 3)
    answered(by_kernels, case | dict(current=False, learns="what is added"), tensors, probe=alone)
    torch.testing.assert_close(alone.grad, found.grad)


def test_infinite_gradients_are_counted_and_left_out_of_the_largest(backend, device):
    x = torch.ones(1, 1, 1, 4, device=device, requires_grad=True)
    given = probe(device, 1)
    upstream = torch.tensor([1.0, float("inf"), float("nan"), -3.0], device=device)
    multistep_lif(x, probe=given).backward(upstream.view(1, 1, 1, 4))
    row = dict(zip(PROBE_FIELDS, given.grad[0].tolist(), strict=True))
    assert (row["nonfinite"], row["spikes"], row["grad_input_max"]) == (2, 4, 3)


@pytest.mark.parametrize(
    ("shape", "reset", "detach_reset", "lost"),
    [
        *((shape, "hard", True, shape == "rectangle") for shape in SHAPES),
        *(("rectangle", *way) for way in (("hard", False, False), ("soft", False, True), ("none", True, True))),
    ],
)  # fmt: skip
def test_a_current_that_is_no_number_is_counted(backend, device, shape, reset, detach_reset, lost):
    """dL/dx is NaN where its potential is, but for a rectangle's, whose slope there is 0; nowhere else."""
    x = torch.full((4, 1, 3), 0.6, device=device)
    x[2, 0, 1] = float("nan")
    found, options = probe(device, 4), dict(reset=reset, detach_reset=detach_reset)
    x.requires_grad_()
    spikes, v_last = multistep_lif(
        x, **options, surrogate=Surrogate(shape), return_v=True, probe=found
    )
    (spikes.sum() + v_last.sum()).backward()
    expected = torch.zeros(4, 3, dtype=torch.bool, device=device)
    expected[:, 1] = not lost
    assert torch.equal(x.grad[:, 0].isnan(), expected)
    assert torch.equal(found.grad[:, COLUMN["nonfinite"]], expected.sum(1).float())
