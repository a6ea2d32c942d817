"""The verdict on hand-made nets and on hand-made numbers: word, layer, time step and cure."""

import dataclasses
import math
import re
import string
from types import SimpleNamespace

import numpy as np
import pytest

from spiketriton.config import Recipe, replace
from spiketriton.diagnose.cures import INPUT, NORM, THRESHOLD, cures, own_cures
from spiketriton.diagnose.words import WHY, change
from spiketriton.gradients.measurement import COLUMNS, Measurement, Signal
from spiketriton.gradients.verdict import (
    LIMITS,
    Learned,
    Remembers,
    Through,
    Word,
    judge,
    last_layers,
    learned_by,
    lost_at,
    mean_loss,
    planned_steps,
    tells_from,
)
from spiketriton.gradients.watch import Watch
from spiketriton.show import verdict as show
from spiketriton.show.verdict import (
    brief,
    findings,
    learned,
    line,
    nothing_learnt,
    sentences,
    warning,
)
from spiketriton.show.words import times
from spiketriton_kernels.nn import LIF
from tests.small_runs import small_recipe

CHAIN = ("model.name=mlp", "model.depth=48", "model.start=kaiming")


def kept(*overlap: float, arrives: bool = True) -> Signal:
    return Signal(np.array(overlap, float), arrives)


def made(layers: int = 3, **fields: np.ndarray) -> Measurement:
    """Layers a, b, ... and two time steps, healthy but for `fields`."""
    even = np.ones((layers, 2))
    values = dict.fromkeys(COLUMNS, even) | {"firing_rate": 0.2 * even}
    values |= {"outside_share": 0 * even, "nonfinite": 0 * even, **fields}
    names = [*string.ascii_letters, *string.digits][:layers]
    return Measurement(names=tuple(names), **values)


def through_depth(grads: list[float], layers: int = 48) -> Measurement:
    """The last value is that of all layers behind, too."""
    grads = grads + grads[-1:] * (layers - len(grads))
    return made(layers, grad_input_rms=np.array(grads, float)[:, None] * np.ones(2))


CHAINED = Signal(np.ones(48), True, chain=True)


def test_a_net_without_an_obstacle_gets_no_finding():
    for optimizer in ("sgd", "adamw"):
        verdict = judge(made(), optimizer)
        assert verdict.word == Word.NOT_JUDGED  # no row is of nets of three layers
        assert line(verdict) == "not judged"
        assert line(judge(made(), optimizer, kept(0.5, 0.5, 0.5))) == "not judged"
        known = judge(made(48), optimizer, Signal(np.full(48, 0.5), True, chain=True))
        assert line(known) == known.word == "no obstacle found"
        assert findings(verdict) == []
        assert cures(small_recipe(), verdict) == []


@pytest.mark.parametrize(
    ("grads", "steepest"), [([3e5, 3e4, 3e3, 10, 1], 2), ([1e4, 1e4, 1, 1, 1], 1)]
)
def test_trouble_through_depth_is_found_and_located(grads, steepest):
    verdict = judge(through_depth(grads), "sgd", CHAINED)
    assert verdict.backward.word == verdict.word == Word.EXPLODING
    assert verdict.backward.steepest == steepest
    assert verdict.backward.extreme[0] == 0
    assert verdict.backward.ratio == pytest.approx(grads[0])
    assert "exploding backward" in line(verdict)
    assert f"steepest on the way into {'abcde'[steepest]}" in findings(verdict)[0]


def test_the_gradient_through_time_is_told():
    """Without a word where no row speaks of such nets: of constant images, of a few steps, of a trained net."""
    shares = {"credit": np.tile([1e-9, 1.0], (3, 1)), "direct": np.zeros((3, 2))}
    shares["remembered"] = shares["credit"]
    for memory, begun in (("", False), ("states", True)):
        found = judge(made(**shares), "sgd", over_time(memory), begun=begun)
        assert (found.credit, found.through.word) == (1e-9, Word.FREE)
        assert (
            "1e-9x of the whole window's gradient reaches the first step in a"
            in sentences(found)[-2]
        )
        assert "not judged: no row speaks" in sentences(found)[-2]


def over_time(memory: str) -> Signal:
    return Signal(np.full(3, 0.5), True, memory=memory)


@pytest.mark.parametrize(
    ("memory", "first", "remembered", "word"),
    [
        ("states", 1.0, [0.029, 1, 0], Word.FORGETS),
        ("states", 1.0, [0.031, 1, 0], Word.FREE),
        ("states", 1.0, [0.5, 16, 1], Word.FREE),
        ("states", 1.0, [0.5, 18, 1], Word.FORGETS),  # of all steps, not of the last one
        ("states", 1.0, [1, *[1] * 9_999, 0], Word.FREE),  # however long a window is
        ("states", 0.0, [1, 1, 1], Word.FREE),  # a later layer need not remember
        ("states", 1.0, [0, 0, 0], Word.FORGETS),  # whose gradient died
        ("states", 1.0, [math.inf, 1, 1], Word.FREE),
        ("windows", 1.0, [0.01, 1, 1], Word.FREE),
        ("windows", 1.0, [0, 1, 1], Word.FORGETS),
    ],
)
def test_what_does_not_reach_the_first_step_is_an_obstacle(memory, first, remembered, word):
    credit = np.tile([first, *np.ones(len(remembered) - 1)], (3, 1))
    shares = {"credit": credit, "direct": 0 * credit}
    shares["remembered"] = np.vstack([remembered, 0.01 * credit[1:]])
    found = judge(made(**shares), "adamw", over_time(memory))
    assert found.through.word == found.word == word
    assert found.credit == first
    assert line(found) == word
    told = [said for said in sentences(found) if said.startswith("through time: ")]
    assert told[0].startswith("through time: vanishing: ") == (word == Word.FORGETS)
    assert findings(found) == (
        [] if word == Word.FREE else [told[0].replace(": ", " the gradient is ", 1)]
    )
    stuck = Learned(2.3, 2.3)
    again = judge(made(**shares), "adamw", over_time(memory), stuck, begun=True)
    assert again.through.word == word  # a run that learns nothing, too


