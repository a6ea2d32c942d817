"""What only a GPU's training has: a step as a CUDA graph, kernels compiled ahead of it, and a micro-batch that fits."""
