"""What a network begins with: what is taken of other weights and what is left; parameters that stay."""

import pytest
import torch
import torchvision

from spiketriton.config import recipe_from_toml
from spiketriton.models import build_model
from spiketriton.system.errors import UserError
from spiketriton.training.pretrained import find_weights, freeze, take_weights
from spiketriton_kernels.nn import LIF
from tests.small_runs import assert_equal, small_recipe, small_trainer

DIGITS = tuple("0123456789")


def network(*overrides, classes=10):
    return build_model(small_recipe(*overrides), classes=classes, channels=1, image_size=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    small_trainer(path, "train.max_steps=3").fit()
    return path


def test_weights_are_found_in_runs_and_files(trained, tmp_path):
    last = trained / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)["model"]
    files = {
        "state_dict": state,
        "nested": {"epoch": 3, "state_dict": state},
        "parallel": {f"module.{name}": value for name, value in state.items()},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    kept = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
    for source in (trained, last, *(tmp_path / name for name in files)):
        assert_equal(dict(find_weights(str(source))), kept)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "nowhere does not exist"),
        ("text", "is no file of weights"),
        ("empty", "holds no weights"),
        (".", "holds no run"),
        ("torchvision:resnet5", "did you mean torchvision:resnet50?"),
    ],
)
def test_sources_without_weights_are_named(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no weights")
    torch.save({"epoch": 3}, tmp_path / "empty")
    with pytest.raises(UserError) as caught:
        find_weights(source)
    assert words in str(caught.value)


def test_an_ann_of_torchvision_fits_the_plain_resnet_name_by_name(monkeypatch):
    text = (
        'data.name="imagenette"\nmodel.name="resnet18"\nmodel.stem="imagenet"\nneuron.kind="{}"\n'
    )
    theirs = torchvision.models.resnet18()
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: theirs)
    for kind in ("relu", "lif"):
        recipe = recipe_from_toml(text.format(kind), "x")
        ours = build_model(recipe, classes=10, channels=3, image_size=32)
        report = take_weights(
            ours, find_weights("torchvision:resnet18"), "torchvision:resnet18", DIGITS
        )
        assert report.left == {
            name: "of another shape (a new head)" for name in ("fc.weight", "fc.bias")
        }
        assert report.fresh == []
        assert torch.equal(ours.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


STEPS = 3
RENAMED = {  # a name of each SpikingJelly network, and ours
    "plain": {},  # its neurons have no tensors, and all other names are torchvision's
    "sew": {"sn1.w": "neuron1.w", "layer2.0.downsample_sn.w": "layer2.0.downsample.2.w"},
    "ms": {"stem.0.weight": "conv1.weight", "head.weight": "fc.weight"},
}


def of_spikingjelly(block):
    """One of its spiking ResNet-18, in float64 and multi-step, and the recipe lines of the same network."""
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.model import ms_resnet, sew_resnet, spiking_resnet

    if block == "plain":
        net = spiking_resnet.spiking_resnet18(spiking_neuron=neuron.LIFNode, num_classes=10)
        lines = 'stem="imagenet"\n[neuron]\nkind="lif"\ndecay_input=true\n'
    elif block == "sew":
        plif = neuron.ParametricLIFNode
        net = sew_resnet.sew_resnet18(spiking_neuron=plif, cnf="ADD", num_classes=10)
        lines = 'stem="imagenet"\n[neuron]\nkind="plif"\ndecay_input=true\n'
    else:
        net = ms_resnet.ms_resnet18(T=STEPS, num_classes=10)
        lines = 'stem="strided"\n[neuron]\ntau=1.3333333333333333\nv_threshold=0.5\n'
    functional.set_step_mode(net, "m")
    return net.double(), lines, functional.reset_net


@torch.no_grad()
@pytest.mark.parametrize("block", RENAMED)
def test_a_spiking_resnet_of_spikingjelly_computes_the_same(tmp_path, block):
    torch.manual_seed(0)
    theirs, lines, reset = of_spikingjelly(block)
    for parameter in theirs.parameters():
        if parameter.ndim < 2:  # norms, leaks and the head's bias: all of their own
            parameter.add_(torch.rand_like(parameter) * 0.5)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    frames = x.expand(STEPS, -1, -1, -1, -1)
    for _ in range(2):  # statistics that are not the first ones
        theirs(frames)
        reset(theirs)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")

    recipe = recipe_from_toml(
        f'time_steps={STEPS}\n[data]\nname="imagenette"\n[model]\nname="resnet18"\nblock="{block}"\n'
        + lines, "x",
    )  # fmt: skip
    ours = build_model(recipe, classes=10, channels=3, image_size=32).double().eval()
    report = take_weights(ours, find_weights(str(tmp_path / "theirs.pt")), "theirs", DIGITS)
    assert (report.left, report.fresh) == ({}, [])
    assert len(report.taken) == len(theirs.state_dict())
    expected = theirs.eval()(frames)
    found = ours(x).mean(0) if block == "ms" else ours(x)  # which gives the mean
    assert found.std() > 1e-3
    torch.testing.assert_close(found, expected.float())
    assert report.renamed.items() >= RENAMED[block].items()
    said = "\n".join(report.lines())
    assert ("under SpikingJelly's names: " in said) == (block != "plain") == bool(report.renamed)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("layer1.0.spike2.w", "layer1.0.neuron2.w"),
        ("head_lif.w", "neuron_last.w"),
        ("layer1.0.conv1.module.0.weight", "layer1.0.conv1.weight"),
        ("layer1.0.conv2.module.1.running_mean", "layer1.0.bn2.running_mean"),
        ("layer2.0.downsample.0.module.0.weight", "layer2.0.downsample.0.weight"),
        ("layer2.0.downsample.0.module.1.bias", "layer2.0.downsample.1.bias"),
    ],
)
def test_the_names_of_other_code_are_known(theirs, ours):
    """Of learnt leaks in ms_resnet, and of the SEW-ResNet paper's own code."""
    net = network("model.block=" + ("ms" if theirs.endswith(".w") else "sew"), "neuron.kind=plif")
    value = torch.randn_like(net.state_dict()[ours])
    report = take_weights(net, {theirs: value}, "a file", DIGITS)
    assert report.renamed == {theirs: ours}
    assert torch.equal(net.state_dict()[ours], value)
    assert ours not in report.fresh
    both = take_weights(net, {theirs: value, ours: value}, "a file", DIGITS)
    assert both.left == {theirs: "which this network does not have"}


