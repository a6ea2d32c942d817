"""What `doctor` looks at: the machine, every kernel against its definition, a small training, the data."""

import dataclasses
import math
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

import spiketriton_kernels as kernels
from spiketriton.config import DataConfig, Recipe, replace
from spiketriton.config.names import Images
from spiketriton.config.parts import chosen
from spiketriton.data.download import data_root
from spiketriton.runs.folder import RunFolder
from spiketriton.system import machine
from spiketriton.system.errors import UserError, one_line
from spiketriton.system.ranks import Ranks
from spiketriton.training import environment
from spiketriton.training.display import Quiet
from spiketriton.training.session import Session
from spiketriton_kernels.backends import choice, native

SUPPORTED = {  # distribution: the oldest and the newest version that were tested
    "torch": ((2, 11), (2, 13)),
    "triton": ((3, 6), (3, 9)),
}
# largest difference from the definition, relative to its largest value: in half precision four roundings
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1.6e-2, torch.float16: 2e-3, torch.float64: 1e-9}
SHAPE = (5, 3, 7, 5, 3)  # T, B, C, H, W: no size is a multiple of a block
WIDE = (4, 2, 64, 4, 4)  # in channels_last: whole blocks, in accesses of 16 bytes
BROKEN = "do not train on this device; please report it"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, "ok", "slow" or "wrong", what was found, and what to do."""

    name: str
    state: str
    found: str
    advice: str = ""


def judged(name: str, fine: bool, found: str, advice: str, bad: str = "wrong") -> Finding:
    """Fine, or bad and what to do."""
    return Finding(name, "ok", found) if fine else Finding(name, bad, found, advice)


@dataclass(frozen=True)
class Kernel:
    """A public function and its definition: both take x [T, B, C, H, W] and leaves with gradients."""

    name: str
    fused: Callable[..., Any]
    definition: Callable[..., Any]
    leaves: tuple[str, ...] = ()  # of LIKE_X as x, step_gain (T,), else (C,)
    constants: dict[str, Any] = field(default_factory=dict)
    kind: str = "lif"
    shape: tuple[int, ...] = SHAPE


def _packed(x: Tensor) -> Tensor:
    spikes = _fired(x)
    return kernels.unpack_spikes(kernels.pack_spikes(spikes), x.shape, x.stride(), x.dtype)


def _fired(x: Tensor) -> Tensor:
    return (x > 1).to(x.dtype)


LIKE_X = ("residual", "spike_add")
LIF = kernels.multistep_lif, kernels.multistep_lif_reference
BN_LIF = kernels.multistep_bn_lif, kernels.multistep_bn_lif_reference
AFFINE = ("bn_weight", "bn_bias")
SOFT = dict(reset="soft", detach_reset=False)
KERNELS = (
    Kernel("LIF, hard reset", *LIF),
    Kernel("LIF, soft reset, learnt decay and threshold", *LIF, ("decay", "threshold"), SOFT),
    Kernel("LIF, learnt surrogate width", *LIF, ("width",)),
    Kernel("LIF, membranes of every step", *LIF, (), dict(return_trace=True)),
    Kernel("LIF, a probe's sums", kernels.multistep_lif, kernels.multistep_lif, ("probe",)),
    Kernel("batch norm + LIF", *BN_LIF, AFFINE),
    Kernel(
        "batch norm + shortcut + LIF, currents",
        *BN_LIF,
        (*AFFINE, "residual"),
        dict(return_current=True),
    ),
    Kernel(
        "batch norm + shortcut + LIF, currents, wide accesses",
        *BN_LIF,
        (*AFFINE, "residual"),
        dict(return_current=True),
        shape=WIDE,
    ),
    Kernel("batch norm + LIF + SEW's addition", *BN_LIF, (*AFFINE, "spike_add")),
    Kernel("tdBN + TEBN + LIF", *BN_LIF, (*AFFINE, "step_gain"), dict(bn_scale=0.9)),
    Kernel("packed spikes", _packed, _fired),
    Kernel("I-LIF", kernels.multistep_ilif, kernels.multistep_ilif_reference, kind="ilif"),
    Kernel("CLIF", kernels.multistep_clif, kernels.multistep_clif_reference, kind="clif"),
    Kernel("ALIF", kernels.multistep_alif, kernels.multistep_alif_reference, kind="alif"),
    Kernel("CuBa-LIF", kernels.multistep_cuba, kernels.multistep_cuba_reference, kind="cuba"),
)


def looked_at(dtype: torch.dtype) -> list[Kernel]:
    """Kinds other than LIF in float32 only: on a CPU each of them has builds of its own."""
    return [kernel for kernel in KERNELS if kernel.kind == "lif" or dtype == torch.float32]


def findings(recipe: Recipe) -> Iterator[Finding]:
    """Everything that is looked at, one after another; what fails to run is wrong."""
    device = environment.choose_device(recipe.train.device).value
    looks = [("versions", versions()), ("device", devices(device))]
    for dtype in TOLERANCE:
        looks.append((f"backend, {_name(dtype)}", backend(dtype, device)))
        for kernel in looked_at(dtype):
            looks.append((f"{kernel.name}, {_name(dtype)}", compared(kernel, dtype, device)))
    interpreted = device.type == "cpu" and choice.interpreting()
    if not interpreted:  # which would take minutes
        looks.append(("training", trained(recipe, device)))
    for name, look in [*looks, ("data", data_sets(recipe.data))]:
        try:
            yield from look
        except Exception as error:
            words = one_line(f"{type(error).__name__}: {error}")[:300]
            yield Finding(name, "wrong", words, "please report it with the output of --json")


def versions() -> Iterator[Finding]:
    """Python, torch and triton against the versions that were tested."""
    yield Finding("Python", "ok", platform.python_version())
    for package, (oldest, newest) in SUPPORTED.items():
        advice = f"pip install -U '{package}>={oldest[0]}.{oldest[1]}'"
        try:
            text = version(package)
        except PackageNotFoundError:  # triton, which there is for Linux
            yield judged(package, sys.platform != "linux", "not installed", advice)
            continue
        number = tuple(map(int, text.split(".")[:2]))
        newer = f", newer than the tested {newest[0]}.{newest[1]}" if number > newest else ""
        yield judged(package, number >= oldest, text + newer, advice)


def devices(device: torch.device) -> Iterator[Finding]:
    """The device of a training, memory, and what other processes take of the processors."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        major, minor = torch.cuda.get_device_capability(device)
        words = (
            f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, "
            f"{free >> 30} of {total >> 30} GiB free"
        )
        full = free < total / 2
        advice = "another process holds the memory" if full else "the kernels are made for 8.0 on"
        yield judged("GPU", not full and major >= 8, words, advice, "slow")
    else:
        why = "asked for" if torch.cuda.is_available() else "PyTorch finds no GPU"
        yield Finding("CPU", "ok", f"{machine.cpu_name()} ({why})")
    memory = machine.available_memory()
    if memory is not None:
        words = f"{memory / 2**30:.1f} GiB available"
        advice = "close other programs; a small training takes 0.5 GiB"
        yield judged("memory", memory >= 2**31, words, advice, "slow")
    usable, taken = machine.usable(), machine.taken()
    advice = f"a training takes {machine.free()} of them; see which other processes run"
    words = f"{usable}, of which other processes use {taken:.1f}"
    yield judged("processors", taken < usable / 2, words, advice, "slow")


