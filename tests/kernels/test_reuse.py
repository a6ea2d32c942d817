"""The package in someone else's project: copied, swapped in, and as its page says."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spiketriton_kernels import Surrogate, multistep_lif
from tests.kernels.support import normal

KERNELS = Path(__file__).parents[2] / "kernels"
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


# ---- snnTorch's equations, as the page claims


def leaky(x, beta, threshold, mechanism, delay):
    """snnTorch 1.0's Leaky over a window, from its source: reset at the next step, or in this one."""
    slope = lambda u: 1 / (1 + (torch.pi * u) ** 2)  # noqa: E731

    def spike(u):
        hard = (u > 0).to(u.dtype)
        soft = slope(u.detach()) * u
        return hard + soft - soft.detach()

    mem, spikes = torch.zeros_like(x[0]), []
    for current in x.unbind(0):
        reset = (mem > threshold).to(mem.dtype)
        if mechanism == "zero":
            mem = beta * ((1 - reset) * mem) + current
        else:
            mem = beta * mem + current - (threshold * reset if mechanism == "subtract" else 0)
        s = spike(mem - threshold)
        if not delay:
            mem = mem - (s - reset) * (mem if mechanism == "zero" else threshold)
        spikes.append(s)
    return torch.stack(spikes)


@pytest.mark.parametrize(
    ("mechanism", "delay", "options"),
    [
        ("zero", True, dict(reset="hard", detach_reset=True)),
        ("zero", False, dict(reset="hard", detach_reset=False)),
        ("none", True, dict(reset="none")),
        ("subtract", True, dict(reset="soft", reset_delay=True)),
    ],
)
def test_snntorchs_leaky_where_the_page_says_equal(backend, device, mechanism, delay, options):
    results = []
    for ours in (False, True):
        x = normal((12, 4, 8), torch.float32, device, std=0.9).requires_grad_()
        if ours:
            slope = Surrogate.atan(2.0)
            spikes = multistep_lif(x, decay=0.8, threshold=1.0, surrogate=slope, **options)
        else:
            spikes = leaky(x, 0.8, 1.0, mechanism, delay)
        spikes.backward(normal(x.shape, device=device, seed=1))
        results.append((spikes.detach(), x.grad))
    assert torch.equal(results[0][0].round(), results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)


def test_a_soft_reset_is_another_neuron_than_snntorchs_subtraction():
    """What the page says: there the threshold is taken off after the decay."""
    x = normal((12, 4, 8), std=0.9)
    theirs = leaky(x, 0.8, 1.0, "subtract", True)
    assert not torch.equal(theirs.round(), multistep_lif(x, decay=0.8, reset="soft"))
