"""PTX executed with numpy, on a machine without a GPU: the code that the compiler made, not what it was made of.

A program's threads take each instruction together. It knows the instructions that walks without sums have: no atomics,
no shuffles, and branches that all threads of a program take. What fuses two operations rounds once, from float64.
"""

import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TYPES: dict[str, Any] = {
    "s16": np.int16,
    "u16": np.uint16,
    "b16": np.uint16,
    "s32": np.int32,
    "u32": np.uint32,
    "b32": np.uint32,
    "f32": np.float32,
    "s64": np.int64,
    "u64": np.uint64,
    "b64": np.uint64,
}
BEGIN = 1024
"""The first byte of memory that a kernel may touch: addresses next to none are a mistake."""
SHARED = 262_144

_LABEL = re.compile(r"\s*(\$\w+):")
_INSTRUCTION = re.compile(r"\s*(?:@(!?)(%p\d+)\s+)?([a-z][\w.]*)\s*(.*?);\s*$")
_ADDRESS = re.compile(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^]]*\]|[^,\s][^,]*")

_FLOATS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs,
    "sqrt": np.sqrt, "min": np.fmin, "max": np.fmax, "copysign": lambda sign, x: np.copysign(x, sign),
}  # fmt: skip
_WIDE = {
    "fma": lambda a, b, c: a * b + c,  # products of two float32 are exact
    "rsqrt": lambda x: 1 / np.sqrt(x), "rcp": lambda x: 1 / x, "ex2": np.exp2, "lg2": np.log2,
}  # fmt: skip
_WHOLE = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "mad": lambda a, b, c: a * b + c, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "neg": np.negative, "min": np.minimum,
    "max": np.maximum, "div": lambda a, b: np.trunc(a / b), "rem": np.fmod,
}  # fmt: skip
_ORDERS = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip
_LOGIC = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}
_ROUNDED = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}


def execute(
    ptx: str, arguments: Sequence[float], memory: Array, programs: int, threads: int
) -> None:
    """Runs a kernel on ``memory``, bytes; pointers among the arguments are places in it.

    Raises NotImplementedError at an instruction that it does not know, AssertionError where the kernel leaves memory,
    or its threads part.
    """
    with np.errstate(all="ignore"):
        for program in range(programs):
            _Program(ptx, arguments, memory, (program, programs), threads).run()


