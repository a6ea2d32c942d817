"""What a run shows: live bars on a terminal, plain lines without control codes anywhere else."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from rich import progress as bars
from rich.console import Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Column
from rich.text import Text

from spiketriton.gradients.verdict import Verdict
from spiketriton.plugins.tasks import Score
from spiketriton.runs.rows import Lines, Row
from spiketriton.show.screen import GAP, console_of, fill, say, show_whole
from spiketriton.show.verdict import brief
from spiketriton.show.words import COLOURS, duration, in_words, scored, speed
from spiketriton.system.errors import one_line, warn
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
    stream = stream or sys.stdout
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    return LiveDisplay(stream) if live else Display(stream)


class Display:
    """Plain lines: rows of metrics that say something new, and every test."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.suffix = ""  # after every number of synthetic images
        self.console = console_of(stream)
        self.plan: Plan = None  # type: ignore[assignment]  # until training begins
        self.tests: list[float] = []  # seconds of each test of this session
        self.due = 0.0  # seconds of training at which the next row is worth a line
        self.verdict: tuple[object, ...] | None = None  # the last one that was printed
        self.signal = ""  # what was said when a signal came
        self.log: Lines | None = None
        self._kept = ""  # said before there was a log
        self._waiting: list[Callable[[], None]] | None = None  # said, and not shown yet
        self._timed: int | None = None  # steps whose time was measured

    def note(self, text: str, indent: str = "  ") -> None:
        """Prose, broken between words at the edge of a terminal; later lines are indented."""
        self.keep(text)
        self.show(lambda: say(self.console, text, indent=indent))

    def verbatim(self, text: str) -> None:
        self.keep(text)
        self.show(lambda: show_whole(self.console, text))

    def fields(self, *fields: str) -> None:
        """One row: a terminal breaks it between its fields."""
        self.keep((" " * GAP).join(fields))
        lines = "\n".join(fill(fields, self.console.width, indent="    "))
        self.show(lambda: show_whole(self.console, lines))

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """What is said in this block, but for warnings, is shown at its end, and not at all if it fails."""
        waiting = self._waiting = []
        try:
            yield
        finally:
            self._waiting = None
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

    def keep_in(self, path: Path) -> None:
        """Keeps what is said from here on, and what was said before, in a file as well."""
        self.log = Lines(path, warn=lambda text: None)  # the rows of numbers warn of a full disk
        self.log.add(self._kept)

    def keep(self, text: str) -> None:
        now = time.strftime("%H:%M:%S")
        lines = "".join(f"{now} {line}".rstrip() + "\n" for line in text.rstrip().split("\n"))
        if self.log is None:
            self._kept += lines
        else:
            self.log.add(lines)

    def begin(self, plan: Plan, step: int, device_type: str) -> None:
        self.plan, self.epochs = plan, plan.epoch(plan.steps)
        # a GPU runs behind the program: only rows measure its speed
        self._timed = 0 if device_type == "cpu" else None

    def advance(self, step: int) -> None:
        """A step was done. On a CPU the first few show how long the run will take."""
        if self._timed is None:
            return
        if self._timed == 0:  # the first one compiles; measuring starts after it
            self._clock = time.perf_counter()
        elapsed = time.perf_counter() - self._clock
        if self._timed < COST_STEPS or elapsed < COST_SECONDS:
            self._timed += 1
            return
        rate = self._timed * self.plan.batch_size / elapsed
        left = duration(self.seconds_left(step, rate))
        if step < self.plan.steps:
            self.note(f"the rest of this run will take about {left} at {speed(rate)}")
        self._timed = None

    def testing(self, done: int, batches: int) -> None:
        if self._timed is not None:
            self._timed = 0

    def row(self, row: Row, verdict: Verdict | None) -> None:
        """A row of metrics, and the verdict on the last measurement of the gradient, if there was one."""
        if row["kind"] == "eval":
            self.tests.append(row["test_seconds"])
            self.fields(*self.test_fields(row))
        elif row["seconds"] >= self.due or row["step"] == self.plan.steps:
            wait = min(max(ROW_SECONDS, ROW_SHARE * row["seconds"]), ROW_SECONDS_MOST)
            self.due = row["seconds"] + wait
            self.fields(*self.train_fields(row))
        self.tell_verdict(verdict)

    def tell_verdict(self, verdict: Verdict | None) -> None:
        if verdict is not None and self.verdict != (told := (verdict.word, verdict.obstacles)):
            self.verdict = told
            self.note(brief(verdict) + self.suffix)

    def end(self) -> None:
        if self.signal:
            self.keep(self.signal)
            self.signal = ""

    def position(self, row: Row) -> list[str]:
        width = len(str(self.plan.steps))
        return [f"step {row['step']:{width}}/{self.plan.steps}", f"epoch {row['epoch']:.2f}"]

    def train_fields(self, row: Row) -> list[str]:
        """What changes from row to row; metrics.jsonl has all numbers of every row."""
        fields = [*self.position(row), f"loss {row['loss']:.4f}"]
        if row["firing_rate"] is not None:
            fields.append(f"firing {row['firing_rate']:.3f}")
        fields.append(speed(row["images_per_s"]))
        if row["data_wait"] >= WAITING:
            fields.append(f"{row['data_wait']:.0%} waiting for data")
        return [*fields, f"{self.time_left(row)} left{self.suffix}"]

    def test_fields(self, row: Row) -> list[str]:
        fields = self.position(row)
        for of in ("validation", "test"):
            if found := Score.of_row(row, of):
                fields.append(f"{of} {in_words(found)} {scored(found)}")
        if found := Score.of_row(row, "ema"):
            fields.append(f"averaged {scored(found)}")
        return [*fields, f"test loss {row['test_loss']:.4f}{self.suffix}"]

    def time_left(self, row: Row) -> str:
        return duration(self.seconds_left(row["step"], row["images_per_s"]))

    def seconds_left(self, step: int, images_per_s: float) -> float:
        plan = self.plan
        test = self.tests[-1] if self.tests else plan.test_images * TEST_SHARE / images_per_s
        return (plan.steps - step) * plan.batch_size / images_per_s + plan.tests_after(step) * test


