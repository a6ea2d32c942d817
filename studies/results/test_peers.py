"""The loops of SpikingJelly and snnTorch: our recipe's network, resumed to the bit, a row of docs/results.md."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from spiketriton.config import load_recipe, to_toml
from spiketriton.models import build_model
from spiketriton.plugins.tasks import Reading
from spiketriton.system.errors import UserError
from studies.results import pages, peers, run
from tests.small_sequences import CHANNELS, CLASSES, STEPS, sequence_recipe

LIBRARIES = list(peers.MAKERS)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(peers, "BATCH", 8)


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten classes of noise of ten brightnesses: 20 training images, two steps an epoch, and 20 to test."""
    root, draw = tmp_path_factory.mktemp("cifar10"), np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 2)):
        for name in range(10):
            (root / split / str(name)).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 30, (8, 8, 3)) + 20 * name
                Image.fromarray(pixels.astype(np.uint8)).save(
                    root / split / str(name) / f"{i}.jpg", quality=95
                )
    return root


def train(library, images, out, *words):
    given = ["--library", library, "--data", str(images), "--out", str(out), "--steps", "2"]
    peers.main([*given, "--validation", "4", *words])
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_network_is_that_of_the_recipe(library):
    """Of equal weights, equal logits: neurons, layers and their order."""
    recipe = load_recipe("cifar10_r20", ["time_steps=4", "neuron.kind=lif", "neuron.v_threshold=1"])
    torch.manual_seed(0)
    ours = build_model(recipe, classes=10, channels=3, image_size=32).eval()
    theirs = peers.ResNet20(peers.MAKERS[library](), 4).eval()
    assert zero_norms(ours) == zero_norms(theirs) == 9
    weights = [
        sorted((p for p in net.parameters() if p.ndim > 1), key=lambda p: p.shape)
        for net in (ours, theirs)
    ]
    with torch.no_grad():
        for mine, other in zip(*weights, strict=True):  # those of one shape come in one order
            other.copy_(mine)
        theirs.fc.bias.copy_(ours.fc.bias)
        for norm in (m for net in (ours, theirs) for m in net.modules() if norm_like(m)):
            norm.weight.fill_(1.0)
        x = torch.randn(8, 3, 16, 16)
        assert torch.allclose(ours(x).mean(0), theirs(x), atol=1e-3)
    counts = [sum(p.numel() for p in net.parameters()) for net in (ours, theirs)]
    assert counts[0] == counts[1] == 272_474


def norm_like(module):
    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm)


def zero_norms(net):
    return sum(1 for m in net.modules() if norm_like(m) and not m.weight.any())


def test_a_rate_is_chosen_by_held_out_images_and_a_row_made(library, images, tmp_path, monkeypatch):
    rows = train(library, images, tmp_path, "--epochs", "2", "--lr", "1e-9", "1e-2")
    about = json.loads((tmp_path / "peer.json").read_text())
    assert set(about["search"]) == {"1e-9", "1e-2"}
    assert about["lr"] == max(about["search"], key=about["search"].get)
    searched = [json.loads(line) for line in (tmp_path / "lr-1e-9/metrics.jsonl").open()]
    assert [row["test_images"] for row in searched] == [4, 4]
    assert searched[-1]["step"] == 4  # of 16 images, two epochs
    assert [row["test_images"] for row in rows] == [20, 20]
    assert [row["step"] for row in rows] == [2, 4]

    about["sessions"][0] |= {"dirty": False, "commit": "0123456789ab"}
    (tmp_path / "peer.json").write_text(json.dumps(about))
    row = run.row_of_peer(tmp_path, "a")
    assert tuple(row) == run.COLUMNS
    assert row["accuracy"] == f"{100 * rows[-1]['test_accuracy']:.2f}"
    assert row["data"] == "cifar10 (JPEG)"
    assert row["command"] == (
        f"python studies/results/peers.py --library {library} --steps 2 --epochs 2 --lr 1e-9 1e-2 "
        "--seed 0 --threads 1 --validation 4"
    )
    assert (row["levels"], row["T"], row["parameters"], row["weights"]) == ("1", "2", "272474", "")
    assert 0 < float(row["spikes"]) < 1
    assert pages.net_of(row).startswith(f"ResNet-20 ({peers.LIBRARIES[library]} ")


