"""The verdict on hand-made nets and on hand-made numbers: word, layer, time step and cure."""

import dataclasses
import math
import re

import numpy as np
import pytest

from spiketriton.config import Recipe, replace
from spiketriton.gradients.measurement import KEYS, Measurement
from spiketriton.gradients.verdict import (
    LIMITS,
    Learned,
    Word,
    cures,
    judge,
    last_layers,
    lost_at,
    mean_loss,
)
from spiketriton.gradients.watch import Watch
from spiketriton.show.verdict import (
    WHY,
    advice,
    brief,
    change,
    findings,
    line,
    nothing_learnt,
    sentences,
    warning,
)
from spiketriton.show.words import times
from tests.small_runs import small_recipe


def made(layers: int = 3, **fields: np.ndarray) -> Measurement:
    """Layers a, b, ... and two time steps, healthy but for `fields`."""
    even = np.ones((layers, 2))
    values = dict.fromkeys(KEYS, even) | {"firing": 0.2 * even}
    values |= {"outside": 0 * even, "nonfinite": 0 * even, **fields}
    return Measurement(names=tuple("abcdefgh"[:layers]), **values)


def through_depth(grads: list[float]) -> Measurement:
    return made(len(grads), grad_input=np.array(grads, float)[:, None] * np.ones(2))


def test_a_net_without_an_obstacle_gets_no_finding():
    for optimizer in ("sgd", "adamw"):
        verdict = judge(made(), optimizer)
        assert verdict.word == Word.FREE
        assert line(verdict) == "no obstacle found"
        assert line(judge(made(), optimizer, overlap=np.full(3, 0.5))) == "no obstacle found"
        assert findings(verdict) == []
        assert cures(small_recipe(), verdict) == []


@pytest.mark.parametrize(
    ("grads", "word", "steepest"),
    [
        ([3e5, 3e4, 3e3, 10, 1], Word.EXPLODING, 2),
        ([3e-6, 3e-5, 3e-4, 0.1, 1], Word.VANISHING, 2),
        ([1e4, 1e4, 1, 1, 1], Word.EXPLODING, 1),
        ([1e-4, 1e-4, 1e-4, 1, 1], Word.VANISHING, 2),
    ],
)
def test_trouble_through_depth_is_found_and_located(grads, word, steepest):
    verdict = judge(through_depth(grads), "sgd")
    assert verdict.backward.word == verdict.word == word
    assert verdict.backward.steepest == steepest
    assert verdict.backward.extreme[0] == 0
    assert verdict.backward.ratio == pytest.approx(grads[0])
    assert f"{word} backward" in line(verdict)
    assert f"steepest on the way into {'abcde'[steepest]}" in findings(verdict)[0]


def test_the_gradient_through_time_is_told():
    verdict = judge(made(grad_input=np.tile([32.0, 1.0], (3, 1))), "sgd")
    assert verdict.word == Word.FREE
    assert verdict.time_ratio == pytest.approx(32)
    assert "the gradient is 32x that at the last" in sentences(verdict)[2]


def test_dead_and_silent_layers_are_named():
    outside, firing = np.zeros((3, 2)), np.full((3, 2), 0.2)
    outside[1], firing[2] = 0.95, 1e-4
    verdict = judge(made(outside=outside, firing=firing))
    assert (verdict.dead_layer, verdict.forward.quietest, verdict.word) == (1, 2, Word.SILENT)
    assert findings(verdict) == [
        "silent: c fires 0.0001 times per neuron and time step, below the limit of 0.001; no signal "
        "reaches the layers after it",
    ]
    assert line(verdict) == "silent forward"
    assert sentences(verdict)[-1].endswith(", over 90 % in b")
    assert verdict.dead_share == pytest.approx(0.95 / 3)


