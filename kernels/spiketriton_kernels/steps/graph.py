"""What a step computes, as a graph of pointwise operations: each once, in an order in which they can be computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import NamedTuple


class Ref(int):
    """A node, by its number."""


Value = Ref | float
"""What an operation is given: a node, or a number."""


class Node(NamedTuple):
    """An operation of ``printed.OPERATIONS``; "input" with its name."""

    op: str
    args: tuple[Value | str, ...]

    @property
    def read(self) -> list[Ref]:
        return [arg for arg in self.args if isinstance(arg, Ref)]


BOOLEAN = frozenset(("ge", "gt", "le", "lt", "eq", "ne", "and", "or", "not"))
"""Operations whose result is true or false. "count" makes 1 or 0 of it."""


class Graph:
    """Nodes in the order in which they were made."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.small: set[Ref] = set()  # inputs that are small whole numbers, never NaN
        self._known: dict[str, Ref] = {}  # by text, in which 0.0 is not -0.0

    def add(self, op: str, *args: Value | str) -> Ref:
        """The node of this operation; one that is there already where it is the same."""
        whole = self._joined(*args) if op == "add" else None
        if whole is not None:
            return whole
        node = Node(op, args)
        key = repr(node) + repr(tuple(map(type, args)))
        if key not in self._known:
            self._known[key] = Ref(len(self.nodes))
            self.nodes.append(node)
        return self._known[key]

    def _joined(self, a: Value | str, b: Value | str) -> Ref | None:
        """What two halves of a gradient, which came through the two sides of a torch.where, are together."""
        if not isinstance(a, Ref) or not isinstance(b, Ref):
            return None
        (op, one), (other_op, other) = self.nodes[a], self.nodes[b]
        if op != "where" or other_op != "where" or one[0] != other[0]:
            return None
        for (_, yes, no), (_, second_yes, second_no) in ((one, other), (other, one)):
            zeros = _is_zero(no) and _is_zero(second_yes)
            if zeros and isinstance(yes, Ref) and yes == second_no and isinstance(second_no, Ref):
                return yes
        return None

    def is_boolean(self, value: Value) -> bool:
        return isinstance(value, Ref) and self.nodes[value].op in BOOLEAN

    def counted(self, value: Value) -> Ref | None:
        """Of a 1 or 0 what is true or false; None of another value."""
        if not isinstance(value, Ref) or self.nodes[value].op != "count":
            return None
        (truth,) = self.nodes[value].read
        return truth

    def needed(self, wanted: Iterable[Value], given: Collection[Ref] = ()) -> list[Ref]:
        """The nodes that these values take, in order; what is given ends the search."""
        left = [value for value in wanted if isinstance(value, Ref)]
        found: set[Ref] = set()
        while left:
            ref = left.pop()
            if ref not in found and ref not in given:
                found.add(ref)
                left += self.nodes[ref].read
        return sorted(found)

    def after(self, sources: Iterable[Ref]) -> set[Ref]:
        """The nodes that depend on any of the sources, with those."""
        found = set(sources)
        for number, node in enumerate(self.nodes):
            if not found.isdisjoint(node.read):
                found.add(Ref(number))
        return found

    def cut(self, sources: Collection[Ref], wanted: Iterable[Ref], end: int) -> list[Ref]:
        """The fewest nodes from which all that is wanted can be computed: no way leads past them from the sources.

        The latest such nodes, so that least is computed twice; never what is true or false, nor what is numbered from
        ``end`` on. As many as there are ways without a common node (Menger 1927), which a flow finds (Ford & Fulkerson
        1956).
        """
        moving = self.after(sources)
        targets = [ref for ref in wanted if ref in moving]
        inside = [ref for ref in self.needed(targets) if ref in moving]
        room: dict[tuple[Point, Point], float] = {}
        for ref in inside:
            passes = self.is_boolean(ref) or ref >= end
            room[(ref, False), (ref, True)] = _MANY if passes else 1
            for read in moving.intersection(self.nodes[ref].read):
                room[(read, True), (ref, False)] = _MANY
        room |= {(_START, (ref, False)): _MANY for ref in sources if ref in inside}
        room |= {((ref, True), _END): _MANY for ref in targets}
        room |= {(b, a): 0 for a, b in room}
        near: dict[Point, list[Point]] = {}
        for a, b in room:
            near.setdefault(a, []).append(b)
        while way := _way(near, room):
            for a, b in way:
                room[a, b] -= 1
                room[b, a] += 1
        reaching, left = {_END}, [_END]
        while left:
            b = left.pop()
            before = [a for a in near.get(b, ()) if room[a, b] > 0 and a not in reaching]
            reaching.update(before)
            left += before
        return [r for r in inside if (r, True) in reaching and (r, False) not in reaching]


def _is_zero(value: Value | str) -> bool:
    return value == 0.0 and not isinstance(value, Ref)


Point = tuple[int, bool]
"""Of a node where it is entered, and where it is left."""
_START, _END, _MANY = (-1, True), (-2, False), 1e9


def _way(
    near: dict[Point, list[Point]], room: dict[tuple[Point, Point], float]
) -> list[tuple[Point, Point]]:
    """The steps of a shortest way from start to end through what has room; none: there is no way."""
    came: dict[Point, Point] = {_START: _START}
    left = deque([_START])
    while left and _END not in came:
        a = left.popleft()
        for b in near.get(a, ()):
            if b not in came and room[a, b] > 0:
                came[b] = a
                left.append(b)
    steps, b = [], _END
    while b in came and b != _START:
        steps.append((came[b], b))
        b = came[b]
    return steps
