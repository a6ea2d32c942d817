"""I-LIF, CLIF, ALIF, CuBa-LIF and PSNs in recipes: trained, measured, counted, and refused where they make no sense."""

import pytest
import torch

from spiketriton.config.kinds import kinds
from spiketriton.config.names import BLOCK_NETS, PARALLEL
from spiketriton.config.reading import recipe_from_toml
from spiketriton.diagnose.ablations import Experiment
from spiketriton.diagnose.diagnosed import find_subject
from spiketriton.evaluate.counters import SpikeCounter
from spiketriton.export.nir_graph import to_nir
from spiketriton.export.plain import export_onnx
from spiketriton.gradients.prober import Prober
from spiketriton.gradients.through_time import cut_time
from spiketriton.models import build_model
from spiketriton.neurons import SpikingNeuron, build_neuron
from spiketriton.plugins.tasks import build_loss
from spiketriton.system.errors import UserError
from spiketriton.training.trained import load_run
from tests.covering import each
from tests.small_runs import small_trainer

TEXT = """
[data]
name = "digits"
[model]
name = "resnet8"
width = 4
block = "{block}"
[neuron]
kind = "{kind}"
{more}
"""
LEARNT = 'threshold_learnt = "channel"'


def recipe_of(kind: str, block: str = "plain", more: str = "", model: str = ""):
    text = TEXT.format(kind=kind, block=block, more=more).replace("[neuron]", f"{model}\n[neuron]")
    return recipe_from_toml(text, "kinds")


def built(recipe):
    torch.manual_seed(0)
    return build_model(recipe, classes=10, channels=1, image_size=16)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 1, 16, 16, generator=generator), torch.arange(4)


@pytest.mark.parametrize(("kind", "block"), each([*kinds()], ("plain", "sew", "ms")))
def test_gradients_of_every_kind_reach_every_layer(kind, block):
    recipe = recipe_of(kind, block, model="residual_gain = 0.5")
    net, (images, labels) = built(recipe), batch()
    loss = build_loss(recipe.loss)
    loss(net(images), labels).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    measured = Prober(net, [(images, labels)], loss).measure()
    assert (measured.depth_profile > 0).all()
    neurons = [m for m in net.modules() if isinstance(m, SpikingNeuron)]
    assert {type(neuron).__name__ for neuron in neurons} == {kinds()[kind].made_by}


@pytest.mark.parametrize("kind", PARALLEL)
def test_a_parallel_neuron_has_its_keys_and_psn_runs_whole_windows_only(kind):
    order = "" if kind == "psn" else "order = 3"
    net = built(recipe_of(kind, "sew", more=f"v_threshold = 0.5\n{order}"))
    neuron = net.spiking_layers()[0][1]
    assert neuron.bias.flatten()[0].item() == -0.5
    assert getattr(neuron, "k", 3) == 3
    assert getattr(neuron, "T", 4) == 4
    images, _ = batch()
    assert net.chunked == (kind != "psn")
    whole = net.eval()(images)
    net.set_stateful()
    if kind == "psn":
        with pytest.raises(ValueError, match="accepted: whole windows"):
            net(images)
    else:
        torch.testing.assert_close(torch.cat([net(images, 3), net(images, 1)]), whole)
    net.set_stateful(False)
    if kind == "sliding_psn":
        assert len(net.eval()(images, 6)) == 6
    else:
        with pytest.raises(ValueError, match="was shown 6 time steps; accepted: 4"):
            net(images, 6)


def test_gradients_of_a_parallel_neuron_are_measured_without_steps_between():
    recipe = recipe_of("psn", "sew", model="residual_gain = 0.5")
    net, loss = built(recipe), build_loss(recipe.loss)
    prober = Prober(net, [batch()], loss)
    whole = prober.measure()
    with cut_time(net):
        cut = prober.measure()
    assert (whole.firing_rate == cut.firing_rate).all()
    assert (whole.grad_input_rms[0] != cut.grad_input_rms[0]).all()
    assert (prober.measure().grad_input_rms == whole.grad_input_rms).all()