def test_a_silent_layer_is_an_obstacle_only_where_no_path_goes_around():
    outside, firing = np.zeros((3, 2)), np.full((3, 2), 0.2)
    outside[1], firing[2] = 0.95, 1e-4
    dead = np.ones((3, 2))
    dead[2] = 0
    measured = made(outside_share=outside, firing_rate=firing, grad_input_rms=dead)
    parallel = Signal(np.array([1.0, 1, 0]), False, memory="windows")
    asleep = judge(made(firing_rate=firing), signal=parallel)
    assert (asleep.obstacles, asleep.forward.arrives) == ((Word.ASLEEP,), False)
    assert "asleep: the outputs are the same for all images; training may" in sentences(asleep)[0]
    assert judge(made(firing_rate=firing), signal=kept(1, 1, 0, arrives=False)).word == Word.SILENT
    verdict = judge(measured, signal=kept(1, 1, 0, arrives=False))
    assert (verdict.dead_layer, verdict.forward.quietest, verdict.word) == (1, 2, Word.SILENT)
    assert findings(verdict) == [
        "the forward signal is silent: the outputs are the same for all images; the quietest layer, c, fires 0.0001 "
        "times per neuron and time step"
    ]
    assert line(verdict) == "silent forward: the outputs are the same for all images"
    assert line(asleep) == "asleep: the outputs are the same for all images"
    assert sentences(verdict)[-1].endswith(", over 90 % in b")
    assert verdict.dead_share == pytest.approx(0.95 / 3)
    around = judge(measured, signal=kept(1, 1, 0))  # a residual branch
    assert around.word == Word.NOT_JUDGED
    assert "c, fires 0.0001 times" in sentences(around)[0]
    assert judge(measured).word == Word.NOT_JUDGED  # not measured
    alike = judge(
        made(), signal=kept(1, 1, 0, arrives=False)
    )  # every layer fires, and for all images alike
    assert line(alike) == "lost forward: the outputs are the same for all images"
    assert sentences(alike)[0].startswith(
        "forward: lost: the outputs are the same for all images; "
    )
    zeros = kept(1, 1, -0.01, arrives=False)  # outputs that start at 0
    assert judge(made(), signal=zeros).word == Word.NOT_JUDGED


@pytest.mark.parametrize(
    ("first", "recipe", "word"),
    [
        (1.1e-4, CHAIN, Word.ASLEEP),
        (0.9e-4, CHAIN, Word.SILENT),
        (0.0, (*CHAIN, "neuron.kind=psn"), Word.SILENT),
        (1.1e-4, (*CHAIN, "neuron.kind=psn"), Word.ASLEEP),
        (1.0, ("model.name=resnet20",), Word.SILENT),  # no row is of it
    ],
)
def test_a_chain_may_wake_whose_first_layer_gets_a_gradient(first, recipe, word):
    grads = np.array([[first] * 2, [1] * 2, [1] * 2])
    silent = made(firing_rate=np.zeros((3, 2)), grad_input_rms=grads)
    found = judge(silent, small_recipe(*recipe), kept(0, 0, 0, arrives=False))
    assert found.word == word
    assert "the outputs are the same for all images" in line(found)
    begun = judge(silent, small_recipe(*recipe), kept(0, 0, 0, arrives=False), begun=True)
    assert begun.obstacles == (Word.SILENT,)  # what was to wake it has been trained


def test_the_first_value_that_is_not_finite_on_the_way_back_is_named():
    nonfinite = np.zeros((3, 2))
    nonfinite[0], nonfinite[1, 0] = 5, 2
    grads = np.where(nonfinite > 0, np.nan, 1.0)
    verdict = judge(made(nonfinite=nonfinite, grad_input_rms=grads))
    assert verdict.backward.nonfinite == (1, 0)
    assert verdict.word == Word.NOT_FINITE
    assert line(verdict) == "not finite at b, time step 0"


@pytest.mark.parametrize("dead", [[0], [0, 1], [2], [0, 1, 2]])
def test_layers_without_any_gradient_are_shown_without_a_word(dead):
    """Of 12 trainings under SGD whose gradient was a thousandth or less, 5 learnt, and of 5 under AdamW 3."""
    grads = np.ones((3, 2))
    grads[dead] = 0
    verdict = judge(made(grad_input_rms=grads), "sgd")
    assert verdict.word == Word.NOT_JUDGED
    shown = "no gradient arrives at the last layer" if 2 in dead else "the gradient is 0x that"
    assert shown in sentences(verdict)[1]
    assert made(grad_input_rms=grads).depth_gain == 0


def test_a_growing_gradient_is_an_obstacle_under_sgd_without_a_limit_on_its_norm():
    free, clipped = small_recipe(*FREE, *CHAIN, "train.lr=0.03"), small_recipe(*SGD, *CHAIN)
    slow = small_recipe(*FREE, *CHAIN, "train.lr=0.029")
    for of, ratio, word in (
        ("sgd", 0.99e3, Word.FREE), ("sgd", 1.01e3, Word.EXPLODING), ("sgd", 1e-9, Word.FREE),
        (free, 1.01e3, Word.EXPLODING), (clipped, 1e9, Word.FREE), ("adamw", 1e30, Word.FREE),
        (slow, 1e9, Word.FREE),  # at 0.01 such a net learnt
    ):  # fmt: skip
        found = judge(through_depth([ratio, 1]), of, CHAINED)
        assert found.backward.word == word, (of, ratio)
        told = "which has not told which nets of this kind" not in sentences(found)[1]
        assert told == (of in ("sgd", free))


DEEP_PLAIN = ("model.name=resnet56", "model.block=plain")
USUAL_GRADIENT = "model.shortcut_gradient=surrogate"


