"""Where a name leads: a folder here, a model of this package, or one on the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import huggingface_hub

from unbraid.errors import InputError

SHIPPED = ("unbraid-mini-en",)
"""The models that come with this package, by name."""


def local_folder(name: str | os.PathLike[str], patterns: Sequence[str], revision: str | None = None) -> Path:
    """The folder of that name, or of that model of this package, or else the hub's files, downloaded once.

    Args:
        name: a folder, one of :data:`SHIPPED`, or a name on the hub.
        patterns: files to fetch from the hub, e.g. ``"*.json"``.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: no such folder, and no such model on the hub or no way to reach it.
    """
    if os.path.isdir(name):  # noqa: PTH112, of a name too long for a folder Path.is_dir raises
        return Path(name)
    if str(name) in SHIPPED:
        return Path(str(resources.files("unbraid") / "data" / str(name)))
    try:
        return Path(huggingface_hub.snapshot_download(str(name), revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"{name} is neither a folder nor a model of this package ({', '.join(SHIPPED)}) "
            f"nor one that the hub can give ({reason})."
        ) from None
