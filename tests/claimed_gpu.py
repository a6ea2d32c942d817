"""pytest -p tests.claimed_gpu: the suite as it goes where PyTorch finds a GPU, without one.

What fails is then either unfit for a GPU, or asks for CUDA itself. studies/speed/log.md lists the latter.
"""

import torch

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.init = lambda: None
