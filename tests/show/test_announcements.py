"""What a run says at its start and at its end."""

import io
from pathlib import Path

from spiketriton.config import replace
from spiketriton.show.announcements import summary, what_next
from spiketriton.show.display import Display
from spiketriton.training.plan import Progress
from tests.show.support import outcome
from tests.small_runs import small_recipe


def test_the_summary_keeps_long_paths_whole():
    stream = io.StringIO()
    path = Path("runs") / ("long-" * 40)
    summary(Display(stream), outcome(), path, [path / "curves.png", path / "gradients.png"])
    text = stream.getvalue()
    for words in (
        f" {path} ",
        f" {path}/curves.png ",
        "100 of 100",
        "90.00 %",
        "95.00 % (after epoch 2)",
        "3.33 min",
        "321 images/s",
        "512 MiB",
        "0.123 spikes",
    ):
        assert words in text, words


def test_the_summary_of_a_run_that_was_never_tested():
    stream = io.StringIO()
    early = outcome(images_per_s=None, firing_rate=None, progress=Progress(step=3, seconds=1.0))
    summary(Display(stream), early, Path("x"), [])
    assert "3 of 100" in stream.getvalue()
    assert "accuracy" not in stream.getvalue()


def test_after_an_interruption_the_resume_command_stands_alone_on_its_line():
    stream = io.StringIO()
    what_next(Display(stream), outcome(step=40), Path("my runs/x"), small_recipe(), [])
    lines = stream.getvalue().splitlines()
    assert lines == [
        "stopped at step 40; saved: step 40. To continue:",
        "  python -m spiketriton.train --resume 'my runs/x'",
    ]


def test_what_next_offers_commands_that_change_the_recipe():
    for kind, other in (("lif", "relu"), ("relu", "lif")):
        stream = io.StringIO()
        recipe = small_recipe(f"neuron.kind={kind}")
        given = ["a.toml", f"neuron.kind={kind}"]
        what_next(Display(stream), outcome(), Path("x"), recipe, given)
        commands = [line for line in stream.getvalue().splitlines() if line.startswith("  python")]
        assert len(commands) == 3
        start = f"  python -m spiketriton.train a.toml neuron.kind={kind} "
        for command in commands:
            override = command.removeprefix(start).split("    # ")[0]
            assert replace(recipe, override) != recipe
        assert f"neuron.kind={other}" in commands[0]
