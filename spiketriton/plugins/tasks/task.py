"""A task, and the score of a net at it: whoever shows, compares or judges a net reads these alone."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spiketriton.plugins.tasks.reading import Reading

Loss = Callable[..., Tensor]  # of currents [T, B, ...], targets, and of sequences their lengths


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a net does what it is trained for.

    name: what the number is, as rows and pictures call it.
    share: whether it is one, from 0 to 1, which is shown in percent.
    chance, spread: of answering without a look, and its standard deviation over as many images; None: not known.
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
    """What a net is trained for. `loss` and `measure` are all that a task needs; docs/own_code.md shows one.

    Currents are what the network returns, [T, B, ...]; in tests and predictions float32 or wider. What the recipe
    reads of them, `loss.read`, is `self.reading(currents)`, [B, ...]; a task with a target for each time step reads
    them itself.

    Attributes:
        score: the name of what `measure` measures, which columns of rows carry: letters, digits and "_".
        share: whether the score is a share, 0 to 1, which is shown in percent.
        of_images: whether it is the share of the images with a right answer; it has an interval then.
        higher_is_better: else the lowest score is the best.
        classifies: whether there is one class for each image: labels [B], and logits [B, K].
        targets: their dtype, torch.int64 (of whole numbers, and of true and false) or torch.float32.
        dense: whether each pixel has a target, [B, S, S] of whole numbers or [B, K, S, S]; answers are [B, K, S, S].
        whole: whether only a whole window has a score, as with a target for each time step. Otherwise `evaluate` also
            measures the currents of the first t steps, for every t.
        moves: whether they stay right where an image is shifted, mirrored, turned, cropped and resized. If not, the
            recipe says `data.augment = "none"`, and images are arrays of the size that the network sees.
    """

    score: str
    targets = torch.float32
    dense = False
    whole = False
    moves = False
    share = False
    of_images = False
    built_in = False
    higher_is_better = True
    classifies = False
    reading = Reading()

    def __init__(self, config: Any = None) -> None:
        """config: the recipe's [loss], with the keys of its own in `options`."""
        self.config = config

    def target_shape(self, outputs: int, side: int) -> tuple[int, ...]:
        """Of the target of an image of `side` x `side` pixels, by default a number for each of K outputs."""
        if self.dense and not self.targets.is_floating_point:
            return (side, side)
        return self.answer_shape(outputs, side)

    def answer_shape(self, outputs: int, side: int) -> tuple[int, ...]:
        """Of the network's answer to an image, in a time step."""
        return (outputs, side, side) if self.dense else (outputs,)

    def unsound(self, targets: Tensor, outputs: int) -> str:
        """What no net can learn in targets [N, ...], with what is accepted; "" where they are good."""
        return ""

    def loss(self, currents: Tensor, targets: Tensor) -> Tensor:
        """Of currents [T, B, ...]: a scalar, the mean over images.

        Of sequences with lengths, this, `measure` and `predict` are called with them too, int64 [B].
        """
        raise NotImplementedError

    def measure(self, currents: Tensor, targets: Tensor) -> Tensor:
        """Of currents [T, B, ...]: a sum over the images, or several of them in one dimension.

        They are added up over all batches and ranks, in float64.
        """
        raise NotImplementedError

    def value(self, sums: Tensor, images: int) -> float:
        """The score by the sums of `measure` over so many images: by default the first one's mean."""
        return float(sums[0] / images)

    def chance(self, targets: Tensor) -> float | None:
        """The score on these targets of answering without a look at the image; None: it is not known."""
        return None

    def predict(self, currents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What `Run.predict` gives of currents [T, B, ...], [B, ...]: by default the answers that the recipe reads."""
        return self.reading(currents, lengths)

    def groups(self, targets: Tensor) -> Tensor:
        """int64 [N]: `data.validation` holds out as large a part of each group; by default all are one."""
        return torch.zeros(len(targets), dtype=torch.int64)

    def guess_loss(self, counts: tuple[int, ...]) -> float | None:
        """The loss in training of the same; None: it is not known. `counts`: see `count`."""
        return None

    def count(self, targets: Tensor, outputs: int) -> tuple[int, ...]:
        """Of each class its images; of a task without classes all images, as one."""
        return (len(targets),)

    def wrong_targets(self, targets: Tensor, outputs: int, side: int) -> str:
        """What is wrong with targets [N, ...] of the data, with what is accepted; "" where they are good."""
        wanted = [len(targets), *self.target_shape(outputs, side)]
        floats = self.targets.is_floating_point
        if [*targets.shape] != wanted or targets.is_floating_point() != floats:
            what = f"labels of shape {[*targets.shape]} and {targets.dtype} for {len(targets):,} images"
            return f"{what}; accepted: {'floats' if floats else 'integers'} {wanted}"
        if floats and not bool(targets.isfinite().all()):
            return "labels that are not finite; accepted: finite ones"
        return self.unsound(targets, outputs)

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

    def summed(self, currents: Tensor, targets: Tensor, lengths: Tensor | None = None) -> Tensor:
        """`measure`, as float64 [n], of currents of any float."""
        if currents.dtype in (torch.float16, torch.bfloat16):
            currents = currents.float()
        more = [] if lengths is None else [lengths]
        return torch.atleast_1d(self.measure(currents, targets, *more)).double()

    def summed_so_far(
        self, currents: Tensor, targets: Tensor, lengths: Tensor | None = None
    ) -> Iterator[Tensor]:
        """`summed` of the first step, the first two, ...; of a task that needs a `whole` window of that alone."""
        steps = len(currents)
        for t in range(steps if self.whole else 1, steps + 1):
            known = None if lengths is None else lengths.clamp(max=t)
            yield self.summed(currents[:t], targets, known)
