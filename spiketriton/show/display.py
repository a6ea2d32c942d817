"""What a run shows: live bars on a terminal, plain lines without control codes anywhere else."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

from rich import progress as bars
from rich.console import Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Column
from rich.text import Text

from spiketriton.errors import one_line, warn
from spiketriton.gradients.verdict import Verdict
from spiketriton.runs.rows import Lines, Row
from spiketriton.show.screen import GAP, console_of, fill, say, show_whole
from spiketriton.show.verdict import brief
from spiketriton.show.words import COLOURS, duration, percent, speed
from spiketriton.training.plan import Plan

COST_SECONDS, COST_STEPS = 2.0, 3  # measured before the time that the run will take is reported
# a plain row of training is printed so many seconds of training after the last one: this many, or
# this share of the time so far, up to a limit
ROW_SECONDS, ROW_SHARE, ROW_SECONDS_MOST = 10.0, 0.02, 300.0
WAITING = 0.1  # of the time, from which on waiting for data is worth mentioning
COUNT = 34  # columns behind the bars
MARGIN = 7  # columns: the lines of the live display begin where its bars do
TEST_SHARE = 1 / 3  # of a training image's time, until a test was measured: forward only


def make_display(stream: TextIO | None = None) -> "Display":
    """The display that fits `stream` (stdout)."""
    stream = sys.stdout if stream is None else stream
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    return LiveDisplay(stream) if live else Display(stream)


class Display:
    """Plain lines: rows of metrics that say something new, and every test."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.suffix = ""  # after every number of synthetic images
        self.console = console_of(stream)
        self.plan: Plan | None = None
        self.tests: list[float] = []  # seconds of each test of this session
        self.due = 0.0  # seconds of training at which the next row is worth a line
        self.verdict: tuple[object, ...] | None = None  # the last one that was printed
        self.signal = ""  # what was said when a signal came
        self.log: Lines | None = None
        self._kept = ""  # said before there was a log
        self._waiting: list[Callable[[], None]] | None = None  # said, and not shown yet

    def note(self, text: str, indent: str = "  ") -> None:
        """Prose, broken between words at the edge of a terminal; later lines are indented."""
        self.keep(text)
        self.show(lambda: say(self.console, text, indent=indent))

    def verbatim(self, text: str) -> None:
        """A command or a path, in one piece."""
        self.keep(text)
        self.show(lambda: show_whole(self.console, text))

    def fields(self, *fields: str) -> None:
        """One row: a terminal breaks it between its fields."""
        self.keep((" " * GAP).join(fields))
        for line in fill(fields, self.console.width, indent="    "):
            self.show(partial(show_whole, self.console, line))

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """What is said in this block, but for warnings, is shown at its end, and not at all if it fails."""
        self._waiting = []
        try:
            yield
        except BaseException:
            self._waiting = None
            raise
        waiting, self._waiting = self._waiting, None
        for show in waiting:
            self.show(show)

    def show(self, show: Callable[[], None]) -> None:
        if self._waiting is not None:
            self._waiting.append(show)
        else:
            show()
            self.stream.flush()

    def warn(self, text: str) -> None:
        self.keep(f"warning: {one_line(text)}")
        self.show_warning(text)

    def show_warning(self, text: str) -> None:
        warn(text)

    def stopping(self, text: str) -> None:
        """Called in a signal handler, where the stream may be in use: writes past all buffers."""
        self.signal = text
        with contextlib.suppress(OSError):  # the terminal itself may have gone
            os.write(2, f"\n{text}\n".encode())

    def another(self) -> "Display":
        """One of the same kind, for a run that this one needs."""
        return type(self)(self.stream)

    def keep_in(self, path: Path) -> None:
        """Keeps what is said from here on, and what was said before, in a file as well."""
        self.log = Lines(path, warn=lambda text: None)  # the rows of numbers warn of a full disk
        self.log.add(self._kept)

    def keep(self, text: str) -> None:
        """A line or more for the log, each with the time."""
        lines = "".join(
            f"{time.strftime('%H:%M:%S')} {line}".rstrip() + "\n"
            for line in text.rstrip().split("\n")
        )
        if self.log is None:
            self._kept += lines
        else:
            self.log.add(lines)

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
            if step < self.plan.steps:
                self.note(f"the rest of this run will take about {left} at {speed(rate)}")
            self._timed = None
        else:
            self._timed += 1

    def testing(self, done: int, batches: int) -> None:
        """A batch was tested."""
        if self._timed is not None:
            self._timed = 0

    def row(self, row: Row, verdict: Verdict | None) -> None:
        """A row of metrics, and the verdict on the last measurement of the gradient, if there was one."""
        if row["kind"] == "eval":
            self.tests.append(row["test_seconds"])
            self.fields(*self.test_fields(row))
            return
        if row["seconds"] >= self.due or row["step"] == self.plan_steps:
            wait = min(max(ROW_SECONDS, ROW_SHARE * row["seconds"]), ROW_SECONDS_MOST)
            self.due = row["seconds"] + wait
            self.fields(*self.train_fields(row))
        self.tell_verdict(verdict)

    def tell_verdict(self, verdict: Verdict | None) -> None:
        """Prints a verdict that is a new one."""
        if verdict is None:
            return
        told = (verdict.word, verdict.obstacles)
        if told != self.verdict:
            self.verdict = told
            self.note(brief(verdict) + self.suffix)

    def end(self) -> None:
        """Training has stopped, for whatever reason."""
        if self.signal:
            self.keep(self.signal)
            self.signal = ""

    @property
    def plan_steps(self) -> int:
        assert self.plan is not None
        return self.plan.steps

    def position(self, row: Row) -> tuple[str, str]:
        width = len(str(self.plan_steps))
        return f"step {row['step']:{width}}/{self.plan_steps}", f"epoch {row['epoch']:.2f}"

    def train_fields(self, row: Row) -> list[str]:
        """What changes from row to row; metrics.jsonl has all numbers of every row."""
        fields = [*self.position(row), f"loss {row['loss']:.4f}"]
        if row["firing_rate"] is not None:
            fields.append(f"firing {row['firing_rate']:.3f}")
        fields.append(speed(row["images_per_s"]))
        if row["data_wait"] >= WAITING:
            fields.append(f"{row['data_wait']:.0%} waiting for data")
        left = duration(self.seconds_left(row["step"], row["images_per_s"]))
        return [*fields, f"{left} left{self.suffix}"]

    def test_fields(self, row: Row) -> list[str]:
        fields = list(self.position(row))
        if "validation_accuracy" in row:
            fields.append(f"validation accuracy {percent(row['validation_accuracy'])}")
        fields.append(f"test accuracy {percent(row['test_accuracy'])}")
        if "ema_accuracy" in row:
            fields.append(f"averaged {percent(row['ema_accuracy'])}")
        return [*fields, f"test loss {row['test_loss']:.4f}{self.suffix}"]

    def seconds_left(self, step: int, images_per_s: float) -> float:
        """Training and tests still to come, at this speed of training."""
        assert self.plan is not None
        plan = self.plan
        test = self.tests[-1] if self.tests else plan.test_images * TEST_SHARE / images_per_s
        return (plan.steps - step) * plan.batch_size / images_per_s + plan.tests_after(step) * test