class _Program:
    def __init__(
        self,
        ptx: str,
        arguments: Sequence[float],
        memory: Array,
        place: tuple[int, int],
        threads: int,
    ) -> None:
        self.arguments, self.memory, self.place, self.threads = arguments, memory, place, threads
        self.shared = np.zeros(SHARED, np.uint8)
        self.registers: dict[str, Array] = {}
        self.code: list[tuple[str, list[str], list[str]]] = []  # guard, words of the name, operands
        self.labels: dict[str, int] = {}
        for line in ptx[ptx.index("{", ptx.index(".entry")) :].splitlines():
            text = line.partition("//")[0]
            if label := _LABEL.match(text):
                self.labels[label[1]] = len(self.code)
            elif found := _INSTRUCTION.match(text):
                operands = [word.strip() for word in _OPERAND.findall(found[4])]
                self.code.append(
                    (f"{found[1] or ''}{found[2] or ''}", found[3].split("."), operands)
                )

    def run(self) -> None:
        at = 0
        while at < len(self.code):
            guard, name, operands = self.code[at]
            at += 1
            allowed = np.ones(self.threads, bool)
            if guard:
                allowed = self.registers[guard.lstrip("!")]
                allowed = ~allowed if guard.startswith("!") else allowed
            if name[0] in ("bra", "ret"):
                assert allowed.all() or not allowed.any(), "the threads part"
                if allowed.all():
                    at = self.labels[operands[0]] if name[0] == "bra" else len(self.code)
            elif name[0] in ("ld", "st") and name[1] != "param":
                self._move(name, operands, allowed)
            elif name[0] != "bar":
                self._set(operands[0], self._made(name, operands), allowed)

    def _set(self, operand: str, value: Array, allowed: Array) -> None:
        names = [word.strip() for word in operand.strip("{} ").split(",")]
        parts = [value] if len(names) == 1 else [*np.stack(_halves(value), 0)]
        for name, part in zip(names, parts, strict=True):
            if not allowed.all() and name in self.registers:
                part = np.where(allowed, part, self.registers[name].view(part.dtype))
            if name != "_":
                self.registers[name] = part

    def _of(self, operand: str, type_: str) -> Array:
        kind = np.dtype(TYPES[type_])
        if operand.startswith("{"):
            half = "b16" if kind.itemsize == 4 else "b32"
            parts = [self._of(word.strip(), half) for word in operand.strip("{} ").split(",")]
            return np.stack(parts, 1).view(kind)[:, 0]
        if operand in self.registers:
            found = self.registers[operand]
            assert found.itemsize == kind.itemsize, (operand, found.dtype, type_)
            return found.view(kind)
        if operand.startswith("0f"):
            value = struct.unpack(">f", bytes.fromhex(operand[2:]))[0]
            return np.full(self.threads, value, np.float32).view(kind)
        known = {"%tid.x": np.arange(self.threads), "%ntid.x": self.threads, "global_smem": BEGIN}
        known |= {"%ctaid.x": self.place[0], "%nctaid.x": self.place[1]}
        given = known[operand] if operand in known else int(operand, 0) if operand[0] != "%" else 0
        whole = np.asarray(np.asarray(given, object) % (1 << 8 * kind.itemsize))
        return np.broadcast_to(whole.astype(f"u{kind.itemsize}"), self.threads).view(kind)

    def _truth(self, operand: str) -> Array:
        known = self.registers.get(operand)
        return np.full(self.threads, operand != "0") if known is None else known

    def _move(self, name: list[str], operands: list[str], allowed: Array) -> None:
        size, loads = np.dtype(TYPES[name[-1]]).itemsize, name[0] == "ld"
        place, names = operands[::-1] if loads else operands
        base, offset = _ADDRESS.match(place).groups()  # type: ignore[union-attr]
        start = self._of(
            base, "u32" if base not in self.registers else f"u{8 * self.registers[base].itemsize}"
        )
        cells = (self.shared if "shared" in name else self.memory).view(TYPES[name[-1]])
        words = [word.strip() for word in names.strip("{} ").split(",")]
        for number, word in enumerate(words):
            at = start.astype(np.int64) + int(offset or 0) + number * size
            assert not (at[allowed] % size).any(), "not aligned"
            inside = (at >= BEGIN) & (at + size <= cells.nbytes)
            assert inside[allowed].all(), "outside of memory"
            at = np.where(allowed, at // size, 0)
            if loads:
                self._set(word, cells[at], allowed)
            else:
                cells[at[allowed]] = self._of(word, name[-1])[allowed]

    def _made(self, name: list[str], operands: list[str]) -> Array:
        """What an instruction makes of its operands behind the first."""
        (op, *how), type_ = name, name[-1]
        if op == "ld":
            given = self.arguments[int(operands[1].rpartition("param_")[2].strip("] "))]
            kind = np.float32 if isinstance(given, float) else TYPES[type_]
            return np.full(self.threads, given, kind)
        if op == "selp":
            chosen = [self._of(word, type_) for word in operands[1:3]]
            return np.where(self.registers[operands[3]], *chosen)
        if op == "setp":
            a, b = (self._of(word, type_) for word in operands[1:])
            order, unordered = how[0][:2], len(how[0]) == 3 and how[0].endswith("u")
            nan = (a != a) | (b != b)
            return (
                np.isnan(a) | np.isnan(b)
                if how[0] == "nan"
                else (_ORDERS[order](a, b) & ~nan) | (nan & unordered)
            )
        if type_ == "pred":
            truths = [self._truth(word) for word in operands[1:]]
            return truths[0] if op == "mov" else _LOGIC[op](*truths)
        if op == "cvt":
            return self._converted(how, operands)
        if op in ("shl", "shr"):
            given = self._of(operands[1], type_)
            by = self._of(operands[2], "u32").astype(given.dtype)
            return given << by if op == "shl" else given >> by
        if "wide" in how:
            wide = f"{type_[0]}64"
            a, b = (self._of(word, type_).astype(TYPES[wide]) for word in operands[1:3])
            return a * b + self._of(operands[3], wide) if op == "mad" else a * b
        given = [self._of(word, type_) for word in operands[1:]]
        if op == "mov":
            return given[0].copy()
        if type_ == "f32" and op in _WIDE:
            return _WIDE[op](*[one.astype(np.float64) for one in given]).astype(np.float32)
        known = _FLOATS if type_ == "f32" else _WHOLE
        if op not in known:
            raise NotImplementedError(f"{'.'.join(name)} {', '.join(operands)}")
        found = known[op](*given)
        if "NaN" in how:
            found = np.where(np.isnan(given[0]) | np.isnan(given[1]), np.float32("nan"), found)
        return found.astype(TYPES[type_])

    def _converted(self, how: list[str], operands: list[str]) -> Array:
        to, source = how[-2:]
        if to in ("bf16x2", "f16x2"):  # the first operand is the upper half
            high, low = (_half(self._of(word, "f32"), to[:-2]) for word in operands[1:])
            return np.stack([low, high], 1).view(np.uint32)[:, 0]
        if to in ("bf16", "f16"):
            return _half(self._of(operands[1], "f32"), to)
        if source == "bf16":
            return (self._of(operands[1], "b16").astype(np.uint32) << 16).view(np.float32)
        if source == "f16":
            return self._of(operands[1], "b16").view(np.float16).astype(np.float32)
        given = self._of(operands[1], source)
        for word in _ROUNDED.keys() & {*how}:
            given = _ROUNDED[word](given)
        return given.astype(TYPES[to])


def _halves(value: Array) -> Sequence[Array]:
    parts = value.view(f"u{value.itemsize // 2}").reshape(len(value), 2)
    return parts[:, 0], parts[:, 1]


def _half(value: Array, type_: str) -> Array:
    if type_ == "f16":
        return value.astype(np.float16).view(np.uint16)
    bits = value.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FC0), rounded)
