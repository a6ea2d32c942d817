"""spiketriton in Python: train a recipe, load a run, look at images with it. docs/own_code.md shows each use.

run = spiketriton.train("quickstart", epochs=2, overrides={"neuron.kind": "if"})
run = spiketriton.load_run("runs/quickstart-20260101-120000")
"""

import importlib.util
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from spiketriton.config import Recipe, replace, values_by_key
from spiketriton.config.names import RATES
from spiketriton.config.parts import IN_HAND, handed
from spiketriton.config.reading import PLUGINS
from spiketriton.data import Facts
from spiketriton.data.given import given_images
from spiketriton.diagnose.cures import own_cures
from spiketriton.diagnose.diagnosed import shown_by
from spiketriton.diagnose.modules import Called, named_as_given, try_on_batch
from spiketriton.diagnose.trials import STEPS, Trials
from spiketriton.diagnose.words import tried
from spiketriton.evaluate.evaluation import evaluate
from spiketriton.evaluate.results import Evaluation
from spiketriton.evaluate.stream import Stream
from spiketriton.export.nir_network import network as from_nir
from spiketriton.gradients.measurement import Measurement
from spiketriton.gradients.prober import Prober
from spiketriton.gradients.verdict import Learned, Verdict, Word, judge
from spiketriton.models import Network
from spiketriton.models.network import in_eval_mode
from spiketriton.plugins.tasks import answers, has_time, task_of
from spiketriton.runs.request import Request
from spiketriton.runs.rows import Row, replace_file
from spiketriton.show.verdict import line, sentences
from spiketriton.system import consent
from spiketriton.system.errors import EXIT_DONE, EXIT_SIGINT, UserError
from spiketriton.system.ranks import Ranks
from spiketriton.training import trained
from spiketriton.training.display import Quiet, make_display
from spiketriton.training.environment import undisturbed
from spiketriton.training.hooks import Hooks
from spiketriton.training.session import Session

__all__ = ["NetDiagnosis", "Run", "diagnose", "from_nir", "load_run", "table", "train"]

_OF_RUNS: WeakKeyDictionary[nn.Module, tuple[Tensor, Callable[[], Learned | None]]]
_OF_RUNS = WeakKeyDictionary()
"""Networks of runs: the sums of their weights, and what the training of these weights showed."""


