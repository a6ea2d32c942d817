"""Placement: one device, precision and memory layout for networks and batches."""

import pytest
import torch
from torch import nn

from spiketriton.config import TrainConfig
from spiketriton.training import environment
from spiketriton.training.placement import Placement
from tests.small_runs import as_on_a_gpu

CPU = torch.device("cpu")


def test_networks_and_images_are_channels_last():
    wanted = torch.channels_last
    placement = Placement.of(TrainConfig(device="cpu"))
    assert (placement.device, placement.layout) == (CPU, wanted)
    assert Placement.of(TrainConfig(device="cuda"), CPU).device == CPU  # one that is given
    net = nn.Conv2d(3, 4, 3)
    assert placement.place(net) is net
    ((images, labels),) = placement.batches([(torch.rand(2, 3, 4, 4), torch.tensor([1, 2]))])
    for tensor in (net.weight, images):
        assert tensor.is_contiguous(memory_format=wanted)
    assert labels.tolist() == [1, 2]
    frames = torch.rand(5, 2, 3, 4, 4)  # [T, b, C, H, W]: each step's in the layout of images
    placed = placement.to_device(frames)
    assert torch.equal(placed, frames)
    assert placed.flatten(0, 1).is_contiguous(memory_format=wanted)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_the_forward_pass_takes_the_precision_and_fp16_alone_is_scaled(
    monkeypatch, precision, dtype
):
    monkeypatch.setattr(environment, "choose_precision", as_on_a_gpu)
    placement = Placement.of(TrainConfig(device="cpu", precision=precision))
    assert placement.precision == dtype
    with placement.autocast():
        assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype == dtype
    assert placement.scaler().is_enabled() == (precision == "fp16")
