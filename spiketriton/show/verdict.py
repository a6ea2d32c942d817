"""Verdicts, findings and cures in sentences: a number, its limit, and the reason for the limit."""

import math
from collections.abc import Sequence

from spiketriton.gradients.verdict import (
    DEAD_SHARE,
    LIMITS,
    Backward,
    Forward,
    Learned,
    Predicts,
    Through,
    Verdict,
    Word,
)
from spiketriton.show.words import in_percent, in_words, scored, times

BEFORE_A_TEST = (Word.FALLING, Word.FLAT)
SAME = "the outputs are the same for all images"
EARLY = f"{Word.EARLY}: known after the warm-up, and not before step {LIMITS.since}"


def line(verdict: Verdict) -> str:
    """One line: `healthy: it learns, and no obstacle was found`, `lost forward and exploding backward`."""
    if verdict.backward.nonfinite:
        return f"not finite at {_at(verdict, verdict.backward.nonfinite)}"
    named = {verdict.forward.word: " forward", verdict.backward.word: " backward"}
    named |= {verdict.through.word: "", Word.ASLEEP: ""}
    named = {word: way for word, way in named.items() if word in verdict.obstacles}
    obstacles = " and ".join(f"{word}{way}" for word, way in named.items())
    if verdict.word == Word.EARLY:
        return Word.EARLY
    if verdict.learned is None or not verdict.learned.known:
        same = f": {SAME}" if verdict.forward.arrives is False else ""
        return f"{obstacles or verdict.word}{same}"
    if verdict.word in BEFORE_A_TEST:
        but = ", although " if verdict.word == Word.FALLING else ": "
        return f"{verdict.word}{but + obstacles if obstacles else ''}; no test yet"
    if verdict.word == Word.CHANCE:
        return f"at chance so far: {obstacles}" if obstacles else "at chance so far"
    if obstacles:
        return f"learning, although {obstacles}"
    return "healthy: it learns, and no obstacle was found"


def brief(verdict: Verdict) -> str:
    """The line of a running training: the verdict, and the ratio where there is one."""
    back = verdict.backward
    if back.nonfinite or back.places == 1:
        return line(verdict)
    if back.places == 0:
        tested = verdict.learned is not None and verdict.learned.known
        moved = tested and verdict.word != Word.EARLY  # since they were measured
        return line(verdict) if moved else f"{line(verdict)} (residual branches still zero)"
    if back.ratio is None:
        return f"{line(verdict)} (no gradient at the last layer)"
    limit = f", limit {times(back.judged.limit)}" if back.judged else ""
    return f"{line(verdict)} (first layer's gradient {times(back.ratio)} the last one's{limit})"


def sentences(verdict: Verdict) -> list[str]:
    """Everything that was measured, a sentence each: learning, forward, depth, time, reach."""
    said = []
    if verdict.learned is not None:
        said.append(f"learning: {learned(verdict.learned)}")
    elif verdict.begun:
        said.append(f"learning: {EARLY}")
    said.append(f"forward: {forward(verdict.forward, verdict.names)}")
    if verdict.backward.nonfinite:
        place = _at(verdict, verdict.backward.nonfinite)
        return [*said, f"backward: dL/dx is not finite at {place}"]
    said.append(f"backward: {backward(verdict)}")
    if verdict.credit is not None:
        said.append(f"through time: {through(verdict)}")
    share = in_percent(verdict.dead_share)
    reach = f"{share} of the neurons get less than 1 % of the peak gradient"
    if verdict.dead_layer is not None:
        reach += f", over {in_percent(DEAD_SHARE)} in {verdict.names[verdict.dead_layer]}"
    said.append(f"reach of the surrogate: {reach}")
    if verdict.below_eps:
        first, *more = verdict.below_eps
        others = f" and {len(more)} more" if more else ""
        said.append(
            f"weights: the gradient of {first}{others} is smaller than AdamW's eps (train.eps), and so are its steps"
        )
    return said


def findings(verdict: Verdict) -> list[str]:
    """The obstacles, a sentence each, with layer and time step."""
    found = []
    if verdict.learned is not None and verdict.learned.word in (Word.CHANCE, Word.FLAT):
        found.append(learned(verdict.learned))
    if verdict.backward.nonfinite:
        found.append(f"dL/dx is not finite at {_at(verdict, verdict.backward.nonfinite)}")
    elif verdict.backward.word != Word.FREE:
        found.append(
            f"the gradient is {backward(verdict)}; largest at {_at(verdict, verdict.backward.extreme)}; steepest on "
            f"the way into {verdict.names[verdict.backward.steepest]}"
        )
    if verdict.through.word != Word.FREE:
        found.append(f"through time the gradient is {through(verdict)}")
    if verdict.forward.word != Word.FREE:
        found.append(f"the forward signal is {forward(verdict.forward, verdict.names)}")
    return found


def backward(verdict: Verdict) -> str:
    found = verdict.backward
    if found.places == 0:
        return "residual branches are still zero, as initialised: no gradient enters them before the first step"
    if found.places == 1:
        return "there is one layer, so nothing to compare"
    words = comparison(found)
    if found.judged is None:
        return f"{words}, which has not told which nets of this kind, trained like this, learn"
    limit = f"{times(found.judged.limit)}, above which {_became(found.judged)} under SGD at {LIMITS.lr:g} or more"
    if found.word == Word.FREE:
        return f"{words}, fine up to {limit}"
    return f"{found.word}: {words}, above the limit of {limit}"


