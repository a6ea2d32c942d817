"""What a user has: the wheels alone, in an environment and a folder far from any checkout.

The network of the quickstart is trained there, and looks at images without its data.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import spiketriton
import spiketriton_kernels

ROOT = Path(__file__).parents[2]
HEAD, CHANGED = ("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")
USE = """
import sys, torch, spiketriton, spiketriton_kernels
for module in (spiketriton, spiketriton_kernels):
    assert module.__file__.startswith(sys.prefix), module.__file__
run = spiketriton.load_run("base")
shown = run.predict(torch.rand(3, 1, 20, 20))
assert shown.shape == (3, 10) and torch.allclose(shown.sum(1), torch.ones(3)), shown
try:
    run.evaluate()
except FileNotFoundError as error:
    print("no data:", error)
"""
ALONE = """
import sys, torch
from spiketriton_kernels import nn, use_backend
others = {"spiketriton", "torchvision", "rich", "matplotlib"} & {*sys.modules}
assert not others, others
with use_backend("torch"):
    x = torch.randn(4, 2, 8, requires_grad=True)
    nn.LIF()(x).sum().backward()
print("torch", bool(x.grad.abs().sum() > 0))
"""


class Machine:
    """An environment with what `pip install SOURCE` makes of this checkout, and torch; nothing of the checkout itself.

    No package index: torch and its like are there, and what else is needed is in the source.
    """

    def __init__(self, folder: Path, source: Path) -> None:
        self.work, self.environment = folder / "work", folder / "environment"
        self.work.mkdir()
        venv.create(self.environment, with_pip=False, symlinks=True)
        (self.packages,) = self.environment.glob("lib/python*/site-packages")
        # as paths, so that no .pth of an editable installation is read from there
        elsewhere = {Path(torch.__file__).parents[1], Path(sysconfig.get_paths()["purelib"])}
        (self.packages / "elsewhere.pth").write_text("\n".join(map(str, elsewhere)))
        install = ["install", "--quiet", "--no-index", "--no-build-isolation", "--no-compile"]
        pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(self.environment)]
        run([*pip, *install, str(source)], self.work)

    def do(self, *words: str) -> str:
        return run([str(self.environment / "bin" / words[0]), *words[1:]], self.work)

    def code(self) -> dict[str, str]:
        """The installed files of both packages, by their checksums."""
        files = [path for path in self.packages.glob("spiketriton*/**/*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(words: list[str], folder: Path) -> str:
    """In a process that knows nothing of this checkout."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    given |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=folder, env=given, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    pytest.importorskip("hatchling")
    machine = Machine(tmp_path_factory.mktemp("machine"), ROOT)
    before = machine.code()
    yield machine
    assert machine.code() == before, "nothing that a user does changes the package"


