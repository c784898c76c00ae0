"""Replaced token detection: a generator fills masked places, a discriminator tells which tokens were replaced."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unbraid.model.pretrained import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from unbraid.objective import IGNORED, Loss, Objective
from unbraid.pretraining.config import MaskingConfig, RtdConfig
from unbraid.pretraining.evaluation import Batches, phase_means
from unbraid.pretraining.mlm import MaskedLanguageModeling
from unbraid.pretraining.sharing import share_embeddings
from unbraid.text.batch import Batch

if TYPE_CHECKING:
    from unbraid.text.tokenizer import Tokenizer

GENERATOR_FOLDER = "generator"
"""Where the generator is saved, in the folder of its discriminator."""


class Generation(MaskedLanguageModeling):
    """The generator's part: masked language modelling, and a guess at every masked place.

    Its loss hands on the batch with the guesses in place; the labels of that one, (N,) float32, are 1 where the guess
    differs from the original and 0 elsewhere, so that a lucky guess counts as original.

    Source: DeBERTaV3 section 3.1; microsoft/DeBERTa apps/tasks/rtd_task.py: RTDTask at 4d7fe0b.
    """

    def __init__(self, model: DebertaForMaskedLM, drawable: Tensor, temperature: float, hide_kept_tokens: bool) -> None:
        """Takes the generator.

        Args:
            model: the generator.
            drawable: (V,) bool, the ids that a guess may be.
            temperature: of the softmax that guesses are drawn from.
            hide_kept_tokens: see :class:`MaskedLanguageModeling`.
        """
        super().__init__(model, hide_kept_tokens)
        self.drawable: Tensor
        self.register_buffer("drawable", drawable, persistent=False)
        self.temperature = temperature

    def loss(self, batch: Batch) -> Loss:
        """The generator's loss; parts ``generator_loss`` and ``generator_correct``."""
        loss, logits = self.scored(batch)
        parts = {"generator_loss": loss.total.detach(), "generator_correct": loss.parts["correct"]}
        return Loss(loss.total, parts, loss.count, self.corrupt(batch, logits))

    @torch.no_grad()
    def corrupt(self, batch: Batch, logits: Tensor) -> Batch:
        """The batch with a guess at every predicted place, drawn from the logits (M, V)."""
        if batch.labels is None:
            raise TypeError("a batch without labels has no places to fill")
        places = (batch.labels != IGNORED).nonzero().squeeze(-1)
        scores = logits.div(self.temperature).nan_to_num_()  # if the run diverges, its loss will say so
        chances = scores.masked_fill(~self.drawable, -torch.inf).softmax(-1)
        guesses = chances.multinomial(1).squeeze(-1) if len(places) else places  # (M,)
        originals = torch.where(batch.labels == IGNORED, batch.input_ids, batch.labels)  # (N,)
        filled = batch.input_ids.index_copy(0, places, guesses)
        return dataclasses.replace(batch, input_ids=filled, labels=(filled != originals).float())


class Detection(Objective):
    """The discriminator's part: binary cross entropy over every real token, [CLS] and [SEP] included.

    Source: DeBERTaV3 section 3.1; microsoft/DeBERTa apps/models/replaced_token_detection_model.py at 4d7fe0b.
    """

    def __init__(self, model: DebertaForReplacedTokenDetection, weight: float) -> None:
        """Takes the discriminator.

        Args:
            model: the discriminator.
            weight: lambda, of its loss.
        """
        super().__init__()
        self.model = model
        self.weight = weight

    def loss(self, batch: Batch) -> Loss:
        """The weighted loss over the tokens of a batch that :meth:`Generation.corrupt` made.

        Parts, sums over all tokens: ``detection_loss`` (not weighted), ``detection_correct``, ``replaced`` (tokens that
        were), ``found`` (those among them that it found) and ``suspected`` (tokens that it took for replaced).
        """
        if batch.labels is None:
            raise TypeError("a batch without labels has no replaced tokens")
        logits = self.model(batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids).logits.float()
        total = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum")
        suspected, replaced = logits.detach() > 0, batch.labels > 0
        parts = {
            "detection_loss": total.detach(),
            "detection_correct": (suspected == replaced).sum().float(),
            "replaced": replaced.sum().float(),
            "found": (suspected & replaced).sum().float(),
            "suspected": suspected.sum().float(),
        }
        return Loss(self.weight * total, parts, len(logits))


