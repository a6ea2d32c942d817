"""python -m spiketriton_kernels: compiles the CPU kernels ahead, so that no first call waits for them."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from .backends import native
from .cache import cache_folder
from .convolutions import library
from .steps import forms

_DTYPES = ("float32", "float64", "bfloat16", "float16")


def main(words: list[str] | None = None) -> int:
    """Compiles what the command line names; 1 where a compile fails."""
    parser = argparse.ArgumentParser(
        "python -m spiketriton_kernels",
        description="Compiles the CPU kernels ahead, with every reset and surrogate, 10 to 25 seconds of a processor "
        f"each, into {cache_folder()} (SPIKETRITON_CACHE).",
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(forms.kinds()))
    parser.add_argument("--dtype", nargs="+", choices=_DTYPES, default=["float32"])
    parser.add_argument("--jobs", type=int, default=1, help="compilers at once")
    given = parser.parse_args(words)
    kinds = given.kinds or forms.kinds()
    if unknown := sorted({*kinds} - {*forms.kinds()}):
        parser.error(f"KIND {', '.join(unknown)}: accepted: {', '.join(forms.kinds())}")
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: accepted: a number from 1 on")
    wanted = [
        (dtype, name) for dtype in dict.fromkeys(given.dtype) for name in dict.fromkeys(kinds)
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(given.jobs) as pool:
        running: dict[Future[Any], str] = {
            pool.submit(native.load, getattr(torch, dtype), name): f"{name} {dtype}"
            for dtype, name in wanted
        }
        for name, dtype in library.NAMES.items():
            if not given.kinds and str(dtype).removeprefix("torch.") in given.dtype:
                running[pool.submit(library.load, name)] = f"convolutions {name}"
        for number, done in enumerate(running, 1):
            found, took = done.result(), time.perf_counter() - started
            if isinstance(found, native.CompilerError):
                pool.shutdown(cancel_futures=True)
                print(f"error: {running[done]}: {found}", file=sys.stderr)
                return 1
            print(f"{number} of {len(running)}: {running[done]} is there, {took:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
