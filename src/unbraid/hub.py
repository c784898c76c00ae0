"""Where a name leads: a folder here, or a model on the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from unbraid.errors import InputError


def local_folder(name: str | os.PathLike[str], patterns: Sequence[str], revision: str | None = None) -> Path:
    """The folder of that name, or else the hub's files, downloaded once.

    Args:
        name: a folder, or a name on the hub.
        patterns: files to fetch from the hub, e.g. ``"*.json"``.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: no such folder, and no such model on the hub or no way to reach it.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(huggingface_hub.snapshot_download(str(name), revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"{name} is neither a folder nor a model that the hub can give ({reason}).") from None
