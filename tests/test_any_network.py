"""A network of other people's, trained from a recipe and from Python: the run folder, resume, diagnosis."""

from pathlib import Path

import pytest
import torch
from torch import nn

import spiketriton
from spiketriton.config import to_toml
from spiketriton.diagnose.ablations import Experiment
from spiketriton.diagnose.diagnosed import Subject
from spiketriton.gradients.prober import Prober
from spiketriton.gradients.through_time import cut_time
from spiketriton.plugins.tasks import build_loss
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError
from spiketriton.train import main
from spiketriton_kernels.nn import LIF
from tests.models.test_foreign import HERE, SMALL_ONES, build, recipe_of
from tests.small_runs import assert_equal, last_state, small_recipe

pytest.importorskip("spikingjelly")
pytestmark = pytest.mark.usefixtures("no_pictures")

SHORT = ["train.max_steps=6", "train.epochs=1", "checkpoint.every=3", "train.log_every=2"]


class Dropped(nn.Module):
    """Draws random numbers, and its neurons are of no library: nothing is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.drop, self.head = nn.Linear(64, 16), nn.Dropout(0.3), nn.Linear(16, 10)

    def forward(self, x):
        x = self.enter(x.flatten(2))
        return self.head(self.drop(x.relu()))


@pytest.mark.parametrize("name", ["Shared", "Recurrent"])
def test_a_recipe_trains_it_resumes_it_and_keeps_what_became_of_it(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(to_toml(recipe_of(f"{HERE}:{name}", *SHORT)))
    assert main(["r.toml", "--run-dir", "whole"]) == 0
    said = capsys.readouterr().out
    assert "swapped: " in said
    assert "operations and energy: not counted" in said
    assert "LIFNode -> LIF" in Path("whole/network.txt").read_text()
    rows = RunFolder(Path("whole")).gradients.read()
    assert {row["time_step"] for row in rows} == {0, 1, 2}
    run = spiketriton.load_run("whole")
    assert run.predict(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    found = run.evaluate()
    assert "has no graph" in found.uncounted
    assert found.accuracy[-1] == last_state(Path("whole"))["test_score"]
    assert [len(layer.rate) for layer in found.layers] == [3] * len(run.model.spiking_layers())
    assert main(["r.toml", "train.max_steps=3", "--run-dir", "part"]) == 0


def test_a_network_in_hand_is_trained_and_resumed_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(to_toml(small_recipe(*SHORT)))
    torch.manual_seed(0)
    net = Dropped()
    before = [p.detach().clone() for p in net.parameters()]
    run = spiketriton.train(net, "small.toml", run_dir="whole", quiet=True)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert not torch.equal(run.model.net.head.weight, net.head.weight)
    assert run.recipe.model.name == "python:Dropped"
    # six steps at once, and as three and three
    checkpoint = Path("whole/checkpoints/last.1.pt")
    assert checkpoint.exists()
    wanted = last_state(Path("whole"))
    Path("whole/checkpoints/last.pt").unlink()
    spiketriton.train(net, resume="whole", quiet=True)
    assert_equal(last_state(Path("whole"))["model"], wanted["model"])
    with pytest.raises(UserError, match=r'handed over; accepted: .* model.name = "module:Net"'):
        spiketriton.load_run("whole")
    loaded = spiketriton.load_run("whole", net=net)
    assert loaded.step == 6
    assert_it_has_what_commands_have(loaded)


def assert_it_has_what_commands_have(run):
    """A report, which evaluates once, and exports."""
    path = run.report()
    assert path == run.path / "report.html"
    assert "has no graph" in path.read_text()
    assert not (run.path / "evaluation").exists()
    path = run.export("torch", "net.pt2", batch_size=2)
    again = torch.export.load(path).module()
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(images), run.model(images))
    assert run.export("safetensors") == run.path / "small.safetensors"
    with pytest.raises(UserError, match=r"export\('nirr'\): accepted: nir, torch, onnx"):
        run.export("nirr")
    with pytest.raises(UserError, match=r"export\('torch', dt=\.\.\.\): accepted: batch_size"):
        run.export("torch", dt=1.0)
    with pytest.raises(UserError, match="graph"):
        run.export("nir")


@pytest.mark.parametrize("name", ["NorseIntegrator", "SnnTorch"])
def test_networks_of_other_libraries_train_and_resume_to_the_same_bits(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(to_toml(recipe_of(f"{HERE}:{name}", *SHORT)))
    run = spiketriton.train("r.toml", run_dir="whole", quiet=True)
    assert run.step == 6
    wanted = last_state(Path("whole"))
    Path("whole/checkpoints/last.pt").unlink()
    spiketriton.train(resume="whole", quiet=True)
    assert_equal(last_state(Path("whole"))["model"], wanted["model"])


def test_a_step_at_which_the_ways_through_time_are_measured_has_rows(tmp_path, monkeypatch):
    """The last one; its neurons see all 9 steps at once, and others where time is cut."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.neuron, self.head = nn.Linear(64, 16), LIF(), nn.Linear(16, 10)

        def forward(self, x):
            return self.head(self.neuron(self.enter(x.flatten(2))))

    monkeypatch.chdir(tmp_path)
    recipe = small_recipe(*SHORT, "time_steps=9", "data.image_size=8")
    Path("small.toml").write_text(to_toml(recipe))
    spiketriton.train(Whole(), "small.toml", run_dir="whole", quiet=True)
    rows = RunFolder(Path("whole")).gradients.read()
    assert {row["step"] for row in rows} == {1, 2, 4, 6}
    assert "credit" in rows[-1]


def test_two_arguments_are_a_network_and_a_recipe():
    with pytest.raises(UserError, match="accepted: train\\(recipe\\), or train\\(net, recipe\\)"):
        spiketriton.train("quickstart", "quickstart")


@pytest.mark.parametrize("name", ["spikingjelly:QKFormer", f"{HERE}:Recurrent"])
def test_time_is_cut_as_in_a_network_of_ours(name):
    """Without the gradient from step to step nothing is carried, and the spikes are the same."""
    model = build(name, **SMALL_ONES[name])
    size = 16 if name.startswith("spikingjelly") else 8
    images = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(1))
    loss = build_loss(recipe_of(name, **SMALL_ONES[name]).loss, ())
    prober = Prober(model, [(images, torch.arange(4))], loss)
    whole = prober.measure()
    with cut_time(model):
        cut = prober.measure()
    torch.testing.assert_close(
        torch.from_numpy(cut.firing_rate), torch.from_numpy(whole.firing_rate)
    )
    assert (cut.grad_carry_rms == 0).all()
    assert (whole.grad_carry_rms > 0).any()


def test_a_diagnosis_keeps_the_networks_own_surrogates():
    """Those of SpikingJelly's Sigmoid(alpha=4); and it tries and proposes nothing that such a recipe refuses."""
    recipe = recipe_of(f"{HERE}:LongSkip", "data.train_images=40")
    experiment = Experiment(Subject(recipe, "recipe"))
    assert list(experiment.widths.values()) == [0.25] * 5
    assert {ablation.override for ablation in experiment.ablations()} == {""}