def train(
    net: nn.Module | str | Path | None = None,
    recipe: str | Path | None = None,
    *,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    extend: int | str | None = None,
    quiet: bool = False,
    plugins: bool | Sequence[str] = (),
    on_row: Callable[[dict[str, Any]], Any] | None = None,
    on_step: Callable[[int], Any] | None = None,
    on_checkpoint: Callable[[Path], Any] | None = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    **keys: Any,
) -> "Run":
    """Trains a recipe as the command `spiketriton train` does, with the same run folder, and loads it.

    `train(recipe)` trains the recipe's network, `train(net, recipe)` a copy of `net`, any torch.nn.Module, in
    its place; the network that was trained is `run.model.net`.

    The process is afterwards as it was before: random generators, threads, deterministic algorithms,
    environment variables, warning filters.

    Args:
        net: a network, or the recipe if it is the only argument.
        recipe: a recipe file, or the name of a shipped recipe.
        run_dir: the run folder; None: runs/<recipe>-<time>.
        resume: the folder of a run to continue, instead of `recipe` and `run_dir`.
        extend: with `resume`, train to this many epochs in all, or to "train.max_steps=400".
        quiet: show warnings only.
        plugins: with `resume`, see `load_run`.
        on_row, on_step, on_checkpoint: called with each row of metrics.jsonl, the number of each step, the path of
            each checkpoint; one that returns True ends the run, saved (`spiketriton.training.hooks`).
        overrides: changes to the recipe by their keys (`{"neuron.kind": "if"}`).
        keys: the same, of [train] or of the top level by their names (`epochs=2`, `seed=1`).

    Raises:
        UserError: a mistake in the recipe or the keys, missing data, a folder in use, a full disk.
        spiketriton.training.nonfinite.Diverged: a loss or gradient was not finite.
        KeyboardInterrupt: Ctrl-C; the run is saved, and `resume` continues it.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UserError(
            f"spiketriton.train trains in its own process alone, and WORLD_SIZE = {os.environ['WORLD_SIZE']} "
            "asks for one training by several; accepted: torchrun ... -m spiketriton.train RECIPE"
        )
    net, recipe = _net_and_recipe(net, recipe)
    if (recipe is None) == (resume is None):
        raise UserError("accepted: either a recipe, or resume=RUN")
    if extend is not None and resume is None:
        raise UserError("extend needs resume=RUN, the run to extend")
    if resume is not None and run_dir is not None:
        raise UserError("run_dir contradicts resume, which continues in the folder of the run")
    values = _with_plugins(values_by_key({**overrides, **keys}), plugins)
    if net is not None and recipe is not None:
        values["model.name"] = f"{IN_HAND}:{type(net).__name__}"
    named, into, begun = (None if p is None else str(p) for p in (recipe, run_dir, resume))
    with consent.decided(plugins is True):
        request = Request(named, run_dir=into, resume=begun, values=values, extend=extend)
        given, folder = request.find_run()
    display = Quiet() if quiet else make_display()
    with consent.decided(plugins is True), undisturbed(), handed(net):
        hooks = Hooks(on_row, on_step, on_checkpoint)
        outcome = Session(given, folder, display, Ranks(), resume is not None, hooks).train()
    if outcome.exit_code == EXIT_SIGINT:
        trust = ", plugins=True" if given.names_code else ""
        display.note(f'continue with spiketriton.train(resume="{folder.path}"{trust})')
        raise KeyboardInterrupt
    if outcome.exit_code != EXIT_DONE and not outcome.saved:
        raise UserError(
            f"{folder.path}: the last checkpoint could not be saved; the run is incomplete"
        )
    return load_run(folder.path, net=net)


def _net_and_recipe(
    net: nn.Module | str | Path | None, recipe: str | Path | None
) -> tuple[nn.Module | None, str | Path | None]:
    """What `train` was given: the first of its arguments is the recipe if it is the only one."""
    if net is None or isinstance(net, nn.Module):
        return net, recipe
    if recipe is not None:
        raise UserError(
            f"train({net!r}, {recipe!r}): the first of two is a {type(net).__name__}; accepted: train(recipe), "
            "or train(net, recipe) with a torch.nn.Module"
        )
    return None, net


def load_run(
    path: str | Path,
    plugins: bool | Sequence[str] = (),
    *,
    checkpoint: Literal["last", "best", "ema"] = "last",
    net: nn.Module | None = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    **keys: Any,
) -> "Run":
    """Loads the run in a folder, which may be read-only. Its data are needed for `Run.evaluate` alone.

    No code of the folder runs unless `plugins` says so: see docs/trust.md. It changes nothing else in this
    process: neither threads nor algorithms nor random generators.

    Args:
        path: a run folder, or a file of weights that `spiketriton export --to safetensors` wrote.
        plugins: modules with the plugins that the run uses, in place of those that its recipe
            names; True: those that it names.
        checkpoint: "last": the end of the training; "best": by validation, with data.validation;
            "ema": the averaged weights, with train.ema.
        net: of a run that was trained by `train(net, recipe)`, the network; a copy gets the weights.
        overrides, keys: those that move a run and change no weight, such as `{"data.root": "/data"}`.

    Raises:
        UserError: there is no run, or no whole checkpoint of it.
    """
    values = _with_plugins(values_by_key({**overrides, **keys}), plugins)
    with consent.decided(plugins is True), undisturbed(), handed(net):
        return Run(trained.load_run(path, values=values, checkpoint=checkpoint))


def _with_plugins(values: dict[str, Any], plugins: bool | Sequence[str]) -> dict[str, Any]:
    return values if isinstance(plugins, bool) or not plugins else {**values, PLUGINS: [*plugins]}


@dataclass(frozen=True)
class NetDiagnosis:
    """What `diagnose` found out about a network; its text is the verdict in sentences.

    measured: gradients, firing and reach by layer and time step: `measured.rows()`, `measured.depth_profile`.
    overlap: the forward signal of each layer, [layers]: 1 preserved, 0 lost.
    verdict: `verdict.word`, `verdict.obstacles`, and the numbers behind them.
    trials: changes that were tried, `trials.helped` those that lowered the loss; None where nothing was to be tried.
    """

    measured: Measurement
    overlap: np.ndarray
    verdict: Verdict
    trials: Trials | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The spiking layers, in the order in which they are called."""
        return self.measured.names

    def __str__(self) -> str:
        said = [line(self.verdict), *sentences(self.verdict)]
        return "\n".join([*said, *([] if self.trials is None else [tried(self.trials)])])


