"""Peak memory of a piece of work, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from unbraid.bench.measure import Outcome, Role, sentence


def peak_outcome(name: str, role: Role, threads: int, prepare: Callable[..., Callable[[], object]], *arguments: object):
    """The growth of memory in MiB while ``prepare(*arguments)()`` runs, or why it could not run.

    Args:
        name: of the contestant.
        role: of the contestant.
        threads: of the process.
        prepare: a function of a module, called in the new process; what it returns is measured.
        arguments: can be pickled.
    """
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with pool:
        try:
            growth = pool.submit(_growth, threads, prepare, arguments).result()
        except BrokenProcessPool:
            return Outcome(name, role, reason="its process was killed, most likely for want of memory.")
        except Exception as error:  # whatever a contestant does wrong is its result
            return Outcome(name, role, reason=sentence(error))
    return Outcome(name, role, median=growth, low=growth, high=growth, rounds=1)


def _growth(threads: int, prepare: Callable[..., Callable[[], object]], arguments: Sequence[object]) -> float:
    import psutil
    import torch

    torch.set_num_threads(threads)
    work = prepare(*arguments)
    process = psutil.Process().memory_info()
    _limit(process.vms + psutil.virtual_memory().available)
    work()
    return (_peak() - process.rss) / 2**20


def _limit(size: int) -> None:
    """Lets an allocation beyond the machine's free memory fail here, before the system kills some process for it."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _peak() -> int:
    """The most bytes this process ever had in memory."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with the parent's size there
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