@pytest.mark.parametrize("block", ["plain", "sew", "ms"])
def test_a_growing_gradient_is_only_shown_of_nets_of_which_no_row_tells(block):
    """Residual and shallow nets, and I-LIF: a SEW-ResNet-20 whose ratio is 24,000 may learn as well as another."""
    through = kept(*[1] * 48)
    residual = small_recipe(*FREE, "model.name=resnet20", f"model.block={block}")
    others = [
        small_recipe(*FREE, *CHAIN, f"neuron.kind={kind}") for kind in ("ilif", "plif", "psn")
    ]
    bare = small_recipe(*FREE, *CHAIN, "model.norm=none")
    chain = small_recipe(*FREE, *CHAIN, "train.lr=0.1")
    trained = judge(through_depth([1e9, 1]), chain, through, begun=True)
    assert trained.obstacles == ()
    cases = [(residual, 48), *((of, 48) for of in others), (bare, 48), (chain, 47), ("sgd", 48)]
    for of, layers in cases:
        found = judge(through_depth([1e9, 1], layers), of, through)
        assert (found.word, found.backward.ratio) == (Word.NOT_JUDGED, 1e9)


@pytest.mark.parametrize(
    ("changes", "layers", "limit"),
    [
        (CHAIN, 20, 0.25),
        (CHAIN, 19, None),
        *(
            ((*CHAIN, f"neuron.kind={kind}"), 18, 2 / 3)
            for kind in ("if", "plif", "clif", "alif", "cuba", "psn", "masked_psn", "sliding_psn")
        ),
        ((*CHAIN, "neuron.kind=psn"), 17, None),
        ((*CHAIN, "neuron.kind=ilif"), 20, None),
        ((*CHAIN, "model.norm=none"), 20, None),
        ((*DEEP_PLAIN, "model.shortcut_gradient=surrogate"), 48, 0.1),
        ((*DEEP_PLAIN, "model.shortcut_gradient=surrogate", "neuron.kind=plif"), 48, 0.1),
        ((*DEEP_PLAIN, "model.shortcut_gradient=surrogate", "neuron.kind=alif"), 48, None),
        ((*DEEP_PLAIN, "model.shortcut_gradient=surrogate"), 47, None),
        (DEEP_PLAIN, 60, None),  # one of residual gain 0.3 learnt: its gradient goes around neurons
        (("model.name=resnet56", "model.block=ms"), 60, None),
        (("model.name=resnet56", "model.block=sew"), 60, None),
        ((*DEEP_PLAIN, "model.shortcut_gradient=surrogate", "neuron.kind=ilif"), 60, None),
    ],
)
def test_a_lost_signal_is_an_obstacle_only_where_rows_say_that_it_predicts(changes, layers, limit):
    recipe = small_recipe(*changes)
    ones = {name: np.ones((layers, 2)) for name in COLUMNS} | {"nonfinite": np.zeros((layers, 2))}
    measured = Measurement(tuple(f"layers.{i}.neuron" for i in range(layers)), **ones)
    overlap = np.linspace(1, 0, layers)
    below, above = overlap.copy(), overlap.copy()
    below[-1], above[-1] = (limit or 0.1) - 0.001, (limit or 0.1) + 0.001
    assert (judge(measured, recipe, Signal(below, True)).word == Word.LOST) == (limit is not None)
    told = Word.NOT_JUDGED if limit is None else Word.FREE
    assert judge(measured, recipe, Signal(above, True)).word == told
    trained = judge(
        measured, recipe, Signal(below, True), begun=True
    )  # rows tell of nets at their start
    assert trained.obstacles == ()
    grown, grown_less = (
        dataclasses.replace(
            measured, grad_input_rms=np.geomspace(ratio, 1, layers)[:, None] * np.ones(2)
        )
        for ratio in (1.1e4, 0.9e4)
    )
    # two such nets learnt
    assert judge(grown, recipe, Signal(below, True)).word == Word.NOT_JUDGED
    assert (judge(grown_less, recipe, Signal(below, True)).word == Word.LOST) == (limit is not None)
    (said,) = [s for s in sentences(judge(measured, recipe, Signal(below, True))) if "forward" in s]
    assert ("lost: " in said) == (limit is not None)
    assert ("has not told which nets of this kind learn" in said) == (limit is None)
    assert "need" not in said


def test_of_a_single_time_step_no_row_tells():
    for layers, limit, changes in ((48, 0.25, CHAIN), (60, 0.1, (*DEEP_PLAIN, USUAL_GRADIENT))):
        recipe, kept_less = small_recipe(*changes), np.linspace(1, 0, layers)
        for steps, word in ((1, Word.NOT_JUDGED), (2, Word.LOST)):
            ones = {name: np.ones((layers, steps)) for name in COLUMNS}
            ones["nonfinite"] = np.zeros((layers, steps))
            names = tuple(f"layers.{i}.neuron" for i in range(layers))
            found = judge(Measurement(names, **ones), recipe, Signal(kept_less, True))
            assert (found.word, kept_less[-1] < limit) == (word, True)
    grown = made(48, grad_input_rms=np.geomspace(1e9, 1, 48)[:, None])
    assert judge(grown, "sgd", CHAINED).word == Word.NOT_JUDGED


@pytest.mark.parametrize(
    ("layers", "memory", "word"),
    [
        (6, "states", Word.FREE),
        (7, "states", Word.NOT_JUDGED),
        (3, "feedback", Word.FREE),
        (4, "feedback", Word.NOT_JUDGED),
        (3, "other", Word.NOT_JUDGED),
        (48, "other", Word.NOT_JUDGED),  # rows of depth are of images that stand still
        (48, "states", Word.FREE),
        (48, "", Word.FREE),
    ],
)
def test_no_obstacle_is_found_only_where_rows_speak_of_all_that_may_stand_in_the_way(
    layers, memory, word
):
    signal = Signal(np.full(layers, 0.5), True, chain=True, memory=memory)
    found = judge(made(layers), "adamw", signal)
    assert line(found) == found.word == word
    none = np.zeros((layers, 2))
    gone = judge(made(layers, remembered=none, credit=none), "adamw", signal)
    told = memory in ("states", "feedback")
    assert gone.word == (Word.FORGETS if told else word)


