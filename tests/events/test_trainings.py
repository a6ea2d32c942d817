"""Recordings of event cameras from files to the report: the same bits after a stop, on two ranks, after
a rebuild of the cache; every command takes such a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketriton import predict
from spiketriton.api import load_run as load_in_python
from spiketriton.convert import __main__ as convert
from spiketriton.diagnose.__main__ import main as diagnose_main
from spiketriton.evaluate import __main__ as evaluate
from spiketriton.evaluate.baselines import baselines_of
from spiketriton.evaluate.evaluation import Evaluation
from spiketriton.evaluate.evaluation import evaluate as evaluated
from spiketriton.export import __main__ as export
from spiketriton.report import __main__ as report
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import EXIT_DONE, UserError
from spiketriton.system.torchrun import ranks_of_torchrun
from spiketriton.training.guard import Diverged
from spiketriton.training.trained import load_run
from tests.event_files import write_events
from tests.events.test_recordings import make_biolab
from tests.processes import said, start_ranks
from tests.ranks.test_ranks import SYNC, assert_same_run
from tests.runs.test_resume import assert_same_run as assert_same_bits
from tests.small_events import make_events, random_events
from tests.small_runs import QUICK, small_trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")


def keys(root: Path, *more: str) -> list[str]:
    """Changes of the small recipe: 4 frames of N-MNIST's layout, 8 steps in all."""
    return [
        "data.name=n_mnist",
        f"data.root={root}",
        "data.image_size=12",
        "data.train_images=0",
        "data.test_images=0",
        "data.augment=strong",
        "data.bins=time",
        "time_steps=4",
        "train.epochs=2",
        "train.batch_size=8",
        "train.log_every=1",
        *more,
    ]


NET7B = ("model.name=net7b", "model.block=sew", "data.augmentation.delete=1", "neuron.kind=plif")
VGGSNN = ("model.name=vggsnn", "model.width=2", "data.image_size=16")
FOR_RANKS = (*SYNC, "seed=1", "data.train_images=40", "data.test_images=0", *NET7B)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    make_events(folder, "n_mnist", per_class=4, count=200)
    return folder


def test_a_resumed_run_has_the_same_bits(root, tmp_path):
    """Also with frames that were built anew in between."""
    given = keys(root, *VGGSNN, "loss.kind=tet", "train.mixup=0.4", "train.cutmix=1")
    small_trainer(tmp_path / "unbroken", *given).fit()
    small_trainer(tmp_path / "resumed", *given).fit(until=3)
    shutil.rmtree(root / "event_frames")
    small_trainer(tmp_path / "resumed", *given, resume=True).fit()
    assert_same_bits(tmp_path / "unbroken", tmp_path / "resumed")


def play(data: Path, root: Path) -> None:
    """Both ranks: an unbroken run and one that is resumed."""
    torch.set_num_threads(1)
    with ranks_of_torchrun() as ranks:
        given = keys(data, *FOR_RANKS)
        small_trainer(root / "two", *given, ranks=ranks).fit()
        small_trainer(root / "resumed", *given, ranks=ranks).fit(until=2)
        small_trainer(root / "resumed", *given, resume=True, ranks=ranks).fit()
        ranks.meet()


def test_two_ranks_are_one_rank_and_resume_with_the_same_bits(tmp_path):
    """They share one cache, which one of them builds."""
    data = tmp_path / "data"
    make_events(data, "n_mnist", per_class=4, count=200)
    code = "import sys, tests.events.test_trainings as t; t.play(*map(t.Path, sys.argv[1:]))"
    processes = start_ranks("-c", code, str(data), str(tmp_path), folder=tmp_path)
    output = said(processes)
    assert [process.returncode for process in processes] == [EXIT_DONE, EXIT_DONE], output
    assert output.count("built once") == 1
    assert_same_bits(tmp_path / "two", tmp_path / "resumed")
    small_trainer(tmp_path / "one", *keys(data, *FOR_RANKS)).fit()
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    small_trainer(path, *keys(root, "model.width=4", "train.epochs=1")).fit()
    return path


