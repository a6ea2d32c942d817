"""Command `tune`: which launches of our kernels are fastest on this GPU, into the file that launches are read from.

Of each kernel and window some settings are raced within the operation that launches it, all other launches as they
are, and each is checked before. The fastest is kept if it takes less than `FASTER` of the reasoned one's time, round
by round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from profiling.harness.contenders import OURS, Contender, Options, Row, Status
from profiling.sections.kernels import Arena, Fused, Inputs, KernelCase, Operation
from spiketriton.system import machine
from spiketriton.training.environment import PRECISIONS
from spiketriton.training.precompile import compiles
from spiketriton_kernels import multistep_bn_lif, multistep_lif
from spiketriton_kernels.backends import tuning
from spiketriton_kernels.backends.triton_launch import compiling
from spiketriton_kernels.backends.tuning import REASONED, Tuning, trying

FASTER = 0.98
WINDOWS = 4, 10
SHAPE = 16, 256, 56, 56
"""[B, C, H, W]: as many elements as ResNet-50's first stage has of 64 images."""

OPERATION = {
    "fire": "lif",
    "walk": "lif",
    "norm fire": "bn_lif",
    "statistics": "bn_lif",
    "walk sums": "bn_lif",
    "walk dy": "bn_lif",
    "walk dx": "bn_lif_residual",
    "norm backward": "bn_lif_residual",
    "walk current": "bn_lif_current",
}
"""What launches each of ``tuning.KERNELS``."""

_STEPPING = [Tuning(width=4), Tuning(ahead=4), Tuning(warps=8)]
_WALKING = [
    *(Tuning(width=2), Tuning(width=4), Tuning(stages=1)),
    *(Tuning(programs=6), Tuning(programs=24), Tuning(warps=8)),
]
_MEASURING = [
    Tuning(width=4),
    Tuning(stages=2),
    Tuning(stages=6),
    Tuning(programs=5),
    Tuning(programs=20),
]
SETTINGS: dict[str, Sequence[Tuning]] = {
    "statistics": _MEASURING,
    "fire": [*_STEPPING, Tuning(ahead=2)],
    "norm fire": [*_STEPPING, Tuning(ahead=1)],
    "norm backward": [*_STEPPING, Tuning(ahead=2)],
    **dict.fromkeys(("walk current", "walk sums", "walk dy", "walk dx", "walk"), _WALKING),
}
"""What is tried beside the reasoned choice: one field at a time."""


@dataclass(frozen=True, kw_only=True)
class Settings(KernelCase):
    """The settings of one kernel, which `tuned` names."""

    tuned: str

    def contenders(self, options: Options) -> list[Contender]:
        arena = Arena(self, options.device)

        def contender(setting: Tuning) -> Contender:
            given = {name: value for name, value in setting._asdict().items() if value is not None}
            words = [f"{name}={value}" for name, value in given.items()]
            build = lambda: Set(arena, setting)  # noqa: E731
            return Contender(" ".join([OURS, *words]), build, {"setting": given})

        return [contender(setting) for setting in (REASONED, *SETTINGS[self.tuned])]


class Set(Operation):
    """Ours, one of whose kernels is launched by a setting."""

    def __init__(self, arena: Arena, setting: Tuning) -> None:
        function = multistep_lif if arena.case.op == "lif" else multistep_bn_lif
        super().__init__(arena, Fused(arena, function), norm_of_torch=False)
        self.setting = setting

    def results(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        case = self.arena.case
        assert isinstance(case, Settings)
        with trying(case.tuned, self.setting):
            return super().results(inputs)


def cases(options: Options) -> list[Settings]:
    """Every kernel in every window; all that they launch is compiled at once."""
    given = dict(mode="training", layout="channels_last", dtype="fp32", shape=(2, 8, 4, 4))
    windows: Sequence[int] = (3,)
    if not options.quick:
        given |= dict(dtype="bf16", shape=SHAPE)
        windows = WINDOWS
    found = [
        Settings(op=OPERATION[kernel], T=T, tuned=kernel, **given)  # type: ignore[arg-type]
        for T in windows
        for kernel in SETTINGS
    ]
    compile_ahead(found, options)
    return found


def compile_ahead(cases: Iterable[Settings], options: Options) -> None:
    if not compiles(options.device):
        return
    with ThreadPoolExecutor(machine.free()) as pool, compiling(pool):
        for case in cases:
            small = replace(case, shape=(2, *case.shape[1:]))
            for one in small.contenders(options):
                work = one.build()
                assert isinstance(work, Set)
                work.results(work.arena.to_check)


def keep(rows: Iterable[Row], device: torch.device, file: Path) -> str:
    """What was fastest goes into the file, in the place of what it held for the same kernels; says so."""
    before = tuning.read(file) if file.exists() else {}
    card = "cpu"
    if device.type == "cuda":
        card = "{}.{}".format(*torch.cuda.get_device_capability(device))
    found = fastest(rows)
    entries = before.get(card, {}) | found
    better = {case: setting for case, setting in entries.items() if setting != REASONED}
    tuning.write(file, before | {card: better})
    gains = sum(found[case] != REASONED for case in found)
    return f"{gains} of {len(found)} kernels are faster by another setting; wrote {file}"


def fastest(rows: Iterable[Row]) -> dict[tuple[str, int, torch.dtype], Tuning]:
    """Of every kernel, window and dtype that was measured."""
    found: dict[tuple[str, int, torch.dtype], Tuning] = {}
    least: dict[tuple[str, int, torch.dtype], float] = {}
    for row in rows:
        if row["status"] != Status.OK or "times_ours" not in row:
            continue
        case = row["tuned"], row["T"], PRECISIONS[row["dtype"]]
        if row["contender"] == OURS:
            found.setdefault(case, REASONED)
        elif row["times_ours"] < min(FASTER, least.get(case, 1.0)):
            found[case], least[case] = Tuning(**row["setting"]), row["times_ours"]
    return found
