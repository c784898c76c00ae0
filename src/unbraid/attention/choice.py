"""Which backend ``backend="auto"`` takes."""

from __future__ import annotations

import functools
import warnings
from typing import Literal

import torch
from torch import Tensor

from unbraid.attention import native
from unbraid.packing import Packing


class SlowAttentionWarning(RuntimeWarning):
    """The native kernel would serve, but it is not there."""


def choose(q: Tensor, queries: Packing, keys: Packing) -> tuple[Literal["native", "sdpa"], str]:
    """The backend for a call: the native kernel wherever it can serve, torch's own elsewhere.

    Warns, once per process, if nothing but the kernel's absence keeps it from native.

    Args:
        q: (Nq, H, D) content queries.
        queries: packing of the rows of q.
        keys: packing of the keys.

    Returns:
        The name, and the reason as a sentence.
    """
    unsuited = native.unsuited(q, queries, keys)
    if unsuited is not None:
        return "sdpa", unsuited
    missing = _missing()
    if missing is not None:
        return "sdpa", missing
    return "native", "it serves packed rows on the CPU."


@torch.compiler.assume_constant_result
def _missing() -> str | None:
    reason = native.unavailable()
    if reason is not None:
        _warn_once(reason)
    return reason


@functools.cache
def _warn_once(reason: str) -> None:
    message = f"attention takes backend='sdpa', which is slower, because {reason}"
    warnings.warn(message, SlowAttentionWarning, stacklevel=1)
