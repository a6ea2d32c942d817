"""What a user has: the wheels alone, in an environment and a folder far from any checkout.

The network of the quickstart is trained there, looks at images without its data, is fine-tuned on five classes of
Fashion-MNIST with mixup and an average of the weights, killed, and continued with the same bits.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest
import torch

import spiketriton
import spiketriton_kernels
from spiketriton.config import to_toml
from spiketriton.data.sources import DEBIAN_FASHION_MNIST
from tests.small_data import make_fashion_mnist
from tests.small_runs import assert_equal, last_state, small_recipe

ROOT = Path(__file__).parents[2]
STEPS = 30
HEAD, CHANGED = ("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")
FIVE = '''
"""The first five classes of Fashion-MNIST: a data set of one's own, made of a built-in one."""
import dataclasses
from spiketriton.data.sources import fashion_mnist
from spiketriton.data.splits import ArraySplit
from spiketriton.plugins import data

@data("five_fashions")
def five_fashions(config):
    whole = fashion_mnist(config)
    def five(split):
        keep = split.labels < 5
        return ArraySplit(split.images[keep], split.labels[keep])
    return dataclasses.replace(
        whole, train=five(whole.train), test=five(whole.test), classes=whole.classes[:5]
    )
'''
FINE_TUNE = {
    "data.name": "five_fashions", "plugins.modules": ["five.py"], "train.init_from": "base",
    "data.train_images": 80, "data.test_images": 20, "train.batch_size": 8, "train.epochs": 3,
    "train.mixup": 0.4, "train.ema": 0.9, "train.threads": 1, "train.log_every": 1, "checkpoint.every": 2,
}  # fmt: skip
USE = """
import ast, sys, torch, spiketriton, spiketriton_kernels
for module in (spiketriton, spiketriton_kernels):
    assert module.__file__.startswith(sys.prefix), module.__file__
run = spiketriton.load_run("base")
shown = run.predict(torch.rand(3, 1, 20, 20))
assert shown.shape == (3, 10) and torch.allclose(shown.sum(1), torch.ones(3)), shown
try:
    run.evaluate()
except FileNotFoundError as error:
    print("no data:", error)
spiketriton.train("quickstart", run_dir="whole", **ast.literal_eval(sys.argv[1]))
"""
READ = """
import spiketriton
run = spiketriton.train(resume="killed", quiet=True)
print(run, run.classes)
found = run.evaluate()
averaged = spiketriton.load_run("killed", checkpoint="ema").evaluate()
print("accuracies", found.accuracy[-1], averaged.accuracy[-1])
rows = run.metrics
(last,) = rows[(rows["kind"] == "eval") & (rows["epoch"] == 3)]["test_accuracy"]
assert abs(last - found.accuracy[-1]) < 1e-6, (last, found.accuracy)
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
    """An environment with wheels of this checkout in it, and torch; nothing of the checkout itself.

    sources: the folders of the wheels' pyproject.toml; those of spiketriton and of its kernels.
    """

    def __init__(self, folder: Path, *sources: Path) -> None:
        self.work, self.environment = folder / "work", folder / "environment"
        self.work.mkdir()
        wheels = folder / "wheels"
        for source in sources:
            build = ["-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
            run([sys.executable, *build], source)
        venv.create(self.environment, with_pip=False, symlinks=True)
        (self.packages,) = self.environment.glob("lib/python*/site-packages")
        # as paths, so that no .pth of an editable installation is read from there
        elsewhere = {Path(torch.__file__).parents[1], Path(sysconfig.get_paths()["purelib"])}
        (self.packages / "elsewhere.pth").write_text("\n".join(map(str, elsewhere)))
        built = [str(wheel) for wheel in wheels.glob("*.whl")]
        assert len(built) == len(sources)
        install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", *built]
        run([sys.executable, "-m", "pip", "--python", str(self.environment), *install], self.work)

    def words(self, *words: str) -> list[str]:
        return [str(self.environment / "bin" / words[0]), *words[1:]]

    def do(self, *words: str) -> str:
        return run(self.words(*words), self.work)

    def code(self) -> dict[str, str]:
        """The installed files of both packages, by their checksums."""
        files = [path for path in self.packages.glob("spiketriton*/**/*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def alone() -> dict[str, str]:
    """The variables of a process that knows nothing of this checkout."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**given, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, env=alone(), capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    pytest.importorskip("hatchling")
    machine = Machine(tmp_path_factory.mktemp("machine"), ROOT, ROOT / "kernels")
    before = machine.code()
    yield machine
    assert machine.code() == before, "nothing that a user does changes the package"


@pytest.fixture(scope="module")
def trained(machine):
    """A network of the quickstart, by the console command."""
    given = ["train.max_steps=2", "data.test_images=20", "train.threads=1", "--run-dir", "base"]
    machine.do("spiketriton", "train", "quickstart", *given)


@pytest.fixture(scope="module")
def keys(machine):
    """Those of the fine-tuning, and the data set of its own beside it."""
    root = DEBIAN_FASHION_MNIST
    if not (root / "train-images-idx3-ubyte.gz").exists():
        root = make_fashion_mnist(machine.work / "data", 200)
    (machine.work / "five.py").write_text(FIVE)
    return {**FINE_TUNE, "data.root": str(root)}


@pytest.fixture(scope="module")
def tuned(machine, trained, keys, tmp_path_factory):
    """What a script prints that loads the network without its data and fine-tunes it."""
    digits = machine.packages / "spiketriton" / "data" / "digits.npz"
    elsewhere = digits.rename(tmp_path_factory.mktemp("digits") / "digits.npz")
    try:
        return machine.do("python", "-c", USE, repr(keys))
    finally:
        elsewhere.rename(digits)


def test_the_wheel_is_whole(machine):
    root = ROOT / "spiketriton"
    names = {str(Path(path).relative_to(machine.packages)) for path in machine.code()}
    for path in root.rglob("*.*"):  # the digits that the quickstart trains on among them
        assert str(path.relative_to(ROOT)) in names or path.suffix == ".pyc"
    kernels = ROOT / "kernels"
    for path in (kernels / "spiketriton_kernels").rglob("*.*"):
        assert str(path.relative_to(kernels)) in names or path.suffix == ".pyc"
    (metadata,) = machine.packages.glob("spiketriton-*/METADATA")
    own = f"Requires-Dist: spiketriton-kernels=={spiketriton.__version__}\n"
    assert own in metadata.read_text(), "both are released under one number"
    assert spiketriton_kernels.__version__ == spiketriton.__version__
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.toml")}
    assert {f"spiketriton/shipped/{name}.toml" for name in recipes} <= names
    listed = machine.do("spiketriton", "recipes")
    assert all(name in listed for name in recipes)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_the_wheel_says_of_which_commit_it_is(machine):
    head, changed = (run(["git", *words], ROOT) for words in (HEAD, CHANGED))
    said = (machine.packages / "spiketriton" / "commit.txt").read_text()
    assert said.split() == [head.strip(), *(["dirty"] if changed else [])]
    (metadata,) = machine.packages.glob("spiketriton-*/METADATA")
    tagged = not changed and run(["git", "tag", "--points-at", "HEAD", "--list", "v[0-9]*"], ROOT)
    behind = "" if tagged else f"+g{head[:7]}{'.dirty' if changed else ''}"
    assert f"\nVersion: {spiketriton.__version__}{behind}\n" in metadata.read_text()


def test_a_commit_with_a_tag_makes_the_wheel_of_that_version_or_none(tmp_path):
    pytest.importorskip("hatchling")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("recipes", "spiketriton"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    you = ["-c", "user.name=a", "-c", "user.email=a@b"]
    run(["git", "init", "-q"], tmp_path)
    run(["git", *you, "commit", "-q", "--allow-empty", "-m", "x"], tmp_path)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    run(["git", "tag", f"v{spiketriton.__version__}"], tmp_path)
    run(build, tmp_path)
    assert (tmp_path / "dist" / f"spiketriton-{spiketriton.__version__}-py3-none-any.whl").exists()
    run(["git", "tag", "-d", f"v{spiketriton.__version__}"], tmp_path)
    run(["git", "tag", "v9.9"], tmp_path)
    with pytest.raises(AssertionError, match=r"this commit is tagged v9\.9, and __version__ is"):
        run(build, tmp_path)


def test_the_kernels_alone_serve_another_project(tmp_path):
    pytest.importorskip("hatchling")
    machine = Machine(tmp_path, ROOT / "kernels")
    assert machine.do("python", "-c", ALONE).split() == ["torch", "True"]


@pytest.mark.slow  # what it needs is in the wheel: the test above
def test_the_quickstart_trains_from_any_folder(machine, trained):
    assert last_state(machine.work / "base")["step"] == 2


@pytest.mark.usefixtures("no_pictures")
def test_a_fine_tuning_continues_with_the_same_bits(tmp_path, monkeypatch):
    """The quick version of what follows: in this process, a small network, not killed but as if."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(to_toml(small_recipe()))
    spiketriton.train("small.toml", run_dir="base", quiet=True, max_steps=2)
    Path("five.py").write_text(FIVE)
    keys = {**FINE_TUNE, "data.root": str(make_fashion_mnist(Path("data"), 200)), "train.epochs": 2}
    whole = spiketriton.train("small.toml", run_dir="whole", quiet=True, **keys)
    shutil.copytree("whole", "killed")
    Path("killed/checkpoints/last.1.pt").rename("killed/checkpoints/last.pt")
    assert spiketriton.load_run("killed").step < whole.step
    continued = spiketriton.train(resume="killed", quiet=True)
    assert continued.classes == ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
    assert_equal(last_state(Path("whole")), last_state(Path("killed")))
    assert continued.evaluate().accuracy[-1] == whole.evaluate().accuracy[-1]


@pytest.mark.slow  # half a minute of a processor, most of it imports
def test_a_trained_network_needs_no_data_and_is_fine_tuned(tuned):
    for words in (
        "no data: ",
        "digits.npz",
        "tensors taken from base",
        "left, of another shape (a new head): fc.weight, fc.bias",
    ):
        assert words in tuned


@pytest.mark.slow
def test_a_killed_fine_tuning_continues_with_the_same_bits_and_is_read(machine, tuned, keys):
    given = [f"{name}={value}" for name, value in keys.items()]
    words = machine.words("spiketriton", "train", "quickstart", *given, "--run-dir", "killed")
    last = machine.work / "killed" / "checkpoints" / "last.pt"
    process = subprocess.Popen(words, cwd=machine.work, env=alone(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not last.exists():
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it had ended already"
    assert 0 < last_state(machine.work / "killed")["step"] < STEPS
    shown = machine.do("python", "-c", READ)
    assert f"step {STEPS}) ('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat')" in shown
    assert "accuracies " in shown
    whole, killed = (last_state(machine.work / name) for name in ("whole", "killed"))
    assert_equal(whole, killed)
    assert "ema" in whole
