"""Every wrong call is refused in one line that names what was given and what is accepted."""

import math
import re
from typing import Any

import pytest
import torch

from spiketriton_kernels import (
    PROBE_FIELDS,
    Surrogate,
    multistep_alif,
    multistep_bn_lif,
    multistep_clif,
    multistep_ilif,
    multistep_lif,
    multistep_lif_reference,
)
from spiketriton_kernels.arguments import along_channels
from tests.kernels.support import DTYPES

X = torch.zeros(4, 2, 3, 5)
VECTOR = torch.ones(3)
META = torch.zeros(3, device="meta")

NEURON = {
    # x
    "no tensor": (dict(x=[1.0]), TypeError, "must be a tensor [T, B, ...], got list"),
    "integers": (dict(x=X.long()), TypeError, "has dtype torch.int64; accepted: float16, bfloat16"),
    "sparse": (dict(x=X.to_sparse()), TypeError, "layout torch.sparse_coo; accepted: dense"),
    "no time": (dict(x=torch.zeros(3)), ValueError, "has shape (3,); accepted: [T, B, ...]"),
    "0 steps": (dict(x=X[:0]), ValueError, "no time steps: shape (0, 2, 3, 5); accepted: T >= 1"),
    # constants
    "decay text": (dict(decay="0.5"), TypeError, "decay must be a float, got str"),
    "gain inf": (dict(gain=math.inf), ValueError, "gain must be finite, got inf"),
    "reset": (dict(reset="zero"), ValueError, "reset 'zero' is unknown; accepted: soft, hard, none"),
    "detach": (dict(detach_reset=1), TypeError, "detach_reset must be True or False, got 1"),
    "surrogate": (dict(surrogate="atan"), TypeError, "must be a spiketriton_kernels.Surrogate, got str"),
    # tensors as parameters
    "decay integers": (
        dict(decay=VECTOR.long()),
        TypeError,
        "decay as a tensor must be floating point, got torch.int64",
    ),
    "decay shape": (
        dict(decay=torch.ones(5)),
        ValueError,
        "decay has shape (5,); accepted: () or (C,) with C = dim 2 of the input = 3",
    ),
    "decay device": (dict(decay=META), ValueError, "decay is on meta, the input is on cpu; accepted: the same device"),
    "no channels": (
        dict(x=torch.zeros(4, 2), decay=torch.ones(2)),
        ValueError,
        "decay has shape (2,); accepted: () or (C,) with C = dim 2 of the input = None",
    ),
    "delay": (
        dict(reset_delay=True, detach_reset=False),
        ValueError,
        "reset_delay goes with detach_reset=True and v_reset=0.0; got detach_reset=False",
    ),
    # v_init
    "v_init shape": (dict(v_init=torch.zeros(2, 3)), ValueError, "v_init has shape (2, 3); accepted: (2, 3, 5)"),
    "v_init dtype": (dict(v_init=X[0].double()), TypeError, "v_init has dtype torch.float64; accepted: float32"),
}  # fmt: skip

PROBE = {
    "probe number": (dict(probe=8), TypeError, "probe must be a tensor, got int"),
    "probe shape": (dict(probe=torch.zeros(8, 4)), ValueError, "probe has shape (8, 4); accepted: (4, 8)"),
}  # fmt: skip

BATCH_NORM = {
    "y flat": (dict(y=torch.zeros(4, 2)), ValueError, "accepted: [T, B, C, ...], channels are dim 2"),
    "weight shape": (dict(bn_weight=torch.ones(2)), ValueError, "bn_weight has shape (2,); accepted: (3,)"),
    "half a pair": (
        dict(running_mean=VECTOR),
        ValueError,
        "running_mean and running_var go together; one of them is None",
    ),
    "nothing to read": (
        dict(training=False),
        ValueError,
        "running_mean and running_var are needed when training is False; got None",
    ),
    "empty batch": (
        dict(y=torch.zeros(4, 0, 3, 5)),
        ValueError,
        "no statistics of an empty batch: y has shape (4, 0, 3, 5)",
    ),
    "residual dtype": (dict(residual=X.bfloat16()), TypeError, "residual has dtype torch.bfloat16; accepted: float32"),
    "gain shape": (dict(step_gain=torch.ones(3)), ValueError, "step_gain has shape (3,); accepted: (4,)"),
    "eps negative": (dict(eps=-1e-5), ValueError, "eps must be >= 0, got -1e-05"),
    "one value": (dict(y=torch.zeros(1, 1, 3)), ValueError, "needs more than 1 value per channel"),
}  # fmt: skip

OTHERS = [
    (multistep_ilif, dict(levels=0), ValueError, "levels 0: accepted: an integer from 1 to 255"),
    (multistep_ilif, dict(levels=2.0), ValueError, "levels 2.0"),
    (multistep_ilif, dict(x=X[0, 0, 0]), ValueError, "(5,); accepted: [T, B, ...]"),
    (
        multistep_clif,
        dict(m_init=X),
        ValueError,
        "m_init has shape (4, 2, 3, 5); accepted: (2, 3, 5)",
    ),
    (
        multistep_alif,
        dict(rho=torch.ones(5)),
        ValueError,
        "rho has shape (5,); accepted: () or (C,)",
    ),
    (
        multistep_ilif,
        dict(m_init=X[0]),
        TypeError,
        "'m_init'; accepted besides its constants: v_init, return_state",
    ),
    (
        multistep_clif,
        dict(bta=1.0),
        TypeError,
        "multistep_clif has no argument 'bta'; accepted besides",
    ),
    (multistep_alif, dict(beta=math.inf), ValueError, "beta must be finite, got inf"),
]

