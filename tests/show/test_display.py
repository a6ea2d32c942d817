"""What a run shows: lines, live bars, the summary, the pictures."""

import io
import os
import pty
import re
import select
from pathlib import Path

import pytest
from rich.console import Console

from spiketriton.show.announcements import summary, what_next
from spiketriton.show.display import Display, LiveDisplay, Quiet, make_display, numbers
from spiketriton.show.words import duration
from spiketriton.training.plan import Plan
from tests.show.support import PLAN, outcome
from tests.small_runs import small_recipe

TRAIN = {
    "kind": "train", "step": 30, "epoch": 1.5, "seconds": 9.0, "lr": 0.00123, "loss": 1.23456,
    "grad_norm": 4.567, "images_per_s": 320.0, "data_wait": 0.0234, "firing_rate": 0.1234,
    "peak_memory_mib": 512.3,
}  # fmt: skip
EVAL = {
    "kind": "eval", "step": 40, "epoch": 2.0, "seconds": 12.0, "test_accuracy": 0.9312,
    "test_loss": 0.2, "test_images": 300, "test_seconds": 2.0,
}  # fmt: skip
GRADIENT = "dL/dx: first layer 3.2x the last, first time step 0.41x the last"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_have_all_numbers_and_no_control_codes():
    stream = io.StringIO()
    display = make_display(stream)
    assert type(display) is Display
    display.begin(PLAN, 0, "cpu")
    for step in range(1, 31):
        display.advance(step)
    display.row(TRAIN, GRADIENT)
    display.testing(1, 3)
    display.row(EVAL, GRADIENT)
    summary(display, outcome(), Path("runs/x"), [Path("runs/x/curves.png")])
    what_next(display, outcome(), Path("runs/x"), small_recipe(), ["small.toml"])
    display.end()
    train, test, *rest = stream.getvalue().splitlines()
    assert train == (
        "step  30/100  epoch 1.50/5  loss 1.2346  lr 1.23e-03  gradient norm 4.57  "
        "firing rate 0.123  320 images/s  2% waiting for data  512 MiB  7.94 s left  " + GRADIENT
    )
    assert test == (
        "step  40/100  epoch 2.00/5  test accuracy 93.12 %  test loss 0.2000  (300 images in 2 s)"
    )
    assert len(rest) > 10
    assert not CONTROL.search(stream.getvalue().replace("\n", ""))


def test_a_terminal_gets_live_bars_with_all_numbers():
    stream = Terminal()
    display = make_display(stream)
    assert type(display) is LiveDisplay
    display.console = Console(file=stream, force_terminal=True, width=120)
    display.begin(PLAN, 20, "cuda")
    try:
        display.advance(21)
        display.row(TRAIN, GRADIENT)
        display.testing(2, 3)
        display.row(EVAL, GRADIENT)
        display.stopping("SIGINT: finishing this step")
        shown = Console(file=io.StringIO(), width=120)
        shown.print(display.render())
        text = shown.file.getvalue()  # type: ignore[attr-defined]
    finally:
        display.end()
    for words in (
        "epochs",
        "1.50 of 5",
        "10 of 20   (step 30 of 100)",
        "2 of 3 batches",
        "test accuracy 93.12 %",
        GRADIENT,
        "SIGINT: finishing this step",
        *numbers(TRAIN),
    ):
        assert words in text, words
    assert "test accuracy 93.12 %  test loss 0.2000" in stream.getvalue()  # it stays, above
    assert "\x1b[" in stream.getvalue()
    assert display.live is None


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (0, "0 of 20   (step 0 of 90)"),
        (1, "1 of 20   (step 1 of 90)"),
        (20, "20 of 20   (step 20 of 90)"),
        (21, "1 of 20   (step 21 of 90)"),
        (90, "10 of 10   (step 90 of 90)"),  # max_steps ends the run within an epoch
    ],
)
def test_the_bar_of_steps_counts_within_the_epoch(step, shown):
    display = LiveDisplay(Terminal())
    plan = Plan(**(vars(PLAN) | {"steps": 90}))
    display.begin(plan, step, "cpu")
    try:
        assert display.bars.tasks[display.step_bar].fields["count"] == shown
        assert display.bars.tasks[display.epoch_bar].total == 4.5
    finally:
        display.end()


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_display(Terminal())) is Display