@pytest.mark.parametrize(
    ("apart", "least", "arrives", "word"),
    [
        ((), 4e-4, 4e-4, Word.FORGETS),
        ((), 6e-4, 6e-4, Word.FREE),
        ((0.0, 1.0), 4e-4, 1.0, Word.FREE),  # what comes first is not to be remembered
        ((1.0, 1.0), 0.0, 0.5, Word.FREE),
        ((), math.inf, 20.0, Word.BURSTS),
    ],
)
def test_of_a_recurrent_net_counts_what_reaches_the_layer_that_gets_least(
    apart, least, arrives, word
):
    """On all ways, and of the last step's gradient; what membranes remember is little here."""
    credit = np.array([[20.0, 1.0], [least, 1.0], [30.0, 1.0]])
    little = np.full((3, 2), 1e-6)
    shares = {"credit": credit, "direct": [[0, 1]] * np.ones((3, 1)), "remembered": little}
    signal = Signal(np.full(3, 0.5), True, memory="feedback", apart=apart)
    found = judge(made(**shares), "adamw", signal)
    assert (found.word, found.through.arrives) == (word, pytest.approx(arrives))
    first = found.through.first
    assert first == (0 if least == math.inf or apart == (0.0, 1.0) else 1)
    if word != Word.BURSTS:
        where = "steps that tell classes apart" if apart else "the first step"
        assert (
            f"of the last step's gradient reaches {where} in {'ab'[first]}" in sentences(found)[-2]
        )


@pytest.mark.parametrize(
    ("kept", "grown", "read", "word"),
    [
        (2e-2, 5e7, "last", Word.FORGETS),  # 4e-10 of it
        (3e-2, 5e7, "last", Word.FREE),
        (4e-2, 1e10, "last", Word.FREE),  # membranes keep it, whatever comes back
        (2e-2, 5e7, "mean", Word.FREE),  # each step has a way of its own
        (0.0, 1.0, "last", Word.FORGETS),
        (0.0, 2e12, "last", Word.BURSTS),
        (0.0, math.inf, "last", Word.BURSTS),
    ],
)
def test_what_membranes_keep_drowns_in_what_comes_back_by_spikes(kept, grown, read, word):
    """Of the first layer alone: a part of its whole gradient."""
    credit, remembered = np.ones((2, 2)), np.array([[kept, 1.0], [0.0, 1.0]])
    credit[0, 0] = grown
    direct = [[float(read == "mean"), 1]] * np.ones((2, 1))
    measured = made(2, credit=credit, direct=direct, remembered=remembered)
    signal = Signal(np.full(2, 0.5), True, memory="feedback")
    found = judge(measured, "adamw", signal)
    assert found.through.word == word
    if read == "last":
        assert found.through.own == pytest.approx(kept / np.hypot(kept, 1))
    if grown < 1e12:
        whole = np.hypot(grown, 1)
        assert found.through.kept == pytest.approx(kept / whole, rel=1e-6) or read == "mean"
    if word == Word.FORGETS:
        assert (
            f"{times(found.through.kept)} of the whole window's gradient reaches the first step in a by what"
            in (sentences(found)[-2])
        )


def test_a_net_without_a_recipe_is_judged_where_its_layers_form_a_chain():
    measured = made(20)
    lost = np.linspace(1, 0, 20)
    assert judge(measured, "adamw", Signal(lost, True)).word == Word.NOT_JUDGED
    assert judge(measured, "adamw", Signal(lost, True, chain=True)).word == Word.LOST
    assert judge(made(19), "adamw", Signal(np.zeros(19), True, chain=True)).word == Word.NOT_JUDGED


def test_most_of_a_layer_out_of_reach_is_told():
    for share, dead in ((0.9, None), (0.91, 1)):
        outside = np.zeros((3, 2))
        outside[1] = share - 0.05, share + 0.05
        assert judge(made(outside_share=outside)).dead_layer == dead


def test_ratios_in_words():
    ratios = (None, 0.0, 99.94, 100, 9999, 1e4, 1e-3, 0.9e-3, 3.217)
    assert " ".join(map(times, ratios)) == "- 0x 99.9x 100x 9999x 1e4x 0.001x 9e-4x 3.22x"


def test_what_json_keeps_of_an_infinity_counts_as_not_finite():
    rows = made().rows()
    rows[0]["grad_input_rms"] = None
    found = judge(Measurement.of_rows(rows))
    assert found.word == Word.NOT_FINITE
    assert line(found) == "not finite at a, time step 0"


SGD = ("train.optimizer=sgd",)
FREE = (*SGD, "train.clip_grad_norm=0", "train.lr=0.1")
USUAL = ("model.residual_gain=1", "model.shortcut_gradient=surrogate", "neuron.surrogate.width=1")
GROWN = [1e6, 1e3, 1]


def stuck(recipe: Recipe) -> list[str]:
    found = judge(made(), recipe, learned=known(loss=1.03), begun=True)
    return [change(cure) for cure in cures(recipe, found)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ((*FREE, *USUAL), [
            "train.clip_grad_norm=1", "model.residual_gain=0", "model.block=ms", "neuron.surrogate.width=0.3"]),
        ((*FREE, "model.norm=none"), ["train.clip_grad_norm=1", "model.norm=bn", "model.block=ms"]),
        ((*FREE, *CHAIN, "neuron.v_threshold=2"), [
            "train.clip_grad_norm=1", "model.start=identity", "neuron.surrogate.width=0.6"]),
        # the usual width is that of the threshold: beside one of 1, 1.15 would be too wide and 0.25 near enough
        ((*FREE, *CHAIN, "neuron.v_threshold=2", "neuron.surrogate.width=1.15"), [
            "train.clip_grad_norm=1", "model.start=identity"]),
        ((*FREE, *CHAIN, "neuron.v_threshold=2", "neuron.surrogate.width=0.25"), [
            "train.clip_grad_norm=1", "model.start=identity", "neuron.surrogate.width=0.6"]),
        ((*SGD, *USUAL), []),  # its limit is the default
        (USUAL, []),
    ],
)  # fmt: skip
def test_changes_begin_with_the_one_that_removes_what_was_found(changes, expected):
    recipe = small_recipe(*changes)
    exploding = judge(through_depth(GROWN), "sgd" if FREE[1] in changes else recipe, CHAINED)
    found = cures(recipe, exploding)
    assert [change(cure) for cure in found] == expected
    for cure in found:
        assert replace(recipe, change(cure)) != recipe
        assert WHY[cure.why]


