"""AdamW, which parameters decay, and the learning rate of every step."""

from __future__ import annotations

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


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters to train, once each, in two groups: with weight decay, and biases and norms without.

    Frozen parameters are in neither. A shared parameter has no decay if any of its places has none.
    """
    exempt = {
        parameter
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(owner, nn.LayerNorm) or name.endswith("bias")
    }
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter not in exempt], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter in exempt], "weight_decay": 0.0},
    ]


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW over :func:`parameter_groups`, fused where torch can: the same result for any number of threads.

    Raises:
        InputError: every parameter is frozen.
    """
    groups = parameter_groups(module, config.weight_decay)
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
