"""Exit codes: the user's mistake is one line and 2, Ctrl-C is 130, our own keep their traceback."""

import subprocess
import sys

import pytest

from spiketriton.errors import UserError, run_command


def test_a_user_error_is_one_line_and_code_2(capsys):
    def main(argv):
        raise UserError(f"no {argv[0]}\n  at all\u2028here")

    with pytest.raises(SystemExit) as left:
        run_command(main, ["cake"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: no cake at all here\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (143, 143)])
def test_a_command_leaves_with_its_code(returned, code):
    with pytest.raises(SystemExit) as left:
        run_command(lambda argv: returned, [])
    assert left.value.code == code


def test_the_arguments_default_to_those_of_the_process(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["program", "a", "b=c"])
    with pytest.raises(SystemExit):
        run_command(seen.extend)
    assert seen == ["a", "b=c"]


def test_ctrl_c_is_code_130_without_a_traceback(capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        run_command(main, [])
    assert left.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_our_own_mistakes_keep_their_traceback_and_code_1():
    program = "from spiketriton.errors import run_command\nrun_command(lambda argv: 1 // 0, [])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr
