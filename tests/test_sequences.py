"""Runs on sequences, from the recipe to the report: what works on images works on them."""

import json
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import spiketriton
from spiketriton.config import to_toml
from spiketriton.convert.__main__ import main as convert
from spiketriton.data import build_data
from spiketriton.diagnose.__main__ import main as diagnose
from spiketriton.evaluate.__main__ import main as evaluate
from spiketriton.evaluate.baselines import linear_classifier, shuffled
from spiketriton.export.__main__ import main as export
from spiketriton.neurons import Norm
from spiketriton.predict import main as predict
from spiketriton.report.__main__ import main as report
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError
from spiketriton.train import main as train
from spiketriton.training.trainer import Trainer
from spiketriton_kernels.nn import LIF
from tests.small_runs import Lines, assert_equal, last_state, untimed
from tests.small_sequences import CHANNELS, CLASSES, STEPS, sequence_recipe, tones


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sequences")
    (path / "tones.toml").write_text(to_toml(sequence_recipe()), "utf-8")
    return path


@pytest.fixture(scope="module")
def run(folder):
    """A run on sequences of different lengths."""
    return spiketriton.load_run(trained(folder, "run"), plugins=True)


def trained(folder, name, *overrides):
    assert (
        train([str(folder / "tones.toml"), "--run-dir", str(folder / name), "--quiet", *overrides])
        == 0
    )
    return folder / name


def trainer_in(path, recipe, *, resume=False):
    run = RunFolder.open(path) if resume else RunFolder.create(path, recipe.name)
    trainer = Trainer(recipe, build_data(recipe), run, Lines())
    if resume:
        trainer.resume()
    else:
        trainer.begin()
    run.begin_session(recipe, {})
    return trainer


def test_it_learns(folder):
    path = trained(folder, "learns", "train.epochs=25", "model.width=32", "train.lr=0.01")
    found = spiketriton.load_run(path, plugins=True)
    assert found.metrics["test_accuracy"][-1] > 0.6


@pytest.mark.parametrize(
    "overrides",
    [[], ["loss.read=last"], ["loss.kind=tet", "neuron.kind=psn"], ["model.delays=4"]],
)
def test_a_run_that_was_cut_short_ends_with_the_same_bits(folder, overrides):
    recipe, name = sequence_recipe(*overrides), "-".join(["whole", *overrides]).replace("=", "_")
    whole, cut = folder / name, folder / f"{name}-cut"
    trainer_in(whole, recipe).fit()
    trainer_in(cut, recipe).fit(until=3)
    trainer_in(cut, recipe, resume=True).fit()
    assert_equal(last_state(cut), last_state(whole))
    ours, theirs = (untimed(RunFolder.find(path).metrics.read()) for path in (cut, whole))
    assert ours == theirs


def test_evaluate_counts_valid_steps_and_prints_what_needs_no_time(run, capsys):
    evaluate([str(run.path), "--trust-plugins"])
    said = capsys.readouterr().out
    assert "20 test sequences of tones" in said
    assert "without the order in time: the same net, steps shuffled" in said
    assert "a linear classifier of the mean step" in said
    found = run.evaluate()
    lengths = tones(20, 1).lengths
    mean = [float(lengths.clamp(max=t).double().mean()) for t in range(1, STEPS + 1)]
    assert found.valid_steps == pytest.approx(mean)
    assert found.what == "sequence"
    assert found.macs(STEPS) == pytest.approx((8 * CHANNELS + 16) * mean[-1])
    assert found.values[-1] == run.metrics["test_accuracy"][-1]
    assert np.array(found.raster.image).shape == (CHANNELS, lengths[0])
    assert len(found.raster.answers) == lengths[0]
    for name in ("accuracy.png", "sample.png", "confusion.png", "rates.png"):
        assert (run.path / "evaluation" / name).exists()


