"""PyTorch's gated recurrent networks, trained by `spiketriton train` as anybody's network is.

    spiketriton train recipes/spoken_digits.toml loss.read=last model.name=studies.results.rivals:gru \
        model.arguments.width=128 train.lr=2e-3

They have no spikes: what they score is what a net of spiking neurons of the same depth and width is to be compared
with. They have no norm between their layers, and three or four matrices where a recurrent layer of LIF has one, so
more weights.
"""

from torch import Tensor, nn


class Gated(nn.Module):
    """Sequences [T, B, C] -> logits of every step [T, B, K], by layers of `cell`: `nn.GRU` or `nn.LSTM`."""

    def __init__(
        self,
        cell: type[nn.GRU | nn.LSTM],
        in_channels: int,
        num_classes: int,
        width: int,
        depth: int,
    ) -> None:
        super().__init__()
        self.layers = cell(in_channels, width, depth)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.layers(x)
        logits: Tensor = self.fc(outputs)
        return logits


def gru(in_channels: int, num_classes: int, width: int, depth: int = 2) -> Gated:
    """Cho et al. 2014 (arXiv 1406.1078), as PyTorch has it."""
    return Gated(nn.GRU, in_channels, num_classes, width, depth)


def lstm(in_channels: int, num_classes: int, width: int, depth: int = 2) -> Gated:
    """Hochreiter and Schmidhuber 1997, with a forget gate (Gers et al. 2000)."""
    return Gated(nn.LSTM, in_channels, num_classes, width, depth)
