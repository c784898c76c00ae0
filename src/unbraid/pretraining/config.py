"""What to pretrain on, how to cut it into batches, and what to hide."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from unbraid.settings import settings


@settings
class CorpusConfig:
    """The text to pretrain on and the batches it is cut into."""

    path: Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, globs or folders of .txt, .jsonl (also .gz, .bz2, .xz, .zst) or .parquet, or names of hub data sets."""
    column: str = "text"
    """The field of JSONL, Parquet and hub data that holds the text; a record is a document."""
    split: str = "train"
    """The split of a hub data set."""
    subset: str | None = None
    """The configuration of a hub data set that has several."""
    document: Literal["empty_line", "line"] = "empty_line"
    """What ends a document of a text file: an empty line (lines between are paragraphs), or the end of each line."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the documents kept for evaluation, chosen by a hash of their text, whatever the seed."""
    sequence_length: Annotated[int, Field(ge=3)] = 512
    """Most tokens in a row, [CLS] and [SEP] included; a longer document becomes several rows."""
    rows: Literal["document", "stream"] = "document"
    """A row never leaves its document; or, as the original, documents end to end are cut into full rows."""
    first_length: Annotated[int, Field(ge=3)] | None = None
    """sequence_length in the first part of the run, if it shall begin with shorter rows."""
    first_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """How long that part is, as a share of the run's micro-batches."""
    batch_tokens: Annotated[int, Field(ge=3)] = 8192
    """Tokens in a micro-batch: mostly within one row of this average, always less than two."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    """Each path is a language, drawn with probability ~ (its tokens) ** temperature; None: all are one corpus."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the order of the rows and what is masked."""

    @model_validator(mode="after")
    def _batch_holds_a_row(self) -> CorpusConfig:
        if self.batch_tokens < self.sequence_length:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be at least sequence_length ({self.sequence_length})."
            )
        return self

    @model_validator(mode="after")
    def _first_rows_are_shorter(self) -> CorpusConfig:
        if self.first_length is not None and self.first_length >= self.sequence_length:
            raise ValueError(
                f"first_length ({self.first_length}) must be less than sequence_length ({self.sequence_length})."
            )
        if self.first_length is None and self.first_share != CorpusConfig.first_share:
            raise ValueError("first_share is of rows of first_length: give first_length too, or leave first_share out.")
        return self

    @model_validator(mode="after")
    def _languages_are_several(self) -> CorpusConfig:
        if self.temperature is not None and len(self.paths) < 2:
            raise ValueError("temperature is for several languages; give a path for each, or leave temperature out.")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The path or paths, as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


@settings
class MaskingConfig:
    """Which tokens masked language modelling predicts, and what stands in their place.

    Source: 15 %, spans up to 3, 80/10/10 (He et al. 2021, section 4 and A.2).
    """

    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens to predict."""
    max_ngram: Annotated[int, Field(ge=1)] = 3
    """Longest span in words, drawn with p(n) ~ 1/n; 1 hides single pieces, not whole words, as the original does."""
    mask_fraction: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the predicted tokens replaced by [MASK]."""
    keep_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the predicted tokens left as they are; the rest become random tokens."""
    hide_kept_tokens: bool = False
    """Hide the predicted tokens left as they are behind their absolute position before the mask decoder reads them."""
    budget: Literal["spread", "left_to_right"] = "spread"
    """Even over the sequence, or as the original, whose budget runs out before the end of every sequence."""

    @model_validator(mode="after")
    def _fractions_fit(self) -> MaskingConfig:
        if self.mask_fraction + self.keep_fraction > 1:
            raise ValueError(
                f"mask_fraction ({self.mask_fraction}) and keep_fraction ({self.keep_fraction}) must not exceed 1 "
                "together."
            )
        return self


@settings
class RtdConfig:
    """Replaced token detection: a generator fills masked places, a discriminator tells which tokens were replaced.

    Source: DeBERTaV3 (He et al. 2021), sections 3.1 and 3.2.
    """

    sharing: Literal["gdes", "es", "nes"] = "gdes"
    """Embeddings: gradient-disentangled sharing, one table for both, or none shared."""
    decoupled: bool = True
    """Update the generator, then the discriminator, on the same batch; or both at once, by the sum of their losses."""
    generator_layers: Annotated[int, Field(ge=2)] | None = None
    """Layers of the generator; None: half of the discriminator's, at least 2, or those of the one continued from."""
    detection_weight: Annotated[float, Field(gt=0)] = 50.0
    """Lambda, the weight of the discriminator's mean loss beside the generator's."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the softmax that replacements are drawn from."""

    @model_validator(mode="after")
    def _one_table_has_one_update(self) -> RtdConfig:
        if self.sharing == "es" and self.decoupled:
            raise ValueError("sharing 'es' trains one table with both losses at once; set decoupled to false.")
        return self