def test_spikes_behind_the_end_are_not_counted(run):
    found = run.evaluate()
    test = tones(20, 1)
    spikes = {name: 0.0 for name, _ in run.model.spiking_layers()}
    mean, std = (torch.tensor(x) for x in (run.facts.mean, run.facts.std))
    with torch.no_grad():
        for i in range(20):
            x = (test.read(np.array([i]))[0] - mean) / std
            x = x.unsqueeze(1)
            for layer, name in zip(run.model.layers, spikes, strict=True):
                x = layer(x)
                spikes[name] += float(x.sum())
    places = 8 * int(test.lengths.sum())
    for layer in found.layers:
        of_steps = np.array(layer.rate) * [int((test.lengths > t).sum()) * 8 for t in range(STEPS)]
        assert of_steps.sum() == pytest.approx(spikes[layer.name])
        assert 0 < spikes[layer.name] < places


@pytest.mark.parametrize("delays", [0, 3])
def test_ilif_runs_with_binary_spikes(folder, capsys, delays):
    """Twelve steps of up to two spikes as 24 of one, of sequences of different lengths."""
    keys = ("neuron.kind=ilif", "neuron.levels=2", f"model.delays={delays}")
    path = trained(folder, f"ilif-{delays}", *keys)
    evaluate([str(path), "--trust-plugins", "--binary", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["binary"]["steps"] == 2 * STEPS
    assert found["binary"]["equal"] == found["binary"]["images"] == 20
    assert found["binary"]["accuracy"] == found["values"][-1]


def test_the_report_has_a_sequence(run):
    report([str(run.path), "--trust-plugins"])
    text = (run.path / "report.html").read_text("utf-8")
    assert "sequence" in text


@pytest.mark.parametrize("to", ["onnx", "nir", "torch", "safetensors"])
def test_it_is_exported(run, folder, capsys, to):
    path = folder / f"net.{ {'torch': 'pt2'}.get(to, to) }"
    assert export([str(run.path), "--to", to, "--trust-plugins", "--out", str(path)]) == 0
    assert path.exists()
    said = {"mean": "", "classes": ""}  # what a program needs beside the network
    if to == "torch":
        torch.export.load(path, extra_files=said)
    elif to == "nir":
        said = pytest.importorskip("nir").read(path).metadata
    if to in ("torch", "nir"):
        assert tuple(json.loads(said["classes"])) == run.classes
        assert tuple(json.loads(said["mean"])) == pytest.approx(run.facts.mean)


def session_of(path):
    """onnxruntime's, and what the file says."""
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    said = dict(session.get_modelmeta().custom_metadata_map)
    return session, said


def numbers(words):
    return np.array(json.loads(words), np.float32)


def test_a_file_says_how_its_input_is_made_and_how_its_output_is_read(run, folder, capsys):
    """A program that has the file alone, and signals as they were recorded, answers as `predict`."""
    path = folder / "said.onnx"
    export([str(run.path), "--to", "onnx", "--trust-plugins", "--out", str(path)])
    out = capsys.readouterr().out
    assert "values less mean, divided by std, by channel (metadata), and 0 behind the end" in out
    assert "its answer: the mean over time of its output, of a shorter sequence up to its" in out
    session, said = session_of(path)
    assert tuple(json.loads(said["classes"])) == run.classes
    assert said["read"] == "mean"
    sequences = tones(20, 1).read(np.arange(20))
    given = np.zeros((STEPS, 20, CHANNELS), np.float32)
    for place, one in enumerate(sequences):
        given[: len(one), place] = (one.numpy() - numbers(said["mean"])) / numbers(said["std"])
    (currents,) = session.run(None, {"images": given})
    read = [currents[: len(one), place].mean(0) for place, one in enumerate(sequences)]
    expected = run.predict(sequences)
    torch.testing.assert_close(torch.tensor(np.stack(read)).softmax(1), expected)


def test_a_file_says_in_which_order_pixels_are_permuted(folder):
    keys = {
        "data.sequence": "permuted",
        "data.sequence_seed": 3,
        "time_steps": 64,
        "model.name": "sequence",
    }
    net = {"model.depth": 1, "model.width": 8, "data.image_size": 8}
    run = spiketriton.train(
        "quickstart", run_dir=folder / "permuted", quiet=True, max_steps=1, overrides=keys | net
    )
    session, said = session_of(run.export("onnx", folder / "permuted.onnx"))
    assert said["sequence"] == "permuted"
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    pixels = images.flatten(2).numpy()[:, 0, json.loads(said["order"])].T[:, :, None] / 255
    given = (pixels - numbers(said["mean"])) / numbers(said["std"])
    (currents,) = session.run(None, {"images": given.astype(np.float32)})
    expected = run.predict(images)
    torch.testing.assert_close(
        torch.tensor(currents.mean(0)).softmax(1), expected, rtol=1e-4, atol=1e-5
    )


def test_predictions_are_those_of_the_test(run, folder, capsys):
    test = tones(20, 1)
    sequences = test.read(np.arange(20))
    found = run.predict(sequences)
    right = (found.argmax(1) == test.labels).double().mean()
    assert float(right) == run.metrics["test_accuracy"][-1]
    torch.testing.assert_close(run.predict([sequences[3]]), found[3:4])
    torch.testing.assert_close(run.predict(sequences[3].numpy()[None]), found[3:4])
    path = folder / "one.npy"
    np.save(path, sequences[3].numpy())
    torch.testing.assert_close(run.predict(str(path)), found[3:4])
    predict([str(run.path), str(path), "--trust-plugins", "--json", "--top", "1"])
    said = json.loads(capsys.readouterr().out)
    assert said["classes"] == {
        run.classes[int(found[3].argmax())]: pytest.approx(float(found[3].max()), abs=1e-6)
    }
    for wrong in (np.zeros((1, STEPS + 1, CHANNELS)), np.zeros((1, 2, 2)), "missing.npy", [3]):
        with pytest.raises(UserError):
            run.predict(wrong)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.full((3, CHANNELS), np.nan), "values that are not finite"),
        (np.full((3, CHANNELS), "a"), "an array of <U1; accepted: numbers"),
        (np.zeros((0, CHANNELS)), r"\[0, 3\]; accepted: .* one step or more"),
        (np.zeros((3, CHANNELS + 1)), "of up to 3 steps and 4 channels"),
        (np.zeros((STEPS + 1, CHANNELS)), "of up to 13 steps and 3 channels"),
        (np.zeros(CHANNELS), r"an array \[3\]"),
    ],
)
def test_a_file_that_holds_no_sequence_of_the_run_is_named(run, tmp_path, content, words):
    path = tmp_path / "wrong.npy"
    np.save(path, content)
    with pytest.raises(UserError, match=rf"wrong\.npy.*{words}"):
        run.predict(str(path))


