"""The wheel of spiketriton: its version, its commit, and its kernels, which an editable installation has beside it.

A commit with the tag v0.1.0 makes a wheel of version 0.1.0, and none if __version__ is another. Any other commit makes
one of 0.1.0+g1234567, and what is no repository, as an sdist, one of what it says of itself.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def version() -> str:
    """For tool.hatch.version. ValueError: the commit is tagged with another version."""
    found = re.search(
        r'^__version__ = "(.+)"$', (ROOT / "spiketriton/version.py").read_text(), re.M
    )
    assert found is not None
    commit, changed = _commit()
    tags = _git("tag", "--points-at", "HEAD", "--list", "v[0-9]*").split() if commit else []
    if tags and f"v{found[1]}" not in tags:
        raise ValueError(f"this commit is tagged {', '.join(tags)}, and __version__ is {found[1]}")
    if not commit or (tags and not changed):
        return found[1]
    return f"{found[1]}+g{commit[:7]}{'.dirty' * changed}"


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        own = self.metadata.version.partition("+")[0]
        build_data["dependencies"].append(f"spiketriton-kernels=={own}")
        commit, changed = _commit()
        if not commit:
            return
        self.commit = Path(tempfile.mkdtemp()) / "commit.txt"
        self.commit.write_text(commit + (" dirty" if changed else "") + "\n")
        build_data["force_include"][str(self.commit)] = "spiketriton/commit.txt"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        for file in build_data["force_include"]:
            if Path(file).name == "commit.txt":
                Path(file).unlink()
                Path(file).parent.rmdir()


def _commit() -> tuple[str, bool]:
    """The commit, and whether files differ from it; "" where there is no repository, as of an sdist within another."""
    if os.path.realpath(_git("rev-parse", "--show-toplevel")) != os.path.realpath(ROOT):
        return "", False
    return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*words: str) -> str:
    """What git says; "" where there is none, or no repository."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(ROOT), *words], capture_output=True, text=True
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
