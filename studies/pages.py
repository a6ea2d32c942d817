"""What studies share: tables between the marks of a page, and shares in words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spiketriton.evaluate.evaluation import wilson
from spiketriton.system.errors import UserError

END = "<!-- end -->\n"


def filled(text: str, name: str, made: str | Iterable[str], page: Path | str = "the page") -> str:
    """A page's text with what a program made, a text or its lines, between `<!-- name: begin -->` and `<!-- end -->`.

    Raises:
        UserError: the page has no such marks.
    """
    begin = f"<!-- {name}: begin -->\n"
    before, mark, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise UserError(
            f"{page} has no marks {begin.strip()} and {END.strip()}; a table goes there"
        )
    made = made if isinstance(made, str) else "".join(f"{line}\n" for line in made)
    return before + begin + made + END + after


def unsaid(text: str, facts: Iterable[str]) -> list[str]:
    """The facts that a page does not say, however its lines are broken."""
    prose = " ".join(text.split())
    return [fact for fact in facts if fact not in prose]


def share(hits: int, of: int) -> str:
    """`40 of 41 (87-100 %)`, with Wilson's interval of 95 %; "" of none."""
    if not of:
        return ""
    low, high = (round(100 * value) for value in wilson(hits, of))
    return f"{hits} of {of} ({low}-{high} %)"


def interval(hits: int, of: int) -> str:
    """`98 | 87 | 100`: the share in per cent, and where Wilson's interval of 95 % begins and ends; "" of none."""
    if not of:
        return " |  | "
    low, high = wilson(hits, of)
    return " | ".join(f"{100 * value:.0f}" for value in (hits / of, low, high))
