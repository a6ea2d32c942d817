"""What a network begins with: weights of another one, as far as they fit, and parameters that stay."""

import contextlib
import difflib
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from spiketriton.config.words import some
from spiketriton.models import Network
from spiketriton.neurons import Norm
from spiketriton.runs.checkpoint import Checkpoints, DamagedCheckpoint, read_checkpoint
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError, one_line, warn

TORCHVISION = "torchvision:"
NESTED = ("model", "state_dict", "model_state_dict", "net")  # where other trainers keep the weights
SPIKINGJELLY = (  # its names, as patterns, and what they are here
    (r"\b(?:sn|spike)(\d)\.", r"neuron\1."),  # spiking_resnet and sew_resnet; ms_resnet
    (r"\bdownsample_sn\.", r"downsample.2."),  # sew_resnet
    (r"^stem\.0\.", "conv1."),  # ms_resnet, to the end
    (r"^stem\.1\.", "bn1."),
    (r"^head_lif\.", "neuron_last."),
    (r"^head\.", "fc."),
    (r"\bconv(\d)\.module\.0\.", r"conv\1."),  # the code of the SEW-ResNet paper, to the end
    (r"\bconv(\d)\.module\.1\.", r"bn\1."),
    (r"\bdownsample\.0\.module\.(\d)\.", r"downsample.\1."),
)


class Weights(dict[str, Tensor]):
    """Tensors by name, and the classes that their head tells apart, () where that is not known."""

    classes: tuple[str, ...] = ()


@dataclass
class Taken:
    """What was taken of other weights, and what was left, with the reason."""

    source: str
    taken: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)  # of these, the source's name and ours
    left: dict[str, str] = field(default_factory=dict)  # of the source, and why
    fresh: list[str] = field(default_factory=list)  # of the network

    def lines(self) -> list[str]:
        """In words, a few names of each."""
        lines = [f"weights: {len(self.taken)} tensors taken from {self.source}"]
        if self.renamed:
            pairs = [f"{theirs} as {ours}" for theirs, ours in self.renamed.items()]
            lines.append(f"  under SpikingJelly's names: {some(pairs, 4)}")
        reasons: dict[str, list[str]] = {}
        for name, why in self.left.items():
            reasons.setdefault(why, []).append(name)
        lines += [f"  left, {why}: {some(names, 4)}" for why, names in reasons.items()]
        return lines + [f"  not in it, as the recipe begins: {some(self.fresh, 4)}"] * bool(
            self.fresh
        )


def refuse_missing_weights(source: str) -> None:
    """UserError: `train.init_from` names nothing that there is. Quick: it is asked before data are looked at."""
    if source.startswith(TORCHVISION):
        _known(source.removeprefix(TORCHVISION))
    elif not Path(source).exists():
        raise UserError(
            f"train.init_from: {source} does not exist; accepted: a run folder, a file of weights, or "
            "torchvision:NAME"
        )


def find_weights(source: str) -> Weights:
    """The weights that `train.init_from` names, on the CPU; "module." in front of names is dropped. UserError.

    The ANN twins of plain-block ResNets have torchvision's names.
    """
    refuse_missing_weights(source)
    data: Any = None
    if source.startswith(TORCHVISION):
        found: Any = _of_torchvision(source.removeprefix(TORCHVISION))
    elif Path(source).is_dir():
        folder = RunFolder.find(source)
        state = Checkpoints(folder.checkpoints, warn).load()
        if state is None:
            raise UserError(f"train.init_from: {source} holds no checkpoint yet")
        found, data = state["model"], state.get("data")
    else:
        found, data = _of_file(Path(source))
    weights = {name.removeprefix("module."): value for name, value in found.items()}
    # surrogates' widths are no weights: each recipe has its own
    kept = Weights({n: value for n, value in weights.items() if not n.endswith("_extra_state")})
    with contextlib.suppress(KeyError, TypeError):  # a file of another program may have any "data"
        kept.classes = tuple(map(str, data["classes"]))
    return kept


def _known(name: str) -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        tip = (
            f"did you mean {TORCHVISION}{near[0]}?" if near else "accepted: as torchvision:resnet50"
        )
        raise UserError(f"train.init_from: torchvision has no model {name!r}; {tip}")


