"""python profiling/run.py COMMAND [...]: where every number comes from."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # instead of the script's folder: `profiling` is a package; the kernels need not be installed
    sys.path[:1] = [str(ROOT), str(ROOT / "kernels")]

from profiling.harness.session import Session, reexecute, short  # noqa: E402

if __name__ == "__main__":
    reexecute(sys.argv, dict(os.environ))

from profiling import first  # noqa: E402
from profiling.harness.contenders import OURS, Case, Options, Status  # noqa: E402
from profiling.harness.peers import PEERS, version  # noqa: E402
from profiling.render import pictures, report, tables  # noqa: E402
from profiling.render.compare import compare  # noqa: E402
from profiling.sections import compiled, kernels  # noqa: E402
from profiling.sections.gradients import Monitoring  # noqa: E402
from profiling.sections.host import HostTime  # noqa: E402
from profiling.sections.recipes import find_recipe  # noqa: E402
from profiling.sections.step import TrainingStep, in_precisions, modes  # noqa: E402
from spiketriton.config import Recipe  # noqa: E402
from spiketriton.runs.folder import make_writable  # noqa: E402
from spiketriton.system.commandline import Parser  # noqa: E402
from spiketriton.system.errors import EXIT_ERROR, EXIT_SIGINT, UserError, one_line, run_command  # noqa: E402
from spiketriton.training import environment  # noqa: E402
from spiketriton.training.environment import choose_precision, name_of  # noqa: E402

EPILOG = """\
commands:
  kernels                      each operation over sizes, T, dtypes and layouts
  step [RECIPE] [key=value]    a whole training step: spiketriton, its ANN twin, torch.compile, other libraries
  modes [RECIPE] [key=value]   plain, sew and ms blocks: eagerly, compiled and as a CUDA graph
  memory [RECIPE] [key=value]  peak and saved-for-backward bytes of the same; without words of each operation, too
  gradients [RECIPE]           what the gradient monitor costs
  host                         process time of a call on tiny tensors, against F.batch_norm + relu
  data [RECIPE]                the loader alone, in images per second
  compiled [T=4,10] [dtype=..] [layout=..]
                               every kernel lowered for --target, which needs no GPU
  first                        a GPU's first ten minutes (--minutes): is it right, and how fast? with tests and doctor
  all                          all of these, within 10 minutes (--minutes); modes on a GPU only
  compare A.jsonl B.jsonl      what takes another time in B, beyond --threshold; exits with 1 where ours is slower
  report                       docs/performance.md and the pictures, from the results in --out

examples:
  python profiling/run.py kernels --peers spikingjelly,snntorch,norse
  python profiling/run.py step fashion_mnist_r20 time_steps=8 --only 'spiketriton,ANN twin'
  python profiling/run.py compiled --target sm_90