def test_the_twin_runs_and_conversion_is_refused_by_name(folder):
    path = trained(folder, "twin", "neuron.kind=relu")
    run = spiketriton.load_run(path, plugins=True)
    assert run.evaluate().kind == "ann"
    with pytest.raises(UserError, match="sees sequences of tones, other values at each step"):
        convert([str(path), "--trust-plugins"])


def test_delays_narrow_while_they_train_and_all_commands_know_them(folder, capsys):
    path = trained(folder, "delays", "model.delays=5")
    run = spiketriton.load_run(path, plugins=True)
    assert [float(layer.weights.sigma) for layer in run.model.layers] == [0.5, 0.5]
    test = tones(20, 1).read(np.arange(20))
    answers = run.predict(test)
    stream = run.stream()
    for values in test[0]:
        so_far = stream.step(values)
    torch.testing.assert_close(so_far, answers[0])
    found = run.evaluate()
    assert found.values[-1] == run.metrics["test_accuracy"][-1]
    synapses = {layer.name: layer.synaptic_operations for layer in found.layers}
    assert all(count > 0 for count in synapses.values())
    report([str(path), "--trust-plugins"])
    diagnose([str(path), "--trust-plugins"])
    assert export([str(path), "--to", "onnx", "--trust-plugins"]) == 0
    assert export([str(path), "--to", "nir", "--trust-plugins"]) == 0
    assert ": 0 of 1,536 differ" in capsys.readouterr().out


@pytest.fixture(scope="module", params=["neuron.kind=lif", "neuron.kind=relu", "neuron.kind=ilif"])
def recurrent(request, folder):
    """A run whose layers have their own spikes, or rates, back; of three, as of others."""
    name = request.param.replace("=", "_")
    path = trained(folder, f"recurrent-{name}", request.param, "model.recurrent=true")
    return spiketriton.load_run(path, plugins=True)


