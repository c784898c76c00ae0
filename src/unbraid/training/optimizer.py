"""AdamW, which parameters decay, and the learning rate of every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW

from unbraid.errors import InputError
from unbraid.training.config import OptimizerConfig


def schedule(step: int, steps: int, warmup: int, final_fraction: float = 0.0) -> float:
    """The fraction of the highest learning rate at a step: a line up, then a line down, without a jump.

    Step ``warmup`` has exactly the highest rate, and ``final_fraction`` would be that of the step after the last,
    so that with 0 neither the first nor the last update is wasted.

    Args:
        step: 1 for the first update, ``steps`` for the last.
        steps: of the whole run.
        warmup: steps of the way up; 0 begins at the top, as 1 does.
        final_fraction: where the way down ends.

    Source: the original's ``warmup_linear_shift`` is the continuous schedule as well; its default,
    ``warmup_linear``, drops by the warm-up's share of the run where the warm-up ends.

    >>> [schedule(step, steps=6, warmup=2) for step in range(1, 7)]
    [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    warmup = max(warmup, 1)
    if step <= warmup:
        return step / warmup
    return final_fraction + (1 - final_fraction) * (steps + 1 - step) / (steps + 1 - warmup)


Depths = Mapping[nn.Parameter, int]
"""How far above the input each parameter acts: 0 the embeddings, then the layers, most the head."""


def parameter_groups(
    module: nn.Module, weight_decay: float, layer_decay: float = 1.0, depths: Depths | None = None
) -> list[dict[str, Any]]:
    """The parameters to train, once each, in groups: with weight decay, and biases and norms without.

    Frozen parameters are in none. A shared parameter has no decay if any of its places has none.

    Args:
        module: whose parameters.
        weight_decay: of those that have one.
        layer_decay: below 1 there are two groups for each depth; ``lr_scale`` of both, the fraction of the learning
            rate that they have, is this to the power of how far they lie below the highest.
        depths: of all parameters to train, where ``layer_decay`` is below 1.

    Raises:
        InputError: ``layer_decay`` is below 1 and the depths are not known.
    """
    if layer_decay < 1 and depths is None:
        raise InputError("optimizer.layer_decay is for fine-tuning, where each parameter has its layer: leave it at 1.")
    exempt = {
        parameter
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(owner, nn.LayerNorm) or name.endswith("bias")
    }
    by_depth: dict[int, list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            depth = depths[parameter] if depths is not None and layer_decay < 1 else 0
            by_depth.setdefault(depth, []).append(parameter)
    return [
        {
            "params": [parameter for parameter in parameters if (parameter in exempt) == without],
            "weight_decay": 0.0 if without else weight_decay,
            "lr_scale": layer_decay ** (max(by_depth) - depth),
        }
        for depth, parameters in sorted(by_depth.items())
        for without in (False, True)
    ]


def make_optimizer(module: nn.Module, config: OptimizerConfig, depths: Depths | None = None) -> AdamW:
    """AdamW over :func:`parameter_groups`, fused where torch can: the same result for any number of threads.

    Raises:
        InputError: every parameter is frozen; or see :func:`parameter_groups`.
    """
    groups = parameter_groups(module, config.weight_decay, config.layer_decay, depths)
    trained = [parameter for group in groups for parameter in group["params"]]
    if not trained:
        raise InputError("there is nothing to train: every parameter of the model is frozen.")
    return AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=all(parameter.device.type in ("cpu", "cuda") for parameter in trained),
    )
