"""What only the compiled CPU pass has: stores past the caches, threads, and its build."""

import functools
import logging
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from spiketriton_kernels import SHAPES, Surrogate, multistep_bn_lif, multistep_lif, use_backend
from spiketriton_kernels.__main__ import main as build_ahead
from spiketriton_kernels.backends import call, native
from spiketriton_kernels.nn import ALIF, CLIF, ILIF, LIF, PLIF, CuBaLIF, Leaky
from spiketriton_kernels.steps import forms
from tests.conftest import need_native
from tests.covering import pairwise


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
    real = native.library(torch.float32, LIF().traced())

    class Recorder:
        kind, form = real.kind, real.form

        @staticmethod
        def spiketriton_run(call, pass_):
            used.append(struct.unpack_from("@4qi", call)[4])
            real.spiketriton_run(call, pass_)

    monkeypatch.setattr(native, "library", lambda dtype, step: Recorder)
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


def test_processes_that_come_at_once_compile_once(monkeypatch, tmp_path):
    """Threads stand for them: a lock of flock is its file's, whoever opens it."""
    compiled, run = [], subprocess.run

    def compile_slowly(command, **given):
        if "-o" not in command:
            return run(command, **given)
        compiled.append(command)
        time.sleep(0.2)
        Path(command[-1]).touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("SPIKETRITON_CACHE", str(tmp_path))
    monkeypatch.setattr(native.subprocess, "run", compile_slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(native._build, [torch.float32] * 3 + [torch.float64], ["lif"] * 4))
    assert len(compiled) == len({*found}) == 2
    assert {*tmp_path.glob("*.*")} == {*found}


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
    assert list(tmp_path.glob("*.*")) == []


def test_code_that_does_not_load_is_told_from_a_compiler_that_is_missing(monkeypatch, tmp_path):
    """As from a folder that is mounted noexec."""
    (tmp_path / "kernels.so").write_text("no code")
    monkeypatch.setattr(native, "_build", lambda *_: tmp_path / "kernels.so")
    found = native.load.__wrapped__(torch.float32, "lif")
    assert isinstance(found, native.CompilerError)
    for words in ("do not load", "kernels.so", "noexec", f"than {tmp_path}, by SPIKETRITON_CACHE"):
        assert words in str(found)


def test_a_library_of_other_fields_is_refused(monkeypatch):
    """A field that has another name, type or place is another call, even where it is as large."""
    library = native.library(torch.float32)
    assert library.spiketriton_call_digest() == call.WINDOW.digest
    for struct_ in (call.WINDOW, call.RETURNED):
        fields = [field for part in struct_.parts for field in part.fields]
        assert len({name for _, name in fields}) == len(fields)
    assert call.WINDOW.digest != call.RETURNED.digest
    monkeypatch.setattr(call.WINDOW, "digest", call.WINDOW.digest + 1)
    with pytest.raises(AssertionError, match="disagree on the fields of a call"):
        native.load.__wrapped__(torch.float32, "lif")


def test_fields_are_packed_by_their_names():
    mean, var = (call.FORTH.unpack(call.FORTH.of(**{name: 7})) for name in ("mean", "var"))
    assert (mean.index(7), var.index(7)) == (4, 5)
    with pytest.raises(TypeError, match="variance: accepted: eps, bn_scale, "):
        call.FORTH.of(variance=1)


def as_on_a_new_machine(monkeypatch, folder):
    """Nothing is compiled, and a call compiles no more than it needs."""
    monkeypatch.setenv("SPIKETRITON_CACHE", str(folder))
    monkeypatch.setattr(native, "WHOLE", False)
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(native, "load", functools.cache(native.load.__wrapped__))


def passes(neuron, dtype):
    """Spikes and gradients, alone and with what is rarer: the membranes of all steps, and a probe."""
    torch.manual_seed(0)
    x = torch.randn(5, 3, 40, 7).to(dtype)
    neuron.zero_grad()
    found = [*gradients(x, neuron)]
    neuron.store_v_seq, neuron.probe = True, torch.zeros(5, 8, requires_grad=True)
    found += [*gradients(x, neuron), neuron.v_seq.detach(), neuron.probe.grad]
    neuron.store_v_seq, neuron.probe = False, None
    return found + [parameter.grad for parameter in neuron.parameters()]


MAKE = {
    "hard": lambda **o: LIF(2.0, **o),
    "leaks to its reset": lambda **o: LIF(2.0, v_reset=-0.25, detach_reset=False, **o),
    "soft": lambda **o: LIF(2.0, v_reset=None, **o),
    "soft, attached": lambda **o: LIF(2.0, v_reset=None, detach_reset=False, **o),
    "none": lambda **o: LIF(2.0, reset="none", **o),
    "delayed": lambda **o: Leaky(0.9, reset_delay=True, **o),
    "plif": lambda **o: PLIF(2.0, **o),
    "soft, plif": lambda **o: PLIF(2.0, v_reset=None, detach_reset=False, per_channel=40, **o),
    "ilif": lambda surrogate: ILIF(),
    "clif": lambda **o: CLIF(2.0, **o),
    "alif": lambda **o: ALIF(2.0, **o),
    "cuba": lambda **o: CuBaLIF(2.0, v_reset=None, **o),
    "cuba that learns": lambda **o: CuBaLIF(
        decay=torch.nn.Parameter(torch.linspace(0.3, 0.9, 40)), **o
    ),
}


