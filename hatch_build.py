"""The wheel of spiketriton needs spiketriton-kernels, whose code an editable installation has beside it."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel" and version != "editable":
            own = self.metadata.version
            build_data["dependencies"].append(f"spiketriton-kernels=={own}")