def backend(dtype: torch.dtype, device: torch.device) -> Iterator[Finding]:
    """Which code serves a dtype, and why."""
    name = f"backend, {_name(dtype)}"
    serves = kernels.backend_for(torch.empty(1, dtype=dtype, device=device))
    on_cpu = device.type == "cpu"
    if serves == "native":
        compiler = next(filter(shutil.which, ("c++", "g++", "clang++")), "CXX")
        yield Finding(name, "ok", f"compiled C++, by {compiler}")
    elif serves == "triton":
        words = "Triton, interpreted" if on_cpu else "Triton"
        yield judged(name, not on_cpu, words, "unset TRITON_INTERPRET to train", "slow")
    elif dtype == torch.float64 and not on_cpu:
        yield Finding(name, "ok", "eager PyTorch: float64 has no kernel on a GPU")
    else:
        why = native.failure(dtype) if on_cpu else "triton is not installed"
        advice = (
            "install g++ or clang++" if "do not load" not in str(why) else "set SPIKETRITON_CACHE"
        )
        yield Finding(name, "slow", f"eager PyTorch: {one_line(why)}", advice)


def compared(kernel: Kernel, dtype: torch.dtype, device: torch.device) -> Iterator[Finding]:
    """A kernel and its definition on the same numbers: spikes, what else it returns, and every gradient."""
    spikes, *found = _pass(kernel.fused, kernel, dtype, device)
    with kernels.use_backend("torch"):  # of a probe that is the definition
        wanted, *right = _pass(kernel.definition, kernel, dtype, device)
    error, allowed = max(map(_difference, found, right), default=0.0), TOLERANCE[dtype]
    words = f"spikes equal, gradients off by {error:.1e} (allowed: {allowed:.1e})"
    if different := int((spikes != wanted).sum()):
        words = f"{different} of {spikes.numel()} spikes differ from the definition"
    fine = not different and error <= allowed  # NaN is not
    yield judged(f"{kernel.name}, {_name(dtype)}", fine, words, BROKEN)