def test_another_number_of_classes_gets_a_new_head_and_the_report_says_so(trained):
    net = network(classes=5)
    head = net.fc.weight.detach().clone()
    report = take_weights(
        net, find_weights(str(trained)) | {"extra": torch.ones(1)}, "a run", DIGITS
    )
    assert torch.equal(net.fc.weight, head)
    lines = report.lines()
    assert lines[0] == f"weights: {len(report.taken)} tensors taken from a run"
    assert "  left, of another shape (a new head): fc.weight, fc.bias" in lines
    assert "  left, which this network does not have: extra" in lines


def test_no_bias_is_taken_without_its_weights():
    net = network()
    bias = net.fc.bias.detach().clone()
    fits = {"conv1.weight": torch.ones_like(net.conv1.weight)}
    head = {"fc.weight": torch.ones(10, 3), "fc.bias": torch.ones(10)}
    assert take_weights(net, fits | head, "there", DIGITS).taken == ["conv1.weight"]
    assert torch.equal(net.fc.bias, bias)


def test_counters_and_biases_of_another_width_are_not_enough(trained):
    with pytest.raises(
        UserError, match=r"nothing in there fits this network: it holds conv1.weight \["
    ):
        take_weights(network("model.width=8"), find_weights(str(trained)), "there", DIGITS)


def test_a_run_begins_with_the_weights_and_says_so(trained, tmp_path):
    trainer = small_trainer(tmp_path / "run", f"train.init_from={trained}")
    state = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert_equal(dict(trainer.model.state_dict()), dict(state))
    assert "tensors taken from" in trainer.display.text


@pytest.mark.parametrize("patterns", [("conv1", "bn1"), ("*.conv?.weight",)])
def test_what_is_frozen_stays_and_the_rest_learns(tmp_path, patterns):
    listed = ", ".join(f'"{p}"' for p in patterns)
    trainer = small_trainer(tmp_path / "run", f"train.freeze=[{listed}]", "train.weight_decay=0.1")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    frozen = {n for n, p in trainer.model.named_parameters() if not p.requires_grad}
    assert frozen
    trainer.fit(until=3)
    norms = {name for name, m in trainer.model.named_modules() if m in trainer.model.frozen}
    for name, value in trainer.model.state_dict().items():
        if name.endswith("_extra_state"):
            continue
        kept = name in frozen or name.rpartition(".")[0] in norms
        assert torch.equal(value, before[name]) == kept, name


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("conv9", '"conv9" names no parameter'), ("*", "leaves nothing to train")],
)
def test_patterns_that_name_nothing_or_all_are_refused(pattern, words):
    with pytest.raises(UserError) as caught:
        freeze(network(), [pattern])
    assert words in str(caught.value)


@pytest.mark.parametrize("classes", [tuple("abcdefghij"), DIGITS[::-1]])
def test_a_head_of_as_many_other_classes_is_new(trained, tmp_path, classes):
    net = network()
    before = net.fc.weight.clone()
    source = find_weights(str(trained))
    assert source.classes == DIGITS
    report = take_weights(net, source, "a run", classes)
    assert report.left == dict.fromkeys(("fc.weight", "fc.bias"), "of other classes (a new head)")
    assert torch.equal(net.fc.weight, before)
    assert torch.equal(net.conv1.weight, source["conv1.weight"])
    take_weights(net, source, "a run", DIGITS)
    assert torch.equal(net.fc.weight, source["fc.weight"])
    torch.save(dict(source), tmp_path / "weights.pt")  # which says nothing of classes
    assert (
        take_weights(net, find_weights(str(tmp_path / "weights.pt")), "there", classes).left == {}
    )


def test_the_head_of_a_handed_network_is_its_last_layer_with_as_many_outputs(tmp_path):
    import spiketriton

    def net():
        layers = (torch.nn.Flatten(2), torch.nn.Linear(64, 10), LIF(), torch.nn.Linear(10, 10))
        return torch.nn.Sequential(*layers)

    few = {"max_steps": 2, "data.image_size": 8, "quiet": True}
    first = spiketriton.train(net(), "quickstart", run_dir=tmp_path / "first", **few)
    weights = find_weights(str(first.path))
    other = network()
    other.net = net()
    names = [f"net.{at}.{kind}" for at in (1, 3) for kind in ("weight", "bias")]
    assert {*names} <= {*weights}
    report = take_weights(other, weights, "first", tuple("abcdefghij"))
    assert report.left == dict.fromkeys(names[2:], "of other classes (a new head)")
