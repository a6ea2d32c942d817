"""Networks that other people wrote: the numbers are theirs, or they are refused by name."""

import pytest
import torch
from torch import Tensor, nn

from spiketriton.config import Recipe, recipe_from_toml, replace
from spiketriton.config.parts import find
from spiketriton.gradients.monitor import GradientMonitor
from spiketriton.gradients.prober import Prober
from spiketriton.models import build_model
from spiketriton.system.errors import UserError
from tests.small_runs import SMALL

functional = pytest.importorskip("spikingjelly.activation_based.functional")

T, CLASSES = 3, 10
HERE = "tests.models.foreign_nets"
SMALL_ONES = {
    "spikingjelly:Spikformer": {"embed_dims": 16, "num_heads": 2, "depths": 1, "patch_size": 4},
    "spikingjelly:QKFormer": {"embed_dims": 32, "num_heads": (2, 2, 2), "depths": (1, 1, 1)},
    f"{HERE}:Attention": {},
    f"{HERE}:Recurrent": {},
    f"{HERE}:LongSkip": {},
    f"{HERE}:Shared": {},
    f"{HERE}:OneStep": {},
    f"{HERE}:TwoClocks": {},
    f"{HERE}:RunningMean": {},
    f"{HERE}:OtherInTests": {},
    f"{HERE}:FrozenNorm": {},
    f"{HERE}:Norse": {},
    f"{HERE}:NorseIntegrator": {},
    f"{HERE}:NorseBox": {},
    f"{HERE}:NorseWindow": {},
    f"{HERE}:SnnTorch": {},
}


def recipe_of(name: str, *overrides: str, **arguments) -> Recipe:
    lines = [line for line in SMALL.splitlines() if not line.startswith(('name = "res', "width"))]
    text = "\n".join(lines).replace("[model]", f'[model]\nname = "{name}"')
    size = 16 if name.startswith("spikingjelly:") else 8
    changes = {"model.arguments": arguments, "data.image_size": size}
    return replace(recipe_from_toml(text, "small"), *overrides, values=changes)


def build(name: str, *overrides: str, **arguments):
    recipe = recipe_of(name, *overrides, **arguments)
    torch.manual_seed(0)
    size = recipe.data.image_size
    return build_model(recipe, classes=CLASSES, channels=1, image_size=size)


def by_hand(net: nn.Module, takes: str, images: Tensor) -> Tensor:
    """The answer as a script of SpikingJelly gets it."""
    functional.reset_net(net)
    if takes == "time_first":
        out = net(images.unsqueeze(0).repeat(T, 1, 1, 1, 1))
    elif takes == "images":
        out = net(images)
    else:
        out = torch.stack([net(images) for _ in range(T)])
    return out if out.ndim == 3 else out[None]


def original(name: str, **arguments) -> nn.Module:
    """The same weights with their own neurons."""
    torch.manual_seed(0)
    known = {"num_classes": CLASSES, "in_channels": 1, "T": T, "img_size_h": 16, "img_size_w": 16}
    make = find("models", name).make
    names = make.__init__.__code__.co_varnames
    return make(**{n: v for n, v in known.items() if n in names} | arguments)


