"""`sequence`: linear layers over [T, B, C], and what is behind the end of a sequence."""

import pytest
import torch

from spiketriton.evaluate.energy import workload
from spiketriton.gradients.through_time import through_time
from spiketriton.models import build_model, count_parameters
from spiketriton.models.agreement import counted_graph, noise
from spiketriton.neurons import Norm
from spiketriton.plugins.tasks import Reading, task_of
from spiketriton.system.errors import UserError
from spiketriton_kernels.nn import LIF
from tests.covering import each, pairwise
from tests.small_sequences import CHANNELS, CLASSES, STEPS, sequence_recipe

B = 5


def build(*overrides, seed=0):
    torch.manual_seed(seed)
    recipe = sequence_recipe(*overrides)
    return build_model(recipe, classes=CLASSES, channels=CHANNELS, image_size=1, sequence=True)


def shown(steps=STEPS, batch=B, seed=1):
    return torch.randn(steps, batch, CHANNELS, generator=torch.Generator().manual_seed(seed))


LENGTHS = torch.tensor([12, 3, 7, 1, 12])


def test_parallel_neurons_of_sequences_read_all_steps_from_the_start_on():
    """Those of chains for images start as a leak, with which `digits_rows` has ten points less."""
    for layer in build("neuron.kind=psn").layers:
        weight = layer.neuron.weight.detach()
        assert weight.shape == (STEPS, STEPS)
        assert weight.triu(1).abs().max() > 0.01


def test_it_is_linear_norm_and_neuron_layer_by_layer():
    net = build().eval()
    x = shown()
    expected = x
    for layer in net.layers:
        expected = layer.neuron(layer.bn(layer.weights(expected)))
    torch.testing.assert_close(net(x), net.fc(expected))
    assert expected.unique().tolist() == [0, 1]
    assert count_parameters(net) == 3 * 8 + 16 + 8 * 8 + 16 + 8 * 4 + 4
    assert [name for name, _ in net.spiking_layers()] == ["layers.0.neuron", "layers.1.neuron"]
    assert counted_graph(net, noise(net, (CHANNELS,), True))


@pytest.mark.parametrize(
    ("kind", "norm"), each(["lif", "psn", "ilif", "relu"], ["bn", "tebn", "none"])
)
def test_with_delays_it_is_delays_norm_and_neuron(kind, norm):
    net = build(f"neuron.kind={kind}", f"model.norm={norm}", "model.delays=4")
    assert [layer.weights.longest for layer in net.layers] == [4, 4]
    x = shown()
    for training in (True, False):
        net.train(training)
        expected = x
        for layer in net.layers:
            expected = layer.neuron(layer.bn(layer.weights.define(expected)))
        torch.testing.assert_close(net(x), net.fc(expected), rtol=1e-4, atol=1e-5)
    assert counted_graph(net, noise(net, (CHANNELS,), True))
    biases = 16 * (norm == "none")
    plain = count_parameters(build(f"neuron.kind={kind}", f"model.norm={norm}"))
    assert count_parameters(net) == plain + 3 * 8 + 8 * 8
    assert sum(layer.weights.bias is not None for layer in net.layers) * 8 == biases


def test_delays_carry_credit_through_time():
    """Alone: a membrane of tau 1 forgets at once."""
    net = build("model.delays=4", "neuron.tau=1.0", "loss.read=last", "model.norm=none")
    with torch.no_grad():
        for layer in net.layers:
            layer.weights.weight.abs_()
    x, y = shown(), torch.arange(B) % CLASSES
    reads = task_of(sequence_recipe("loss.read=last").loss).loss
    found = through_time(net, net.spiking_layers(), STEPS, lambda: reads(net(x), y))
    first, last = found.credit
    assert not last.any()  # the last layer's spikes are not delayed any more
    assert (first[-5:-1] > 0).all()
    assert not first[: STEPS - 5].any()
    assert not found.direct[:, :-1].any()


