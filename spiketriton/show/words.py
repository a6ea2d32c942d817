"""How numbers and verdicts are written on the screen and in pictures."""

import math

from spiketriton.gradients.verdict import Word
from spiketriton.plugins.tasks import Score

COLOURS = {
    Word.HEALTHY: "green",
    Word.LEARNING: "green",
    Word.FREE: "green",
    Word.NOT_JUDGED: "yellow",
    Word.FORGETS: "red",
    Word.BURSTS: "red",
    Word.CHANCE: "red",
    Word.EARLY: "yellow",
    Word.FALLING: "yellow",
    Word.FLAT: "yellow",
    Word.EXPLODING: "red",
    Word.SILENT: "blue",
    Word.ASLEEP: "yellow",
    Word.LOST: "red",
    Word.NOT_FINITE: "red",
}


def times(ratio: float | None) -> str:
    """A ratio as in `3.2x`, `7530x`, `1.5e-4x`, `1e12x`; `-` when there is none."""
    if ratio is None:
        return "-"
    if 100 <= ratio < 1e4:
        return f"{ratio:.0f}x"
    if ratio == 0 or math.isinf(ratio):
        return "0x" if ratio == 0 else "more than 1e38x"
    if 1e-3 <= ratio < 100:
        return f"{ratio:.3g}x"
    return f"{with_exponent(ratio)}x"


def with_exponent(value: float) -> str:
    """`2e-5`, `1.5e12`: two digits at most."""
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def in_percent(share: float) -> str:
    """A share in whole percent; noise may take an overlap of nothing a little below 0."""
    return f"{100 * max(share, 0.0):.0f} %"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def in_words(score: Score) -> str:
    """The name of a score."""
    return score.name.replace("_", " ")


def scored(score: Score, value: float | None = None) -> str:
    """A score, or another value of it: `93.12 %` of a share, else four digits."""
    shown = score.value if value is None else value
    return percent(shown) if score.share else f"{shown:.4g}"


def in_unit(score: Score, value: float | None = None) -> float:
    """A score, or another value of it, as pictures draw it: a share in percent."""
    return (100 if score.share else 1) * (score.value if value is None else value)


def unit(score: Score) -> str:
    """The label of its axis: `accuracy (%)`."""
    return in_words(score) + (" (%)" if score.share else "")


def speed(images_per_s: float) -> str:
    """`9.52 images/s`, `1,463 images/s`: three digits, or all before the point."""
    number = f"{images_per_s:,.0f}" if images_per_s >= 999.5 else f"{images_per_s:.3g}"
    return f"{number} images/s"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.2 h` or `5.1 days`."""
    for unit, length, limit in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172800)):
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def synthetic_note(synthetic: bool) -> str:
    """What goes with every number of synthetic images; nothing with others."""
    return " (synthetic images)" if synthetic else ""
