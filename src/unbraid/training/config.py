"""How to train: the optimizer, the length of the run, what is written and when."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field, model_validator

from unbraid.errors import InputError
from unbraid.settings import settings

Span = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A number of steps: as it is from 1 on, below 1 a fraction of the run."""


def span_steps(span: float, steps: int) -> int:
    """The steps of a span in a run of ``steps`` steps.

    >>> span_steps(0.1, 500), span_steps(20.0, 500), span_steps(0, 500)
    (50, 20, 0)
    """
    return round(span if span >= 1 else span * steps)


@settings
class OptimizerConfig:
    """AdamW with linear warm-up and linear decay.

    Source: beta1, beta2, eps, weight decay and clipping of He et al. 2021, tables 8 and 9.
    """

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Highest learning rate, reached at the end of the warm-up."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """Decoupled weight decay; biases and norms have none."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean of the gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the mean of their squares (v3 pretraining: 0.98)."""
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6
    """Added to the root of that mean."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Longest gradient, as a norm over all parameters; inf: no clipping."""
    warmup: Span = 0.1
    """Warm-up: a number of steps if 1 or more, else a fraction of the run."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where the decay ends, as a fraction of the highest learning rate."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each layer to the one below; the head has the rate itself, the embeddings the
    lowest."""


@settings
class TrainingConfig:
    """The length of a run, its arithmetic, and what it writes.

    A step is one update of the weights, from ``micro_batches`` micro-batches, which the processes share.
    """

    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Length of the run in steps; give this or epochs."""
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Length of the run in passes over the data; give this or steps."""
    micro_batches: Annotated[int, Field(ge=1)] = 1
    """Micro-batches of a step, in all processes together: n have exactly the gradient of one n times as large."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the matrix products, checked before the run; weights and optimizer stay in float32."""
    sharding: Literal["none", "full"] = "none"
    """What each of several processes holds: the whole model (DDP), or a share of it and of its optimizer (FSDP)."""
    evaluate_every: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 0.1
    """Between evaluations: steps if 1 or more, else a fraction of the run; None: only at the end."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many evaluations in a row without a new best; None: go on to the end."""
    checkpoint_every: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 500
    """Between checkpoints: steps if 1 or more, else a fraction of the run; the end always has one."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Latest checkpoints to keep."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between rows of metrics.jsonl."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides dropout and every other random choice during training."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches ahead; 0: the training process itself."""
    device: Literal["auto", "cpu"] = "auto"
    """auto: the accelerator if there is one."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too."""
    wandb: bool = False
    """Write the metrics for Weights & Biases too, offline unless WANDB_MODE says otherwise."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop with a checkpoint after this many minutes; the same command continues the run."""

    @model_validator(mode="after")
    def _has_one_length(self) -> TrainingConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give the length of the run either as steps or as epochs.")
        return self

    @model_validator(mode="after")
    def _has_evaluations_to_wait_for(self) -> TrainingConfig:
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("patience counts evaluations: give evaluate_every, or leave patience out.")
        return self

    def num_steps(self, per_epoch: int) -> int:
        """The steps of the run, at least one.

        Args:
            per_epoch: micro-batches of one pass over the data.

        Raises:
            InputError: there is no data, or the warm-up is longer than the run.
        """
        if per_epoch < 1:
            raise InputError("there is no training data: the stream of batches is empty.")
        steps = self.steps
        if self.epochs is not None:
            steps = max(1, round(self.epochs * per_epoch / self.micro_batches))
        if steps is None:
            raise ValueError("a TrainingConfig has steps or epochs.")
        if span_steps(self.optimizer.warmup, steps) > steps:
            raise InputError(
                f"optimizer.warmup ({self.optimizer.warmup:g} steps) is longer than the run ({steps} steps): "
                "shorten it, or give a fraction such as 0.1."
            )
        return steps