@pytest.mark.parametrize(
    ("kind", "block", "model", "learnt"),
    [
        ("lif", "preact", "", '"channel"'),
        ("plif", "sew", "", "true"),
        ("plif", "ms", 'norm = "tebn"', '"channel"'),
        ("clif", "sew", 'norm = "step_bn"', '"channel"'),
        ("alif", "plain", "checkpoint_blocks = true", '"channel"'),
    ],
)
def test_a_learnt_threshold_is_one_number_a_layer_or_one_a_channel(kind, block, model, learnt):
    more = f"threshold_learnt = {learnt}\nv_threshold = 0.8"
    recipe = recipe_of(kind, block, more, f"{model}\nresidual_gain = 0.5" * (block != "preact"))
    net, (images, labels) = built(recipe), batch()
    build_loss(recipe.loss)(net(images), labels).backward()
    layers = net.spiking_layers()
    for p in [neuron.v_threshold for _, neuron in layers]:
        assert p.requires_grad
        assert p.grad.abs().sum() > 0
        assert torch.equal(p, torch.full_like(p, 0.8))
        assert p.ndim == (0 if learnt == "true" else 1)
    for p in [neuron.w for _, neuron in layers if kind == "plif"]:
        assert (p.item(), p.grad.abs().sum() > 0) == (0.0, True)


@pytest.mark.parametrize("name", ["net7b", "mlp", "vggsnn", "resnet19", "resnet50"])
def test_every_network_tells_its_neurons_their_channels(name):
    text = TEXT if name in BLOCK_NETS else TEXT.replace('block = "{block}"\n', "")
    text = text.replace("resnet8", name).format(kind="plif", block="plain", more=LEARNT)
    net, (images, _) = built(recipe_from_toml(text, "kinds")), batch()
    net(images).sum().backward()
    assert all(p.grad is not None for _, n in net.spiking_layers() for p in n.parameters())


def test_what_channels_learn_is_trained_kept_measured_and_exported(tmp_path):
    path, keys = tmp_path / "run", ("neuron.kind=plif", "neuron.threshold_learnt=channel")
    small_trainer(path, *keys, "model.residual_gain=0.5", "train.max_steps=2").fit()
    run = load_run(path)
    for _, neuron in run.model.spiking_layers():
        assert neuron.v_threshold.ndim == 1
        assert len(set(neuron.v_threshold.tolist())) > 1, "they learn apart from each other"
    experiment = Experiment(find_subject(str(path), [], print))
    assert experiment.measure(experiment.prober("neuron.kind=lif")).depth_gain > 0
    assert export_onnx(run, tmp_path / "net.onnx", 2).difference < 1e-4
    assert to_nir(run.model, (1, 8, 8))


def test_channels_that_a_network_does_not_tell_are_asked_for_by_name():
    config = recipe_of("plif", more=LEARNT).neuron
    with pytest.raises(UserError, match=rf"neuron\.{LEARNT}.*parts\.neuron\(channels\)"):
        build_neuron(config)


def test_blocks_that_are_recomputed_give_the_same_gradients_of_whole_number_spikes():
    found = []
    for model in ("checkpoint_blocks = false", "checkpoint_blocks = true"):
        recipe = recipe_of("ilif", "ms", more="levels = 3", model=model)
        net, (images, labels) = built(recipe), batch()
        build_loss(recipe.loss)(net(images), labels).backward()
        found.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_spikes_of_ilif_are_counted_as_whole_numbers():
    net = built(recipe_of("ilif", more="v_threshold = 0.2\nlevels = 3")).eval()
    images, counter, total = batch()[0], SpikeCounter(steps=4, within=4), {}
    layer = dict(net.spiking_layers())["neuron1"]
    with torch.no_grad(), counter.watching(net):
        layer.register_forward_hook(lambda m, x, out: total.update(spikes=out, most=out.max()))
        net(images)
    assert total["most"] == 3
    assert int(counter.spikes["neuron1"].sum()) == int(total["spikes"].sum())


@pytest.mark.parametrize(
    ("kind", "more", "model", "named"),
    [
        ("ilif", 'reset = "none"', "", "neuron.reset"),
        ("cuba", "v_reset = 0.5", "", "neuron.v_reset"),
        ("ilif", "", 'memory = "packed"', "model.memory"),
        ("lif", "levels = 2", "", "neuron.levels"),
        ("alif", "tau_synapse = 3.0", "", "neuron.tau_synapse"),
        ("psn", "order = 3", "", "neuron.order"),
        ("sliding_psn", "threshold_learnt = true", "", "neuron.threshold_learnt"),
    ],
)
def test_what_a_kind_does_not_have_is_refused_by_name(kind, more, model, named):
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        recipe_of(kind, more=more, model=model)