class Quiet(Display):
    """Shows nothing but warnings, and with `warns=False` nothing at all; the log has everything."""

    def __init__(self, warns: bool = True) -> None:
        super().__init__(sys.stdout)
        self.warns = warns

    def show(self, show: Callable[[], None]) -> None:
        pass

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
        self.numbers: dict[str, list[str]] = {"train": [], "eval": []}  # of the last row of each
        self.best: float | None = None
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
        plan = self.plan
        first = max(min(step, plan.steps) - 1, 0) // plan.epoch_steps * plan.epoch_steps
        done, length = step - first, min(plan.epoch_steps, plan.steps - first)
        epochs = f"{plan.epoch(step):.2f} of {self.epochs:.3g}  {self.left}"
        steps = f"{done} of {length}  ({step} of {plan.steps} in total)"
        self.bars.update(self.epoch_bar, completed=plan.epoch(step), count=epochs)
        self.bars.update(self.step_bar, completed=done, total=length, count=steps)
        self.bars.update(self.test_bar, visible=False)

    def testing(self, done: int, batches: int) -> None:
        super().testing(done, batches)
        count = f"{done} of {batches} batches"
        self.bars.update(self.test_bar, completed=done, total=batches, visible=True, count=count)

    def row(self, row: Row, verdict: Verdict | None) -> None:
        self.shown = verdict
        if row["kind"] == "train":
            self.numbers["train"] = numbers(row)
            self.left = f"{self.time_left(row)} left"
            self.update_bars(row["step"])
            self.tell_verdict(verdict)
            return
        test, held_out = Score.of_row(row), Score.of_row(row, "validation")
        self.numbers["eval"] = [f"test {in_words(test)} {scored(test)}"] if test else []
        if held_out is not None:
            if self.best is None or held_out.beats(self.best):
                self.best = held_out.value
            words = f"validation {in_words(held_out)} {scored(held_out)}"
            self.numbers["eval"].append(f"{words}, best {scored(held_out, self.best)}")
        super().row(row, verdict)

    def render(self) -> Group:
        room = self.console.width - MARGIN
        texts = [Text(line) for given in self.numbers.values() for line in fill(given, room)]
        if self.shown is not None:
            texts.append(Text(brief(self.shown), style=COLOURS[self.shown.word]))
        for text, style in ((self.suffix.strip(), "yellow"), (self.signal, "bold red")):
            texts += [Text(text, style=style)] if text else []
        return Group(self.bars, *(Padding(text, (0, 0, 0, MARGIN)) for text in texts))

    def end(self) -> None:
        super().end()
        if self.live is not None:
            self.live.stop()
            self.live = None


def numbers(row: Row) -> list[str]:
    rate = row["firing_rate"]
    return [
        f"loss {row['loss']:.4f}",
        f"lr {row['lr']:.2e}",
        f"gradient norm {row['grad_norm']:.3g}",
        *([] if rate is None else [f"firing rate {rate:.3f}"]),
        speed(row["images_per_s"]),
        f"{row['data_wait']:.0%} waiting for data",
        f"{row['peak_memory_mib']:.0f} MiB",
    ]
