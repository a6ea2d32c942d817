"""spiketriton in Python: the same run as by the command, loaded without its data."""

import builtins
import copy
import os
import re
import shutil
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn

import spiketriton
from spiketriton import api
from spiketriton.data import build_data
from spiketriton.diagnose.words import change
from spiketriton.models import build_model
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError
from spiketriton.train import main
from spiketriton_kernels import Surrogate
from spiketriton_kernels.nn import IF, LIF
from tests.models.foreign_nets import SnnTorch
from tests.small_data import make_class_tree
from tests.small_runs import (
    QUICK,
    Lines,
    assert_equal,
    last_state,
    small_recipe,
    small_trainer,
    untimed,
)

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_python_and_the_command_make_the_same_run(recipe, capsys):
    keys = {"neuron.kind": "if", "model.width": 8}
    run = spiketriton.train(recipe, run_dir="python", epochs=2, seed=3, **keys)
    shown = capsys.readouterr().out
    overrides = ["train.epochs=2", "seed=3", "neuron.kind=if", "model.width=8"]
    assert main([recipe, *overrides, "--run-dir", "command"]) == 0
    assert_equal(last_state(Path("command")), last_state(Path("python")))
    rows = [untimed(RunFolder(Path(name)).metrics.read()) for name in ("command", "python")]
    assert rows[0] == rows[1]
    assert "plan: 14 steps of 16 images" in shown
    assert repr(run) == "Run('python', resnet8 on digits, step 14)"


def test_predictions_of_threads_take_turns_whatever_mode_the_network_is_left_in(quick):
    """Or one that ends puts another's network into training mode, which moves its statistics for good."""
    run = spiketriton.train(quick, run_dir="run", epochs=1, quiet=True)
    images = torch.rand(12, 1, 8, 8)
    expected = run.predict(images)
    seen, inside = [], []

    def enter(model, given):
        inside.append(1)
        time.sleep(0.02)

    def leave(model, given, out):
        seen.append((len(inside), model.training))
        inside.pop()

    run.model.register_forward_pre_hook(enter)
    run.model.register_forward_hook(leave)
    run.model.train()
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda k: run.predict(images[k : k + 2]), range(0, 12, 2)))
    assert seen == [(1, False)] * 6
    torch.testing.assert_close(torch.cat(parts), expected)
    assert run.model.training


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="names of files are text elsewhere"
)
def test_a_run_folder_whose_name_is_no_text_is_a_run_folder(quick):
    path = os.fsdecode(b"run\xff")
    assert main([quick, "train.max_steps=2", "--run-dir", path]) == 0
    assert b"run\xff" in (Path(path) / "console.log").read_bytes()
    assert spiketriton.load_run(path).step == 2
    assert main(["--resume", path, "--extend", "train.max_steps=3"]) == 0
    assert spiketriton.load_run(path).step == 3


def test_a_run_is_extended_as_by_the_command(quick):
    spiketriton.train(quick, run_dir="python", quiet=True, epochs=1)
    shutil.copytree("python", "command")
    run = spiketriton.train(resume="python", extend=2, quiet=True)
    assert (run.step, run.recipe.train.epochs) == (14, 2)
    assert main(["--resume", "command", "--extend", "2"]) == 0
    assert_equal(last_state(Path("command")), last_state(Path("python")))
    for epochs, words in ((2, "the run has 2 epochs already"), ("x=3", "accepted: a number of")):
        with pytest.raises(UserError) as caught:
            spiketriton.train(resume="python", extend=epochs, quiet=True)
        assert words in str(caught.value)


def process() -> list[object]:
    """What else in a notebook depends on."""
    return [
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        dict(os.environ),
        list(warnings.filters),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
    ]


