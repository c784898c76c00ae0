"""Files that are whole or not there, whatever happens while they are written; and recipes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from unbraid.errors import InputError


def read_toml(path: Path) -> dict[str, Any]:
    """The fields of a recipe.

    Raises:
        InputError: it is missing, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"there is no recipe {path}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not a TOML file ({error}).") from error


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around what a run writes beside its training, which the same command writes again.

    Raises:
        InputError: the disk is full or cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error}): free space there and run the same command again to continue."
        ) from error


def write_atomically(folder: Path | str, write: Callable[[Path], object]) -> None:
    """Fills a folder so that a failure or a kill on the way leaves what was there.

    Everything is written beside the folder and forced to the disk first. A new folder then appears in one rename;
    in a folder that exists each written file takes its place in one rename, and other files stay.

    Args:
        folder: to fill.
        write: called with the temporary folder that it shall write to.

    Raises:
        OSError: the disk is full or cannot be written; the temporary folder is gone again.
    """
    folder = Path(folder).resolve()
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)  # mostly there is none
    partial.mkdir(parents=True)
    try:
        write(partial)
        written = [path.relative_to(partial) for path in sorted(partial.rglob("*"))]
        for path in written:
            sync(partial / path)
        sync(partial)
        if folder.exists():
            for path in written:
                if (partial / path).is_dir():
                    (folder / path).mkdir(exist_ok=True)
                else:
                    (partial / path).replace(folder / path)
                sync((folder / path).parent)
        else:
            partial.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone after the rename; a failure here must not hide another


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file in the place of the former one, in one rename.

    Raises:
        OSError: the disk is full or cannot be written; the former file is untouched.
    """
    partial = partial_of(path)
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file in the place of the former one; see :func:`replace_bytes`."""
    replace_bytes(path, text.encode())


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes lines of UTF-8 text as they come; the file appears under its name when the last is written.

    What stands under the name and is no file, as a pipe or a device, gets them as they come.

    Raises:
        OSError: the disk is full or cannot be written; the former file is untouched, and what was written stands in
            :func:`partial_of` it.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path) if path.is_file() or not path.exists() else path
    with partial.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line + "\n")
    if partial != path:
        sync(partial)
        partial.replace(path)
        sync(path.parent)


def partial_of(path: Path) -> Path:
    """Where a file or a folder is until it is whole."""
    return path.with_name(f".{path.name}.partial")
