"""I-LIF, CLIF, ALIF and PSNs in recipes: trained, measured, counted, and refused where they make no sense."""

import pytest
import torch

from spiketriton.config.reading import recipe_from_toml
from spiketriton.errors import UserError
from spiketriton.gradients.probing import Prober, cut_time
from spiketriton.models import build_model
from spiketriton.neurons import ALIF, CLIF, ILIF, PSN, MaskedPSN, SlidingPSN, SpikingNeuron
from spiketriton.trained.counters import ActivityCounter
from spiketriton.training.losses import build_loss

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
KINDS = {"ilif": ILIF, "clif": CLIF, "alif": ALIF}
PARALLEL = {"psn": PSN, "masked_psn": MaskedPSN, "sliding_psn": SlidingPSN}


def recipe_of(kind: str, block: str = "plain", more: str = "", model: str = ""):
    text = TEXT.format(kind=kind, block=block, more=more).replace("[neuron]", f"{model}\n[neuron]")
    return recipe_from_toml(text, "kinds")


def built(recipe):
    torch.manual_seed(0)
    return build_model(recipe, classes=10, channels=1, image_size=16)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 1, 16, 16, generator=generator), torch.arange(4)


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        *((kind, block) for kind in KINDS for block in ("plain", "sew", "ms")),
        ("psn", "plain"),
        ("masked_psn", "sew"),
        ("sliding_psn", "ms"),
    ],
)
def test_gradients_of_every_kind_reach_every_layer(kind, block):
    recipe = recipe_of(kind, block, model="residual_gain = 0.5")
    net, (images, labels) = built(recipe), batch()
    loss = build_loss(recipe.loss)
    loss(net(images), labels).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    measured = Prober(net, [(images, labels)], loss).measure()
    assert (measured.depth_profile > 0).all()
    neurons = [m for m in net.modules() if isinstance(m, SpikingNeuron)]
    assert {type(neuron) for neuron in neurons} == {(KINDS | PARALLEL)[kind]}


@pytest.mark.parametrize("kind", PARALLEL)
def test_a_parallel_neuron_has_its_keys_and_runs_whole_windows_only(kind):
    order = "" if kind == "psn" else "order = 3"
    net = built(recipe_of(kind, "sew", more=f"v_threshold = 0.5\n{order}"))
    neuron = net.spiking_layers()[0][1]
    assert neuron.bias.flatten()[0].item() == -0.5
    assert getattr(neuron, "k", 3) == 3
    assert getattr(neuron, "T", 4) == 4
    images, _ = batch()
    assert not net.streams
    net.set_stateful()
    with pytest.raises(UserError, match="accepted: whole windows"):
        net(images)
    net.set_stateful(False)
    if kind == "sliding_psn":
        assert len(net.eval()(images, 6)) == 6
    else:
        with pytest.raises(UserError, match="was shown 6 time steps; accepted: 4"):
            net(images, 6)


def test_gradients_of_a_parallel_neuron_are_measured_without_steps_between():
    recipe = recipe_of("psn", "sew", model="residual_gain = 0.5")
    net, loss = built(recipe), build_loss(recipe.loss)
    prober = Prober(net, [batch()], loss)
    whole = prober.measure()
    with cut_time(net):
        cut = prober.measure()
    assert (whole.firing == cut.firing).all()
    assert (whole.grad_input[0] != cut.grad_input[0]).all()
    assert (prober.measure().grad_input == whole.grad_input).all()


@pytest.mark.parametrize("kind", ["if", "lif", "plif", *KINDS])
def test_a_learnt_threshold_has_a_gradient_and_is_in_the_weights(kind):
    recipe = recipe_of(kind, more="threshold_learnt = true\nv_threshold = 0.8")
    net, (images, labels) = built(recipe), batch()
    build_loss(recipe.loss)(net(images), labels).backward()
    learnt = {n: p for n, p in net.named_parameters() if n.endswith("v_threshold")}
    assert len(learnt) == len(net.spiking_layers())
    assert all(p.item() == pytest.approx(0.8) and p.grad is not None for p in learnt.values())


def test_blocks_that_are_recomputed_give_the_same_gradients_of_whole_number_spikes():
    found = []
    for model in ("checkpoint_blocks = false", "checkpoint_blocks = true"):
        recipe = recipe_of("ilif", "ms", more="levels = 3", model=model)
        net, (images, labels) = built(recipe), batch()
        build_loss(recipe.loss)(net(images), labels).backward()
        found.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_spikes_of_ilif_are_counted_as_whole_numbers():
    net, (images, _) = (
        built(recipe_of("ilif", more="v_threshold = 0.2\nlevels = 3")).eval(),
        batch(),
    )
    counter = ActivityCounter(steps=4, within=4)
    total = {}
    layer = dict(net.spiking_layers())["neuron1"]
    with torch.no_grad(), counter.watching(net):
        layer.register_forward_hook(lambda m, x, out: total.update(spikes=out, most=out.max()))
        net(images)
    assert total["most"] == 3
    assert int(counter.spikes["neuron1"].sum()) == int(total["spikes"].sum())


@pytest.mark.parametrize(
    ("kind", "more", "model", "named"),
    [
        ("clif", 'reset = "hard"', "", "neuron.reset"),
        ("ilif", 'reset = "none"', "", "neuron.reset"),
        ("alif", "v_reset = 0.5", "", "neuron.v_reset"),
        ("ilif", "", 'memory = "packed"', "model.memory"),
        ("lif", "levels = 2", "", "neuron.levels"),
        ("clif", "beta = 2.0", "", "neuron.beta"),
        ("clif", "decay_input = true", "", "neuron.decay_input"),
        ("psn", 'reset = "hard"', "", "neuron.reset"),
        ("psn", "order = 3", "", "neuron.order"),
        ("psn", "tau = 3.0", "", "neuron.tau"),
        ("sliding_psn", "threshold_learnt = true", "", "neuron.threshold_learnt"),
    ],
)
def test_what_a_kind_does_not_have_is_refused_by_name(kind, more, model, named):
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        recipe_of(kind, more=more, model=model)
