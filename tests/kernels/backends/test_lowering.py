"""Every kernel lowered for GPUs that need not be here: no spills, wide accesses, no byte twice.

Triton's interpreter, which the other tests use, replaces its compiler, so one child process lowers
all cases without it (profiling/harness/lowering.py) and hands its reports back.
"""

import itertools
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from profiling.harness import lowering
from profiling.sections.compiled import CARDS
from spiketriton.system.errors import UserError
from spiketriton_kernels import SHAPES
from tests import covering
from tests.child import ROOT
from tests.kernels.backends.in_flight import bytes_in_flight
from tests.processes import Forked

TRITON = tuple(map(int, version("triton").split(".")[:2]))

LIF = ("lif inference", "lif forward", "lif backward")
WALKS = ("bn_lif backward, sums", "bn_lif backward, dy", "bn_lif+residual backward")
CURRENT = ("bn_lif+current forward", "bn_lif+current backward")
BATCH_NORM = ("statistics", "bn_lif forward", "bn_lif+residual forward", "norm backward", *WALKS)
BY_SHAPE = ("statistics", "bn_lif forward", *WALKS[:2], "norm backward")
"""Their accesses depend on the shape."""
STATES = ("ilif", "clif", "alif")

_X, _OUT, _UP = ("inputs.x", "load"), ("out.spikes", "store"), ("upstream.spikes", "load")
_RESIDUAL, _DX, _DY = ("inputs.residual", "load"), ("out.dx", "store"), ("out.dy", "store")
TABLE: dict[str, set[tuple[str, str]]] = {
    "lif inference": {_X, _OUT},
    "lif forward": {_X, _OUT},
    "lif backward": {_X, _UP, _DX},
    "statistics": {("y", "load")},
    "bn_lif forward": {_X, _OUT},
    "bn_lif backward, sums": {_X, _UP},
    "bn_lif backward, dy": {_X, _UP, _DY},
    "bn_lif+residual forward": {_X, _RESIDUAL, _OUT},
    "bn_lif+residual backward": {_X, _RESIDUAL, _UP, _DX},
    "norm backward": {("dx", "load"), ("y", "load"), ("dy", "store")},
    "bn_lif+current forward": {_X, _RESIDUAL, _OUT, ("out.current", "store")},
    "bn_lif+current backward": {_X, _RESIDUAL, _UP, ("upstream.current", "load"), _DX},
    **{f"{name} forward": {_X, _OUT} for name in STATES},
    **{f"{name} backward": {_X, _UP, _DX} for name in STATES},
}
"""The traffic table: which tensors of T x N elements a kernel moves, each of them exactly once."""

BUDGET = {
    "multistep_lif": (5, LIF[1:]),
    "multistep_bn_lif": (8, ("statistics", "bn_lif forward", *WALKS[:2])),
    # 10 would leave out that the backward, too, needs the residual to know the potentials
    "multistep_bn_lif, residual": (
        11,
        ("statistics", "bn_lif+residual forward", WALKS[2], "norm backward"),
    ),
    "multistep_bn_lif, residual and current": (13, ("statistics", *CURRENT, "norm backward")),
    **{f"multistep_{name}": (5, (f"{name} forward", f"{name} backward")) for name in STATES},
}
"""Elements moved in one training step, and by which launches."""


LAYOUTS = ("channels_last", "contiguous")
WAYS = ("forward", "backward")
ATTACHED = dict(reset="soft", detach_reset=False)


def key(given: dict[str, Any]) -> str:
    return json.dumps(given, sort_keys=True)


def name(given: dict[str, Any]) -> str:
    return "-".join(str(value) for value in given.values())


def cases(
    names, targets=("sm_90",), dtypes=("bf16",), windows=(10,), layouts=LAYOUTS[:1], **options
):
    product = itertools.product(targets, dtypes, windows, layouts, names)
    return [
        dict(case=case, target=target, T=T, dtype=dtype, layout=layout) | options
        for target, dtype, T, layout, case in product
    ]


