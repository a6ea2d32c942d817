"""Convolutions on a CPU that take less time than PyTorch's, and the spikes that they keep as bits."""
