"""Tiny tokenizers, trained on a made-up text."""

from __future__ import annotations

import numpy as np
import pytest

from unbraid.text.tokenizer import Tokenizer, train_tokenizer

_WORDS = [
    *["the", "a", "of", "in", "on", "and", "to", "was", "is", "with", "for", "old", "new", "slowly"],
    *["king", "queen", "river", "mountain", "village", "stone", "bridge", "winter", "summer", "children", "teacher"],
    *[
        "France",
        "Paris",
        "London",
        "wörld",
        "café",
        "naïve",
        "señor",
        "straße",
        "день",
        "ночь",
        "город",
        "日本語",
        "שלום",
    ],
    *["1914", "20", "3,000", "don't", "it's", "well-known", '"quoted"', "(aside)", "—", "…"],
]
_STEMS = ["walk", "build", "carr", "land", "wood", "ston", "brav", "form", "reign", "cross", "gather", "wander"]
_ENDINGS = ["", "s", "ed", "ing", "er", "ers", "ly", "ness", "less"]


def _sentences(count: int) -> list[str]:
    rng = np.random.default_rng(7)
    words = _WORDS + [stem + ending for stem in _STEMS for ending in _ENDINGS]
    return [
        " ".join(rng.choice(words, rng.integers(4, 14))).capitalize() + rng.choice([".", "!", "?", ";"])
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return _sentences(600)


@pytest.fixture(scope="session")
def unigram(corpus: list[str]) -> Tokenizer:
    return train_tokenizer(corpus, "unigram", 300, character_coverage=1.0)


@pytest.fixture(scope="session")
def bpe(corpus: list[str]) -> Tokenizer:
    return train_tokenizer(corpus, "bpe", 420)


@pytest.fixture(params=["unigram", "bpe", "unigram as json"])
def tokenizer(
    request: pytest.FixtureRequest, unigram: Tokenizer, bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "unigram as json":
        folder = tmp_path_factory.mktemp("json")
        unigram.save_pretrained(folder)
        (folder / "spm.model").unlink()
        return Tokenizer.from_pretrained(folder)
    return {"unigram": unigram, "bpe": bpe}[request.param]
