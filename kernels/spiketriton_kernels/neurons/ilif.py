"""I-LIF: several spikes in a step (Luo et al. 2024, arXiv 2407.20708).

    h[t] = decay * v[t-1] + gain * x[t]
    s[t] = round(clamp(h[t] / threshold, 0, levels))          v[t] = h[t] - threshold * s[t]

ds/dh is 1 / threshold where 0 <= h / threshold <= levels, else 0.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from .base import Beyond, Options

MAX_LEVELS = 255


class ILIF(Beyond):
    """I-LIF (Luo et al. 2024): a step gives 0..levels spikes, s = round(clamp(h / v_threshold, 0, levels)).

    SpikingJelly's ILIFNode. ``spiketriton_kernels.virtual_steps`` turns its spikes into binary steps for inference.

    Args:
        tau: time constant in steps; the published decay is 0.25.
        v_threshold: see ``SpikingNeuron``.
        levels: D, the most spikes of a step, 1 to 255.
        decay: membrane kept per step, in place of 1 - 1 / tau: a number, or a tensor [] or [C]; a Parameter learns.
        detach_reset, options: see ``SpikingNeuron``. It has no surrogate: its spikes follow h / v_threshold.

    Raises:
        TypeError, ValueError: a constant that it does not have, or out of its range.
    """

    kind = "ilif"
    states = ("v",)
    constants = (*Beyond.constants, "levels")
    options: ClassVar = {"detach_reset": (True, False)}
    recipe: ClassVar = {
        "kind": "ilif",
        "says": "with up to `levels` spikes a step (Luo et al. 2024)",
        "nir": "soft: LI, Threshold, Scale",
        "keys": {"tau": "tau"},
        "own": {"levels": (4, (1, 255), "the most spikes of ilif in one time step")},
        "resets": ("soft",),
    }
    has_surrogate = False
    shown = ("levels", *Beyond.shown)
    resets = ("soft",)

    def __init__(
        self,
        tau: float = 4 / 3,
        v_threshold: float | Tensor = 1.0,
        levels: int = 4,
        *,
        decay: float | Tensor | None = None,
        detach_reset: bool = False,
        **options: Unpack[Options],
    ) -> None:
        if options.get("surrogate") is not None:
            raise TypeError(
                f"surrogate {options['surrogate']!r} of {type(self).__name__}: accepted: None, because the spikes of "
                "I-LIF follow h / v_threshold"
            )
        super().__init__(tau, decay, v_threshold, None, detach_reset=detach_reset, **options)
        if not isinstance(levels, int) or not 1 <= levels <= MAX_LEVELS:
            raise ValueError(f"levels {levels!r}: accepted: an integer from 1 to {MAX_LEVELS}")
        self.levels = levels

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        h = self.decay * v + self.gain * x
        s = self.count(h, self.levels, self.v_threshold)
        return s, h - self.v_threshold * (s.detach() if self.detach_reset else s)
