"""python profiling/run.py COMMAND [...]: where every number comes from."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # of the script's folder: `profiling` is imported as a package

from profiling.session import Session, ours_failed, reexecute  # noqa: E402

if __name__ == "__main__":
    reexecute(sys.argv, dict(os.environ))

import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from profiling import compiled, pictures, report, tables  # noqa: E402
from profiling.base import Base, answer_requests  # noqa: E402
from profiling.cases import TELLING, Kernels, Weighed, weighed_cases  # noqa: E402
from profiling.contenders import (  # noqa: E402
    MISSING,
    NOT_REACHED,
    Contender,
    Options,
    Section,
    Spec,
)
from profiling.leak import leak  # noqa: E402
from profiling.loading import Loading  # noqa: E402
from profiling.networks import Monitoring, TrainingStep, find_recipe  # noqa: E402
from profiling.peers import PEERS, version  # noqa: E402
from profiling.tracing import trace  # noqa: E402
from spiketriton.commandline import Parser  # noqa: E402
from spiketriton.config import Recipe  # noqa: E402
from spiketriton.errors import EXIT_ERROR, EXIT_SIGINT, UserError, run_command  # noqa: E402
from spiketriton.training import environment  # noqa: E402

EPILOG = """\
commands:
  kernels                      each operation over sizes, T, dtypes and layouts
  step [RECIPE] [key=value]    a whole training step: ours, its ANN twin, torch.compile, the peers
  memory [RECIPE] [key=value]  peak and saved-for-backward bytes of the same
  gradients [RECIPE]           what the gradient monitor costs
  data [RECIPE]                the loader alone, in images per second
  compiled [T=4,10] [dtype=..] [layout=..]
                               every kernel lowered for --target, which needs no GPU
  all                          the lot, within 10 minutes (--minutes)
  trace RECIPE [key=value]     a chrome trace of some steps, and the operations that take most time
  leak [RECIPE] [key=value]    resident memory over --steps of training; 1 when it keeps growing
  report                       docs/performance.md and the pictures, from the results in --out

examples:
  python profiling/run.py kernels --peers spikingjelly,snntorch,norse
  python profiling/run.py step fashion_mnist_r20 time_steps=8 --only 'spiketriton,ANN twin'
  python profiling/run.py kernels --base HEAD~3 --only spiketriton
  python profiling/run.py compiled --target sm_90

RECIPE is a file, or a name in recipes/ (without a GPU fashion_mnist_r20, with one imagenette_r50).
Ctrl-C keeps what has been measured. docs/performance.md explains how to read the results."""

COMMANDS = ("kernels", "step", "memory", "gradients", "data", "compiled", "all", "trace", "leak")
COMMANDS += ("report",)
WITH_RECIPE = ("step", "memory", "gradients", "data", "trace", "leak")
WITH_BASE = ("kernels", "step", "memory", "all")
QUICK_RECIPE = "quickstart"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("profiling", EPILOG, "Measure kernels, training steps, memory and data.")
    parser.prog = "python profiling/run.py"
    add = parser.add_argument
    add("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    add("words", nargs="*", metavar="RECIPE key=value", help="a recipe and changes to it")
    add("--peers", metavar="NAMES", help="of spikingjelly,snntorch,norse; none (those installed)")
    add("--only", metavar="NAMES", help="contenders of these names; * stands for any text")
    add("--out", metavar="DIR", default=ROOT / "profiling/results", type=Path, help="for results")
    add("--base", metavar="REV", help="race another commit of this repository too")
    add("--target", choices=compiled.TARGETS, default="sm_90", help="GPU of `compiled` (sm_90)")
    add("--quick", action="store_true", help="tiny sizes: a rehearsal, not a measurement")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (0: torch's choice)")
    add("--minutes", type=float, metavar="M", help="begin no case later (all: 10; 0: no end)")
    add("--steps", type=int, default=2000, metavar="N", help="of `leak` (2000)")
    args = parser.parse_intermixed_args(arguments)
    if args.words and args.command not in (*WITH_RECIPE, "compiled"):
        parser.error(f"{args.command} takes no {args.words[0]!r}")
    if args.base and args.command not in WITH_BASE:
        parser.error(f"--base goes with {', '.join(WITH_BASE)}, not with {args.command}")
    if args.command == "trace" and not args.words:
        parser.error("no RECIPE was given")
    if args.steps < 8:
        parser.error(f"--steps {args.steps}: accepted: 8 or more")
    if args.threads < 0 or not (args.minutes or 0) >= 0:  # NaN is not
        parser.error("--threads and --minutes: accepted: numbers from 0")
    if args.minutes is None:
        args.minutes = 10.0 if args.command == "all" else 0.0
    return args


def options_of(args: argparse.Namespace) -> Options:
    """What all sections share. UserError: no such device or peer."""
    if args.threads:
        torch.set_num_threads(args.threads)
    peers = tuple(name for name in PEERS if version(name))
    if args.peers is not None:
        peers = () if args.peers == "none" else tuple(args.peers.split(","))
    for name in peers:
        if name not in PEERS:
            raise UserError(f"--peers {name!r}: accepted: none, or some of {','.join(PEERS)}")
    return Options(
        device=environment.choose_device(args.device).value,
        quick=args.quick,
        peers=peers,
        only=tuple(args.only.split(",")) if args.only else (),
    )


def recipes_of(args: argparse.Namespace, options: Options) -> list[Recipe]:
    """The recipes that the command names, all with its overrides, or the device's own."""
    overrides = [word for word in args.words if "=" in word]
    names = [word for word in args.words if "=" not in word]
    if not names:
        usual = "imagenette_r50" if options.device.type == "cuda" else "fashion_mnist_r20"
        names = [QUICK_RECIPE if options.quick else usual]
    return [find_recipe(name, overrides) for name in names]