def test_a_net_at_chance_is_also_tried_at_a_lower_rate_and_one_that_learns_not_at_all():
    recipe = small_recipe("train.lr=0.03", *USUAL[:2])
    assert stuck(recipe) == [
        "model.residual_gain=0", "model.shortcut_gradient=straight_through", "model.block=ms", "train.lr=0.01",
    ]  # fmt: skip
    assert stuck(small_recipe(*FREE, *CHAIN))[0] == "train.clip_grad_norm=1"
    assert "train.clip_grad_norm=1" not in stuck(
        small_recipe(*SGD, *CHAIN)
    )  # its limit is the default
    tested = row_of_test(0.9, 100, loss=0.5)
    for found, word in ((known(test=tested), Word.HEALTHY), (known(loss=0.5), Word.FALLING)):
        learning = judge(through_depth(GROWN), "sgd", CHAINED, found, begun=True)
        assert learning.word == word
        assert cures(small_recipe(*FREE), learning) == []


def test_networks_of_ones_own_are_tried_with_other_neurons():
    recipe = small_recipe("model.name=tests.models.foreign_nets:Conv", "train.lr=0.03")
    for grad in (np.zeros((3, 2)), np.ones((3, 2))):
        firing = np.zeros((3, 2))
        silent = judge(
            made(firing_rate=firing, grad_input_rms=grad), recipe, kept(0, 0, 0, arrives=False)
        )
        assert silent.word == Word.SILENT
        assert cures(recipe, silent) == [NORM, INPUT, THRESHOLD]
        begun = dataclasses.replace(silent, begun=True)
        assert cures(recipe, begun) == []  # too early to tell
    assert stuck(recipe)[:3] == [str(c.value) for c in (NORM, INPUT, THRESHOLD)]
    assert stuck(recipe)[3:] == ["train.lr=0.01"]
    for accuracy, tried in (
        (0.5, [NORM, INPUT, THRESHOLD]),
        (0.9, []),
    ):  # of a run's network, in Python
        tested = known(test=row_of_test(accuracy, 100))
        assert own_cures([LIF()], judge(made(), learned=tested, begun=True)) == tried


def test_a_run_is_warned_of_each_obstacle_once():
    said: list[str] = []
    watch = Watch(
        small_recipe(*FREE, *CHAIN), (5, 5), 21, lambda *news: said.append(warning(*news))
    )
    assert watch.verdict is None
    watch.look(0, made(), kept(1, 1, 1))
    assert said == []
    assert watch.verdict.word == Word.NOT_JUDGED
    for step in (0, 7):
        watch.look(step, through_depth(GROWN), kept(*[1] * 48))
    assert len(said) == 1
    assert said[0].startswith("before training: the gradient is exploding: at the first layer")
    assert "largest at a, time step 0" in said[0]
    nothing = made(firing_rate=np.zeros((3, 2)), grad_input_rms=np.zeros((3, 2)))
    watch.look(14, nothing, kept(0, 0, 0, arrives=False))
    assert len(said) == 2
    assert said[1].startswith("after step 14: the forward signal is silent")


COUNTS = (30, 50, 20)


def row_of_test(
    accuracy: float, images: int, step: int = 200, largest: float = 0.5, loss: float = 9.0
) -> dict[str, object]:
    row = {"kind": "eval", "step": step, "test_accuracy": accuracy, "test_images": images}
    row |= {"test_loss": loss}
    spread = (largest * (1 - largest) / images) ** 0.5
    return row | {"test_chance": largest, "test_chance_spread": spread}


def trained(step: int, loss: float | None) -> dict[str, object]:
    return {"kind": "train", "step": step, "loss": loss}


def unknown(accuracy: float, loss: float) -> dict[str, object]:
    """The row of a test, without what guessing has."""
    return {k: v for k, v in row_of_test(accuracy, 100, loss=loss).items() if "chance" not in k}


def known(loss=None, test=None, *changes) -> Learned:
    found = Learned.of(small_recipe(*changes).loss, COUNTS, loss, test)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("learned", "learns"),
    [
        (known(loss=1.03), Word.FLAT),  # the entropy of the shares is 1.0297
        (known(loss=0.97), Word.FALLING),  # 5 % below
        (known(loss=0.99), Word.FLAT),
        (known(loss=math.nan), Word.FLAT),
        (known(test=row_of_test(0.5, 100)), False),
        (known(test=row_of_test(0.59, 100)), False),  # two standard deviations of 5 %
        (known(test=row_of_test(0.61, 100)), None),
        (known(test=row_of_test(0.64, 100, loss=0.94)), None),  # three
        (known(test=row_of_test(0.59, 100, loss=1.025)), False),
        # 1 % below guessing's: it has begun to learn
        (known(test=row_of_test(0.59, 100, loss=1.015)), None),
        (known(test=row_of_test(0.66, 100, loss=0.97)), True),  # a loss that no untrained net has
        (known(test=row_of_test(0.66, 100, loss=0.99)), None),
        (known(test=row_of_test(0.74, 10_000)), None),
        (known(test=row_of_test(0.76, 10_000)), True),  # halfway to 1
        (known(test=row_of_test(0.13, 10_000, largest=0.1)), None),  # ten classes, untrained
        (known(test=row_of_test(0.199, 10_000, largest=0.1)), None),
        (known(test=row_of_test(0.201, 10_000, largest=0.1)), True),  # twice that of guessing
        # of TET, with its part of 0.95 of the entropy
        (known(None, row_of_test(0.13, 10_000, largest=0.1, loss=0.94), "loss.kind=tet"), None),
        (known(None, row_of_test(0.13, 10_000, largest=0.1, loss=0.92), "loss.kind=tet"), True),
        (known(0.94, None, "loss.kind=tet"), Word.FLAT),
        (known(0.92, None, "loss.kind=tet"), Word.FALLING),
        # the largest class of the images that were tested, not of those that were trained on
        (known(test=row_of_test(0.91, 34, largest=30 / 34)), False),
        (known(test=row_of_test(0.19, 50, largest=0.1)), None),
        (known(test=row_of_test(0.18, 50, largest=0.1)), False),
        (known(0.2, row_of_test(0.5, 100)), None),  # perhaps learnt by heart
        (known(1.0, row_of_test(0.5, 100)), False),
        (known(1.0, row_of_test(0.9, 100)), True),  # training images may be mixed
        (known(1.04, row_of_test(0.9, 100)), None),  # it has got worse since
        (known(math.nan, row_of_test(0.9, 100)), None),
        (known(1.03, None, "loss.class_weights=balanced"), Word.FALLING),  # log 3 is 1.0986
        # of a task whose score of guessing is not known, but the loss of guessing
        (known(0.2, unknown(0.9, loss=0.97)), True),
        (known(None, unknown(0.9, loss=0.97)), True),
        (known(1.04, unknown(0.9, loss=0.97)), None),
        (known(0.2, unknown(0.9, loss=0.99)), None),
        (known(None, unknown(0.9, loss=1.015)), None),
        (known(None, unknown(0.9, loss=1.025)), False),
    ],
)
def test_a_net_at_chance_is_never_healthy_and_one_that_learns_is_whatever_its_gradients(
    learned, learns
):
    assert learned.learns is (None if isinstance(learns, Word) else learns)
    free, grown = (
        judge(one, "sgd", CHAINED, learned, begun=True) for one in (made(), through_depth(GROWN))
    )
    assert (free.word, free.obstacles) == (grown.word, grown.obstacles)
    nothing = made(firing_rate=np.zeros((3, 2)), grad_input_rms=np.zeros((3, 2)))
    silent = judge(nothing, "sgd", kept(0, 0, 0, arrives=False), learned, begun=True)
    if isinstance(learns, Word):  # before a test
        assert (free.word, silent.word) == (learns, learns)
        flat = learns == Word.FLAT
        assert line(free) == f"{learns}; no test yet"
        told = f"{learns}{':' if flat else ', although'} silent forward; no test yet"
        assert line(silent) == told
        assert [one.startswith(f"{learns}: loss ") for one in findings(free)] == [True] * flat
    elif learns is None:
        assert (free.word, silent.word) == (Word.EARLY, Word.EARLY)
        assert line(free) == line(silent) == "too early to tell"
        assert findings(free) == []
        assert sentences(free)[0].startswith("learning: too early to tell: test ")
    elif not learns:
        assert (free.word, silent.word) == (Word.CHANCE, Word.CHANCE)
        assert line(free) == "at chance so far"
        assert line(silent) == "at chance so far: silent forward"
        assert findings(free)[0].startswith("at chance so far: ")
    else:
        assert (free.word, silent.word) == (Word.HEALTHY, Word.LEARNING)
        assert line(free) == "healthy: it learns, and no obstacle was found"
        assert line(silent) == "learning, although silent forward"


