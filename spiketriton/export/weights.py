"""A trained network as safetensors and a model card, and the Hub that they are handed on by.

A file holds the weights of one checkpoint and, in its metadata, the resolved recipe and what the network was trained
on; reading it runs no code. A run that is made of it is one at the step of that checkpoint, without an optimizer.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from spiketriton.config import recipe_from_toml
from spiketriton.config.parts import FROM_NIR
from spiketriton.data import Facts
from spiketriton.evaluate.results import read_evaluation
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.rows import replace_file
from spiketriton.system.errors import UserError, need, one_line
from spiketriton.system.plain import of_plain
from spiketriton.system.version import __version__
from spiketriton.training.trained import TrainedRun, save_run
from spiketriton_kernels.cache import cache_folder

FILE = "model.safetensors"
HUB = "hub:"


def export_safetensors(run: TrainedRun, path: Path, mark: str = "spiketriton") -> float:
    """Writes a run's weights, unless what is read back differs: the largest difference. UserError: it cannot."""
    if run.recipe.model.name == FROM_NIR:
        raise UserError(
            f"{run.folder.path} was imported from a file of NIR, which holds its constants and which safetensors do "
            "not hold; accepted: a trained network of a recipe"
        )
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in run.model.state_dict().items()}
    more = {"conversion": json.dumps(run.conversion)} if run.conversion is not None else {}
    metadata = {
        "format": "pt",
        "written_by": mark,
        "version": __version__,
        "name": run.recipe.name,
        "recipe": run.recipe.to_toml(),
        "data": json.dumps(run.facts.state_dict()),
        "step": str(run.step),
        **more,
    }
    package = need("safetensors.torch", "hub")
    content = package.save(tensors, metadata)
    again = package.load(content)
    apart = [(again[n].double() - t.double()).abs() for n, t in tensors.items() if t.numel()]
    difference = max((float(one.max()) for one in apart), default=0.0)
    if difference == 0:
        replace_file(path, content)
    return difference


def make_run(file: Path, path: str | Path | None) -> RunFolder:
    """A run folder at `path` of a file that `export_safetensors` wrote. UserError: it is another file, or damaged."""
    package = need("safetensors", "hub")
    try:
        with package.safe_open(file, "pt") as opened:
            said = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        facts = Facts.of_state(of_plain(dict[str, Any], json.loads(said["data"]), "data"))
        step = int(said["step"])
        more = {name: json.loads(said[name]) for name in ("conversion",) if name in said}
        of_plain(dict[str, dict[str, Any]], more)
        text, name = said["recipe"], said["name"]
    except (KeyError, ValueError, OSError, package.SafetensorError) as error:
        raise UserError(
            f"{file} is not what spiketriton export --to safetensors writes: {type(error).__name__} {one_line(error)}"
        ) from None
    folder = RunFolder.create(path, name)
    try:
        with folder.held():
            recipe = recipe_from_toml(text, name, of_run=folder.path)
            save_run(folder, recipe, facts, tensors, torch.device("cpu"), step=step, **more)
    except UserError as error:
        raise type(error)(f"{file}: {error}") from None
    return folder


def card(run: TrainedRun) -> str:
    """The README of a model: how it is used, what it reached where it was evaluated, its recipe."""
    found = run.folder.path / "evaluation" / "evaluation.json"
    lines = [f"Trained on {run.facts.label} for {run.step:,} steps by spiketriton {__version__}."]
    if found.exists():
        one = read_evaluation(found)
        lines.append(
            f"Accuracy {100 * one.accuracy[one.time_steps - 1]:.2f} % at T = {one.time_steps} on {one.tested} "
            f"(checkpoint {one.checkpoint}); a neuron spikes in {100 * one.mean_rate:.1f} % of the steps."
        )
    else:
        lines.append("It was not evaluated before it was pushed.")
    return (
        "---\nlibrary_name: spiketriton\ntags: [spiking-neural-network]\n---\n"
        f"# {run.recipe.name}\n\n" + "\n".join(lines) + "\n\n```python\nimport spiketriton\n\n"
        'run = spiketriton.load_run("hub:OWNER/NAME")\n```\n\n'
        f"```toml\n{run.recipe.to_toml()}```\n"
    )


def push(run: TrainedRun, name: str, *, private: bool = False) -> str:
    """Puts a run's weights, recipe and card into the repository `name` ("OWNER/NAME") of the Hub: its address."""
    hub = need("huggingface_hub", "hub")
    staged = run.folder.path / "hub"
    staged.mkdir(exist_ok=True)
    export_safetensors(run, staged / FILE)
    replace_file(staged / "recipe.toml", run.recipe.to_toml())
    replace_file(staged / "README.md", card(run).replace("OWNER/NAME", name))
    api = hub.HfApi()
    with _hub(name):
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=staged))


def handed_on(source: str) -> bool:
    """Whether a source of weights is "hub:OWNER/NAME" or a file that `export_safetensors` wrote."""
    return source.startswith(HUB) or source.endswith(".safetensors")


def run_of(source: str) -> Path:
    """The run folder of `load_run(source)`, a file or "hub:OWNER/NAME", made once for each content. UserError."""
    hub = source.startswith(HUB)
    file = download(source.removeprefix(HUB)) if hub else Path(source)
    try:
        content = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    path = cache_folder() / "weights" / content
    return path if (path / "recipe.toml").exists() else make_run(file, path).path


def download(name: str, revision: str | None = None) -> Path:
    """The file of a network of the Hub, "OWNER/NAME". UserError: there is none, or no connection."""
    hub = need("huggingface_hub", "hub")
    with _hub(name):
        return Path(hub.hf_hub_download(name, FILE, revision=revision))


@contextlib.contextmanager
def _hub(name: str) -> Iterator[None]:
    """What the Hub and its client refuse, in one line."""
    errors = need("huggingface_hub.errors", "hub")
    refused = errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError
    try:
        yield
    except refused as error:
        raise UserError(f"hub:{name}: {one_line(error)[:300]}") from None
    except OSError as error:
        raise UserError(f"hub:{name} cannot be reached: {one_line(error)[:300]}") from None
