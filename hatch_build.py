"""The wheel of spiketriton needs spiketriton-kernels, whose code an editable installation has beside it.

It says of which commit it is, and no wheel is built of a commit whose tag is that of another version.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        own = self.metadata.version
        build_data["dependencies"].append(f"spiketriton-kernels=={own}")
        if os.path.realpath(self._git("rev-parse", "--show-toplevel")) != os.path.realpath(
            self.root
        ):
            return  # of an sdist, which may lie in another repository
        tags = self._git("tag", "--points-at", "HEAD", "--list", "v[0-9]*").split()
        if tags and f"v{own}" not in tags:
            raise ValueError(f"this commit is tagged {', '.join(tags)}, and __version__ is {own}")
        changed = self._git("status", "--porcelain", "--untracked-files=no")
        self.commit = Path(tempfile.mkdtemp()) / "commit.txt"
        self.commit.write_text(
            self._git("rev-parse", "HEAD") + (" dirty" if changed else "") + "\n"
        )
        build_data["force_include"][str(self.commit)] = "spiketriton/commit.txt"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        for file in build_data["force_include"]:
            if Path(file).name == "commit.txt":
                Path(file).unlink()
                Path(file).parent.rmdir()

    def _git(self, *words: str) -> str:
        """What git says; "" where there is none, or no repository."""
        try:
            done = subprocess.run(
                ["git", "--no-optional-locks", "-C", self.root, *words],
                capture_output=True,
                text=True,
            )
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""