def test_recurrent_runs_are_evaluated_reported_and_streamed(recurrent, capsys):
    path = str(recurrent.path)
    found = recurrent.evaluate()
    assert found.values[-1] == recurrent.metrics["test_accuracy"][-1]
    assert [layer.name for layer in found.layers] == [f"layers.{i}.neuron.neuron" for i in (0, 1)]
    if found.kind == "spiking":
        diagnose([path, "--trust-plugins"])
        assert "layers.0.neuron" in capsys.readouterr().out
    report([path, "--trust-plugins"])
    sequences = tones(20, 1).read(np.arange(20))
    whole, stream = recurrent.predict(sequences[:4]), recurrent.stream()
    lengths = [len(one) for one in sequences[:4]]
    for one, length, expected in zip(sequences[:4], lengths, whole, strict=True):
        stream.reset()
        for values in one[:length]:
            answer = stream.step(values)
        torch.testing.assert_close(answer, expected)


def test_recurrent_runs_are_exported_or_refused_by_name(recurrent, folder, capsys):
    def to(kind, out):
        return [
            str(recurrent.path),
            "--to",
            kind,
            "--trust-plugins",
            "--out",
            str(folder / f"{recurrent.path.name}-{out}"),
        ]

    for kind in ("torch", "onnx"):
        assert export(to(kind, f"recurrent.{kind}")) == 0
    assert export(to("safetensors", "recurrent.safetensors")) == 0
    with pytest.raises(
        UserError, match=r"that spikes come back a time step later \(model\.recurrent"
    ):
        export(to("nir", "recurrent.nir"))
    kind = recurrent.evaluate().kind
    if kind == "spiking":
        with pytest.raises(
            UserError, match=r"brings spikes back a step later|accepted by --binary"
        ):
            evaluate([str(recurrent.path), "--trust-plugins", "--binary"])


def test_diagnose_takes_a_run_and_a_recipe(run, folder):
    diagnose([str(folder / "tones.toml")])
    diagnose([str(run.path), "--trust-plugins"])


class Mine(nn.Module):
    """Somebody's network, which takes [T, B, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(CHANNELS, 8), LIF(), nn.Linear(8, CLASSES))

    def forward(self, x):
        return self.net(x)


def test_a_network_of_ones_own_is_trained_on_sequences(folder):
    mine = Mine()
    run = spiketriton.train(mine, folder / "tones.toml", run_dir=folder / "mine", quiet=True)
    assert run.model.takes == "time_first"
    test = tones(20, 1)
    right = (run.predict(test.read(np.arange(20))).argmax(1) == test.labels).double().mean()
    assert float(right) == run.metrics["test_accuracy"][-1]
    assert run.evaluate().values[-1] == float(right)


class Gated(nn.Module):
    """What one would have taken without spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.fc = nn.GRU(CHANNELS, 6, 2), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.fc(self.layers(x)[0])