def through(verdict: Verdict) -> str:
    found, names = verdict.through, verdict.names
    far = f"{found.back} step{'s' * (found.back > 1)}"
    back = f"; a hundredth of the last one's reaches {far} back" if found.back else ""
    if found.word == Word.BURSTS:
        grown = f"up to {times(found.largest)} that at the last step in {names[found.strongest]}"
        return f"exploding: {grown}, above the {_beyond(found)}"
    where = "steps that tell classes apart" if found.apart else "the first step"
    whole = "the last step's" if found.memory == "feedback" else "the whole window's"
    share = times(found.arrives) if found.arrives else "none"
    arrives = f"{share} of {whole} gradient reaches {where} in {names[found.first]}"
    if found.judged is None:
        return f"{arrives}{back}; not judged: no row speaks of nets of this kind"
    if found.word == Word.FREE:
        return f"{arrives}{back} ({_beyond(found)})"
    if found.judged is LIMITS.kept:
        drowned = "by what membranes keep, and drowns in what comes back by spikes"
        return (
            f"vanishing: {times(found.kept)} of the whole window's gradient reaches {where} in "
            f"{names[found.first]} {drowned}; {_beyond(found)}"
        )
    return f"vanishing: {arrives}{back}; {_beyond(found)}"


def _beyond(found: Through) -> str:
    """A limit through time, and what became of the nets beyond it."""
    assert found.judged is not None
    learnt, nets, limit = found.judged.learnt or "none", found.judged.trainings, found.judged.limit
    if limit == 0:
        return f"where none does, {learnt} of {nets} registered nets learnt"
    if not nets:
        return f"limit {times(limit)}, which was tried on no nets but those that it was chosen by"
    plural = "s" * (nets > 1)
    return f"limit {times(limit)}, beyond which {learnt} of {nets} registered net{plural} learnt"


def learned(known: Learned) -> str:
    found = known.score
    if found is not None and not known.known:
        name = in_words(found)
        return f"not judged: test {name} {scored(found)}, and what guessing has is not known"
    numbers = []
    if found is not None and found.chance is not None:
        numbers.append(
            f"test {in_words(found)} {scored(found)} on {known.images:,} images, guessing has "
            f"{scored(found, found.chance)}"
        )
    elif found is not None and known.test_loss is not None:
        numbers.append(f"test loss {known.test_loss:.4g}, guessing has {known.guess_loss:.4g}")
    if known.loss is not None:
        since = " since" if numbers else ""
        numbers.append(f"loss{since} {known.loss:.4g}, guessing has {known.guess_loss:.4g}")
    said = "; ".join(numbers)
    if known.word in BEFORE_A_TEST:
        return f"{known.word}: {said}; the first test tells whether the net learns"
    if known.learns is None:
        return f"{Word.EARLY}: {said}; this does not tell yet"
    return f"{'above chance' if known.learns else 'at chance so far'}: {said}"


def forward(found: Forward, names: Sequence[str]) -> str:
    rate = f"fires {found.rate:.2g} times per neuron and time step"
    quiet = f"the quietest layer, {names[found.quietest]}, {rate}"
    if found.arrives is False:
        wake = f"; training may still wake silent layers: {_woke()}" * (found.word == Word.ASLEEP)
        return f"{found.word}: {SAME}{wake}; {quiet}"
    if found.kept is None or math.isnan(found.kept):
        return f"{quiet}; the forward signal was not measured"
    kept = f"{in_percent(found.kept)} at the last layer"
    if found.judged is None:
        return (
            f"{kept} (0 %: an image and a copy with 5 % noise differ like two images), which has not told which nets "
            f"of this kind learn; {quiet}"
        )
    limit = in_percent(found.judged.limit)
    if found.lost_from is not None:
        return (
            f"lost: {kept}; from {names[found.lost_from]} on it is below {limit}, where {_became(found.judged)} "
            "(0 %: an image and a copy with 5 % noise differ like two images)"
        )
    return f"{kept} (below {limit}, {_became(found.judged)}); {quiet}"


def _woke() -> str:
    found = LIMITS.asleep
    return f"{found.learnt} of {found.trainings} registered chains like it learnt"


def _became(limit: Predicts) -> str:
    """What became of the trainings beyond a limit: `2 of 17 trainings of such nets learnt`."""
    learnt = limit.learnt or "none"
    return f"{learnt} of {limit.trainings} trainings of such nets learnt"


def warning(step: int, verdict: Verdict) -> str:
    """What a training says of its obstacles."""
    when = f"after step {step}" if step else "before training"
    return f"{when}: {'; '.join(findings(verdict))}"


def nothing_learnt(known: Learned, diagnose: str) -> str:
    """What a training says that ends at chance. `diagnose`: the command that tries changes."""
    numbers = learned(known).partition(": ")[2]
    return f"nothing was learnt: {numbers}. {diagnose} tries changes, and names those that help"


def comparison(found: Backward) -> str:
    """The ratio in words: `at the first layer the gradient is 3.2x that at the last`."""
    if found.ratio is None:
        return "no gradient arrives at the last layer"
    return f"at the first layer the gradient is {times(found.ratio)} that at the last"


def _at(verdict: Verdict, place: tuple[int, int]) -> str:
    return f"{verdict.names[place[0]]}, time step {place[1]}"
