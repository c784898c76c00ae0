"""Where the last layer looks: shares reckoned by hand, weights that know no padding, the same texts for every model."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import Deberta
from unbraid.pretraining.attention_maps import (
    MAP_TOKENS,
    MEASURED_ROWS,
    Attention,
    frequent_pieces,
    last_attention,
    measure,
    shares,
)

CONFIG = DebertaConfig(
    vocab_size=200,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=512,
    position_buckets=None,
    share_att_key=False,
    norm_rel_ebd="none",
)
CHANGES = {
    "deberta": {},
    "roberta": {"relative_attention": False, "pos_att_type": (), "position_biased_input": True},
    "convolution": {"conv_kernel_size": 3},
    "one layer": {"num_hidden_layers": 1},
}


class Spelling:
    """Ids are spelled as numbers."""

    cls_id, sep_id = 1, 2

    def token(self, index: int) -> str:
        return f"<{index}>"


def encoder_of(seed: int = 0, **changes: object) -> Deberta:
    """An encoder with large weights, which looks at some tokens more than at others."""
    torch.manual_seed(seed)
    encoder = Deberta(CONFIG.replace(**changes)).eval()
    for module in encoder.modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d)):
            nn.init.normal_(module.weight, std=0.3)
    return encoder


def few(*numbers: int) -> np.ndarray:
    return np.isin(np.arange(7), numbers)


def one(weights: torch.Tensor, frequent: np.ndarray) -> dict[str, float]:
    return shares([weights[None]], [frequent])


def test_a_model_that_keeps_to_itself_is_all_diagonal():
    found = one(torch.eye(7), few(2, 3))
    assert found == {"itself": 1, "near": 0, "[CLS]": 0, "[SEP]": 0, "frequent": 0}


def test_a_model_that_looks_everywhere_alike():
    """Of 7 tokens 5 are ordinary; these have 2, 3, 4, 3, 2 ordinary ones at distance 1 or 2."""
    found = one(torch.full((7, 7), 1 / 7), few(2, 3))
    # Tokens 2 and 3 are frequent: the three others look at two of them, they themselves at the other one.
    expected = {"itself": 1 / 7, "near": 14 / 35, "[CLS]": 1 / 7, "[SEP]": 1 / 7, "frequent": (3 * 2 + 2 * 1) / 35}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("goals", "expected"),
    [
        ([0, 0, 0, 0, 0], {"[CLS]": 1}),
        ([6, 6, 6, 6, 6], {"[SEP]": 1}),
        ([2, 1, 4, 3, 4], {"near": 1, "frequent": 1 / 5}),  # one step; only token 2 is frequent
        ([3, 4, 1, 2, 3], {"near": 1, "frequent": 1 / 5}),  # two steps, to either side
        ([2, 2, 2, 2, 2], {"itself": 1 / 5, "near": 3 / 5, "frequent": 4 / 5}),  # a stripe
        ([5, 5, 0, 1, 1], {"[CLS]": 1 / 5}),  # 1 to 5, 2 to 5, 4 to 1 and 5 to 1 are far
    ],
)
def test_each_token_that_is_looked_at_counts_where_it_belongs(goals, expected):
    weights = torch.zeros(7, 7)
    weights[torch.arange(1, 6), torch.tensor(goals)] = 1
    weights[0, 0] = weights[6, 6] = 1  # what [CLS] and [SEP] do is not asked
    found = one(weights, few(2))
    assert {name: share for name, share in found.items() if share} == pytest.approx(expected)


def test_heads_weigh_alike_and_rows_by_their_tokens():
    heads = torch.stack([torch.eye(5), torch.zeros(5, 5)])
    heads[1, :, 0] = 1
    alone = torch.zeros(1, 3, 3)
    alone[0, :, 2] = 1
    nothing = np.zeros(5, bool)
    found = shares(iter([heads, alone]), [nothing, nothing[:3]])
    assert found == pytest.approx({"itself": 3 / 8, "near": 0, "[CLS]": 3 / 8, "[SEP]": 1 / 4, "frequent": 0})


@pytest.mark.parametrize("kind", CHANGES)
def test_the_weights_are_the_models_and_padding_does_not_count(kind):
    encoder = encoder_of(**CHANGES[kind])
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 200, length) for length in (9, 3, 17, 4)]
    ids = torch.zeros(4, 20, dtype=torch.int64)
    mask = torch.zeros(4, 20, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row)
        mask[number, : len(row)] = 1
    with torch.no_grad():
        padded = encoder(ids, mask, output_attentions=True).attentions[-1]
    together = list(last_attention(encoder, rows))
    for number, row in enumerate(rows):
        (alone,) = last_attention(encoder, [row])
        assert_close(together[number], alone)
        assert_close(alone, padded[number, :, : len(row), : len(row)])
        assert_close(alone.sum(-1), torch.ones(2, len(row)))
        assert not alone.requires_grad
    assert together[0].std() > 0.02, "a model that looks everywhere alike shows nothing"


def test_many_rows_come_in_their_order():
    encoder = encoder_of()
    rows = [np.arange(3, 6 + number) for number in range(37)]
    found = list(last_attention(encoder, rows))
    assert [weights.shape[-1] for weights in found] == [len(row) for row in rows]
    (last,) = last_attention(encoder, rows[-1:])
    assert_close(found[-1], last)


def test_the_frequent_pieces_are_the_most_frequent_between_the_special_tokens():
    rows = [np.array([1, 50, 60, 50, 2]), np.array([1, 70, 60, 2]), np.array([1, *range(100, 140), 2])]
    assert frequent_pieces(rows).tolist() == [50, 60, 70, *range(100, 117)]


def test_every_model_is_measured_on_the_same_texts(make_corpus):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 300, 150)
    documents = make_corpus([rng.integers(5, 200, length).tolist() for length in lengths], held_out=0.5).held_out
    first, again, other = (
        measure(encoder, Spelling(), documents, 512) for encoder in (encoder_of(), encoder_of(), encoder_of(1))
    )
    assert first == again
    assert first.even == other.even
    assert first.shares != other.shares
    assert [text.tokens for text in first.maps] == [text.tokens for text in other.maps]
    texts = [text.tokens for text in first.maps]
    assert len(texts) == 2
    assert texts[0] != texts[1]
    kept = [" ".join(f"<{index}>" for index in ids) for ids in documents]
    for text in first.maps:
        assert len(text.tokens) == MAP_TOKENS
        assert text.tokens[0] == "<1>"
        assert text.tokens[-1] == "<2>"
        assert any(" ".join(text.tokens[1:-1]) in document for document in kept)
        assert np.sum(text.weights, axis=1) == pytest.approx(np.ones(MAP_TOKENS), abs=1e-3)
    # The map of the first text, from its tokens.
    ids = np.array([int(token[1:-1]) for token in texts[0]])
    (weights,) = last_attention(encoder_of(), [ids])
    np.testing.assert_allclose(first.maps[0].weights, weights.mean(0).numpy(), atol=1e-5)
    written = json.dumps(dataclasses.asdict(first))
    assert Attention.from_json(json.loads(written)) == first
    assert len(written) < 50_000, "small"


def test_the_rows_that_are_measured_are_bounded_and_of_all_lengths(make_corpus, monkeypatch):
    rng = np.random.default_rng(0)
    documents = make_corpus([rng.integers(5, 200, 1 + number).tolist() for number in range(100)]).train
    seen = []

    def noted(encoder, rows):
        seen.append([len(row) for row in rows])
        return last_attention(encoder, rows)

    monkeypatch.setattr("unbraid.pretraining.attention_maps.last_attention", noted)
    measure(encoder_of(), Spelling(), documents, 512)
    measured = max(seen, key=len)
    assert MEASURED_ROWS / 2 <= len(measured) <= MEASURED_ROWS
    assert measured == sorted(measured, reverse=True)
    assert measured[0] == 102
    assert measured[-1] < 10
    seen.clear()
    measure(encoder_of(), Spelling(), documents, 20)
    assert max(map(max, seen)) == 20, "not beyond what the model was trained on"


def test_a_single_short_text_is_enough(make_corpus):
    found = measure(encoder_of(), Spelling(), make_corpus([[7]]).train, 512)
    assert [text.tokens for text in found.maps] == [["<1>", "<7>", "<2>"]]
    assert found.even == pytest.approx({"itself": 1 / 3, "near": 0, "[CLS]": 1 / 3, "[SEP]": 1 / 3, "frequent": 0})
    assert sum(found.shares.values()) == pytest.approx(1)
