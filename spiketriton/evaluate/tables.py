"""Evaluations as tables and sentences: cost by time step, activity by layer, comparisons."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from spiketriton.evaluate.energy import BREAK_EVEN_RATES, ann_energy_pj
from spiketriton.evaluate.results import Binary, Evaluation, Layer
from spiketriton.show.screen import Table, say, show_table
from spiketriton.show.words import in_words, scored

if TYPE_CHECKING:
    from spiketriton.export.nir_file import Comparison

ALL_STEPS = 16  # windows up to here are shown step by step, longer ones in powers of two
STEP_LEGEND = (
    "T: time steps before the prediction{ms}. 95 %: where the {score} on other such {what}s is expected. "
    "AC: accumulates, a weight added for a spike; MAC: multiply-accumulates; both of one {what}. "
    "µJ: their energy in a 45 nm chip, estimated, without and with the movement of data."
)
LAYER_LEGEND = (
    "{active}, in all steps, in the first and in the last; never, always: fraction "
    "of the neurons that {did} for no {what} and step, or for every one. AC: see above."
)


def show(console: Console, evaluations: list[Evaluation], asked: list[int]) -> None:
    """The tables; `asked`: the time steps to show, or none for a choice of them."""
    first = evaluations[0]
    name = in_words(first.at(first.time_steps))
    note = f", synthetic images: the {name} means nothing" if first.synthetic else ""
    say(console, f"{first.tested} of {first.data}{note}; {first.device}")
    reads = dict.fromkeys(one.read for one in evaluations)
    say(console, f"read: {', '.join(reads)}")
    if first.checkpoint == "best":
        say(console, f"checkpoint: best, chosen by its validation {name}")
    console.print()
    show_table(
        console,
        f"{name[0].upper()}{name[1:]} and cost of one {first.what}",
        steps_table(evaluations, asked),
    )
    console.print()
    if first.layers:
        title = f"Layers of {first.label} within T = {first.time_steps}"
        show_table(console, title, layers_table(first))
        console.print()
    if first.baselines:
        known = (
            f"{one.name} {scored(replace(first.at(1), value=one.value))}" for one in first.baselines
        )
        own = scored(first.at(first.time_steps))
        say(console, f"without the order in time: {'; '.join(known)}; {first.label}: {own}")
    for one in evaluations:
        say(console, verdict(one, evaluations))
    if first.binary is not None:
        say(console, with_binary_spikes(first.binary))


def steps_table(evaluations: Sequence[Evaluation], asked: Sequence[int] = ()) -> Table:
    """A row for each run and time step worth one; that of the run's own T is bold."""
    first = evaluations[0]
    timed = any(one.ms_per_step is not None for one in evaluations)
    ms = ", and the milliseconds of a recording that they are, on average" if timed else ""
    chosen = [(one, t) for one in evaluations for t in chosen_steps(one, asked)]
    name = in_words(first.at(first.time_steps))
    costs = ("million AC", "million MAC", "µJ", "µJ with data")
    return Table(
        ("run", "T", name + " %" * first.share, "95 %", *costs, f"{first.what}s/s"),
        [_step_row(one, t) for one, t in chosen],
        keys=2,
        bold=[row for row, (one, t) in enumerate(chosen) if t == one.time_steps],
        legend=STEP_LEGEND.format(ms=ms, what=first.what, score=name),
    )


def _step_row(one: Evaluation, t: int) -> tuple[str, ...]:
    low, high = one.interval[t - 1]
    costs = ["-"] * 4
    if not one.uncounted:
        counts = (f"{one.accumulates(t) / 1e6:.3f}", f"{one.macs(t) / 1e6:.3f}")
        spent = (one.energy_uj[t - 1], one.energy_with_data_uj[t - 1])
        costs = [*counts, *(f"{uj:.2f}" for uj in spent)]
    return (
        one.label,
        f"{t}" if one.ms_per_step is None else f"{t} ({t * one.ms_per_step:.0f} ms)",
        scored(one.at(t)).removesuffix(" %"),
        "-" if math.isnan(low) else f"{100 * low:.1f}-{100 * high:.1f}",
        *costs,
        f"{one.images_per_s:.0f}" if t == one.time_steps else "",
    )


def chosen_steps(one: Evaluation, asked: Sequence[int] = ()) -> list[int]:
    """The time steps worth a row: those asked for and T; else all, or powers of two."""
    if asked:
        steps = {*asked, one.time_steps}
    elif one.steps <= ALL_STEPS:
        steps = set(range(1, one.steps + 1))
    else:
        steps = {1 << n for n in range(one.steps.bit_length())} | {one.time_steps, one.steps}
    return sorted(t for t in steps if t <= one.steps and not math.isnan(one.values[t - 1]))


