"""Convolutions on a CPU that take less time than PyTorch's, the spikes that they keep as bits, and learnable delays."""
