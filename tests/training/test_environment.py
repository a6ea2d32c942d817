"""The process as the trainer sets it up: what it frees it keeps."""

import platform
import subprocess
import sys

import pytest

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
