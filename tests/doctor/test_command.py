"""doctor: right on this machine, and whatever is broken is said to be wrong."""

import json
from dataclasses import replace

import pytest
import torch

import spiketriton_kernels as kernels
from spiketriton.doctor import checkup
from spiketriton.doctor.__main__ import main, small_recipe
from spiketriton.doctor.checkup import KERNELS, TOLERANCE, compared
from spiketriton.system import machine
from spiketriton.system.errors import EXIT_DONE, EXIT_ERROR
from spiketriton_kernels.backends import choice, native

CPU = torch.device("cpu")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_this_machine_is_right(capsys, tmp_path, monkeypatch, every):
    """Versions, backends, every kernel in every dtype (or LIF's in two), a training, the data sets."""
    if not every:  # a compiler takes a minute for the others
        few = tuple(kernel for kernel in KERNELS if kernel.kind == "lif")
        monkeypatch.setattr(checkup, "KERNELS", few)
        monkeypatch.setattr(checkup, "TOLERANCE", dict(list(TOLERANCE.items())[:2]))
    assert (
        main(["train.device=cpu", f"data.root={tmp_path}", "--json", "train.threads=1"])
        == EXIT_DONE
    )
    found = json.loads(capsys.readouterr().out)
    lines = {finding["name"]: finding for finding in found["findings"]}
    assert "wrong" not in {finding["state"] for finding in lines.values()}
    assert found["version"].startswith("spiketriton ")
    for kernel in checkup.KERNELS:
        for dtype in [d for d in checkup.TOLERANCE if kernel in checkup.looked_at(d)]:
            name = f"{kernel.name}, {str(dtype).removeprefix('torch.')}"
            assert lines[name]["found"].startswith("spikes equal")
    for name in ("Python", "torch", "CPU", "memory", "processors", "backend, float32"):
        assert lines[name]["found"]
    assert "1,437 training and 360 test" in lines["data, digits"]["found"]
    assert "not in" in lines["data, cifar10"]["found"]
    assert lines["training, fp32"]["state"] == "ok"


def test_other_kinds_than_lif_are_looked_at_in_float32_alone():
    kinds = {dtype: {one.kind for one in checkup.looked_at(dtype)} for dtype in TOLERANCE}
    every = {one.kind for one in KERNELS}
    assert len(every) > 4
    assert kinds == {dtype: every if dtype == torch.float32 else {"lif"} for dtype in TOLERANCE}


class Scaled(torch.autograd.Function):
    """The identity with a gradient that is a little wrong, or wrong in one element."""

    @staticmethod
    def forward(ctx, x, where, factor):
        ctx.where, ctx.factor = where, factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad.view(-1)[ctx.where] *= ctx.factor
        return grad, None, None


def late(x, **options):
    """The last element spikes where it must not, or not where it must."""
    spikes = kernels.multistep_lif(x, **options)
    flipped = torch.zeros_like(spikes)
    flipped.view(-1)[-1] = 1
    return (spikes - flipped).abs()


def scaled(where, factor):
    return lambda x, **o: kernels.multistep_lif(Scaled.apply(x, where, factor), **o)


@pytest.mark.parametrize(
    ("broken", "dtype", "said"),
    [
        (late, torch.float32, "1 of 1575 spikes differ"),
        (scaled(slice(None), 1.1), torch.bfloat16, "gradients off by 1.0e-01"),
        (scaled(-1, torch.nan), torch.bfloat16, "gradients off by inf"),
        (scaled(-1, 1 + 1e-6), torch.float64, "gradients off by"),
    ],
    ids=["spikes", "gradients", "nan", "double"],
)
def test_a_broken_kernel_is_wrong(broken, dtype, said):
    (finding,) = compared(replace(KERNELS[0], fused=broken), dtype, CPU)
    assert finding.state == "wrong"
    assert said in finding.found
    assert "do not train" in finding.advice


def test_each_field_of_a_probe_is_looked_at():
    """The largest is a hundred times the smallest."""
    (kernel,) = [one for one in KERNELS if one.leaves == ("probe",)]
    fields = len(kernels.PROBE_FIELDS)
    for column in range(fields - 1):  # the last one counts what is not finite

        def broken(x, probe, column=column):
            return kernels.multistep_lif(
                x, probe=Scaled.apply(probe, slice(column, None, fields), 1.01)
            )

        (finding,) = compared(replace(kernel, fused=broken), torch.float32, CPU)
        assert finding.state == "wrong"
        assert "gradients off by 1.0e-02" in finding.found


