"""The wheels of spiketriton and of its kernels: their version, their commit, and what one has of the other.

A commit with the tag v0.1.0 makes wheels of version 0.1.0, and none if __version__ is another; that of spiketriton
requires exactly that of the kernels, from the index that both are published on. Any other commit makes them of
0.1.0+g1234567, and what is no repository, as an sdist, of what it says of itself: there the wheel of spiketriton has
the kernels in it.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).parent
ROOT = KERNELS.parent


def version() -> str:
    """For tool.hatch.version. ValueError: the commit is tagged with another version."""
    said = (KERNELS / "spiketriton_kernels/__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "(.+)"$', said, re.M)
    assert found is not None
    commit, changed, tags = _commit()
    if tags and f"v{found[1]}" not in tags:
        raise ValueError(f"this commit is tagged {', '.join(tags)}, and __version__ is {found[1]}")
    if not commit or (tags and not changed):
        return found[1]
    return f"{found[1]}+g{commit[:7]}{'.dirty' * changed}"


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        commit, changed, tags = _commit()
        inside = build_data["force_include"]
        packages = [self.metadata.name.replace("-", "_")]
        if packages == ["spiketriton"] and tags and not changed:
            requirement = (
                f"spiketriton-kernels==={self.metadata.version}"  # == takes 0.1.0+g1234567
            )
            build_data["dependencies"].append(requirement)
        elif packages == ["spiketriton"]:
            packages.append("spiketriton_kernels")
            inside[str(KERNELS / "spiketriton_kernels")] = "spiketriton_kernels"
        self.folder = tempfile.TemporaryDirectory()
        for package in packages if commit else []:
            file = Path(self.folder.name, package)
            file.write_text(f"{commit}{' dirty' * changed}\n")
            inside[str(file)] = f"{package}/commit.txt"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable" and self.target_name == "wheel":
            self.folder.cleanup()


def _commit() -> tuple[str, bool, list[str]]:
    """The commit, whether files differ, its tags; "": no checkout, as an sdist within another."""
    top = _git("rev-parse", "--show-toplevel")
    if os.path.realpath(top) != os.path.realpath(ROOT) or not (ROOT / "spiketriton").is_dir():
        return "", False, []
    changed = bool(_git("status", "--porcelain", "--untracked-files=no"))
    tags = _git("tag", "--points-at", "HEAD", "--list", "v[0-9]*").split()
    return _git("rev-parse", "HEAD"), changed, tags


def _git(*words: str) -> str:
    """What git says; "" where there is none, or no repository."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(ROOT), *words], capture_output=True, text=True
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
