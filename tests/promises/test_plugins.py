"""Parts of one's own in a training: each kind serves, is recorded, resumes, and is named when it is missing."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import spiketriton
from spiketriton.config import to_toml
from spiketriton.predict import main as predict
from spiketriton.system.errors import EXIT_DONE, EXIT_USER, UserError
from tests.processes import done
from tests.small_runs import assert_equal, last_state, small_recipe

MINE = """
import torch
from torch.nn import functional as F
from spiketriton.models import Network
from spiketriton.models.feedforward import FeedForward, Layer
from spiketriton_kernels.nn import LIF, SpikingNeuron
from spiketriton.plugins import loss, model, neuron

__version__ = "2.5"

@model("mine_{tag}")
def net(recipe, parts, *, classes, channels, image_size):
    layer = Layer(parts.conv(channels, 8, 3, 2), parts.norm(8), parts.neuron(8))
    return FeedForward(parts, channels, [layer], 8, classes)

@neuron("slow_{tag}")
def slow(config):
    return LIF(4.0, v_threshold=config.v_threshold)

class Own(SpikingNeuron):
    states = ("v",)

    def step(self, x, v):
        s = self.fire(v + x - 1.0)
        return s, v + x - s

@neuron("bare_{tag}")
class Bare(Own):
    def __init__(self, channels):
        super().__init__()

@neuron("derived_{tag}")
class Derived(LIF):
    pass

@loss("empty_{tag}")
def empty():
    return None

@loss("mse_{tag}")
def mse(config):
    return lambda currents, labels: F.mse_loss(currents.mean(0), F.one_hot(labels, 10).float())

@model("breaks_{tag}")
def breaks(recipe, parts, *, classes, channels, image_size):
    raise ValueError("my own\\nmistake")

@model("misfits_{tag}")
def misfits(recipe, parts, *, classes, channels, image_size):
    layer = Layer(parts.conv(channels, 8, 3, 2), parts.norm(8), parts.neuron(8))
    return FeedForward(parts, channels, [layer], 7, classes)

class Tires(FeedForward):
    def features(self, images, steps):
        (norm,) = (m for m in self.modules() if hasattr(m, "num_batches_tracked"))
        tired = self.training and norm.num_batches_tracked >= 3  # steps; measurements do not count
        return super().features(images[:, 1:] if tired else images, steps)

@model("tires_{tag}")
def tires(recipe, parts, *, classes, channels, image_size):
    layer = Layer(parts.conv(channels, 8, 3, 2), parts.norm(8), parts.neuron(8))
    return Tires(parts, channels, [layer], 8, classes)

