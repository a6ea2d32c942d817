"""How long windows are cut in Triton: of each chunk but the first the states at its start are kept for the way back."""

CHUNK = 16  # time steps whose membranes a program holds in registers
NORM_CHUNK = 8  # the same where it holds more of each step, as what it read of a norm


def chunk_length(T: int, norm: bool) -> int:
    """Steps per chunk: the window if it fits, else chunks as even as possible."""
    if T <= CHUNK:
        return T
    chunks = -(-T // (NORM_CHUNK if norm else CHUNK))
    return -(-T // chunks)