def test_the_process_of_a_notebook_is_left_as_it_was(quick, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # not what the recipe asks for
    try:
        before = process()
        run = spiketriton.train(quick, run_dir="run", quiet=True, max_steps=1, deterministic=True)
        assert run.recipe.train.threads == 1
        assert process() == before
        spiketriton.load_run("run")
        assert process() == before
    finally:
        torch.set_num_threads(threads)


MISTAKES = {
    "either a recipe, or resume=RUN": lambda: spiketriton.train(),
    "accepted: either a recipe": lambda: spiketriton.train("small.toml", resume="run"),
    "run_dir contradicts resume": lambda: spiketriton.train(resume="run", run_dir="a"),
    "extend needs resume=RUN": lambda: spiketriton.train("small.toml", extend=5),
    "the first of two is a str": lambda: spiketriton.train("small.toml", "small.toml"),
    "train.epoch; did you mean": lambda: spiketriton.train("small.toml", epoch=2),
    'train.epochs = "2"': lambda: spiketriton.train("small.toml", epochs="2"),
    "train is a table; accepted": lambda: spiketriton.train("small.toml", train={}),
    "nowhere does not exist": lambda: spiketriton.load_run("nowhere", epochs=3),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_named(quick, words):
    with pytest.raises(UserError, match=re.escape(words)):
        MISTAKES[words]()
    assert [path.name for path in Path().iterdir()] == [quick]


def test_ctrl_c_saves_and_is_raised_and_the_run_continues_with_the_same_bits(
    quick, tmp_path, monkeypatch
):
    small_trainer(tmp_path / "unbroken", *QUICK).fit()

    class Interrupts(Lines):
        def advance(self, step: int) -> None:
            if step == 9:
                signal.raise_signal(signal.SIGINT)

        def stopping(self, text: str) -> None:
            self.note(text)

    display = Interrupts()
    monkeypatch.setattr(api, "make_display", lambda: display)
    with pytest.raises(KeyboardInterrupt):
        spiketriton.train(quick, run_dir="run")
    assert 'continue with spiketriton.train(resume="run")' in display.text
    assert last_state(tmp_path / "run")["step"] == 9
    run = spiketriton.train(resume="run", quiet=True)
    assert run.step == 21
    assert_equal(last_state(tmp_path / "unbroken"), last_state(tmp_path / "run"))


def test_a_run_is_loaded_without_its_data(tmp_path, monkeypatch):
    """And it answers as it did in the test at the end of its training."""
    run, data = tmp_path / "run", build_data(small_recipe())
    trainer = small_trainer(run)
    accuracy = trainer.fit().progress.test_score
    monkeypatch.setattr("spiketriton.training.trained.build_data", lambda _: pytest.fail("data"))
    loaded = spiketriton.load_run(run)
    raw = data.test.dataset.split.read(data.test.members)
    labels = data.test.dataset.split.labels[torch.from_numpy(data.test.members)]
    found = loaded.predict(raw)
    assert found.shape == (50, 10)
    assert torch.allclose(found.sum(1), torch.ones(50))
    assert (found.argmax(1) == labels).double().mean().item() == accuracy
    assert torch.equal(loaded.predict(raw.double() / 255), found)
    assert torch.equal(loaded.predict((raw.float() / 255).numpy(), batch_size=50), found)
    grey = [Image.fromarray(image[0].numpy()) for image in raw[:3]]
    assert torch.equal(loaded.predict(grey), found[:3])
    assert torch.equal(loaded.predict(grey[1]), found[1:2])
    grey[2].save(tmp_path / "two.png")
    assert torch.equal(loaded.predict([tmp_path / "two.png"]), found[2:3])
    large = grey[0].resize((24, 16), Image.Resampling.BILINEAR)
    assert torch.equal(loaded.predict([large, grey[1]])[1:], found[1:2])
    assert torch.allclose(loaded.predict([large, grey[1]])[:1], loaded.predict(large), atol=1e-6)
    assert loaded.classes == tuple("0123456789")
    assert not loaded.model.training


def test_photographs_are_cropped_as_the_test_images_are(tmp_path):
    make_class_tree(tmp_path / "data", ("train", "val"), ("a", "b"), 3)
    keys = [
        "data.name=imagefolder", f"data.root={tmp_path / 'data'}", "data.train_images=0",
        "data.test_images=0", "train.batch_size=2", "data.image_size=32", "train.max_steps=2",
    ]  # fmt: skip
    trainer = small_trainer(tmp_path / "run", *keys)
    trainer.fit()
    run = spiketriton.load_run(tmp_path / "run")
    paths = sorted((tmp_path / "data" / "val").rglob("*.JPEG"))
    images = torch.cat([images for images, _ in trainer.data.test])
    with torch.no_grad():
        expected = run.model(images).mean(0).softmax(1)
    assert torch.allclose(run.predict(paths), expected, atol=1e-6)
    pictures = [Image.open(path) for path in paths]
    assert torch.allclose(run.predict(pictures), expected, atol=1e-6)
    sideways = pictures[0].getexif()
    sideways[ExifTags.Base.Orientation] = 6
    pictures[0].save(tmp_path / "turned.png", exif=sideways)
    turned = run.predict([tmp_path / "turned.png", Image.open(tmp_path / "turned.png")])
    assert torch.equal(turned[0], turned[1])
    assert not torch.allclose(turned[0], expected[0], atol=1e-3)
    assert run.predict(torch.rand(2, 3, 40, 50)).shape == (2, 2)


WRONG = {
    "no image": ([], "no image was given"),
    "other channels": (torch.zeros(1, 3, 8, 8), "images of shape (1, 3, 8, 8)"),
    "no batch": (torch.zeros(1, 8, 8), "images of shape (1, 8, 8)"),
    "too bright": (torch.full((1, 1, 8, 8), 1.01), "values from 1.01 to 1.01"),
    "nan": (torch.full((1, 1, 8, 8), torch.nan), "values from nan"),
    "integers": (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "images of torch.int64"),
    "a word": ("nowhere.png", "cannot read image nowhere.png: "),
    "a number": ([3], "an image of type int"),
    "a list of dark ones": ([-torch.ones(1, 8, 8)], "values from -1 to -1"),
    "no sequence": (3, "images: a value of type int; accepted: float [B, 1, H, W]"),
}


@pytest.mark.parametrize(("images", "words"), WRONG.values(), ids=WRONG)
def test_images_that_do_not_fit_are_refused(small_run, images, words):
    with pytest.raises(UserError, match=re.escape(words)):
        small_run.predict(images)


def test_answers_do_not_depend_on_the_mode_that_the_network_is_left_in(small_run):
    images = torch.rand(4, 1, 8, 8)
    found, accuracy = small_run.predict(images), small_run.evaluate().accuracy
    small_run.model.train()  # of which batch norm would take its statistics from these images, and keep them
    assert torch.equal(small_run.predict([*images]), found)
    assert small_run.evaluate().accuracy == accuracy
    assert small_run.model.training
    small_run.model.eval()
    assert torch.equal(small_run.predict(images), found)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda run: run.predict(torch.rand(1, 1, 8, 8), batch_size=-1),
            "batch_size = -1: accepted",
        ),
        (lambda run: run.evaluate(0), "steps = 0: accepted: an integer from 1 on"),
        (lambda run: run.evaluate(1.5), "steps = 1.5: accepted: an integer from 1 on"),
        (
            lambda run: spiketriton.load_run(run.path, epochs=3),
            r"train\.epochs: a trained run takes",
        ),
    ],
)
def test_what_a_run_does_not_take_is_named(small_run, call, words):
    with pytest.raises(UserError, match=words):
        call(small_run)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "run"
    small_trainer(path, "train.max_steps=2").fit()
    return spiketriton.load_run(path)