@model("wrong_{tag}")
def wrong(recipe, parts, *, classes, channels, image_size):
    return torch.nn.Linear(1, 1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    """A recipe and a plugin beside it, whose parts have names of this test alone."""
    tag = f"{abs(hash(request.node.name)) % 10**8}"
    (tmp_path / "mine.py").write_text(MINE.replace("{tag}", tag))
    text = to_toml(small_recipe("model.width=0", "train.epochs=2"))
    text = text.replace('name = "resnet8"', f'name = "mine_{tag}"')
    text = text.replace('kind = "lif"', f'kind = "slow_{tag}"').replace("tau = 2.0\n", "")
    text = text.replace('kind = "cross_entropy"', f'kind = "mse_{tag}"')
    idle = ("shortcut_gradient", "residual_", "checkpoint_blocks", "decay_input")
    text = "".join(line for line in text.splitlines(True) if not line.startswith(idle))
    text = text.replace("modules = []", 'modules = ["mine.py"]')
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spiketriton.training.session.draw_run", lambda *_: [])
    return tmp_path


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return done("-m", "spiketriton.train", *words, folder=cwd)


def test_own_parts_train_and_resume_in_another_process(folder):
    run = spiketriton.train("mine.toml", run_dir="unbroken", quiet=True)
    assert [type(n).__name__ for _, n in run.model.spiking_layers()] == ["LIF"]
    assert run.model.spiking_layers()[0][1].extra_repr().startswith("tau=4")
    assert run.metrics["loss"][0] < 1  # the mean square of currents near 0: no cross-entropy
    shutil.copytree("unbroken", "killed")
    Path("killed/checkpoints/last.1.pt").rename("killed/checkpoints/last.pt")
    (folder / "elsewhere").mkdir()
    ended = command("--resume", "../killed", "--trust-plugins", cwd=folder / "elsewhere")
    assert ended.returncode == EXIT_DONE, ended.stderr
    assert_equal(last_state(Path("unbroken")), last_state(Path("killed")))


def test_a_missing_plugin_is_named_and_may_have_moved(folder, capsys):
    assert command("mine.toml", "train.max_steps=2", "--run-dir", "run", cwd=folder).returncode == 0
    (folder / "new").mkdir()
    (folder / "mine.py").rename(folder / "new" / "mine.py")
    ended = command("--resume", "run", "--trust-plugins", cwd=folder)
    assert ended.returncode == EXIT_USER
    assert ended.stderr.count("\n") == 1
    for words in ("no such file", "mine.py", "plugins.modules="):
        assert words in ended.stderr, words
    ended = command("--resume", "run", "plugins.modules=new/mine.py", cwd=folder)
    assert (ended.returncode, ended.stderr) == (EXIT_DONE, "")
    Image.new("L", (8, 8)).save("a.b=c.png")
    predict(["run", "plugins.modules=new/mine.py", "a.b=c.png"])
    assert capsys.readouterr().out.startswith("a.b=c.png: ")
    with pytest.raises(UserError, match="no file is given; accepted: files"):
        predict(["run", "plugins.modules=new/mine.py"])


def test_a_neuron_of_ones_own_is_not_told_its_channels(folder):
    with pytest.raises(UserError, match=r"threshold_learnt = .channel.*accepted with it: true, f"):
        spiketriton.train("mine.toml", quiet=True, **{"neuron.threshold_learnt": "channel"})


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("wrong", r"made a Linear; accepted: a spiketriton\.models\.Network"),
        ("breaks", r"mine\.py failed: ValueError: my own mistake \(.*mine\.py:\d+\)$"),
        ("misfits", r"mine\.py, shown an image of 1x8x8, failed: RuntimeError: .*mat1 and mat2"),
    ],
)
def test_what_a_part_makes_is_checked(folder, part, said):
    text = Path("mine.toml").read_text().replace('name = "mine_', f'name = "{part}_')
    Path("wrong.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        spiketriton.train("wrong.toml", run_dir="run", quiet=True)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "slow",
            "bare",
            r'"bare_\d+" of the plugin .*mine.py: Bare\(channels\) cannot be called with the recipe\'s \[neuron\] '
            r"\(multiple .*\); accepted: Bare\(config\) or Bare\(config, channels\), where config is the recipe's",
        ),
        (
            "slow",
            "derived",
            r"Derived\(tau=2.0, .* \(these are the arguments of the class that it is",
        ),
        (
            "mse",
            "empty",
            r"empty\(\) cannot be called with the recipe's \[loss\] \(too many positional arguments\); "
            r"accepted: empty\(config\), where",
        ),
    ],
)
def test_a_part_that_does_not_take_its_table_is_named_with_its_arguments(folder, old, new, said):
    Path("wrong.toml").write_text(Path("mine.toml").read_text().replace(f'"{old}_', f'"{new}_'))
    with pytest.raises(UserError, match=said):
        spiketriton.train("wrong.toml", run_dir="run", quiet=True)
    assert not Path("run").exists()


def test_a_network_that_fails_in_a_step_is_named_with_its_layer_and_place(folder):
    """The traceback is kept, and so is what was trained before."""
    text = Path("mine.toml").read_text().replace('name = "mine_', 'name = "tires_')
    Path("tires.toml").write_text(text)
    words = ["tires.toml", "checkpoint.every=2", "train.max_steps=9", "--run-dir", "run"]
    ended = command(*words, cwd=folder)
    assert ended.returncode == EXIT_USER
    (line,) = ended.stderr.splitlines()
    assert re.search(
        r"^error: plugins.modules: .*mine.py failed in layers.0.weights: RuntimeError: .*channels.*"
        r"\(.*mine.py:\d+\); SPIKETRITON_TRACEBACK=1 shows its traceback$",
        line,
    ), line
    assert "saved: step 2. To continue:" in ended.stdout
    assert "Traceback (most recent call last)" in Path("run/console.log").read_text()
    ended = done(
        "-m", "spiketriton.train", *words[:-1], "other", folder=folder, SPIKETRITON_TRACEBACK="1"
    )
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