def test_the_wheel_is_whole(machine):
    root = ROOT / "spiketriton"
    names = {str(Path(path).relative_to(machine.packages)) for path in machine.code()}
    for path in root.rglob("*.*"):  # the digits that the quickstart trains on among them
        assert str(path.relative_to(ROOT)) in names or path.suffix == ".pyc"
    kernels = ROOT / "kernels"
    for path in (kernels / "spiketriton_kernels").rglob("*.*"):
        assert str(path.relative_to(kernels)) in names or path.suffix == ".pyc"
    (metadata,) = machine.packages.glob("spiketriton-*/METADATA")
    assert "spiketriton-kernels" not in metadata.read_text(), "they are inside, not on an index"
    assert spiketriton_kernels.__version__ == spiketriton.__version__, "one number for both"
    recipes = [path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.toml")]
    assert {f"spiketriton/shipped/{path}" for path in recipes} <= names
    listed = machine.do("spiketriton", "recipes")
    assert all(path.stem in listed for path in recipes)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_the_wheel_says_of_which_commit_it_is(machine):
    head, changed = (run(["git", *words], ROOT) for words in (HEAD, CHANGED))
    for package in ("spiketriton", "spiketriton_kernels"):
        said = (machine.packages / package / "commit.txt").read_text()
        assert said.split() == [head.strip(), *(["dirty"] if changed else [])]
    (metadata,) = machine.packages.glob("spiketriton-*/METADATA")
    tagged = not changed and run(["git", "tag", "--points-at", "HEAD", "--list", "v[0-9]*"], ROOT)
    behind = "" if tagged else f"+g{head[:7]}{'.dirty' if changed else ''}"
    assert f"\nVersion: {spiketriton.__version__}{behind}\n" in metadata.read_text()


def test_kernels_of_another_commit_are_refused(machine):
    """As `pip install spiketriton-kernels` of another day puts them over those that the wheel has."""
    if not (machine.packages / "spiketriton/commit.txt").exists():
        pytest.skip("this is no checkout")
    file = machine.packages / "spiketriton_kernels/commit.txt"
    said = file.read_text()
    file.write_text("0123456789\n")
    try:
        for words in (
            ["spiketriton", "doctor"],
            ["python", "-m", "spiketriton.train", "quickstart"],
            ["python", "-c", "from spiketriton import train"],
        ):
            with pytest.raises(AssertionError) as failed:
                machine.do(*words)
            (line,) = re.findall(
                r"[eE]rror: (spiketriton is.*?--force-reinstall\))", str(failed.value)
            )
            assert f" of commit {said[:7]}, and the spiketriton_kernels in" in line
            assert "are of 0123456; accepted: both of one commit" in line
    finally:
        file.write_text(said)


def test_a_commit_with_a_tag_makes_wheels_of_that_version_or_none(tmp_path):
    pytest.importorskip("hatchling")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("recipes", "spiketriton", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    you = ["-c", "user.name=a", "-c", "user.email=a@b"]
    run(["git", "init", "-q"], tmp_path)
    run(["git", *you, "commit", "-q", "--allow-empty", "-m", "x"], tmp_path)
    commit = run(["git", "rev-parse", "--short=7", "HEAD"], tmp_path).strip()
    own = spiketriton.__version__

    def built() -> dict[str, zipfile.ZipFile]:
        shutil.rmtree(tmp_path / "dist", ignore_errors=True)
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d"]
        for source in (tmp_path, tmp_path / "kernels"):
            run([*build, str(tmp_path / "dist")], source)
        return {path.name: zipfile.ZipFile(path) for path in (tmp_path / "dist").glob("*.whl")}

    assert {*built()} == {
        f"{name}-{own}+g{commit}-py3-none-any.whl"
        for name in ("spiketriton", "spiketriton_kernels")
    }
    run(["git", "tag", f"v{own}"], tmp_path)
    wheels = built()
    assert {*wheels} == {
        f"{name}-{own}-py3-none-any.whl" for name in ("spiketriton", "spiketriton_kernels")
    }
    wheel = wheels[f"spiketriton-{own}-py3-none-any.whl"]
    metadata = wheel.read(f"spiketriton-{own}.dist-info/METADATA").decode()
    assert f"Requires-Dist: spiketriton-kernels==={own}\n" in metadata, "not of another commit"
    assert not [name for name in wheel.namelist() if name.startswith("spiketriton_kernels")]
    run(["git", "tag", "-d", f"v{own}"], tmp_path)
    run(["git", "tag", "v9.9"], tmp_path)
    with pytest.raises(AssertionError, match=r"this commit is tagged v9\.9, and __version__ is"):
        built()


def test_the_kernels_alone_serve_another_project(tmp_path):
    pytest.importorskip("hatchling")
    machine = Machine(tmp_path, ROOT / "kernels")
    assert machine.do("python", "-c", ALONE).split() == ["torch", "True"]


@pytest.mark.slow  # half a minute of a processor, most of it imports
def test_the_quickstart_trains_from_any_folder_and_needs_no_data_afterwards(machine, tmp_path):
    given = ["train.max_steps=2", "data.test_images=20", "train.threads=1", "--run-dir", "base"]
    machine.do("spiketriton", "train", "quickstart", *given)
    digits = machine.packages / "spiketriton" / "data" / "digits.npz"
    elsewhere = digits.rename(tmp_path / "digits.npz")
    try:
        said = machine.do("python", "-c", USE)
    finally:
        elsewhere.rename(digits)
    assert "no data: " in said
    assert "digits.npz" in said
