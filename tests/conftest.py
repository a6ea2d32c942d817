"""What every test shares: where Triton runs, which backend serves a kernel test, the slow switch.

A GPU is for the tests of kernels. Those of the engine compare trainings bit for bit and sentence by
sentence: they find none, here and in the processes that they start, and no processor with instructions for bf16.

Without a GPU the Triton kernels are interpreted. Triton decides that when it is imported, so the
variable is set here, before anything imports it, and taken away again: outside the tests that ask
for the triton backend, CPU tensors go where they go for a user, and so do child processes.
"""

import gc
import inspect
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import SimpleNamespace
from typing import Any

import pytest
import torch

CUDA = torch.cuda.is_available()
START = "spawn" if CUDA else "fork"  # of processes: autograd's threads of a GPU survive no fork

torch.set_num_threads(1)  # tests are small: a second thread mostly waits for the first
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # kernel tests are deterministic
os.environ.setdefault("SPIKETRITON_WHOLE", "1")  # one compile serves all tests of a kind

if CUDA:  # this process keeps it, and what it starts sees none: the engine is tested on the CPU
    torch.cuda.init()
    torch.cuda.device_count()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
    from spiketriton_kernels import backends

    for module in iter_modules(backends.__path__):  # decorates the kernels as interpreted
        if module.name.startswith("triton_"):
            import_module(f"{backends.__name__}.{module.name}")
    del os.environ["TRITON_INTERPRET"]

from spiketriton_kernels import use_backend  # noqa: E402 - Triton must be imported after that


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


COMPILERS = ("c++", "g++", "clang++")


def find_compiler() -> str | None:
    return next(
        filter(shutil.which, [os.environ["CXX"]] if "CXX" in os.environ else COMPILERS), None
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What it needs, and what serves here."""
    where = "on the GPU" if CUDA else "interpreted, as there is no GPU"
    compiler = find_compiler()
    native = f"by {compiler}" if compiler else f"is skipped: install one of {', '.join(COMPILERS)}"
    return [
        "spiketriton: needs no network, no GPU and no account; the whole suite about 13 minutes of a core",
        f"kernels: Triton {where}; compiled C++ {native}",
    ]


@pytest.fixture(autouse=True)
def no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-xdist sets COLUMNS, which would give every pipe an edge."""
    monkeypatch.delenv("COLUMNS", raising=False)


MANY = 45_000
"""Bytes of tests in a folder from which on a second process saves more than its start takes."""


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be missing
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Several processes for the whole suite, two for a large folder; files start sooner in this process alone.

    pytest --numprocesses=N chooses otherwise.
    """
    if config.args_source == pytest.Config.ArgsSource.TESTPATHS:
        return min(os.cpu_count() or 1, 8 if CUDA else 4)
    files = [path for arg in config.args for path in Path(arg).rglob("test_*.py")]
    many = sum(path.stat().st_size for path in files) > MANY or any(map(_starts, files))
    return 2 if many and (os.cpu_count() or 1) > 1 else 0


def _starts(test: Path) -> bool:
    """Whether a file's tests start processes and wait for them."""
    return not {"promises", "pages", "crashes", "ranks"}.isdisjoint(test.parts)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # of several processes
        # files that take long come first, so that none holds up the end: they start processes, or have many tests
        tests = Counter(item.path for item in items)
        items.sort(key=lambda item: (not _starts(item.path), -tests[item.path], item.path))
    skipped = [(not CUDA, "gpu", "needs a CUDA device")]
    skipped.append((not config.getoption("--slow"), "slow", "takes minutes; run with --slow"))
    for item in items:
        for missing, mark, why in skipped:
            if missing and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=why))


def pytest_collection_finish() -> None:
    """What is there by now stays: no collection of garbage, as a race begins with, looks through it, for a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of the small recipe, in a folder that is the present one."""
    from tests.small_runs import SMALL

    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SMALL)
    return "small.toml"