QUICK = [
    *cases((*LIF[1:], *BY_SHAPE, CURRENT[0])),
    *cases(CURRENT[1:], windows=[4]),
    *cases(["lif backward"], dtypes=["fp32"], windows=[16]),
    *cases([WALKS[1]], ["sm_100", "gfx942"]),
    *cases([WALKS[1]], windows=[4, 32]),
    *cases(["lif backward"], ["sm_80"], windows=[16]),
    *cases(["clif backward", "alif forward", "alif backward"]),
    *cases(["bn_lif forward", WALKS[1]], layouts=["contiguous"], size=[8, 32, 7, 7]),
    *cases([WALKS[1]], windows=[4], size=[8, 24, 14, 14]),
]
"""Each kernel once as most nets launch it; then one kernel for each of what a tile is chosen by: dtype, target, window,
layout and size. A compilation takes two to five seconds; the others of every kernel come with --slow."""
EVERY = dict(dtypes=["bf16", "fp16", "fp32"], windows=[1, 4, 10, 16, 32])
SLOW = [
    # which has the most registers of all
    *cases([CURRENT[1]], ["sm_80"], windows=[4, 10, 16]),
    *cases([WALKS[1]], ["sm_89", "sm_120"]),
    *cases(BY_SHAPE, layouts=["contiguous"], size=[8, 32, 7, 7]),
    *cases(BY_SHAPE, layouts=["contiguous"], size=[8, 32, 14, 14]),
    *cases(BY_SHAPE[:3], size=[8, 24, 14, 14]),
    *cases(["lif backward"], windows=[16], **ATTACHED),
    *cases((*LIF, *BATCH_NORM, *CURRENT), layouts=LAYOUTS, **EVERY),
    *cases((*LIF, *BATCH_NORM), ["sm_80", "sm_100", "gfx942"], **EVERY),
    *cases(
        [f"{name} {way}" for name in STATES for way in WAYS],
        ["sm_80", "sm_90", "sm_100"],
        ["bf16", "fp32"],
        [1, 4, 8, 10, 16, 32],
    ),
    *(
        one
        for surrogate in SHAPES
        for one in cases(
            ("lif backward", *WALKS), windows=[10, 16], **ATTACHED, surrogate=surrogate
        )
    ),
]
RAGGED = [
    *cases(["lif backward"], ["sm_90", "gfx942"], windows=[3], size=[3, 5, 7, 9]),
    *cases(["bn_lif backward, dy"], windows=[17], size=[3, 5, 7, 9]),
    *cases(["lif backward, probe"], windows=[4]),
]
LEARNT = [
    *cases(["lif backward"], windows=[8, 16], learns=["decay"], **ATTACHED),
    *cases(["lif backward"], windows=[8, 16], learns=["width"], **ATTACHED),
]
"""A thread owns 4 elements with a learnt decay, 2 with a learnt width."""