def test_the_first_value_that_is_not_finite_on_the_way_back_is_named():
    nonfinite = np.zeros((3, 2))
    nonfinite[0], nonfinite[1, 0] = 5, 2
    grads = np.where(nonfinite > 0, np.nan, 1.0)
    verdict = judge(made(nonfinite=nonfinite, grad_input=grads))
    assert verdict.backward.nonfinite == (1, 0)
    assert verdict.word == Word.NOT_FINITE
    assert line(verdict) == "not finite at b, time step 0"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("dead", [[0], [0, 1], [2], [0, 1, 2]])
def test_layers_without_any_gradient_vanish(dead, optimizer):
    grads = np.ones((3, 2))
    grads[dead] = 0
    verdict = judge(made(grad_input=grads), optimizer)
    assert verdict.backward.word == Word.VANISHING
    assert verdict.backward.extreme[0] == dead[0]
    assert findings(verdict)
    assert made(grad_input=grads).depth_gain == 0


@pytest.mark.parametrize(
    ("optimizer", "ratios", "words"),
    [
        ("sgd", (0.99e-3, 1.01e-3, 0.99e3, 1.01e3), ("vanishing", "", "", "exploding")),
        ("adamw", (1e-30, 1, 0.99e12, 1.01e12), ("", "", "", "exploding")),
    ],
)
def test_the_limits_of_the_ratio(optimizer, ratios, words):
    for ratio, word in zip(ratios, words, strict=True):
        found = judge(through_depth([ratio, 1]), optimizer).backward.word
        assert found == (word or Word.FREE), ratio


def test_the_limits_of_what_is_kept_and_of_firing():
    for kept, word in ((0.26, Word.FREE), (0.24, Word.LOST)):
        assert judge(made(), overlap=np.array([1.0, 0.5, kept])).word == word
    for rate, word in ((1.01e-3, Word.FREE), (0.99e-3, Word.SILENT)):
        firing = np.full((3, 2), 0.2)
        firing[2] = 0, 2 * rate
        assert judge(made(firing=firing)).word == word
    for share, dead in ((0.9, None), (0.91, 1)):
        outside = np.zeros((3, 2))
        outside[1] = share - 0.05, share + 0.05
        assert judge(made(outside=outside)).dead_layer == dead


def test_ratios_in_words():
    ratios = (None, 0.0, 99.94, 100, 9999, 1e4, 1e-3, 0.9e-3, 3.217)
    assert " ".join(map(times, ratios)) == "- 0x 99.9x 100x 9999x 1e4x 0.001x 9e-4x 3.22x"


def test_what_json_keeps_of_an_infinity_counts_as_exploding():
    rows = made().rows()
    rows[0]["grad_input_rms"] = None
    assert judge(Measurement.of_rows(rows)).backward.word == Word.EXPLODING


SGD = ("train.optimizer=sgd",)
USUAL = ("model.residual_gain=1", "model.shortcut_gradient=surrogate", "neuron.surrogate.width=1")
BACKWARD = ["model.shortcut_gradient=straight_through", "neuron.surrogate.width=0.3"]


@pytest.mark.parametrize(
    ("changes", "grads", "fresh", "expected"),
    [
        ((*SGD, *USUAL), [1e6, 1e3, 1], True, ["model.residual_gain=0", *BACKWARD]),
        # of a run with weights, only what leaves them alone
        ((*SGD, *USUAL), [1e6, 1e3, 1], False, BACKWARD),
        ((*SGD, "model.norm=none"), [1e6, 1e3, 1], True, ["model.norm=bn"]),
        (
            ("model.name=mlp", "model.start=kaiming", "neuron.v_threshold=2", *SGD),
            [1e-6, 1, 1],
            True,
            ["model.start=identity", "neuron.surrogate.width=0.6"],
        ),
        (SGD, [1e-6, 1, 1], True, []),  # the defaults
        (USUAL, [3, 2, 1], True, []),  # no trouble
    ],
)
def test_cures_are_defaults_that_the_recipe_does_not_take(changes, grads, fresh, expected):
    recipe: Recipe = small_recipe(*changes)
    found = cures(recipe, judge(through_depth(grads), "sgd"), fresh)
    assert [change(cure) for cure in found] == expected
    for cure in found:
        assert replace(recipe, change(cure)) != recipe
        assert WHY[cure.why] in advice([cure])