@pytest.mark.parametrize("name", SMALL_ONES)
def test_answers_gradients_and_statistics_are_those_of_the_original(name):
    ours, theirs = build(name, **SMALL_ONES[name]), original(name, **SMALL_ONES[name])
    size = 16 if name.startswith("spikingjelly:") else 8
    images = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(4)
    with torch.no_grad():
        answers, expected = ours.eval()(images), by_hand(theirs.eval(), ours.takes, images)
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)
    ours.train(), theirs.train()
    for _ in range(2):  # the second window begins as the first
        answers = ours(images)
        expected = by_hand(theirs, ours.takes, images).detach()
        torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)
    nn.functional.cross_entropy(ours(images).mean(0), labels).backward()
    nn.functional.cross_entropy(by_hand(theirs, ours.takes, images).mean(0), labels).backward()
    found = {n.removeprefix("net."): p.grad for n, p in ours.named_parameters()}
    for key, parameter in theirs.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradient = torch.zeros_like(parameter) if found[key] is None else found[key]
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5, msg=key)
    state = ours.net.state_dict()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rates"), [("Shared", 2), ("Recurrent", 1), ("OneStep", 1), ("Attention", 3)]
)
def test_each_step_of_a_neuron_is_measured_however_it_is_called(name, rates):
    model = build(f"{HERE}:{name}")
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    steps: dict[str, list[Tensor]] = {}
    for layer, neuron in model.spiking_layers():
        neuron.register_forward_hook(
            lambda m, x, out, layer=layer: steps.setdefault(layer, []).extend(
                out.detach() if m.step_mode == "m" else [out.detach()]
            )
        )
    prober = Prober(model, [(images, torch.arange(4))], nn.functional.cross_entropy)
    prober.loss = lambda currents, labels: nn.functional.cross_entropy(currents.mean(0), labels)
    steps.clear()
    measured = prober.measure()
    assert len(measured.names) == rates
    for row, layer in zip(measured.firing_rate, measured.names, strict=True):
        calls = torch.stack(steps[layer]).unflatten(0, (-1, T)).float()  # [calls, T, ...]
        assert torch.allclose(torch.from_numpy(row).float(), calls.flatten(2).mean((0, 2)))
    assert (
        measured.grad_spike_rms.sum(1) > 0
    ).sum() >= rates - 1  # the keys of Attention are silent
    assert len(prober.signal().overlap) == rates


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("TwoAnswers", [], "returned a tuple of 2; accepted: one tensor, [T, B, K]"),
        ("Remembers", [], "answers differently to the same images a second time: seen is kept"),
        ("Rebuilds", [], "reset() of one of its modules changes parameters"),
        ("NoGradient", [], "gives an answer without a gradient"),
        ("AuxiliaryInTraining", [], "answers with another thing in training mode, tuple; accepted"),
        ("StepsInTheMiddle", [], "returned [B, T, K] = [2, 3, 10]; accepted: one tensor, [T, B"),
        ("InPlace", [], "changes its images in place"),
        (
            "NorseHidden",
            [],
            "depends on a weight of [] that is none of its parameters and would not be trained",
        ),
        ("PlainList", [], "would not be trained: more is a list of modules"),
        ("OneMethod", [], "a module, and has no single_step_forward"),
        ("BatchFirst", [], "shows neuron as many time steps as there are images: it takes [B, T"),
        ("images_as_steps", [], "images of the batch: neurons with step_mode = "),
        ("compiled", [], "is compiled by torch.compile; accepted: the module itself, and train"),
        ("spread", [], "is a DataParallel; accepted: the module in it, and torchrun"),
        ("no_module", [], "made a int; accepted: a function or class that makes a torch.nn.Module"),
        ("breaks", [], "breaks() failed: KeyError: 'depth'"),
        ("OneStep", ["model.arguments.num_classes=7"], "gives 7 numbers for 10 classes"),
        (
            "OneStep",
            ["model.arguments.num_classes=7"],
            "that of the recipe's task, classification if loss.kind names no other; a task of",
        ),
        ("OneStep", ["model.arguments.depth=7"], "OneStep(num_classes=10, in_channels=1, depth=7)"),
        *(
            ("SharedRelu", [f"time_steps={steps}"], "calls relu 2 times where it calls others once")
            for steps in (1, 2, 4)
        ),
        ("Recurrent", ["model.arguments.T=2"], "accepted: time_steps = 2"),
        ("Recurrent", ["model.input=time_first"], "answers to no images of this recipe. Of [T, B"),
        ("Recurrent", ["loss.kind=tet"], "loss.kind or loss.read need the answer of each step"),
        ("Recurrent", ["loss.read=last"], "loss.kind or loss.read need the answer of each step"),
    ],
)
def test_what_cannot_work_is_refused_by_name(name, overrides, words):
    with pytest.raises(UserError) as refused:
        build(f"{HERE}:{name}", *overrides)
    assert words in str(refused.value)
    assert name in str(refused.value)


