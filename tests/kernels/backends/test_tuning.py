"""What launches may choose: it changes nothing that they compute, and without a file nothing at all."""

import json
from functools import cache

import pytest
import torch

from spiketriton_kernels import multistep_bn_lif, multistep_lif
from spiketriton_kernels.backends import triton_launch, triton_tiles, tuning
from spiketriton_kernels.backends.tuning import KERNELS, Tuning, read, trying, tuned, write
from tests.kernels.support import as_layout, normal
from tests.processes import said_by

OTHER = Tuning(warps=2, width=2, ahead=3, stages=3, programs=1)
OF = {
    "fire": "lif",
    "walk": "lif",
    "walk dx": "residual",
    "norm backward": "residual",
    "walk current": "current",
}
"""What launches a kernel; batch norm and neuron the others."""


def work(what):
    """Spikes and gradients; each launch's kernel, programs and options."""
    x = as_layout(normal((4, 2, 32, 4, 4)), "channels_last").detach().requires_grad_()
    options = {}
    if what in ("residual", "current"):
        other = as_layout(normal((4, 2, 32, 4, 4), seed=1), "channels_last").detach()
        options = dict(residual=other.requires_grad_(), return_current=what == "current")
    seen = []

    def told(kernel, programs, args, named):
        seen.append((kernel.__name__, programs, args[: len(args)], dict(named)))
        return False

    with triton_launch.telling(told):
        if what == "lif":
            out = multistep_lif(x)
        else:
            out = multistep_bn_lif(x, *(torch.ones(32) for _ in range(4)), **options)
        outs = out if isinstance(out, tuple) else (out,)
        grads = torch.autograd.grad(
            outs, [x, *filter(torch.is_tensor, options.values())], [normal(o.shape) for o in outs]
        )
    launched = [(name, programs, named) for name, programs, _, named in seen]
    return [outs[0].detach(), *grads], launched


usual_work = cache(work)


@pytest.mark.parametrize("kernel", KERNELS)
def test_another_choice_computes_the_same(triton_backend, monkeypatch, kernel):
    """Sums may differ by their rounding. One kernel is launched otherwise, by every field that it has."""
    monkeypatch.setattr(triton_tiles, "PROCESSORS", 1)  # so that a program walks over several tiles
    what = OF.get(kernel, "norm")
    expected, usual = usual_work(what)
    with trying(kernel, OTHER):
        found, launched = work(what)
    assert torch.equal(found[0], expected[0])
    for mine, right in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)
    changed = [
        (one, other)
        for one, other in zip(launched, usual, strict=True)
        if one != other and not one[0].startswith("join")
    ]
    ((name, programs, named), (_, before, was)) = changed[0]
    assert len(changed) == 1
    assert name.removesuffix("_kernel") in kernel.replace("norm back", "norm_back")
    cut = named["CUT"]
    assert cut.block_r * cut.block_l == 2 * 32 * 2
    assert (named["num_warps"], was["num_warps"]) == (2, 4)
    if "ahead" in KERNELS[kernel]:
        assert (named["WINDOW"].ahead, was["WINDOW"].ahead != 3) == (3, kernel != "norm backward")
    if "stages" in KERNELS[kernel]:
        assert 3 in (named.get("STAGES"), named.get("WINDOW", (0,))[-1])
    if "programs" in KERNELS[kernel]:
        assert programs[0] == 1 < before[0]
    assert kernel != "walk" or work(what)[1] == usual  # afterwards


def test_a_file_tells_by_capability_kernel_window_and_dtype(tmp_path, monkeypatch):
    file, found = tmp_path / "tuning.json", Tuning(width=2, stages=1)
    write(file, {"9.0": {("walk current", 4, torch.bfloat16): found}, "8.0": {}})
    assert read(file) == {"9.0": {("walk current", 4, torch.bfloat16): found}, "8.0": {}}
    monkeypatch.setattr(tuning, "FILE", file)
    monkeypatch.setattr(tuning, "_capability", lambda index: ["9.0", "8.0", "10.0"][index])

    class X:
        def __init__(self, T=4, dtype=torch.bfloat16, index=0):
            self.shape, self.dtype, self.device = (T,), dtype, torch.device("cuda", index)

    assert tuned("walk current", X()) == found
    for other in (X(T=5), X(dtype=torch.float16), X(index=1), X(index=2)):
        assert tuned("walk current", other) == Tuning()
    assert (
        tuned("walk dx", X())
        == tuned("walk current", torch.zeros(4, dtype=torch.bfloat16))
        == Tuning()
    )
    monkeypatch.setattr(tuning, "FILE", tmp_path / "none.json")
    assert tuned("walk current", X()) == Tuning()
    assert not tuning.__spec__.parent.endswith("tuning.json")


ENTRY = {"kernel": "norm fire", "T": 4, "dtype": "bf16", "width": 4}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"width": 3}, "width = 3 of norm fire: accepted: 1, 2, 4, 8, 16"),
        (
            {"stages": 2},
            "stages = 2 of norm fire: accepted: whole numbers from 1 for warps, width, ahead",
        ),
        ({"ahead": 0}, "ahead = 0 of norm fire: accepted: whole numbers from 1"),
        ({"ahead": True}, "ahead = True"),
        ({"kernel": "burn"}, "KeyError('burn')"),
        ({"dtype": "int8"}, "KeyError('int8')"),
        (None, "what `python profiling/run.py tune` writes, or no file"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path, entry, says):
    file = tmp_path / "tuning.json"
    file.write_text("{" if entry is None else json.dumps({"9.0": [ENTRY | entry]}))
    with pytest.raises(ValueError) as refused:
        read(file)
    assert str(refused.value).startswith(f"{file} holds no tuning; accepted: ")
    assert says in str(refused.value)


LOWERED = """
import json
from profiling.harness import lowering
from spiketriton_kernels.backends.tuning import Tuning, trying
found = []
for warps in (None, 8):
    with trying("walk current", Tuning(warps=warps, width=warps and 2, stages=warps and 3)):
        report = lowering.lower("bn_lif+current backward", T=2)
    found.append([report[name] for name in ("warps", "elements_per_thread", "spills", "bytes_per_element")])
print(json.dumps(found))
"""


def test_another_choice_is_compiled():
    usual, other = said_by(LOWERED)
    assert usual[:3] == [4, 4, 0]
    assert other[:3] == [8, 2, 0]
    assert other[3] == usual[3]
