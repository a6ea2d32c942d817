"""`spiketriton` and `python -m spiketriton`: the list of commands, and each command unchanged."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import spiketriton
from spiketriton.__main__ import dispatch, main
from spiketriton.system.commandline import COMMANDS, Parser, home_of
from spiketriton.system.errors import EXIT_DONE, EXIT_USER, UserError, run_command
from tests.child import environment
from tests.processes import done
from tests.small_runs import SMALL


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_every_module_that_runs_a_command_is_listed_with_its_line(arguments, capsys):
    dispatch(arguments)
    lines = capsys.readouterr().out.splitlines()
    for name, line in COMMANDS.items():
        assert [words for words in lines if words.split() == [name, *line.split()]], name
    folder = Path(spiketriton.__file__).parent
    files = {*folder.glob("*.py"), *folder.glob("*/__main__.py")} - {folder / "config/__main__.py"}
    runnable = {path for path in files if "run_command(main)" in path.read_text()}
    homes = {name: home_of(name).replace(".", "/") + ".py" for name in COMMANDS}
    assert {folder.parent / home for home in homes.values()} == runnable


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_opens_with_its_line(name, capsys):
    with pytest.raises(SystemExit) as leaves:
        import_module(home_of(name)).main(["--help"])
    assert leaves.value.code == EXIT_DONE
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: spiketriton {name} ")
    assert COMMANDS[name] in shown
    assert "\nExit codes: 0 " in shown
    with pytest.raises(UserError, match=f"; spiketriton {name} --help shows what is acc"):
        Parser(name, "").parse_args(["--no-such-option"])


def test_version(capsys):
    dispatch(["--version"])
    assert capsys.readouterr().out == f"spiketriton {spiketriton.__version__}\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trian", "unknown command 'trian'; did you mean train?"),
        ("xyz", f"unknown command 'xyz'; accepted: {', '.join(COMMANDS)}\n"),
        ("--verbose", f"unknown command '--verbose'; accepted: {', '.join(COMMANDS)}\n"),
        ("trainer", "did you mean train?"),
    ],
)
def test_an_unknown_command_is_one_line(name, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["spiketriton", name, "recipe.toml"])
    with pytest.raises(SystemExit) as leaves:
        main()
    assert leaves.value.code == EXIT_USER
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


def test_text_does_not_wait_for_torch(tmp_path):
    """Help and mistakes; in one process, where a torch that is imported stays."""
    helps = [[name, "--help"] for name in COMMANDS]
    slips = [
        ["train", "quickstart", "train.epocs=3"], ["sweep", "quickstart", "sead=1,2"], ["train", "quikstart"],
        ["diagnose", "quickstart", "sead=1"], ["recipes", "quikstart"], ["doctor", "sead=1"],
        ["train", "--resume", "nowhere"], ["import", "nowhere", "quickstart"],
        *([name, "nowhere"] for name in ("evaluate", "convert", "report", "diagnose")),
        ["export", "nowhere", "--to", "torch"], ["predict", "nowhere", "x.png"], ["evaluate", "--stepps", "3"],
    ]  # fmt: skip
    code = (
        "import sys, importlib\n"
        "from spiketriton.system.commandline import home_of\n"
        f"for name, *arguments in {[*helps, *slips, ['recipes']]}:\n"
        "    try:\n"
        "        importlib.import_module(home_of(name)).main(arguments)\n"
        "    except BaseException as error:\n"
        "        print(type(error).__name__, error)\n"
        "    assert 'torch' not in sys.modules, (name, arguments)\n"
        "from spiketriton.__main__ import dispatch\n"
        "dispatch([])\n"
        "assert 'torch' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("SystemExit 0") == len(helps)
    assert ended.stdout.count("UserError ") == len(slips), ended.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "inside", "outside"),
    [
        ("convert run --steps", ("1", "65536"), ("0", "65537")),
        ("convert run --percentile", ("1", "100"), ("0.99", "100.01")),
        ("evaluate run --images", ("1", "1000000"), ("0", "1000001", "1.5")),
        ("export run --to nir --dt", ("1e-09", "1000000000.0"), ("9e-10", "1000000001.0")),
        ("export run --to torch --batch-size", ("1", "10000"), ("0", "10001")),
    ],
)
def test_limits_are_accepted_and_what_lies_beyond_is_not(words, inside, outside):
    name, *words = words.split()
    parse = import_module(home_of(name)).parse
    for value in inside:
        parse([*words, value])
    for value in outside:
        with pytest.raises(UserError, match=f"{words[-1]}: {value}: accepted: "):
            parse([*words, value])


@pytest.mark.parametrize("words", [["quickstart", "--run-dir", ""], ["--resume", ""], [""]])
def test_an_argument_that_is_empty_is_no_wish_for_the_default(words):
    with pytest.raises(UserError, match="an argument is empty"):
        import_module("spiketriton.train").parse(words)


@pytest.mark.filterwarnings("ignore:'spiketriton.evaluate' found in sys.modules")
@pytest.mark.parametrize("arguments", [["nowhere"], ["--jsom"], ["--help"]])
def test_a_command_leaves_as_by_its_own_name(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["spiketriton", "evaluate", *arguments])
    with pytest.raises(SystemExit) as leaves:
        main()
    through = (leaves.value.code, capsys.readouterr())
    with pytest.raises(SystemExit) as leaves:
        run_command(import_module(home_of("evaluate")).main, arguments)
    assert through == (leaves.value.code, capsys.readouterr())
    assert through[0] == (EXIT_DONE if arguments == ["--help"] else EXIT_USER)


def test_a_run_records_the_command_of_its_module(tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    arguments = ["train", "small.toml", "train.max_steps=1", "--run-dir", "a b"]
    assert done("-m", "spiketriton", *arguments, folder=tmp_path).returncode == EXIT_DONE
    (session,) = json.loads((tmp_path / "a b" / "environment.json").read_text())
    command = "spiketriton train small.toml train.max_steps=1 --run-dir 'a b'"
    assert session["command"] == command