NORMLESS = dict.fromkeys(("bn_weight", "bn_bias", "running_mean", "running_var"))
WRONG = [
    *((multistep_lif, *case) for case in (NEURON | PROBE).values()),
    *((multistep_lif_reference, *case) for case in NEURON.values()),
    *((multistep_bn_lif, *case) for case in (NEURON | BATCH_NORM).values()),
    *OTHERS,
]  # fmt: skip


@pytest.mark.parametrize(("function", "changes", "error", "words"), WRONG)
def test_wrong_calls(function, changes, error, words):
    given = dict(x=X) | changes
    if function is multistep_bn_lif:
        given = NORMLESS | {"y": given.pop("x")} | given
    with pytest.raises(error, match=re.escape(words)) as caught:
        function(**given)
    assert "\n" not in str(caught.value), "more than one line"


def like(x: torch.Tensor) -> list[Any]:
    """What is no tensor of the shape, dtype and device of x."""
    grown = torch.zeros((*x.shape[:-1], x.shape[-1] + 1), dtype=x.dtype)
    wide = torch.float32 if x.dtype == torch.float64 else torch.float64
    return [0.5, "x", grown, x[None], x.long(), x.bool(), x.to(wide), x.cfloat(), x.to("meta")]


def never(name: str, x: torch.Tensor) -> list[Any]:
    """What an argument cannot be, beside x [T, B, C, ...]."""
    T, C = x.shape[0], x.shape[2]
    numbers = ["0.5", None, True, math.nan, math.inf, -math.inf, 1j, [0.5], 10**400]
    sizes = [torch.ones(size) for size in ((3, 1), (7,), (9,))]
    sizes += [torch.ones((), dtype=kind) for kind in (torch.int64, torch.bool, torch.complex64)]
    inputs = [x.long(), x.bool(), x.cfloat(), x.to(torch.float8_e4m3fn), x.to_sparse(), x[:0]]
    return {
        "input": [None, 1.0, [1.0], torch.zeros(T), torch.tensor(1.0), *inputs],
        "reset": ["Hard", "", None, 1, ["hard"], {"hard"}],
        "detach_reset": [0, 1, None, "True", torch.tensor(True)],
        "surrogate": [None, "atan", Surrogate, 1.0],
        "decay": [*numbers, *sizes, torch.ones((), device="meta")],
        "threshold": [*numbers, *sizes, torch.ones((), device="meta")],
        "surrogate width": [torch.ones(7), torch.ones((), device="meta")],
        "probe": like(torch.zeros(T, len(PROBE_FIELDS))),
        "v_init": like(x[0]),
        "residual": like(x),
        "spike_add": like(x),
        "bn_weight": like(torch.zeros(C, dtype=x.dtype)),
        "running_mean": like(torch.zeros(C, dtype=x.dtype)),
        "step_gain": like(torch.zeros(T, dtype=x.dtype)),
    }.get(name, numbers)


BOTH = (
    "input",
    "reset",
    "detach_reset",
    "surrogate",
    "decay",
    "threshold",
    "surrogate width",
    "probe",
    "v_init",
)
BEHIND_NORM = (
    "residual",
    "spike_add",
    "bn_weight",
    "running_mean",
    "step_gain",
    "eps",
    "momentum",
    "bn_scale",
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        *((multistep_lif, name) for name in (*BOTH, "gain", "v_reset")),
        *((multistep_bn_lif, name) for name in (*BOTH, "gain", "v_reset", *BEHIND_NORM)),
    ],
)
def test_every_argument_is_refused_by_name_where_it_cannot_be(function, name, dtype):
    own, x = "x" if function is multistep_lif else "y", torch.zeros(5, 2, 4, 3, dtype=dtype)
    for value in never(name, x):
        given = {own: x} | ({} if own == "x" else NORMLESS)
        if name == "surrogate width":
            given["surrogate"] = Surrogate("atan", width=value)
        else:
            given[own if name == "input" else name] = value
        with pytest.raises((TypeError, ValueError)) as caught:
            function(**given)
        said = str(caught.value)
        assert "\n" not in said
        assert len(said) < 300
        assert (own if name == "input" else name) in said, (value, said)


def test_one_value_per_channel_is_enough_in_evaluation():
    norm = None, None, VECTOR, VECTOR
    assert multistep_bn_lif(torch.zeros(1, 1, 3), *norm, training=False).shape == (1, 1, 3)


def test_refusals_come_before_any_work():
    """A bad call leaves the running statistics as they were."""
    mean, var = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match="reset 'zero' is unknown"):
        multistep_bn_lif(torch.randn(4, 2, 3, 5), None, None, mean, var, reset="zero")
    with pytest.raises(ValueError, match="more than 1 value"):
        multistep_bn_lif(torch.ones(1, 1, 3), None, None, mean, var)
    assert mean.eq(0).all()
    assert var.eq(1).all()


def test_a_parameter_takes_the_shape_of_a_channel():
    """Of one time step [B, C, ...], in the membrane's dtype; floats and () broadcast as they are."""
    assert along_channels(0.5, X, torch.float64) == 0.5
    assert along_channels(torch.ones(()), X, torch.float64).shape == ()
    for shape, expected in (
        ((4, 2, 3), (3,)),
        ((4, 2, 3, 5), (3, 1)),
        ((4, 2, 3, 5, 6), (3, 1, 1)),
    ):
        value = along_channels(VECTOR, torch.zeros(shape), torch.float64)
        assert value.shape == expected
        assert value.dtype == torch.float64