def test_a_key_may_move_a_run(small_run):
    moved = spiketriton.load_run(small_run.path, **{"data.root": "/elsewhere"})
    assert moved.recipe.data.root == "/elsewhere"


def test_metrics_as_a_table(small_run, monkeypatch):
    monkeypatch.setattr(api.importlib.util, "find_spec", lambda name: None)  # no pandas
    rows = RunFolder(small_run.path).metrics.read()
    found = small_run.metrics
    assert list(found["kind"]) == ["train", "eval"]
    assert found["loss"][0] == rows[0]["loss"]
    assert np.isnan(found["loss"][1])


class Chain(nn.Module):
    """Layers that begin as the identity, and neurons, [T, B, 8] -> [T, B, 3]."""

    def __init__(self, width: float) -> None:
        super().__init__()
        surrogate = Surrogate("atan", width=width)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(48))
        self.neurons = nn.ModuleList(LIF(surrogate=surrogate) for _ in range(48))
        self.fc = nn.Linear(8, 3)
        for layer in self.layers:
            nn.init.eye_(layer.weight)

    def forward(self, x):
        for layer, neuron in zip(self.layers, self.neurons, strict=True):
            x = neuron(4 * layer(x))
        return self.fc(x)


@pytest.mark.parametrize(
    ("optimizer", "word"),
    [("sgd", "exploding"), ("adamw", "no obstacle found")],
)
def test_any_network_of_neurons_is_diagnosed_and_left_alone(optimizer, word):
    torch.manual_seed(0)
    net, x, y = Chain(5.0), torch.randn(4, 16, 8), torch.arange(16) % 3
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    found = spiketriton.diagnose(
        net, [x, y], optimizer=optimizer, tries=2
    )  # as a DataLoader gives them
    assert found.names == tuple(f"neurons.{i}" for i in range(48))
    assert found.measured.grad_input_rms.shape == (48, 4)
    assert found.verdict.backward.word == word
    assert ("exploding backward" in str(found).splitlines()[0]) == (word == "exploding")
    assert_equal(before, net.state_dict())
    assert type(net.neurons[0]) is LIF
    assert torch.equal(torch.get_rng_state(), state)
    own = spiketriton.diagnose(
        net,
        x,
        loss=lambda out: nn.functional.cross_entropy(out.mean(0), y),
        time_first=True,
        optimizer=optimizer,
        tries=0,
    )
    assert np.allclose(own.measured.grad_input_rms, found.measured.grad_input_rms)


