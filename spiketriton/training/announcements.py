"""What a run says at its start and at its end: device, data, network, plan; results, what next."""

import contextlib
import itertools
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from spiketriton.config import Recipe, load_recipe
from spiketriton.config.names import LEAKY
from spiketriton.config.shipped import shipped_recipes
from spiketriton.config.words import some
from spiketriton.data import Data
from spiketriton.models import Network, count_parameters
from spiketriton.runs.checkpoint import Checkpoints
from spiketriton.runs.folder import RunFolder
from spiketriton.show.words import duration, in_words, scored, speed, synthetic_note
from spiketriton.system.commandline import spelled
from spiketriton.system.errors import UserError, one_line
from spiketriton.system.ranks import Ranks
from spiketriton.training import environment
from spiketriton.training.display import Display
from spiketriton.training.plan import Outcome, Plan
from spiketriton_kernels import backend_for
from spiketriton_kernels.backends import native

BACKENDS = {
    "triton": "Triton kernels",
    "native": "compiled C++ passes",
    "torch": "eager PyTorch, which is slow",
}


def _one_step(recipe: Recipe) -> str:
    """What a network of one time step is, and which of the recipe's keys have no effect on its training."""
    said = "one time step: nothing flows through time"
    if recipe.neuron.kind == "ilif":
        levels = recipe.neuron.levels
        said += f", and I-LIF is a ReLU quantised to whole numbers from 0 to {levels}, which are sent as spikes"
    # a leak of what was not there; but where the input leaks, too, tau scales it
    if recipe.neuron.kind in LEAKY and not recipe.neuron.decay_input:
        said += "; neuron.tau has no effect on it"
    return said


def _backend(device: torch.device) -> str:
    """What runs the neurons; and why, where it is slow."""
    name = backend_for(torch.empty(1, device=device))
    why = native.failure(torch.float32) if name == "torch" and device.type == "cpu" else None
    return BACKENDS[name] + (f": no GPU, and {one_line(why)}" if why else "")