RECIPE is a file, or a name in recipes/ (without a GPU fashion_mnist_r20, with one imagenette_r50), or
spikingjelly_740: SEW-ResNet-18, T=4, bf16, batch 112, 224 pixels, SpikingJelly's pull request 740.
Ctrl-C keeps what has been measured. profiling/README.md says how it is measured."""

WITH_RECIPE = ("step", "modes", "memory", "gradients", "data")
ON_GPU = "cifar_r20", "imagenette_r18", "cifar100_r18", "imagenette_r50"
"""Whose modes `all` measures on a GPU after the most important kernels: networks that Python slows down, and
networks that fill the GPU. torch.compile takes most of the time."""
COMMANDS = (
    "kernels",
    *WITH_RECIPE,
    "host",
    "compiled",
    "first",
    "all",
    "compare",
    "report",
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    what = "Measure kernels, training steps, memory and data."
    parser = Parser("profiling", EPILOG, description=what)
    parser.prog = "python profiling/run.py"
    add = parser.add_argument
    add("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    add("words", nargs="*", metavar="RECIPE key=value", help="a recipe and changes to it")
    peers = "libraries: spikingjelly,snntorch,norse; none (those installed)"
    installed = ",".join(filter(version, PEERS)) or "none"
    add("--peers", metavar="NAMES", default=installed, help=peers)
    only = "measure only these contenders; * stands for any text"
    add("--only", metavar="NAMES", default="*", help=only)
    add("--cases", metavar="NAMES", help="measure only these kernels: 'lif training T=4 *'")
    add(
        "--out",
        metavar="DIR",
        default=ROOT / "studies/speed/results",
        type=Path,
        help="for results",
    )
    add("--target", choices=compiled.CARDS, default="sm_90", help="GPU of `compiled` (sm_90)")
    add("--quick", action="store_true", help="tiny sizes: a rehearsal, not a measurement")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (0: torch's choice)")
    trace = (
        "step, modes: a step's kernels by name with their time and bytes, and a Chrome trace of it"
    )
    add("--trace", action="store_true", help=trace)
    minutes = "begin no case later (first, all: 10, a rehearsal of first 30; 0: no limit)"
    share = "compare: times that differ by less are left out (0.1, a tenth)"
    add("--threshold", type=float, metavar="SHARE", help=share)
    add("--minutes", type=float, metavar="M", help=minutes)
    args = parser.parse_intermixed_args(arguments)
    if args.command == "compare" and len(args.words) != 2:
        parser.error(f"compare takes two result files (*.jsonl), not {len(args.words)}")
    if args.threshold is not None and args.command != "compare":
        parser.error(f"{args.command} takes no --threshold, which is of compare")
    if args.threshold is not None and not 0 < args.threshold < 10:
        parser.error(f"--threshold {args.threshold:g}: accepted: numbers above 0 and below 10")
    if args.words and args.command not in (*WITH_RECIPE, "compiled", "compare"):
        parser.error(f"{args.command} takes no {args.words[0]!r}")
    if args.cases and args.command not in ("kernels", "all"):
        parser.error(f"{args.command} takes no --cases, which are of kernels")
    if args.trace and args.command not in ("step", "modes"):
        parser.error(f"{args.command} takes no --trace, which is of step and modes")
    if args.threads < 0 or not (args.minutes or 0) >= 0:  # NaN is not
        parser.error("--threads and --minutes: accepted: numbers from 0")
    if args.minutes is None:
        args.minutes = 10.0 if args.command in ("all", "first") else 0.0
        args.minutes *= first.PATIENCE if args.command == "first" and args.quick else 1
    return args


def options_of(args: argparse.Namespace) -> Options:
    """What all sections share. UserError: no such device or peer."""
    environment.use_threads(args.threads)
    peers = () if args.peers == "none" else tuple(args.peers.split(","))
    for name in peers:
        if name not in PEERS:
            raise UserError(f"--peers {name!r}: accepted: none, or some of {','.join(PEERS)}")
    device = environment.choose_device(args.device).value
    return Options(device, args.quick, peers, tuple(args.only.split(",")), args.trace)


def cases_of(section: str, args: argparse.Namespace, options: Options) -> Sequence[Case]:
    """What a section measures: of the recipes that are named, or of the usual one."""
    words = args.words if args.command in WITH_RECIPE else []
    usual = "imagenette_r50" if options.device.type == "cuda" else "fashion_mnist_r20"
    names = [word for word in words if "=" not in word]
    names = names or ["quickstart" if options.quick else usual]
    changes = [word for word in words if "=" in word]

    def each(kind: Callable[[Recipe, Options], Any]) -> list[Any]:
        return [kind(find_recipe(name, changes), options) for name in names]

    match section:
        case "kernels":
            return chosen_kernels(args.cases, options) if args.cases else kernels.cases(options)
        case "step":
            return [case for precisions in each(in_precisions) for case in precisions]
        case "modes":
            return [case for kinds in each(modes) for case in kinds]
        case "memory":
            operations = [] if words else kernels.cases(options, weighed=True)
            return [*operations, *each(TrainingStep)]
        case "gradients":
            return each(Monitoring)
        case "data":
            from profiling.sections import data  # needs torchvision, which a bare machine may lack

            return [*each(data.Loading), *([] if words else data.one_core(options))]
    return [HostTime()]


def chosen_kernels(names: str, options: Options) -> Sequence[Case]:
    """UserError: none of these names."""
    labels = {case: short(case.spec) for case in kernels.every_case(options)}
    wanted = names.split(",")
    if chosen := [c for c in labels if any(fnmatchcase(labels[c], one) for one in wanted)]:
        return chosen
    columns = zip(*(label.split(" ") for label in labels.values()), strict=True)
    accepted = " ".join("|".join(dict.fromkeys(words)) for words in columns)
    raise UserError(f"--cases {names!r}: accepted: names, * for any text: {accepted}")


def work_of(args: argparse.Namespace, options: Options) -> list[tuple[str, Sequence[Case]]]:
    """The sections of a command with their cases, in order.

    `all` begins with the most important cases of the kernels, and ends with the rest of them. Between them are, on a
    GPU, whole steps: their modes, and the setting of SpikingJelly's pull request 740.
    """
    of = partial(cases_of, args=args, options=options)
    if args.command != "all":
        return [(args.command, of(args.command))] if args.command != "compiled" else []
    whole: list[tuple[str, Sequence[Case]]] = []
    if options.device.type == "cuda":
        whole = [("modes", modes(find_recipe(name), options)) for name in ON_GPU]
        whole.insert(1, ("step", [TrainingStep(find_recipe("spikingjelly_740"), options)]))
    rest = [(name, of(name)) for name in ("step", "memory", "gradients", "data", "host")]
    first, others = of("kernels")[: kernels.FIRST], of("kernels")[kernels.FIRST :]
    return [("kernels", first), *whole, *rest, ("kernels", others)]


def measure(args: argparse.Namespace, options: Options) -> int:
    """Runs the command's sections; shows tables and pictures of what was measured."""
    lowers = args.command in ("compiled", "all")
    lowered = compiled.settings(args.words if args.command == "compiled" else ()) if lowers else []
    work = work_of(args, options)
    total = sum(len(cases) for _, cases in work) + len(lowered)
    session = Session(options, args.out, args.minutes, total)

    def lower() -> None:
        for setting in lowered:
            session.begin("compiled {} T={T} {dtype} {layout}".format(args.target, **setting))
            rows = compiled.lowered(args.target, **setting)
            for row in takewhile(lambda _: not session.late, rows):
                session.add("compiled", [row])

    jobs = [partial(session.measure, *one) for one in work]
    code = 0
    try:
        # a GPU's minutes are for what only a GPU can tell
        for job in [*jobs, lower] if options.device.type == "cuda" else [lower, *jobs]:
            job()
    except KeyboardInterrupt:
        session.say(f"interrupted: {len(session.rows)} rows are kept in {session.file}")
        code = EXIT_SIGINT
    for name in tables.SECTIONS:
        for grid in tables.tables(session.rows, name):
            print(shown(grid))
    written = [*pictures.draw(session.rows, session.stem), session.file] if session.rows else []
    for path in written:
        session.say(f"wrote {path}")
    rivals = [row for row in session.rows if row.get("contender") != "copy"]
    if not code and not rivals:
        raise UserError(f"--only {args.only!r}: accepted: names of contenders, as the tables have")
    if not code and all(row["status"] == Status.MISSING for row in rivals):
        raise UserError(f"nothing was measured: {rivals[0]['why']}")
    late = sum(row["status"] == Status.NOT_REACHED for row in session.rows)
    if late:
        session.say(f"{late} cases or contenders were not reached within --minutes, as rows say")
    ours = [row for row in rivals if str(row.get("contender", "")).startswith(OURS)]
    failed = any(row["status"] in (Status.WRONG, Status.FAILED) for row in ours)
    return code or (EXIT_ERROR if failed else 0)


