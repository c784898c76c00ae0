"""Agreement first, then interleaved rounds."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Role = Literal["ours", "rival", "floor"]
_TURN_S = 0.02
"""What takes less than this is called several times in its turn."""


@dataclasses.dataclass(frozen=True)
class Ready:
    """A contestant that can start.

    Attributes:
        run: what is timed.
        outputs: gives what must agree with the expected tensors; None: it differs by design and is not compared.
    """

    run: Callable[[], object]
    outputs: Callable[[], Sequence[Tensor]] | None


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who is measured.

    Attributes:
        name: in results and tables.
        role: ours, a rival that computes the same, or a floor that computes less.
        build: makes it ready; whatever it raises is the reason why it is not measured.
    """

    name: str
    role: Role
    build: Callable[[], Ready]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a contestant in one cell.

    Attributes:
        name: of the contestant.
        role: of the contestant.
        median: milliseconds, or MiB; None: not measured.
        low: the first quartile.
        high: the third quartile.
        rounds: how often it was measured.
        difference: largest difference from the expected outputs, relative to the largest value expected; None if it
            was not compared or is not a number.
        reason: why it was not measured.
    """

    name: str
    role: Role
    median: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    difference: float | None = None
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of the tables: contestants side by side.

    Attributes:
        part: what of the benchmark, e.g. forward.
        shape: sequences x tokens, or ragged.
        dtype: float32 or bfloat16.
        unit: of the outcomes.
        tokens: real tokens of the shape.
        measure: does it.
    """

    part: str
    shape: str
    dtype: str
    unit: Literal["ms", "MiB"]
    tokens: int
    measure: Callable[[], list[Outcome]]

    @property
    def key(self) -> dict[str, Any]:
        """What identifies it among the cells of a benchmark, and what its numbers mean."""
        return {name: getattr(self, name) for name in ("part", "shape", "dtype", "unit", "tokens")}


def largest_difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of any tensor from the one expected, relative to the largest value expected of it.

    >>> largest_difference([torch.tensor([1.0, 4.5])], [torch.tensor([1.0, 5.0])])
    0.1
    """
    worst = 0.0
    for output, truth in zip(outputs, expected, strict=True):
        difference = float((output.double() - truth.double()).abs().max() / truth.double().abs().max())
        worst = difference if math.isnan(difference) else max(worst, difference)
        if math.isnan(worst):
            break
    return worst


def interleave(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float, turn_s: float = _TURN_S
) -> dict[str, list[float]]:
    """Times callables in rounds, in each of which every one has a turn; every second round goes backwards.

    Args:
        runs: by name.
        rounds: at least so many.
        seconds: more rounds follow until these are used up.
        turn_s: a callable that takes less is called several times in its turn.

    Returns:
        Milliseconds of a call, for each name and round.
    """
    calls = {}
    for name, run in runs.items():  # warms up, too
        began = time.perf_counter()
        run()
        calls[name] = max(1, math.ceil(turn_s / max(time.perf_counter() - began, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    order = list(runs)
    done = 0
    while runs and (done < rounds or time.perf_counter() - began < seconds):
        for name in order:
            turn = time.perf_counter()
            for _ in range(calls[name]):
                runs[name]()
            times[name].append(1000 * (time.perf_counter() - turn) / calls[name])
        order.reverse()
        done += 1
    return times


def measure_times(
    contestants: Sequence[Contestant],
    expected: Callable[[], Sequence[Tensor]],
    tolerance: float,
    *,
    rounds: int,
    seconds: float,
) -> list[Outcome]:
    """Times the contestants that agree; says of the others why not.

    Args:
        contestants: in the order of the result.
        expected: gives the outputs that are right.
        tolerance: largest relative difference that counts as agreement; see :func:`largest_difference`.
        rounds: see :func:`interleave`.
        seconds: see :func:`interleave`.
    """
    truth = expected()
    outcomes: dict[str, Outcome] = {}
    runs = {}
    for contestant in contestants:
        outcome = Outcome(contestant.name, contestant.role)
        try:
            ready = contestant.build()
            if ready.outputs is not None:
                difference = largest_difference(ready.outputs(), truth)
                outcome = dataclasses.replace(outcome, difference=None if math.isnan(difference) else difference)
                if not difference <= tolerance:
                    raise ArithmeticError(f"its outputs differ by {difference:.2g}, more than {tolerance:.2g}.")
            ready.run()
            runs[contestant.name] = ready.run
        except Exception as error:  # whatever a contestant does wrong is its result
            outcome = dataclasses.replace(outcome, reason=sentence(error))
        outcomes[contestant.name] = outcome
    for name, times in interleave(runs, rounds=rounds, seconds=seconds).items():
        outcomes[name] = dataclasses.replace(outcomes[name], **spread(times))
    return list(outcomes.values())


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and number of values.

    >>> spread([1.0, 2.0, 3.0, 4.0, 9.0])
    {'median': 3.0, 'low': 2.0, 'high': 4.0, 'rounds': 5}
    """
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": median, "low": low, "high": high, "rounds": len(values)}


def sentence(error: Exception) -> str:
    """What went wrong, in a line.

    >>> sentence(ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"))
    "onnxruntime is not installed: run pip install 'unbraid[bench]'."
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name.partition('.')[0]} is not installed: run pip install 'unbraid[bench]'."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
