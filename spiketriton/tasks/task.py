"""A task, and the score of a net at it: whoever shows, compares or judges a net reads these alone."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]  # images [b, C, H, W] or frames [T, b, C, H, W]; targets [b, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a net does what it is trained for.

    name: what the number is, as rows and pictures call it.
    share: whether it is one, from 0 to 1, which is shown in percent.
    chance: that of answering without a look at the image, and its standard deviation over as many images; None where
        it is not known.
    """

    value: float
    name: str = "accuracy"
    share: bool = True
    higher_is_better: bool = True
    chance: float | None = None
    spread: float = 0.0

    def beats(self, other: float, margin: float = 0.0) -> bool:
        """Whether it is better than another value by more than `margin`; NaN never is."""
        away = self.value - other if self.higher_is_better else other - self.value
        return away > margin

    def row(self, of: str) -> dict[str, Any]:
        """Its columns in a row of metrics.jsonl: of "test", "ema" or "validation"."""
        return {f"{of}_{self.name}": self.value}

    @property
    def kind(self) -> dict[str, Any]:
        """What a row says of it besides, where it is no accuracy."""
        said: dict[str, Any] = {"score": self.name} if self.name != "accuracy" else {}
        said |= {} if self.share else {"score_is_share": False}
        return said | ({} if self.higher_is_better else {"higher_is_better": False})

    @classmethod
    def of_row(cls, row: Mapping[str, Any], of: str = "test") -> "Score | None":
        """What `row` and `kind` wrote; None where there is none, or no number."""
        name = row.get("score", cls.name)
        value, chance, spread = (
            row.get(key) for key in (f"{of}_{name}", f"{of}_chance", f"{of}_chance_spread")
        )
        if not isinstance(value, int | float):
            return None
        return cls(
            value=value,
            name=str(name),
            share=row.get("score_is_share") is not False,
            higher_is_better=row.get("higher_is_better") is not False,
            chance=chance if isinstance(chance, int | float) else None,
            spread=spread if isinstance(spread, int | float) else 0.0,
        )


class Task:
    """What a net is trained for. `loss` and `measure` are all that a task needs; docs/plugins.md shows one.

    Answers are what the network returns, [T, B, ...] or their mean over time, [B, ...], in float32.

    Attributes:
        score: the name of what `measure` measures, which columns of rows carry: letters, digits and "_".
        share: whether the score is a share, 0 to 1, which is shown in percent.
        of_images: whether it is the share of the images with a right answer; then it has an interval, and chance a
            spread.
        higher_is_better: else the lowest score is the best.
        classifies: whether there is one class for each image: labels [B], and logits [B, K].
    """

    score: str
    share = False
    of_images = False
    higher_is_better = True
    classifies = False

    def loss(self, currents: Tensor, targets: Tensor) -> Tensor:
        """Of answers [T, B, ...]: a scalar, the mean over images."""
        raise NotImplementedError

    def measure(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Of answers [B, ...]: a sum over the images, or several of them in one dimension.

        They are added up over all batches and ranks, in float64.
        """
        raise NotImplementedError

    def value(self, sums: Tensor, images: int) -> float:
        """The score by the sums of `measure` over so many images: by default the first one's mean."""
        return float(sums[0] / images)

    def chance(self, targets: Tensor) -> float | None:
        """The score on these targets of answering without a look at the image; None: it is not known."""
        return None

    def guess_loss(self, counts: tuple[int, ...]) -> float | None:
        """The loss in training of the same; None: it is not known. `counts`: see `count`."""
        return None

    def count(self, targets: Tensor, outputs: int) -> tuple[int, ...]:
        """Of each class its images; of a task without classes all images, as one."""
        return (len(targets),)

    def scored(self, sums: Tensor, images: int, chance: float | None = None) -> Score:
        """The score on so many images."""
        known = chance is not None and self.of_images
        return Score(
            value=self.value(sums, images),
            name=self.score,
            share=self.share,
            higher_is_better=self.higher_is_better,
            chance=chance,
            spread=math.sqrt(chance * (1 - chance) / images) if known and chance else 0.0,
        )

    def summed(self, answers: Tensor, targets: Tensor) -> Tensor:
        """`measure`, as float64 [n]."""
        return torch.atleast_1d(self.measure(answers, targets)).double()