def diagnose(
    net: nn.Module,
    batch: Tensor | Sequence[Tensor],
    *,
    optimizer: str | None = None,
    loss: Callable[..., Tensor] | None = None,
    time_first: bool | None = None,
    time_steps: int = 4,
    tries: int = STEPS,
) -> NetDiagnosis:
    """Forward signal and gradient of a network of spiking neurons; `net` stays as it is.

    It finds out what `net` takes: x as it is, or at each of `time_steps` steps, at once or one after the other. Where
    something stands in the way, changes are tried on copies.

    Args:
        net: any module whose neurons are those of `spiketriton_kernels.nn`, or of a library that
            `spiketriton_kernels.nn.swap` knows; a copy is swapped and measured, in training mode. Of a run's network,
            `run.model`, with the run's weights, the verdict knows the run's tests, too.
        batch: (x, y), inputs [T, B, ...] or [B, ...] and labels [B]; or x alone, with a `loss`; of sequences for one of
            our networks also (x, y, lengths).
        optimizer: that it will be trained with, "adamw", "muon", or "sgd" without a limit on the gradient's norm; None:
            that of the recipe of one of our networks, which is judged by it either way, else AdamW.
        loss: (outputs, y) -> scalar, of x alone (outputs) -> scalar; None: that of the recipe of one of our networks,
            which reads as the recipe says, else cross-entropy of the outputs [B, K], or of their mean over time,
            [T, B, K].
        time_first: whether x is [T, B, ...]; None: as the labels fit, which has to be said where both do; of x alone
            [B, ...].
        time_steps: of inputs [B, ...] that the network wants with time.
        tries: steps for which each change is trained on the first images of the batch; 0: none is tried.

    Raises:
        UserError: no neuron that can be measured, and why; inputs or labels that do not fit.
    """
    pair = (batch, None) if isinstance(batch, Tensor) else (*batch,)  # a DataLoader gives a list
    x, y, lengths = (*pair, None)[:3] if len(pair) in (2, 3) else (None, None, None)
    if not (isinstance(x, Tensor) and all(isinstance(p, Tensor | None) for p in (y, lengths))):
        kinds = ", ".join(type(part).__name__ for part in pair)
        raise UserError(f"a batch of {kinds}; accepted: (x, y), or x, which are tensors")
    ours = net.made_from if isinstance(net, Network) else None
    if lengths is not None and ours is None:
        raise UserError("a batch with lengths; accepted of networks of a recipe alone: (x, y)")
    if optimizer is None:
        optimizer = "adamw" if ours is None else ours.train.optimizer
    if optimizer not in RATES:
        raise UserError(f"optimizer = {optimizer!r}: accepted: {', '.join(RATES)}")
    for name, value in (("time_steps", time_steps), ("tries", tries)):
        if not isinstance(value, int) or value < (least := int(name == "time_steps")):
            raise UserError(f"{name} = {value!r}: accepted: an integer from {least} on")
    if y is not None and loss is None and ours is not None:
        loss = _loss_of(ours)
    if y is None and loss is None:
        raise UserError("inputs without labels need a loss; accepted: (x, y), or x and loss=...")
    if time_first is None and ours is not None:
        time_first = has_time(x)
    images = int(_has_time(x, y, time_first))
    given = (lambda out, _: loss(out)) if loss is not None and y is None else loss
    batch = (x, y) if lengths is None else (x, y, lengths)
    with undisturbed():
        return _diagnosed(net, batch, images, given or _cross_entropy, optimizer, time_steps, tries)


def _has_time(x: Tensor, y: Tensor | None, time_first: bool | None) -> bool:
    """Whether x is [T, B, ...]: as was said, or as the labels fit. UserError: neither fits, or both do."""
    if y is None:
        return bool(time_first)
    shape, labels = tuple(x.shape), len(y)
    fits = {first: shape[first : first + 1] == (labels,) for first in (False, True)}
    if time_first is None and all(fits.values()):
        raise UserError(
            f"inputs {shape} with {labels} labels are {labels} images of {labels} time steps, or {labels} images "
            "without time; accepted: time_first=True for the first reading, time_first=False for the second"
        )
    if not (any(fits.values()) if time_first is None else fits[time_first]):
        said = "" if time_first is None else f" and time_first={time_first}"
        raise UserError(
            f"{labels} labels for inputs {shape}{said}; accepted: a label for each image"
        )
    return fits[True] if time_first is None else time_first


def _loss_of(recipe: Recipe) -> Callable[..., Tensor]:
    """That of a recipe's task, which reads as it says; class weights, of whose counts a batch knows nothing, are 1."""
    weighed = recipe.loss.class_weights != "none"
    task = task_of(replace(recipe, "loss.class_weights=none").loss if weighed else recipe.loss)

    def loss(out: Tensor, labels: Tensor, *lengths: Tensor) -> Tensor:
        if task.classifies:
            _refuse_unfit_labels(out, labels)
        return task.loss(out, labels, *lengths)

    return loss


