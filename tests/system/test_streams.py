"""Output after its reader has gone: dropped, without an error."""

import os
import subprocess
import sys

from spiketriton.system.streams import DroppingFile, survive_closed_output
from tests.child import environment

CODE = """
import os, sys
from spiketriton.system.streams import survive_closed_output
survive_closed_output()
print("first", flush=True)
sys.stdin.readline()
for _ in range(3):
    print("later", flush=True)
print("done", file=sys.stderr)
"""


def test_a_file_whose_reader_has_gone_drops_what_is_written():
    reader, writer = os.pipe()
    file = DroppingFile(writer, "w")
    assert file.write(b"seen") == 4
    assert os.read(reader, 10) == b"seen"
    os.close(reader)
    assert [file.write(b"dropped"), file.write(b"no")] == [7, 2]
    file.close()


def test_a_program_continues_when_its_reader_leaves():
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stderr.read() == b"done\n"
    assert process.wait() == 0
    process.stderr.close()


def test_output_is_text_line_by_line_in_the_encoding_it_had(monkeypatch, tmp_path):
    files = [(tmp_path / name).open("w", encoding="latin-1", errors="replace") for name in "oe"]
    monkeypatch.setattr(sys, "stdout", files[0])
    monkeypatch.setattr(sys, "stderr", files[1])
    survive_closed_output()
    print("ü€")
    assert (tmp_path / "o").read_bytes() == b"\xfc?\n"  # at the end of the line, not of the program
    sys.stdout.close()
    sys.stderr.close()
    for file in files:
        file.write("still open")
        file.close()


PRINTS = "from spiketriton.system.errors import run_command\nrun_command(lambda _: print('width ─ 2 → ü €'))"


def printed(stdout: str, **variables: str) -> subprocess.CompletedProcess:
    """A command whose stdout the shell opens so."""
    script = f'exec {sys.executable} -c "$0" {stdout}'
    return subprocess.run(
        ["bash", "-c", script, PRINTS], capture_output=True, env=environment(**variables)
    )


def test_output_for_which_there_is_no_room_is_an_error_in_one_line():
    done = printed("> /dev/full")
    lost = b"error: not all of the output could be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, lost)