X = torch.zeros(4, 16, 8)


@pytest.mark.parametrize(
    ("batch", "options", "words"),
    [
        ((X, torch.zeros(5)), {}, "5 labels for inputs"),
        (X, {}, "inputs without labels need a loss"),
        ((X, torch.zeros(16)), {"optimizer": "adam"}, "accepted: sgd, adamw, muon"),
        ((X, torch.zeros(16)), {}, "labels torch.float32 from 0 to 0; accepted: int64"),
        ((X, torch.full([16], 99)), {}, "labels torch.int64 from 99 to 99; accepted: int64 from 0"),
        ((X, torch.zeros(16)), {"tries": -1}, "tries = -1: accepted: an integer from 0 on"),
        ((X, torch.zeros(16)), {"time_steps": 0}, "time_steps = 0: accepted: an integer from 1 on"),
        ((X, torch.zeros(16), 1), {}, "a batch of Tensor, Tensor, int; accepted: "),
    ],
)
def test_what_cannot_be_diagnosed_is_named(batch, options, words):
    with pytest.raises(UserError, match=words):
        spiketriton.diagnose(Chain(1.0), batch, **options)


class Convolutions(nn.Module):
    """Two convolutions, [T, B, 1, 8, 8] -> [T, B, 10]; with `around`, the second is a residual branch."""

    def __init__(self, around: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.around = around
        self.convs = nn.ModuleList((nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)))
        self.neurons = nn.ModuleList((LIF(decay_input=False, v_threshold=0.1), LIF(tau=2.0)))
        self.fc = nn.Linear(4 * 64, 10)
        self.convs[1].weight.data.mul_(scale)

    def forward(self, x):
        first = self.neurons[0](self.convs[0](x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        x = self.neurons[1](self.convs[1](first.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return self.fc((first + x if self.around else x).flatten(2))


SHOWN = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10


def test_what_would_help_a_silent_net_of_ones_own_is_tried():
    torch.manual_seed(0)
    net = Convolutions(scale=0.01)
    found = spiketriton.diagnose(net, SHOWN, tries=30)  # images, of a net that takes [T, B, ...]
    assert found.measured.grad_input_rms.shape == (2, 4)
    assert (found.verdict.word, found.verdict.forward.arrives) == ("silent", False)
    norm, *_ = found.trials.changed
    assert found.trials.images == 16
    assert norm in found.trials.helped
    words = "batch norm in front of every neuron"
    assert f"lower with {words} ({norm[1]:.3g})" in str(found).splitlines()[-1]
    assert all(not hasattr(neuron, "norm_in_front") for neuron in net.neurons)
    assert spiketriton.diagnose(net, SHOWN, tries=0).trials is None
    around = Convolutions(around=True, scale=0.01)
    found = spiketriton.diagnose(around, SHOWN)
    assert found.verdict.forward.rate < 1e-3
    assert (found.verdict.obstacles, found.trials) == ((), None)


class Deep(nn.Module):
    """Layers of the usual start, with their norms, [T, B, 64] -> [T, B, 10]; with `skip`, around one of them."""

    def __init__(self, depth: int = 24, skip: bool = False, width: float = 0.3) -> None:
        super().__init__()
        self.skip, surrogate = skip, Surrogate("atan", width=width)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(64) for _ in range(depth))
        self.neurons = nn.ModuleList(
            LIF(decay_input=False, surrogate=surrogate) for _ in range(depth)
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        for n, (layer, norm, neuron) in enumerate(
            zip(self.layers, self.norms, self.neurons, strict=True)
        ):
            y = neuron(norm(layer(x).flatten(0, 1)).unflatten(0, x.shape[:2]))
            x = x + y if self.skip and n == 9 else y
        return self.fc(x)


def test_as_many_images_as_time_steps_are_read_as_a_person_says():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), LIF(2.0, decay_input=False), nn.Linear(12, 3))
    x, y = torch.randn(9, 9, 6), torch.arange(9) % 3
    words = "are 9 images of 9 time steps, or 9 images without time; accepted: time_first=True"
    with pytest.raises(UserError, match=words):
        spiketriton.diagnose(net, (x, y), tries=0)
    found = spiketriton.diagnose(net, (x, y), time_first=True, tries=0)
    assert found.measured.grad_input_rms.shape == (1, 9)
    assert api._has_time(x, y, False) is False
    with pytest.raises(UserError, match="time_first=False; accepted: a label for each image"):
        spiketriton.diagnose(net, (x[:5], y), time_first=False)


def test_a_network_of_a_recipe_is_measured_by_what_its_recipe_reads():
    recipe = small_recipe("loss.read=last", "model.name=mlp", "model.depth=2", "time_steps=3")
    torch.manual_seed(0)
    net = build_model(recipe, classes=10, channels=1, image_size=8)
    found = spiketriton.diagnose(net, (torch.randn(6, 1, 8, 8), torch.arange(6)), tries=0)
    assert not found.measured.direct[:, :-1].any()
    assert found.verdict.credit == found.measured.credit[:, 0].min() > 0


def test_a_lost_signal_is_named_where_the_layers_form_a_chain():
    torch.manual_seed(0)
    batch = torch.randn(32, 64), torch.arange(32) % 10
    lost, short = (spiketriton.diagnose(Deep(depth), batch, tries=0) for depth in (24, 19))
    assert lost.overlap[-1] < 0.25
    assert (lost.verdict.word, short.verdict.word) == ("lost", "not judged")
    assert spiketriton.diagnose(Deep(24, skip=True), batch, tries=0).verdict.forward.judged is None
    other = Deep(24)
    other.neurons = nn.ModuleList(IF() for _ in range(24))  # of which no row tells
    assert spiketriton.diagnose(other, batch, tries=0).verdict.forward.judged is None


def test_a_growing_gradient_of_a_chain_of_ones_own_is_tried_with_a_limit():
    torch.manual_seed(0)
    batch = torch.randn(4, 16, 64), torch.arange(16) % 3
    found = spiketriton.diagnose(Deep(48, width=1.0), batch, optimizer="sgd", tries=2)
    assert found.verdict.word == "exploding"
    assert [change(cure) for cure, _ in found.trials.changed] == [
        "a limit of 1 on the gradient's norm"
    ]
    around = spiketriton.diagnose(Deep(48, skip=True, width=1.0), batch, optimizer="sgd", tries=0)
    assert around.verdict.backward.ratio > 1e3
    assert around.verdict.word == "not judged"


def test_how_a_network_is_called_is_found_out():
    steps = torch.rand(6, 16, 1, 8, 8)
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    one = nn.Sequential(nn.Conv2d(1, 4, 3), neuron.LIFNode(), nn.Flatten(), nn.Linear(144, 10))
    for net, x, names, shape in (
        (Convolutions(), SHOWN[0], ("neurons.0", "neurons.1"), (2, 5)),
        (Convolutions(), steps, ("neurons.0", "neurons.1"), (2, 6)),
        (one, SHOWN[0], ("1",), (1, 5)),
        (one, steps, ("1",), (1, 6)),
    ):
        found = spiketriton.diagnose(net, (x, SHOWN[1]), time_steps=5, tries=0)
        assert (found.names, found.measured.grad_input_rms.shape) == (names, shape)
    with pytest.raises(
        UserError, match=r"Convolutions answers to no x of \[16, 3\]: as given: .*; time first: "
    ):
        spiketriton.diagnose(Convolutions(), (torch.rand(16, 3), SHOWN[1]))


def test_a_net_without_a_neuron_that_can_be_measured_is_told_why():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match="Sequential calls no spiking neuron; accepted: neurons of"):
        spiketriton.diagnose(linear, SHOWN)
    pytest.importorskip("snntorch")
    loop = SnnTorch(1, 10, 4)
    loop.neuron = nn.Identity()
    with pytest.raises(
        UserError, match=r"none of the neurons of SnnTorch can be measured: leaky \("
    ):
        spiketriton.diagnose(loop, SHOWN)


def test_train_is_a_module_and_a_function():
    import spiketriton.train as module

    assert spiketriton.train is module
    assert callable(module)
    assert module.main is main
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        builtins.getattr(spiketriton, "trian")  # noqa: B009


def test_several_processes_of_torchrun_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"WORLD_SIZE = 2 .*accepted: torchrun"):
        spiketriton.train("quickstart")


def test_hooks_are_told_and_one_that_returns_true_ends_the_run_saved(quick):
    told = []
    run = spiketriton.train(
        quick,
        run_dir="run",
        quiet=True,
        on_row=lambda row: told.append(row.pop("step")),  # a copy: the file has it
        on_step=lambda step: step == 5,
        on_checkpoint=lambda path: told.append(path.name),
    )
    assert run.step == 5
    assert told == [4, "last.pt"]
    assert [row["step"] for row in RunFolder(Path("run")).metrics.read()] == [4]
    assert spiketriton.train(resume="run", quiet=True).step == 21
    whole = spiketriton.train(quick, run_dir="whole", quiet=True)
    assert_equal(last_state(Path("run")), last_state(whole.path))
