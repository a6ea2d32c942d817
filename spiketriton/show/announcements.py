"""What a run says at its start and at its end: device, data, network, plan; results, what next."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from spiketriton.commandline import spelled
from spiketriton.config import Recipe, load_recipe
from spiketriton.config.shipped import shipped_recipes
from spiketriton.data import Data
from spiketriton.errors import UserError
from spiketriton.models import Network, count_parameters
from spiketriton.runs.checkpoint import Checkpoints
from spiketriton.runs.folder import RunFolder
from spiketriton.show.display import Display
from spiketriton.show.words import duration, percent, speed, synthetic_note
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
    display.verbatim(f"run folder: {folder}")
    changed = shlex.join(recipe.overrides())
    display.note(f"recipe {recipe.name}: {changed} (all keys: recipe.toml in the run folder)")
    display.note(f"device: {device.value.type}, {device.reason}")
    display.note(f"precision: {environment.name_of(precision.value)}, {precision.reason}")
    if device.value.type == "cpu":
        display.note("this run uses the CPU; the time left is shown after the first steps")


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
    what = "images"
    if data.frames:
        what, shape = "recordings", f"{recipe.time_steps} frames of {shape}"
    display.suffix = synthetic_note(data.synthetic)
    display.note(
        f"data: {data.label}{display.suffix}, {data.train.images:,} training and {data.test.images:,} "
        f"test {what} of {shape}, {len(data.classes)} classes"
        + (f", from {data.place}" if data.place else "")
        + (f"; {data.validation.images} {what} held out for validation" if data.validation else "")
    )
    counts = zip(data.classes, data.facts.class_counts, strict=False)
    if empty := [name for name, count in counts if not count]:
        few = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        display.warn(f"no training {what} of {few}: the network cannot learn what they look like")
    if data.skipped:
        first, *more = data.skipped
        rest = f" and {len(more):,} more" if more else ""
        display.note(f"left out: image files that cannot be read, {first}{rest}")
    layers = len(model.spiking_layers())
    kind = f"{layers} spiking layers over {recipe.time_steps} time steps" if layers else "an ANN"
    if not layers and model.is_spiking:
        kind = "none of its neurons can be measured"
    display.note(f"network: {recipe.model.name}, {count_parameters(model):,} parameters, {kind}")
    for line in model.notes():
        display.note(line)
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
    if recipe.train.mixes:
        alphas = {"mixup": recipe.train.mixup, "CutMix": recipe.train.cutmix}
        by = " and ".join(f"{name} (alpha {alpha:g})" for name, alpha in alphas.items() if alpha)
        display.note(
            f"mixed: pairs of training {what} by {by}; the loss in training is that of mixed {what}, "
            "tests are not mixed"
        )
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
        rows += [("training speed", speed(outcome.images_per_s))]
    rows += [("peak memory", f"{outcome.peak_memory_mib:.0f} MiB")]
    if outcome.firing_rate is not None:
        rows += [("firing rate", f"{outcome.firing_rate:.3f} spikes per neuron and step")]
    wide = max(len(name) for name, _ in [*rows, ("run folder", "")])
    rows = [(f"{name:<{wide}}", value) for name, value in rows]
    for name, value in rows:
        display.parts(f"{name}  {value}")
    names = ", ".join(path.name for path in pictures)
    display.parts(f"{'run folder':<{wide}}  {folder}")
    if names:
        display.note(f"{'pictures':<{wide}}  {names}, in the run folder", indent=" " * (wide + 2))


def what_next(
    display: Display,
    outcome: Outcome,
    folder: RunFolder,
    recipe: Recipe,
    arguments: Sequence[str],
    launcher: Sequence[str] = (),
) -> None:
    """Commands to try after a run. `arguments`: the recipe file and the overrides that made it."""
    if not (outcome.finished and outcome.saved):
        to_continue(display, folder, recipe, f"stopped at step {outcome.progress.step}", launcher)
        return
    display.note("what to try next:")
    for command, reason in [
        *_with_changes(outcome, recipe, spelled("train", launcher), arguments),
        *_with_the_run(folder, recipe, arguments[0]),
    ]:
        display.verbatim(f"  {shlex.join(command)}")
        display.note(f"      {reason}", indent=" " * 6)


def to_continue(
    display: Display, folder: RunFolder, recipe: Recipe, what: str, launcher: Sequence[str] = ()
) -> None:
    """After a run that has not ended: what of it is on the disk, and the command that goes on."""
    train = spelled("train", launcher)
    state = Checkpoints(folder.checkpoints, display.warn).load()
    if state is None and folder.reached():
        display.note(f"{what}; saved: its rows, but no checkpoint. To train it again:")
        display.verbatim("  " + shlex.join([*train, *folder.again()]))
        return
    saved = "nothing yet" if state is None else f"step {state['step']}"
    display.note(f"{what}; saved: {saved}. To continue:")
    display.verbatim(
        "  " + shlex.join([*train, "--resume", *_of_run(folder.path, recipe.names_code)])
    )


def _of_run(folder: Path, code: bool) -> list[str]:
    """A run as a command takes it, with consent to the code that it was just trained with, if there is some."""
    return [str(folder), *["--trust-plugins"] * code]


def _with_changes(
    outcome: Outcome, recipe: Recipe, train: Sequence[str], arguments: Sequence[str]
) -> Iterator[tuple[list[str], str]]:
    """The same training with one thing changed, and why; what a changed recipe refuses is left out."""
    changes = []
    if recipe.neuron.kind == "relu":
        changes.append(("neuron.kind=lif", "its spiking twin"))
    else:
        changes.append(
            ("neuron.kind=relu", "its ANN twin: the same network without spikes or time")
        )
    done = outcome.progress
    if done.best_accuracy is not None and done.best_step == done.step:  # it may still get better
        key, value = "train.epochs", recipe.train.epochs
        if recipe.train.max_steps:  # epochs have no effect beside it
            key, value = "train.max_steps", recipe.train.max_steps
        changes.append((f"{key}={2 * value}", "twice as long: validation was still getting better"))
    for change, reason in changes:
        if (words := _overridden(arguments, change)) is not None:
            yield [*train, *words], reason


def _overridden(arguments: Sequence[str], change: str) -> list[str] | None:
    """The arguments with one more override, without those that it replaces or leaves idle.

    None: there is no such recipe.
    """
    path, *given = arguments
    key = change.partition("=")[0]
    kept = [text for text in given if text.partition("=")[0].strip() != key]
    for overrides in (kept, [text for text in kept if not text.startswith("neuron.")]):
        try:
            load_recipe(path, [*overrides, change])
        except UserError:
            continue
        return [path, *overrides, change]
    return None


def _with_the_run(folder: RunFolder, recipe: Recipe, given: str) -> Iterator[tuple[list[str], str]]:
    """Commands that take the run, and why. `given`: the recipe of its command."""
    run = _of_run(folder.path, recipe.names_code)
    rows = folder.metrics.path.exists()
    unmeasurable = recipe.monitor.enabled and rows and not folder.gradients.path.exists()
    if recipe.neuron.kind == "relu":
        yield [*spelled("convert"), *run], "this ANN as a spiking network"
    elif not unmeasurable:
        why = "forward signal and gradient, layer by layer, and what to change"
        yield [*spelled("diagnose"), *run], why
    mine = Path("my_recipe.toml")
    if recipe.data.name == "digits" and given in shipped_recipes() and not mine.exists():
        copy = ["cp", str(folder.recipe), str(mine)]  # a first try
        yield copy, "a recipe of your own to change; docs/recipes.md explains every key"
    else:
        yield [*spelled("report"), *run], "one page: accuracy by time step, cost, spikes"