def test_a_run_is_warned_of_each_trouble_once_with_its_cure():
    said: list[str] = []
    recipe = small_recipe(*SGD, *USUAL)
    watch = Watch(recipe, (5, 5), lambda *news: said.append(warning(*news)))
    assert watch.verdict is None
    watch.look(1, made())
    assert said == []
    for step in (2, 3):
        watch.look(step, through_depth([1e6, 1e3, 1]))
    assert len(said) == 1
    assert said[0].startswith("step 2: the gradient is exploding: at the first layer")
    assert "largest at a, time step 0" in said[0]
    assert "Try model.residual_gain=0 (" in said[0]
    watch.look(4, made(firing=np.zeros((3, 2))))
    assert len(said) == 2
    assert "no signal reaches the layers after it" in said[1]


def known(loss=None, accuracy=None, images=0, *changes) -> Learned:
    found = Learned.of(small_recipe(*changes).loss, (30, 50, 20), loss, accuracy, images)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("learned", "chance"),
    [
        (known(loss=1.03), True),  # the entropy of the shares is 1.0297
        (known(loss=0.97), False),  # 5 % below
        (known(loss=0.99), True),
        (known(loss=math.nan), True),
        (known(accuracy=0.5, images=100), True),
        (known(accuracy=0.64, images=100), True),  # within three standard deviations of 5 %
        (known(accuracy=0.66, images=100), False),
        (known(accuracy=0.52, images=10_000), False),
        (known(loss=0.2, accuracy=0.5, images=100), True),  # the test counts for more
        (known(1.03, None, 0, "loss.class_weights=balanced"), False),  # log 3 is 1.0986
    ],
)
def test_a_net_at_chance_is_never_healthy_and_one_that_learns_is_whatever_its_gradients(
    learned, chance
):
    assert learned.at_chance == chance
    assert Learned.of(small_recipe().loss, (), 1.0, None, 0) is None
    # guessing has which?
    assert Learned.of(small_recipe("loss.kind=tet").loss, (5, 5), 1.0, None, 0) is None
    measured = (made(), through_depth([1e6, 1e3, 1]))
    free, exploding = (judge(one, learned=learned) for one in measured)
    if chance:
        assert (free.word, exploding.word) == (Word.CHANCE, Word.CHANCE)
        assert line(free) == "at chance: no obstacle found"
        assert line(exploding) == "at chance: exploding backward"
        assert findings(free)[0].startswith("at chance: ")
    else:
        assert (free.word, exploding.word) == (Word.HEALTHY, Word.LEARNING)
        assert line(free) == "healthy: it learns, and no obstacle was found"
        assert line(exploding) == "learning, although exploding backward"
        assert cures(small_recipe(*USUAL), exploding) == []


def test_the_loss_of_the_last_fifty_steps_decides_from_the_hundredth_on():
    assert mean_loss([]) is None
    assert mean_loss([(50, 0.1), (99, 0.1)]) is None
    assert mean_loss([(40, 9.0), (50, 9.0), (60, 1.0), (100, 3.0)]) == 2.0
    assert mean_loss([(10, 9.0), (200, 3.0)]) == 3.0


def test_what_a_run_at_chance_says_and_what_to_try():
    recipe = small_recipe("train.lr=0.03")
    watch = Watch(recipe, (30, 50, 20), lambda *news: None)
    watch.look(1, made())
    watch.hear_loss(90, 0.9)
    assert watch.verdict is not None
    assert watch.verdict.word == Word.FREE  # too early to tell
    watch.hear_loss(100, 0.9)
    assert watch.verdict.word == Word.HEALTHY
    watch.hear_test(0.5, 100)
    assert watch.verdict.word == Word.CHANCE
    assert watch.learned is not None
    said = nothing_learnt(watch.learned, watch.cures())
    assert said.startswith(
        "nothing was learnt: at chance: 50.00 % of 100 test images, 50.00 % are in the largest class. Try "
    )
    assert "train.lr=0.01 (" in said
    assert "model.block=ms (" in said


