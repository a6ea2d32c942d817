"""Parts of a recipe by name (models, data sets, losses, neurons): those of this package, of packages and of plugins.

A module registers its parts when it is imported: because the recipe lists it (`plugins.modules`), or because an
installed package names it in an entry point. The names for users are in `spiketriton.plugins`.
"""

import contextlib
import copy
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import Any

from spiketriton.config.words import short
from spiketriton.system import consent
from spiketriton.system.errors import UserError, named_code, one_line

KINDS = {
    "models": "model.name",
    "data": "data.name",
    "losses": "loss.kind",
    "neurons": "neuron.kind",
}
"""The key of the recipe that names a part, by kind of part."""

KIND_OF = {key: kind for kind, key in KINDS.items()}


@dataclass(frozen=True)
class Part:
    """A registered part: what makes it, the table of its own keys, and the module it comes from."""

    kind: str
    name: str
    make: Callable[..., Any]
    options: Any  # a subclass of `spiketriton.config.recipe.Table`, or None
    module: str

    @property
    def selector(self) -> str:
        """The key that chooses it: "model.name"."""
        return KINDS[self.kind]

    @property
    def home(self) -> str:
        """The file or module that registers it, as `plugins.modules` names it."""
        return next((path for path, name in _files.items() if name == self.module), self.module)

    @property
    def table(self) -> str:
        """The table of its own keys: "model.two_layers"."""
        return f"{self.selector.partition('.')[0]}.{self.name}"

    @property
    def built_in(self) -> bool:
        """Whether it comes with this package."""
        return self.module.partition(".")[0] == "spiketriton"

    def of(self, config: Any, **more: Any) -> Any:
        """What it makes of the recipe's table that names it. UserError: it takes other arguments."""
        try:
            inspect.signature(self.make).bind(config, **more)
        except TypeError as error:
            raise self.not_of(one_line(error)) from None
        return self.make(config, **more)

    def not_of(self, why: str) -> UserError:
        """That it cannot be made of its table, as its arguments are others."""
        name = getattr(self.make, "__qualname__", type(self.make).__name__)
        given = inspect.signature(self.make)
        bare = [one.replace(annotation=one.empty) for one in given.parameters.values()]
        table = f"the recipe's [{self.selector.partition('.')[0]}]"
        accepted = [f"{name}(config)", f"{name}(config, channels)"]
        return UserError(
            f'{self.selector} = "{self.name}" of the plugin {self.home}: {name}{inspect.Signature(bare)} cannot be '
            f"called with {table} ({why}); accepted: {' or '.join(accepted[: 1 + (self.kind == 'neurons')])}, where "
            f"config is {table}"
        )

    def checked(self, made: Any, accepted: Any, name: str) -> Any:
        """What it made. UserError: it is none of the `accepted` types, of which `name` is told."""
        if not isinstance(made, accepted):
            raise UserError(
                f'{self.selector} = "{self.name}" of the plugin {self.module} made a {type(made).__name__}; '
                f"accepted: a {name}"
            )
        return made


PARTS: dict[tuple[str, str], Part] = {}
_ROOMS: dict[tuple[str, str], str] = {}  # parts of ours that are imported when a recipe names them
_files: dict[str, str] = {}  # path of a plugin's file -> name of its module
_OWN = "spiketriton_plugin_"  # such a name begins with it, unless the program had imported the file before


def register(part: Part) -> None:
    """Adds a part. UserError: the name is taken by another module (a file imported in two ways is one module)."""
    earlier = PARTS.get((part.kind, part.name))
    if earlier is not None and earlier.module != part.module:
        there, here = (getattr(sys.modules.get(p.module), "__file__", "") for p in (earlier, part))
        if here and there and os.path.realpath(here) == os.path.realpath(there):
            return
        raise UserError(
            f"{part.selector} = {part.name!r} of the plugin {part.home} is registered by "
            f"{earlier.home} already; accepted: another name"
        )
    PARTS[part.kind, part.name] = part


def lies_in(module: str, kind: str, names: Iterable[str]) -> None:
    """Says where parts of ours are registered, which is not imported before a recipe names one."""
    _ROOMS.update(((kind, name), module) for name in names)


@cache
def entry_points(kind: str) -> dict[str, metadata.EntryPoint]:
    """The parts that installed packages offer, by name; nothing is imported yet."""
    return {point.name: point for point in metadata.entry_points(group=f"spiketriton.{kind}")}


def names(kind: str) -> list[str]:
    """The names of all parts of a kind that plugins have registered or installed packages offer."""
    own = {part.name for part in PARTS.values() if part.kind == kind and not part.built_in}
    return sorted(own | set(entry_points(kind)))


