"""What inference computes of the weights once, and keeps while they stand still."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def weights_stand_still() -> bool:
    """Whether this is inference as written: no gradients, and no compiler, exporter or autocast looking on."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage], torch documents it
        or torch.is_autocast_enabled("cpu")
    )


_Line = ctypes.c_char * 64
_Stamp = tuple[Tensor, int, int, ctypes.Array[ctypes.c_char] | None, bytes]
"""A weight, where it lies, how often torch has seen it change, and its first bytes: where they are, what they were."""


class Frozen(Generic[T]):
    """A value made of some weights, made anew whenever one of them has changed.

    torch counts the changes of a tensor, but not those made behind its back, in place through ``.data``, as peft merges
    adapters. So the first values of each matrix on the CPU are compared too: they tell of any change of all of it. Of
    some rows alone, or of a vector, such a change goes unseen until something is trained. Copies and pickles of a model
    start without the value.
    """

    def __init__(self):
        self._kept: tuple[list[_Stamp], T] | None = None  # replaced as one, for other threads read it

    def __reduce__(self):
        return Frozen, ()

    def __call__(self, weights: Sequence[Tensor], make: Callable[[], T]) -> T:
        """The value of these weights; ``make`` is called if it is not there yet."""
        if any(weight.is_inference() for weight in weights):  # torch does not count the changes of these
            return make()
        if (kept := self._kept) is not None and _stand_still(weights, kept[0]):
            return kept[1]
        self._kept = kept = None  # the old one leaves memory before the new one enters it
        stamps = [_stamp(weight) for weight in weights]
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        self._kept = stamps, value
        return value

    def forget(self) -> None:
        """Lets go of the value: in training it would only take memory, and wrappers may change weights unseen."""
        if self._kept is not None and not torch.compiler.is_compiling():
            self._kept = None


def _stamp(weight: Tensor) -> _Stamp:
    place = weight.data_ptr()
    readable = weight.is_cpu and weight.dim() > 1 and weight.is_contiguous() and weight.nbytes >= ctypes.sizeof(_Line)
    line = _Line.from_address(place) if place and readable else None
    return weight, place, weight._version, line, b"" if line is None else line.raw


def _stand_still(weights: Sequence[Tensor], stamps: Sequence[_Stamp]) -> bool:
    for weight, (stamped, place, version, line, first) in zip(weights, stamps, strict=False):
        if weight is not stamped or weight.data_ptr() != place or weight._version != version:
            return False
        if line is not None and line.raw != first:
            return False
    return len(weights) == len(stamps)
