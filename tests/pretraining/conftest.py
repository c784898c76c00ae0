"""A tokenizer small enough to check by hand, shared by the tests of pretraining."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from unbraid.pretraining.config import CorpusConfig
from unbraid.pretraining.corpus import prepare


class ToyTokenizer:
    """Words cut into pieces of three characters; the id of a piece is its checksum."""

    pad_id, cls_id, sep_id, unk_id, mask_id = 0, 1, 2, 3, 4
    special_ids = frozenset({0, 1, 2, 3, 4})

    def __init__(self, half: int = 500):
        self.half = half
        self.texts_seen = 0
        self.continues_word = np.arange(len(self)) >= 5 + half

    def __len__(self) -> int:
        return 5 + 2 * self.half

    def piece(self, text: str, *, continues: bool) -> int:
        return 5 + zlib.crc32(text.encode()) % self.half + continues * self.half

    def words(self, text: str) -> list[int]:
        return [
            self.piece(word[at : at + 3], continues=at > 0) for word in text.split() for at in range(0, len(word), 3)
        ]

    def encode_plain(self, texts: list[str]) -> list[np.ndarray]:
        self.texts_seen += len(texts)
        return [np.array(self.words(text), dtype=np.int32) for text in texts]

    def save_pretrained(self, folder: str | Path) -> None:
        (Path(folder) / "toy.json").write_text(json.dumps({"half": self.half}), encoding="utf-8")


@pytest.fixture
def make_tokenizer() -> type[ToyTokenizer]:
    return ToyTokenizer


@pytest.fixture
def tokenizer() -> ToyTokenizer:
    return ToyTokenizer()


class NumberTokenizer(ToyTokenizer):
    """Texts are ids, written out."""

    def encode_plain(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(text.split(), dtype=np.int32) for text in texts]

    def __len__(self) -> int:
        return 1 << 17

    def save_pretrained(self, folder: str | Path) -> None:
        (Path(folder) / "numbers.txt").write_text("")


@pytest.fixture
def make_corpus(tmp_path):
    """Makes the corpus of some lists of ids, in the folder of that name."""

    def make(documents, name="corpus", **changes):
        text = tmp_path / f"{name}.txt"
        text.write_text("".join(" ".join(map(str, ids)) + "\n" for ids in documents))
        config = CorpusConfig(**{"path": str(text), "document": "line", "held_out": 0.0, **changes})
        return prepare(config, NumberTokenizer(), tmp_path / name, processes=1, shard_bytes=4000)

    return make