@pytest.fixture
def quick(recipe: str) -> str:
    """The same with the net whose training takes the least."""
    from spiketriton.config import to_toml
    from tests.small_runs import QUICK, small_recipe

    Path(recipe).write_text(to_toml(small_recipe(*QUICK)))
    return recipe


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the train command end without pictures, which take most of a short run's seconds."""
    monkeypatch.setattr("spiketriton.training.session.draw_run", lambda *_: [])


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are files of a few bytes, for tests of what is written where."""
    from matplotlib.figure import Figure

    signature = b"\x89PNG\r\n\x1a\n"
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: file.write(signature))


def need_native() -> None:
    """Skip where there is no C++ compiler. With one, a forced backend that does not build fails."""
    if find_compiler() is None:
        pytest.skip("no C++ compiler: the native backend cannot be built here")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item):
    """A test outside tests/kernels, and what its fixtures train, finds no GPU, and computes in fp32 unless told.

    Nobody has consented to a recipe's code, as a command before it may have.
    """
    with pytest.MonkeyPatch.context() as patch:
        if Path(__file__).parent / "kernels" not in item.path.parents:
            from spiketriton.system import consent

            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setattr("spiketriton.system.machine.bf16_instructions", list)
            consents = ContextVar("consents", default=consent._ask)
            patch.setattr(consent, "_consents", consents)
        return (yield)


@pytest.fixture
def triton_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton kernels serve every tensor: interpreted, or on the GPU where they live on `device`."""
    if not CUDA:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        round_to_nearest(monkeypatch)
        replace_once(monkeypatch)
    elif "device" not in request.fixturenames:
        pytest.skip("its tensors live on the CPU, and Triton compiles here")


def round_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter round float32 to bfloat16 as GPUs do; by itself it cuts bits off."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cut_off = InterpreterBuilder.cast_impl

    def cast(self, source, target):
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            rounded = torch.from_numpy(source.data).to(torch.bfloat16).view(torch.uint16)
            return TensorHandle(rounded.numpy(), target.scalar)
        return cut_off(self, source, target)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast)


@cache
def _builtins(package: Any) -> list[tuple[str, Any]]:
    from triton import language as tl

    return [(name, one) for name, one in inspect.getmembers(package) if tl.core.is_builtin(one)]


def _once_by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of types, which have names and no hash."""
    known: dict[tuple[str, ...], Any] = {}

    def remembered(*types):
        names = tuple(getattr(one, "name", "") for one in types)
        if names not in known:
            known[names] = function(*types)
        return known[names]

    return remembered


def replace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter replace Triton's language for each kernel, not anew for each call in one.

    It looks for what to replace among all names of two modules, which takes longer than the call. It makes a table of
    all types to look one up, and a type and a shape anew for each operand: two fifths of its time. And it computes for
    each sum of integers whether it overflows, only to drop the answer.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    patch, everywhere = interpreter._patch_lang, SimpleNamespace(__globals__={0: tl, 1: tl.core})

    def replace_builtins(package, builder, *scope):
        for name, member in _builtins(package):
            interpreter._patch_attr(package, name, member, builder, *scope)

    def call(self, *args, **kwargs):
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    begin, begun = tl.tensor.__init__, {}

    def begin_once(self, handle, type):
        if type.name not in begun:
            begin(self, handle, type)
            begun[type.name] = vars(self)
        self.__dict__ = {**begun[type.name], "handle": handle, "type": type}

    monkeypatch.setattr(tl.tensor, "__init__", begin_once)
    for owner, name in (
        (interpreter, "_get_np_dtype"),
        (tl.block_type, "with_element_ty"),
        (tl.block_type, "to_ir"),
    ):
        monkeypatch.setattr(owner, name, _once_by_name(getattr(owner, name)))
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
    monkeypatch.setattr(interpreter, "_patch_lang", lambda function: patch(everywhere))
    monkeypatch.setattr(interpreter, "_patch_builtin", replace_builtins)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


@pytest.fixture(params=["triton", "native", "torch"])
def backend(request: pytest.FixtureRequest):
    """Each backend in turn; the test runs with it forced."""
    if request.param == "triton":
        request.getfixturevalue("triton_backend")
    if request.param == "native":
        need_native()
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def device(backend: str) -> torch.device:
    """Where the backend's tensors live."""
    return torch.device("cuda" if CUDA and backend != "native" else "cpu")


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A spiking run, `lif`, and its ANN twin, `ann`."""
    from tests.small_runs import small_trainer  # tests of the kernels need no engine

    root = tmp_path_factory.mktemp("runs")
    for name, kind in (("lif", "lif"), ("ann", "relu")):
        small_trainer(root / name, f"neuron.kind={kind}", "train.epochs=1").fit()
    return root
