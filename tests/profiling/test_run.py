"""The measuring instrument itself: `profiling/run.py`, on sizes that take no time."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace as changed
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch.autograd import DeviceType

from profiling import (
    cases,
    compiled,
    contenders,
    loading,
    networks,
    report,
    run,
    session,
    tracing,
)
from profiling import rows as result_rows
from profiling.cases import Case, Kernels, Operation
from profiling.contenders import MISSING, NOT_REACHED, OK, OURS, UNEQUAL, WRONG, Options
from profiling.memory import peak_bytes, saved_bytes
from profiling.networks import TrainingStep, find_recipe
from profiling.timing import QUICK, Effort, Timing, buffers_beyond_cache, last_level_cache, race
from spiketriton.errors import EXIT_SIGINT, UserError
from spiketriton_kernels import multistep_lif

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
OPTIONS = Options(CPU, quick=True)
LIF = Case(op="lif", mode="training", T=3, shape=(2, 8, 4, 4))

EVERY_ROW = {
    "section", "run", "status", "device", "device_type", "cpu", "threads", "spiketriton", "commit",
    "dirty", "python", "torch", "triton", "allocator", "quick", "command",
}  # fmt: skip
MEASURED = {
    "kernels": {"op", "mode", "T", "shape", "dtype", "layout", "contender", "gb_per_s", "of_copy"},
    "step": {"recipe", "T", "batch", "image", "precision", "contender", "images_per_s"},
    "memory": {"contender", "peak_bytes", "saved_bytes"},
    "gradients": {"recipe", "contender", "median_ms", "measures_every"},
    "data": {"recipe", "batch", "contender", "images_per_s", "cores"},
    "compiled": {"target", "T", "dtype", "layout", "predicted_ms"},
}
TIMED = {"median_ms", "p20_ms", "p80_ms", "samples"}


def command(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "profiling/run.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environ,
        timeout=600,
    )


def measured(section: contenders.Section, specs: list, tmp_path: Path, **options) -> list[dict]:
    one = session.Session(changed(OPTIONS, **options), tmp_path)
    with one.progress(len(specs)):
        one.measure(section, specs)
    return one.rows


def spec_of(case: Case) -> dict:
    return json.loads(json.dumps(vars(case)))  # as it comes from a file or another process


# ---- the whole command


def test_all_measures_every_section_and_says_where(tmp_path):
    only = "spiketriton,spiketriton m*,spiketriton's*,ANN twin,no worker"
    arguments = ["--peers", "none", "--only", only, "--target", "sm_80", "--out", tmp_path]
    done = command("all", "--quick", *arguments)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["section"] for row in rows} == set(MEASURED)
    for row in rows:
        assert row["status"] == OK, row
        assert row.keys() >= EVERY_ROW
        if "kernel" not in row and "operation" not in row:
            assert row.keys() >= MEASURED[row["section"]], row
        if row["section"] not in ("memory", "compiled"):
            assert row.keys() >= TIMED
            assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["quick"]
        assert row["threads"] >= 1
    check_lowered([row for row in rows if row["section"] == "compiled"])
    if sys.platform == "linux":
        assert {row["allocator"] for row in rows} == {
            "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=67108864"
        }
    assert "training step of quickstart" in done.stdout
    assert "predicted, not measured" in done.stdout.lower()
    pictures = {path.name.split("-step-")[-1] for path in tmp_path.glob("*.png")}
    assert "quickstart.png" in pictures
    for path in tmp_path.glob("*.png"):
        assert len(set(pixels(path))) > 50, f"{path} shows nothing"


def pixels(path: Path) -> list[tuple[int, ...]]:
    from matplotlib import image

    return [tuple(p) for p in image.imread(path).reshape(-1, 4)[::7].tolist()]


def check_lowered(rows: list[dict]) -> None:
    """The budgets, as they stand in the machine code."""
    passes = {row["operation"]: row["passes"] for row in rows if "operation" in row}
    assert passes["multistep_lif"] == pytest.approx(5)
    assert passes["multistep_bn_lif"] == pytest.approx(8)
    kernels = {row["kernel"]: row for row in rows if "kernel" in row}
    assert kernels["lif inference"]["bytes_per_element"] == pytest.approx(2 * 2)
    assert kernels["lif inference"]["spills"] == 0
    assert 0 < kernels["lif backward"]["occupancy"] <= 1
    assert all(row["card"] == "A100 80 GB SXM" for row in rows)


def test_compiled_takes_lists_of_settings():
    assert compiled.settings([]) == {"T": [10], "dtype": ["bf16"], "layout": ["channels_last"]}
    given = compiled.settings(["T=4,10", "dtype=fp32,bf16"])
    assert given == {"T": [4, 10], "dtype": ["fp32", "bf16"], "layout": ["channels_last"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kernels", "--peers", "brian"], "--peers 'brian': accepted: none, or some of"),
        (["step", "resnet"], "recipe 'resnet': accepted: a TOML file, or one of"),
        (["step", "quickstart", "neuron.kind=relu"], "accepted: a spiking recipe"),
        (["compiled", "--target", "sm_70"], "--target: invalid choice: 'sm_70'"),
        (["compiled", "T=0"], "compiled T='0': accepted: whole numbers from 1"),
        (["compiled", "dtype=fp8"], "compiled dtype='fp8': accepted:"),
        (["compiled", "colour=red"], "compiled 'colour=red': accepted:"),
        (["speed"], "invalid choice: 'speed'"),
        (["kernels", "quickstart"], "kernels takes no 'quickstart'"),
        (["data", "--base", "HEAD"], "--base goes with kernels, step, memory, all"),
        (["kernels", "--base", "no-such-commit"], "--base 'no-such-commit': accepted:"),
        (["trace"], "no RECIPE was given"),
        (["kernels", "--minutes", "-1"], "--threads and --minutes: accepted: numbers from 0"),
        (["kernels", "--minutes", "nan"], "--threads and --minutes: accepted: numbers from 0"),
        (["report"], "holds no results (*.jsonl)"),
    ],
)
def test_a_mistake_is_refused_in_one_line(arguments, says, tmp_path):
    with pytest.raises(UserError) as refused:
        run.main([*arguments, "--out", str(tmp_path)])
    assert says in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["kernels"], ["trace", "quickstart"], ["leak"]], ids=" ".join)
def test_a_folder_that_takes_no_files_is_refused_before_anything_is_measured(
    words, monkeypatch, tmp_path
):
    monkeypatch.setattr(session, "race", None)
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(UserError, match="accepted: a folder to write to"):
        run.main([*words, "--quick", "--peers", "none", "--out", str(taken)])


def test_a_rehearsal_has_no_more_steps_than_its_recipe():
    spec = TrainingStep([find_recipe("quickstart", ["time_steps=1"])]).specs(OPTIONS)[0]
    assert spec["T"] == 1


def test_all_begins_with_the_telling_kernels_and_ends_with_their_long_tail():
    work = run.work_of(run.parse(["all"]), Options(CPU))
    names = [section.name for section, _ in work]
    assert names == ["kernels", "step", "memory", "memory", "gradients", "data", "kernels"]
    telling, tail = work[0][1], work[-1][1]
    assert {(spec["op"], spec["mode"]) for spec in telling} == {
        (op, mode) for op in cases.OPERATIONS for mode in ("training", "inference")
    }
    assert telling + tail == Kernels().specs(Options(CPU))
    assert tail


def test_a_mistake_ends_the_command_with_2_and_no_traceback():
    done = command("kernels", "--peers", "brian")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --peers 'brian'")
    assert done.stderr.count("\n") == 1


# ---- what is wrong is not timed


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x, **o: multistep_lif(x, **o | dict(reset="soft")),
        lambda x, **o: multistep_lif(x, **o | dict(threshold=1.0 + 1e-6 + 2**-4)),
        lambda x, **o: multistep_lif(x, **o | dict(surrogate=cases.Surrogate("atan", 1.0, 0.33))),
        lambda x, **o: multistep_lif(x, **o) * float("nan"),
    ],
    ids=["spikes", "few spikes", "gradients alone", "nan"],
)
def test_a_wrong_result_is_not_timed(mistake, monkeypatch, tmp_path):
    monkeypatch.setattr(cases, "multistep_lif", mistake)
    rows = measured(Kernels(), [spec_of(LIF)], tmp_path, only=(OURS, "eager"))
    of = {row["contender"]: row for row in rows}
    assert of[OURS]["status"] == WRONG
    assert "allowed" in of[OURS]["why"]
    assert "median_ms" not in of[OURS]
    assert of["eager"]["status"] == OK
    assert "median_ms" in of["eager"]
    assert session.ours_failed(rows) == [of[OURS]]


def without_a_gradient(x: torch.Tensor) -> torch.Tensor:
    """x, whose gradient is NaN."""
    x = x.clone()
    x.register_hook(lambda grad: grad * float("nan"))
    return x


def test_a_single_gradient_that_is_nan_is_wrong(monkeypatch, tmp_path):
    right = cases.multistep_bn_lif
    mistake = lambda y, w, b, *rest, **o: right(y, w, without_a_gradient(b), *rest, **o)  # noqa: E731
    monkeypatch.setattr(cases, "multistep_bn_lif", mistake)
    spec = spec_of(changed(LIF, op="bn_lif"))
    assert measured(Kernels(), [spec], tmp_path, only=(OURS,))[-1]["status"] == WRONG


def test_only_names_that_nobody_has_are_refused(tmp_path):
    with pytest.raises(UserError, match="--only 'theirs': accepted: names of contenders"):
        run.main(["kernels", "--quick", "--only", "theirs", "--out", str(tmp_path)])


def test_a_wrong_result_of_ours_ends_the_command_with_1(monkeypatch, tmp_path):
    mistake = lambda x, **o: multistep_lif(x, **o | dict(reset="none"))  # noqa: E731
    monkeypatch.setattr(cases, "multistep_lif", mistake)
    arguments = ["kernels", "--quick", "--only", OURS, "--peers", "none", "--out", str(tmp_path)]
    assert run.main(arguments) == 1


@pytest.mark.parametrize("op", cases.OPERATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_ours_and_the_definition_agree_in_every_case(op, layout, dtype):
    shape = dict(T=4, shape=(4, 8, 8, 8), dtype=dtype, layout=layout)
    for mode in ("training", "inference"):
        spec = spec_of(Case(op=op, mode=mode, **shape))
        for one in Kernels().contenders(spec, OPTIONS):
            if "compile" not in one.name:
                assert one.build().check().status == OK, (one.name, mode)


def test_a_large_case_is_checked_on_part_of_its_batch(monkeypatch):
    monkeypatch.setattr(cases, "LARGEST_CHECK", LIF.T * LIF.N // 2)
    arena = cases.Arena(changed(LIF, op="bn_lif", layout="channels_last"), CPU)
    assert arena.to_check.x.shape == (3, 1, 8, 4, 4)
    assert Operation(arena, cases.Fused(arena, cases.multistep_bn_lif)).check().status == OK


def test_compiled_definition_agrees_and_is_timed(tmp_path):
    rows = measured(Kernels(), [spec_of(changed(LIF, T=2))], tmp_path, only=("torch.compile",))
    assert [row["status"] for row in rows] == [OK, OK], rows
    assert rows[1]["contender"] == "torch.compile"
    assert rows[1]["median_ms"] > 0
    assert "times_ours" not in rows[1]  # ours took no part


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_wrong_network_is_found_block_by_block(precision):
    recipe = find_recipe("quickstart", [f"train.precision={precision}"])
    spec = TrainingStep([recipe]).specs(OPTIONS)[0]
    bench = networks.Bench(spec, CPU)
    truth = lambda: bench.truth  # noqa: E731
    right = networks.Step(bench, bench.model(), truth=truth).check()
    assert right.status == OK, right
    # what half precision itself is off by hides the finer mistakes, which fp32 must find
    fine = ("neuron.tau=2.2", "neuron.surrogate.width=0.4", "neuron.reset=soft")
    coarse = ("neuron.tau=10.0", "neuron.surrogate.width=0.05", "neuron.v_threshold=0.5")
    for mistake in fine if precision == "fp32" else coarse:
        wrong = networks.Step(bench, bench.model(mistake), truth=truth).check()
        assert wrong.status == WRONG, (mistake, wrong)
        assert not wrong.measured


@pytest.mark.parametrize("model", ["resnet8", "plain", "mlp"])
def test_blocks_of_a_large_batch_are_checked_on_its_first_images(model, monkeypatch):
    changes = [f"model.name={model}", *(["model.depth=3"] if model != "resnet8" else [])]
    recipe = find_recipe("quickstart", [*changes, "train.batch_size=4", "time_steps=2"])
    spec = TrainingStep([recipe]).specs(Options(CPU))[0]
    monkeypatch.setattr(networks, "MOST_CHECKED", 2 * 2 * 16 * 16)
    bench = networks.Bench(spec, CPU)
    for name, (_, _, grad, output, _) in bench.truth.blocks.items():
        assert output.shape[:2] == grad.shape[:2] == (2, 2), name
    for changes, status in ([], OK), (["neuron.tau=2.2"], WRONG):
        step = networks.Step(bench, bench.model(*changes), truth=lambda: bench.truth)
        assert step.check().status == status


def test_a_block_whose_gradient_is_nan_is_wrong():
    spec = TrainingStep([find_recipe("quickstart")]).specs(OPTIONS)[0]
    bench = networks.Bench(spec, CPU)
    step = networks.Step(bench, bench.model(), truth=lambda: bench.truth)
    block = step.model.get_submodule(networks.blocks(step.model)[1])
    block.register_forward_pre_hook(lambda _, x: (without_a_gradient(x[0]), *x[1:]))
    assert bench.truth.errors(step)[1] != bench.truth.errors(step)[1]
    assert step.check().status == WRONG


# ---- peers


@pytest.mark.parametrize(
    ("peer", "contender"),
    [
        ("spikingjelly", "spikingjelly default"),
        ("spikingjelly", "spikingjelly compiled"),
        ("snntorch", "snntorch"),
        ("norse", "norse"),
    ],
)
def test_a_peer_computes_the_same(peer, contender, tmp_path):
    pytest.importorskip(peer)
    case = changed(LIF, T=2) if "compiled" in contender else LIF
    rows = measured(Kernels(), [spec_of(case)], tmp_path, peers=(peer,), only=(contender,))
    row = rows[-1]
    assert row["contender"] == contender
    assert row["status"] == OK, row
    assert row["spikes_differ"] == 0
    assert row["package"].startswith(peer)


@pytest.mark.parametrize("peer", ["snntorch", "norse"])
def test_a_peer_that_cannot_be_equal_says_why_and_is_timed(peer, tmp_path):
    pytest.importorskip(peer)
    spec = spec_of(changed(LIF, detach_reset=True))
    row = measured(Kernels(), [spec], tmp_path, peers=(peer,), only=(peer,))[-1]
    assert row["status"] == UNEQUAL
    assert "reset" in row["why"]
    assert row["median_ms"] > 0


@pytest.mark.parametrize(
    ("differ", "error", "status"),
    [(0.01, 0.5, UNEQUAL), (0.06, 0.5, WRONG), (0.0, float("nan"), WRONG), (0.0, 1e-6, OK)],
)
def test_a_reason_to_be_unequal_excuses_no_other_spikes_and_no_nan(differ, error, status):
    assert contenders.agreement(differ, error, (0.0, 1e-5), "its reset").status == status


def test_nothing_is_compiled_under_the_interpreter(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match="TRITON_INTERPRET is '1'; accepted: unset"):
        run.main(["compiled", "--out", str(tmp_path)])


def test_a_peer_whose_membrane_is_rounded_says_so(tmp_path):
    pytest.importorskip("norse")
    spec = spec_of(changed(LIF, T=10, shape=(4, 8, 16, 16), dtype="bf16"))
    row = measured(Kernels(), [spec], tmp_path, peers=("norse",), only=("norse",))[-1]
    assert row["status"] == UNEQUAL
    assert row["why"] == "it keeps the membrane in bfloat16"


def test_a_peers_network_is_the_same_network():
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import layer, neuron

    spec = TrainingStep([find_recipe("quickstart")]).specs(OPTIONS)[0]
    everyone = TrainingStep([]).contenders(spec, changed(OPTIONS, peers=("spikingjelly",)))
    step = next(one for one in everyone if one.name == "spikingjelly default").build()
    kinds = [type(module) for module in step.model.modules()]
    assert kinds.count(neuron.LIFNode) == 7
    assert kinds.count(layer.BatchNorm2d) == 9
    assert step.check().status == OK


def test_a_missing_peer_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cases, "version", lambda package: None)
    rows = measured(Kernels(), [spec_of(LIF)], tmp_path, peers=("norse",), only=("eager", "norse"))
    assert rows[-1]["status"] == MISSING
    assert 'pip install -e ".[peers]"' in rows[-1]["why"]
    assert "norse: missing: norse is not installed" in capsys.readouterr().err


def test_data_that_are_not_there_are_missing_and_no_failure_of_ours():
    told: dict = {}
    with session.refusals(told):
        raise UserError("imagenette: its files are missing")
    assert told == {"status": MISSING, "why": "imagenette: its files are missing"}


# ---- rows are kept


def test_ctrl_c_keeps_the_rows_already_measured(monkeypatch, tmp_path, capsys):
    races = []

    def interrupted(*arguments):
        races.append(arguments)
        if len(races) == 2:
            raise KeyboardInterrupt
        return race(*arguments)

    monkeypatch.setattr(session, "race", interrupted)
    arguments = ["kernels", "--quick", "--only", "eager", "--peers", "none", "--out", str(tmp_path)]
    assert run.main(arguments) == EXIT_SIGINT
    rows = result_rows.read(tmp_path)
    assert [row["contender"] for row in rows] == ["copy", "eager"]
    assert all(row["op"] == "lif" for row in rows)
    told = capsys.readouterr()
    assert "interrupted: 2 rows are kept in" in told.err
    assert "lif training" in told.out


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_narrow_terminal_shows_the_count_and_the_time_that_is_left(columns, tmp_path):
    one = session.Session(OPTIONS, tmp_path)
    one.console = Console(file=io.StringIO(), width=columns)
    one.bar.update(one.task, total=12)
    one.at("kernels bn_lif_residual training T=10 16x64x56x56 fp32: BatchNorm2d", advance=1)
    screen = Console(file=io.StringIO(), width=columns)
    screen.print(one.bar.get_renderable())
    (line,) = screen.file.getvalue().splitlines()
    assert line.startswith("kernels ")
    assert "1/12" in line
    assert "left" in line
    assert ":" in line.split("left")[1]
    assert "…" not in line


def test_cases_beyond_the_minutes_are_named(tmp_path):
    one = session.Session(OPTIONS, tmp_path, minutes=1e-9)
    with one.progress(1):
        one.measure(Kernels(), [spec_of(LIF)])
    (row,) = result_rows.read(tmp_path)
    assert row["status"] == NOT_REACHED
    assert row["op"] == "lif"


def test_contenders_beyond_the_minutes_are_named_and_ours_is_kept(tmp_path):
    one = session.Session(OPTIONS, tmp_path, minutes=1)

    class Late(Kernels):
        def contenders(self, spec, options):
            one.deadline = 0  # while the case's first contender is built
            return super().contenders(spec, options)

    with one.progress(1):
        one.measure(Late(), [spec_of(LIF)])
    of = {row["contender"]: row for row in result_rows.read(tmp_path)}
    assert of[OURS]["status"] == OK
    assert of[OURS]["samples"] == QUICK.least
    assert {of[name]["status"] for name in ("torch.compile", "eager")} == {NOT_REACHED}


def test_another_commit_is_raced_where_its_process_measures(monkeypatch, tmp_path):
    class Stub:
        def __init__(self, *_): ...

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def contenders(self, spec):
            return [cases.missing("another commit")]

    monkeypatch.setattr(run, "Base", Stub)
    for section in ("gradients", "kernels"):
        args = run.parse([section, "--quick", "--only", f"{OURS}*", "--out", str(tmp_path)])
        args.base = "HEAD"  # as `all` has it for every section
        assert run.measure(args, OPTIONS) == 0
    rows = result_rows.read(tmp_path)
    assert {row["section"] for row in rows if row["contender"] == "another commit"} == {"kernels"}
    assert any("cost" in row for row in rows)


def test_another_commit_takes_turns_in_a_process_of_its_own(tmp_path):
    if subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("not a git repository")

    def worktrees() -> str:
        command = ["git", "-C", ROOT, "worktree", "list"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    before = worktrees()
    arguments = ["kernels", "--quick", "--only", OURS, "--peers", "none", "--base", "HEAD"]
    assert run.main([*arguments, "--out", str(tmp_path)]) == 0
    rows = result_rows.read(tmp_path)
    commit = next(row["base_commit"] for row in rows if "base_commit" in row)
    theirs = [row for row in rows if row["contender"] == f"{OURS} @{commit[:8]}"]
    assert len(theirs) == 4
    for row in theirs:
        assert row["status"] == OK
        assert row["median_ms"] > 0
    assert worktrees() == before


# ---- the instrument's parts


class Scripted:
    """A contender whose samples are known, and who writes down its turns."""

    def __init__(self, name: str, turns: list[str], seconds: float) -> None:
        self.name, self.turns, self.seconds = name, turns, seconds

    def prepare(self, effort) -> None: ...

    def sample(self) -> float:
        self.turns.append(self.name)
        return self.seconds


def test_contenders_take_turns_and_the_first_changes():
    turns: list[str] = []
    timings = race({name: Scripted(name, turns, i) for i, name in enumerate("abc")}, QUICK)
    assert "".join(turns) == "abcbcacab"
    assert timings["c"].seconds == (2, 2, 2)


def test_a_slow_case_ends_early_but_not_too_early():
    slow = Effort(rounds=9, seconds=0, warm_up=0, least=2, patience=0)
    assert len(race({"a": Scripted("a", [], 1.0)}, slow)["a"].seconds) == 2
    assert len(race({"a": Scripted("a", [], 1.0)}, changed(slow, patience=60))["a"].seconds) == 9


def test_a_timing_tells_the_median_and_its_spread():
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert timing.row() == {
        "median_ms": 3000.0, "p20_ms": pytest.approx(1800.0), "p80_ms": pytest.approx(4200.0), "samples": 5,
    }  # fmt: skip
    assert timing.ratio_to(Timing((10.0, 1.0, 1.0, 1.0, 1.0))).seconds == (0.5, 1.0, 2.0, 4.0, 3.0)


def test_buffers_rotate_beyond_the_cache():
    cache = last_level_cache(CPU)
    assert cache >= 2**18
    assert buffers_beyond_cache(2**20, CPU) * 2**20 >= min(4 * cache, 256 * 2**20)
    assert buffers_beyond_cache(2**40, CPU) == 2


def test_currents_never_meet_the_threshold():
    case = Case(op="lif", mode="training", T=16, shape=(4, 8, 16, 16))
    x = cases.Arena(case, CPU).inputs[0].x.detach().double()
    v = torch.zeros_like(x[0])
    for x_t in x:
        h = 0.5 * v + x_t
        assert not (h == 1.0).any()
        v = torch.where(h > 1.0, 0.0, h)
    assert 0.1 < multistep_lif(x.float()).mean() < 0.9


def test_bytes_are_counted_by_the_allocator():
    x = torch.ones(2**16, requires_grad=True)
    two = peak_bytes(lambda: (x.detach() + 1) * 2, CPU)
    assert two == pytest.approx(2 * 4 * 2**16, abs=64)  # and some scalars
    assert saved_bytes(lambda: (x * x).exp(), [x]) == 4 * 2**16  # exp keeps its result, x is x
    assert saved_bytes(lambda: (x * x).exp(), []) == 2 * 4 * 2**16


def test_our_neuron_saves_its_input_alone(tmp_path):
    section = cases.Weighed(Kernels(), cases.weighed_cases)
    specs = [spec_of(changed(LIF, shape=(4, 8, 16, 16)))]
    rows = measured(section, specs, tmp_path, only=(OURS, "eager"))
    of = {row["contender"]: row for row in rows}
    assert of[OURS]["saved_per_element"] == 4
    assert of["eager"]["saved_per_element"] > 8
    assert of["eager"]["peak_bytes"] > of[OURS]["peak_bytes"] > 0


def test_a_step_with_packed_spikes_saves_less_and_what_it_saves_is_counted(tmp_path):
    step = networks.TrainingStep([find_recipe("quickstart")])
    section = cases.Weighed(step, step.specs)
    only = (OURS, f"{OURS} packed")
    rows = measured(section, step.specs(OPTIONS), tmp_path, only=only)
    whole, packed = (row["saved_bytes"] for row in rows)
    assert 0.3 * whole < packed < 0.9 * whole


def test_a_loader_is_compared_with_the_step_that_it_feeds(tmp_path):
    section = loading.Loading([find_recipe("quickstart")])
    rows = measured(section, section.specs(OPTIONS), tmp_path, only=("no worker", loading.STEP))
    of = {row["contender"]: row for row in rows}
    loader, step = of["no worker"], of[loading.STEP]
    assert loader["workers"] == 0
    assert loader["of_step"] == pytest.approx(loader["images_per_s"] / step["images_per_s"])


def test_the_monitor_measures_in_the_steps_that_are_timed():
    spec = networks.Monitoring([find_recipe("quickstart")]).specs(OPTIONS)[0]
    bench = networks.Bench(spec, CPU)
    step = networks.MonitoredStep(bench, bench.model())
    step()
    (rows,) = step.measurements
    assert len(rows) == 7 * spec["T"]
    assert any(row["grad_input_rms"] > 0 for row in rows)


def test_a_trace_names_our_operators(tmp_path, capsys):
    assert run.main(["trace", "quickstart", "--quick", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*-trace-quickstart.json")
    events = json.loads(file.read_text())["traceEvents"]
    assert any(event.get("name") == "spiketriton::neuron_forward" for event in events)
    assert "spiketriton: spiketriton::neuron_backward" in capsys.readouterr().out


def test_a_gpus_time_is_counted_once_and_where_it_is_spent():
    def event(key: str, device: DeviceType, microseconds: float, annotation: bool = False):
        return SimpleNamespace(
            key=key,
            device_type=device,
            is_user_annotation=annotation,
            self_device_time_total=microseconds,
            self_cpu_time_total=7.0,
        )

    operator = event("spiketriton::neuron_forward", DeviceType.CPU, 5.0)  # its kernel's time again
    kernel = event("fire_kernel", DeviceType.CUDA, 5.0)
    around = event("training step 0", DeviceType.CUDA, 9.0, annotation=True)
    step = event("training step 0", DeviceType.CPU, 0.0, annotation=True)
    averages = [operator, kernel, around, step]
    assert tracing.own_seconds(averages, on_gpu=True) == [(kernel, pytest.approx(5e-6))]
    on_cpu = [e.key for e, _ in tracing.own_seconds([operator, step], on_gpu=False)]
    assert on_cpu == [operator.key]


def test_occupancy_and_roofline_follow_the_data_sheet():
    card = compiled.CARDS["sm_90"]
    # 65,536 registers: 16 programs of 4 warps at 32 registers a thread, 4 at 128
    assert card.resident(32, 0, 4) == 16
    assert card.resident(128, 0, 4) == 4
    assert card.resident(32, 100 * 1024, 4) == 2
    assert card.seconds_of_memory(3350e9) == pytest.approx(1)
    assert card.seconds_of_issue(32 * 132 * 4 * 1.98e9) == pytest.approx(1)


# ---- the report


def row(section: str, contender: str, ms: float = 0, **more) -> dict:
    machine = dict(device="A CPU", device_type="cpu", threads=2, torch="2", triton="3", commit=None)
    told = dict(run="2026-01-01T00:00:00", quick=False, status=OK, command="c", allocator="a")
    timed = dict(median_ms=ms, p20_ms=ms, p80_ms=ms) if ms else {}
    return dict(section=section, contender=contender, **machine, **told) | timed | more


def lif_rows(run_: str, ours: float) -> list[dict]:
    case = spec_of(changed(LIF, T=10)) | dict(run=run_, N=256, gb_per_s=1.0, of_copy=0.5)
    times = {"copy": 1.0, OURS: ours, "torch.compile": 3.0, "snntorch": 30.0}
    return [row("kernels", name, ms, **case) for name, ms in times.items()]


def test_the_newest_run_of_a_case_counts_and_rehearsals_do_not(tmp_path):
    rows = lif_rows("2026-01-02", 2.0) + lif_rows("2026-01-01", 9.0)
    rows += [r | dict(quick=True) for r in lif_rows("2026-01-03", 7.0)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    newest = result_rows.newest(result_rows.read(tmp_path))
    assert [result_rows.median(newest, OURS), len(newest)] == [2.0, 4]
    (tmp_path / "b.jsonl").write_text("no json\n")
    with pytest.raises(UserError, match=r"b\.jsonl, line 1: is not JSON"):
        result_rows.read(tmp_path)


def test_bars_are_judged_from_rows():
    verdicts = {bar.promise.split(", against ")[1]: bar for bar in report.bars(lif_rows("1", 2.0))}
    assert verdicts["torch.compile: at least 1x"].met
    assert verdicts["torch.compile: at least 1x"].measured == "1.50x torch.compile"
    assert verdicts["the best eager peer: at least 5x"].met
    paired = [r | dict(times_ours=0.9) for r in lif_rows("1", 2.0)]  # counts before the medians
    assert [bar.measured for bar in report.bars(paired)] == [
        "0.90x torch.compile",
        "0.90x snntorch",
    ]
    slow = {bar.promise: bar.met for bar in report.bars(lif_rows("1", 7.0))}
    assert list(slow.values()) == [False, False]
    on = row("gradients", networks.EVERY, 5.0, recipe="r", cost=0.04, cost_in_training=0.004)
    assert [bar.met for bar in report.bars([on])] == [False]
    step = row("step", OURS, 5.0, recipe="r", T=4, twin_ratio=1.1)
    assert [bar.met for bar in report.bars([step])] == [True]
    gpu = [r | dict(device_type="cuda") for r in lif_rows("1", 2.0)]
    assert [bar.met for bar in report.bars(gpu)] == [True]  # too small for the bandwidth bar


def test_the_report_writes_between_its_marks(tmp_path):
    rows = lif_rows("2026-01-02", 2.0)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    assert report.write(tmp_path, page)[0] == page
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| 10 | 256 | fp32, contiguous |" in text
    assert "30.0 (15.00x)" in text
    page.write_text("no marks")
    with pytest.raises(UserError, match="has no lines"):
        report.write(tmp_path, page)


def test_the_page_has_a_place_for_results():
    text = (ROOT / "docs/performance.md").read_text()
    assert text.index(report.START) < text.index(report.END)