class Nowhere(io.TextIOBase):
    """A stream that takes everything and keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


class Quiet(Display):
    """Shows nothing but warnings, and with `warns=False` nothing at all; the log has everything."""

    def __init__(self, warns: bool = True) -> None:
        super().__init__(cast(TextIO, Nowhere()))
        self.warns = warns

    def another(self) -> "Quiet":
        return Quiet(self.warns)

    def show_warning(self, text: str) -> None:
        if self.warns:
            super().show_warning(text)

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
        self.left = ""
        self.shown: Verdict | None = None

    def show_warning(self, text: str) -> None:
        say(self.console, f"warning: {one_line(text)}", style="bold red", indent="  ")

    def stopping(self, text: str) -> None:
        self.signal = text  # the next refresh shows it

    def begin(self, plan: Plan, step: int, device_type: str) -> None:
        super().begin(plan, step, device_type)
        self.bars = bars.Progress(
            bars.TextColumn("{task.description:>6}", style="bold"),
            bars.BarColumn(bar_width=max(5, min(40, self.console.width - MARGIN - COUNT))),
            bars.TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True)),
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
            count=f"{plan.epoch(step):.2f} of {self.epochs:.3g}  {self.left}",
        )
        self.bars.update(
            self.step_bar,
            completed=step - first,
            total=length,
            count=f"{step - first} of {length}  ({step} of {plan.steps} in total)",
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

    def row(self, row: Row, verdict: Verdict | None) -> None:
        self.shown = verdict
        if row["kind"] == "eval":
            self.test, self.best = row, max(self.best, row.get("validation_accuracy", 0.0))
            super().row(row, verdict)
        else:
            self.train = row
            left = self.seconds_left(row["step"], row["images_per_s"])
            self.left = f"{duration(left)} left"
            self.update_bars(row["step"])
            self.tell_verdict(verdict)

    def render(self) -> Group:
        lines: list[Any] = []
        if self.train is not None:
            lines += fill(numbers(self.train), self.console.width - MARGIN)
        if self.test is not None:
            fields = [f"test accuracy {percent(self.test['test_accuracy'])}"]
            if "validation_accuracy" in self.test:
                held_out = percent(self.test["validation_accuracy"])
                fields.append(f"validation accuracy {held_out}, best {percent(self.best)}")
            lines += fill(fields, self.console.width - MARGIN)
        if self.shown is not None:
            lines.append(Text(brief(self.shown), style=COLOURS[self.shown.word]))
        lines += [Text(self.suffix.strip(), style="yellow")] if self.suffix else []
        lines += [Text(self.signal, style="bold red")] if self.signal else []
        texts = [Text(line) if isinstance(line, str) else line for line in lines]
        return Group(self.bars, *(Padding(text, (0, 0, 0, MARGIN)) for text in texts))

    def end(self) -> None:
        super().end()
        if self.live is not None:
            self.live.stop()
            self.live = None


def numbers(row: Row) -> list[str]:
    """The numbers of a train row, each with its name or unit."""
    fields = [
        f"loss {row['loss']:.4f}",
        f"lr {row['lr']:.2e}",
        f"gradient norm {row['grad_norm']:.3g}",
        speed(row["images_per_s"]),
        f"{row['data_wait']:.0%} waiting for data",
        f"{row['peak_memory_mib']:.0f} MiB",
    ]
    if row["firing_rate"] is not None:
        fields.insert(3, f"firing rate {row['firing_rate']:.3f}")
    return fields
