"""The machine: device and precision with their reasons, memory that is kept, versions and commit."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import spiketriton_kernels
from spiketriton.config import TrainConfig
from spiketriton.system.errors import UserError
from spiketriton.system.machine import bf16_instructions  # conftest.py replaces the module's
from spiketriton.system.ranks import Ranks
from spiketriton.training import environment
from tests.processes import done

CPU = torch.device("cpu")

COUNT = """
import resource, torch
from spiketriton.training.environment import set_up
torch.set_num_threads(1)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16 * 2**20)  # above 32 MB, from where on glibc never keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
set_up(1, False, torch.device("cpu"))
faults()  # the first use of memory faults either way
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept(tmp_path):
    default, kept = map(int, done("-c", COUNT, folder=tmp_path).stdout.split())
    assert kept * 10 < default


def test_the_commit_of_a_checkout(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True)
        return done.stdout.decode().strip()

    package = tmp_path / "spiketriton" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    rows = tmp_path / "studies" / "rows.csv"
    rows.parent.mkdir()
    rows.write_text("")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "x")
    monkeypatch.setattr(environment.version, "PACKAGE", package.parent)
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("")
    index = (tmp_path / ".git" / "index").read_bytes()
    # git would write that down, and leave its lock if it was killed meanwhile
    os.utime(package, (1, 1))
    assert environment.commit_of_package() == (commit, False)
    assert (tmp_path / ".git" / "index").read_bytes() == index
    assert f" (commit {commit[:8]}), torch" in environment.version_line()
    rows.write_text("the result of the run before")  # no code
    assert environment.commit_of_package() == (commit, False)
    package.write_text("changed = True")
    assert environment.commit_of_package() == (commit, True)
    assert f" (commit {commit[:8]}, with changes), torch" in environment.version_line()
    monkeypatch.setenv("PATH", "")  # no git
    assert environment.commit_of_package() == (None, False)
    assert f" (code {environment.package_checksum()[:8]}), torch" in environment.version_line()


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "spiketriton" / "__init__.py"
    package.parent.mkdir(parents=True)
    monkeypatch.setattr(environment.version, "PACKAGE", package.parent)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # somebody else's repository
    assert environment.commit_of_package() == (None, False)
    for said, expected in (("1a2b\n", ("1a2b", False)), ("1a2b dirty\n", ("1a2b", True))):
        package.with_name("commit.txt").write_text(said)  # of a wheel
        assert environment.commit_of_package() == expected


def test_the_kernels_version_names_their_commit(tmp_path, monkeypatch):
    number, (commit, changed) = spiketriton_kernels.__version__, environment.commit_of_package()
    own = f"+g{commit[:7]}{'.dirty' * changed}" if commit else ""
    assert environment.describe(CPU)["kernels"] == number + own
    package = tmp_path / "spiketriton_kernels"
    package.mkdir()
    monkeypatch.setattr(environment.spiketriton_kernels, "__file__", str(package / "__init__.py"))
    assert environment.kernels_version() == number
    for said, behind in (("1a2b3c4d5\n", "+g1a2b3c4"), ("1a2b3c4d5 dirty\n", "+g1a2b3c4.dirty")):
        (package / "commit.txt").write_text(said)
        assert environment.kernels_version() == number + behind


def test_the_device_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = environment.choose_device("auto")
    assert (found.value, found.reason.partition(", because ")[2]) == (CPU, "PyTorch finds no GPU")
    with pytest.raises(UserError, match=r'train\.device = "cuda", but PyTorch .* finds no GPU'):
        environment.choose_device("cuda")


def test_the_device_with_a_gpu(monkeypatch):
    gpu = SimpleNamespace(name="H100", total_memory=80 * 2**30 - 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu.name)
    assert environment.choose_device("cpu").value == CPU
    for wanted in ("auto", "cuda"):
        found = environment.choose_device(wanted)
        assert found == environment.Choice(torch.device("cuda", 3), "H100, 80 GiB")
    assert environment.describe(found.value)["device"] == "H100"


@pytest.mark.parametrize(
    ("wanted", "flags", "dtype", "reason"),
    [
        ("fp32", set(), torch.float32, "as the recipe says"),
        ("bf16", {"avx512_bf16", "sse"}, torch.bfloat16, "this CPU's avx512_bf16 instructions"),
        ("bf16", {"amx_fp16"}, torch.bfloat16, "emulated on this CPU: fp32 is faster"),
        ("fp16", {"amx_fp16", "amx_bf16"}, torch.bfloat16, "this CPU has amx_bf16 instructions"),
        ("fp16", {"avx2", "amx_fp16"}, torch.float32, "this CPU has no bf16 instructions"),
        ("auto", {"avx512_bf16", "amx_bf16"}, torch.bfloat16, "amx_bf16, avx512_bf16 instructions"),
        ("auto", {"avx2", "amx_fp16"}, torch.float32, "this CPU has no bf16 instructions"),
    ],
)
def test_the_precision_on_a_cpu(monkeypatch, wanted, flags, dtype, reason):
    monkeypatch.setattr(environment.machine, "cpu_flags", lambda: flags)
    monkeypatch.setattr(environment.machine, "bf16_instructions", bf16_instructions)
    choice = environment.choose_precision(wanted, CPU)
    assert choice.value == dtype
    assert choice.reason.endswith(reason)
    taken = environment.name_of(dtype)
    said = f'"fp16" is many times slower than fp32 on a CPU: this one computes in {taken}'
    assert environment.for_gpus(wanted, CPU).endswith(said) == (wanted == "fp16")
    assert environment.for_gpus(wanted, torch.device("cuda")) == ""


