"""What a run shows: lines, live bars, and what goes to which stream."""

import io
import os
import pty
import re
import select

import numpy as np
import pytest
from rich.console import Console

from spiketriton.gradients.measurement import Signal
from spiketriton.gradients.verdict import Verdict, judge
from spiketriton.show.words import duration
from spiketriton.training.display import Display, LiveDisplay, Quiet, make_display, numbers
from spiketriton.training.plan import Plan
from tests.show.support import PLAN, measurement

TRAIN = {
    "kind": "train", "step": 30, "epoch": 1.5, "seconds": 9.0, "lr": 0.00123, "loss": 1.23456,
    "grad_norm": 4.567, "images_per_s": 320.0, "data_wait": 0.0234, "firing_rate": 0.1234,
    "peak_memory_mib": 512.3,
}  # fmt: skip
EVAL = {
    "kind": "eval", "step": 40, "epoch": 2.0, "seconds": 12.0, "test_accuracy": 0.9312,
    "test_loss": 0.2, "test_images": 300, "test_seconds": 2.0,
}  # fmt: skip
GRADIENT = "no obstacle found (first layer's gradient 3.2x the last one's)"


def verdict(depth: float = 3.2, optimizer: str = "adamw") -> Verdict:
    grads = np.array([[depth * 0.41, depth], *[[0.41, 1.0]] * 47])
    ones = {
        name: np.ones((48, 2))
        for name in ("grad_spike_rms", "grad_carry_rms", "firing_rate", "grad_input_max")
    }
    return judge(measurement(grads, **ones), optimizer, Signal(np.ones(48), True, chain=True))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def live(width: int = 120, step: int = 20, plan: Plan = PLAN) -> LiveDisplay:
    display = LiveDisplay(Terminal())
    display.console = Console(file=display.stream, force_terminal=True, width=width)
    display.begin(plan, step, "cuda")
    display.live.stop()  # what it would draw is asked for
    return display


def rendered(display: LiveDisplay) -> list[str]:
    console = Console(file=io.StringIO(), width=display.console.width)
    console.print(display.render())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_lines_have_all_numbers(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_display(Terminal())) is Display
    stream = io.StringIO()
    display = make_display(stream)
    assert type(display) is Display
    display.begin(PLAN, 0, "cpu")
    for step in range(1, 31):
        display.advance(step)
    display.row(TRAIN, verdict())
    display.testing(1, 3)
    display.row(EVAL, verdict())
    display.end()
    assert stream.getvalue().splitlines() == [
        "step  30/100  epoch 1.50  loss 1.2346  firing 0.123  320 images/s  7.94 s left",
        GRADIENT,
        "step  40/100  epoch 2.00  test accuracy 93.12 %  test loss 0.2000",
    ]


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (0, "0 of 20  (0 of 90 in total)"),
        (20, "20 of 20  (20 of 90 in total)"),
        (21, "1 of 20  (21 of 90 in total)"),
        (90, "10 of 10  (90 of 90 in total)"),  # max_steps ends the run within an epoch
    ],
)
def test_the_bar_of_steps_counts_within_the_epoch(step, shown):
    display = live(step=step, plan=Plan(**(vars(PLAN) | {"steps": 90})))
    assert rendered(display)[1].endswith(shown)
    assert display.bars.tasks[display.epoch_bar].total == 4.5


def test_a_real_terminal_is_left_as_it_was():
    """On a pseudo-terminal: the cursor is shown again and the bars are gone at the end."""
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        display = make_display(stream)
        display.begin(PLAN, 0, "cpu")
        display.row(TRAIN, None)
        display.end()
    shown = b""
    while select.select([leader], [], [], 0)[0]:
        try:
            shown += os.read(leader, 1000)
        except OSError:  # Linux: everything was read and the other end is closed
            break
    os.close(leader)
    assert b"epochs" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


@pytest.mark.parametrize(("device", "told"), [("cpu", [4]), ("cuda", [])])
def test_the_cost_of_a_run_is_told_once_and_after_measuring(device, told, monkeypatch):
    """Of a GPU, whose work the host does not see, not at all."""
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    stream = io.StringIO()
    display = Display(stream)
    display.begin(PLAN, 0, device)
    said = []
    for step in range(1, 20):
        now += 30.0 if step == 1 else 1.0  # the first compiles
        display.advance(step)
        said += [step] if stream.getvalue() and not said else []
    assert said == told
    # 3 steps of 32 images in 3 s; 96 steps to go, and 3 tests of 300 images at a third of the cost
    left = duration((96 * 32 + 3 * 300 / 3) / 32)
    line = f"the rest of this run will take about {left} at 32 images/s\n"
    assert stream.getvalue() == line * len(told)


