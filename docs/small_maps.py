"""Convolutions on small maps by oneDNN and as matrix products, ms on one thread.

python docs/small_maps.py [fp32|bf16]

The rows of docs/data/small_maps.md. Both take turns; medians of processor time.
"""

import statistics
import sys
import time

import torch

from spiketriton.models.small_maps import SIZES, Columns, Rows
from spiketriton.system import machine
from spiketriton.training.environment import PRECISIONS, keep_freed_memory

# images, channels read and written, side of the map, kernel, stride
CASES = [
    *(
        (64, 128, 128, 1, 3, 1),
        (64, 512, 512, 1, 3, 1),
        (64, 64, 64, 2, 3, 1),
        (64, 128, 128, 2, 3, 1),
    ),
    *(
        (64, 256, 256, 2, 3, 1),
        (64, 512, 512, 2, 3, 1),
        (8, 512, 512, 2, 3, 1),
        (1, 512, 512, 2, 3, 1),
    ),
    *(
        (64, 256, 512, 4, 3, 2),
        (64, 256, 256, 3, 3, 1),
        (16, 256, 256, 4, 3, 1),
        (64, 256, 256, 4, 3, 1),
    ),
    *(
        (16, 512, 512, 4, 3, 1),
        (64, 512, 512, 4, 3, 1),
        (64, 128, 128, 8, 3, 1),
        (32, 512, 512, 7, 3, 1),
    ),
    *(
        (64, 256, 512, 4, 1, 2),
        (64, 512, 1024, 8, 1, 2),
        (64, 512, 2048, 2, 1, 1),
        (64, 256, 1024, 4, 1, 1),
    ),
]
ROUNDS = 11


def measure(dtype: torch.dtype, case: tuple[int, ...]) -> list[tuple[float, float]]:
    """ms of oneDNN and of the products: forward, the gradient by the input, that by the weights."""
    images, read, written, side, kernel, stride = case
    last, edge = torch.channels_last, kernel // 2
    x = torch.randn(images, read, side, side).to(dtype).contiguous(memory_format=last)
    weight = torch.randn(written, read, kernel, kernel).to(dtype).contiguous(memory_format=last)
    dy = torch.randn_like(torch.conv2d(x, weight, None, stride, edge))
    x_, weight_, dy_ = (tensor.permute(0, 2, 3, 1) for tensor in (x, weight, dy))
    way = Rows if SIZES[dtype].rows and kernel > 1 else Columns
    options = (None, *([n, n] for n in (stride, edge, 1)), False, [0, 0], 1)

    def backward(mask: list[bool]) -> None:
        torch.ops.aten.convolution_backward(dy, x, weight, *options, mask)

    calls = [
        lambda: torch.conv2d(x, weight, None, stride, edge),
        lambda: way.output(x_, weight_, stride),
        lambda: backward([True, False, False]),
        lambda: way.by_input(dy_, weight_, stride, x.shape),
        lambda: backward([False, True, False]),
        lambda: way.by_weight(dy_, x_, stride, weight.shape),
    ]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, kept in zip(calls, times, strict=True):
            before = time.process_time()
            call()
            kept.append(1e3 * (time.process_time() - before))
    found = [statistics.median(kept[1:]) for kept in times]
    return list(zip(found[::2], found[1::2], strict=True))


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    dtype = PRECISIONS[sys.argv[1] if len(sys.argv) > 1 else "fp32"]
    print(f"{machine.cpu_name()}, torch {torch.__version__}, {dtype}: ms of oneDNN / of products\n")
    print("| images | convolution | forward | by input | by weights |")
    print("| ---: | --- | ---: | ---: | ---: |")
    for case in CASES:
        images, read, written, side, kernel, stride = case
        name = f"{kernel}x{kernel}, {read} to {written}, {side}x{side} pixels"
        cells = " | ".join(f"{theirs:.2f} / {ours:.2f}" for theirs, ours in measure(dtype, case))
        print(f"| {images} | {name}{', stride 2' if stride == 2 else ''} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
