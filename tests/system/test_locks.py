"""Locks where there is no fcntl, and a training without what only POSIX has."""

import subprocess
import sys

import pytest

from spiketriton.system import locks
from tests.child import environment

WITHOUT = """
import importlib, os, pkgutil, signal, sys
import torch, torch.distributed, torchvision
sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios", "tty", "triton"))
for name in ("O_DIRECTORY", "fork", "sched_getaffinity", "posix_fallocate", "sysconf", "getuid", "killpg", "nice"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "alarm"):
    delattr(signal, name)
def open_no_folder(path, flags, *rest, open=os.open, **options):
    if flags == os.O_RDONLY and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return open(path, flags, *rest, **options)
os.open = open_no_folder
for package in ("spiketriton", "spiketriton_kernels"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        # what nobody imports without Triton
        if not module.name.endswith(("__main__", "gpu.precompile")) and ".triton_" not in module.name:
            importlib.import_module(module.name)
from matplotlib.figure import Figure
Figure.savefig = lambda self, file, **options: file.write(b"a picture")
from spiketriton.training.interrupts import StopSignals
from spiketriton.training.meters import peak_memory_mib
with StopSignals(lambda line: None, None):
    assert peak_memory_mib(torch.device("cpu")) == 0
keys = {"model.name": "mlp", "data.train_images": 64, "data.test_images": 10, "data.workers": 0}
spiketriton.train("quickstart", run_dir="run", max_steps=1, quiet=True, **keys)
assert spiketriton.train(resume="run", extend="train.max_steps=2", quiet=True).step == 2
"""


def test_everything_imports_and_trains_without_what_windows_lacks(tmp_path):
    command = [sys.executable, "-c", "import spiketriton\n" + WITHOUT]
    variables = environment(SPIKETRITON_BACKEND="torch")
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("has_fcntl", [True, False])
def test_a_lock_is_refused_to_another_process_and_ends_with_its_owner(
    has_fcntl, tmp_path, monkeypatch
):
    if not has_fcntl:
        monkeypatch.setattr(locks, "fcntl", None)
    file = tmp_path / "lock"
    hold = "import sys, fcntl; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        owner.stdout.readline()
        with pytest.raises(BlockingIOError), locks.locked(file, wait=False):
            pass
        owner.kill()
    with locks.locked(file, wait=False), locks.locked(tmp_path / "other", wait=True):
        pass