def test_results_name_their_split_and_gradients_their_frame(run, capsys):
    tests = [row for row in RunFolder(run).metrics.read() if row["kind"] == "eval"]
    assert {row["split"] for row in tests} == {"split official"}
    assert {row["time_step"] for row in RunFolder(run).gradients.read()} == {0, 1, 2, 3}
    diagnose_main([str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["time_steps"] == 4


def test_an_evaluation_counts_frame_by_frame(run, tmp_path, capsys):
    """Accuracy by step is that of the mean current of so many frames; bins of time have a length."""
    evaluate.main([str(run), "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "40 test recordings of n_mnist (split official)" in said
    assert "Accuracy and cost of one recording" in said
    assert "image" not in said
    found = json.loads((tmp_path / "evaluation.json").read_text())
    loaded = load_run(run)
    correct, durations = torch.zeros(4), []
    for frames, labels in loaded.data.test:
        with torch.no_grad():
            means = loaded.model(frames).cumsum(0)
        correct += (means.argmax(2) == labels).sum(1)
    durations = loaded.data.test.dataset.split.facts["duration_us"]
    assert found["values"] == [float(n) / 40 for n in correct]
    assert found["ms_per_step"] == pytest.approx(durations.mean() / 4 / 1000)
    assert 60 < found["ms_per_step"] < 76
    assert found["macs_once"] == 0
    assert found["macs_per_step"] == found["layer_macs"]["conv1"] == 12 * 12 * 4 * 2 * 9
    assert found["data"] == "n_mnist (split official)"
    assert "without the order in time: the number of events alone" in said
    (alone,) = found["baselines"]
    assert alone["name"] == "the number of events alone"
    names = {path.name for path in tmp_path.iterdir()}
    assert {"accuracy.png", "latency.png", "events.png", "events.gif"} <= names
    with pytest.raises(UserError, match="recordings of 4 frames have no step 5"):
        evaluate.main([str(run), "--steps", "5"])


def test_the_report_shows_frames_and_an_animation(run, tmp_path):
    report.main([str(run), "--out", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    for words in ("split official", "Events", "energy of one recording", "test recordings"):
        assert words in page
    assert 'src="data:image/gif;base64,' in page


def test_samples_are_the_frames_of_test_recordings(run):
    loaded = load_run(run)
    found = Evaluation.from_json(evaluated(loaded).to_json())
    assert [sample.label for sample in found.samples] == ["0", "1", "2", "3"]
    split = loaded.data.test.dataset.split
    for sample in found.samples:
        index = split.labels.tolist().index(int(sample.label))
        assert np.array_equal(sample.frames, split.read(np.array([index]))[0])
        assert len(sample.answers) == 4


def test_the_number_of_events_alone_is_a_baseline(run):
    """Of recordings whose classes differ in that number, it says all; the number is that of the files."""
    loaded = load_run(run)
    trained, tested = loaded.data.train.dataset.split, loaded.data.test.dataset.split
    for split in (trained, tested):
        split.facts["events"] = 100 * 2.0 ** split.labels.numpy()
    (found,) = baselines_of(loaded, loaded.data.test)
    assert found.value == 1.0
    for split in (trained, tested):
        split.facts["events"] = 100
    (found,) = baselines_of(loaded, loaded.data.test)
    assert found.value == 0.1


def test_a_recording_is_predicted_by_its_file(root, run, capsys):
    path = next((root / "n_mnist" / "Test" / "3").iterdir())
    loaded = load_in_python(run)
    test = load_run(run).data.test
    labels = test.dataset.split.labels.tolist()
    recordings = sorted((root / "n_mnist" / "Test" / "3").iterdir())
    frames = test.dataset.split.read(np.array([labels.index(3) + recordings.index(path)]))
    expected = loaded.predict(frames)
    torch.testing.assert_close(loaded.predict(str(path)), expected)
    predict.main([str(run), str(path), "--json", "--top", "1"])
    said = json.loads(capsys.readouterr().out)
    assert said["classes"] == pytest.approx(
        {str(int(expected.argmax())): float(expected.max())}, abs=1e-6
    )
    predict.main([str(run), str(path.parent)])
    assert len(capsys.readouterr().out.splitlines()) == len(recordings)


def test_a_long_recording_is_answered_by_the_mean_of_its_parts(tmp_path):
    """Which are as long as in training: bins of all of it would have many times the events."""
    make_biolab(tmp_path)
    small = (*QUICK, "data.cut_ms=200", "data.name=dvs_biolab", "train.max_steps=1")
    small_trainer(tmp_path / "run", *keys(tmp_path, *small)).fit()
    split = load_run(tmp_path / "run").data.test.dataset.split
    ours = load_in_python(tmp_path / "run")
    of_parts = ours.predict(split.read(np.arange(len(split))))
    means = torch.stack([part.mean(0) for part in of_parts.split(4)])  # of the five objects
    folder = tmp_path / "NeuromorphicObjectDataSet_100" / "aedatFiles"
    names = ("Caixa", "Caneca", "Estilete", "Lapiseira", "Tesoura")
    found = ours.predict([folder / f"{name}.aedat" for name in names])
    torch.testing.assert_close(found, means)
    short = random_events(np.random.default_rng(1), 300, (128, 128), end=90_000)
    write_events(tmp_path / "short.aedat", short, "aedat2")
    assert ours.predict(tmp_path / "short.aedat").shape == (1, 5)


def test_conversion_is_refused(root, run, tmp_path):
    with pytest.raises(UserError, match=r"sees recordings of n_mnist, .* nets are trained"):
        convert.main([str(run)])  # and not only its twin, which somebody would have trained
    twin = tmp_path / "twin"
    small_trainer(twin, *keys(root, *QUICK, "neuron.kind=relu", "train.max_steps=2")).fit()
    with pytest.raises(UserError, match="sees recordings of n_mnist, a frame at each step"):
        convert.main([str(twin), "--run-dir", str(tmp_path / "converted")])
    assert not (tmp_path / "converted").exists()
    pooled = tmp_path / "pooled"
    small_trainer(pooled, "model.name=net7b", "neuron.kind=relu", "train.max_steps=2").fit()
    with pytest.raises(UserError, match="max-pools of net7b"):
        convert.main([str(pooled), "--run-dir", str(tmp_path / "converted")])
    found = evaluated(load_run(twin))
    assert (found.kind, len(found.accuracy), found.time_steps) == ("ann", 4, 4)
    assert found.macs(4) == 4 * found.ann_macs == found.twin_macs(4)


def test_a_nir_file_spikes_as_the_network(root, tmp_path, capsys):
    pytest.importorskip("nir")
    run = tmp_path / "run"
    small_trainer(run, *keys(root, "train.max_steps=3", *VGGSNN)).fit()
    export.main([str(run), "--to", "nir", "--out", str(tmp_path / "net.nir")])
    assert "replayed by NIR's equations: 0 of " in capsys.readouterr().out
    export.main([str(run), "--to", "torch", "--out", str(tmp_path / "net.pt2")])


def test_predictions_from_counts(root, run):
    ours = load_in_python(run)
    split = ours._run.data.test.dataset.split
    counts = split.read(np.arange(6))
    found = ours.predict(counts)
    frames = torch.log1p(counts.transpose(0, 1).float())
    with torch.no_grad():
        expected = ours.model(frames).mean(0).softmax(1)
    torch.testing.assert_close(found, expected)
    for wrong in (counts.float(), counts[:, :, :, :10, :10]):
        with pytest.raises(UserError, match=r"accepted: uint8 counts \[B, T, 2, 12, 12\]"):
            ours.predict(wrong)


def test_a_bad_step_is_found_at_its_frame(root, tmp_path):
    trainer = small_trainer(tmp_path / "run", *keys(root))
    with torch.no_grad():
        trainer.model.get_submodule("layer2.0.conv1").weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(Diverged):
        trainer.fit()
    found = json.loads((tmp_path / "run" / "nonfinite.json").read_text())["found"]
    assert (found["layer"], found["time_step"]) == ("layer2.0.conv1", 0)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("dvs_gesture", []),
        ("cifar10_dvs", ["data.split=first100"]),
        ("n_caltech101", ["data.split=random90"]),
        ("eventfolder", ["data.sensor=50x40", "data.validation=val"]),
    ],
)
def test_every_data_set_trains(tmp_path, name, more):
    make_events(tmp_path, name, per_class=10, count=100)
    if name == "eventfolder":
        shutil.copytree(tmp_path / "val", tmp_path / "test")
    given = [f"data.name={name}", *more, *QUICK, "train.max_steps=2", "train.batch_size=4"]
    trainer = small_trainer(tmp_path / "run", *keys(tmp_path, *given))
    assert trainer.fit().progress.step == 2
    if name == "eventfolder":  # its recordings of a folder choose the weights
        loaded = [next(iter(part))[0] for part in (trainer.data.validation, trainer.data.test)]
        assert torch.equal(*loaded)  # of the same recordings, copied
        rows = RunFolder(tmp_path / "run").metrics.read()
        assert any("validation_accuracy" in row for row in rows)
        assert (tmp_path / "run" / "checkpoints" / "best.pt").is_file()
