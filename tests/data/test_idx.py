"""Idx files: read as they were written, and refused by name when damaged."""

import gzip
import math
import struct

import pytest

from tests.small_data import data_recipe, make_fashion_mnist, mentions, mistake


def idx_bytes(*shape: int, kind: int = 8, data: int | None = None) -> bytes:
    header = struct.pack(f">4B{len(shape)}I", 0, 0, kind, len(shape), *shape)
    return header + bytes(math.prod(shape) if data is None else data)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "it starts with nothing"),
        (b"<html>", "it starts with 3c68746d"),
        (idx_bytes(40, 28, 28, kind=13), "it starts with 00000d03, not 00000803"),
        (idx_bytes(40), "it starts with 00000801, not 00000803"),
        (idx_bytes(40, 28, 28)[:7], "cut short"),
        (idx_bytes(40, 28, 28, data=31_000), "promises 31,360 bytes of data, it holds 31,000"),
        (idx_bytes(40, 28, 28, data=31_361), "promises 31,360 bytes of data, it holds 31,361"),
        (idx_bytes(2**32 - 1, 2**32 - 1, 2**32 - 1, data=5), "it holds 5"),
        (idx_bytes(40, 32, 32), "not images of 28x28"),
    ],
)
def test_a_damaged_idx_file(tmp_path, raw, words):
    path = make_fashion_mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(raw))
    mentions(mistake(data_recipe("fashion_mnist", tmp_path)), path, words)


def test_a_damaged_gzip_and_a_wrong_label(tmp_path):
    path = make_fashion_mnist(tmp_path) / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    raw = bytearray(gzip.decompress(whole))
    raw[-1] = 10
    for content, words in [
        (whole[:-10], "end-of-stream"),
        (b"no gzip", "Not a gzipped file"),
        (whole[:20] + b"\xff\xff" + whole[22:], "cannot read"),
    ]:
        path.write_bytes(content)
        mentions(mistake(data_recipe("fashion_mnist", tmp_path)), path, words)
    path.write_bytes(gzip.compress(bytes(raw)))
    mentions(mistake(data_recipe("fashion_mnist", tmp_path)), "test has labels from 0 to 10")
    path.write_bytes(gzip.compress(idx_bytes(39)))
    mentions(mistake(data_recipe("fashion_mnist", tmp_path)), "40 images and 39 labels")