def _of_torchvision(name: str) -> dict[str, Tensor]:
    try:
        return torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    except OSError as error:
        raise UserError(
            f"train.init_from: the weights of {TORCHVISION}{name} cannot be downloaded ({one_line(error)}); "
            "put the file into torch's cache, or give its path"
        ) from None


def _of_file(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a file, and what it says of its data."""
    try:
        state = read_checkpoint(path)
    except DamagedCheckpoint:  # or another program's
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise UserError(
                f"train.init_from: {path} is no file of weights: {one_line(error).split('. ')[0]}"
            ) from None
    data = state.get("data") if isinstance(state, dict) else None
    for name in NESTED:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    weights = (
        {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    )
    if not weights:
        raise UserError(
            f"train.init_from: {path} holds no weights; accepted: a state_dict of tensors"
        )
    return weights, data


@torch.no_grad()
def take_weights(
    model: Network, weights: dict[str, Tensor], source: str, classes: Sequence[str]
) -> Taken:
    """Copies what fits by name and shape. A head for other classes stays new. UserError: nothing fits.

    classes: those that the network is to tell apart, in the order of its outputs.

    A name that the network does not have may be one of SpikingJelly's ResNets (or of the SEW paper's code), which
    compute the same as blocks "plain", "sew" with ADD, and "ms" with stem "strided".
    """
    saved, tensors = model.state_dict(), chain(model.named_parameters(), model.named_buffers())
    own = {name: tensor for name, tensor in tensors if name in saved}
    report = Taken(source)
    ours = {given: given for given in weights}
    for given in (name for name in weights if name not in own):
        for pattern, name in SPIKINGJELLY:
            ours[given] = re.sub(pattern, name, ours[given])
    layers_of_another_shape = {  # of which no bias and no counter is taken either
        name.rpartition(".")[0]
        for given, name in ours.items()
        if name in own and own[name].shape != weights[given].shape
    }
    theirs = weights.classes if isinstance(weights, Weights) else ()
    head = _head_of(model, len(classes)) if theirs and theirs != (*classes,) else ""
    for given, name in ours.items():
        if name not in own or (name != given and name in weights):
            report.left[given] = "which this network does not have"
        elif name.rpartition(".")[0] in layers_of_another_shape:
            report.left[given] = "of another shape" + " (a new head)" * name.startswith("fc.")
        elif name.rpartition(".")[0] == head:
            report.left[given] = "of other classes (a new head)"
        else:
            own[name].copy_(weights[given])
            report.taken.append(name)
            if name != given:
                report.renamed[given] = name
    known = {*weights, *ours.values()}
    report.fresh = [name for name in own if name not in known]
    matrices = [name for name in report.taken if own[name].ndim > 1]
    if not matrices and (not report.taken or any(w.ndim > 1 for w in weights.values())):
        raise UserError(
            f"train.init_from: nothing in {source} fits this network: it holds {_shapes(weights)}, and "
            f"the network {_shapes(own)}"
        )
    return report


def _head_of(model: Network, outputs: int) -> str:
    """The name of the last layer with as many outputs; "" for none."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d)
    found = [
        n for n, m in model.named_modules() if isinstance(m, layers) and len(m.weight) == outputs
    ]
    return found[-1] if found else ""


def freeze(model: Network, patterns: Sequence[str]) -> None:
    """Keeps the parameters that `train.freeze` names as they are. UserError: a pattern names none.

    A pattern is the name of a parameter or of a layer, with * for any text.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        named = [n for n in parameters if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")]
        if not named:
            layers = sorted({n.rpartition(".")[0] for n in parameters})
            near = difflib.get_close_matches(pattern, layers) or layers[:3]
            raise UserError(
                f'train.freeze: "{pattern}" names no parameter; accepted: as {", ".join(near)}'
            )
        for name in named:
            parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise UserError(
            "train.freeze leaves nothing to train; accepted: patterns that leave a layer"
        )
    model.frozen = [
        norm for norm in model.modules() if isinstance(norm, Norm) and not norm.weight.requires_grad
    ]
    model.train(model.training)


def _shapes(weights: dict[str, Tensor]) -> str:
    return some([f"{name} {[*value.shape]}" for name, value in weights.items()], 4)