PACKS = [
    *cases(("pack", "unpack")),
    *cases(["unpack"], ["gfx942"]),
    *cases(("pack", "unpack"), ["sm_80"], ["fp32"], [3], size=[3, 5, 7, 9]),
]
BARS = {
    ("own step forward", "sm_90"): 56,
    ("own step backward", "sm_80"): 168,
    ("own step backward", "sm_90"): 128,
    ("own step backward", "gfx942"): 89,
    ("quadratic step backward", "sm_90"): 128,  # with as many elements a thread as LIF 255
    ("alif backward", "sm_80"): 95,
    ("alif backward", "sm_90"): 82,
    ("alif backward", "gfx942"): 63,
    ("clif backward", "sm_90"): 151,
    ("cuba backward", "sm_90"): 80,
    ("cuba backward", "gfx942"): 58,
    ("ilif backward", "sm_90"): 89,
    ("learnt by channel backward", "sm_90"): 128,  # by hand 96, and a third read
    ("learnt by channel backward", "gfx942"): 88,
    # PLIF's decay and gain both learn: with four elements a thread 168
    ("plif backward", "sm_80"): 96,
    ("plif backward", "sm_90"): 96,
    ("plif by channel backward", "sm_80"): 128,  # by hand 168, with four elements a thread
    ("plif by channel backward", "sm_90"): 128,
}
"""Registers of a thread that a printed step may take; by hand a kind took as many or more (studies/speed/log.md)."""
PRINTED = [one for case, target in BARS for one in cases([case], [target])]
OTHERS = (
    "given statistics forward", "given statistics backward", "shared statistics backward, dx",
    "shared statistics backward, dy", "everything forward", "everything backward",
    "bn_lif+current backward, probe", "learnt by channel backward", "own step behind a norm backward",
)  # fmt: skip
MAPPED = cases(OTHERS, windows=[4])
"""What a call may ask for besides: given statistics, ranks, with states, gains, probes and what learns."""
SEQUENCES = dict(layouts=["contiguous"])
RETURNED = [
    *cases(["recurrent forward", "recurrent backward"], **SEQUENCES, size=[64, 128, 1, 1]),
    *cases(["recurrent forward"], **SEQUENCES, size=[64, 512, 1, 1]),
    *cases(["recurrent backward"], dtypes=["fp32"], **SEQUENCES, size=[64, 200, 1, 1]),
]
"""Neurons whose spikes come back by a matrix: one tile, which holds the matrix, and several."""
OF_OTHER_KINDS = [
    f"recurrent {kind} {way}" for kind in ("plif", "alif", "cuba", "own step") for way in WAYS
]
RETURNED_SELDOM = [
    *cases(["recurrent backward"], **SEQUENCES, size=[64, 512, 1, 1]),
    *cases(["recurrent forward", "recurrent backward"], ["sm_90"], ["fp32"], **SEQUENCES, size=[64, 512, 1, 1]),
    *(
        one
        for case, dtype, features in covering.pairwise(OF_OTHER_KINDS, ["bf16", "fp32"], [128, 512])
        for one in cases([case], ["sm_90"], [dtype], **SEQUENCES, size=[64, features, 1, 1])
    ),
    *(
        one
        for case, target, dtype in covering.pairwise(
            ["recurrent forward", "recurrent backward", "recurrent own step forward", "recurrent own step backward"],
            ["sm_80", "sm_90", "gfx942"], ["bf16", "fp32"],
        )
        for one in cases([case], [target], [dtype], **SEQUENCES, size=[64, 256, 1, 1])
    ),
    *cases(
        ["recurrent forward", "recurrent backward"], ["sm_80", "gfx942"], ["bf16", "fp16", "fp32"], **SEQUENCES,
        size=[35, 100, 1, 1],
    ),
]  # fmt: skip
SELDOM = [
    *RETURNED_SELDOM,
    *cases([case for case, _ in BARS if case.startswith(("ilif", "cuba", "learnt"))]),
    *cases(["plif backward", "plif by channel backward"]),
    *cases(["own step backward", "alif backward"], ["sm_80"]),
    *cases(["own step backward", "alif backward", "cuba backward", OTHERS[7]], ["gfx942"]),
    *cases([WALKS[1]], ["sm_100"]),
    *cases(["lif backward"], ["sm_80"], windows=[16]),
    *cases(["lif backward"], ["gfx942"], windows=[3], size=[3, 5, 7, 9]),
    *cases(["unpack"], ["gfx942"]),
    *cases(("pack", "unpack"), ["sm_80"], ["fp32"], [3], size=[3, 5, 7, 9]),
    *cases((OTHERS[0], OTHERS[2], OTHERS[3], OTHERS[6]), windows=[4]),
    *cases(["clif backward"]),
    *(given for given in LEARNT if given["T"] == 16),
    *cases([WALKS[1]], layouts=["contiguous"], size=[8, 32, 7, 7]),
]
"""Of these tables, with --slow: each has kernels of the same rules beside it; one printer prints all kinds."""
EVERYWHERE = [
    *cases(lowering.CASES, ["sm_80", "sm_90", "sm_100", "gfx942"], ["bf16", "fp16", "fp32"], [4]),
    *cases(lowering.CASES, ["sm_90"], windows=[1, 17], size=[3, 5, 7, 9]),
]
JOINS = cases(("join statistics", "join sums", "join probe"))

