"""Which backend serves a call: by device and dtype, or as forced, and what the log says of it."""

import contextlib
import logging
from types import SimpleNamespace

import pytest
import torch

from spiketriton_kernels import backend_for, multistep_lif, triton_import, use_backend
from spiketriton_kernels.backends import choice, native
from spiketriton_kernels.nn import LIF
from tests.conftest import need_native
from tests.kernels.steps.neurons import Plain


def test_the_backend_follows_device_and_dtype(monkeypatch):
    need_native()
    x = torch.zeros(1, 1)
    assert backend_for(x) == "native"
    if not torch.cuda.is_available():  # where triton was imported to compile
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert backend_for(x) == "triton"
        assert backend_for(x.double()) == "native"
        with use_backend("triton"):
            assert backend_for(x.double()) == "torch"
    with use_backend("torch"):
        assert backend_for(x) == "torch"
    assert backend_for(torch.zeros(1, device="meta")) == "torch"


def test_an_unknown_or_unusable_backend_is_refused():
    with (
        pytest.raises(ValueError, match="'cuda' is unknown; accepted: auto, triton, native, torch"),
        use_backend("cuda"),
    ):
        pass
    with use_backend("native"), pytest.raises(RuntimeError, match="needs a CPU tensor, got meta"):
        backend_for(torch.zeros(1, device="meta"))
    if not torch.cuda.is_available():
        with use_backend("triton"), pytest.raises(RuntimeError, match="needs a CUDA tensor"):
            multistep_lif(torch.zeros(1, 1))


def test_a_gpu_runs_triton_but_for_float64(monkeypatch):
    def on_gpu(dtype):
        return SimpleNamespace(device=torch.device("cuda"), is_cuda=True, is_cpu=False, dtype=dtype)

    narrow = [on_gpu(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32)]
    for have, serves in ((True, "triton"), (False, "torch")):
        monkeypatch.setattr(choice, "HAVE_TRITON", have)
        assert {backend_for(x) for x in narrow} == {serves}
        assert backend_for(on_gpu(torch.float64)) == "torch"
    with use_backend("triton"):
        with pytest.raises(RuntimeError, match="needs a CUDA tensor"):
            backend_for(narrow[0])
        monkeypatch.setattr(choice, "HAVE_TRITON", True)
        assert backend_for(narrow[0]) == "triton"
        assert backend_for(on_gpu(torch.float64)) == "torch"


@pytest.mark.parametrize("value", ["", "0", "1"])
def test_the_interpreter_is_asked_for_by_its_variable(monkeypatch, value):
    monkeypatch.setenv("TRITON_INTERPRET", value)
    monkeypatch.setattr(choice, "HAVE_TRITON", True)
    monkeypatch.setattr(triton_import, "INTERPRETED", True)
    assert choice.interpreting() == (value == "1")
    monkeypatch.setattr(triton_import, "INTERPRETED", False)
    if value == "1":
        with pytest.raises(RuntimeError, match="was not when triton was imported"):
            choice.interpreting()
        monkeypatch.setattr(choice, "HAVE_TRITON", False)
        assert choice.interpreting()  # but there is nothing to interpret
        monkeypatch.setattr(native, "failure", lambda *_: None)
        assert backend_for(torch.zeros(1)) == "native"
    else:
        assert not choice.interpreting()


def test_a_forced_backend_ends_with_its_block_even_by_an_error():
    before = choice._forced
    with contextlib.suppress(KeyError), use_backend("torch"):
        with use_backend("auto"):
            assert choice._forced == "auto"
        assert choice._forced == "torch"
        raise KeyError
    assert choice._forced == before


def test_the_log_says_once_what_serves_the_cpu(monkeypatch, caplog):
    """With the reason where it is eager PyTorch."""
    monkeypatch.setattr(choice, "_said", set())
    monkeypatch.setattr(choice, "_forced", "auto")
    with caplog.at_level(logging.INFO, "spiketriton_kernels"):
        monkeypatch.setattr(native, "failure", lambda *_: None)
        assert [backend_for(torch.zeros(1)) for _ in range(2)] == ["native"] * 2
        monkeypatch.setattr(native, "failure", lambda *_: "there is no compiler")
        assert [backend_for(torch.zeros(1)) for _ in range(2)] == ["torch"] * 2
        assert backend_for(torch.zeros(1, device="meta")) == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        "spiketriton kernels on cpu: compiled C++",
        "spiketriton kernels on cpu: eager PyTorch, several times slower, because there is no compiler",
        "spiketriton kernels on meta: eager PyTorch (no fused kernel for this device)",
    ]


def test_a_step_of_ones_own_that_does_not_compile_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(choice, "_said", set())
    monkeypatch.setattr(choice, "_forced", "auto")
    monkeypatch.setattr(native, "failure", lambda _, step: f"{step.name[:4]} does not compile")
    with caplog.at_level(logging.INFO, "spiketriton_kernels"):
        for neuron in (Plain(), Plain(), LIF()):
            assert backend_for(torch.zeros(1), neuron.traced()) == "torch"
    assert [
        (record.levelname, record.getMessage().rpartition("because ")[2])
        for record in caplog.records
    ] == [
        ("WARNING", "Plai does not compile"),
        ("INFO", "lif_ does not compile"),
    ]


def test_a_forced_native_backend_that_cannot_be_built_raises(monkeypatch):
    def library(dtype, kind):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(native, "library", library)
    with use_backend("native"), pytest.raises(RuntimeError, match="no compiler"):
        backend_for(torch.zeros(1))