def test_why_it_is_not_known_whether_a_net_learns():
    untrained = known(test=row_of_test(0.13, 10_000, largest=0.1))
    assert learned(untrained) == (
        "too early to tell: test accuracy 13.00 % on 10,000 images, guessing has 10.00 %; this does not tell "
        "yet"
    )
    by_heart = known(0.2, row_of_test(0.5, 100))
    assert learned(by_heart).endswith("loss since 0.2, guessing has 1.03; this does not tell yet")
    falls = known(0.97)
    assert learned(falls) == (
        "the loss falls: loss 0.97, guessing has 1.03; the first test tells whether the net learns"
    )
    unseen = known(0.97, unknown(0.9, 0.9))
    assert learned(unseen).startswith("above chance: test loss 0.9, guessing has 1.03; loss since")
    worse = known(9.0, row_of_test(0.9, 100))
    assert learned(worse).endswith("loss since 9, guessing has 1.03; this does not tell yet")


def test_a_loss_whose_value_for_guessing_is_not_known_says_nothing():
    assert Learned.of(small_recipe().loss, (), 1.0) is None
    taught = small_recipe("loss.teacher=runs/x").loss
    assert Learned.of(taught, (5, 5), 1.0) is None
    assert Learned.of(taught, (5, 5), 1.0, row_of_test(0.5, 10)) is not None


def test_the_loss_of_the_last_fifty_steps():
    assert mean_loss([]) is None
    assert mean_loss([(40, 9.0), (50, 9.0), (60, 1.0), (100, 3.0)]) == 2.0
    assert mean_loss([(10, 9.0), (200, 3.0)]) == 3.0


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"),
    [(0.0, 1000, 100), (0.04, 1000, 100), (0.2, 1000, 250), (0.2, 110, 100), (0.9, 200, 200), (0.1, 2, 100)],
)  # fmt: skip
def test_nothing_is_said_before_the_warm_up_ends_and_step_100(warmup, steps, expected):
    recipe = small_recipe(f"train.warmup={warmup}")
    assert tells_from(recipe.train, steps) == expected
    for step in (1, expected - 1, expected):
        rows = [trained(step, 0.1)]
        found = learned_by(rows, recipe, COUNTS, steps)
        assert (found is None) == (step < expected)
        assert (learned_by([row_of_test(0.99, 50, step)], recipe, COUNTS, steps) is None) == (
            step < expected
        )
        early = judge(through_depth(GROWN), "sgd", CHAINED, found, begun=True)
        assert (early.word == Word.EARLY) == (step < expected)
        if found is None:
            assert line(early) == "too early to tell"
            assert sentences(early)[0].startswith("learning: too early to tell: known after")
            assert cures(recipe, judge(made(), recipe, begun=True)) == []


def test_of_the_loss_only_what_came_after_the_last_test_counts():
    recipe = small_recipe()
    rows = [trained(150, 0.2), row_of_test(0.5, 100, 200), trained(249, 0.2)]
    found = learned_by(rows, recipe, COUNTS, 400)
    assert (found.score.value, found.loss, found.learns) == (0.5, None, False)
    found = learned_by([*rows, trained(250, 0.2)], recipe, COUNTS, 400)
    assert (found.score.value, found.loss, found.learns) == (0.5, 0.2, None)
    found = learned_by([*rows, trained(250, 0.2), row_of_test(0.9, 100, 251)], recipe, COUNTS, 400)
    assert (found.loss, found.learns) == (None, True)
    found = learned_by([trained(200, None)], recipe, COUNTS, 400)  # what the file keeps of NaN
    assert found.word == Word.FLAT
    old = [trained(150, 0.2), {"kind": "eval", "step": 200, "test_accuracy": 0.5, "test_images": 9}]
    found = learned_by(old, recipe, COUNTS, 400)  # of which nobody knows how much guessing has
    assert (found.known, found.learns) == (False, None)


