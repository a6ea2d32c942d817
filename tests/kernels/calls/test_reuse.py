"""The package in someone else's project: copied, swapped in, and as its page says."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[3] / "kernels"
PACKAGE = KERNELS / "spiketriton_kernels"


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Python in a folder, with nothing of this repository on its path but what lies there."""
    names = ("TRITON_INTERPRET", "SPIKETRITON_BACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PYTHONPATH"] = str(folder)
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_imports_torch_triton_and_itself_only():
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            foreign = {name.split(".")[0] for name in names} - allowed
            assert not foreign, f"{path.name} imports {foreign}"


def test_an_interpreter_asked_for_after_triton_is_refused_in_words():
    """Triton's own functions would be compiled ones, and fail in the middle of a kernel."""
    pytest.importorskip("triton")
    code = (
        "import os, torch, triton; os.environ['TRITON_INTERPRET'] = '1'\n"
        "from spiketriton_kernels import multistep_lif; multistep_lif(torch.zeros(2, 2))"
    )
    done = run(KERNELS, "-c", code)
    assert "RuntimeError: TRITON_INTERPRET is set, but was not when triton was" in done.stderr


def test_a_copy_of_the_folder_works_under_another_name(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "neurons")
    code = (
        "import sys, torch, neurons; x = torch.ones(3, 2, 4, requires_grad=True);"
        "neurons.multistep_lif(x).sum().backward(); print(neurons.__file__, x.grad.sum().item());"
        "assert 'spiketriton_kernels' not in sys.modules and 'spiketriton' not in sys.modules"
    )
    done = run(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