def test_weights_whose_gradient_is_below_the_eps_of_adamw_are_named():
    weights = {"a.weight": 1e-9, "b.weight": 0.0, "c.weight": 1e-7}
    measured = dataclasses.replace(made(), weights=weights)
    verdict = judge(measured, small_recipe("train.optimizer=adamw", "train.eps=1e-8"))
    assert verdict.below_eps == ("a.weight",)  # what gets none at all is no matter of its size
    assert (
        "the gradient of a.weight is smaller than AdamW's eps (train.eps)" in sentences(verdict)[-1]
    )
    assert judge(measured, small_recipe(*SGD)).below_eps == ()


BOTTLENECKS = (
    "neuron1",
    "layer1.0.neuron1",
    "layer1.0.downsample.2",
    "layer1.0.neuron2",
    "layer1.1.neuron1",
    "layer1.1.neuron2",
    "neuron_last",
)


def test_layers_behind_the_blocks_are_not_taken_for_the_stem():
    names = ["neuron1", "layer1.0.neuron1", "layer1.0.neuron2", "neuron_last", "neuron_fc1"]
    assert last_layers(names) == [0, 2]
    assert last_layers(["layers.0.neuron", "layers.1.neuron"]) == [0, 1]


@pytest.mark.parametrize(
    ("gain", "arrives", "places"),
    [
        ("1", [1, 1, 1, 1, 1, 1, 1], 3),
        ("0.5", [0, 0, 0, 0, 0, 0, 1], 3),
        ("0.49", [1, 1, 1, 1, 1, 1, 1], 3),
        # a last layer that nothing reaches is no sign of closed blocks where others are reached
        ("0.2", [0, 0, 0, 1, 0, 1, 1], 3),
        ("0", [0, 0, 0, 0, 0, 0, 1], 0),  # before anything is learnt
    ],
)
def test_blocks_that_start_closed_are_judged_by_their_last_layers(gain, arrives, places):
    grads, nonfinite = np.array(arrives, float)[:, None] * [1e-3, 2e-3], np.zeros((7, 2))
    arrays = {"grad_input": grads, "grad_spike": grads}
    measured = dataclasses.replace(made(7, **arrays), names=BOTTLENECKS)
    recipe = small_recipe(f"model.residual_gain={gain}")
    verdict = judge(measured, recipe)
    found = verdict.backward
    assert found.places == places
    if places == 0:
        assert found.word == Word.FREE
        assert "still zero" in sentences(verdict)[1]
        assert "residual branches still zero" in brief(verdict)
    elif not arrives[0]:
        assert found.word == Word.VANISHING
        assert (found.extreme[0], found.steepest) == (0, 0)  # of all layers, not of those compared
    nonfinite[1] = 3.0  # inside a block
    bad = dataclasses.replace(measured, nonfinite=nonfinite)
    assert judge(bad, recipe).backward.nonfinite == (1, 1)


@pytest.mark.parametrize(
    ("block", "gain", "silent"),
    [("sew", "0", []), ("sew", "0.1", []), ("sew", "1", [3, 5]), ("plain", "0.1", [3, 5])],
)
def test_closed_branches_of_sew_blocks_may_be_silent(block, gain, silent):
    recipe = small_recipe(f"model.block={block}", f"model.residual_gain={gain}")
    firing = np.full((7, 2), 0.1)
    firing[[3, 5]] = 0  # the last neurons of both blocks
    measured = dataclasses.replace(made(7, firing=firing), names=BOTTLENECKS)
    verdict = judge(measured, recipe)
    assert (verdict.forward.word == Word.SILENT) == bool(silent)
    assert not silent or verdict.forward.quietest in silent