@pytest.mark.parametrize(("steps", "since"), [(400, 200), (1999, 1000), (90_000, 1000)])
def test_no_net_is_at_chance_before_half_of_its_training_or_step_1000(steps, since):
    recipe = small_recipe("train.warmup=0")
    for step, word in ((since - 1, Word.EARLY), (since, Word.CHANCE)):
        found = learned_by([row_of_test(0.5, 100, step)], recipe, COUNTS, steps)
        assert found.word == word
        assert ("does not tell yet" in learned(found)) == (word == Word.EARLY)
        learns = learned_by([row_of_test(0.9, 100, step)], recipe, COUNTS, steps)
        assert learns.word == Word.LEARNING


def test_the_steps_of_a_training():
    recipe = small_recipe()
    assert planned_steps(recipe.train, 120) == 21
    assert planned_steps(replace(recipe, "train.max_steps=8").train, 120) == 8


def test_a_watch_hears_what_the_rows_of_the_run_say():
    recipe, said = small_recipe("train.lr=0.03"), list[str]()
    watch = Watch(recipe, COUNTS, 220, lambda *news: said.append(warning(*news)))
    watch.look(0, made(), kept(1, 1, 1))
    rows = [trained(step, 0.9) for step in range(10, 201, 10)]
    rows[10:10] = [row_of_test(0.5, 100, 110)]
    for count, row in enumerate(rows, 1):
        watch.hear(row)
        assert watch.learned == learned_by(rows[:count], recipe, COUNTS, 220)
        assert watch.verdict is not None
        expected = Word.EARLY if row["step"] < 100 else Word.FALLING
        if row["step"] >= 110:  # then the training images may be learnt by heart
            expected = Word.CHANCE if row["step"] < 160 else Word.EARLY
        assert watch.verdict.word == expected
    assert said == []


def test_a_run_that_goes_on_remembers_its_last_test():
    recipe = small_recipe()
    rows = [trained(200, 0.9), row_of_test(0.9, 100, 200), trained(210, 0.9)]
    heard, resumed = (Watch(recipe, COUNTS, 300, lambda *news: None) for _ in range(2))
    for row in rows:
        heard.hear(row)
    resumed.recall(rows[:2])
    resumed.look(200, made(), kept(1, 1, 1))
    assert resumed.verdict.word == Word.HEALTHY
    resumed.hear(rows[2])
    assert resumed.learned == heard.learned
    assert resumed.verdict.word == Word.HEALTHY


def test_what_a_run_at_chance_says():
    assert nothing_learnt(known(test=row_of_test(0.5, 100)), "spiketriton diagnose x") == (
        "nothing was learnt: test accuracy 50.00 % on 100 images, guessing has 50.00 %. "
        "spiketriton diagnose x tries changes, and names those that help"
    )


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
    arrays = {"grad_input_rms": grads, "grad_spike_rms": grads}
    measured = dataclasses.replace(made(7, **arrays), names=BOTTLENECKS)
    recipe = small_recipe(f"model.residual_gain={gain}")
    verdict = judge(measured, recipe)
    found = verdict.backward
    assert found.places == places
    if places == 0:
        assert found.word == Word.FREE
        assert "still zero" in sentences(verdict)[1]
        assert "residual branches still zero" in brief(verdict)
        tested = judge(measured, recipe, learned=known(test=row_of_test(0.9, 100)), begun=True)
        assert brief(tested) == "healthy: it learns, and no obstacle was found"  # they moved since
    else:
        assert found.extreme[0] in (0, 3, 5)  # of all layers, not of those compared
    nonfinite[1] = 3.0  # inside a block
    bad = dataclasses.replace(measured, nonfinite=nonfinite)
    assert judge(bad, recipe).backward.nonfinite == (1, 1)


@pytest.mark.parametrize(
    ("block", "gain", "quietest"),
    [("sew", "0", 0), ("sew", "0.1", 0), ("sew", "1", 3), ("plain", "0.1", 3)],
)
def test_closed_branches_of_sew_blocks_may_be_silent(block, gain, quietest):
    recipe = small_recipe(f"model.block={block}", f"model.residual_gain={gain}")
    firing = np.full((7, 2), 0.1)
    firing[[3, 5]] = 0  # the last neurons of both blocks
    measured = dataclasses.replace(made(7, firing_rate=firing), names=BOTTLENECKS)
    assert judge(measured, recipe).forward.quietest == quietest


@pytest.mark.parametrize("block", ["ms", "sew", "plain"])
def test_a_residual_net_is_silent_where_nothing_of_an_image_arrives(block):
    measured = dataclasses.replace(made(7, firing_rate=np.zeros((7, 2))), names=BOTTLENECKS)
    recipe = small_recipe(f"model.block={block}")
    assert judge(measured, recipe, kept(*[0] * 7, arrives=False)).word == Word.SILENT


NUMBER = r"(\d[\d.e+-]*)x"


