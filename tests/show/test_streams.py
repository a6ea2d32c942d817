"""Output after its reader has gone: dropped, without an error."""

import os
import subprocess
import sys

from spiketriton.show.streams import DroppingFile
from tests.small_runs import environment

CODE = """
import os, sys
from spiketriton.show.streams import survive_closed_output
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
