"""Evaluations as tables and sentences: cost by time step, activity by layer, comparisons."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from spiketriton.show.screen import say, show_table
from spiketriton.trained.energy import BREAK_EVEN_RATES, ann_energy_pj
from spiketriton.trained.results import Evaluation

ALL_STEPS = 16  # windows up to here are shown step by step, longer ones in powers of two
STEP_LEGEND = (
    "T: time steps before the prediction{ms}. 95 %: where the accuracy on other such {what}s is expected. "
    "AC: accumulates, a weight added for a spike; MAC: multiply-accumulates; both of one {what}. "
    "µJ: their energy in a 45 nm chip, estimated, without and with the movement of data."
)
LAYER_LEGEND = (
    "fraction of the layer's {active}, in all steps, in the first and in the last; never, always: fraction "
    "of its neurons that {did} for no {what} and step, or for every one. AC: see above."
)


def show(console: Console, evaluations: list[Evaluation], asked: list[int]) -> None:
    """The tables; `asked`: the time steps to show, or none for a choice of them."""
    first = evaluations[0]
    note = ", synthetic images: the accuracy means nothing" if first.synthetic else ""
    say(console, f"{first.tested} of {first.data}{note}; {first.device}")
    if first.checkpoint == "best":
        say(console, "checkpoint: best, chosen by its validation accuracy")
    console.print()
    steps = [
        (cells, t == one.time_steps) for one in evaluations for t, cells in step_rows(one, asked)
    ]
    show_table(
        console,
        f"Accuracy and cost of one {first.what}",
        step_head(first),
        [cells for cells, _ in steps],
        keys=2,
        bold=[row for row, (_, own) in enumerate(steps) if own],
        legend=step_legend(evaluations),
    )
    console.print()
    if first.layers:
        show_table(
            console,
            f"Layers of {first.label} within T = {first.time_steps}",
            layer_head(first),
            list(layer_rows(first)),
            legend=layer_legend(first),
        )
        console.print()
    for one in evaluations:
        say(console, verdict(one, evaluations))


def layer_legend(one: Evaluation) -> str:
    """What the heads of the layers' table mean."""
    head, active, did = "rate %", "neurons that spike in a time step", "spiked"
    if one.kind == "ann":
        head, active, did = "active %", "values above 0", "were above 0"
    return f"{head}: " + LAYER_LEGEND.format(active=active, did=did, what=one.what)


def step_head(one: Evaluation) -> tuple[str, ...]:
    return (
        "run",
        "T",
        "accuracy %",
        "95 %",
        "million AC",
        "million MAC",
        "µJ",
        "µJ with data",
        f"{one.what}s/s",
    )


def step_legend(evaluations: Sequence[Evaluation]) -> str:
    """What the heads of the time steps' table mean."""
    timed = any(one.ms_per_step is not None for one in evaluations)
    ms = ", and the milliseconds of a recording that they are, on average" if timed else ""
    return STEP_LEGEND.format(ms=ms, what=evaluations[0].what)


def step_rows(one: Evaluation, asked: Sequence[int] = ()) -> Iterator[tuple[int, tuple[str, ...]]]:
    """A row below `step_head` for each time step worth one, with that step."""
    for t in chosen_steps(one, asked):
        low, high = one.interval[t - 1]
        yield (
            t,
            (
                one.label,
                f"{t}" if one.ms_per_step is None else f"{t} ({t * one.ms_per_step:.0f} ms)",
                f"{100 * one.accuracy[t - 1]:.2f}",
                f"{100 * low:.1f}-{100 * high:.1f}",
                *_costs(one, t),
                f"{one.images_per_s:.0f}" if t == one.time_steps else "",
            ),
        )


def _costs(one: Evaluation, t: int) -> tuple[str, str, str, str]:
    if one.uncounted:
        return ("-",) * 4
    return (
        f"{one.accumulates(t) / 1e6:.3f}",
        f"{one.macs(t) / 1e6:.3f}",
        f"{one.energy_uj[t - 1]:.2f}",
        f"{one.energy_with_data_uj[t - 1]:.2f}",
    )


def chosen_steps(one: Evaluation, asked: Sequence[int] = ()) -> list[int]:
    """The time steps worth a row: those asked for and T; else all, or powers of two."""
    if asked:
        steps = {*asked, one.time_steps}
    elif one.steps <= ALL_STEPS:
        steps = set(range(1, one.steps + 1))
    else:
        steps = {1 << n for n in range(one.steps.bit_length())} | {one.time_steps, one.steps}
    return sorted(t for t in steps if t <= one.steps and not math.isnan(one.accuracy[t - 1]))


def layer_head(one: Evaluation) -> tuple[str, ...]:
    active = "active %" if one.kind == "ann" else "rate %"
    return (
        "layer",
        "neurons",
        active,
        "first step",
        "last step",
        "never %",
        "always %",
        "million AC",
    )


def layer_rows(one: Evaluation) -> Iterator[tuple[str, ...]]:
    """A row below `layer_head` for each layer: its activity within T."""
    for layer in one.layers:
        rate = layer.rate[: one.time_steps]
        yield (
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


def neurobench_line(found: Mapping[str, Any]) -> str:
    """What NeuroBench's harness says of a run, and why our accumulates are others, in sentences."""
    metrics, ours = found["metrics"], found["ours"]
    operations = metrics["SynapticOperations"]
    text = (
        f"NeuroBench {found['version']}: accuracy {100 * metrics['ClassificationAccuracy']:.2f} %, activation sparsity "
        f"{metrics['ActivationSparsity']:.4f}, {operations['Effective_ACs']:,.0f} effective AC and "
        f"{operations['Effective_MACs']:,.0f} effective MAC an image, footprint {metrics['Footprint']:,} bytes."
    )
    if ours is None:
        return text
    reasons = (
        (ours["shortcuts"], "at shortcuts without weights, which it does not count"),
        (ours["pools"], "behind a mean, which it counts as MAC"),
        (
            ours["sums"],
            "at weights that read sums of spikes, which it counts as MAC where a sum is 2",
        ),
    )
    others = "".join(f", {count:,.0f} {why}" for count, why in reasons if count)
    weights = f"{ours['weights']:,.0f} are at weights that read spikes"
    return f"{text} Of our {sum(ours.values()):,.0f} AC, {weights}{others}."


def _rate(one: Evaluation) -> str:
    does = "A value is above 0" if one.kind == "ann" else "A neuron spikes"
    return f"{does} in {100 * one.mean_rate:.1f} % of the steps."


def overtakes(one: Evaluation, other: Evaluation) -> str:
    """At how many steps a run reaches the accuracy of another one at its own T, in a sentence."""
    goal = other.accuracy[other.time_steps - 1]
    name = f"{other.label} ({100 * goal:.2f} %)"
    for allowance, words in ((0.0, "reaches"), (0.01, "comes within 1 point of")):
        for t, accuracy in enumerate(one.accuracy, 1):
            if accuracy >= goal - allowance - 1e-12:
                return f"It {words} {name} at {t} step{'s' * (t > 1)}."
    return f"It stays more than 1 point below {name} in {one.steps} steps."
