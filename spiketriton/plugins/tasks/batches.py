"""A batch: images, recordings or sequences, their targets, and perhaps lengths."""

from collections.abc import Callable, Sequence

from torch import Tensor

# images [b, C, H, W], recordings [T, b, C, H, W] or sequences [T, b, C]; targets [b, ...]; of sequences that are not
# all of one length also their lengths, int64 [b]
Batch = tuple[Tensor, ...]


def image_dim(images: Tensor) -> int:
    """The dimension that counts images, recordings or sequences, from the end."""
    return -4 if images.ndim > 3 else -2


def has_time(images: Tensor) -> bool:
    """Whether they are shown step by step, [T, b, ...]: recordings and sequences."""
    return images.ndim in (3, 5)


def answers(net: Callable[..., Tensor], images: Tensor, lengths: Sequence[Tensor] = ()) -> Tensor:
    """The currents of a batch `(images, targets, *lengths)`; lengths, where there are some, go to the network too."""
    return net(images, lengths=lengths[0]) if lengths else net(images)
