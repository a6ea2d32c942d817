"""The training loop."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spiketriton.config import Recipe
from spiketriton.config.names import NONE
from spiketriton.data import Data
from spiketriton.gradients.monitor import GradientMonitor
from spiketriton.gradients.prober import Prober, probe_batches
from spiketriton.gradients.through_time import Shares
from spiketriton.models import build_model
from spiketriton.plugins.tasks import Batch, answers
from spiketriton.runs.checkpoint import Checkpoints, State
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.rows import Row
from spiketriton.runs.same_recipe import extension
from spiketriton.system.errors import EXIT_DONE, EXIT_ERROR, UserError
from spiketriton.system.ranks import Ranks
from spiketriton.system.version import __version__
from spiketriton.training import environment, randomness
from spiketriton.training.display import Display
from spiketriton.training.guard import Counts, Diverged
from spiketriton.training.hooks import Hooks
from spiketriton.training.interrupts import StopSignals
from spiketriton.training.meters import (
    Meters,
    forget_peak_memory,
    is_out_of_memory,
    peak_memory_mib,
)
from spiketriton.training.optim import Update, continue_on
from spiketriton.training.placement import Placement
from spiketriton.training.plan import Outcome, Plan, Progress
from spiketriton.training.recording import Recorder
from spiketriton.training.testing import Tester
from spiketriton_kernels.nn import Delays

if TYPE_CHECKING:
    from spiketriton.training.gpu.graphs import Steps
    from spiketriton.training.teacher import Teacher


class Trainer:
    """Trains the recipe's model on `data` and writes everything to `folder`.

    Whatever a recipe can choose is set up in the constructor, so that the loop has no branches for it.
    UserError: the device, the compiler or a package that the recipe asks for is missing.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        folder: RunFolder,
        display: Display,
        ranks: Ranks | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.hooks = hooks or Hooks()
        cfg = recipe.train
        self.recipe, self.folder, self.display = recipe, folder, display
        folder.metrics.warn = folder.gradients.warn = display.warn
        self.ranks = ranks = ranks or Ranks()
        self.placement = Placement.set_up(cfg)
        self.device = self.placement.device
        if cfg.micro_batch == "auto":
            from spiketriton.training.gpu.memory_limit import settle

            data = settle(recipe, data, folder, display.note, ranks)
        self.data = data

        randomness.seed_everything(recipe.seed)
        self.model = model = self.placement.place(build_model(recipe, **data.facts.sizes))
        if cfg.freeze:
            from spiketriton.training.pretrained import freeze

            freeze(model, cfg.freeze)
        forward = environment.compiled(model) if cfg.compile else model
        self.forward = ranks.parallel(forward, unused=not model.uses_all_weights)
        self.plan = Plan.of(recipe, data)
        self.delays = [m for m in model.modules() if isinstance(m, Delays)]
        self.teacher: Teacher | None = None
        if recipe.loss.teacher != NONE:
            from spiketriton.training.teacher import find_teacher

            self.teacher = find_teacher(recipe.loss, data.facts, self.placement)
        self.loss = data.task.loss
        self.update = Update(
            cfg, recipe.peak_lr, recipe.clipping, model, self.placement, ranks, self.plan.steps
        )

        own = not data.task.built_in
        sums, chance = 1, None if own else data.task.chance(data.test.targets)
        if own:
            from spiketriton.training.rehearsal import rehearsed

            sums, chance = rehearsed(recipe, data, self.device)

        self.recorder = Recorder(recipe, data, folder, display, self.hooks, self.plan.steps)
        self.monitor = GradientMonitor(
            model,
            batch=cfg.batch_size // self.accumulate,
            image_shape=data.facts.image_shape,
            scale=self.update.scaler.get_scale,
            write=self.recorder.add_gradients,
            warn=display.warn,
            ranks=ranks,
            frames=data.frames,
        )
        self.meters = Meters(self.device)
        self.stop = StopSignals(display.stopping, ranks)
        self.checkpoints = Checkpoints(folder.checkpoints, display.warn)
        self.saved_at: int | None = None  # step of the newest last.pt
        self.tester = Tester(
            model,
            self.forward,
            data.task,
            self.placement,
            self.stop,
            display.testing,
            sums,
            chance,
        )
        self.run = (
            self.work if self.device.type == "cpu" and cfg.graph is not True else self.steps()
        )
        self.stateful = {"model": model, **self.update.stateful}
        self.stateful |= {"meters": self.meters, "monitor": self.monitor}
        self.progress = Progress()
        self.probed: Prober | None = None  # by which the net is judged
        self.ways: tuple[int, Shares] | None = None  # through time, and after which step
        self.images_per_s: float | None = None
        randomness.seed_everything(recipe.seed)
        self.random_state = randomness.random_state()

    def begin(self) -> None:
        """Takes the weights that `train.init_from` names, as far as they fit."""
        source = self.recipe.train.init_from
        if source == NONE:
            return
        from spiketriton.training.pretrained import find_weights, take_weights

        weights = self.ranks.decide(partial(find_weights, source))
        for line in take_weights(self.model, weights, source, self.data.classes).lines():
            self.display.note(line)
        if self.update.ema is not None:
            self.update.ema.restart()

    def resume(self) -> None:
        """Continues from the newest valid checkpoint, and cuts the rows that were written after it.

        UserError: all checkpoints are damaged, of another recipe, or gone.
        """
        from spiketriton.training import resuming

        note, folder = self.display.note, self.folder
        state = self.ranks.decide(self.checkpoints.load)
        if state is None:
            lost = partial(resuming.refuse_lost_checkpoints, folder, self.plan.first_save)
            self.ranks.decide(lost)
            note("no checkpoint had been written yet: starting from the beginning")
            self.begin()
        else:
            trained = resuming.begun_as(state, self.recipe, folder)
            said = [resuming.other_parts(self.recipe, trained, self.accumulate)]
            self.load_state_dict(state)
            if longer := extension(self.recipe.train, trained.train):
                rate = continue_on(self.update.schedule, self.step)
                said.append(resuming.goes_on(longer, rate, self.step, self.plan.steps))
            said.append(environment.keep_threads(self.recipe.train, self.device, folder.sessions()))
            precision = self.placement.precision
            said.append(environment.changed_precision(precision, folder.sessions()))
            said.append(f"resumes after step {self.step} of {self.plan.steps}")
            if self.plan.finished(self.progress):
                said.append("this run has ended; --extend trains it longer")
            for line in filter(None, said):
                note(line)
        folder.cut(self.step, self.progress.tested_at)
        self.recorder.watch.recall(folder.metrics.read())

    def fit(self, until: int | None = None) -> Outcome:
        """Trains to the end, to step `until`, or until a signal; saves before it returns.

        Diverged: a loss or gradient was infinite or NaN. OutOfMemory: a step does not fit in memory.
        """
        end = self.plan.steps if until is None else min(until, self.plan.steps)
        with self.stop, self.session(), environment.denormals_as_zero(self.device):
            forget_peak_memory(self.device)  # of trials
            self.model.set_synchronised(self.shares_statistics)
            self.judge()
            while True:
                if self.plan.tests(self.step) and self.progress.tested_at < self.step:
                    self.save()  # a test may fail, for example at a file that cannot be read
                    self.evaluate()
                if self.plan.saves(self.step):
                    self.save()
                if self.stop.anywhere() or self.step >= end or self.ended:
                    break
                self.train_step()
                if self.plan.logs(self.step):
                    self.log()
            self.save()
        return self.outcome()

    @property
    def shares_statistics(self) -> bool:
        """Whether norms take their statistics over all ranks."""
        return self.recipe.train.sync_bn and self.ranks.world_size > 1

    @property
    def accumulate(self) -> int:
        """Micro-batches of a step."""
        return self.data.train.accumulate

    @property
    def ended(self) -> bool:
        """Before the last step, because a function of the caller's has said so."""
        return self.hooks.stops

    def train_step(self) -> None:
        """One optimizer step with the clipped sum of the micro-batches' gradients."""
        self.update.number.fill_(self.step + 1)
        for layer in self.delays:
            layer.anneal(self.step / self.plan.steps)
        if self.model.draws:
            randomness.seed_step(self.recipe.seed, self.step, self.ranks.rank)
        parts = (self.next_batch() for _ in range(self.accumulate))
        measured = bool(self.monitor.layers) and self.plan.measures(self.step + 1)
        total, norm = self.run(parts, measured)
        if measured:
            ways = partial(self.known_ways, self.step + 1)
            self.monitor.read(self.step + 1, ways if self.plan.tells_ways(self.step + 1) else None)
        self.lr = self.update.advance()
        self.progress.step += 1
        self.meters.step(self.recipe.train.batch_size, total, norm)
        self.display.advance(self.step)
        self.hooks.step(self.step)

    def steps(self) -> "Steps":
        """How steps run where a graph may hold them."""
        from spiketriton.training.gpu.graphs import CudaGraphs, Steps, obstacle_of

        cfg, scaled = self.recipe.train, self.update.scaler.is_enabled()
        own = cfg.graph == "auto" and self.recipe.names_code
        return Steps(
            self.work,
            self.update.optimizer,
            mode=cfg.graph,
            obstacle=obstacle_of(self.device, self.ranks.world_size, scaled, own=own),
            state=self.update.tensors,
            note=self.display.note,
            graphs=partial(CudaGraphs, self.device),
        )

    def work(self, parts: Iterable[Batch], measured: bool) -> tuple[Tensor, Tensor]:
        """All that the device does in a step: the loss and the gradient's norm, on the device.

        No number of Python's that changes from step to step may reach a kernel here: see `graphs`.
        """
        losses = []
        self.update.guard.begin()
        for part, (images, labels, *lengths) in enumerate(parts):
            last = part == self.accumulate - 1
            with (
                self.monitor.watch() if measured and last else contextlib.nullcontext(),
                self.ranks.averages(self.forward, when=last),
            ):
                with self.placement.autocast():
                    currents = answers(self.forward, images, lengths)
                    loss = self.loss(currents, labels, *lengths)
                    if self.teacher is not None:
                        loss = self.teacher.blended(loss, currents, images, *lengths)
                    loss = loss / self.accumulate
                self.update.backward(loss)
            losses.append(loss.detach().double())
        return self.update.step(torch.stack(losses).sum())

    def next_batch(self) -> Batch:
        """The next micro-batch on the device: images [b, C, H, W], [T, b, C, H, W] or [T, b, C], labels [b].

        Of mixed images, labels are [b, K], the probabilities of the classes. Of sequences of different lengths these
        follow.
        """
        with self.meters.waiting():
            images, *rest = next(self.stream)
        return self.placement.to_device(images), *rest

    def evaluate(self) -> None:
        """Tests the model, writes a row, and saves the model if it is the best so far."""
        self.refuse_nonfinite()
        with self.meters.aside():
            results = self.tester.results(self.data, self.update.ema)
        if results is None:
            return
        if self.plan.judges(self.step) or self.recorder.watch.obstacles:
            self.judge()
        best = self.progress.tested(results)
        self.saved_at = None  # of this step, but without the result, if a signal broke it off
        self.record("eval", **results.row(self.data))
        if best:
            self.written(self.checkpoints.save_best)

    def judge(self) -> None:
        """Measures the network as `diagnose` does, on the same images, and judges it; all ranks do, and alike."""
        if not (self.monitor.layers and self.recipe.monitor.enabled):
            return
        with self.aside():
            try:
                prober = self.prober()
                measured = replace(prober.measure(), **vars(self.shares(self.step)))
                signal = prober.signal()
            except UserError as error:  # a network of others whose windows differ
                self.display.note(f"not judged: {error}")
                return
        self.recorder.judge(self.step, measured, signal)

    def known_ways(self, step: int) -> Shares | None:
        """`shares`, or None where they cannot be measured; at step 1, which measures the untrained net, those of it."""
        if step == 1 and self.ways is not None and self.ways[0] == 0:
            return self.ways[1]
        with self.aside():
            try:
                return self.shares(step)
            except UserError:  # as `judge` has said
                return None

    def shares(self, step: int) -> Shares:
        """What reaches each time step by way of time after so many steps, on the images by which the net is judged."""
        if self.ways is None or self.ways[0] != step:
            self.ways = step, self.prober().through_time()
        return self.ways[1]

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """For measurements that every rank makes of the same images, each by itself."""
        self.model.set_synchronised(False)
        try:
            with self.meters.aside(), randomness.kept():  # a loss of one's own may draw
                yield
        finally:
            self.model.set_synchronised(self.shares_statistics)

    def prober(self) -> Prober:
        if self.probed is None:
            with self.placement.autocast():
                batches = probe_batches(self.data, self.model, self.device, 1)
            self.probed = Prober(self.model, batches, self.loss, self.placement.autocast)
        return self.probed

    def log(self) -> None:
        """Writes a row about the steps since the last one; this waits for the device."""
        self.refuse_nonfinite()
        measured = self.meters.read()
        measured["data_wait"] = self.ranks.most(measured["data_wait"])
        self.images_per_s = measured["images_per_s"]
        self.record(
            "train",
            lr=self.lr,
            **measured,
            firing_rate=self.monitor.summary.firing_rate,
            peak_memory_mib=self.ranks.most(peak_memory_mib(self.device)),
        )

    def refuse_nonfinite(self) -> None:
        """Warns of steps that were left out. Diverged, with the place: the guard has ended training."""
        counts = self.update.guard.read()
        if counts.halted_at:
            raise self.diverged(counts)
        if counts.new:
            self.display.warn(counts.in_words())

    def diverged(self, counts: Counts) -> Diverged:
        """The error that ends the run, after the first rank has repeated the bad step."""
        if not self.ranks.first:
            return Diverged("the first rank repeats the step of all ranks and names the place")
        from spiketriton.training.nonfinite import advice, again, report

        step, path = counts.halted_at, self.folder.path
        find = again(self.model, self.data.train, self.loss, self.placement, step)
        half = self.placement.precision != torch.float32
        tips = advice(half, self.recipe.neuron, self.update.limit)
        return report(path, counts, tips, find)

    def record(self, kind: str, **numbers: float | None) -> None:
        """A row of metrics.jsonl; `epoch` counts passes over the training images."""
        epoch = self.plan.epoch(self.step)
        at: Row = {"kind": kind, "step": self.step, "epoch": epoch, "seconds": self.seconds()}
        self.recorder.add(at | numbers)

    def save(self) -> None:
        """Writes a checkpoint of this step, unless there is one."""
        if self.saved_at == self.step:
            return
        self.refuse_nonfinite()
        self.progress.seconds = self.seconds()
        if self.written(self.checkpoints.save_last):
            self.saved_at = self.step
            self.hooks.checkpoint(self.checkpoints.folder / "last.pt")

    def written(self, write: Callable[[State], bool]) -> bool:
        """Whether the first rank could write the state, whole whatever signal comes; else a warning says why."""
        with self.stop.saving():
            return self.ranks.decide(partial(write, self.state_dict()))

    def state_dict(self) -> State:
        """Everything that the next step depends on; the data are a function of (seed, step).

        Ranks differ in the random generators only, which no step draws from.
        """
        return {
            **asdict(self.progress),
            "recipe": self.recipe.to_toml(),
            "name": self.recipe.name,
            "version": __version__,
            "data": self.data.facts.state_dict(),
            **{name: part.state_dict() for name, part in self.stateful.items()},
            "random": randomness.random_state(),
        }

    def load_state_dict(self, state: State) -> None:
        """UserError: the state is damaged."""
        from spiketriton.training.restore import refuse_damage

        refuse_damage(self.folder.path, state, self.state_dict())
        self.progress = Progress.of_state(state, validated=self.data.validation is not None)
        for name, part in self.stateful.items():
            if name != "scaler" or state[name]:  # empty: that session did not scale its loss
                part.load_state_dict(state[name])
        self.random_state = state["random"]
        self.saved_at = self.step

    @property
    def step(self) -> int:
        return self.progress.step

    def seconds(self) -> float:
        return self.spent + time.perf_counter() - self.started

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Opens what a call of `fit` needs, and closes it whatever happens.

        A signal may also kill data workers or a compiler, so that the current step fails. The session
        then ends as after any signal, but without a checkpoint of the unfinished step. With several
        ranks, which have lost each other by then, the failure is an error like any other.
        """
        self.spent, self.started = self.progress.seconds, time.perf_counter()
        self.stream = self.data.train.from_step(self.step, self.device)
        self.display.begin(self.plan, self.step, self.device.type)
        randomness.set_random_state(self.random_state)
        try:
            yield
        except (RuntimeError, MemoryError, OSError) as error:
            if is_out_of_memory(error):
                from spiketriton.training.gpu.memory_limit import explained

                images = self.data.test.batch_size
                raise explained(error, self.recipe, self.device, images) from None
            self.ranks.explain(error)
            if not self.stop.requested or self.ranks.world_size > 1:
                raise
            self.display.warn(f"step {self.step + 1} was cut off: {error}")
        finally:
            self.random_state = randomness.random_state()
            self.progress.seconds = self.seconds()
            self.stream.close()
            self.display.end()

    def outcome(self) -> Outcome:
        """The signal's exit code if it cut the run short; the same on all ranks."""
        exit_code = EXIT_DONE if self.saved_at == self.step else EXIT_ERROR
        if not self.plan.finished(self.progress) and not self.hooks.stops:
            exit_code = self.stop.exit_code
        return Outcome(
            plan=self.plan,
            progress=self.progress,
            images_per_s=self.images_per_s,
            peak_memory_mib=self.ranks.most(peak_memory_mib(self.device)),
            firing_rate=self.monitor.summary.firing_rate,
            saved_at=self.saved_at,
            exit_code=exit_code,
        )
