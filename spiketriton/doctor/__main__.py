"""spiketriton doctor [key=value ...] [--json]

Check that spiketriton runs correctly on this machine.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from spiketriton.config import Recipe, load_recipe
from spiketriton.runs.rows import json_text
from spiketriton.system.commandline import Parser
from spiketriton.system.errors import EXIT_DONE, EXIT_ERROR, importing, run_command

EPILOG = """\
examples:
  spiketriton doctor
  spiketriton doctor data.root=/data
  spiketriton doctor train.device=cpu --json

Checks that spiketriton runs correctly on this machine. Every kernel is compared with its
definition in plain PyTorch on this device, forward and backward, in every dtype; then a small
network is trained for a few steps. Kernels are compiled the first time, a minute or two on a CPU.
Speed is measured by python profiling/run.py."""

COLOURS = {"ok": "green", "slow": "yellow", "wrong": "bold red"}
STEPS = 6  # of the small training


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        "doctor", EPILOG, {0: "all checks passed", 1: "a check failed, or anything else"}
    )
    parser.add_overrides("data.root=DIR, train.device=cpu")
    parser.add_argument("--json", action="store_true", help="print JSON, for a bug report")
    return parser.parse_intermixed_args(arguments)


def small_recipe(overrides: Sequence[str]) -> Recipe:
    """The quickstart, cut to a few steps on the digits of the package."""
    short = [f"train.max_steps={STEPS}", "train.log_every=1", "data.workers=0"]
    return load_recipe("quickstart", [*short, *overrides])


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    recipe = small_recipe(args.overrides)
    with importing():
        from spiketriton.doctor.checkup import findings
        from spiketriton.show.screen import console_of, say
        from spiketriton.training import environment

    console = console_of()
    found = []
    if not args.json:
        say(console, environment.version_line())
    for finding in findings(recipe):
        found.append(finding)
        if not args.json:
            advice = f" -> {finding.advice}" if finding.advice else ""
            line = f"{finding.state:<6}{finding.name}: {finding.found}{advice}"
            style = COLOURS[finding.state] if finding.state != "ok" else ""
            say(console, line, style=style, indent=" " * 6)
    states = [finding.state for finding in found]
    if args.json:
        head = {"version": environment.version_line(), "findings": [asdict(f) for f in found]}
        print(json_text(head, indent=1), end="")
    else:
        wrong, slow = states.count("wrong"), states.count("slow")
        end = f"all passed, but {slow} slow" if slow else "all passed"
        end = f"{wrong} wrong; see the lines that begin with it" if wrong else end
        say(console, f"{len(found)} checks: {end}", style="bold")
    return EXIT_ERROR if "wrong" in states else EXIT_DONE


if __name__ == "__main__":
    run_command(main)
