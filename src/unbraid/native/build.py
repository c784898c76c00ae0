"""The compiled kernel: a copy that came with the package, or one built here once, on first use, into a cache.

Another torch, source, flag or processor needs another build, so the name of a build is made of all of them. A copy in
the package is compiled for a level that many processors share (prebuild.py makes them).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout

_SOURCE = Path(__file__).parent
PREBUILT = _SOURCE / "prebuilt"
_FLAGS = ["-O3", "-fopenmp", "-std=c++20"]

LEVELS = {
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl avx2 bmi1 bmi2 fma f16c abm movbe",
    "x86-64-v3": "avx2 bmi1 bmi2 fma f16c abm movbe",
    "armv8-a": "asimd",
}
"""The levels that copies are compiled for, the best first, and what Linux calls the features that they take."""


class Kernel(NamedTuple):
    """What came of loading the kernel."""

    path: Path | None
    """The library that runs."""
    fault: str | None
    """Why there is none, in one clause."""


def cache_folder() -> Path | None:
    """Where builds are kept: in XDG_CACHE_HOME, or in ``.cache`` of the home folder, or nowhere without either."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(given) if given else Path.home() / ".cache") / "unbraid"
    except RuntimeError:  # no home folder
        return None


def processor() -> dict[str, str]:
    """What Linux says about the processor in so far as a build depends on it; empty elsewhere."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {name: facts[name] for name in ("model name", "flags", "Features", "CPU part") if name in facts}


def features() -> set[str]:
    """The instruction sets of the processor, as Linux calls them."""
    facts = processor()
    return set((facts.get("flags") or facts.get("Features", "")).split())


def levels() -> list[str]:
    """The levels of :data:`LEVELS` that this processor can run, the best first."""
    able = features()
    return [level for level, needs in LEVELS.items() if able.issuperset(needs.split())]


def _name(level: str) -> str:
    facts = [platform.machine(), platform.processor(), *processor().values()] if level == "native" else []
    digest = hashlib.sha256("\0".join([torch.__version__, *_FLAGS, level, *facts]).encode())
    for file in sorted([*_SOURCE.glob("*.h"), *_SOURCE.glob("*.cpp")]):
        digest.update(file.read_bytes())
    return f"kernel-{level}-{digest.hexdigest()[:20]}.so"


def _compile(target: Path, level: str) -> None:
    """Compiles the kernel; the target appears whole or not at all."""
    import ninja
    from torch.utils import cpp_extension  # slow to import, and needed for this only

    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        raise FileNotFoundError(f"there is no C++ compiler ({compiler}); install one, such as g++")
    _say("building the native attention kernel, once (about 15 s)")
    path = os.environ.get("PATH", "")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        os.environ["PATH"] = os.pathsep.join(filter(None, [ninja.BIN_DIR, path]))
        try:
            cpp_extension.load(
                Path(folder).name,  # a name of its own: the builder changes one that it has met before
                str(_SOURCE / "kernel.cpp"),
                extra_cflags=[*_FLAGS, f"-march={level}"],
                extra_ldflags=["-fopenmp"],
                build_directory=folder,
                is_python_module=False,
            )
        finally:
            os.environ["PATH"] = path
        next(Path(folder).glob("*.so")).replace(target)


def _say(what: str) -> None:
    print(f"unbraid: {what}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keeps other processes from building the same."""
    lock = FileLock(target.with_suffix(".lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _say("waiting for another process that is building the native attention kernel")
            lock.acquire()
    except OSError as error:
        raise OSError(
            f"its cache {target.parent} cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
        ) from error
    try:
        yield
    finally:
        lock.release()


def prebuild(level: str) -> Path:
    """Compiles a copy for the package."""
    copy = PREBUILT / _name(level)
    _compile(copy, level)
    return copy


def _opened(library: Path) -> bool:
    """Loads a library; False if it is not there or was made for another system."""
    try:
        torch.ops.load_library(library)
    except OSError:
        return False
    return True


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _whole(library: Path) -> bool:
    """Whether a build in the cache is as it was made: to open one that was cut short can kill the process."""
    try:
        return library.with_suffix(".sha256").read_text() == _checksum(library)
    except OSError:
        return False


def _load() -> Path:
    copies = (PREBUILT / _name(level) for level in levels())
    copy = next(filter(_opened, copies), None)
    if copy is not None:
        return copy
    cache = cache_folder()
    if cache is None:
        raise RuntimeError("there is no home folder for its cache; set XDG_CACHE_HOME to a folder")
    target = cache / _name("native")
    if not (_whole(target) and _opened(target)):
        with _alone(target):
            if not (_whole(target) and _opened(target)):
                _compile(target, "native")
                target.with_suffix(".sha256").write_text(_checksum(target))
    return target


@functools.cache
def load() -> Kernel:
    """Loads the kernel, once, building it where that has to be."""
    try:
        return Kernel(_load(), None)
    except Exception as error:  # whatever goes wrong in building, the answer is that the kernel is not there
        lines = str(error).strip().splitlines() or [type(error).__name__]
        told = next((line for line in lines if "error:" in line), lines[0])
        return Kernel(None, told.strip().rstrip("."))


@torch.compiler.assume_constant_result
def unavailable() -> str | None:
    """Loads the kernel, building it the first time; says in one sentence why it cannot, None if it is there."""
    fault = load().fault
    return None if fault is None else f"the native attention kernel cannot be built or loaded: {fault}."