@pytest.mark.parametrize(
    ("more", "norm", "cast"),
    pairwise(
        [(), ("model.delays=3",), ("model.recurrent=true",)], ["bn", "tebn", "none"], [False, True]
    ),
)
def test_currents_that_are_computed_again_give_the_same_bits_from_less_memory(more, norm, cast):
    """Of sequences of different lengths, whose norms compute their statistics themselves, too."""
    net_keys = ("model.depth=4", "model.width=32", f"model.norm={norm}", *more)
    for lengths in (None, LENGTHS):
        runs, kept = [], []
        for memory in ("standard", "packed", "recomputed"):
            net = build(*net_keys, f"model.memory={memory}")
            saved = {}

            def keep(tensor, saved=saved):
                if not isinstance(tensor, torch.nn.Parameter):
                    saved.setdefault(tensor.data_ptr(), tensor)
                return tensor

            net.on_save = keep
            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            with hooks, torch.autocast("cpu", torch.bfloat16, enabled=cast):
                currents = net(shown(batch=5), lengths=lengths)
            currents.square().sum().backward()
            runs.append([currents, *(p.grad for p in net.parameters()), *net.buffers()])
            kept.append(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
        if lengths is None and not more and norm == "bn":
            assert kept[2] < 0.5 * kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize(
    "more",
    [
        *(["model.norm=" + norm] for norm in ("bn", "tdbn", "tebn", "none")),
        ["model.recurrent=true"],
        ["model.recurrent=true", "neuron.kind=relu"],
    ],
    ids=str,
)
def test_what_is_behind_the_end_changes_nothing(more):
    """Answers, gradients, running statistics and running on do not see the padding, whatever it is."""
    found = []
    for padding in (0.0, 50.0):
        net = build(*more)
        x = shown()
        behind = torch.arange(STEPS).unsqueeze(1) >= LENGTHS
        x[behind] = padding
        loss = task_of(sequence_recipe().loss).loss
        currents = net(x, lengths=LENGTHS)
        loss(currents, torch.arange(B) % CLASSES, LENGTHS).backward()
        assert all(m.valid is None for m in net.modules() if isinstance(m, Norm))
        state = [p.grad for p in net.parameters()] + [*net.buffers()]
        found.append([Reading("last")(currents, LENGTHS), *state])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("norm", ["bn", "tdbn"])
def test_statistics_of_the_valid_steps_are_constants_in_credit(norm):
    """Read at the last valid step, nothing reaches another one but by way of time."""
    net = build(f"model.norm={norm}")
    x, y = shown(), torch.arange(B) % CLASSES
    loss = task_of(sequence_recipe("loss.read=last").loss).loss
    layers = net.spiking_layers()
    found = through_time(net, layers, STEPS, lambda: loss(net(x, lengths=LENGTHS), y, LENGTHS))
    lasts = (LENGTHS - 1).tolist()
    assert found.direct[:, lasts].all()
    assert not found.direct[:, [t for t in range(STEPS) if t not in lasts]].any()
    assert found.credit[:, 0].all()
    assert not any(m.constant_statistics for m in net.modules() if isinstance(m, Norm))


def test_full_lengths_are_no_lengths():
    net, twin = build(), build()
    x, full = shown(), torch.full((B,), STEPS)
    torch.testing.assert_close(net(x, lengths=full), twin(x))
    for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "delays", "recurrent"),
    pairwise(["lif", "alif", "ilif", "relu"], [0, 3, 20], ["false", "true"]),
)
def test_chunks_give_what_the_window_gives(kind, delays, recurrent):
    more = f"model.delays={delays}", f"model.recurrent={recurrent}"
    net = build(f"neuron.kind={kind}", *more).eval()
    x = shown()
    with torch.no_grad():
        whole = net(x)
        net.set_stateful()
        parts = torch.cat([net(x[:5]), net(x[5:6]), net(x[6:])])
    torch.testing.assert_close(parts, whole)
    net.set_stateful(False)
    torch.testing.assert_close(net(x), whole)


@pytest.mark.parametrize("kind", ["alif", "relu"])
def test_spikes_come_back_to_their_layer(kind):
    net = build(f"neuron.kind={kind}", "model.recurrent=true").eval()
    x = shown()
    expected = x
    for layer in net.layers:
        current = layer.bn(layer.weights(expected))
        expected = layer.neuron.define(current)
        with torch.no_grad():
            assert not torch.equal(expected, layer.neuron.neuron(current))
    torch.testing.assert_close(net(x), net.fc(expected))
    assert count_parameters(net) == 3 * 8 + 16 + 8 * 8 + 16 + 8 * 4 + 4 + 2 * 8 * 8
    spiking = [f"layers.{i}.neuron.neuron" for i in (0, 1)]
    assert [name for name, _ in net.spiking_layers()] == (spiking if kind == "alif" else [])
    graph = counted_graph(net, noise(net, (CHANNELS,), True))
    work = workload(graph, (CHANNELS,))
    assert [work.fan_out[name].unique().tolist() for name in spiking] == [[8 + 8], [8 + 4]]
    assert work.ann_macs == 3 * 8 + 8 * 8 + 8 * 4 + 2 * 8 * 8
    assert work.macs_per_step + work.macs_once == 3 * 8


def test_neurons_without_a_step_are_not_recurrent():
    class Forward(LIF):
        def forward(self, x):
            return super().forward(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spiketriton.models.layers.build_neuron", lambda *_: Forward())
        with pytest.raises(
            UserError, match=r"model\.recurrent = true: Recurrent with Forward, which"
        ):
            build("model.recurrent=true")


def test_what_is_no_sequence_is_refused():
    net = build()
    for wrong in (torch.zeros(B, CHANNELS, 2, 2), torch.zeros(STEPS, B, CHANNELS + 1)):
        with pytest.raises(UserError, match=r"accepted: sequences \[T, B, 3\]"):
            net(wrong)


def test_images_and_sequences_have_networks_of_their_own():
    sizes = {"classes": CLASSES, "channels": CHANNELS, "image_size": 8}
    with pytest.raises(UserError, match=r'shows it images; accepted: data.sequence = "rows"'):
        build_model(sequence_recipe(), **sizes)
    recipe = sequence_recipe("model.name=mlp")
    with pytest.raises(UserError, match=r'shows it sequences; accepted: model.name = "sequence"'):
        build_model(recipe, **sizes, sequence=True)


def test_the_ann_twin_answers_each_step_by_itself():
    net = build("neuron.kind=relu").eval()
    x = shown()
    torch.testing.assert_close(net(x)[4:5], net(x[4:5]))
    assert net(x).shape == (STEPS, B, CLASSES)