def chosen(kind: str, name: str) -> Part:
    """A part, built in or not, that a recipe names."""
    part = find(kind, name)
    assert part is not None
    return part


def find(kind: str, name: str) -> Part | None:
    """A part by name, its package imported if need be. UserError: that package is broken."""
    if kind == "models" and ":" in name:
        module = name.partition(":")[0]  # which knows nothing of this package
        make = in_hand if module == IN_HAND else named_object(name, KINDS[kind])
        return Part(kind, name, make, None, module)
    if (kind, name) not in PARTS and (kind, name) in _ROOMS:
        importlib.import_module(_ROOMS[kind, name])
    if (kind, name) not in PARTS and name in entry_points(kind):
        point = entry_points(kind)[name]
        with _as_a_mistake(f"the plugin {_distribution(point)} ({point.value})"):
            point.load()
        named_code[point.module] = f'{KINDS[kind]} = "{name}" of {_distribution(point)}'
        if (kind, name) not in PARTS:
            raise UserError(
                f"the plugin {_distribution(point)} offers {KINDS[kind]} = {name!r}, but its module "
                f"{point.module} registers none"
            )
    return PARTS.get((kind, name))


IN_HAND = "python"
"""The module in the name of a network that a Python program handed over: "python:NAME"."""

FROM_NIR = "spiketriton.export.nir_network:network"
"""What `model.name` is for a network out of a file of NIR: our own code, which needs no consent."""

_SPIKINGJELLY = "spikingjelly.activation_based.model"
_SHORT = {
    "spikingjelly": (
        _SPIKINGJELLY,
        *(f"{_SPIKINGJELLY}.{name}" for name in ("sew_resnet", "spiking_resnet", "spiking_vgg")),
        f"{_SPIKINGJELLY}.parametric_lif_net",
    )
}


def named_object(name: str, key: str) -> Callable[..., Any]:
    """The function or class that "MODULE:NAME" names. UserError: there is none."""
    module, _, path = name.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
        raise UserError(
            f'{key} = "{short(name)}": accepted: "MODULE:NAME", as in "my_package.nets:make"'
        )
    holders = []
    for home in _SHORT.get(module, (module,)):
        with _as_a_mistake(f'{key} = "{name}": {home}'), _current_folder_first():
            holders.append(importlib.import_module(home))
    for holder in holders:
        with contextlib.suppress(AttributeError):
            found = attrgetter(path)(holder)
            if callable(found):
                if name != FROM_NIR:  # our own
                    named_code[_package(module)] = f'{key} = "{name}"'
                return found
    known = [n for holder in holders for n in dir(holder) if callable(getattr(holder, n))]
    near = difflib.get_close_matches(path, known, n=1)
    tip = f'; did you mean "{module}:{near[0]}"?' if near else ""
    raise UserError(f'{key} = "{name}": {module} has no function or class {path}{tip}')


_handed: list[Any] = []


@contextlib.contextmanager
def handed(net: Any) -> Iterator[None]:
    """Within this block `model.name = "python:..."` is a copy of `net`."""
    _handed.append(net)
    try:
        yield
    finally:
        _handed.pop()


def in_hand() -> Any:
    """A copy of the network of the block. UserError: there is none."""
    if not _handed or _handed[-1] is None:
        raise UserError(
            f'model.name = "{IN_HAND}:..." is a network that a Python program handed over; accepted: '
            "spiketriton.load_run(RUN, net=net), whose run predicts, evaluates, reports and exports, and "
            'spiketriton.train(net, resume=RUN); of commands a network by its module, model.name = "module:Net"'
        )
    try:
        return copy.deepcopy(_handed[-1])
    except (RuntimeError, ValueError) as error:  # of tensors that have a graph, or no size
        raise UserError(
            f"the network cannot be copied: {one_line(error)}; accepted: one that is not in the middle of a window "
            "(functional.reset_net(net) of SpikingJelly), weight norms of torch.nn.utils.parametrizations, and lazy "
            "modules that were called once"
        ) from error


class NotAskedFor(UserError):
    """Code that a run's recipe names, and to which nobody has consented."""


asked_for: set[str] = set()
"""Calls that make networks ("MODULE:NAME(ARGUMENTS)") of recipes that were read here with consent."""


