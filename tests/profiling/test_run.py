"""The command: what it accepts, what `all` measures, and how it ends."""

import json
from pathlib import Path

import pytest
import torch

from profiling import run
from profiling.harness import session
from profiling.harness.contenders import OURS, Options
from profiling.harness.timing import race
from profiling.render.tables import Grid
from profiling.sections import kernels
from spiketriton.system.errors import EXIT_SIGINT, UserError
from spiketriton_kernels import multistep_lif
from tests.processes import done

ROOT = Path(__file__).resolve().parents[2]


def test_a_mistake_ends_the_command_with_2_and_no_traceback(tmp_path):
    program = (
        f"import runpy; runpy.run_path({str(ROOT / 'profiling/run.py')!r}, run_name='__main__')"
    )
    ended = done("-c", program, "kernels", "--peers", "brian", folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --peers 'brian'")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kernels", "--peers", "brian"], "--peers 'brian': accepted: none, or some of"),
        (["step", "resnet"], "recipe 'resnet': accepted: a TOML file, or one of"),
        (["step", "quickstart", "neuron.kind=relu"], "accepted: a spiking recipe"),
        (["compiled", "--target", "sm_70"], "--target: invalid choice: 'sm_70'"),
        (["compiled", "T=0"], "compiled T='0': accepted: whole numbers from 1"),
        (["compiled", "dtype=fp8"], "compiled dtype='fp8': accepted:"),
        (["kernels", "quickstart"], "kernels takes no 'quickstart'"),
        (["kernels", "--minutes", "-1"], "--threads and --minutes: accepted: numbers from 0"),
        (["first", "--device", "cpu"], "accepted: a GPU, or --quick"),
        (["step", "--cases", "lif*"], "step takes no --cases"),
        (["kernels", "--trace"], "kernels takes no --trace"),
        (["kernels", "--cases", "his"], "accepted: names, * for any text: lif|bn_lif|"),
    ],
)
def test_a_mistake_is_refused_in_one_line(arguments, says, tmp_path):
    with pytest.raises(UserError) as refused:
        run.main([*arguments, "--out", str(tmp_path)])
    assert says in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_all_begins_with_the_most_important_kernels_and_ends_with_the_others():
    """On a GPU whole steps follow the first; none is needed to list them."""
    args, cpu = run.parse(["all"]), Options(torch.device("cpu"))
    work = run.work_of(args, cpu)
    names = [section for section, _ in work]
    assert names == ["kernels", "step", "memory", "gradients", "data", "host", "kernels"]
    first, rest = work[0][1], work[-1][1]
    assert len(first) == kernels.FIRST
    assert [*first, *rest] == kernels.cases(cpu)
    assert rest
    assert [case.spec.get("recipe") for case in work[2][1]] == [None] * 4 + ["fashion_mnist_r20"]
    work = run.work_of(args, Options(torch.device("cuda")))
    assert [section for section, _ in work[:4]] == ["kernels", "modes", "step", "modes"]
    assert work[2][1][0].spec["recipe"] == "spikingjelly_740"


def test_a_session_that_measured_nothing_ends_with_an_error(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--only 'theirs': accepted: names of contenders"):
        run.main(["host", "--quick", "--only", "theirs", "--out", str(tmp_path)])
    monkeypatch.setattr("profiling.harness.peers.version", lambda package: None)
    arguments = [
        "kernels",
        "--quick",
        "--only",
        "norse",
        "--peers",
        "norse",
        "--cases",
        "lif training *",
    ]
    with pytest.raises(UserError, match="nothing was measured: norse is not installed"):
        run.main([*arguments, "--out", str(tmp_path)])


def test_cases_are_chosen_by_name():
    def names(*arguments):
        args = run.parse(["kernels", "--device", "cpu", *arguments])
        ((_, chosen),) = run.work_of(args, run.options_of(args))
        return [session.short(case.spec) for case in chosen]

    chosen = names("--cases", "lif training T=4 *,bn_lif inference *")
    kinds = {tuple(name.split(" ", 3)[:3]) for name in chosen}
    windows = {("bn_lif", "inference", f"T={T}") for T in (4, 10, 16, 32)}
    assert kinds == {("lif", "training", "T=4"), *windows}
    # the sizes in two dtypes, and contiguous memory behind batch norm in training alone
    assert len(chosen) == 5 * 5 * 2
    assert names("--cases", "bn_lif training T=10 16x64x56x56 fp32 contiguous")


def test_a_wrong_result_of_ours_ends_the_command_with_1(monkeypatch, tmp_path):
    mistake = lambda x, **o: multistep_lif(x, **o | dict(reset="none"))  # noqa: E731
    monkeypatch.setattr(kernels, "multistep_lif", mistake)
    arguments = [
        "kernels",
        "--quick",
        "--only",
        OURS,
        "--peers",
        "none",
        "--cases",
        "lif training *",
    ]
    arguments += ["--out", str(tmp_path)]
    assert run.main(arguments) == 1


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
    (file,) = tmp_path.glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["contender"] for row in rows] == ["copy", "eager"]
    shown = capsys.readouterr()
    assert "interrupted: 2 rows are kept in" in shown.err
    assert "lif training" in shown.out


def test_a_pipe_has_no_edge():
    wide = [f"column {i}" for i in range(20)]
    assert " ┃ ".join(wide) in run.shown(Grid("a table", wide, [wide]))