def test_it_resumes_to_the_bit_and_an_unfinished_run_has_no_row(images, tmp_path):
    pytest.importorskip("spikingjelly")
    words = ["--epochs", "2", "--lr", "1e-2"]
    whole = train("spikingjelly", images, tmp_path / "whole", *words)
    with pytest.raises(SystemExit):
        train("spikingjelly", images, tmp_path / "parts", *words, "--minutes", "1e-9")
    with pytest.raises(UserError, match="not been tested after its last epoch"):
        run.row_of_peer(tmp_path / "parts", "a")
    parts = train("spikingjelly", images, tmp_path / "parts", *words)
    for name in ("loss", "test_loss", "test_accuracy", "step"):
        assert [row[name] for row in parts] == [row[name] for row in whole]
    assert parts[0]["seconds"] < parts[1]["seconds"]
    states = [torch.load(tmp_path / n / "checkpoint.pt")["model"] for n in ("whole", "parts")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lr", "fast"], "--lr = 'fast'; accepted: numbers above 0"),
        (["--steps", "0"], "--steps = 0; accepted: an integer from 1"),
        (["--data", "nowhere"], "nowhere has no folders train/ and test/"),
    ],
)
def test_a_mistake_is_named(words, said, images, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train("spikingjelly", images, tmp_path, *words)
    assert said in f"{stop.value} {capsys.readouterr().err}"


def test_a_folder_of_another_command_is_refused(images, tmp_path):
    pytest.importorskip("spikingjelly")
    train("spikingjelly", images, tmp_path, "--epochs", "1", "--lr", "1e-2")
    with pytest.raises(SystemExit, match="a run of another command"):
        train("spikingjelly", images, tmp_path, "--epochs", "1", "--lr", "3e-2")


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A recipe of sequences of different lengths."""
    path = tmp_path_factory.mktemp("recipe") / "tones.toml"
    path.write_text(to_toml(sequence_recipe("neuron.kind=lif")), "utf-8")
    return path


@pytest.mark.parametrize("kind", ["lif", "plif", "masked_psn"])
@pytest.mark.parametrize("read", ["mean", "last"])
def test_the_network_of_sequences_is_that_of_the_recipe(library, tones, kind, read):
    """Of equal weights, equal answers, also to sequences of different lengths."""
    words = [str(tones), f"neuron.kind={kind}", f"loss.read={read}"]
    words += ["neuron.order=3"] if kind == "masked_psn" else []
    if kind not in peers.MAKERS[library]().kinds:
        with pytest.raises(SystemExit, match=r"kind = 'masked_psn' with --library snntorch"):
            peers.Sequences(words, tones.parent, library)
        return
    data = peers.Sequences(words, tones.parent, library)
    torch.manual_seed(0)
    ours = build_model(
        data.recipe, classes=CLASSES, channels=CHANNELS, image_size=1, sequence=True
    ).eval()
    theirs = data.net(peers.MAKERS[library]()).eval()
    state = theirs.state_dict()
    layers = [m for m in theirs.layers if not norm_like(m) and hasattr(m, "weight")]
    with torch.no_grad():
        for mine, other in zip(ours.layers, layers[:: len(layers) // 2], strict=True):
            other.weight.copy_(2 * mine.weights.weight)
            mine.weights.weight.mul_(2)
            if kind == "masked_psn":
                psn = layers[1 + layers.index(other)]
                psn.weight.copy_(mine.neuron.weight)
                psn.bias.copy_(mine.neuron.bias)
        theirs.fc.weight.copy_(ours.fc.weight)
        theirs.fc.bias.copy_(ours.fc.bias)
        x = torch.randn(STEPS, 5, CHANNELS)
        lengths = torch.tensor([STEPS, 3, 7, 1, STEPS])
        reading = Reading(read)
        torch.testing.assert_close(theirs(x), reading(ours(x)), rtol=1e-4, atol=1e-5)
        found = theirs(x, lengths)
        torch.testing.assert_close(found, reading(ours(x), lengths), rtol=1e-4, atol=1e-5)
    assert found.std() > 0
    assert len(state) > 8


def test_sequences_are_trained_on_resumed_and_make_a_row(library, tones, tmp_path):
    words = [
        "--library",
        library,
        "--recipe",
        str(tones),
        "neuron.tau=3.0",
        "--data",
        str(tmp_path),
    ]
    words += ["--lr", "1e-9", "1e-2", "--validation", "25"]
    with pytest.raises(SystemExit):
        peers.main([*words, "--out", str(tmp_path / "parts"), "--minutes", "1e-9"])
    for name in ("parts", "whole"):
        peers.main([*words, "--out", str(tmp_path / name)])
    whole, parts = (
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").open()]
        for n in ("whole", "parts")
    )
    for name in ("loss", "test_loss", "test_accuracy", "step", "test_images"):
        assert [row[name] for row in parts] == [row[name] for row in whole]
    assert [row["step"] for row in whole] == [4, 8]  # of 64 sequences, two epochs of the recipe
    assert whole[-1]["test_images"] == 20
    searched = [json.loads(line) for line in (tmp_path / "whole/lr-1e-9/metrics.jsonl").open()]
    assert [row["test_images"] for row in searched] == [16, 16]
    about = json.loads((tmp_path / "whole/peer.json").read_text())
    about["sessions"] = [about["sessions"][0] | {"dirty": False, "commit": "0123456789ab"}]
    (tmp_path / "whole/peer.json").write_text(json.dumps(about))
    row = run.row_of_peer(tmp_path / "whole", "a")
    assert (row["data"], row["read"], row["T"]) == ("tones", "mean", str(STEPS))
    assert row["neuron"].startswith(f"lif ({peers.LIBRARIES[library]} ")
    assert pages.net_of(row).startswith(f"2 layers of 8 ({peers.LIBRARIES[library]} ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.delays=3"], "model.delays = 3 with --library spikingjelly; accepted: 0"),
        (["neuron.kind=alif"], "neuron.kind = 'alif' with --library spikingjelly; accepted: 'lif'"),
        (["model.depht=3"], "depht"),
    ],
)
def test_a_recipe_that_a_library_lacks_is_refused(words, said, tones, tmp_path):
    pytest.importorskip("spikingjelly")
    with pytest.raises(SystemExit, match=said):
        peers.main(
            ["--library", "spikingjelly", "--recipe", str(tones), *words, "--out", str(tmp_path)]
        )
