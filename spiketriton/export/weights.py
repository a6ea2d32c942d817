"""A trained network as safetensors.

A file holds the weights of one checkpoint and, in its metadata, the resolved recipe and what the network was trained
on; reading it runs no code. `training.weights` makes a run of it, at the step of that checkpoint, without an optimizer.
"""

import json
from pathlib import Path

from spiketriton.config.parts import FROM_NIR
from spiketriton.runs.rows import replace_file
from spiketriton.system.errors import UserError, need
from spiketriton.system.version import __version__
from spiketriton.training.trained import TrainedRun


def refuse_weights(run: TrainedRun) -> None:
    """UserError: the weights alone are not the network."""
    if run.recipe.model.name == FROM_NIR:
        raise UserError(
            f"{run.folder.path} was imported from a file of NIR, which holds its constants and which safetensors do "
            "not hold; accepted: a trained network of a recipe"
        )


def export_safetensors(run: TrainedRun, path: Path, mark: str = "spiketriton") -> float:
    """Writes a run's weights, unless what is read back differs: the largest difference. UserError: it cannot."""
    refuse_weights(run)
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
    package = need("safetensors.torch", "weights")
    content = package.save(tensors, metadata)
    again = package.load(content)
    apart = [(again[n].double() - t.double()).abs() for n, t in tensors.items() if t.numel()]
    difference = max((float(one.max()) for one in apart), default=0.0)
    if difference == 0:
        replace_file(path, content)
    return difference
