"""Neurons of one's own: from a step in plain PyTorch to kernels.

Read ``record`` (traces it), ``graph`` (holds what was traced), ``printed`` (prints that as C++ and Triton), ``step``
(the result that the backends are given).
"""
