"""The verdict on hand-made nets and on hand-made numbers: word, layer, time step and cure."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spiketriton.config import Recipe, replace
from spiketriton.gradients.aims import ADAMW, IDENTITY, PLAIN_BLOCKS, SHORTCUTS, Aim
from spiketriton.gradients.aims import SGD as SGD_AIM
from spiketriton.gradients.measurement import KEYS, Measurement
from spiketriton.gradients.probing import Prober
from spiketriton.gradients.verdict import (
    FORGOTTEN,
    LIMITS,
    SILENT_RATE,
    Watch,
    comparable,
    cures,
    judge,
    lost_at,
    may_be_silent,
    times,
)
from spiketriton.models.layers import Parts
from spiketriton.models.network import Network
from spiketriton.neurons import SpikingNeuron
from spiketriton_kernels import Surrogate
from tests.small_runs import small_recipe

T, B, N = 6, 4, 5
FLAT = Surrogate("rectangle", 1.0, 1e6)  # every neuron passes its gradient on as it is


class Neuron(SpikingNeuron):
    """Keeps `decay` of its membrane, never resets, and passes gradients on unchanged."""

    def __init__(self, decay: float) -> None:
        super().__init__(reset="none", surrogate=FLAT)
        self.decay = decay

    def neuron_arguments(self) -> dict:
        return super().neuron_arguments() | {"decay": self.decay}


class HandMade(Network):
    """Layers that multiply by one number each; the loss may read the last time step only."""

    def __init__(self, factors: list[float], decay: float = 0.0, last_step_only: bool = False):
        super().__init__(Parts.of(small_recipe(f"time_steps={T}")), channels=1)
        self.layers = nn.ModuleList(Neuron(decay) for _ in factors)
        self.factors, self.last_step_only = factors, last_step_only
        self.fc = nn.Linear(N, N, bias=False)
        nn.init.eye_(self.fc.weight)

    def features(self, images: Tensor, steps: int) -> Tensor:
        x = images.flatten(1).expand(steps, -1, -1).clone().requires_grad_()
        for factor, neuron in zip(self.factors, self.layers, strict=True):
            x = neuron(factor * x)
        if self.last_step_only:
            x = x * (torch.arange(steps) == steps - 1).float().view(-1, 1, 1)
        return x


def measure(net: HandMade) -> Measurement:
    images = torch.ones(B, 1, 1, N)
    labels = torch.zeros(B, dtype=torch.long)
    return Prober(net, [(images, labels)], lambda currents, y: currents.sum()).measure()


def test_a_healthy_net_gets_no_finding():
    measured = measure(HandMade([1.0] * 5))
    for optimizer in ("sgd", "adamw"):
        verdict = judge(measured, optimizer)
        assert verdict.word == "healthy"
        assert verdict.line() == "gradient healthy, all layers fire"
        seen = judge(measured, optimizer, overlap=np.full(5, 0.5))
        assert seen.line() == "healthy, forward and backward"
        assert verdict.findings() == []
        assert cures(verdict, small_recipe()) == []
    assert measured.depth_gain == pytest.approx(1)


# the gradient passes factor i on its way from layer i into layer i - 1
@pytest.mark.parametrize(
    ("factors", "word", "steepest", "extreme"),
    [
        ([1, 10, 10, 300, 10], "exploding", 2, 0),
        ([1, 0.1, 0.1, 0.003, 0.1], "vanishing", 2, 0),
        ([1, 1, 1e4, 1, 1], "exploding", 1, 0),
        ([1, 1, 1, 1e-4, 1], "vanishing", 2, 0),
    ],
)
def test_trouble_through_depth_is_found_and_located(factors, word, steepest, extreme):
    measured = measure(HandMade(factors))
    verdict = judge(measured, "sgd")
    assert verdict.depth.word == verdict.word == word
    assert verdict.time.word == "healthy"
    assert verdict.depth.steepest == steepest
    assert verdict.depth.extreme[0] == extreme
    assert verdict.depth.ratio == pytest.approx(math.prod(factors[1:]), rel=1e-4)
    gain = math.prod(factors[1:]) ** 0.25
    assert verdict.depth.gain == pytest.approx(gain, rel=1e-4)
    assert measured.depth_gain == pytest.approx(gain, rel=1e-4)
    deviations = [math.log(f / gain) for f in factors[1:]]
    assert verdict.depth.spread == pytest.approx(math.exp(np.std(deviations)), rel=1e-4)
    assert f"{word} through depth" in verdict.line()
    assert f"layers.{steepest}" in verdict.findings()[0]


@pytest.mark.parametrize(
    ("decay", "word", "step"), [(0.1, "vanishing", 0), (8.0, "exploding", 0), (1.0, "healthy", 0)]
)
def test_trouble_through_time_is_found_and_located(decay, word, step):
    """A loss of the last step only, carried back by the membrane of a single layer."""
    verdict = judge(measure(HandMade([1.0], decay=decay, last_step_only=True)), "sgd")
    assert verdict.time.word == verdict.word == word
    assert verdict.depth.word == "healthy"
    assert verdict.time.gain == pytest.approx(decay, rel=1e-4)
    assert verdict.time.ratio == pytest.approx(decay ** (T - 1), rel=1e-4)
    if word != "healthy":
        assert verdict.time.extreme == (0, step)
        assert "through time" in verdict.findings()[0]
        assert f"time step {step}" in verdict.findings()[0]


def test_adamw_takes_a_growth_that_sgd_does_not():
    measured = measure(HandMade([1] + [100] * 4))  # 1e8
    assert judge(measured, "sgd").word == "exploding"
    assert judge(measured, "adamw").word == "healthy"
    assert judge(measure(HandMade([1] + [1e4] * 4)), "adamw").word == "exploding"
    fallen = measure(HandMade([1] + [0.1] * 4))
    assert judge(fallen, "sgd").word == judge(fallen, "adamw").word == "vanishing"


def made(**fields: np.ndarray) -> Measurement:
    """Three layers and two time steps, healthy but for `fields`."""
    even = np.ones((3, 2))
    values = {
        "grad_spike": even,
        "grad_input": even,
        "grad_carry": even,
        "time_factor": 0.5 * even,
        "outside": 0 * even,
        "firing": 0.2 * even,
        "peak": even,
        "nonfinite": 0 * even,
    }
    return Measurement(names=("a", "b", "c"), **{**values, **fields})


def test_dead_and_silent_layers_are_named():
    outside, firing = np.zeros((3, 2)), np.full((3, 2), 0.2)
    outside[1], firing[2] = 0.95, 1e-4
    verdict = judge(made(outside=outside, firing=firing))
    assert (verdict.dead_layer, verdict.silent_layer) == (1, 2)
    assert verdict.findings() == [
        "most neurons of b are outside the surrogate's reach",
        "silent: c fires 0.0001 times per neuron and time step, below the limit of 0.001; the layers "
        "after it see nothing",
    ]
    assert verdict.line() == "forward silent, backward blocked at b"
    assert (verdict.word, verdict.backward) == ("blocked", "blocked")
    assert verdict.dead_share == pytest.approx(0.95 / 3)


def test_the_first_value_that_is_not_finite_on_the_way_back_is_named():
    nonfinite = np.zeros((3, 2))
    nonfinite[0], nonfinite[1, 0] = 5, 2
    grads = np.where(nonfinite > 0, np.nan, 1.0)
    verdict = judge(made(nonfinite=nonfinite, grad_input=grads))
    assert verdict.nonfinite == (1, 0)
    assert verdict.depth.word == "exploding"
    assert verdict.line() == "not finite at b, time step 0"


@pytest.mark.parametrize("dead", [[0], [0, 1], [2], [0, 1, 2]])
def test_layers_without_any_gradient_vanish(dead):
    grads = np.ones((3, 2))
    grads[dead] = 0
    verdict = judge(made(grad_input=grads))
    assert verdict.depth.word == "vanishing"
    assert verdict.depth.extreme[0] == dead[0]
    assert verdict.findings()
    assert made(grad_input=grads).depth_gain == 0


@pytest.mark.parametrize("axis", ["depth", "time"])
@pytest.mark.parametrize(
    ("optimizer", "low", "high"),
    [("sgd", 1e-2, {"depth": 1e2, "time": 1e3}), ("adamw", 1e-2, {"depth": 1e12, "time": 1e3})],
)
def test_the_limits_of_the_ratios(axis, optimizer, low, high):
    """At the limit a net is healthy, a little beyond it is not."""

    def word(ratio: float) -> str:
        grads = np.ones((2, 2))
        grads[0 if axis == "depth" else (slice(None), 0)] = ratio
        fields = {name: grads for name in KEYS} | {"outside": 0 * grads, "nonfinite": 0 * grads}
        return getattr(judge(Measurement(("a", "b"), **fields), optimizer), axis).word

    assert [word(low * f) for f in (0.99, 1.01)] == ["vanishing", "healthy"]
    assert [word(high[axis] * f) for f in (0.99, 1.01)] == ["healthy", "exploding"]


def test_the_limits_of_dead_and_silent_layers():
    """Means over time steps of a layer: 90 % out of reach, a spike in 1,000 steps."""
    for share, dead in ((0.9, None), (0.91, 1)):
        outside = np.zeros((3, 2))
        outside[1] = share - 0.05, share + 0.05
        assert judge(made(outside=outside)).dead_layer == dead
    for rate, silent in ((1.01e-3, None), (0.99e-3, 2)):
        firing = np.full((3, 2), 0.2)
        firing[2] = 0, 2 * rate
        assert judge(made(firing=firing)).silent_layer == silent


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (None, "-"),
        (0.0, "0x"),
        (99.94, "99.9x"),
        (100, "100x"),
        (9999, "9999x"),
        (1e4, "1e4x"),
        (1e-3, "0.001x"),
        (0.9e-3, "9e-4x"),
        (3.217, "3.22x"),
    ],
)
def test_ratios_in_words(ratio, words):
    assert times(ratio) == words


def test_what_json_keeps_of_an_infinity_counts_as_exploding():
    rows = made().rows()
    rows[0]["grad_input_rms"] = None
    assert judge(Measurement.of_rows(rows)).depth.word == "exploding"


SGD = ("train.optimizer=sgd",)


@pytest.mark.parametrize(
    ("changes", "grads", "expected"),
    [
        (SGD, [1e6, 1e3, 1], ["neuron.surrogate.width=auto"]),
        (
            (*SGD, "neuron.surrogate.height=2", "model.norm=none"),
            [1e6, 1e3, 1],
            ["model.norm=bn", "neuron.surrogate.width=auto", "neuron.surrogate.height=1"],
        ),
        ((*SGD, "neuron.surrogate.width=auto"), [1e-6, 1, 1], ["width=auto_per_layer"]),
        ((*SGD, "neuron.surrogate.width=auto_per_layer"), [1e-6, 1, 1], []),
    ],
)
def test_cures_are_lines_that_the_recipe_takes(changes, grads, expected):
    recipe: Recipe = small_recipe(*changes)
    grads = np.array(grads)[:, None] * np.ones((3, 2))
    found = cures(judge(made(grad_input=grads), "sgd"), recipe)
    assert len(found) == len(expected)
    for cure, line in zip(found, expected, strict=True):
        assert line in cure.change
        assert replace(recipe, cure.change) != recipe
        assert cure.reason


@pytest.mark.parametrize(
    ("changes", "ratio", "expected"),
    [
        (("neuron.kind=if", "neuron.detach_reset=false"), 1e5, ["detach_reset=true", "kind=lif"]),
        (("neuron.tau=3",), 1e-5, ["neuron.tau=6"]),
        ((), 1e5, []),
    ],
)
def test_cures_of_trouble_through_time(changes, ratio, expected):
    grads = np.ones((3, 1)) * np.array([ratio, 1.0])
    recipe = small_recipe(*changes)
    found = cures(judge(made(grad_input=grads), "sgd"), recipe)
    assert len(found) == len(expected)
    for cure, line in zip(found, expected, strict=True):
        assert line in cure.change
        assert replace(recipe, cure.change) != recipe


def test_a_run_is_warned_of_each_trouble_once_with_its_cure():
    said: list[str] = []
    watch = Watch(small_recipe(*SGD), said.append)
    assert watch.in_words() == ""
    watch.look(1, made())
    depth, time = "depth 1x (limit 100x)", "time 1x (limit 1000x)"
    assert watch.in_words() == f"gradient healthy, all layers fire: {depth}, {time}"
    assert said == []
    grads = np.array([1e6, 1e3, 1])[:, None] * np.ones((3, 2))
    for step in (2, 3):
        watch.look(step, made(grad_input=grads))
    assert len(said) == 1
    assert said[0].startswith("step 2: the gradient is exploding through depth")
    assert "largest at a, time step 0" in said[0]
    assert "neuron.surrogate.width=auto" in said[0]
    watch.look(4, made(outside=np.ones((3, 2))))
    assert len(said) == 2
    assert "outside the surrogate's reach" in said[1]


def test_every_limit_lies_around_one():
    assert {name for name, _ in LIMITS} == {"depth", "time"}
    assert {optimizer for _, optimizer in LIMITS} == {"sgd", "adamw"}
    assert all(limits.low < 1 < limits.high for limits in LIMITS.values())


@pytest.mark.parametrize("layers", [2, 20, 50, 110])
@pytest.mark.parametrize(
    ("aim", "optimizer"),
    [(SGD_AIM, "sgd"), (IDENTITY, "sgd"), (IDENTITY, "adamw"), (ADAMW, "adamw"), (ADAMW, "sgd")],
)
def test_what_is_aimed_at_is_healthy_at_any_depth(aim, optimizer, layers):
    def judged(ratio: float) -> str:
        grads = np.geomspace(ratio, 1, layers)[:, None] * np.ones((1, 2))
        fields = {name: np.ones((layers, 2)) for name in KEYS} | {"grad_input": grads}
        fields |= {"outside": 0 * grads, "nonfinite": 0 * grads}
        names = tuple(f"layer{i}" for i in range(layers))
        depth = judge(Measurement(names, **fields), optimizer, aim=aim).depth
        found = [float(x) for x in re.findall(NUMBER, depth.sentence()) if x]
        assert found[0] == pytest.approx(ratio, rel=0.06)
        return depth.word

    growth = aim.growth(layers)
    usual = LIMITS["depth", optimizer]
    assert judged(growth) == "healthy"
    assert judged(max(usual.high, 10 * growth) * 2) == "exploding"
    assert judged(min(usual.low, growth / 10) / 2) == "vanishing"
    if aim.goal == "transmission":
        assert growth == 1


def test_a_block_gain_counts_blocks_and_the_reason_names_it():
    names = ("neuron1", *(f"layer1.{i}.neuron{k}" for i in range(16) for k in (1, 2, 3)))
    shape = (len(names), 1)
    fields = {name: np.ones(shape) for name in KEYS} | {"outside": np.zeros(shape)}
    fields |= {"nonfinite": np.zeros(shape)}
    fields["grad_input"] = np.geomspace(1.5**16, 1, len(names))[:, None]
    depth = judge(Measurement(names, **fields), "sgd", aim=PLAIN_BLOCKS["sgd", True]).depth
    assert (depth.word, depth.limits.high) == ("healthy", pytest.approx(10 * 1.5**16))
    assert "a block gain of 1.5 is aimed at, 657x over all of them" in depth.sentence()
    # 1.05 from block to block stays within the usual limits, so their reason stands
    assert judge(Measurement(names, **fields), "sgd", aim=SHORTCUTS["ms"]).depth.word == "exploding"


BOTTLENECKS = (
    "neuron1",
    "layer1.0.neuron1",
    "layer1.0.downsample.2",
    "layer1.0.neuron2",
    "layer1.1.neuron1",
    "layer1.1.neuron2",
    "neuron_last",
)


@pytest.mark.parametrize(
    ("gain", "arrives", "chosen"),
    [
        ("1", [1, 1, 1, 1, 1, 1, 1], None),
        ("0.5", [1, 1, 1, 1, 1, 1, 1], None),
        ("0.49", [1, 1, 1, 1, 1, 1, 1], ["neuron1", "layer1.0.neuron2", "layer1.1.neuron2"]),
        # a last layer that nothing reaches is no sign of closed blocks where others are reached
        ("auto", [0, 0, 0, 1, 0, 1, 1], ["neuron1", "layer1.0.neuron2", "layer1.1.neuron2"]),
        ("0", [0, 0, 0, 0, 0, 0, 1], []),  # before anything is learnt
    ],
)
def test_blocks_that_start_closed_are_judged_by_their_last_layers(gain, arrives, chosen):
    grads = np.array(arrives, float)[:, None] * [1e-3, 2e-3]
    arrays = {f.name: grads for f in dataclasses.fields(Measurement)[1:]}
    arrays |= {"nonfinite": 0 * grads, "firing": 0 * grads + 0.1, "outside": 0 * grads}
    measured = Measurement(names=BOTTLENECKS, **arrays)
    recipe = small_recipe(f"model.residual_gain={gain}")
    among = comparable(measured, recipe)
    assert (among if among is None else [BOTTLENECKS[i] for i in among]) == chosen
    verdict = judge(measured, among=among)
    assert verdict.closed == (chosen == [])
    if chosen == []:
        assert verdict.word == "healthy"
        assert "still closed" in verdict.sentences()[1]
        assert "blocks still closed" in verdict.brief()
    elif not arrives[0]:
        assert verdict.depth.word == "vanishing"
        assert verdict.depth.extreme[0] == 0  # of all layers, not of those compared
        assert verdict.depth.steepest == 0
    arrays["nonfinite"] = 0 * grads
    arrays["nonfinite"][1] = 3.0  # inside a block
    bad = Measurement(names=BOTTLENECKS, **arrays)
    assert judge(bad, among=comparable(bad, recipe)).nonfinite == (1, 1)


@pytest.mark.parametrize(
    ("block", "gain", "silent"),
    [("sew", "auto", []), ("sew", "0.1", []), ("sew", "1", [3, 5]), ("plain", "0.1", [3, 5])],
)
def test_closed_branches_of_sew_blocks_may_be_silent(block, gain, silent):
    recipe = small_recipe(f"model.block={block}", f"model.residual_gain={gain}")
    firing = np.full((7, 2), 0.1)
    firing[[3, 5]] = 0  # the last neurons of both blocks
    fields = {name: np.ones((7, 2)) for name in KEYS} | {"firing": firing}
    fields |= {"outside": 0 * firing, "nonfinite": 0 * firing}
    measured = Measurement(BOTTLENECKS, **fields)
    verdict = judge(measured, may_be_silent=may_be_silent(BOTTLENECKS, recipe))
    assert (verdict.silent_layer in silent) if silent else (verdict.silent_layer is None)


NUMBER = r"(\d[\d.e+-]*)x"
WORDS = ("healthy", "vanishing", "exploding", "blocked", "silent", "lost", "not finite")


@pytest.mark.parametrize("seed", range(300))
def test_no_sentence_contradicts_its_numbers(seed):
    """Every word is recomputed from the numbers that stand beside it in the same sentence."""
    rng = np.random.default_rng(seed)
    layers, steps = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    shape = (layers, steps)

    def slopes(scale: float) -> np.ndarray:
        depth = rng.normal() * scale * np.arange(layers)[:, None]
        return depth + rng.normal() * 0.5 * scale * np.arange(steps)

    grads = np.exp(slopes(rng.choice([0.1, 2, 8])))
    if rng.random() < 0.2:
        grads[int(rng.integers(layers))] = 0
    nonfinite = np.zeros(shape)
    if rng.random() < 0.1:
        nonfinite[int(rng.integers(layers)), int(rng.integers(steps))] = 4
        grads = np.where(nonfinite > 0, rng.choice([np.nan, np.inf]), grads)
    firing = np.full(shape, rng.choice([0.2, 5e-4, 2e-3])) * rng.uniform(0.5, 1.5, shape)
    outside = np.full(shape, rng.choice([0.0, 0.5, 0.95]))
    overlap = rng.uniform(-0.05, 0.99, layers) if rng.random() < 0.7 else None
    fields = {name: np.ones(shape) for name in KEYS} | {"grad_input": grads, "firing": firing}
    fields |= {"outside": outside, "nonfinite": nonfinite}
    names = tuple(f"layer{i}" for i in range(layers))
    optimizer = str(rng.choice(["sgd", "adamw"]))
    aim = rng.choice([None, Aim("depth gain", rng.choice([0.5, 0.8, 1.2, 2, 30]), "a reason")])
    verdict = judge(Measurement(names, **fields), optimizer, overlap, aim=aim)

    forward, *backward = verdict.sentences()
    if firing.mean(1).min() < SILENT_RATE:
        assert forward.startswith("forward: silent")
        assert verdict.silent_layer is not None
        assert f"layer{firing.mean(1).argmin()} fires" in forward
    elif overlap is not None:
        kept = float(re.search(r"keeps (\d+) %", forward)[1]) / 100
        assert kept == pytest.approx(max(overlap[-1], 0), abs=0.0051)
        lost = lost_at(overlap)
        word = "healthy" if lost is None else "lost"
        assert forward.startswith(f"forward: {word}")
        assert verdict.forward.word == word
        assert (overlap[-1] < FORGOTTEN) == (word == "lost")
    else:
        assert "is measured by spiketriton diagnose" in forward
        assert "healthy" not in forward
    if nonfinite.any():
        assert verdict.word == "not finite"
        assert "not finite" in backward[0]
        assert "healthy" not in verdict.line()
        assert "healthy" not in backward[0]
        return
    for axis, sentence in zip(verdict.axes, backward, strict=False):
        limits = axis.limits
        assert f"through {axis.name}" in sentence
        said = [word for word in WORDS if f": {word}:" in sentence]
        if axis.places == 1:
            assert said == []
            assert axis.word == "healthy"
            continue
        assert said == [axis.word]
        if axis.ratio is None:
            assert "no gradient arrives" in sentence
            assert axis.word == "vanishing"
            continue
        ratio, *limit = [float(x) for x in re.findall(NUMBER, sentence)]
        limit = limit[: 2 if axis.word == "healthy" else 1]
        assert ratio == pytest.approx(axis.ratio, rel=0.06)
        if axis.word == "healthy":
            assert limit == pytest.approx([limits.low, limits.high], rel=0.06)
            assert limits.low <= ratio * 1.06
            assert ratio <= limits.high * 1.06
        elif axis.word == "exploding":
            assert limit == pytest.approx([limits.high], rel=0.06)
            assert ratio >= limits.high * 0.94
        else:
            assert limit == pytest.approx([limits.low], rel=0.06)
            assert ratio <= limits.low * 1.06
    blocked = outside.mean() > 0.9
    assert ("blocks it" in backward[-1]) == blocked == (verdict.dead_layer is not None)
    share = float(re.search(r"(\d+) %", backward[-1])[1]) / 100
    assert share == pytest.approx(outside.mean(), abs=0.0051)
    # the line and the word follow from the parts, and trouble always has a finding
    troubles = [axis.word for axis in verdict.axes if axis.limits_reached]
    assert (verdict.backward == "healthy") == (not troubles and not blocked)
    assert (verdict.word == "healthy") == (verdict.findings() == [])
    line = verdict.line()
    assert all(word in line for word in troubles)
    assert verdict.brief().startswith(line)
    if verdict.word == "healthy":
        assert not any(word in line for word in WORDS[1:])
