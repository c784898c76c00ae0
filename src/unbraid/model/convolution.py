"""The convolution of v2, beside the first layer."""

from __future__ import annotations

from torch import Tensor, nn

from unbraid.model.activations import ACTIVATIONS
from unbraid.model.config import DebertaConfig
from unbraid.model.dropout import Dropout
from unbraid.packing import Packing, pad


class Convolution(nn.Module):
    """The convolution beside the first layer: it sees the n-grams of the embeddings.

    Source: DeBERTa section 5.3 (nGiE); microsoft/DeBERTa deberta/bert.py: ConvLayer at 4d7fe0b.
    """

    def __init__(self, config: DebertaConfig):
        super().__init__()
        width, kernel = config.hidden_size, config.conv_kernel_size
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.conv_groups)
        self.activation = ACTIVATIONS[config.conv_act]
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, embedded: Tensor, states: Tensor, packing: Packing) -> Tensor:
        """Adds the convolved embeddings (N, C) to the first layer's states (N, C); zeros fill holes and borders."""
        width = packing.max_length
        if packing.mask is not None:
            embedded = embedded * packing.mask.flatten()[:, None]
        padded = pad(embedded, packing, packing.positions, width)  # (B, T, C)
        seen = self.conv(padded.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        seen = seen[packing.sequence_ids * width + packing.positions]  # (N, C)
        return self.norm(states + self.activation(self.dropout(seen)))
