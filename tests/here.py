"""Where Triton's kernels run. conftest.py imports this before any test, for Triton must be imported here first.

Without a GPU they are interpreted. Triton decides that when it is imported, so the variable is set here, and taken away
again: outside the tests that ask for the triton backend, CPU tensors go where they go for a user, and so do child
processes.
"""

import os

import torch

CUDA = torch.cuda.is_available()
START = "spawn" if CUDA else "fork"  # of processes: autograd's threads of a GPU survive no fork

torch.set_num_threads(1)  # tests are small: a second thread mostly waits for the first

if CUDA:  # this process keeps it, and what it starts sees none: the engine is tested on the CPU
    torch.cuda.init()
    torch.cuda.device_count()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
else:
    os.environ["TRITON_INTERPRET"] = "1"
    from spiketriton_kernels.backends import triton_neuron  # noqa: F401 - decorates the kernels as interpreted

    del os.environ["TRITON_INTERPRET"]
