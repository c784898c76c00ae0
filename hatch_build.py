"""Tags a wheel that holds compiled kernels for the platform they are for."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PlatformTag(BuildHookInterface):
    """Makes the tag ``py3-none-PLATFORM`` if the kernel was compiled into the package, see ``make wheel``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 -- hatchling calls it so
        """Called by hatchling before it builds."""
        if any(Path(self.root, "src/unbraid/native/prebuilt").glob("*.so")):
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data |= {"pure_python": False, "tag": f"py3-none-{platform}"}
