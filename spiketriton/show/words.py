"""How numbers and verdicts are written on the screen and in pictures."""

from rich.text import Text

COLOURS = {
    "healthy": "green",
    "vanishing": "blue",
    "exploding": "red",
    "blocked": "blue",
    "silent": "blue",
    "lost": "red",
    "not finite": "red",
}


def coloured(line: str) -> Text:
    """A line of a live display, its verdict in colour."""
    text = Text(line)
    for word, colour in COLOURS.items():
        text.highlight_words([word], style=f"bold {colour}")
    return text


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


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
