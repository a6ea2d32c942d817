"""What a run shows: live bars on a terminal, plain lines without control codes anywhere else."""

import contextlib
import io
import os
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import torch
from rich import progress as bars
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from spiketriton.config import Recipe, to_toml
from spiketriton.data import Data
from spiketriton.errors import one_line
from spiketriton.gradients.verdict import coloured
from spiketriton.models import Network, count_parameters
from spiketriton.training import environment
from spiketriton.training.plan import Outcome, Plan
from spiketriton.training.ranks import Ranks
from spiketriton_kernels import backend_for

Row = dict[str, Any]

BACKENDS = {
    "triton": "Triton kernels",
    "native": "compiled C++ passes",
    "torch": "eager PyTorch, which is slow: no C++ compiler and no GPU serve them",
}
COST_SECONDS, COST_STEPS = 2.0, 3  # how much is measured before the cost of the run is told
TEST_SHARE = 1 / 3  # of a training image's time, until a test was measured: forward only


def make_display(stream: TextIO | None = None) -> "Display":
    """The display that fits `stream` (stdout)."""
    stream = sys.stdout if stream is None else stream
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    return LiveDisplay(stream) if live else Display(stream)


class Lasting(io.FileIO):
    """Standard output or error. A run goes on when who read it has gone, and then says nothing."""

    def write(self, text: Any) -> int:
        try:
            return super().write(text)
        except OSError:  # a closed pipe or terminal
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return len(text)


def outlive_readers() -> None:
    """Makes standard output and error `Lasting`."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        raw = io.BufferedWriter(Lasting(old.fileno(), "w", closefd=False))
        new = io.TextIOWrapper(raw, old.encoding, old.errors, line_buffering=True)
        setattr(sys, name, new)


class Display:
    """Plain lines, one for each row of metrics."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.suffix = ""  # beside every number of synthetic images
        self.console = Console(file=stream, force_terminal=stream.isatty(), highlight=False)
        self.plan: Plan | None = None
        self.tests: list[float] = []  # seconds of each test of this session

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        print(f"warning: {one_line(text)}", file=sys.stderr, flush=True)

    def stopping(self, text: str) -> None:
        """Called in a signal handler, where the stream may be in use: writes past all buffers."""
        with contextlib.suppress(OSError):  # the terminal itself may have gone
            os.write(2, f"\n{text}\n".encode())

    def begin(self, plan: Plan, step: int, device_type: str) -> None:
        """Training starts after `step`."""
        self.plan, self.epochs = plan, plan.epoch(plan.steps)
        # a GPU runs behind the program, so that only rows tell its speed
        self._timed = 0 if device_type == "cpu" else None
        self._clock = 0.0

    def advance(self, step: int) -> None:
        """A step was done. On a CPU the first few tell the cost of the run."""
        if self._timed is None or self.plan is None:
            return
        if self._timed == 0:  # the first one compiles; measuring starts after it
            self._clock = time.perf_counter()
        elapsed = time.perf_counter() - self._clock
        if self._timed >= COST_STEPS and elapsed >= COST_SECONDS:
            rate = self._timed * self.plan.batch_size / elapsed
            left = duration(self.seconds_left(step, rate))
            self.note(f"the rest of this run will take about {left} at {rate:.3g} images/s")
            self._timed = None
        else:
            self._timed += 1

    def testing(self, done: int, batches: int) -> None:
        """A batch was tested."""
        if self._timed is not None:
            self._timed = 0

    def row(self, row: Row, gradient: str) -> None:
        """A row of metrics, and the last measurement of the gradient in words (or nothing)."""
        if row["kind"] == "eval":
            self.tests.append(row["test_seconds"])
            self.note(self.test_line(row) + self.suffix)
        else:
            parts = [self.position(row), *numbers(row)]
            parts.append(f"{duration(self.seconds_left(row['step'], row['images_per_s']))} left")
            self.note("  ".join(parts + [gradient] * bool(gradient)) + self.suffix)

    def end(self) -> None:
        """Training has stopped, for whatever reason."""

    def position(self, row: Row) -> str:
        assert self.plan is not None
        width = len(str(self.plan.steps))
        step = f"step {row['step']:{width}}/{self.plan.steps}"
        return f"{step}  epoch {row['epoch']:.2f}/{self.epochs:g}"

    def test_line(self, row: Row) -> str:
        return (
            f"{self.position(row)}  test accuracy {percent(row['test_accuracy'])}  "
            f"test loss {row['test_loss']:.4f}  ({row['test_images']} images in "
            f"{duration(row['test_seconds'])})"
        )

    def seconds_left(self, step: int, images_per_s: float) -> float:
        """Training and tests still to come, at this speed of training."""
        assert self.plan is not None
        plan = self.plan
        test = self.tests[-1] if self.tests else plan.test_images * TEST_SHARE / images_per_s
        return (plan.steps - step) * plan.batch_size / images_per_s + plan.tests_after(step) * test


