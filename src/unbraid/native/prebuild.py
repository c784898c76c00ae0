"""Compiles copies of the kernel into the package, for a wheel that needs no compiler.

``python -m unbraid.native.prebuild`` makes one for every level that this processor can run; a copy serves
this version of torch only. ``make wheel`` does that and packs them.
"""

from __future__ import annotations

import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor

from unbraid.native import build


def main() -> None:
    """Makes the copies anew and prints their paths."""
    shutil.rmtree(build.PREBUILT, ignore_errors=True)
    build.PREBUILT.mkdir()
    # The builder loads what it builds, and a process can load the kernel only once.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for path in processes.map(build.prebuild, build.levels()):
            print(path)


if __name__ == "__main__":
    main()