def test_a_gru_is_trained_and_exported_as_any_network(folder, capsys):
    run = spiketriton.train(
        Gated(),
        folder / "tones.toml",
        run_dir=folder / "gru",
        quiet=True,
        overrides={"loss.read": "last"},
    )
    assert "plan: 8 steps of 16 sequences" in (run.path / "console.log").read_text("utf-8")
    sequences = tones(20, 1).read(np.arange(20))
    found = run.predict(sequences)
    assert run.evaluate().values[-1] == run.metrics["test_accuracy"][-1]
    assert run.report().exists()
    torch.testing.assert_close(found[:1], run.predict([sequences[0]]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The tensor attribute")
        assert run.export("torch", folder / "gru.pt2").exists()
    assert run.export("onnx", folder / "gru.onnx").exists()
    with pytest.raises(UserError, match="answers otherwise to a window one step at a time"):
        run.stream()


class Pooled(Mine):
    """It answers once, with the mean over the steps that are valid."""

    seen: ClassVar = []  # lengths of the batches that copies were trained on
    tested: ClassVar = []  # how many sequences of other batches had lengths

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(1, Norm(8))

    def forward(self, x, lengths=None):
        assert self.net[1].masked == (self.training and lengths is not None)
        if self.training and lengths is not None:
            assert lengths.shape == x.shape[1:2]
            self.seen.append(lengths.tolist())
        elif lengths is not None:
            self.tested.append(len(lengths))
        valid = torch.ones(x.shape[:2]) if lengths is None else 1.0 * (steps_of(x) < lengths)
        return (self.net(x) * valid.unsqueeze(2)).sum(0) / valid.sum(0).unsqueeze(1)


def steps_of(x):
    return torch.arange(len(x)).unsqueeze(1)


def test_a_network_of_ones_own_is_given_the_lengths(folder, capsys):
    run = spiketriton.train(Pooled(), folder / "tones.toml", run_dir=folder / "pooled", quiet=True)
    assert "called with [T, B, C] and lengths" in (run.path / "console.log").read_text("utf-8")
    trained_on = [lengths for lengths in Pooled.seen if len(lengths) == 16]
    assert len(trained_on) >= 8  # of two epochs
    assert max(map(max, trained_on)) <= STEPS
    assert len({length for seen in trained_on for length in seen}) > 3
    test = tones(20, 1)
    sequences = test.read(np.arange(20))
    found = run.predict(sequences)
    alone = torch.cat([run.predict([one]) for one in sequences])
    torch.testing.assert_close(found, alone)
    right = (found.argmax(1) == test.labels).double().mean()
    assert float(right) == run.metrics["test_accuracy"][-1]
    Pooled.tested.clear()
    assert run.evaluate().values[-1] == float(right)
    assert sum(Pooled.tested) >= 2 * 20  # each as it is, and with its steps shuffled
    x, y = torch.randn(STEPS, 4, CHANNELS), torch.arange(4)
    lengths = torch.tensor([3, STEPS, 5, 1])
    assert spiketriton.diagnose(run.model, (x, y, lengths), time_first=True).measured.credit.any()


class Wrong(Mine):
    def forward(self, x, lengths=None):
        return self.net(x) if lengths is None else self.net(x)[: int(lengths.max()) // 2]


class Failing(Mine):
    def forward(self, x, lengths=None):
        return self.net(x) if lengths is None else self.net(x)[lengths.missing]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Wrong, r"with lengths answers \[\d+, 2, 4\]; accepted: \[12, 2, 4\], as without"),
        (Failing, "with lengths failed: AttributeError: .*missing"),
    ],
)
def test_lengths_that_a_network_cannot_take_are_refused_before_training(folder, net, words):
    with pytest.raises(UserError, match=words):
        spiketriton.train(net(), folder / "tones.toml", run_dir=folder / "never", quiet=True)


def test_images_are_trained_on_as_rows(folder):
    run = spiketriton.train(
        "quickstart",
        run_dir=folder / "rows",
        quiet=True,
        max_steps=3,
        overrides={
            "data.sequence": "rows",
            "time_steps": 16,
            "model.name": "sequence",
            "model.depth": 1,
            "data.test_images": 20,
        },
    )
    assert run.evaluate().what == "sequence"
    assert run.predict(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    assert run.report().exists()


def test_steps_are_shuffled_within_their_sequence():
    x = torch.arange(24.0).view(6, 2, 2)
    lengths = torch.tensor([6, 3])
    mixed = shuffled(x, lengths, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[3:, 1], x[3:, 1])
    assert torch.equal(mixed[:3, 1].sort(0).values, x[:3, 1])
    assert torch.equal(mixed[:, 0].sort(0).values, x[:, 0])
    assert not torch.equal(mixed[:, 0], x[:, 0])
    full = shuffled(x, None, torch.Generator().manual_seed(0))
    assert torch.equal(full.sort(0).values, x)


def test_the_linear_classifier_finds_the_best_line():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, dtype=torch.float64, generator=generator) * 5 + 2
    labels = (x[:, 0] + 0.5 * x[:, 2] > 3).long()
    assert linear_classifier(x[:300], x[300:], labels[:300], labels[300:], 2) > 0.97
    shifted = linear_classifier(100 * x[:300] - 7, 100 * x[300:] - 7, labels[:300], labels[300:], 2)
    assert shifted > 0.97
    assert linear_classifier(x[:300, 1:2], x[300:, 1:2], labels[:300], labels[300:], 2) < 0.7