def _diagnosed(
    net: nn.Module,
    batch: tuple[Any, ...],
    images: int,
    loss: Callable[..., Tensor],
    optimizer: str,
    time_steps: int,
    tries: int,
) -> NetDiagnosis:
    copy = Called(net, time_steps, timed=images > 0)
    copy.recognise(batch[0], batch[0].shape[images])
    fresh = deepcopy(copy)
    prober = Prober(copy, [batch], loss, images=images)
    measured, signal = named_as_given(prober.measure(time=True)), prober.signal()
    of: Recipe | str = optimizer
    if isinstance(net, Network) and net.made_from is not None:
        of = net.made_from
        if of.train.optimizer != optimizer:
            unlimited = ["train.clip_grad_norm=0"] * (optimizer == "sgd")
            of = replace(of, f"train.optimizer={optimizer}", *unlimited)
    sums, shown = _OF_RUNS.get(net, (None, None))
    begun = sums is not None and torch.allclose(sums, _sums(net), rtol=1e-9, atol=1e-9)
    learned = shown() if begun and shown is not None else None
    verdict = judge(measured, of, signal, learned, begun=begun)
    found = own_cures([neuron for _, neuron in copy.neurons()], verdict) if tries else []
    trials = None
    if found and len(batch) == 2:  # of lengths no trial knows
        forgets = verdict.through.word == Word.FORGETS
        one = batch[0], batch[1]
        trials = try_on_batch(fresh, one, images, loss, found, optimizer, tries, apart=forgets)
    return NetDiagnosis(measured, signal.overlap, verdict, trials)


def _sums(net: nn.Module) -> Tensor:
    """Of each parameter, in float64."""
    return torch.stack([p.detach().double().sum().cpu() for p in net.parameters()])


def _cross_entropy(out: Tensor, labels: Tensor) -> Tensor:
    out = out.mean(0) if out.ndim == 3 else out
    _refuse_unfit_labels(out, labels)
    return nn.functional.cross_entropy(out, labels)


def _refuse_unfit_labels(out: Tensor, labels: Tensor) -> None:
    """UserError: they are no classes of the outputs [..., K]."""
    whole = labels.dtype in (torch.int64, torch.uint8)
    if labels.ndim == 1 and not (whole and 0 <= labels.min() <= labels.max() < out.shape[-1]):
        raise UserError(
            f"labels {labels.dtype} from {labels.min():g} to {labels.max():g}; accepted: int64 from 0 to "
            f"{out.shape[-1] - 1}, as the outputs {list(out.shape)} have classes, or a loss of one's own"
        )


