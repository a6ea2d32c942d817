"""Where and how a network runs: its device, precision and memory layout, as the recipe asks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from spiketriton.config import TrainConfig
from spiketriton.plugins.tasks import Batch
from spiketriton.system.errors import warn_once
from spiketriton.training import environment
from spiketriton_kernels.backends.choice import HAVE_TRITON

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Placement:
    """Puts networks and batches on a device: whatever runs a recipe's network goes through this class."""

    device: torch.device
    precision: torch.dtype  # of convolutions and matrix products
    layout: torch.memory_format  # of convolution weights and images

    @classmethod
    def of(cls, cfg: TrainConfig, device: torch.device | None = None) -> "Placement":
        """What a recipe asks for, or the same on another `device`. UserError: it asks for a GPU and there is none."""
        device = device or environment.choose_device(cfg.device).value
        return cls(
            device=device,
            precision=environment.choose_precision(cfg.precision, device).value,
            layout=torch.channels_last,
        )

    @classmethod
    def set_up(cls, cfg: TrainConfig) -> "Placement":
        """`of`, after setting the threads and algorithms of this process; warns of fp16 on a CPU."""
        placement = cls.of(cfg)
        if words := environment.for_gpus(cfg.precision, placement.device):
            warn_once(words)
        environment.set_up(cfg.threads, cfg.deterministic, placement.device)
        return placement

    def place(self, model: Net) -> Net:
        """Moves a network, in place, and returns it."""
        return model.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]

    def to_device(self, x: Tensor) -> Tensor:
        """`x` on the device; images [b, C, H, W] and frames [T, b, C, H, W] in the memory layout."""
        if x.ndim == 5:
            return self.to_device(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        layout = self.layout if x.ndim == 4 else torch.preserve_format
        return x.to(self.device, memory_format=layout, non_blocking=True)

    def batches(self, batches: Iterable[Batch]) -> list[Batch]:
        """Batches of images and labels, and perhaps lengths, on the device."""
        return [tuple(map(self.to_device, batch)) for batch in batches]

    def autocast(self) -> torch.autocast:
        """The context of every forward pass; it changes nothing in fp32."""
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision, enabled=enabled)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss against underflow in fp16; it changes nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)


def compiles(device: torch.device) -> bool:
    """Whether Triton compiles what runs there."""
    return device.type == "cuda" and HAVE_TRITON
