"""The machine of a run: its device and precision with the reasons, threads, versions and commit."""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import spiketriton_kernels
from spiketriton.config import TrainConfig
from spiketriton.system import commandline, machine, version
from spiketriton.system.commandline import spelled
from spiketriton.system.errors import UserError
from spiketriton.system.ranks import Ranks
from spiketriton.training.randomness import random_state, set_random_state

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TF32 = "; cuDNN may compute convolutions in TF32, PyTorch's default"


@dataclass(frozen=True)
class Choice:
    """What was chosen and why, in words for the user."""

    value: Any
    reason: str


def choose_device(wanted: str) -> Choice:
    """The torch.device for train.device. UserError: "cuda" without a GPU that torch can use."""
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise UserError(
            f'train.device = "cuda", but PyTorch {torch.__version__} finds no GPU; accepted here: "auto" or "cpu"'
        )
    if wanted == "cpu":
        return Choice(torch.device("cpu"), f"{machine.cpu_name()}, because train.device says so")
    if not found:
        return Choice(torch.device("cpu"), f"{machine.cpu_name()}, because PyTorch finds no GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    return Choice(device, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def choose_precision(wanted: str, device: torch.device) -> Choice:
    """The torch.dtype of convolutions for train.precision; membranes and weights are float32.

    "auto", and "fp16" on a CPU (see `for_gpus`), is bfloat16 where the processor has instructions for it: emulated, it
    is slower than float32, and on a GPU than float16.
    """
    on_cpu = device.type == "cpu"
    found = ", ".join(machine.bf16_instructions()) if on_cpu else ""
    gpu_has_bf16 = not on_cpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if on_cpu and wanted in ("auto", "fp16"):
        dtype = torch.bfloat16 if found else torch.float32
        return Choice(dtype, f"because this CPU has {found or 'no bf16'} instructions")
    if wanted == "auto" and gpu_has_bf16:
        return Choice(torch.bfloat16, "because this GPU has bf16 arithmetic")
    if wanted == "auto":
        return Choice(torch.float16, "because this GPU has no bf16 arithmetic; the loss is scaled")
    if wanted == "fp32":
        tf32 = not on_cpu and torch.backends.cudnn.allow_tf32
        reason = "as the recipe says" + (_TF32 if tf32 else "")
    elif on_cpu and found:
        reason = f"by PyTorch's CPU autocast, with this CPU's {found} instructions"
    elif on_cpu:
        reason = "by PyTorch's CPU autocast, emulated on this CPU: fp32 is faster"
    elif wanted == "fp16":
        reason = "by autocast, the loss scaled against underflow"
    else:
        emulated = "" if gpu_has_bf16 else ", emulated on this GPU: fp16 is faster"
        reason = f"by autocast{emulated}"
    return Choice(PRECISIONS[wanted], reason)


def for_gpus(wanted: str, device: torch.device) -> str:
    """Words where train.precision asks a CPU for float16, which `choose_precision` does not take there; else ""."""
    if wanted != "fp16" or device.type != "cpu":
        return ""
    taken = name_of(choose_precision(wanted, device).value)
    return f'train.precision = "fp16" is many times slower than fp32 on a CPU: this one computes in {taken}'


def name_of(dtype: torch.dtype) -> str:
    """As train.precision has it."""
    return next(name for name, value in PRECISIONS.items() if value == dtype)


def set_up(threads: int, deterministic: bool, device: torch.device) -> None:
    """A recipe's threads and algorithms for this process."""
    use_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
    use_deterministic_algorithms(deterministic, device)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever `set_up` or a training changes in this process is afterwards as it was before.

    But for what `keep_freed_memory` chose: the C library does not tell what it was.
    """
    draws, threads, variables = random_state(), torch.get_num_threads(), dict(os.environ)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        with warnings.catch_warnings():
            yield
    finally:
        set_random_state(draws)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns_only)
        torch.backends.cudnn.benchmark = benchmark
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)


@contextlib.contextmanager
def denormals_as_zero(device: torch.device) -> Iterator[None]:
    """On a CPU takes numbers too small to be normal (float32: below 1.2e-38) for 0, and afterwards as before.

    A gradient that vanishes has many, and a CPU takes many times as long for each of them.
    """
    before = flushes_denormals()
    torch.set_flush_denormal(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def flushes_denormals() -> bool:
    """Whether this thread takes them for 0; torch does not tell."""
    return bool((torch.full((1,), 1e-39) * 2 == 0).all())


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, where its C library is glibc.

    By default glibc returns the large tensors of each step to the system, which clears every page again: that costs
    more than a neuron layer does.
    """
    try:
        glibc = ctypes.CDLL(None)
        glibc.gnu_get_libc_version  # noqa: B018 - other C libraries lack it
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_TRIM_THRESHOLD and so on in malloc.h
    for name, value in ((trim_threshold, 2**31 - 1), (top_pad, 64 * 2**20), (mmap_max, 0)):
        glibc.mallopt(name, value)


def use_threads(threads: int) -> int:
    """Sets the CPU threads of one operation and returns their number; 0: torch's choice, where processors are free.

    OMP_NUM_THREADS, which torchrun sets, has chosen already.
    """
    if not threads and "OMP_NUM_THREADS" not in os.environ:
        threads = min(torch.get_num_threads(), machine.free())
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def keep_threads(
    cfg: TrainConfig, device: torch.device, sessions: Sequence[Mapping[str, Any]]
) -> str:
    """On a CPU takes the threads of the session before, whose bits follow from them; words where it cannot."""
    if device.type != "cpu" or not sessions or not (before := sessions[-1].get("threads")):
        return ""
    same_machine = sessions[-1].get("cpu") == machine.cpu_name()
    if not cfg.threads and same_machine and 1 <= before <= machine.usable():
        torch.set_num_threads(before)
    if before == (now := torch.get_num_threads()):
        return ""
    return (
        f"threads: {now} from here on instead of {before}; the sums are rounded otherwise, so the weights "
        "will not be those of the unbroken run, bit for bit"
    )


def changed_precision(now: torch.dtype, sessions: Sequence[Mapping[str, Any]]) -> str:
    """Words where the session before computed in another precision, as "auto" chooses it on another machine."""
    before = sessions[-1].get("precision") if sessions else None
    if before is None or before == name_of(now):
        return ""
    return (
        f"precision: {name_of(now)} from here on instead of {before}; the weights will not be those of the "
        "unbroken run, bit for bit"
    )


def thread_words(chosen: int) -> str:
    """`2`, or why there are fewer, as `1 of 2: other processes use 1.0 processors; ...`."""
    threads, usable = torch.get_num_threads(), machine.usable()
    if chosen or not threads == machine.free() < usable:
        return f"{threads}"
    return (
        f"{threads} of {usable}: other processes use {machine.taken():.1f} processors; "
        f"train.threads={usable} takes all, and may be slower while they run"
    )


def use_deterministic_algorithms(wanted: bool, device: torch.device) -> None:
    """Algorithms that give the same bits in every run, or the fastest."""
    if wanted:
        # cuBLAS reads it when it is first used; without it PyTorch refuses matrix products
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted and device.type == "cuda"


def compiled(model: nn.Module) -> Any:
    """torch.compile of a model. UserError: it is on a CPU and there is no C++ compiler."""
    candidates = [os.environ.get("CXX", ""), "g++", "clang++"]
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not any(name and shutil.which(name) for name in candidates):
        raise UserError(
            "train.compile = true needs a C++ compiler (g++ or clang++) on a CPU, and none is "
            "found; install one, or use train.compile=false"
        )
    # a run has few batch sizes: code for each of them, rather than slower code for any
    return torch.compile(model, dynamic=False)


def describe(
    device: torch.device, ranks: Ranks | None = None, precision: torch.dtype | None = None
) -> dict[str, Any]:
    """What a session's numbers depend on, for environment.json; `precision`: of what was trained."""
    commit, dirty = commit_of_package()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command_line(ranks.launcher if ranks else ()),
        "ranks": ranks.world_size if ranks else 1,
        "spiketriton": version.__version__,
        "kernels": kernels_version(),
        "commit": commit,
        "dirty": dirty,
        "code_sha256": package_checksum(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # which names the build, as its package does not always
        **{name: _version(name) for name in ("torchvision", "triton", "numpy")},
        "platform": platform.platform(),
        "cpu": machine.cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "precision": precision and name_of(precision),
    }


def command_line(launcher: Sequence[str] = ()) -> str:
    """The command that started this process, to be pasted into a shell."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else ""
    package, _, command = name.rpartition(".")
    if commandline.started or package == "spiketriton":
        start = spelled(commandline.started or command, launcher)
    else:
        start = [*(launcher or ["python"]), "-m", spec.name] if spec else ["python", sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])


NO_CODE = [f":(exclude)*.{ending}" for ending in ("csv", "jsonl", "md", "png", "svg")]


def commit_of_package() -> tuple[str | None, bool]:
    """The git commit of this code, or of its wheel, and whether files differed from it; (None, False): unknown.

    Rows, curves, pages and pictures are no code: a training whose result was just taken in changes none for the next.
    """
    package = version.PACKAGE
    root, built = package.parent, package / "commit.txt"  # hatch_build.py
    if built.is_file():
        commit, *changed = built.read_text().split()
        return commit, bool(changed)
    if _git(root, "rev-parse", "--show-toplevel") != str(root):  # installed, or no repository
        return None, False
    return _git(root, "rev-parse", "HEAD"), bool(
        _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *NO_CODE)
    )


def kernels_version() -> str:
    """Of the kernels that are imported, with the commit where it is known: "0.1.0+g1234567"."""
    number, package = (
        spiketriton_kernels.__version__,
        Path(str(spiketriton_kernels.__file__)).parent,
    )
    built = package / "commit.txt"
    commit, changed = (None, False)
    if built.is_file():
        commit, *words = built.read_text().split()
        changed = bool(words)
    elif package.resolve().parents[1] == version.PACKAGE.parent:
        commit, changed = commit_of_package()
    return f"{number}+g{commit[:7]}{'.dirty' * changed}" if commit else number


@cache
def package_checksum() -> str:
    """SHA-256 of the code of both packages: it tells wheels of one version apart."""
    found = hashlib.sha256()
    for root in (version.PACKAGE, Path(str(spiketriton_kernels.__file__)).parent):
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".cpp", ".h"):
                found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def version_line() -> str:
    """`spiketriton 0.1.0 (commit 1a2b3c4d, with changes), torch 2.13.0, ..., Python 3.11.7`."""
    commit, dirty = commit_of_package()
    where = f" (code {package_checksum()[:8]})"
    if commit:
        where = f" (commit {commit[:8]}{', with changes' if dirty else ''})"
    triton = _version("triton")
    return (
        f"spiketriton {version.__version__}{where}, torch {torch.__version__}, "
        + (f"triton {triton}, " if triton else "")
        + f"Python {platform.python_version()}"
    )


def _git(root: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            # a process killed while git refreshes its index would leave a lock that stops later commits
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