@pytest.mark.parametrize("seed", range(100))
def test_no_sentence_contradicts_its_numbers(seed):
    """Every word is recomputed from the numbers that stand beside it in the same sentence."""
    rng = np.random.default_rng(seed)
    layers, steps = shape = int(rng.choice([1, 2, 5, 20, 48])), int(rng.integers(1, 5))
    depth, time = rng.normal(size=2) * rng.choice([0.1, 2, 8])
    depth *= min(1, 20 / layers)
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
    fields = dict.fromkeys(COLUMNS, np.ones(shape)) | {
        "grad_input_rms": grads,
        "firing_rate": firing,
    }
    fields |= {"outside_share": outside, "nonfinite": nonfinite}
    names = tuple(f"layer{i}" for i in range(layers))
    optimizer = str(rng.choice(["sgd", "adamw"]))
    chain, arrives = rng.random(2) < 0.5
    signal = None if overlap is None else Signal(overlap, bool(arrives), bool(chain))
    verdict = judge(Measurement(names, **fields), optimizer, signal)

    forward, backward, *rest = sentences(verdict)
    known = signal is not None and chain and layers >= LIMITS.chain.layers
    told = LIMITS.chain if known and not (verdict.backward.ratio or 0) > LIMITS.large else None
    lost = None if overlap is None or told is None else lost_at(overlap, told.limit)
    word = Word.FREE if lost is None else Word.LOST
    asleep = firing.mean(1) < LIMITS.rate
    if asleep.any() and signal and not signal.arrives and overlap[-1] <= 0:
        word = Word.SILENT
        assert ("the outputs are the same for all images" in forward) == (word != Word.LOST)
    elif overlap is not None:
        shown = float(re.search(r"(\d+) % at the last layer", forward)[1]) / 100
        assert shown == pytest.approx(max(overlap[-1], 0), abs=0.0051)
    if word != Word.LOST:
        assert f"layer{firing.mean(1).argmin()}, fires" in forward
    assert forward.startswith(f"forward: {word}:") == (word != Word.FREE)
    assert verdict.forward.word == word
    if nonfinite.any():
        assert verdict.word == Word.NOT_FINITE
        assert "not finite" in backward
        assert "not finite" in line(verdict)
        return
    found = verdict.backward
    assert backward.startswith(f"backward: {found.word}:") == (found.word != Word.FREE)
    if found.places > 1 and found.ratio is not None:
        ratio, *limit = [float(x) for x in re.findall(NUMBER, backward)]
        assert ratio == pytest.approx(found.ratio, rel=0.06)
        if optimizer == "sgd" and known and layers >= LIMITS.growth.layers:
            assert limit == [LIMITS.growth.limit]
            assert (found.ratio > limit[0]) == (found.word == Word.EXPLODING)
        else:
            assert (limit, found.word) == ([], Word.FREE)
    elif found.places > 1:
        assert "no gradient arrives" in backward
    share = float(re.search(r"(\d+) %", rest[-1])[1]) / 100
    assert share == pytest.approx(outside.mean(), abs=0.0051)
    # the line and the word follow from the parts, and an obstacle always has a finding
    assert set(verdict.obstacles) == {found.word, word} - {Word.FREE}
    free = verdict.word in (Word.FREE, Word.NOT_JUDGED)
    assert free == (findings(verdict) == []) == (line(verdict) in (Word.FREE, Word.NOT_JUDGED))
    assert all(obstacle in line(verdict) for obstacle in verdict.obstacles)
    assert brief(verdict).startswith(line(verdict))


@pytest.mark.parametrize(
    ("apart", "arrives", "words"),
    [
        ((), 0.0, "vanishing: none of the whole window's gradient reaches the first step in a"),
        ((0.0, 0.0, 1.0), 0.5, "0.5x of the whole window's gradient reaches steps that tell classes apart in a"),
        ((1.0, 1.0, 0.0), 0.25, "0.25x of"),
        ((1.0, 0.0, 0.0), 0.0, "vanishing: none of"),
    ],
)  # fmt: skip
def test_what_has_to_be_remembered_is_where_classes_differ(apart, arrives, words):
    """Of a gradient of 0, 1, 1, 1, 1 the norm is 2, though not all steps are known to tell classes apart."""
    remembered = np.tile([0.0, 1, 1, 1, 1], (3, 1))
    shares = {"credit": remembered, "direct": 0 * remembered, "remembered": remembered}
    signal = Signal(
        np.full(3, 0.5), True, memory="states", apart=(*apart, 0.0, 0.0) if apart else ()
    )
    found = judge(made(**shares), "adamw", signal)
    assert found.through.arrives == pytest.approx(arrives)
    assert sentences(found)[-2].startswith(f"through time: {words}")


@pytest.mark.parametrize(
    ("of", "memory", "read", "largest", "word"),
    [
        ("sgd", "states", "last", 1.1e19, Word.BURSTS),
        ("adamw", "states", "last", 1.1e19, Word.BURSTS),
        ("adamw", "states", "last", 0.9e19, Word.FREE),
        ("adamw", "feedback", "last", 1.1e12, Word.BURSTS),
        ("adamw", "feedback", "last", 0.9e12, Word.FREE),
        ("adamw", "states", "mean", 1e30, Word.FREE),
        ("adamw", "feedback", "mean", 1e30, Word.FREE),
        ("adamw", "windows", "last", 1e30, Word.FREE),
        ("muon", "states", "last", 1e30, Word.FREE),  # no row is of it
        (("train.optimizer=adamw", "train.clip_grad_norm=0"), "states", "last", 1e30, Word.BURSTS),
        (("train.optimizer=adamw", "train.clip_grad_norm=1"), "states", "last", 1e30, Word.FREE),
        ((*FREE, "train.lr=0.03"), "states", "last", 1e30, Word.BURSTS),
        ((*FREE, "train.lr=0.029"), "states", "last", 1e30, Word.FREE),
    ],
)
def test_growth_through_time_is_an_obstacle_where_the_last_step_is_read(
    of, memory, read, largest, word
):
    shares = np.ones((3, 2))
    grown, direct = shares.copy(), shares.copy()
    grown[1, 0] = largest
    direct[:, 0] = read == "mean"
    recipe = of if isinstance(of, str) else small_recipe("model.name=mlp", "model.depth=3", *of)
    measured = made(credit=grown, direct=direct, remembered=shares)
    found = judge(measured, recipe, over_time(memory))
    assert found.through.word == word
    told = sentences(found)[-2]
    assert ("exploding: up to" in told and "in b" in told) == (word == Word.BURSTS)


def test_a_limit_that_no_other_net_has_tried_is_no_count_of_nets():
    def said(judged):
        found = Through(Word.BURSTS, judged, largest=1e16)
        return show.through(SimpleNamespace(through=found, names=["a"]))

    assert said(Remembers(1e15, 0, 0)).endswith(
        "above the limit 1e15x, which was tried on no nets but those that it was chosen by"
    )
    assert said(Remembers(1e15, 0, 7)).endswith("beyond which none of 7 registered nets learnt")
    nothing = Through(Word.FORGETS, Remembers(0.0, 0, 12), arrives=0.0)
    told = show.through(SimpleNamespace(through=nothing, names=["a"]))
    assert told.endswith("; where none does, none of 12 registered nets learnt")
