"""Locks where there is no fcntl, and imports without what only POSIX has."""

import subprocess
import sys

import pytest

from spiketriton import locks

WITHOUT = """
import importlib, pkgutil, signal, sys
sys.modules |= dict.fromkeys(("fcntl", "resource", "triton"))
del signal.SIGHUP
for package in ("spiketriton", "spiketriton_kernels"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from spiketriton.training.interrupts import StopSignals
from spiketriton.training.meters import peak_memory_mib
import torch
with StopSignals(lambda line: None, None):
    assert peak_memory_mib(torch.device("cpu")) == 0
"""


def test_everything_imports_without_what_windows_lacks():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
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