LOWER = """
import json, sys
import torch
from profiling.harness import lowering
from spiketriton_kernels import Surrogate
for given in json.loads(sys.argv[1]):
    arguments = dict(given)
    learnt = {name: torch.ones((), requires_grad=True) for name in arguments.pop("learns", ())}
    width = learnt.pop("width", 1.0)
    arguments |= learnt
    # with a slope of their own, or none
    if not given["case"].startswith(("ilif", "own", "quadratic", "pack", "unpack", "learnt", "join by", "recurrent")):
        arguments["surrogate"] = Surrogate(arguments.get("surrogate", "atan"), width=width)
    try:
        report = lowering.lower(**arguments)
    except Exception as error:
        report = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps([given, report]), flush=True)
"""


LONGEST = 7200  # seconds, of the slow cases


def lowered(wanted: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Reports by case, from two processes, in which Triton compiles."""
    wanted = list({key(given): given for given in wanted}.values())  # some stand in two tables
    halves = wanted[::2], wanted[1::2]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        errors = [Path(folder) / name for name in "ab"]
        processes = [
            Forked("-c", LOWER, json.dumps(half), folder=ROOT, errors=file)
            for half, file in zip(halves, errors, strict=True)
        ]
        said = [text for text, _ in pool.map(lambda one: one.communicate(LONGEST), processes)]
        ends = [process.wait() for process in processes]
        assert ends == [0, 0], "".join(file.read_text() for file in errors)
    return {key(given): report for given, report in map(json.loads, "".join(said).splitlines())}


@pytest.fixture(scope="module")
def quick():
    wanted = [*QUICK, *RAGGED, *LEARNT, *PACKS, *JOINS, *PRINTED, *MAPPED, *RETURNED]
    return lowered([given for given in wanted if given not in SELDOM])


@pytest.fixture(scope="module")
def slow():
    return lowered([*SLOW, *SELDOM])


@pytest.fixture
def report(request, given):
    """Of the kernel that a test is given."""
    found = request.getfixturevalue("slow" if given in SELDOM else "quick")[key(given)]
    assert "error" not in found, found["error"]
    return found


def every(*wanted: dict[str, Any]) -> list[Any]:
    """Parameters; those that come seldom with --slow."""
    return [
        pytest.param(given, marks=[pytest.mark.slow] * (given in SELDOM), id=name(given))
        for given in wanted
    ]


def vector_bytes(given: dict[str, Any]) -> int:
    """16 bytes a thread; 8 or 4 where a walk back would spill with as much, or leave too few warps on a processor.

    The tiles are made for warps of 32; AMD's wavefronts of 64 leave half to a thread.
    """
    if "learns" in given:  # a soft reset with a gradient keeps two values of a step
        return 4 if "width" in given["learns"] or given["T"] > 10 else 8
    if TRITON < (3, 7) and (given["case"], given["target"]) == ("statistics", "gfx942"):
        return 4  # in half precision that version's AMD backend splits the loads
    kind, _, way = given["case"].partition(" ")
    T, amd = given["T"], given["target"] == "gfx942"
    size, elements = (4, 4) if given["dtype"] == "fp32" else (2, 8)
    if given["case"] in (*WALKS, CURRENT[1]):
        longest = 10 if given["case"] == WALKS[0] else 8
        elements = (
            4 if longest >= T or T > 16 or amd else 2
        )  # of longer windows a chunk has 8 steps
    elif kind in STATES and way == "backward":
        elements = 2 if kind == "clif" and T > 8 else 4
    elif given["case"] == "lif backward" and not amd:
        longest = 9 if given.get("surrogate") == "gaussian" else 10
        if longest < T:
            elements = 4
    return size * elements // (2 if amd else 1)


def assert_lean(given: dict[str, Any], report: dict[str, Any]) -> None:
    assert "error" not in report, report["error"]
    assert report["spills"] == 0, f"spills {report['spills']} bytes a thread"
    assert report["atomics"] == 0
    if given["target"] == "gfx942":  # the assembly's addresses are not traced to tensors
        assert report["vector_bytes"] >= vector_bytes(given)
        return
    assert report["vector_bytes"] == vector_bytes(given)
    assert report["fused_across_lanes"] == 0  # sums that are promised are the same in every lane
    assert 0.9 < report["bytes_per_request"] / (32 * vector_bytes(given)) <= 1  # few lanes idle
    assert bytes_in_flight(report["sass"]) >= 32 * vector_bytes(given)
    passes = {(a["tensor"], a["kind"]): a["passes"] for a in report["accesses"]}
    checkpoints = {place: passes.pop(place) for place in list(passes) if place[0].endswith("saved")}
    assert passes == pytest.approx(dict.fromkeys(TABLE[given["case"]], 1.0))
    moved = len(TABLE[given["case"]]) * {"bf16": 2, "fp16": 2, "fp32": 4}[given["dtype"]]
    assert report["bytes_per_element"] == pytest.approx(moved + 4 * sum(checkpoints.values()))
    kept = given["T"] > 16 and given["case"] not in ("lif inference", "statistics", "norm backward")
    direction = "store" if "forward" in given["case"] else "load"
    place = ("out.saved" if direction == "store" else "saved", direction)
    assert list(checkpoints) == ([place] if kept else [])
    states = 2 if given["case"].startswith(("clif", "alif")) else 1
    assert sum(checkpoints.values()) < 0.13 * states  # at most one of each in 8 steps


@pytest.mark.parametrize("given", every(*QUICK, *LEARNT))
def test_no_spills_no_atomics_wide_accesses_and_each_byte_once(given, report):
    assert_lean(given, report)


@pytest.mark.slow
@pytest.mark.parametrize("case", TABLE)
def test_every_target_dtype_window_and_layout(slow, case):
    lowered = [given for given in SLOW if given["case"] == case]
    assert lowered
    for given in lowered:
        assert_lean(given, slow[key(given)])


MAIN = (*LIF[1:], "statistics", "bn_lif forward", *WALKS[:2], CURRENT[1], "norm backward")


@pytest.mark.parametrize("reports", ["quick", pytest.param("slow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", MAIN)
def test_warps_and_bytes_under_way(request, case, reports):
    """16 warps that are resident on an A100's and an H100's processor, and 30 KB under way, in what is lowered."""
    found, seen = request.getfixturevalue(reports), 0
    for given in cases([case], ["sm_80", "sm_90"], windows=[4, 10, 16]):
        if (report := found.get(key(given))) is None:
            continue
        card = CARDS[given["target"]]
        warps = report["warps"] * card.resident(
            report["registers"], report["shared"], report["warps"]
        )
        assert warps >= 16
        assert warps * bytes_in_flight(report["sass"]) >= 30 * 1024
        seen += 1
    assert seen == 6 if reports == "slow" else seen


@pytest.mark.parametrize("given", every(*RAGGED, *JOINS))
def test_sizes_that_divide_nothing_probes_and_joins_of_partial_sums_compile(given, report):
    # Triton 3.6 spills 8 bytes where T = 17 and no size divides; later versions none anywhere
    assert report["spills"] <= (8 if TRITON < (3, 7) and given["T"] == 17 else 0)
    assert report["atomics"] == 0


@pytest.mark.skipif(TRITON < (3, 7), reason="registers are those of today's compilers")
@pytest.mark.parametrize("given", every(*PRINTED))
def test_a_printed_step_spills_nothing_and_keeps_to_its_registers(given, report):
    assert report["spills"] == report["atomics"] == 0
    assert report["registers"] <= BARS[given["case"], given["target"]]


PASSES = {
    "given statistics forward": (2, 2),
    "given statistics backward": (4, 1),  # dx alone
    "shared statistics backward, dx": (3, 1),
    "shared statistics backward, dy": (3, 1),
    "everything forward": (2, 2),
    "everything backward": (3, 0),
    "bn_lif+current backward, probe": (4, 1),
    "learnt by channel backward": (2, 1),
    "own step behind a norm backward": (2, 0),
}
"""Loads and stores of tensors of T x N elements."""


@pytest.mark.parametrize("given", every(*MAPPED))
def test_what_else_a_call_may_ask_for_spills_nothing_and_moves_what_it_must(given, report):
    assert report["spills"] == report["atomics"] == 0
    assert (report["loads"], report["stores"]) == PASSES[given["case"]]
    assert report["fused_across_lanes"] == 0


@pytest.mark.parametrize("given", every(*RETURNED, *RETURNED_SELDOM))
def test_spikes_that_come_back_spill_nothing_and_move_each_byte_once(given, report):
    """2e + 4 each way of kinds that keep one value of a step; the matrix comes on top. (Where what is kept is several
    times as large as the rest, that alone is traced.)"""
    assert report["spills"] == report["atomics"] == 0
    assert report["shared"] <= CARDS[given["target"]].shared
    if given["target"] == "gfx942":
        return
    forward, e = "forward" in given["case"], {"bf16": 2, "fp16": 2, "fp32": 4}[given["dtype"]]
    if not any(kind in given["case"] for kind in ("own", "plif")):
        assert report["bytes_per_element"] == pytest.approx(2 * e + 4)
        assert (report["loads"], report["stores"]) == ((1, 2) if forward else (2, 1))


@pytest.mark.slow
def test_every_kernel_compiles_for_every_target_in_every_dtype():
    found = lowered(EVERYWHERE)
    wrong = {
        name(given): report.get("error") or f"spills {report['spills']}"
        for given in EVERYWHERE
        if "error" in (report := found[key(given)]) or report["spills"] or report["atomics"]
    }
    assert wrong == {}


@pytest.mark.parametrize("given", every(*PACKS))
def test_packing_moves_16_bytes_of_spikes_and_4_of_bits_whatever_the_size(given, report):
    """A warp's access is a whole one of 512 bytes, or of 128: of every program but the last."""
    assert report["spills"] == report["atomics"] == 0
    if given["target"] == "gfx942":  # which counts the accesses of the last program too
        assert report["vector_bytes"] == 16 or "size" in given
        return
    bits, spikes = report["accesses"]
    directions = ("store", "load") if given["case"] == "pack" else ("load", "store")
    assert (bits["tensor"], bits["kind"]) == ("bits", directions[0])
    assert (spikes["tensor"], spikes["kind"]) == ("spikes", directions[1])
    assert (bits["passes"], bits["vector_bytes"]) == (1 / 8, 4)
    assert (spikes["passes"], spikes["vector_bytes"]) == (1, 16)
    assert report["bytes_per_element"] == {"bf16": 2, "fp16": 2, "fp32": 4}[given["dtype"]] + 1 / 8


@pytest.mark.parametrize(
    ("function", "reports"),
    [
        ("multistep_lif", "quick"),
        ("multistep_bn_lif", "quick"),
        ("multistep_alif", "quick"),
        *(pytest.param(function, "slow", marks=pytest.mark.slow) for function in BUDGET),
    ],
)
def test_a_training_step_moves_its_budget(request, function, reports):
    """The launches of one step, summed: 5e, 8e, 11e with a residual, 13e with its current; bf16, T = 10."""
    elements, launches = BUDGET[function]
    found = request.getfixturevalue(reports)
    total = sum(found[key(one)]["bytes_per_element"] for one in cases(launches))
    assert total == pytest.approx(2 * elements)


def test_a_probe_costs_less_than_a_hundredth(quick):
    """One row of 8 sums a tile and step, beside what the neurons move."""
    (given,) = [one for one in RAGGED if "probe" in one["case"]]
    report = quick[key(given)]
    tile = report["elements_per_thread"] * 32 * report["warps"]
    assert 8 * 4 / tile < 0.01 * report["bytes_per_element"]


def test_the_interpreter_cannot_lower(monkeypatch):
    """Asked to under TRITON_INTERPRET, lowering says so instead of reporting nothing."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match="TRITON_INTERPRET is '1'; accepted: unset"):
        lowering.lower("lif forward")
