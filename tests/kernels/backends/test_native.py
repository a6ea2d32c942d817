"""What only the compiled CPU pass has: stores past the caches, threads, and its build."""

import functools
import struct
import subprocess
import threading
import time

import pytest
import torch

from spiketriton_kernels import multistep_bn_lif, multistep_lif, use_backend
from spiketriton_kernels.backends import native
from tests.conftest import need_native


@pytest.fixture(autouse=True)
def native_backend():
    need_native()
    with use_backend("native"):
        yield


def gradients(x, run):
    x = x.detach().requires_grad_()
    out = run(x)
    out.backward(
        torch.linspace(-1, 1, 37, dtype=x.dtype)
        .repeat(out.numel() // 37 + 1)[: out.numel()]
        .view_as(out)
    )
    return out.detach(), x.grad


# 2**23 bytes is where tensors count as larger than the caches. They are written past them where rows are whole lines,
# so there are sizes of both kinds.
@pytest.mark.parametrize(
    ("dtype", "step"),
    [
        (torch.float32, (526_336,)),
        (torch.float32, (43_696, 12)),  # blocks of whole runs of channels begin within a vector
        (torch.bfloat16, (1_052_672,)),
        (torch.bfloat16, (1_050_007,)),
        (torch.float64, (263_176,)),
    ],
)
def test_tensors_beyond_the_caches_come_out_the_same(dtype, step):
    torch.manual_seed(0)
    x = torch.randn(4, *step).to(dtype)
    assert x.numel() * x.element_size() > 2**23
    out, grad = gradients(x, multistep_lif)
    parts = [
        gradients(part.contiguous(), multistep_lif) for part in x[:, :2_000].split(1_000, dim=1)
    ]
    assert torch.equal(out[:, :2_000], torch.cat([s for s, _ in parts], dim=1))
    with use_backend("torch"):
        expected, expected_grad = gradients(x, multistep_lif)
    assert torch.equal(out, expected)
    assert torch.allclose(
        grad, expected_grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )


# Steps are taken by fours, by twos and one by one, as the window and what else is read and written allow.
@pytest.mark.parametrize(
    ("T", "extra", "dtype"),
    [
        (T, extra, (torch.float32, torch.bfloat16, torch.float64)[(T + i) % 3])
        for T in (1, 2, 3, 4, 7)
        for i, extra in enumerate(("nothing", "residual", "spike_add", "current"))
    ],
)
def test_a_window_of_any_length_fires_as_the_definition(T, dtype, extra):
    torch.manual_seed(0)
    shape = (T, 3, 7, 5, 3)  # 315 neurons: a ragged end in every width of vectors
    y, more = (torch.randn(shape).to(dtype) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias, mean, gains = (torch.rand(n, dtype=wide) + 0.5 for n in (7, 7, 7, T))

    def run():
        return multistep_bn_lif(
            y, weight, bias, mean, weight, training=False, step_gain=gains, return_v=True,
            return_current=extra == "current",
            **{extra: more} if extra in ("residual", "spike_add") else {},
        )  # fmt: skip

    found = run(), multistep_lif(y, return_v=True)
    with use_backend("torch"):
        expected = run(), multistep_lif(y, return_v=True)
    for each, right in zip(found, expected, strict=True):
        for result, true in zip(each, right, strict=True):
            assert torch.equal(result, true)


@pytest.mark.parametrize("inner", [176_000, 175_003])
def test_added_spikes_beyond_the_caches(inner):
    torch.manual_seed(0)
    y = torch.randn(4, 1, 3, inner)
    add = (torch.rand_like(y) < 0.3).float()
    arguments = (torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3), False)
    out = multistep_bn_lif(y, *arguments, spike_add=add)
    plain = multistep_bn_lif(y, *arguments)
    assert torch.equal(out, plain + add)


def test_a_pass_takes_a_thread_only_where_there_is_work_for_it(monkeypatch):
    used = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    real = native.library(torch.float32)

    class Recorder:
        @staticmethod
        def spiketriton_run(call, pass_):
            used.append(struct.unpack_from("@4qi", call)[4])
            real.spiketriton_run(call, pass_)

    monkeypatch.setattr(native, "library", lambda dtype, kind: Recorder)
    for neurons in (1, native.GRAIN // 2 - 1, native.GRAIN, 4 * native.GRAIN):
        multistep_lif(torch.zeros(2, neurons))
    assert used == [1, 1, 2, 3]


def test_threads_that_call_at_once_wait_for_one_build(monkeypatch):
    path, building, most = native._build(torch.float32, "lif"), 0, 0

    def build(dtype, kind):
        nonlocal building, most
        building += 1
        most = max(most, building)
        time.sleep(0.05)
        building -= 1
        return path

    monkeypatch.setattr(native, "_build", build)
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(native, "load", functools.cache(native.load.__wrapped__))
    threads = [
        threading.Thread(target=native.library, args=(torch.float32, "lif")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [(-2, ""), (1, "c++: fatal error: Killed signal terminated program cc1plus")],
    ids=["Ctrl-C", "too little memory"],
)
def test_an_interrupted_compiler_leaves_no_slower_library(code, said, monkeypatch, tmp_path):
    calls = []

    def interrupted(command, **_):
        calls.append(command)
        version = "--version" in command
        return subprocess.CompletedProcess(command, 0 if version else code, "c++ 12", said)

    monkeypatch.setenv("SPIKETRITON_CACHE", str(tmp_path))
    monkeypatch.setattr(native.subprocess, "run", interrupted)
    with pytest.raises(native.CompilerError, match="interrupted"):
        native._build(torch.float32, "lif")
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_code_that_does_not_load_is_told_from_a_compiler_that_is_missing(monkeypatch, tmp_path):
    """As from a folder that is mounted noexec."""
    (tmp_path / "kernels.so").write_text("no code")
    monkeypatch.setattr(native, "_build", lambda *_: tmp_path / "kernels.so")
    found = native.load.__wrapped__(torch.float32, "lif")
    assert isinstance(found, native.CompilerError)
    for words in ("do not load", "kernels.so", "noexec", f"than {tmp_path}, by SPIKETRITON_CACHE"):
        assert words in str(found)