def shown(grid: tables.Grid) -> str:
    """A table for the terminal, and for a pipe, which has no edge; in Markdown where the package rich is missing."""
    if find_spec("rich") is None:
        return grid.markdown()
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    with console.capture() as text:
        console.print(grid.rich(), "")
    return text.get().rstrip("\n")


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    if args.command == "report":
        for path in report.write(args.out, ROOT / "docs/performance.md"):
            print(f"wrote {path}")
        return 0
    if args.command == "compare":
        grid, slower = compare(*map(Path, args.words), args.threshold or 0.1)
        print(shown(grid))
        return EXIT_ERROR if slower else 0
    if args.command == "first":
        return run_first(args)
    return measure(args, options_of(args))


def run_first(args: argparse.Namespace) -> int:
    """Prints a line of each step of the plan, then all in a table; packs it. EXIT_ERROR: a step failed."""
    try:
        device = options_of(args).device
        kind, precision = device.type, name_of(choose_precision("auto", device).value)
    except (RuntimeError, AssertionError) as error:  # each step says so, too
        kind, precision = "cuda", "auto"
        print(f"PyTorch counts a GPU and cannot use it: {one_line(error)}")
    if kind != "cuda" and not args.quick:
        raise UserError("first: PyTorch finds no GPU; accepted: a GPU, or --quick for a rehearsal")
    make_writable(args.out)
    if find_spec("rich") is None:
        print("the package rich is missing: tables are in Markdown, doctor and trainings left out")
    plan = first.steps(args.out.absolute(), args.quick, kind, precision)
    ended = []
    for one in first.run(plan, args.out.absolute(), args.minutes or float("inf")):
        print(one.line, flush=True)
        ended.append(one)
    print(f"\n{shown(first.table(ended))}\n\nfor an issue: {first.packed(args.out, ended)}")
    return EXIT_ERROR if first.failed(ended) else 0


if __name__ == "__main__":
    run_command(main)