def test_time_left_uses_the_tests_that_were_measured():
    display = Display(io.StringIO())
    display.begin(PLAN, 0, "cuda")
    assert display.seconds_left(30, 32.0) == pytest.approx(70 + 3 * 300 / 3 / 32)
    display.row(EVAL, None)
    assert display.seconds_left(40, 32.0) == pytest.approx(60 + 2 * 2.0)
    assert display.seconds_left(100, 32.0) == 0


def test_lines_are_flushed_and_warnings_and_signals_go_to_stderr_unless_they_must_not(capfd):
    raw = io.BytesIO()
    display = Display(io.TextIOWrapper(raw))
    display.note("said")
    assert raw.getvalue() == b"said\n"
    for quiet, shown in (
        (display, "warning: disk full\n\nSIGINT\n"),
        (Quiet(), "warning: disk full\n\nSIGINT\n"),
        (Quiet(warns=False), ""),
    ):
        quiet.warn("disk\nfull")
        quiet.stopping("SIGINT")
        assert capfd.readouterr() == ("", shown)
    Quiet().note("nothing")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("width", [60, 120])
def test_the_live_display_fits_the_screen_and_no_number_is_broken(width):
    display = live(width)
    assert len(rendered(display)) == 2
    display.row(TRAIN, verdict())
    display.row(EVAL, verdict())
    display.testing(2, 3)
    display.suffix = " (synthetic images)"
    lines = rendered(display)
    assert all(len(line) <= width for line in lines)
    for words in (
        *("1.50 of 5  7.94 s left", "10 of 20  (30 of 100 in total)", "2 of 3 batches"),
        *numbers(TRAIN),
    ):
        assert [line for line in lines if words in line], words
    assert all(line.startswith("       ") for line in lines[3:])
    assert "       test accuracy 93.12 %" in lines
    assert width < 80 or lines[-2:] == ["       " + GRADIENT, "       (synthetic images)"]
    display.advance(31)
    assert not [line for line in rendered(display) if "batches" in line]


def test_notes_of_a_terminal_break_between_words_and_commands_not_at_all(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    display = LiveDisplay(stream)
    display.note("a/path/of/many/letters " * 6)
    display.warn("disk is full " * 8)
    display.verbatim("  spiketriton train " + "recipe " * 20)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
    assert [line.split() for line in lines[:3]] == [["a/path/of/many/letters"] * 2] * 3
    assert all(len(line) <= 60 for line in lines[:-1])
    assert "\x1b[1;31mwarning: disk" in stream.getvalue()
    assert lines[-1].count("recipe") == 20


@pytest.mark.parametrize(
    ("start", "each", "printed"), [(0, 0.25, [1, 41, 81, 100]), (20_000, 100, [*range(1, 101, 3)])]
)
def test_rows_are_printed_when_they_are_worth_it(start, each, printed):
    """The first, one in 10 seconds, or in 5 minutes of a long run, the last; a new verdict and each test always."""
    stream = io.StringIO()
    display = Display(stream)
    display.begin(PLAN, 0, "cuda")
    for step in range(1, 101):
        found = verdict(3.2 if step < 50 else 1e15, "sgd")
        display.row(TRAIN | {"step": step, "seconds": start + each * step}, found)
    lines = stream.getvalue().splitlines()
    rows = [int(line.split()[1].split("/")[0]) for line in lines if line.startswith("step")]
    assert rows == printed
    assert [line.split()[0] for line in lines if "gradient" in line] == ["no", "exploding"]
    display.row(
        EVAL | {"step": 100}, verdict(3.2, "sgd")
    )  # the last test, behind which no row comes
    *_, test, told = stream.getvalue().splitlines()
    assert "test accuracy" in test
    assert told.startswith("no obstacle found ")


def test_what_is_held_back_is_shown_at_the_end_and_not_at_all_after_a_refusal(tmp_path):
    stream = io.StringIO()
    display = Display(stream)

    def refuse() -> None:
        with display.held_back():
            display.note("lost")
            raise ValueError

    with pytest.raises(ValueError):
        refuse()
    with display.held_back():
        display.note("shown")
        assert stream.getvalue() == ""
    assert stream.getvalue() == "shown\n"
    display.keep_in(tmp_path / "console.log")
    lines = (tmp_path / "console.log").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["lost", "shown"]
