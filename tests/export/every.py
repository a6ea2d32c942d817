"""A network of every neuron, which tests train, export and load elsewhere.

from tests.export.every import Every
"""

import torch
from torch import Tensor, nn

from spiketriton.config import NeuronConfig
from spiketriton.config.kinds import kinds
from spiketriton.neurons import build_neuron
from spiketriton_kernels.nn import LIF, PLIF, BatchNormLIF, Delays, Leaky, Recurrent
from tests.kernels.steps.neurons import Adaptive, Plain, Ternary

WIDTH = 16


class Every(nn.Module):
    """Images -> linear -> each of the neurons -> linear, summed: [T, B, 1, 8, 8] -> [T, B, 10].

    Those of recipes as they are by default, others with other resets and what learns by channel, and neurons of
    somebody's own, of which one has constants that learn.
    """

    def __init__(self, steps: int, *, few: bool = False) -> None:
        super().__init__()
        learnt = nn.Parameter(torch.linspace(0.5, 1.0, WIDTH))
        made: dict[str, nn.Module] = {
            "own": Plain(),
            "own, learnt": Adaptive(WIDTH),
            "own, of two thresholds": Ternary(),
            "by channel": PLIF(per_channel=WIDTH, v_threshold=learnt, v_reset=None),
            "to another potential": LIF(decay_input=False, v_reset=-0.25),
            "reset later": Leaky(0.75, reset_delay=True),
            "behind a norm": BatchNormLIF(WIDTH, Plain()),
            "recurrent": Recurrent(LIF(), WIDTH),
            "delays": nn.Sequential(Delays(WIDTH, WIDTH, 2), LIF(decay_input=False)),
        }
        made |= {name: build_neuron(NeuronConfig(kind=name), steps, WIDTH) for name in kinds()}
        if few:
            made = {n: made[n] for n in ("own", "own, learnt", "ilif", "cuba", "psn", "recurrent")}
        self.names = list(made)
        self.enter = nn.Linear(64, WIDTH)
        self.neurons = nn.ModuleList(made.values())
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 10) for _ in made)

    def forward(self, x: Tensor) -> Tensor:
        currents = 3 * self.enter(x.flatten(2))
        pairs = zip(self.neurons, self.heads, strict=True)
        return torch.stack([head(neuron(currents)) for neuron, head in pairs]).sum(0)