class Silent(Display):
    """Shows nothing: what the ranks other than the first have."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def stopping(self, text: str) -> None:
        pass


class LiveDisplay(Display):
    """Bars and numbers that stay in place; tests, notes and warnings scroll by above them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.live: Live | None = None
        self.train: Row | None = None
        self.test: Row | None = None
        self.best = 0.0
        self.left = self.gradient = self.signal = ""

    def note(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(Text(f"warning: {one_line(text)}", style="bold red"), soft_wrap=True)

    def stopping(self, text: str) -> None:
        self.signal = text  # the next refresh shows it

    def begin(self, plan: Plan, step: int, device_type: str) -> None:
        super().begin(plan, step, device_type)
        self.bars = bars.Progress(
            bars.TextColumn("{task.description:>6}", style="bold"),
            bars.BarColumn(bar_width=40),
            bars.TextColumn("{task.fields[count]}"),
            auto_refresh=False,
        )
        self.epoch_bar = self.bars.add_task("epochs", total=self.epochs, count="")
        self.step_bar = self.bars.add_task("steps", total=plan.epoch_steps, count="")
        self.test_bar = self.bars.add_task("test", visible=False, count="")
        self.update_bars(step)
        self.live = Live(
            get_renderable=self.render, console=self.console, refresh_per_second=5, transient=True
        )
        self.live.start()

    def advance(self, step: int) -> None:
        super().advance(step)
        self.update_bars(step)

    def update_bars(self, step: int) -> None:
        assert self.plan is not None
        plan = self.plan
        epoch = min(-(-step // plan.epoch_steps), -(-plan.steps // plan.epoch_steps)) or 1
        first = (epoch - 1) * plan.epoch_steps
        length = min(plan.epoch_steps, plan.steps - first)
        self.bars.update(
            self.epoch_bar,
            completed=plan.epoch(step),
            count=f"{plan.epoch(step):.2f} of {self.epochs:g}   {self.left}",
        )
        self.bars.update(
            self.step_bar,
            completed=step - first,
            total=length,
            count=f"{step - first} of {length}   (step {step} of {plan.steps})",
        )
        self.bars.update(self.test_bar, visible=False)

    def testing(self, done: int, batches: int) -> None:
        super().testing(done, batches)
        self.bars.update(
            self.test_bar,
            completed=done,
            total=batches,
            visible=True,
            count=f"{done} of {batches} batches",
        )

    def row(self, row: Row, gradient: str) -> None:
        self.gradient = gradient
        if row["kind"] == "eval":
            self.test, self.best = row, max(self.best, row["test_accuracy"])
            super().row(row, gradient)
        else:
            self.train = row
            left = self.seconds_left(row["step"], row["images_per_s"])
            self.left = f"{duration(left)} left"
            self.update_bars(row["step"])

    def render(self) -> Group:
        lines: list[Any] = [self.bars]
        if self.train is not None:
            shown = numbers(self.train)
            middle = (len(shown) + 1) // 2
            lines += ["  ".join(part) for part in (shown[:middle], shown[middle:]) if part]
        if self.test is not None:
            accuracy = percent(self.test["test_accuracy"])
            lines.append(f"test accuracy {accuracy}, best {percent(self.best)}")
        lines += [Text("       ") + coloured(self.gradient)] if self.gradient else []
        lines += [Text(self.suffix.strip(), style="yellow")] if self.suffix else []
        lines += [Text(self.signal, style="bold red")] if self.signal else []
        return Group(*(Text("       ") + Text(x) if isinstance(x, str) else x for x in lines))

    def end(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def numbers(row: Row) -> list[str]:
    """The numbers of a train row in words."""
    parts = [
        f"loss {row['loss']:.4f}",
        f"lr {row['lr']:.2e}",
        f"gradient norm {row['grad_norm']:.3g}",
        f"{row['images_per_s']:.3g} images/s",
        f"{row['data_wait']:.0%} waiting for data",
        f"{row['peak_memory_mib']:.0f} MiB",
    ]
    if row["firing_rate"] is not None:
        parts.insert(3, f"firing rate {row['firing_rate']:.3f}")
    return parts


def announce_run(display: Display, recipe: Recipe, folder: Path) -> None:
    """What is about to run, on what and why. UserError: the device is not there."""
    device = environment.choose_device(recipe.train.device)
    precision = environment.choose_precision(recipe.train.precision, device.value)
    display.note(environment.version_line())
    display.note(f"recipe {recipe.name}, resolved:\n\n{to_toml(recipe)}")
    display.note(f"device: {device.value.type}, {device.reason}")
    display.note(f"precision: {recipe.train.precision}, {precision.reason}")
    if device.value.type == "cpu":
        display.note(
            "cost: there is no GPU in this run; its time is told once a few steps are measured"
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
    """The data, the network and the plan, and that images are synthetic where they are."""
    shape = f"{data.channels}x{data.image_size}x{data.image_size}"
    if data.synthetic:
        display.suffix = "  (synthetic images)"
    display.note(
        f"data: {data.name}{display.suffix}, {data.train.images} training and {data.test.images} "
        f"test images of {shape}, {len(data.classes)} classes"
    )
    layers = len(model.spiking_layers())
    kind = f"{layers} spiking layers over {recipe.time_steps} time steps" if layers else "an ANN"
    display.note(f"network: {recipe.model.name}, {count_parameters(model):,} parameters, {kind}")
    device = next(model.parameters()).device
    if device.type == "cpu":
        display.note(f"threads: {torch.get_num_threads()}")
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
    if done.test_accuracy is not None and done.best_accuracy is not None:
        best = f"{percent(done.best_accuracy)} (after epoch {plan.epoch(done.best_step):g})"
        rows += [("test accuracy, last", percent(done.test_accuracy) + display.suffix)]
        rows += [("test accuracy, best", best + display.suffix)]
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
    # as wide as its content: a path that is cut to the terminal's width is of no use
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
        display.note(f"stopped at step {outcome.progress.step}; saved: {saved}. To go on:")
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


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.2 h` or `5.1 days`."""
    for unit, length, limit in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172800)):
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"
