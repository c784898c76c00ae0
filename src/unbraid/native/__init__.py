"""C++ for the CPU: disentangled attention, forward and backward, dropout, and linear layers for inference.

``build.py`` compiles it at its first use. What torch sees of the attention is :mod:`unbraid.attention.native`, of the
others ``dropout.py`` and ``linear.py``.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def takes_backward_only() -> bool:
    """Whether no other derivatives than those of ``backward()`` are being taken.

    Ours are for these; forward mode and torch.func would take them to be zero without a word.
    """
    return forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()
