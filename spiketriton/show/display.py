"""What a run shows: live bars on a terminal, plain lines without control codes anywhere else."""

import contextlib
import io
import os
import sys
import time
from typing import Any, TextIO

from rich import progress as bars
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from spiketriton.errors import one_line, warn
from spiketriton.runs.rows import Row
from spiketriton.show.words import coloured, duration, percent
from spiketriton.training.plan import Plan

COST_SECONDS, COST_STEPS = 2.0, 3  # measured before the time that the run will take is reported
TEST_SHARE = 1 / 3  # of a training image's time, until a test was measured: forward only


def make_display(stream: TextIO | None = None) -> "Display":
    """The display that fits `stream` (stdout)."""
    stream = sys.stdout if stream is None else stream
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    return LiveDisplay(stream) if live else Display(stream)


class Display:
    """Plain lines, one for each row of metrics."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.suffix = ""  # after every number of synthetic images
        self.console = Console(file=stream, force_terminal=stream.isatty())
        self.plan: Plan | None = None
        self.tests: list[float] = []  # seconds of each test of this session

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        warn(text)

    def stopping(self, text: str) -> None:
        """Called in a signal handler, where the stream may be in use: writes past all buffers."""
        with contextlib.suppress(OSError):  # the terminal itself may have gone
            os.write(2, f"\n{text}\n".encode())

    def begin(self, plan: Plan, step: int, device_type: str) -> None:
        """Training starts after `step`."""
        self.plan, self.epochs = plan, plan.epoch(plan.steps)
        # a GPU runs behind the program: only rows measure its speed
        self._timed = 0 if device_type == "cpu" else None

    def advance(self, step: int) -> None:
        """A step was done. On a CPU the first few show how long the run will take."""
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
        """A row of metrics, and the last measurement of the gradient in words (or "")."""
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
        held_out = ""
        if "validation_accuracy" in row:
            held_out = f"validation accuracy {percent(row['validation_accuracy'])}  "
        return (
            f"{self.position(row)}  {held_out}test accuracy {percent(row['test_accuracy'])}  "
            f"test loss {row['test_loss']:.4f}  ({row['test_images']} images in "
            f"{duration(row['test_seconds'])})"
        )

    def seconds_left(self, step: int, images_per_s: float) -> float:
        """Training and tests still to come, at this speed of training."""
        assert self.plan is not None
        plan = self.plan
        test = self.tests[-1] if self.tests else plan.test_images * TEST_SHARE / images_per_s
        return (plan.steps - step) * plan.batch_size / images_per_s + plan.tests_after(step) * test


class Quiet(Display):
    """Shows nothing but warnings, and with `warns=False` nothing at all."""

    def __init__(self, warns: bool = True) -> None:
        super().__init__(io.StringIO())
        self.warns = warns

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        if self.warns:
            super().warn(text)

    def stopping(self, text: str) -> None:
        if self.warns:
            super().stopping(text)


class LiveDisplay(Display):
    """Bars and numbers that stay in place; tests, notes and warnings scroll above them."""

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
            bars.BarColumn(),
            bars.TextColumn("{task.fields[count]}"),
        )
        self.epoch_bar = self.bars.add_task("epochs", total=self.epochs, count="")
        self.step_bar = self.bars.add_task("steps", total=plan.epoch_steps, count="")
        self.test_bar = self.bars.add_task("test", visible=False, count="")
        self.update_bars(step)
        self.live = Live(get_renderable=self.render, console=self.console, transient=True)
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
            self.test, self.best = row, max(self.best, row.get("validation_accuracy", 0.0))
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
            lines.append(f"test accuracy {accuracy}")
            if "validation_accuracy" in self.test:
                held_out = percent(self.test["validation_accuracy"])
                lines[-1] += f", validation accuracy {held_out}, best {percent(self.best)}"
        lines += [Text("       ") + coloured(self.gradient)] if self.gradient else []
        lines += [Text(self.suffix.strip(), style="yellow")] if self.suffix else []
        lines += [Text(self.signal, style="bold red")] if self.signal else []
        return Group(*(Text("       ") + Text(x) if isinstance(x, str) else x for x in lines))

    def end(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def numbers(row: Row) -> list[str]:
    """The numbers of a train row, each with its name or unit."""
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