def work_of(args: argparse.Namespace, options: Options) -> list[tuple[Section, list[Spec]]]:
    """The sections of a command with their cases, in order.

    The telling cases of the kernels come first in `all`, and the long tail of them last.
    """
    names = [args.command]
    if args.command == "all":
        names = ["kernels", "step", "memory", "gradients", "data"]
    recipes = recipes_of(args, options) if names != ["kernels"] else []
    step = TrainingStep(recipes)
    sections: dict[str, list[Section]] = {
        "step": [step],
        "memory": [Weighed(Kernels(), weighed_cases), Weighed(step, step.specs)],
        "gradients": [Monitoring(recipes)],
        "data": [Loading(recipes)],
        "kernels": [Kernels()],
    }
    chosen = [section for name in names for section in sections[name]]
    work = [(section, section.specs(options)) for section in chosen]
    if args.command == "all":
        kernels, specs = work[0]
        work[0] = (kernels, specs[:TELLING])
        work.append((kernels, specs[TELLING:]))
    return work


def measure(args: argparse.Namespace, options: Options) -> int:
    """Runs the command's sections; shows tables and pictures of what was measured."""
    lowers = args.command in ("compiled", "all")
    lowered = compiled.settings(args.words if args.command == "compiled" else ())
    work = [] if args.command == "compiled" else work_of(args, options)
    with ExitStack() as stack:
        extend: Callable[[str, Spec], list[Contender]] = lambda section, spec: []  # noqa: E731
        if args.base:
            flags = [f"--device={args.device}", f"--threads={args.threads}"]
            flags += ["--quick"] * args.quick
            base = stack.enter_context(Base(args.base, flags))
            extend = lambda section, spec: (  # noqa: E731
                base.contenders(spec) if section in WITH_BASE else []
            )
        session = Session(options, args.out, args.minutes, extend)
        code = 0
        grid = [
            (T, d, la) for T in lowered["T"] for d in lowered["dtype"] for la in lowered["layout"]
        ]
        try:
            with session.progress(sum(len(specs) for _, specs in work) + lowers * len(grid)):
                if lowers:
                    for T, dtype, layout in grid:
                        lower(session, args.target, T, dtype, layout)
                for section, specs in work:
                    session.measure(section, specs)
        except KeyboardInterrupt:
            session.say(f"interrupted: {len(session.rows)} rows are kept in {session.file}")
            code = EXIT_SIGINT
    show(session)
    rivals = [row for row in session.rows if row.get("contender") != "copy"]
    if not code and not rivals:
        raise UserError(f"--only {args.only!r}: accepted: names of contenders, as the tables have")
    if not code and all(row["status"] == MISSING for row in rivals):
        raise UserError(f"nothing was measured: {rivals[0]['why']}")
    return code or (EXIT_ERROR if ours_failed(session.rows) else 0)


def lower(session: Session, target: str, T: int, dtype: str, layout: str) -> None:
    label = f"compiled {target} T={T} {dtype} {layout}"
    for row in compiled.lowered(target, T, dtype, layout):
        session.at(f"{label}: {row.get('kernel', 'sums')}")
        session.add("compiled", [row])
    session.at(label, advance=1)


def show(session: Session) -> None:
    """Tables on the terminal, pictures and rows in files."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    rows = [row for row in session.rows if row["status"] != NOT_REACHED]
    for section, make in tables.TABLES.items():
        chosen = [row for row in rows if row["section"] == section]
        for grid in make(chosen) if chosen else ():
            console.print(grid.rich(), "")
    bars = report.bars_grid(rows) if not session.options.quick else None
    if bars:
        console.print(bars.rich(), "")
    drawn = pictures.draw(rows, session.picture) if rows else []
    late = len(session.rows) - len(rows)
    if late:
        session.say(
            f"{late} cases or contenders were not reached within --minutes; the rows name them"
        )
    for path in [*drawn, session.file] if session.rows else []:
        session.say(f"wrote {path}")


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    options = options_of(args)
    if args.command == "report":
        for path in report.write(args.out, ROOT / "docs/performance.md"):
            print(f"wrote {path}")
        return 0
    if args.command == "trace":
        session = Session(options, args.out)
        for recipe in recipes_of(args, options):
            path = args.out / f"{session.stem}-trace-{recipe.name}.json"
            grid, rows = trace(recipe, options, path)
            session.add("trace", rows)
            Console(highlight=False, width=None if sys.stdout.isatty() else 110).print(grid.rich())
            session.say(f"wrote {path} (open it at chrome://tracing or ui.perfetto.dev)")
        return 0
    if args.command == "leak":
        session = Session(options, args.out / "leak")  # apart: the report has no place for it
        if not any("=" not in word for word in args.words):
            args.words.insert(0, QUICK_RECIPE)
        for recipe in recipes_of(args, options):
            picture = session.picture(f"leak-{recipe.name}")
            row = leak(recipe, args.steps, picture)
            session.add("leak", [row])
            print(f"{recipe.name}: {row['why']}; accepted: {row['tolerance_mib']:g} MiB")
            session.say(f"wrote {picture} and {session.file}")
        return EXIT_ERROR if any(row["status"] == "leaks" for row in session.rows) else 0
    return measure(args, options)


def serve(arguments: list[str]) -> None:
    """The process of another commit, started by base.py."""
    args = parse(["kernels", *arguments])
    options = options_of(args)
    kernels, step = Kernels(), TrainingStep([])
    answer_requests(lambda spec: kernels if "op" in spec else step, options)


if __name__ == "__main__":
    run_command(main)