def test_forced_colours_do_not_reach_a_file(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    summary(make_display(stream), outcome(), Path("x"), [])
    assert "\x1b" not in stream.getvalue()


def test_a_real_terminal_is_left_as_it_was(tmp_path):
    """On a pseudo-terminal: the cursor is shown again and the bars are gone at the end."""
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        display = make_display(stream)
        display.begin(PLAN, 0, "cpu")
        display.row(TRAIN, "")
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


def test_warnings_go_to_stderr_in_one_line(capsys):
    Display(io.StringIO()).warn("disk\nfull")
    assert capsys.readouterr().err == "warning: disk full\n"


def test_the_cost_of_a_run_on_a_cpu_is_told_once_and_after_measuring(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    stream = io.StringIO()
    display = Display(stream)
    display.begin(PLAN, 0, "cpu")
    said = []
    for step in range(1, 20):
        now += 30.0 if step == 1 else 1.0  # the first compiles
        display.advance(step)
        said += [step] if stream.getvalue() and not said else []
    # 3 steps of 32 images in 3 s; 96 steps to go, and 3 tests of 300 images at a third of the cost
    assert said == [4]
    left = duration((96 * 32 + 3 * 300 / 3) / 32)
    assert stream.getvalue() == (f"the rest of this run will take about {left} at 32 images/s\n")


def test_no_cost_is_guessed_on_a_gpu_whose_work_the_host_does_not_see(monkeypatch):
    ticks = iter(range(0, 10_000, 10))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    stream = io.StringIO()
    display = Display(stream)
    display.begin(PLAN, 0, "cuda")
    for step in range(1, 50):
        display.advance(step)
    assert stream.getvalue() == ""


def test_time_left_uses_the_tests_that_were_measured():
    display = Display(io.StringIO())
    display.begin(PLAN, 0, "cuda")
    assert display.seconds_left(30, 32.0) == pytest.approx(70 + 3 * 300 / 3 / 32)
    display.row(EVAL, "")
    assert display.seconds_left(40, 32.0) == pytest.approx(60 + 2 * 2.0)
    assert display.seconds_left(100, 32.0) == 0


def test_synthetic_images_are_named_in_every_line_with_numbers():
    stream = io.StringIO()
    display = Display(stream)
    display.suffix = "  (synthetic images)"
    display.begin(PLAN, 0, "cpu")
    display.row(TRAIN, GRADIENT)
    display.row(EVAL, "")
    summary(display, outcome(), Path("x"), [])
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if "accuracy" in line or "loss" in line]
    for line in lines:
        if "accuracy" in line or "loss" in line:
            assert "(synthetic images)" in line


@pytest.mark.parametrize(("seconds", "at"), [(0.5, 5), (0.49, 6), (2.0, 4), (9.0, 4)])
def test_the_cost_takes_3_steps_and_2_seconds(seconds, at, monkeypatch):
    """The first step compiles; then `seconds` a step are measured."""
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    stream = io.StringIO()
    display = Display(stream)
    display.begin(PLAN, 0, "cpu")
    for step in range(1, at + 1):
        assert stream.getvalue() == ""
        now += seconds
        display.advance(step)
    assert f" at {32 / seconds:.3g} images/s" in stream.getvalue()


def test_a_test_while_the_cost_is_measured_starts_it_again(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    stream = io.StringIO()
    display = Display(stream)
    display.begin(PLAN, 0, "cpu")
    for step in range(1, 8):
        now += 1.0
        display.advance(step)
        if step == 3:
            display.testing(1, 3)
        assert (stream.getvalue() != "") == (step == 7)


def test_every_line_is_flushed_and_a_signal_passes_all_buffers(capfd):
    raw = io.BytesIO()
    display = Display(io.TextIOWrapper(raw))
    display.note("said")
    assert raw.getvalue() == b"said\n"
    display.stopping("SIGINT")
    assert capfd.readouterr().err == "\nSIGINT\n"


def test_the_quiet_display_warns_unless_it_must_not(capfd):
    Quiet().note("nothing")
    Quiet().warn("disk full")
    Quiet().stopping("SIGINT")
    assert capfd.readouterr() == ("", "warning: disk full\n\nSIGINT\n")
    Quiet(warns=False).warn("disk full")
    Quiet(warns=False).stopping("SIGINT")
    assert capfd.readouterr() == ("", "")


def rendered(display: LiveDisplay) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(display.render())
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_live_lines_one_by_one():
    display = LiveDisplay(Terminal())
    display.begin(PLAN, 20, "cuda")
    try:
        assert display.live.transient
        assert len(rendered(display)) == 2
        assert "1.00 of 5 " in rendered(display)[0]
        assert rendered(display)[1].endswith("20 of 20   (step 20 of 100)")
        display.row(TRAIN, GRADIENT)
        display.row(EVAL, GRADIENT)
        display.row(EVAL | {"test_accuracy": 0.5}, GRADIENT)
        display.suffix = " (synthetic images)"
        given = numbers(TRAIN)
        assert [line.rstrip() for line in rendered(display)[2:]] == [
            "       " + "  ".join(given[:4]),
            "       " + "  ".join(given[4:]),
            "       test accuracy 50.00 %",
            "       " + GRADIENT,
            "(synthetic images)",
        ]
        shown = [task.visible for task in display.bars.tasks]
        display.testing(2, 3)
        assert [shown, [task.visible for task in display.bars.tasks]] == [
            [True, True, False],
            [True] * 3,
        ]
        test = display.bars.tasks[display.test_bar]
        assert (test.completed, test.total) == (2, 3)
        display.advance(31)
        assert not test.visible
        steps, epochs = (display.bars.tasks[bar] for bar in (display.step_bar, display.epoch_bar))
        assert (steps.completed, steps.total, epochs.completed) == (11, 20, 1.55)
    finally:
        display.end()


def test_long_notes_and_warnings_of_a_terminal_are_not_broken():
    stream = Terminal()
    display = LiveDisplay(stream)
    display.note("note " * 60)
    display.warn("warning " * 60)
    assert stream.getvalue().count("\n") == 2
    assert "\x1b[1;31mwarning: warning" in stream.getvalue()


def test_an_ann_has_no_firing_rate():
    assert numbers(TRAIN)[3] == "firing rate 0.123"
    assert len(numbers(TRAIN | {"firing_rate": None})) == 6