def layers_table(one: Evaluation) -> Table:
    rate, active, did = "rate %", "spikes of 100 neurons in a time step", "spiked"
    if one.kind == "ann":
        rate, active, did = "active %", "of 100 values, those above 0", "were above 0"
    legend = LAYER_LEGEND.format(active=active, did=did, what=one.what)
    shares = (rate, "first step", "last step", "never %", "always %")
    return Table(
        ("layer", "neurons", *shares, "million AC"),
        [_layer_row(one, layer) for layer in one.layers],
        legend=f"{rate}: {legend}",
    )


def _layer_row(one: Evaluation, layer: Layer) -> tuple[str, ...]:
    rate = layer.rate[: one.time_steps]
    return (
        layer.name,
        f"{layer.neurons:,}",
        f"{100 * sum(rate) / len(rate):.2f}",
        f"{100 * rate[0]:.2f}",
        f"{100 * rate[-1]:.2f}",
        f"{100 * layer.dead / layer.neurons:.1f}",
        f"{100 * layer.saturated / layer.neurons:.1f}",
        "-" if one.uncounted else f"{layer.synaptic_operations / 1e6:.3f}",
    )


def verdict(one: Evaluation, evaluations: list[Evaluation]) -> str:
    """A run in sentences: its energy against its ANN's, and when it reaches the others.

    The first run is compared with all, each other one with the first and with ANNs.
    """
    at = one.time_steps - 1
    if one.uncounted:
        rate = "" if math.isnan(one.mean_rate) else f" {_rate(one)}"
        return f"{one.label}: operations and energy are not counted: {one.uncounted}.{rate}"
    if one.kind == "ann":
        macs, energy = one.macs(one.time_steps), one.energy_uj[at]
        return f"{one.label}: {macs / 1e6:.3f} million MAC, {energy:.2f} µJ per image."
    low, high = (100 * rate for rate in BREAK_EVEN_RATES)
    ann_uj, ann_data_uj = (pj * 1e-6 for pj in ann_energy_pj(one.twin_macs(at + 1)))
    text = (
        f"{one.label}: at T = {one.time_steps} it takes {one.energy_uj[at] / ann_uj:.3f} of its "
        f"ANN twin's energy by operations, {one.energy_with_data_uj[at] / ann_data_uj:.3f} with "
        f"data movement. {_rate(one)}"
    )
    if one is next(e for e in evaluations if e.kind != "ann" and not e.uncounted):  # said once
        text += (
            " Against an ANN whose activations are quantised, and with a finer model of the same movement, another "
            f"study finds that a spiking net saves energy below {low:.1f} to {high:.1f} % (Yan et al. 2024, T = 5)."
        )
    first = evaluations[0]
    others = [e for e in evaluations if e is not one and (first in (one, e) or e.kind == "ann")]
    return " ".join([text, *(overtakes(one, other) for other in others)])


def replayed(found: "Comparison") -> list[str]:
    counted = f"{found.different:,} of {found.compared:,} differ ({found.spikes:,} spikes)"
    lines = [f"replayed by NIR's equations: {counted}"]
    if (at := found.first) is not None:
        place = f"{at.node}, time step {at.step}, image {at.image}, neuron {[*at.neuron]}"
        away = f"{found.margin:.1e} of the threshold away from it"
        lines.append(f"first difference: {place}, {away}")
    return lines


def with_binary_spikes(one: Binary) -> str:
    return (
        f"With spikes of 0 and 1 over {one.steps} time steps, {one.equal:,} of {one.images:,} answers are the same "
        f"and the accuracy is {100 * one.accuracy:.2f} %, both in fp32. A neuron then spikes {100 * one.rate:.1f} "
        "times in 100 steps."
    )


def _rate(one: Evaluation) -> str:
    if one.kind == "ann":
        return f"A value is above 0 in {100 * one.mean_rate:.1f} % of the steps."
    return f"A neuron spikes {100 * one.mean_rate:.1f} times in 100 steps."


def overtakes(one: Evaluation, other: Evaluation) -> str:
    """At how many steps a run reaches the score of another one at its own T, in a sentence."""
    goal = other.at(other.time_steps)
    name = f"{other.label} ({scored(goal)})"
    points = ((0.0, "reaches"), (0.01, "comes within 1 point of"))
    for allowance, words in points if goal.share else points[:1]:
        for t, value in enumerate(one.values, 1):
            if not math.isnan(value) and not goal.beats(value, allowance + 1e-12):
                return f"It {words} {name} at {t} step{'s' * (t > 1)}."
    if not goal.share:
        return f"It does not reach {name} in {one.steps} steps."
    side = "below" if goal.higher_is_better else "above"
    return f"It stays more than 1 point {side} {name} in {one.steps} steps."