NUMBER = r"(\d[\d.e+-]*)x"


@pytest.mark.parametrize("seed", range(100))
def test_no_sentence_contradicts_its_numbers(seed):
    """Every word is recomputed from the numbers that stand beside it in the same sentence."""
    rng = np.random.default_rng(seed)
    layers, steps = shape = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    depth, time = rng.normal(size=2) * rng.choice([0.1, 2, 8])
    grads = np.exp(depth * np.arange(layers)[:, None] + 0.5 * time * np.arange(steps))
    if rng.random() < 0.2:
        grads[int(rng.integers(layers))] = 0
    nonfinite = np.zeros(shape)
    if rng.random() < 0.1:
        nonfinite[int(rng.integers(layers)), int(rng.integers(steps))] = 4
        grads = np.where(nonfinite > 0, rng.choice([np.nan, np.inf]), grads)
    firing = np.full(shape, rng.choice([0.2, 5e-4, 2e-3])) * rng.uniform(0.5, 1.5, shape)
    outside = np.full(shape, rng.choice([0.0, 0.5, 0.95]))
    overlap = rng.uniform(-0.05, 0.99, layers) if rng.random() < 0.7 else None
    fields = dict.fromkeys(KEYS, np.ones(shape)) | {"grad_input": grads, "firing": firing}
    fields |= {"outside": outside, "nonfinite": nonfinite}
    names = tuple(f"layer{i}" for i in range(layers))
    optimizer = str(rng.choice(["sgd", "adamw"]))
    verdict = judge(Measurement(names, **fields), optimizer, overlap)

    forward, backward, *rest = sentences(verdict)
    lost = None if overlap is None else lost_at(overlap)
    if firing.mean(1).min() < LIMITS.rate:
        word = Word.SILENT
        assert f"layer{firing.mean(1).argmin()} fires" in forward
    else:
        word = Word.FREE if lost is None else Word.LOST
        if overlap is not None:
            kept = float(re.search(r"last layer is (\d+) %", forward)[1]) / 100
            assert kept == pytest.approx(max(overlap[-1], 0), abs=0.0051)
            assert (overlap[-1] < LIMITS.kept) == (word == Word.LOST)
    assert forward.startswith(f"forward: {word}:") == (word != Word.FREE)
    assert verdict.forward.word == word
    if nonfinite.any():
        assert verdict.word == Word.NOT_FINITE
        assert "not finite" in backward
        assert "not finite" in line(verdict)
        return
    found, (low, high) = verdict.backward, verdict.backward.limits
    assert backward.startswith(f"backward: {found.word}:") == (found.word != Word.FREE)
    if found.places > 1 and found.ratio is not None:
        ratio, *limit = [float(x) for x in re.findall(NUMBER, backward)]
        assert ratio == pytest.approx(found.ratio, rel=0.06)
        inside = low <= ratio * 1.06 and ratio <= high * 1.06 and ratio > 0
        assert inside or found.word != Word.FREE
        stated = {
            Word.FREE: [x for x in (low, high) if x],
            Word.EXPLODING: [high],
            Word.VANISHING: [low] * bool(low),
        }
        assert limit == pytest.approx(stated[found.word], rel=0.06)
    elif found.places > 1:
        assert "no gradient arrives" in backward
        assert found.word == Word.VANISHING
    share = float(re.search(r"(\d+) %", rest[-1])[1]) / 100
    assert share == pytest.approx(outside.mean(), abs=0.0051)
    # the line and the word follow from the parts, and an obstacle always has a finding
    assert set(verdict.obstacles) == {found.word, word} - {Word.FREE}
    assert (verdict.word == Word.FREE) == (findings(verdict) == []) == (line(verdict) == Word.FREE)
    assert all(obstacle in line(verdict) for obstacle in verdict.obstacles)
    assert brief(verdict).startswith(line(verdict))
