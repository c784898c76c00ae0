"""What inference computes of the weights once, and keeps while they stand still."""

from __future__ import annotations

import operator
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


class Frozen(Generic[T]):
    """A value made of some weights, made anew whenever one of them has changed.

    torch counts the changes of a tensor; only one made behind its back, in place through ``.data``, goes unseen, until
    something is trained. Copies and pickles of a model start without the value.
    """

    def __init__(self):
        self._weights: Sequence[Tensor] = ()
        self._stamps: list[tuple[int, int]] = []
        self._value: T | None = None

    def __reduce__(self):
        return Frozen, ()

    def __call__(self, weights: Sequence[Tensor], make: Callable[[], T]) -> T:
        """The value of these weights; ``make`` is called if it is not there yet."""
        if any(weight.is_inference() for weight in weights):  # torch does not count the changes of these
            return make()
        stamps = [(weight.data_ptr(), weight._version) for weight in weights]
        same = len(weights) == len(self._weights) and all(map(operator.is_, weights, self._weights))
        if self._value is None or stamps != self._stamps or not same:
            self._value = None  # the old one leaves memory before the new one enters it
            with torch.inference_mode(False), torch.no_grad():
                self._value = make()
            self._weights, self._stamps = weights, stamps
        return self._value

    def forget(self) -> None:
        """Lets go of the value: in training it would only take memory, and wrappers may change weights unseen."""
        if self._value is not None and not torch.compiler.is_compiling():
            self._value = None
