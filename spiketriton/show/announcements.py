"""What a run says at its start and at its end: device, data, network, plan; results, what next."""

import shlex
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spiketriton.config import Recipe, to_toml
from spiketriton.data import Data
from spiketriton.models import Network, count_parameters
from spiketriton.show.display import Display
from spiketriton.show.words import duration, percent, synthetic_note
from spiketriton.training import environment
from spiketriton.training.plan import Outcome, Plan
from spiketriton.training.ranks import Ranks
from spiketriton_kernels import backend_for

BACKENDS = {
    "triton": "Triton kernels",
    "native": "compiled C++ passes",
    "torch": "eager PyTorch, which is slow: there is neither a GPU nor a C++ compiler",
}


def announce_run(display: Display, recipe: Recipe, folder: Path) -> None:
    """What is about to run, where and why. UserError: the recipe asks for a GPU and there is none."""
    device = environment.choose_device(recipe.train.device)
    precision = environment.choose_precision(recipe.train.precision, device.value)
    display.note(environment.version_line())
    display.note(f"recipe {recipe.name}, resolved:\n\n{to_toml(recipe)}")
    display.note(f"device: {device.value.type}, {device.reason}")
    display.note(f"precision: {recipe.train.precision}, {precision.reason}")
    if device.value.type == "cpu":
        display.note(
            "cost: there is no GPU in this run; its time is estimated after the first steps"
        )
    display.note(f"run folder: {folder}")


def announce_parts(
    display: Display,
    recipe: Recipe,
    data: Data,
    model: Network,
    plan: Plan,
    ranks: Ranks | None = None,
) -> None:
    """The data, the network and the plan; and that the images are synthetic, if they are."""
    shape = f"{data.channels}x{data.image_size}x{data.image_size}"
    display.suffix = synthetic_note(data.synthetic)
    display.note(
        f"data: {data.name}{display.suffix}, {data.train.images} training and {data.test.images} "
        f"test images of {shape}, {len(data.classes)} classes"
        + (f"; {data.validation.images} images held out for validation" if data.validation else "")
    )
    layers = len(model.spiking_layers())
    kind = f"{layers} spiking layers over {recipe.time_steps} time steps" if layers else "an ANN"
    display.note(f"network: {recipe.model.name}, {count_parameters(model):,} parameters, {kind}")
    device = next(model.parameters()).device
    if device.type == "cpu":
        display.note(f"threads: {environment.thread_words(recipe.train.threads)}")
    if layers:
        display.note(f"neurons: {BACKENDS[backend_for(torch.empty(1, device=device))]}")
    count = data.train.accumulate
    parts = f" in {count} parts" if count > 1 else ""
    if ranks and (words := ranks.in_words()):
        norms = "all ranks together" if recipe.train.sync_bn else "each rank by itself"
        display.note(f"ranks: {words}; batch norm's statistics are those of {norms}")
    display.note(
        f"plan: {plan.steps} steps of {plan.batch_size} images{parts}, {plan.epoch_steps} steps an epoch\n"
    )


def summary(display: Display, outcome: Outcome, folder: Path, pictures: Iterable[Path]) -> None:
    """The table at the end of a session."""
    plan, done = outcome.plan, outcome.progress
    rows = [("steps", f"{done.step} of {plan.steps}")]
    if done.test_accuracy is not None:
        rows += [("test accuracy", f"{percent(done.test_accuracy)}{display.suffix}")]
    if done.best_accuracy is not None and done.best_test_accuracy is not None:
        rows[-1] = ("test accuracy, last", rows[-1][1])
        best = f"{percent(done.best_accuracy)} (after epoch {plan.epoch(done.best_step):g})"
        rows += [("validation accuracy, best", best + display.suffix)]
        rows += [("test accuracy there", percent(done.best_test_accuracy) + display.suffix)]
    rows += [("time", duration(done.seconds))]
    if outcome.images_per_s is not None:
        rows += [("training speed", f"{outcome.images_per_s:.4g} images/s")]
    rows += [("peak memory", f"{outcome.peak_memory_mib:.0f} MiB")]
    if outcome.firing_rate is not None:
        rows += [("firing rate", f"{outcome.firing_rate:.3f} spikes a neuron and time step")]
    rows += [("run folder", str(folder))]
    rows += [("" if i else "pictures", str(path)) for i, path in enumerate(pictures)]
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    for name, value in rows:
        table.add_row(name, Text(value))
    # as wide as its content: a path that is cut to the terminal's width is useless
    width = max(len(name) for name, _ in rows) + max(len(value) for _, value in rows) + 8
    terminal = display.stream.isatty()
    Console(file=display.stream, force_terminal=terminal, width=width).print(table)


def what_next(
    display: Display,
    outcome: Outcome,
    folder: Path,
    recipe: Recipe,
    arguments: Iterable[str],
    launcher: Iterable[str] = ("python",),
) -> None:
    """Commands to try after a run; `arguments` are those that made the recipe."""
    train = [*launcher, "-m", "spiketriton.train"]
    if not (outcome.finished and outcome.saved):
        saved = "no checkpoint" if outcome.saved_at is None else f"step {outcome.saved_at}"
        display.note(f"stopped at step {outcome.progress.step}; saved: {saved}. To continue:")
        display.note("  " + shlex.join([*train, "--resume", str(folder)]))
        return
    other = "lif" if recipe.neuron.kind == "relu" else "relu"
    twin = "its spiking twin" if other == "lif" else "its ANN twin (the same network, no time)"
    display.note("what to try next:")
    for change, reason in (
        (f"neuron.kind={other}", twin),
        (f"train.epochs={2 * recipe.train.epochs}", "twice as long"),
        (f"seed={recipe.seed + 1}", "another seed, to see the spread"),
    ):
        display.note(f"  {shlex.join([*train, *arguments, change])}    # {reason}")
