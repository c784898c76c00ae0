"""Builds the C++ kernel once, on first use, into a cache of the user's."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import sysconfig
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

_SOURCE = Path(__file__).parent
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-std=c++20"]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "unbraid"


def _processor() -> str:
    """What -march=native looks at."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + platform.processor() + "".join(sorted({x for x in lines if x.startswith(names)}))


def _key() -> str:
    """Another torch, source, flag or processor needs a build of its own."""
    digest = hashlib.sha256("\0".join([torch.__version__, *_FLAGS, _processor()]).encode())
    for file in sorted([*_SOURCE.glob("*.h"), *_SOURCE.glob("*.cpp")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def _build(target: Path) -> None:
    from torch.utils import cpp_extension  # slow to import, and needed for this only

    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        raise FileNotFoundError(f"there is no C++ compiler ({compiler}); install one, such as g++")
    path = os.environ.get("PATH", "")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # ninja is installed beside this interpreter, which need not be on the path.
        os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), path])
        try:
            cpp_extension.load(
                target.stem,
                str(_SOURCE / "kernel.cpp"),
                extra_cflags=_FLAGS,
                extra_ldflags=["-fopenmp"],
                build_directory=folder,
                is_python_module=False,
            )
        finally:
            os.environ["PATH"] = path
        (Path(folder) / f"{target.stem}.so").replace(target)


@functools.cache
def _load() -> str | None:
    try:
        target = _cache() / f"attention-{_key()}.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            torch.ops.load_library(target)
            return None
        with FileLock(target.with_suffix(".lock")):
            if target.exists():
                torch.ops.load_library(target)
            else:
                _build(target)
    except Exception as error:  # whatever goes wrong in building, the answer is that the kernel is not there
        reason = str(error).strip().splitlines()
        return (
            f"the native attention kernel cannot be built or loaded: {reason[0] if reason else type(error).__name__}."
        )
    return None


@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    """Loads the kernel, building it the first time; says in one sentence why it cannot, None if it is there."""
    return _load()