def the_part_equals_the_whole(monkeypatch, folder, make, shape, dtype):
    neuron = MAKE[make](surrogate=Surrogate(shape, width=0.4))
    expected = passes(neuron, dtype)
    as_on_a_new_machine(monkeypatch, folder)
    found = passes(neuron, dtype)
    name = native._named(neuron.traced())
    assert [path.name.rsplit("-", 2)[0] for path in folder.glob("*.so")] == [name]
    learns = any(parameter.requires_grad for parameter in neuron.parameters())
    for value, right in zip(found, expected, strict=True):
        # what learns may keep less, in other blocks, over which a probe and gradients of constants are summed
        exactly = {} if learns and value.dim() < 3 else dict(rtol=0, atol=0)
        torch.testing.assert_close(value, right, **exactly)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape", "dtype"), pairwise(MAKE, SHAPES, (torch.float32, torch.bfloat16))
)
def test_what_is_compiled_for_one_reset_and_surrogate_computes_what_the_whole_does(
    monkeypatch, tmp_path, make, shape, dtype
):
    the_part_equals_the_whole(monkeypatch, tmp_path, make, shape, dtype)


@pytest.mark.parametrize(("make", "shape"), [("hard", "atan"), ("cuba that learns", "triangle")])
def test_a_first_call_says_that_it_compiles_and_compiles_one_reset_and_surrogate(
    monkeypatch, tmp_path, caplog, make, shape
):
    """Optimised as for users; the whole kind, which every other test meets, is compiled in haste."""
    with caplog.at_level(logging.WARNING, "spiketriton_kernels"):
        the_part_equals_the_whole(monkeypatch, tmp_path, make, shape, torch.float32)
    (said,) = caplog.messages
    kind = "cuba" if make.startswith("cuba") else "lif"
    assert said.startswith(f"compiling the CPU kernels for {kind} float32, once on this machine")


def test_what_a_first_call_of_lif_compiles_serves_plif(monkeypatch, tmp_path):
    surrogate = Surrogate("triangle", width=0.4)
    lif, plif = LIF(2.0, surrogate=surrogate), PLIF(2.0, surrogate=surrogate)
    expected = passes(lif, torch.float32), passes(plif, torch.float32)
    as_on_a_new_machine(monkeypatch, tmp_path)
    for found, right in zip(
        (passes(lif, torch.float32), passes(plif, torch.float32)), expected, strict=True
    ):
        for value, one in zip(found, right, strict=True):
            torch.testing.assert_close(
                value, one, **(dict(rtol=0, atol=0) if value.dim() == 4 else {})
            )
    assert len([*tmp_path.glob("*.so")]) == 1


def test_a_whole_kind_serves_its_parts(monkeypatch, tmp_path):
    """As `python -m spiketriton_kernels` leaves it."""
    as_on_a_new_machine(monkeypatch, tmp_path)
    built = []

    def compile_nothing(target, compiler, dtype, kind, chosen):
        built.append(kind)
        target.touch()
        return target

    monkeypatch.setattr(native, "_compiled", compile_nothing)
    for kind, make in (("lif", LIF), ("clif", CLIF)):
        built.clear()
        one, two, three = (
            make(surrogate=Surrogate(shape)).traced() for shape in ("atan", "sigmoid", "triangle")
        )
        assert native._build(torch.float32, two) == native._build(torch.float32, two)
        assert native._build(torch.float32, three) != native._build(torch.float32, two)
        whole = native._build(torch.float32, kind)
        assert native._build(torch.float32, one) == whole
        assert native._build(torch.bfloat16, one) != whole
        assert built == [two.name, three.name, kind, one.name]
        assert native._build(torch.float32, two) == whole


@pytest.mark.parametrize("kind", forms.kinds())
def test_a_whole_kind_has_each_form_once_and_is_told_what_it_reads(kind):
    made = forms.forms(kind)
    assert len({*made}) == len(made) == {"lif": 18, "ilif": 4, "clif": 4, "psn": 2}.get(kind, 10)
    assert [form.whole for form in made] == [*range(len(made))]
    for one in made:  # as a call has it, with a surrogate's shape: its constants, and the shape
        form = one._replace(shape="atan")
        assert form.whole == made.index(one)
        step, _ = form.traced()
        assert {*one.traced()[0].constants} <= {*step.constants, "shape"}


def test_kinds_are_built_ahead(monkeypatch, capsys):
    asked, fails = [], native.CompilerError("no C++ compiler found")
    monkeypatch.setattr(native, "load", lambda *one: asked.append(one))
    assert build_ahead(["lif", "clif", "--dtype", "float32", "float16"]) == 0
    dtypes = torch.float32, torch.float16
    assert asked == [(dtype, kind) for dtype in dtypes for kind in ("lif", "clif")]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 of 4: lif float32 is there")
    assert said[3].startswith("4 of 4: clif float16 is there")
    monkeypatch.setattr(native, "load", lambda *_: fails)
    assert build_ahead([]) == 1
    first = forms.kinds()[0]
    assert capsys.readouterr().err == f"error: {first} float32: no C++ compiler found\n"
    with pytest.raises(SystemExit):
        build_ahead(["lift"])
    assert "KIND lift: accepted: " in capsys.readouterr().err