class ReplacedTokenDetection(Objective):
    """Generator and discriminator, trained in two steps on each batch or in one.

    Attributes:
        generation: the generator's part.
        detection: the discriminator's part.
    """

    def __init__(
        self,
        generator: DebertaForMaskedLM,
        discriminator: DebertaForReplacedTokenDetection,
        config: RtdConfig,
        masking: MaskingConfig,
        tokenizer: Tokenizer,
        *,
        keep_embeddings: bool = False,
    ) -> None:
        """Ties the embeddings as the configuration says.

        Args:
            generator: its tables are the shared ones.
            discriminator: of the same width and vocabulary; its own tables give way unless sharing is ``"nes"``.
            config: sharing, steps, lambda, temperature.
            masking: the share of tokens that are predicted weighs the two losses of a joint step, which are means over
                different numbers of tokens.
            tokenizer: names the special tokens, which no guess may be.
            keep_embeddings: with GDES, begin with the discriminator's tables, as one that was trained before needs it.
        """
        super().__init__()
        tables = generator.deberta.embeddings, discriminator.deberta.embeddings
        share_embeddings(*tables, config.sharing, keep=keep_embeddings)
        drawable = torch.zeros(generator.config.vocab_size, dtype=torch.bool)
        drawable[: len(tokenizer)] = True
        drawable[list(tokenizer.special_ids)] = False
        self.generation = Generation(generator, drawable, config.temperature, masking.hide_kept_tokens)
        self.detection = Detection(discriminator, config.detection_weight)
        self.decoupled = config.decoupled
        self.probability = masking.probability

    @property
    def phases(self) -> tuple[Objective, ...]:
        """The generator's step, then the discriminator's; or one for both."""
        return (self.generation, self.detection) if self.decoupled else (self,)

    def loss(self, batch: Batch) -> Loss:
        """The joint loss: the generator's mean over the M predicted tokens plus lambda times that over all N.

        N is taken for M / ``masking.probability``, so that micro-batches add up to exactly the loss of one large batch.
        """
        generated = self.generation.loss(batch)
        detected = self.detection.loss(generated.handed)
        parts = generated.parts | {name: value * self.probability for name, value in detected.parts.items()}
        return Loss(generated.total + self.probability * detected.total, parts, generated.count)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the discriminator as an ordinary model, its tables summed, and the generator in a folder within."""
        folder = Path(folder)
        self.discriminator().save_pretrained(folder)
        self.generation.model.save_pretrained(folder / GENERATOR_FOLDER)

    def discriminator(self) -> DebertaForReplacedTokenDetection:
        """The discriminator as an ordinary model: a copy with tables of its own."""
        trained = self.detection.model
        weights = {name: weight for name, weight in trained.state_dict().items() if not name.endswith(".delta")}
        embeddings = trained.deberta.embeddings
        for name in ("word", "position"):
            if (table := getattr(embeddings, name)) is not None:
                weights[f"deberta.embeddings.{name}.weight"] = table.weight.detach()
        with torch.device("meta"):
            plain = DebertaForReplacedTokenDetection(trained.config)
        plain.load_state_dict(weights, assign=True)
        return plain.eval()


def evaluate_rtd(
    objective: ReplacedTokenDetection, batches: Batches, max_batches: int | None = None
) -> dict[str, float]:
    """Measures generator and discriminator on the first epoch of some batches, always the same tokens hidden.

    Args:
        objective: put in evaluation mode meanwhile.
        batches: of held-out documents, with a fixed seed.
        max_batches: stop after so many; default: all of the epoch.

    Returns:
        ``loss`` (generator plus lambda times discriminator), ``generator_loss``, ``generator_accuracy``,
        ``detection_loss`` (nats per token), ``detection_accuracy``, and the ``precision`` and ``recall`` of finding
        replaced tokens.

    Raises:
        InputError: ``max_batches`` is below 1, or all tokens are special ones such as [UNK].
    """
    generated, detected = phase_means((objective.generation, objective.detection), batches, max_batches)
    return {
        "loss": generated["loss"] + detected["loss"],
        "generator_loss": generated["loss"],
        "generator_accuracy": generated["generator_correct"],
        "detection_loss": detected["detection_loss"],
        "detection_accuracy": detected["detection_correct"],
        "precision": detected["found"] / detected["suspected"] if detected["suspected"] else 0.0,
        "recall": detected["found"] / detected["replaced"] if detected["replaced"] else 0.0,
    }
