"""diagnose: what it measures, what it says, its page, its files and its exit codes."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from spiketriton.config import Recipe, to_toml
from spiketriton.diagnose import main
from spiketriton.errors import UserError
from spiketriton.gradients import calibration
from spiketriton.gradients import variants as module
from spiketriton.gradients.calibration import ADAMW, SGD, Calibration
from spiketriton.gradients.diagnosis import Diagnosis, diagnose
from spiketriton.gradients.probing import overlap_of
from spiketriton.gradients.subject import Subject, find_subject
from spiketriton.gradients.variants import Experiment, cut_time, lost_at
from spiketriton.show.diagnosis_page import show
from tests.small_runs import assert_equal, small_recipe, small_trainer

PAGE = 80


def subject(*changes: str) -> Subject:
    return Subject(small_recipe(*changes), "recipe small.toml")


def page(found: Diagnosis, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=PAGE, highlight=False, **options)  # type: ignore[arg-type]
    show(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def recipe_file(folder: Path, recipe: Recipe) -> Path:
    path = folder / "small.toml"
    path.write_text(to_toml(recipe), "utf-8")
    return path


def nothing(text: str) -> None:
    raise AssertionError(text)


DEEP = ("model.name=mlp", "model.depth=8", "train.optimizer=sgd", "time_steps=5")
NARROW, WIDE = "neuron.surrogate.width=0.05", "neuron.surrogate.width=20"


@pytest.mark.parametrize(
    ("change", "word", "better"),
    [(NARROW, "vanishing", ">"), (WIDE, "exploding", "<")],
)
def test_a_wrong_width_is_found_and_a_better_one_named(change, word, better):
    found = diagnose(subject(*DEEP, change))
    assert found.verdict.depth.word == word
    assert found.cures[0].change == "neuron.surrogate.width=auto"
    width = float(change.partition("=")[2])
    assert found.better_width is not None
    assert (found.better_width > width) == (better == ">")
    # it is measured too, and comes out as what lessens the trouble most
    assert f"nearest to 1 with neuron.surrogate.width={found.better_width:.3g}" in found.causes()[0]


def test_the_better_width_is_one():
    """With the width that is named the gain is nearly even."""
    found = diagnose(subject(*DEEP, "neuron.surrogate.width=1.5"))
    again = diagnose(subject(*DEEP, f"neuron.surrogate.width={found.better_width}"))
    assert found.measured.depth_gain != pytest.approx(SGD.target, rel=0.1)
    assert again.measured.depth_gain == pytest.approx(SGD.target, rel=0.1)


def test_what_is_passed_on_is_known_where_the_flat_gradient_explodes():
    """Through 100 layers beyond float32: what one layer makes of it is measured all the same."""
    deep = ("model.name=mlp", "model.depth=100", "model.width=16", "train.optimizer=adamw")
    found = diagnose(subject(*deep, "neuron.surrogate.width=0.4"))
    again = diagnose(subject(*deep, "neuron.surrogate.width=auto"))
    assert 0.1 < found.transmission < again.transmission
    assert again.transmission == pytest.approx(ADAMW.target, rel=0.03)


def test_the_switches_change_what_they_say():
    found = diagnose(subject(*DEEP, "neuron.surrogate.height=2", "neuron.surrogate.width=0.3"))
    names = [switch.name for switch in found.variants]
    assert names == [
        "surrogate half as wide",
        "surrogate twice as wide",
        "surrogate height 1",
        "gradient through the reset",
        "no reset",
        "no leak",
        "no norm",
        "no gradient from step to step",
    ]
    by_name = {switch.name: switch for switch in found.variants}
    base = found.measured.depth_gain
    assert (
        by_name["surrogate half as wide"].measured.depth_gain
        < base
        < by_name["surrogate twice as wide"].measured.depth_gain
    )
    # heights multiply every layer's gradient but the carried part's share is the same
    assert by_name["surrogate height 1"].measured.depth_gain == pytest.approx(base / 2, rel=1e-3)
    # backward switches leave the spikes alone
    for name in (*names[:4], names[-1]):
        assert np.array_equal(by_name[name].measured.firing, found.measured.firing)
    for name in ("no reset", "no leak", "no norm"):
        assert not np.array_equal(by_name[name].measured.firing, found.measured.firing)


@pytest.mark.parametrize("net", ["mlp", "resnet8", "ms", "sew"])
def test_without_the_path_through_time_nothing_is_carried(net):
    changes = {"mlp": DEEP, "resnet8": ()}.get(net, (f"model.block={net}",))
    experiment = Experiment(subject(*changes, "neuron.kind=plif"), 1)
    whole, cut = experiment.measure(), experiment.prober(prepare=cut_time).measure()
    assert (whole.grad_carry[:, :-1] > 0).any()
    assert (cut.grad_carry == 0).all()
    assert np.allclose(cut.firing, whole.firing, atol=1e-3)
    # the last layer's last step has no future in either
    assert cut.grad_input[-1, -1] == pytest.approx(whole.grad_input[-1, -1], rel=1e-3)


def test_the_overlap_of_rates_by_hand():
    """Two images and their copies: cosines 0.6 and 1 with themselves, 0 and 0.8 with the other."""
    rates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 2.0]])
    spikes = torch.stack([rates, rates])  # two time steps
    same, other = (0.6 + 1) / 2, (0 + 0.8) / 2
    assert overlap_of(spikes) == pytest.approx((same - other) / (1 - other))
    assert overlap_of(torch.zeros(3, 8, 5)) == 0
    assert overlap_of(torch.ones(3, 8, 5)) == 0
    assert math.isnan(overlap_of(torch.ones(3, 2, 5)))


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 1.0), (1e4, 0.0)])
def test_a_copy_without_noise_is_the_image_and_one_of_noise_is_none(noise, expected, monkeypatch):
    monkeypatch.setattr("spiketriton.gradients.probing.NOISE", noise)
    experiment = Experiment(subject(*DEEP), 2)
    before = {
        name: value.clone()
        for name, value in experiment.build(small_recipe(*DEEP)).state_dict().items()
    }
    prober = experiment.prober()
    state = torch.get_rng_state()
    assert np.allclose(prober.overlap(), expected, atol=1e-5 if expected else 0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(before, dict(prober.model.state_dict()))


def test_a_deep_plain_net_forgets_the_image_and_shortcuts_keep_it():
    blocks = ("model.name=resnet20", "model.width=8", "time_steps=4")
    plain, skips = (diagnose(subject(*blocks, f"model.block={kind}")) for kind in ("plain", "ms"))
    assert plain.overlap[0] > 0.8 > skips.overlap[-1] > 0.1 > plain.overlap[-1]
    names = plain.measured.names
    lost = lost_at(plain.overlap)
    assert lost is not None
    assert f"from {names[lost]} on it is as different as another image" in page(plain)
    assert "another image" not in skips.forgotten()
    # the number beside the cure is that of the net with it
    cure = (
        f"model.block=ms    # the last layer then sees the image (overlap {skips.overlap[-1]:.2f})"
    )
    assert cure in page(plain)
    # what else would keep it, as a net without norm that hardly fires, is no cure
    silent = ("model.block=sew", "model.name=resnet32", "neuron.surrogate.width=0.3")
    assert not any("norm" in cure.change for cure in diagnose(subject(*blocks, *silent)).cures)
    mlp = diagnose(subject(*DEEP, "model.depth=24", "model.width=128", "time_steps=10"))
    lost = lost_at(mlp.overlap)
    assert f"model.depth={lost}" in [cure.change for cure in mlp.cures]


@pytest.mark.parametrize(
    "changes",
    [
        ("neuron.kind=if", "neuron.reset=none", "model.norm=none"),
        ("neuron.reset=soft", "neuron.detach_reset=false", "neuron.surrogate.width=auto_per_layer"),
        ("neuron.kind=plif", "model.block=sew", "model.norm=tebn", "loss.kind=tet"),
        ("model.block=ms", "model.norm=tdbn", "neuron.surrogate.width=auto", "time_steps=1"),
        ("model.name=plain", "model.depth=1", "train.accumulate=4"),
        ("neuron.surrogate.width=1e-6", "neuron.surrogate.shape=rectangle"),
    ],
)
def test_every_kind_of_recipe_gets_a_page(changes):
    found = diagnose(subject(*changes))
    text = page(found)
    assert "verdict:" in text
    assert "what to change:" in text or "nothing to change" in text
    json.dumps(found.as_json(), allow_nan=False)


def test_the_page_is_plain_where_it_is_piped():
    text = page(diagnose(subject(*DEEP, NARROW)))
    assert "\x1b" not in text
    assert "vanishing through depth (for sgd)" in text
    assert "layers.0.neuron" in text
    rows = [line for line in text.splitlines() if line.startswith("layers.") and "●" in line]
    assert len(rows) == 8
    assert rows[-1].count("█") > 0 == rows[0].count("█")
    assert "neuron.surrogate.width=auto" in text
    table = text[text.index("one thing changed") : text.index("gain: through depth")]
    assert "…" not in table


def test_the_page_has_colours_on_a_terminal():
    found = diagnose(subject(*DEEP, NARROW))
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=PAGE)
    show(found, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[48;2;68;1;84m" in text  # the darkest of the scale
    assert "\x1b[1;34mvanishing" in text


def test_a_recipe_ends_in_page_json_and_picture(tmp_path, capsys):
    path, out = recipe_file(tmp_path, small_recipe()), tmp_path / "out"
    assert main([str(path), "time_steps=2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "verdict: " in said
    assert str(out / "diagnosis.png") in said
    assert (out / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "diagnosis.json").read_text())
    assert found["time_steps"] == 2
    assert len(found["rows"]) == 2 * len(found["depth_profile"])


def test_json_is_all_that_is_printed_and_complete(tmp_path, capsys):
    path = recipe_file(tmp_path, small_recipe(*DEEP, WIDE))
    assert main([str(path), "--json", "--batches", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 64
    assert found["verdict"]["word"] == "exploding"
    assert found["verdict"]["depth"]["gain"] > 1
    assert found["verdict"]["depth"]["spread"] > 1
    assert found["verdict"]["findings"]
    assert found["cures"][0]["change"] == "neuron.surrogate.width=auto"
    assert {"name", "change", "depth_gain", "time_ratio"} <= set(found["switches"][0])
    assert {"layer", "time_step", "grad_input_rms", "outside_share"} <= set(found["rows"][0])
    assert not (tmp_path / "runs").exists()


def test_a_run_is_measured_at_its_weights_and_widths(tmp_path):
    run = tmp_path / "run"
    auto = ("neuron.surrogate.width=auto", "data.augment=none")
    trainer = small_trainer(run, *auto)
    trainer.fit()
    subject_of_run = find_subject(str(run), [], nothing)
    assert subject_of_run.step == 21
    experiment = Experiment(subject_of_run, 1)
    assert experiment.widths == json.loads((run / "calibration.json").read_text())["widths"]
    model = experiment.build(subject_of_run.recipe)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    fresh = diagnose(subject(*auto))
    trained = diagnose(subject_of_run)
    assert not np.allclose(fresh.measured.grad_input, trained.measured.grad_input)
    assert "no norm" not in [switch.name for switch in trained.variants]
    assert page(trained).startswith(f"run {run}, after step 21: gradients of 32 images\n")
    other = find_subject(str(run), ["neuron.surrogate.width=0.3"], nothing)
    assert set(Experiment(other, 1).widths.values()) == {0.3}


def test_a_run_folder_is_left_as_it_is(tmp_path):
    run = tmp_path / "run"
    small_trainer(run, "train.max_steps=1").fit()
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    main([str(run), "--json"])
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_the_same_recipe_gets_the_same_diagnosis():
    first, second = (diagnose(subject("neuron.surrogate.width=auto")).as_json() for _ in range(2))
    assert first == second


def test_synthetic_images_are_said_to_be_so():
    found = diagnose(subject("data.name=synthetic", "data.image_size=8", "data.train_images=20"))
    assert found.synthetic
    assert "(synthetic images)" in page(found)
    assert found.images == 20


def test_large_nets_are_measured_on_few_images(monkeypatch):
    monkeypatch.setitem(calibration.BUDGET, "cpu", 1.0)
    assert Experiment(subject(), 1).images == calibration.FEWEST


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.toml"], "no such recipe file"),
        (["{recipe}", "neuron.kind=relu"], 'neuron.kind = "relu"'),
        (["{recipe}", "neuron.kind=lof"], "accepted"),
        (["{recipe}", "--batches", "0"], "--batches 0: accepted"),
        (["{recipe}", "--batches", "two"], "--batches two: accepted"),
        (["{folder}"], "holds no run"),
        (["{run}"], "no checkpoint yet"),
        (["{recipe}", "--out", "{recipe}/x"], "cannot be written"),
        (["{recipe}", "data.name=imagenette", "data.root={folder}", "data.download=false"], "imag"),
    ],
)
def test_mistakes_are_one_line(arguments, said, tmp_path):
    recipe = recipe_file(tmp_path, small_recipe())
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(to_toml(small_recipe()))
    names = {"recipe": str(recipe), "folder": str(tmp_path), "run": str(run)}
    with pytest.raises(UserError, match=said) as raised:
        main([argument.format(**names) for argument in arguments])
    assert "\n" not in str(raised.value)


def test_weights_that_do_not_fit_are_the_users_mistake(tmp_path):
    small_trainer(tmp_path / "run", "train.max_steps=1").fit()
    with pytest.raises(UserError, match="do not fit this recipe"):
        diagnose(find_subject(str(tmp_path / "run"), ["model.width=6"], nothing))


def test_a_calibration_of_the_run_is_not_measured_again(tmp_path, monkeypatch):
    small_trainer(tmp_path / "run", "neuron.surrogate.width=auto", "train.max_steps=1").fit()
    found = find_subject(str(tmp_path / "run"), [], nothing)
    assert isinstance(found.calibration, Calibration)
    monkeypatch.setattr(module, "calibrate", nothing)
    Experiment(found, 1)