@dataclass(frozen=True)
class Announcements:
    """What a display is told of the run of a recipe in a folder."""

    display: Display
    recipe: Recipe
    folder: RunFolder
    ranks: Ranks = field(default_factory=Ranks)

    def opening(self) -> None:
        """What is about to run, where and why. UserError: the recipe asks for a GPU and there is none."""
        recipe, note = self.recipe, self.display.note
        device = environment.choose_device(recipe.train.device)
        precision = environment.choose_precision(recipe.train.precision, device.value)
        note(environment.version_line())
        self.display.verbatim(f"run folder: {self.folder.path}")
        changed = shlex.join(recipe.overrides())
        note(f"recipe {recipe.name}: {changed} (all keys: recipe.toml in the run folder)")
        note(f"device: {device.value.type}, {device.reason}")
        note(f"precision: {environment.name_of(precision.value)}, {precision.reason}")
        if device.value.type == "cpu":
            note("this run uses the CPU; the time left is shown after the first steps")

    def training(self, data: Data, model: Network, plan: Plan) -> None:
        """The data, the network and the plan; and that the images are synthetic, if they are."""
        recipe, display, note = self.recipe, self.display, self.display.note
        display.suffix = synthetic_note(data.synthetic)
        what = f"{data.facts.what}s"
        self._data(data, what)
        layers = len(model.spiking_layers())
        kind = "none of its neurons can be measured" if model.is_spiking else "an ANN"
        if layers:
            steps = recipe.time_steps
            kind = f"{layers} spiking layers over {steps} time step{'s' * (steps > 1)}"
        note(f"network: {recipe.model.name}, {count_parameters(model):,} parameters, {kind}")
        if layers and recipe.time_steps == 1:
            note(_one_step(recipe))
        for line in model.notes():
            note(line)
        device = next(model.parameters()).device
        if device.type == "cpu":
            note(f"threads: {environment.thread_words(recipe.train.threads)}")
        if layers:
            note(f"neurons: {_backend(device)}")
        if words := self.ranks.in_words():
            norms = "all ranks together" if recipe.train.sync_bn else "each rank by itself"
            note(f"ranks: {words}; batch norm's statistics are those of {norms}")
        alphas = {"mixup": recipe.train.mixup, "CutMix": recipe.train.cutmix}
        mixed = (f"{name} (alpha {alpha:g})" for name, alpha in alphas.items() if alpha)
        if by := " and ".join(mixed):
            note(
                f"mixed: pairs of training {what} by {by}; the loss in training is that of mixed {what}, "
                "tests are not mixed"
            )
        count = data.train.accumulate
        batch = f"{plan.batch_size} {what}" + (f" in {count} parts" if count > 1 else "")
        note(f"plan: {plan.steps} steps of {batch}, {plan.epoch_steps} steps an epoch\n")

    def _data(self, data: Data, what: str) -> None:
        shape = f"{data.channels}x{data.image_size}x{data.image_size}"
        if data.facts.sequence:
            shape = f"{self.recipe.time_steps} steps of {data.facts.features} values"
        elif data.frames:
            shape = f"{self.recipe.time_steps} frames of {shape}"
        said = (
            f"data: {data.label}{self.display.suffix}, {data.train.images:,} training and {data.test.images:,} "
            f"test {what} of {shape}, {len(data.classes)} {'classes' if data.task.classifies else 'outputs'}"
        )
        if data.place:
            said += f", from {data.place}"
        if data.validation:
            said += f"; {data.validation.images} {what} held out for validation"
        self.display.note(said)
        if data.note:
            self.display.note(data.note)
        if (task := data.task).score != "accuracy":
            best = "highest" if task.higher_is_better else "lowest"
            self.display.note(f"task: {self.recipe.loss.kind}; the {best} {task.score} is the best")
        if left_out := data.train.images - data.train.steps_per_epoch * data.train.batch_size:
            self.display.note(
                f"an epoch leaves out {left_out} training {what}, others each time: it has whole batches of "
                f"{data.train.batch_size}"
            )
        counts = zip(data.classes, data.facts.class_counts, strict=False)
        if empty := [name for name, count in counts if not count]:
            self.display.warn(
                f"no training {what} of {some(empty, 5)}: the network cannot learn what they look like"
            )
        tested = data.task.count(data.test.dataset.split.labels, len(data.classes))
        if untested := [n for n, count in zip(data.classes, tested, strict=False) if not count]:
            self.display.warn(
                f"no test {what} of {some(untested, 5)}: tests say nothing of how well they are told apart"
            )
        if data.skipped:
            first, *more = data.skipped
            rest = f" and {len(more):,} more" if more else ""
            self.display.note(f"left out: image files that cannot be read, {first}{rest}")

    def summary(self, outcome: Outcome, pictures: Iterable[Path]) -> None:
        plan, done, suffix = outcome.plan, outcome.progress, self.display.suffix
        rows = {"steps": f"{done.step} of {plan.steps}"}
        if done.test_score is not None:
            last = done.named(done.test_score)
            name = in_words(last)
            rows[f"test {name}"] = scored(last) + suffix
            if done.best_score is not None and done.best_test_score is not None:
                best = scored(last, done.best_score)
                rows[f"test {name}, last"] = rows.pop(f"test {name}")
                when = f" (after epoch {plan.epoch(done.best_step):g})"
                rows[f"validation {name}, best"] = best + when + suffix
                rows[f"test {name} there"] = scored(last, done.best_test_score) + suffix
        rows["time"] = duration(done.seconds)
        if outcome.images_per_s is not None:
            rows["training speed"] = speed(outcome.images_per_s)
        rows["peak memory"] = f"{outcome.peak_memory_mib:.0f} MiB"
        if outcome.firing_rate is not None:
            rows["firing rate"] = f"{outcome.firing_rate:.3f} spikes per neuron and step"
        rows["run folder"] = str(self.folder.path)
        wide = max(map(len, rows))
        for name, value in rows.items():
            self.display.fields(f"{name:<{wide}}  {value}")
        if names := ", ".join(path.name for path in pictures):
            words = f"{'pictures':<{wide}}  {names}, in the run folder"
            self.display.note(words, indent=" " * (wide + 2))

    def what_next(self, outcome: Outcome, arguments: Sequence[str]) -> None:
        """Commands to try after a run. `arguments`: the recipe file and the overrides that made it."""
        if not (outcome.finished and outcome.saved):
            self.to_continue(f"stopped at step {outcome.progress.step}")
            return
        self.display.note("what to try next:")
        commands = (self._with_changes(outcome, arguments), self._with_the_run(arguments[0]))
        for command, reason in itertools.chain(*commands):
            self.display.verbatim(f"  {shlex.join(command)}")
            self.display.note(f"      {reason}", indent=" " * 6)

    def to_continue(self, what: str) -> None:
        """After a run that has not ended: what of it is on the disk, and the command that goes on."""
        train, folder = spelled("train", self.ranks.launcher), self.folder
        if not folder.recipe.is_file():
            self.display.note(
                f"{what}; {folder.path} is gone, and what was saved there: nothing can be continued"
            )
            return
        state = Checkpoints(folder.checkpoints, self.display.warn).load()
        if state is None and folder.reached():
            self.display.note(f"{what}; saved: its rows, but no checkpoint. To train it again:")
            self.display.verbatim("  " + shlex.join([*train, *folder.again()]))
            return
        saved = "nothing yet" if state is None else f"step {state['step']}"
        self.display.note(f"{what}; saved: {saved}. To continue:")
        self.display.verbatim("  " + shlex.join([*train, "--resume", *self._run]))

    @property
    def _run(self) -> list[str]:
        """The run as a command takes it, with consent to the code that it was just trained with, if there is some."""
        return [str(self.folder.path), *["--trust-plugins"] * self.recipe.names_code]

    def diagnose(self) -> str:
        """The command that diagnoses the run."""
        return shlex.join([*spelled("diagnose"), *self._run])

    def _with_changes(
        self, outcome: Outcome, arguments: Sequence[str]
    ) -> Iterator[tuple[list[str], str]]:
        """The same training with one thing changed, and why; what a changed recipe refuses is left out."""
        done, train = outcome.progress, self.recipe.train
        changes = {"neuron.kind=relu": "its ANN twin: the same network without spikes or time"}
        if self.recipe.neuron.kind == "relu":
            changes = {f"neuron.kind={_spiking(arguments)}": "its spiking twin"}
        if done.best_score is not None and done.best_step == done.step:
            longer = f"train.epochs={2 * train.epochs}"
            if train.max_steps:  # epochs have no effect beside it
                longer = f"train.max_steps={2 * train.max_steps}"
            changes[longer] = "twice as long: validation was still getting better"
        for change, reason in changes.items():
            if (words := _overridden(arguments, change)) is not None:
                yield [*spelled("train", self.ranks.launcher), *words], reason

    def _with_the_run(self, given: str) -> Iterator[tuple[list[str], str]]:
        """Commands that take the run, and why. `given`: the recipe of its command."""
        recipe, folder = self.recipe, self.folder
        rows = folder.metrics.path.exists()
        unmeasurable = recipe.monitor.enabled and rows and not folder.gradients.path.exists()
        if recipe.neuron.kind == "relu":
            yield [*spelled("convert"), *self._run], "this ANN as a spiking network"
        elif not unmeasurable:
            why = "forward signal and gradient, layer by layer, and what to change"
            yield [*spelled("diagnose"), *self._run], why
        mine = Path("my_recipe.toml")
        if recipe.data.name == "digits" and given in shipped_recipes() and not mine.exists():
            copy = ["cp", str(folder.recipe), str(mine)]  # a first try
            yield copy, "a recipe of your own to change; docs/recipes.md explains every key"
        else:
            yield [*spelled("report"), *self._run], "one page: accuracy by time step, cost, spikes"


def _spiking(arguments: Sequence[str]) -> str:
    """The kind of neuron of the recipe's own file; lif, where that does not spike."""
    path, *given = arguments
    kept = _without(given, "neuron.kind")
    with contextlib.suppress(UserError):  # what names the kind may name what the file leaves out
        kind = load_recipe(path, kept).neuron.kind
        return "lif" if kind == "relu" else kind
    return "lif"


def _without(overrides: Sequence[str], key: str) -> list[str]:
    return [text for text in overrides if text.partition("=")[0].strip() != key]


def _overridden(arguments: Sequence[str], change: str) -> list[str] | None:
    """The arguments with one more override, without those that it replaces or leaves idle.

    None: there is no such recipe.
    """
    path, *given = arguments
    kept = _without(given, change.partition("=")[0])
    for overrides in (kept, [text for text in kept if not text.startswith("neuron.")]):
        try:
            load_recipe(path, [*overrides, change])
        except UserError:
            continue
        return [path, *overrides, change]
    return None
