"""`convert`: the run folder that it writes, and the mistakes that it names."""

import pytest

from spiketriton.convert.__main__ import main
from spiketriton.convert.conversion import Options
from spiketriton.evaluate.__main__ import main as evaluate_main
from spiketriton.evaluate.evaluation import evaluate
from spiketriton.system.errors import UserError
from spiketriton.train import main as train_main
from spiketriton.training.trained import load_run
from tests.small_runs import refused


@pytest.fixture(scope="module")
def converted(runs, tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")
    (root / "ann").symlink_to(runs / "ann")
    options = ["--steps", "5", "--per-channel", "--images", "30"]
    main([str(root / "ann"), "--run-dir", str(root / "net"), *options])
    return root


def test_the_result_is_a_run(converted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("spiketriton.evaluate.pictures.draw_evaluations", lambda *_: [])
    run = load_run(converted / "net")
    assert run.kind == "converted"
    assert run.recipe.neuron.kind == "if"
    assert run.time_steps == 5
    assert run.conversion["per_channel"]
    args = [str(converted / "net"), "--steps", "40", "--against", str(converted / "ann")]
    evaluate_main([*args, "--out", str(tmp_path)])
    assert "net (converted, balanced)" in capsys.readouterr().out
    one = evaluate(run, steps=20)
    assert one.macs_per_step == 0
    assert not one.leaky
    assert one.synaptic_operations[-1] > one.synaptic_operations[0] > 0


def test_mistakes_are_named(converted, tmp_path):
    net, source = str(converted / "net"), str(converted / "ann")
    target = tmp_path / "target"
    run_dir = ["--run-dir", str(target)]
    assert "accepted: its ANN twin" in refused(main, [net, *run_dir])
    assert "converted, not trained: it has no next step" in refused(train_main, ["--resume", net])
    assert not target.exists()
    assert "already holds a run" in refused(main, [source, "--run-dir", net])
    assert "--steps: 0" in refused(main, [source, "--steps", "0"])
    assert "--percentile: 101" in refused(main, [source, "--percentile", "101"])
    assert "no effect" in refused(main, [source, "--method", "calibrated", "--percentile", "99"])
    assert "invalid choice" in refused(main, [source, "--method", "rmp"])


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], Options(method="balanced", steps=128, percentile=99.9, images=512)),
        (["--percentile", "98", "--images", "9"], Options(percentile=98.0, images=9)),
        (["--method", "calibrated", "--per-channel"],
         Options(method="calibrated", steps=16, per_channel=True)),
    ],
)  # fmt: skip
def test_options_and_their_defaults(arguments, options, runs, tmp_path, monkeypatch):
    def stop(run, given):
        assert given == options
        assert run.recipe.data.augment != "none" or run.kind == "ann"
        raise UserError("stopped")

    monkeypatch.setattr("spiketriton.convert.conversion.convert", stop)
    with pytest.raises(UserError, match="stopped"):
        main([str(runs / "ann"), "--run-dir", str(tmp_path / "net"), *arguments])
    assert not (tmp_path / "net").exists()  # nothing is left of what did not begin
