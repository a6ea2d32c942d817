"""The suite's tests are fit for a machine with a GPU, as far as a machine without one can tell."""

import ast
import subprocess
import sys
from pathlib import Path

from tests.child import environment

HERE = Path(__file__).parent


def test_a_test_that_asks_for_a_device_puts_its_tensors_there():
    """Else Triton would be given CPU tensors on a GPU; one that asks for none is skipped there."""
    wrong = []
    for path in (HERE / "kernels").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
                continue
            if "device" in {argument.arg for argument in node.args.args}:
                names = {
                    one.id
                    for part in node.body
                    for one in ast.walk(part)
                    if isinstance(one, ast.Name)
                }
                wrong += [f"{path.name}::{node.name}"] * ("device" not in names)
    assert not wrong


def test_under_a_claimed_gpu_kernels_ask_for_cuda_and_the_engine_trains_on_the_cpu():
    chosen = [
        "kernels/calls/test_operators.py::test_without_gradients_nothing_is_kept",  # skipped
        "training/gpu/test_graphs.py::test_on_a_cpu_why_there_is_none_is_said_to_who_asked",
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.claimed_gpu",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "-n0", *(str(HERE / name) for name in chosen)],
        env=environment(), cwd=HERE.parent, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