def test_the_unit_of_ms_blocks_is_looked_at_in_wide_accesses_too():
    """Channels_last, of whole blocks: 16 bytes each; the other shapes let none be wider than an element."""
    (kernel,) = [one for one in checkup.KERNELS if one.shape == checkup.WIDE]
    assert kernel.constants == dict(return_current=True)
    seen = []

    def noted(x, residual, **options):
        seen.extend((x, residual))
        return kernel.fused(x, residual=residual, **options)

    _, _, *gradients = checkup._pass(noted, kernel, torch.float32, CPU)
    assert len(gradients) == 4
    for one in seen:
        assert one.stride() == (2048, 1024, 1, 256, 64)
        assert one.shape[2] % 16 == 0


def test_an_error_is_wrong_and_the_others_are_looked_at(monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(checkup, "KERNELS", (replace(KERNELS[0], fused=fails),))
    for name in ("backend", "trained", "data_sets"):
        monkeypatch.setattr(checkup, name, lambda *_: iter(()))
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["train.device=cpu"]) == EXIT_ERROR
    lines = capsys.readouterr().out.splitlines()
    wrong = [line for line in lines if line.startswith("wrong ")]
    assert len(wrong) == len(TOLERANCE)
    assert "RuntimeError: no kernel image is available" in " ".join(" ".join(lines).split())
    assert lines[-1].endswith("4 wrong; see the lines that begin with it")
    assert all(len(line) <= 60 for line in lines)


def test_a_network_that_trains_otherwise_than_eager_pytorch_is_wrong(monkeypatch):
    losses = iter([2.3, 2.31])
    row = lambda: dict(loss=next(losses), images_per_s=100.0)  # noqa: E731
    monkeypatch.setattr(checkup, "_rows", lambda recipe: [row()])
    (finding,) = checkup.trained(small_recipe([]), CPU)
    assert (finding.name, finding.state) == ("training, fp32", "wrong")


@pytest.mark.parametrize(
    ("installed", "state"),
    [("2.10.1", "wrong"), ("2.11.0", "ok"), ("3.0.0", "ok")],
)
def test_versions(installed, state, monkeypatch):
    monkeypatch.setattr(checkup, "version", lambda name: installed if name == "torch" else "3.6.0")
    found = {finding.name: finding for finding in checkup.versions()}
    assert found["torch"].state == state
    assert ("newer than the tested" in found["torch"].found) == (installed == "3.0.0")
    assert found["triton"].state == "ok"


def test_a_busy_machine_with_little_memory_and_no_compiler_is_slow(monkeypatch):
    for taken, state in ((machine.usable() / 2, "slow"), (0.0, "ok")):
        monkeypatch.setattr(machine, "taken", lambda taken=taken: taken)
        (found,) = [one for one in checkup.devices(CPU) if one.name == "processors"]
        assert found.state == state
    for memory, state in ((2**31 - 1, "slow"), (2**31, "ok")):
        monkeypatch.setattr(machine, "available_memory", lambda memory=memory: memory)
        (found,) = [one for one in checkup.devices(CPU) if one.name == "memory"]
        assert found.state == state
    monkeypatch.setattr(native, "failure", lambda dtype: native.CompilerError("no C++ compiler"))
    with kernels.use_backend("torch"):
        found = [finding for dtype in TOLERANCE for finding in checkup.backend(dtype, CPU)]
    assert [(one.state, one.found) for one in found] == [
        ("slow", "eager PyTorch: no C++ compiler")
    ] * 4


def test_interpreted_kernels_are_slow_and_not_trained(monkeypatch):
    monkeypatch.setattr(choice, "interpreting", lambda: True)
    monkeypatch.setattr(checkup, "KERNELS", ())
    with kernels.use_backend("triton"):
        found = {
            finding.name: finding
            for finding in checkup.findings(small_recipe(["train.device=cpu"]))
        }
    assert found["backend, float32"].state == "slow"
    assert "unset TRITON_INTERPRET" in found["backend, float32"].advice
    assert "training, fp32" not in found