def _pass(
    function: Callable[..., Any], kernel: Kernel, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Spikes, what else is returned, and the gradients of the input and of the parameters."""
    random = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=random, dtype=torch.float64)
        return x.movedim(2, -1).contiguous().movedim(-1, 2) if shape == WIDE else x

    def leaf(name: str) -> Tensor:
        if name in LIKE_X:
            return normal(*kernel.shape).to(device, dtype)
        T, _, C, *_ = kernel.shape
        if name == "probe":
            return torch.zeros(T, len(kernels.PROBE_FIELDS), device=device)
        size = T if name == "step_gain" else C
        return (0.6 + 0.1 * normal(size).tanh()).to(device, wide)

    x = (normal(*kernel.shape) + 0.3).to(device, dtype)
    given: dict[str, Any] = {name: leaf(name) for name in kernel.leaves}
    inputs = [one.requires_grad_() for one in (x, *given.values())]
    if "width" in given:
        given["surrogate"] = kernels.Surrogate("atan", width=given.pop("width"))
    if "bn_weight" in given:
        zero = torch.zeros(kernel.shape[2], device=device, dtype=wide)
        given |= {"running_mean": zero, "running_var": zero + 1}
    returned = function(x, **given, **kernel.constants)
    returned = returned if isinstance(returned, tuple) else (returned,)
    if returned[0].requires_grad:
        torch.autograd.backward(returned, [normal(*kernel.shape).to(one) for one in returned])
    gradients: list[Tensor] = []
    for one in inputs:
        grad = one.grad
        if grad is not None:  # each field of a probe has a size of its own
            gradients += grad.unbind(1) if one is given.get("probe") else [grad]
    return [*(one.detach() for one in returned), *gradients]


def _difference(found: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest value; infinite where one is not finite."""
    found, right = found.double(), right.double()
    error = float((found - right).abs().max() / right.abs().max().clamp_min(1e-30))
    return error if math.isfinite(error) else math.inf


def trained(recipe: Recipe, device: torch.device) -> Iterator[Finding]:
    """A small network, trained by the definition's code and as a recipe would, in each precision."""
    with kernels.use_backend("torch"):
        eager = _rows(recipe)[0]["loss"]
    allowed = {"fp32": 1e-3, "bf16": 5e-2} if device.type == "cuda" else {"fp32": 1e-3}
    for precision, tolerance in allowed.items():
        rows = _rows(replace(recipe, f"train.precision={precision}"))
        first = rows[0]["loss"]
        fine = all(math.isfinite(row["loss"]) for row in rows)
        fine = fine and abs(first - eager) <= tolerance * eager
        speed = rows[-1]["images_per_s"]
        words = f"loss {first:.4f} (eager PyTorch: {eager:.4f}), {speed:.0f} images/s"
        yield judged(f"training, {precision}", fine, words, BROKEN)


def _rows(recipe: Recipe) -> list[dict[str, Any]]:
    """What a training writes about each of its few steps."""
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder.create(str(Path(path) / "run"), recipe.name)
        if not Session(recipe, folder, Quiet(warns=False), Ranks(), draws=False).train().finished:
            raise KeyboardInterrupt
        return [row for row in folder.metrics.read() if row["kind"] == "train"]


def data_sets(given: DataConfig) -> Iterator[Finding]:
    """Which data sets are there; none is downloaded."""
    for name in get_args(Images):
        if name in ("imagefolder", "synthetic"):  # the user's own, and none
            continue
        config = dataclasses.replace(given, name=name, download=False, variant="full")
        try:
            source = chosen("data", name).make(config)
        except UserError:
            where = data_root(given)
            words = f"not in {where}; a training downloads it, or give data.root=..."
        else:
            words = f"{len(source.train):,} training and {len(source.test):,} test images"
            words += "" if name == "digits" else f", in {source.place or data_root(config)}"
        yield Finding(f"data, {name}", "ok", words)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