def refuse_unasked(modules: Sequence[str], call: str, named: Sequence[str]) -> None:
    """Refuses code that the recipe of a run names, without consent; what ran in this process before needs none.

    docs/trust.md says what is trusted. `modules`: the run's plugins. `call`: what makes its network, where that is
    a function of somebody else's, or "". `named`: modules to which the caller has consented.
    NotAskedFor: there is no consent.
    """
    new = [words for given in modules if (words := _unseen(given))]
    called = re.findall(r"(\w+(?:\.\w+)*):\w", call.removeprefix(f"{FROM_NIR}("))
    if call not in asked_for and not {*called} <= {*named}:
        files = (f"{module} is {_origin(module) or 'nowhere'}" for module in dict.fromkeys(called))
        new.append(f"{call} ({'; '.join(files)})")
    if new and not consent.given(new):
        raise NotAskedFor(
            f"the recipe names code that would run now: {'; '.join(new)}; if you trust it, add "
            "--trust-plugins, in Python plugins=True"
        )


def _unseen(given: str) -> str:
    """A plugin that has not run in this process, with its file and checksum; "" for others and what is missing."""
    is_file = given.endswith(".py")
    origin = os.path.abspath(given) if is_file else _origin(given)
    if origin is None or (origin in _files if is_file else given in sys.modules):
        return ""
    known = os.path.isfile(origin)
    if is_file and not known:
        return ""
    digest = f"sha256 {_checksum(origin)}" if known else "no file"
    return f"{given} ({digest})" if origin == given else f"{given} ({origin}, {digest})"


def _checksum(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _origin(module: str) -> str | None:
    """Where a module would be imported from, found without importing anything; None: nowhere."""
    top, *names = module.split(".")
    spec = None
    with contextlib.suppress(ImportError, ValueError), _current_folder_first():
        spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    origin = spec.origin or top
    for depth in range(1, len(names) + 1):
        places = [*(spec.submodule_search_locations or ())]
        spec = importlib.machinery.PathFinder.find_spec(".".join([top, *names[:depth]]), places)
        if spec is None:
            break
        origin = spec.origin or origin
    return origin


def load(modules: Sequence[str]) -> None:
    """Imports plugins: names of modules, or paths of Python files. UserError: one cannot be imported."""
    for given in modules:
        if given.endswith(".py"):
            _load_file(given)
        else:
            with _as_a_mistake(f"plugins.modules: {given}"), _current_folder_first():
                importlib.import_module(given)
            named_code[_package(given)] = f"plugins.modules: {given}"


def provided(part: Part, modules: Sequence[str]) -> bool:
    """Whether a recipe with these plugins may use a part: one of them registers it, or it is installed."""
    installed = ":" in part.name or part.name in entry_points(part.kind)
    return listed(part, modules) or installed


def listed(part: Part, modules: Sequence[str]) -> bool:
    """Whether one of the modules registers a part."""
    roots = {_files.get(os.path.abspath(given), given) for given in modules}
    return any(part.module == root or part.module.startswith(f"{root}.") for root in roots)


class _SourceAlone(importlib.machinery.SourceFileLoader):
    """Runs the file itself, whose checksum is shown, and never compiled code that lies beside it."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load_file(given: str) -> None:
    path = os.path.abspath(given)
    if path in _files:
        return
    if not os.path.isfile(path):
        raise UserError(f"plugins.modules: no such file {path}")
    if known := _already(Path(path)):
        _files[path] = known
        named_code[known] = f"plugins.modules: {path}"
        return
    name = f"{_OWN}{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_SourceAlone(name, path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name], _files[path] = module, name
    try:
        with _as_a_mistake(f"plugins.modules: {path}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name], _files[path]
        raise
    named_code[name] = f"plugins.modules: {path}"


def _already(path: Path) -> str:
    """The module by which a plugin's file, or a copy of it, has run in this process; "" for none."""
    content = path.read_bytes()
    for name, module in [*sys.modules.items()]:
        file = "" if name.startswith(_OWN) else getattr(module, "__file__", None) or ""
        if os.path.basename(file) == path.name and os.path.realpath(file) == os.path.realpath(path):
            return name
    for other, name in _files.items():
        if os.path.isfile(other) and Path(other).read_bytes() == content:
            return name
    return ""


@contextlib.contextmanager
def _as_a_mistake(what: str) -> Iterator[None]:
    """Reports whatever an import raises in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{what} cannot be imported: {why}") from error


def _package(module: str) -> str:
    """Where the code of a network may lie beside the module that is named; of torch's packages and ours, it alone."""
    top = module.partition(".")[0]
    return module if top in ("torch", "torchvision", "spiketriton", "spiketriton_kernels") else top


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    """Imports from the current folder too, as `python -m` does and console commands do not."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())


def _distribution(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