def test_neurons_in_place_of_relus_train_and_stream_with_one_for_each_place():
    model = build(f"{HERE}:SharedRelu", 'model.arguments.relu="swap"')
    assert model.takes == "steps"
    assert [name for name, _ in model.spiking_layers()] == ["net.act", "net.relu.0", "net.relu.1"]
    model.set_stateful()  # which compares windows with steps


def test_neurons_that_stay_modules_of_their_library_are_named_as_not_measured():
    pytest.importorskip("snntorch")
    model = build(f"{HERE}:SnnTorch")
    assert [name for name, _ in model.spiking_layers()] == ["net.neuron"]
    assert any(
        "not measured: leaky (it is called one step at a time" in line for line in model.notes()
    )


def test_a_neuron_that_training_calls_more_often_is_named_as_not_measured():
    model = build(f"{HERE}:LongerInTraining")
    assert not model.spiking_layers()
    assert "training shows it 4 time steps, and a test 3" in model.unmeasured["net.neuron"]


def test_a_step_in_which_the_images_choose_other_time_steps_is_not_measured():
    model = build(f"{HERE}:StopsWhenSure").train()
    (name, _), rows, said = *model.spiking_layers(), [], []
    monitor = GradientMonitor(
        model,
        batch=4,
        image_shape=(1, 8, 8),
        scale=lambda: 1.0,
        write=lambda step, measured: rows.append(step),
        warn=said.append,
    )
    for step, size in enumerate((1.0, 100.0, 100.0, 1.0)):
        with monitor.watch():
            model(torch.full((4, 1, 8, 8), size)).sum().backward()
        monitor.read(step)
    assert rows == [0, 3]
    assert [line.partition(";")[0] for line in said] == [
        f"step 1 is not measured: {name} is shown 2 time steps, and when the network was looked at 3"
    ]
    with pytest.raises(UserError, match=r"is shown 2 time steps.*accepted: as many of all images"):
        Prober(model, [(torch.full((4, 1, 8, 8), 100.0), None)], lambda x, y: x.sum()).measure()


def test_norms_are_fused_where_a_copy_answers_alike_in_both_modes():
    model = build(f"{HERE}:LongSkip")
    assert model.swapped.fused
    assert model.swapped.check["modes"] == ["eval", "training"]
    model = build(f"{HERE}:OtherInTests")
    assert model.swapped.fused == {}
    assert "in eval mode clamp is in front" in model.report()
    model = build(f"{HERE}:FrozenNorm")
    assert model.swapped.fused == {}
    (line,) = [line for line in model.notes() if line.startswith("not fused: ")]
    assert "a copy with norms in the neurons' kernels answers otherwise: another grad mode" in line
    assert build(f"{HERE}:FrozenNorm", "model.fused=false").differs == ""


def test_a_membrane_is_kept_where_the_network_reads_it():
    assert not any(neuron.stateful for _, neuron in build(f"{HERE}:LongSkip").spiking_layers())
    model = build("tests.models.public_nets:ThresholdNorm")
    assert all(neuron.stateful for _, neuron in model.spiking_layers())


def test_norms_of_others_are_not_joined_over_devices_and_the_refusal_says_why():
    with pytest.raises(
        UserError, match=r"sync_bn = true has no effect because .*batch norms are its own"
    ):
        recipe_of(f"{HERE}:LongSkip", "train.sync_bn=true")


def test_what_no_answer_depends_on_is_named():
    lines = build(f"{HERE}:RunningMean").notes()
    assert "not trained: spare.weight, spare.bias, on which no answer depends" in lines


def test_a_buffer_that_forward_replaces_stays_the_tensor_that_averages_know():
    model = build(f"{HERE}:RunningMean").train()
    mean = model.net.mean
    model(torch.ones(4, 1, 8, 8)).sum().backward()
    assert model.net.mean is mean
    assert mean.any()
