"""Exit codes: the user's mistake is one line and 2, Ctrl-C is 130, our own keep their traceback."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spiketriton.system import errors
from spiketriton.system.errors import UserError, run_command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no cake\n  at all\u2028here"), 2, "error: no cake at all here\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a"),
            2,
            "error: a: Permission denied\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_is_no_mistake_of_ours_is_one_line(error, code, said, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as left:
        run_command(main, [])
    assert (left.value.code, capsys.readouterr().err) == (code, said)


def test_our_own_mistakes_keep_their_traceback_and_code_1():
    program = (
        "from spiketriton.system.errors import run_command\nrun_command(lambda argv: 1 // 0, [])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_ctrl_c_while_importing_is_one_line(tmp_path):
    """A package that takes long to import, in place of torch."""
    (tmp_path / "torch.py").write_text(
        "import time; print('importing', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(tmp_path), str(root), str(root / "kernels")])
    with subprocess.Popen(
        [sys.executable, "-m", "spiketriton.train", "quickstart"],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs, and this with them, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted\n")


def test_the_commands_own_ctrl_c_is_restored_and_an_ignored_one_stays_so(monkeypatch):
    seen = []
    for before in (signal.default_int_handler, signal.SIG_IGN):
        earlier = signal.signal(signal.SIGINT, before)
        try:
            errors.end_quietly_on_interrupt()
            with pytest.raises(SystemExit):
                errors.run_command(lambda _: seen.append(signal.getsignal(signal.SIGINT)), [])
        finally:
            signal.signal(signal.SIGINT, earlier)
    assert seen == [signal.default_int_handler, signal.SIG_IGN]