class Run:
    """A trained run: its network in eval mode, on the device that its recipe chooses.

    Attributes:
        path: the run folder.
        recipe: the resolved recipe.
        model: the network: normalised images [B, C, H, W] -> logits [T, B, K]. Whatever mode it is left in, `predict`
            and `evaluate` use eval mode, one call at a time, whatever thread it comes from.
        classes: the names of the K classes.
        step: optimizer steps behind the weights.
    """

    def __init__(self, run: trained.TrainedRun) -> None:
        self._run = run
        self.path: Path = run.folder.path
        self.recipe: Recipe = run.recipe
        self.model: Network = run.model
        self.facts: Facts = run.facts
        self.classes: tuple[str, ...] = run.facts.classes
        self.step: int = run.step
        self._one = threading.RLock()  # whoever leaves eval mode leaves it for all
        tested = run.conversion is None and run.checkpoint != "ema"  # as they were trained
        if run.step > 0 and tested:
            until = run.folder, run.step, run.recipe, run.facts.class_counts
            _OF_RUNS[run.model] = _sums(run.model), partial(shown_by, *until)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.recipe.model.name} on {self.facts.name}, step {self.step})"

    @torch.inference_mode()
    def predict(self, images: Tensor | np.ndarray | Sequence[Any], batch_size: int = 0) -> Tensor:
        """Probabilities [B, K] of the classes, float32 on the CPU: softmax of the logits that `loss.read` names.

        Of another task what its `predict` makes of the currents [T, B, ...].

        Images are prepared as the recipe prepares its test images: resized, cropped, normalised; sequences are
        normalised and padded, recordings of event cameras binned. The answer to a file of a recording that is longer
        than `data.cut_ms` is the mean of those to its parts, which are as long as in training.

        Args:
            images: float [B, C, H, W] in 0..1 or uint8 [B, C, H, W]; or a list of PIL images and
                paths of image files; or one of these. Of a run on sequences numbers [B, T, C], or a list of [T, C] and
                paths of .npy files (of spoken digits also .wav). Of a run on recordings uint8 counts
                [B, T, 2, S, S], or a list of paths of recordings.
            batch_size: images at once; 0: the recipe's batch size.

        Raises:
            UserError: other shapes, dtypes or values; a file that is none of these.
        """
        if batch_size < 0:
            raise UserError(f"batch_size = {batch_size}: accepted: 1 or more, 0: the recipe's")
        size = batch_size or self.recipe.train.batch_size
        test, parts = given_images(images, self.facts, size, self.recipe.data)
        found, task = [], task_of(self.recipe.loss)
        with self._one, in_eval_mode(self.model):
            for batch, _, *lengths in test:
                known = [self._run.to_device(one) for one in lengths]
                with self._run.autocast():
                    currents = answers(self.model, self._run.to_device(batch), known)
                found.append(task.predict(currents.float(), *known).cpu())
        every = torch.cat(found)
        return torch.stack([one.mean(0) for one in every.split(parts)]) if parts else every

    def stream(self) -> Stream:
        """Answers while the input arrives: `step(frame)` gives the answer so far, `reset()` begins anew.

        The answer is what `predict` gives of the frames so far: of classification the softmax of the mean of the
        logits, or with `loss.read = "last"` of the last step's. Frames are prepared as the data of the run. A stream
        has a copy of the network as it is now, so that several do not disturb each other, nor a training. It is first
        shown noise, as whole windows and one step at a time.

        Raises:
            UserError: the network needs whole windows, and what in it: parallel neurons (PSN), a loop over time or
                attention over time in a network of one's own.
        """
        with self._one, undisturbed():
            return Stream(self._run)

    def evaluate(self, steps: int | None = None) -> Evaluation:
        """The score by time step, confusion, spikes, operations and energy on the test images.

        steps: time steps to run, if more than the recipe's T. UserError: the data are missing.
        """
        if steps is not None and not (isinstance(steps, int) and steps >= 1):
            raise UserError(f"steps = {steps!r}: accepted: an integer from 1 on")
        with self._one, in_eval_mode(self.model):
            return evaluate(self._run, steps)

    def report(self, out: str | Path | None = None) -> Path:
        """Writes the page of `spiketriton report` and gives its path; evaluates first, where that was not done yet.

        out: its file; None: report.html in the run folder. UserError: the data are missing; the file has no place.
        """
        from spiketriton.report import __main__ as report
        from spiketriton.report.page import Page

        path, mark = report.place(self._run.folder, out)
        found = report.stored_evaluation(self._run.folder) or self.evaluate()
        with undisturbed():
            text = Page(self._run.folder, self.recipe, [found]).html(mark)
        replace_file(path, text)
        return path

    def export(self, to: str, out: str | Path | None = None, **options: Any) -> Path:
        """Writes the network as `spiketriton export` does, and gives the path of the file, which was read back.

        Args:
            to: "onnx", "torch" (a .pt2), "nir" or "safetensors".
            out: the file; None: one in the run folder.
            options: `batch_size` of onnx and torch, `stream` of onnx (one time step, with states in and out), `dt` and
                `images` of nir.

        Raises:
            UserError: another format or option; a missing package; what the format cannot hold; a file that would
                differ from the network, and is not written.
        """
        from spiketriton.export import __main__ as export

        formats = export.FORMATS
        if to not in formats:
            raise UserError(f"export({to!r}): accepted: {', '.join(formats)}")
        if unknown := sorted({*options} - {*formats[to].options}):
            accepted = ", ".join(formats[to].options) or "none"
            raise UserError(f"export({to!r}, {unknown[0]}=...): accepted: {accepted}")
        mark = export.prepared(self._run.folder, to, out)
        with self._one, in_eval_mode(self.model), undisturbed():
            path, agrees, _ = export.exported(self._run, to, out, mark, **options)
        if not agrees:
            raise UserError(f"{path} is not written: it would differ from the network")
        return path

    @property
    def metrics(self) -> Any:
        """The rows of metrics.jsonl: a pandas DataFrame where pandas is installed, else a numpy
        structured array. Numbers that a kind of row does not have are nan.
        """
        return table(self._run.folder.metrics.read())


def table(rows: list[Row]) -> Any:
    """Rows as a table with a column for each key, in the order in which they first appear."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    if importlib.util.find_spec("pandas") is not None:
        import pandas

        return pandas.DataFrame(rows, columns=names)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        words = any(isinstance(value, str) for value in values)
        filled = [("" if words else np.nan) if value is None else value for value in values]
        columns[name] = np.array(filled, np.str_ if words else np.float64)
    found = np.empty(len(rows), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        found[name] = column
    return found