@pytest.mark.parametrize(
    ("wanted", "hardware", "reason"),
    [
        ("bf16", True, "by autocast"),
        ("bf16", False, "by autocast, emulated on this GPU: fp16 is faster"),
        ("fp16", True, "by autocast, the loss scaled against underflow"),
        ("fp32", True, "as the recipe says; cuDNN may compute convolutions in TF32"),
        ("auto", True, "because this GPU has bf16 arithmetic"),
        ("auto", False, "because this GPU has no bf16 arithmetic; the loss is scaled"),
        ("fp32", False, "as the recipe says"),  # with tf32 where there is bf16
    ],
)
def test_the_precision_on_a_gpu(monkeypatch, wanted, hardware, reason):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: hardware or including_emulation
    )
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", hardware)
    choice = environment.choose_precision(wanted, torch.device("cuda"))
    assert choice.reason.partition(", PyTorch's")[0] == reason
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    assert choice.value == dtypes.get(wanted, dtypes["bf16" if hardware else "fp16"])


def test_deterministic_algorithms_on_and_off():
    with environment.undisturbed():
        for wanted in (True, False):
            environment.use_deterministic_algorithms(wanted, torch.device("cuda"))
            assert torch.are_deterministic_algorithms_enabled() == wanted
            assert torch.backends.cudnn.benchmark == (not wanted)
        environment.use_deterministic_algorithms(False, CPU)
        assert not torch.backends.cudnn.benchmark


def test_numbers_too_small_to_be_normal_are_zero_in_a_training_and_not_after_it():
    assert not environment.flushes_denormals()
    with environment.denormals_as_zero(torch.device("cuda")):
        assert not environment.flushes_denormals()
    with environment.denormals_as_zero(CPU):
        assert environment.flushes_denormals()
        with environment.denormals_as_zero(CPU):
            pass
        assert environment.flushes_denormals()
    assert not environment.flushes_denormals()


@pytest.fixture
def threads(monkeypatch):
    """Four processors of which one is taken, and the number of threads as it was afterwards."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(environment.machine, "usable", lambda: 4)
    monkeypatch.setattr(environment.machine, "taken", lambda: 1.2)
    with environment.undisturbed():
        yield


def test_threads_are_those_of_the_recipe_or_the_processors_that_are_free(threads, monkeypatch):
    assert environment.use_threads(5) == torch.get_num_threads() == 5
    assert environment.use_threads(0) == torch.get_num_threads() == 3
    why = "3 of 4: other processes use 1.2 processors; train.threads=4 takes all, and may be slower while they run"
    assert (environment.thread_words(0), environment.thread_words(3)) == (why, "3")
    environment.use_threads(2)
    assert environment.use_threads(0) == 2  # torch's choice, which is less than what is free
    assert environment.thread_words(0) == "2"
    environment.use_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert environment.use_threads(0) == 4


def test_a_resumed_run_keeps_its_threads_on_the_same_machine_only(threads):
    cpu = environment.machine.cpu_name()
    torch.set_num_threads(1)
    for session in ({}, {"cpu": "another", "threads": 2}, {"cpu": cpu, "threads": 5}):
        words = environment.keep_threads(TrainConfig(), CPU, [session])
        assert bool(words) == bool(session)
        assert torch.get_num_threads() == 1
    assert environment.keep_threads(TrainConfig(), CPU, [{"cpu": cpu, "threads": 3}]) == ""
    assert torch.get_num_threads() == 3


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
    assert alone["command"] == "spiketriton train 'a b.toml'"
    assert several["command"] == ("torchrun --nproc-per-node=8 -m spiketriton.train 'a b.toml'")
    assert alone["torch"] == torch.__version__
    assert (alone["device"], alone["threads"]) == ("cpu", torch.get_num_threads())
    assert alone["cpu"]
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert environment.command_line(Eight.launcher) == "python train.py 'a b.toml'"


def test_compiling_needs_a_compiler_on_a_cpu(monkeypatch):
    there: set[str] = set()
    monkeypatch.setattr(torch, "compile", lambda model, **options: (model, options))
    monkeypatch.setattr(environment.shutil, "which", lambda name: name if name in there else None)
    monkeypatch.setenv("CXX", "mine")
    net, on_gpu = nn.Linear(1, 1), nn.Linear(1, 1, device="meta")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        environment.compiled(net)
    assert environment.compiled(on_gpu) == (on_gpu, {"dynamic": False})
    for compiler in ("g++", "clang++", "mine"):
        there = {compiler}
        assert environment.compiled(net) == (net, {"dynamic": False})


def test_another_code_has_another_checksum(monkeypatch, tmp_path):
    sums = []
    for content in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "__init__.py").write_text(content)
        monkeypatch.setattr(environment.version, "PACKAGE", tmp_path)
        environment.package_checksum.cache_clear()
        sums.append(environment.package_checksum())
    environment.package_checksum.cache_clear()
    assert sums[0] == sums[2] != sums[1]
