"""SiFT: outputs that stay what they are when the normalised embeddings are perturbed where that hurts most."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.model.embeddings import Perturbation
from unbraid.objective import Loss, Objective
from unbraid.tasks.config import SiftConfig
from unbraid.tasks.objective import Outputs, TaskObjective
from unbraid.text.batch import Batch

_NORM_EPS = 1e-7  # of the norm without weights
_STEP_EPS = 1e-6  # beside a token's gradient: one far below it, as float16 would lose, is hardly followed


class Sift(Objective):
    """An objective of fine-tuning, and the consistency of its outputs.

    In training the summed embeddings are normalised; noise on them climbs up the divergence between the perturbed
    output and the clean one; then the divergence that it reached, weighted, is added to the loss of the clean output.
    In evaluation this is the objective alone, on the model as it is saved, without the norm.

    With k steps, a batch takes 2 + k forward passes, 2 backward passes, and k that stop at the perturbation and leave
    all parameters alone.

    Source: DeBERTa section 4; microsoft/DeBERTa sift/sift.py at 4d7fe0b. SMART (Jiang et al. 2020) and virtual
    adversarial training (Miyato et al. 2018) are settings of it without the norm.
    """

    def __init__(self, objective: TaskObjective, config: SiftConfig) -> None:
        """Wraps an objective.

        Args:
            objective: of any kind of task.
            config: how the embeddings are perturbed.

        Raises:
            InputError: the weight is 0.
        """
        super().__init__()
        if not config.weight:
            raise InputError("the weight of SiFT is 0: give one, such as 5, or leave SiFT out.")
        self.objective = objective
        self.config = config

    def loss(self, batch: Batch) -> Loss:
        """The objective's loss plus the weighted divergence; in training its part ``consistency`` is without weight."""
        if not self.training:
            return self.objective.loss(batch)
        config = self.config
        seed = int(torch.randint(2**62, ())) if config.share_dropout else None
        kept: list[Tensor] = []

        def keep(total: Tensor) -> Tensor:
            total = total.float()
            kept.append(functional.layer_norm(total, total.shape[-1:], eps=_NORM_EPS) if config.normalise else total)
            return kept[-1]

        clean = self._outputs(batch, keep, seed)
        (embedded,) = kept  # (N, C)
        target = tuple(logits.detach() for logits in clean)
        delta = self._perturbation(batch, embedded.detach(), target, seed)
        below = embedded if config.embedding_gradient else embedded.detach()
        perturbed = self._outputs(batch, below + delta, seed)
        loss = self.objective.loss_from(clean, batch)
        divergence = self.objective.divergence(clean if config.clean_gradient else target, perturbed, batch)
        total = loss.total + config.weight * divergence
        return dataclasses.replace(loss, total=total, parts=loss.parts | {"consistency": divergence.detach()})

    def _outputs(self, batch: Batch, perturbation: Perturbation, seed: int | None) -> Outputs:
        """Runs the model, with the dropout of the seed if there is one."""
        if seed is not None:
            torch.manual_seed(seed)
        return self.objective.outputs(batch, perturbation)

    def _perturbation(self, batch: Batch, embedded: Tensor, target: Outputs, seed: int | None) -> Tensor:
        """(N, C) float32: the noise after its climb."""
        delta = noise(embedded, self.config.start)
        for _ in range(self.config.steps):
            delta.requires_grad_()
            perturbed = self._outputs(batch, embedded + delta, seed)
            divergence = self.objective.divergence(target, perturbed, batch)
            (gradient,) = torch.autograd.grad(divergence, delta)
            if isinstance(self, FSDPModule):
                self.unshard()  # the end of a backward pass resharded what this forward pass still reads
            delta = ascend(delta.detach(), gradient, self.config)
        return delta


def noise(embedded: Tensor, std: float) -> Tensor:
    """Normal noise of the shape and dtype of the embeddings, clipped at two standard deviations."""
    return (std * torch.randn_like(embedded)).clamp(-2 * std, 2 * std)


def ascend(delta: Tensor, gradient: Tensor, config: SiftConfig) -> Tensor:
    """One step of the ascent, for every token by itself; one whose gradient overflowed stays where it is.

    Args:
        delta: (N, C) float32.
        gradient: (N, C) float32, of the divergence.
        config: size and norm of the step, and the radius to stay within.

    Returns:
        (N, C) float32.

    >>> config = SiftConfig(weight=5, step_size=1)
    >>> ascend(torch.tensor([[0.5, 0.0]]), torch.tensor([[-4.0, 2.0]]), config).round(decimals=3)
    tensor([[-0.5000,  0.5000]])
    """
    delta = delta + config.step_size * (gradient / (_STEP_EPS + _length(gradient, config))).nan_to_num(0.0, 0.0, 0.0)
    if config.radius is None:
        return delta
    if config.norm == "inf":
        return delta.clamp(-config.radius, config.radius)
    return delta * (config.radius / _length(delta, config)).clamp(max=1.0)


def _length(rows: Tensor, config: SiftConfig) -> Tensor:
    """(N, 1), of rows (N, C)."""
    order = torch.inf if config.norm == "inf" else 2
    return torch.linalg.vector_norm(rows, order, -1, keepdim=True)
