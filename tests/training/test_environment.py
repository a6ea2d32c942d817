"""The machine: device and precision with their reasons, memory that is kept, versions and commit."""

import platform
import re
import subprocess
import sys

import pytest
import torch

from spiketriton.errors import UserError
from spiketriton.training import environment
from spiketriton.training.ranks import Ranks

CPU = torch.device("cpu")

COUNT = """
import resource, sys, torch
from spiketriton.training.environment import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(4 * 2**20)  # the first use of memory faults either way
before = faults()
for _ in range(10):
    torch.ones(4 * 2**20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept():
    def faults(mode: str) -> int:
        command = [sys.executable, "-c", COUNT, mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep") * 10 < faults("default")


def test_versions_and_commit():
    line = environment.version_line()
    assert line.startswith("spiketriton ")
    assert f"torch {torch.__version__}" in line
    commit, dirty = environment.commit_of_package()
    assert commit is None or re.fullmatch("[0-9a-f]{40}", commit)
    assert isinstance(dirty, bool)


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "spiketriton" / "__init__.py"
    package.parent.mkdir(parents=True)
    monkeypatch.setattr(environment.spiketriton, "__file__", str(package))
    assert environment.commit_of_package() == (None, False)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # somebody else's repository
    assert environment.commit_of_package() == (None, False)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [("cpu", "because train.device says so"), ("auto", "because PyTorch finds no GPU")],
)
def test_the_device_without_a_gpu(monkeypatch, wanted, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.choose_device(wanted) == environment.Choice(
        CPU, f"{environment.cpu_name()}, {reason}"
    )
    with pytest.raises(UserError, match=r'train\.device = "cuda", but PyTorch .* finds no GPU'):
        environment.choose_device("cuda")


@pytest.mark.parametrize(
    ("wanted", "flags", "dtype", "reason"),
    [
        ("fp32", set(), torch.float32, "as the recipe says"),
        (
            "bf16",
            {"avx512_bf16", "sse"},
            torch.bfloat16,
            "with this CPU's avx512_bf16 instructions",
        ),
        ("bf16", {"amx_fp16"}, torch.bfloat16, "no bf16 instructions for: fp32 may be faster"),
        ("fp16", {"amx_fp16", "amx_bf16"}, torch.float16, "with this CPU's amx_fp16 instructions"),
        ("fp16", {"avx512_bf16"}, torch.float16, "no fp16 instructions for: fp32 may be faster"),
    ],
)
def test_the_precision_on_a_cpu(monkeypatch, wanted, flags, dtype, reason):
    monkeypatch.setattr(environment, "_cpu_flags", lambda: flags)
    choice = environment.choose_precision(wanted, CPU)
    assert choice.value == dtype
    assert choice.reason.endswith(reason)


@pytest.mark.parametrize(
    ("wanted", "hardware", "reason"),
    [
        ("bf16", True, "by autocast"),
        ("bf16", False, "by autocast, emulated on this GPU: fp16 is faster"),
        ("fp16", True, "by autocast, the loss scaled against underflow"),
        ("fp32", True, "as the recipe says; cuDNN may compute convolutions in TF32"),
    ],
)
def test_the_precision_on_a_gpu(monkeypatch, wanted, hardware, reason):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: hardware or including_emulation
    )
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    found = environment.choose_precision(wanted, torch.device("cuda")).reason
    assert found == reason or (wanted == "fp32" and found.startswith(reason))


def test_deterministic_algorithms_on_and_off(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cudnn.benchmark
    try:
        for wanted in (True, False):
            environment.use_deterministic_algorithms(wanted, torch.device("cuda"))
            assert torch.are_deterministic_algorithms_enabled() == wanted
            assert torch.backends.cudnn.benchmark == (not wanted)
        environment.use_deterministic_algorithms(False, CPU)
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = before


def test_threads_are_set_or_left():
    before = torch.get_num_threads()
    try:
        assert environment.use_threads(2) == torch.get_num_threads() == 2
        assert environment.use_threads(0) == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_a_session_notes(monkeypatch):
    class Started:
        name = "spiketriton.train"

    class Eight(Ranks):
        world_size = 8
        launcher = ("torchrun", "--nproc-per-node=8")

    monkeypatch.setattr(sys.modules["__main__"], "__spec__", Started)
    monkeypatch.setattr(sys, "argv", ["train.py", "a b.toml"])
    alone, several = environment.describe(CPU), environment.describe(CPU, Eight())
    assert (alone["ranks"], several["ranks"]) == (1, 8)
    assert alone["command"] == "python -m spiketriton.train 'a b.toml'"
    assert several["command"] == ("torchrun --nproc-per-node=8 -m spiketriton.train 'a b.toml'")
    assert alone["torch"] == torch.__version__
    assert (alone["device"], alone["threads"]) == ("cpu", torch.get_num_threads())
    assert alone["cpu"]
    assert environment._version("no-such-package") is None
