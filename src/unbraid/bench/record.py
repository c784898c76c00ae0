"""The file of results, whole after each cell; and what one must know to read its numbers."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from unbraid.bench.measure import Cell, Outcome
from unbraid.errors import InputError
from unbraid.files import replace_text

_PACKAGES = ("unbraid", "torch", "transformers", "onnx", "onnxruntime", "openvino", "disentangled-flash")
_EXTENSIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "bf16")


class Record:
    """A JSON file of cells under what was measured, where and with what.

    Attributes:
        content: as it stands in the file.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        """Opens a file that may hold cells already.

        Raises:
            InputError: the file is no result, or its cells were measured otherwise than ``about`` says.
        """
        self.path = path
        self.content = {**about, "date": datetime.date.today().isoformat(), "cells": []}
        if path.exists():
            self.content = read(path)
            if different := [name for name in about if self.content.get(name) != about[name]]:
                raise InputError(
                    f"{path} was measured with another {different[0]}; give another --output, or delete it to measure "
                    "anew."
                )

    def holds(self, cell: Cell) -> bool:
        """Whether the cell is measured already."""
        return any(cell.key.items() <= known.items() for known in self.content["cells"])

    def add(self, cell: Cell, outcomes: Sequence[Outcome]) -> None:
        """Writes a cell."""
        contestants = [dataclasses.asdict(outcome) for outcome in outcomes]
        self.content["cells"].append({**cell.key, "contestants": contestants})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.path, json.dumps(self.content, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """The content of a file of results.

    Raises:
        InputError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {"benchmark", "cells"} <= content.keys():
        raise InputError(f"{path} is not a file of results; give another --output, or delete it.")
    return content


def surroundings(threads: int) -> dict[str, Any]:
    """Machine, threads, versions and commit."""
    import psutil
    import torch

    capabilities = torch.cpu.get_capabilities()
    return {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "extensions": {name: bool(capabilities.get(name)) for name in _EXTENSIONS if name in capabilities},
            "system": f"{platform.system()} {platform.machine()}",
        },
        "threads": threads,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the checkout that this package lies in, if it does; marked if its source differs from it."""
    root, git = Path(__file__).parents[3], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None

    def ask(*arguments: str) -> str:
        command = [git, "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, our own command

    try:
        commit = ask("rev-parse", "HEAD")
        return f"{commit} and changes" if ask("status", "--porcelain", "--", "src") else commit
    except subprocess.CalledProcessError:
        return None
