"""``unbraid tokenizer``: train a tokenizer from text."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from pydantic import Field

from unbraid.settings import settings


@settings
class Config:
    """Trains a tokenizer from text files and writes its folder, which transformers reads as well."""

    action: tyro.conf.Positional[Literal["train"]]
    """What to do: train."""
    path: Annotated[tuple[str, ...], Field(min_length=1)]
    """Text to learn from: files, globs or folders as in pretraining."""
    output: str
    """Folder to write."""
    kind: Literal["unigram", "bpe"] = "unigram"
    """SentencePiece unigram (as v2 and v3) or byte-level BPE (as v1)."""
    vocab_size: Annotated[int, Field(ge=16)] = 32000
    """Number of tokens, the five special ones included."""
    column: str = "text"
    """The field of JSONL, Parquet and hub data that holds the text."""


def run(config: Config) -> None:
    """Trains, writes the folder, and shows how a sentence is cut."""
    from unbraid.pretraining.config import CorpusConfig
    from unbraid.pretraining.sources import find_sources
    from unbraid.text.tokenizer import train_tokenizer

    sources = find_sources(CorpusConfig(path=config.path, column=config.column))
    lines = (piece.text for source in sources for piece in source)
    tokenizer = train_tokenizer(lines, config.kind, config.vocab_size)
    tokenizer.save_pretrained(config.output)
    print(f"{config.output}: {len(tokenizer):,} tokens, {config.kind}")
