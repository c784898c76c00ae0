"""Dropout of states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbraid.native import takes_backward_only
from unbraid.native.build import unavailable
from unbraid.native.dropout import dropout


class Dropout(nn.Dropout):
    """torch's, but on the CPU, where that draws its mask on one thread and keeps it as floats, our own."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Drops, in training."""
        ours = input.device.type == "cpu" and input.dtype in (torch.float32, torch.bfloat16) and takes_backward_only()
        if self.training and self.p and ours and unavailable() is None:
            return dropout(input, self.p)
        return super().forward(input)
