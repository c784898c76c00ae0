"""Masking: measured over many tokens, and the original's walk against a second reading of its description."""

import math

import numpy as np
import pytest

from unbraid.errors import InputError
from unbraid.pretraining.config import MaskingConfig
from unbraid.pretraining.masking import Masker, example_rng

CLS, SEP, UNK, MASK = 1, 2, 3, 4


def sequences(count, length, seed=0, share_unknown=0.0):
    """Random pieces of the toy vocabulary (half of them continue a word), framed by [CLS] and [SEP]."""
    rng = np.random.default_rng(seed)
    body = rng.integers(5, 1005, (count, length - 2))
    body[rng.random(body.shape) < share_unknown] = UNK
    return np.concatenate([np.full((count, 1), CLS), body, np.full((count, 1), SEP)], 1)


def mask_all(masker, rows, epoch=0):
    pairs = [masker(row, example_rng(7, epoch, number)) for number, row in enumerate(rows)]
    return np.stack([masked for masked, _ in pairs]), np.stack([labels for _, labels in pairs])


def units_of(row, tokenizer, *, whole_words=True):
    """Lists of places, one list per word, in plain Python."""
    units = []
    for place, token in enumerate(row):
        if token in tokenizer.special_ids:
            continue
        if whole_words and units and tokenizer.continues_word[token]:
            units[-1].append(place)
        else:
            units.append([place])
    return units


@pytest.fixture(scope="module")
def wordy():
    return sequences(1000, 258)  # 256,000 tokens that are not special


@pytest.mark.parametrize("max_ngram", [1, 2, 3, 5])
def test_spread_predicts_15_percent_everywhere(tokenizer, wordy, max_ngram):
    _, labels = mask_all(Masker(MaskingConfig(max_ngram=max_ngram), tokenizer), wordy)
    rate = (labels != -100)[:, 1:-1].mean(0)
    assert rate.mean() == pytest.approx(0.15, abs=0.003)
    tenths = [part.mean() for part in np.array_split(rate, 10)]  # 25,600 tokens each
    np.testing.assert_allclose(tenths, 0.15, atol=0.012)
    assert rate[0] == pytest.approx(0.15, abs=0.05)
    assert rate[-1] == pytest.approx(0.15, abs=0.05)


def test_long_spans_begin_as_often_as_anywhere(tokenizer):
    """A tiling that began afresh with each sequence would give its first ten words 14.3 %."""
    rows = np.tile(sequences(1, 122)[0] % 500 + 5, (30_000, 1))
    rows[:, [0, -1]] = CLS, SEP
    _, labels = mask_all(Masker(MaskingConfig(max_ngram=10), tokenizer), rows)
    assert (labels != -100)[:, 1:11].mean() == pytest.approx(0.15, abs=0.004)


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.5, 0.9])
def test_spread_keeps_other_probabilities(tokenizer, wordy, probability):
    _, labels = mask_all(Masker(MaskingConfig(probability=probability), tokenizer), wordy[:400])
    assert (labels != -100)[:, 1:-1].mean() == pytest.approx(probability, abs=0.01)


def test_spread_is_even_within_each_sequence(tokenizer):
    """Independent draws of 1,022 single pieces would vary by 11.4 tokens; regular distances allow about a quarter."""
    _, labels = mask_all(Masker(MaskingConfig(max_ngram=1), tokenizer), sequences(300, 1024))
    assert (labels != -100).sum(1).std() < 3


@pytest.mark.parametrize("length", [3, 4, 6, 10, 20])
@pytest.mark.parametrize("budget", ["spread", "left_to_right"])
def test_every_sequence_has_a_prediction(tokenizer, budget, length):
    _, labels = mask_all(Masker(MaskingConfig(budget=budget), tokenizer), sequences(300, length))
    assert ((labels != -100).sum(1) >= 1).all()


def test_short_sequences_are_not_hidden_whole(tokenizer):
    rows = sequences(2000, 12)
    rows[:, 1:-1] = 5 + rows[:, 1:-1] % 500  # every piece a word
    _, labels = mask_all(Masker(MaskingConfig(), tokenizer), rows)
    assert (labels != -100)[:, 1:-1].mean() == pytest.approx(0.15, abs=0.01)
    assert (labels != -100).sum(1).max() <= 3


@pytest.mark.parametrize("budget", ["spread", "left_to_right"])
def test_nothing_to_predict_among_special_tokens(tokenizer, budget):
    ids = np.array([CLS, UNK, UNK, SEP])
    masked, labels = Masker(MaskingConfig(budget=budget), tokenizer)(ids, example_rng(0, 0, 0))
    assert masked.tolist() == ids.tolist()
    assert labels.tolist() == [-100] * 4


@pytest.mark.parametrize("budget", ["spread", "left_to_right"])
def test_special_tokens_stay_and_words_stay_whole(tokenizer, budget):
    rows = sequences(800, 130, share_unknown=0.05)
    masked, labels = mask_all(Masker(MaskingConfig(budget=budget), tokenizer), rows)
    special = np.isin(rows, list(tokenizer.special_ids))
    assert (labels[special] == -100).all()
    assert (masked[special] == rows[special]).all()
    assert (masked == rows)[labels == -100].all()
    assert (labels == rows)[labels != -100].all()
    for row, predicted in zip(rows[:200], labels[:200] != -100, strict=True):
        for places in units_of(row, tokenizer):
            assert len(set(predicted[places])) == 1


def test_single_pieces_when_max_ngram_is_1(tokenizer):
    rows = sequences(200, 130)
    _, labels = mask_all(Masker(MaskingConfig(max_ngram=1), tokenizer), rows)
    split = [
        places
        for row, predicted in zip(rows, labels != -100, strict=True)
        for places in units_of(row, tokenizer)
        if len(set(predicted[places])) == 2
    ]
    assert split


@pytest.mark.parametrize("budget", ["spread", "left_to_right"])
def test_80_10_10(tokenizer, budget):
    rows = sequences(3000, 258)  # about 115,000 predicted tokens
    masked, labels = mask_all(Masker(MaskingConfig(budget=budget), tokenizer), rows)
    predicted = labels != -100
    now, before = masked[predicted], rows[predicted]
    assert len(now) > 100_000
    other = now[(now != MASK) & (now != before)]
    # A random token is the old one once in 1,000 draws, or [MASK] in the original's.
    assert (now == MASK).mean() == pytest.approx(0.8, abs=0.005)
    assert (now == before).mean() == pytest.approx(0.1, abs=0.005)
    assert len(other) / len(now) == pytest.approx(0.1, abs=0.005)
    if budget == "spread":
        assert not set(other.tolist()) & tokenizer.special_ids
    else:
        assert {0, CLS, SEP, UNK} <= set(other.tolist())
    ordinary = other[other >= 5]
    histogram = np.histogram(ordinary, bins=10, range=(5, 1005))[0] / len(ordinary)
    np.testing.assert_allclose(histogram, 0.1, atol=0.012)


def test_fractions_of_the_configuration(tokenizer):
    rows = sequences(200, 258)
    masked, labels = mask_all(Masker(MaskingConfig(mask_fraction=1.0, keep_fraction=0.0), tokenizer), rows)
    assert (masked[labels != -100] == MASK).all()
    masked, labels = mask_all(Masker(MaskingConfig(mask_fraction=0.0, keep_fraction=1.0), tokenizer), rows)
    assert (masked == rows).all()
    assert (labels != -100).any()


def test_span_lengths_follow_one_over_n(tokenizer):
    """Runs of single-piece words; at 2 % the spans of a row are far apart, so that hardly two of them touch."""
    rows = sequences(2000, 1002)
    rows[:, 1:-1] = 5 + rows[:, 1:-1] % 500
    _, labels = mask_all(Masker(MaskingConfig(probability=0.02), tokenizer), rows)
    hidden = np.pad(labels != -100, ((0, 0), (1, 1))).astype(int)
    edges = np.diff(hidden, axis=1)
    runs = np.argwhere(edges == -1)[:, 1] - np.argwhere(edges == 1)[:, 1]
    share = np.bincount(runs, minlength=4)[1:4] / len(runs)
    expected = np.array([1, 1 / 2, 1 / 3]) / (1 + 1 / 2 + 1 / 3)
    np.testing.assert_allclose(share, expected, atol=0.02)


def original(row, tokenizer, rng, *, max_ngram, probability=0.15, mask=0.8, keep=0.1):
    """The original's procedure, written from its description: units, windows, then the walk with a budget."""
    units = units_of(row, tokenizer, whole_words=max_ngram > 1)
    weights = [1 / n for n in range(1, max_ngram + 1)]
    marked, offset = set(), 0
    while offset < len(units):
        draw, n = rng.random() * sum(weights), 1
        while draw >= sum(weights[:n]) and n < max_ngram:
            n += 1
        context = min(n * int(1 / probability), len(units) - offset)
        start = offset + rng.randint(0, context - 1)
        end = min(start + n, len(units))
        marked |= set(range(start, end))
        offset = max(offset + context, end)
    budget = min(math.ceil(512 * probability / 10) * 10, max(1, round(probability * len(row))))
    masked, labels, count = list(row), [-100] * len(row), 0
    for number, places in enumerate(units):
        if number in marked:
            for place in places:
                labels[place] = row[place]
                count += 1
                fate = rng.random()
                if fate < mask:
                    masked[place] = MASK
                elif fate >= mask + keep:
                    masked[place] = rng.choice(list(range(len(tokenizer))))
            if count >= budget:
                break
    return masked, labels


@pytest.mark.parametrize("length", [3, 4, 9, 64, 130, 512, 700])
@pytest.mark.parametrize("max_ngram", [1, 3])
def test_left_to_right_is_the_original(tokenizer, max_ngram, length):
    masker = Masker(MaskingConfig(budget="left_to_right", max_ngram=max_ngram), tokenizer)
    for number, row in enumerate(sequences(30, length, seed=length, share_unknown=0.03)):
        masked, labels = masker(row, example_rng(0, 0, number))
        expected = original(row.tolist(), tokenizer, example_rng(0, 0, number), max_ngram=max_ngram)
        assert (masked.tolist(), labels.tolist()) == expected


@pytest.mark.parametrize(("max_ngram", "tail"), [(1, 0.009), (3, 0.021)])
def test_left_to_right_starves_the_tail(tokenizer, max_ngram, tail):
    """The rates measured on the original code with one-piece words: hardly anything in the last tenth."""
    rows = sequences(1500, 512)
    rows[:, 1:-1] = 5 + rows[:, 1:-1] % 500
    config = MaskingConfig(budget="left_to_right", max_ngram=max_ngram)
    _, labels = mask_all(Masker(config, tokenizer), rows)
    rate = (labels != -100)[:, 1:-1].mean(0)
    assert rate[-51:].mean() == pytest.approx(tail, abs=0.003)
    assert rate[:-51].mean() == pytest.approx(1 / 6, abs=0.003)


def test_left_to_right_predicts_at_most_80_and_a_word(tokenizer):
    _, labels = mask_all(Masker(MaskingConfig(budget="left_to_right", max_ngram=1), tokenizer), sequences(20, 1024))
    assert (labels != -100).sum(1).tolist() == [80] * 20


def test_masks_are_a_function_of_seed_epoch_and_row(tokenizer):
    masker = Masker(MaskingConfig(), tokenizer)
    row = sequences(1, 258)[0]
    before = row.copy()
    first = [part.tolist() for part in masker(row, example_rng(1, 2, 3))]
    assert (row == before).all()
    assert [part.tolist() for part in masker(row, example_rng(1, 2, 3))] == first
    others = [masker(row, example_rng(*key))[0].tolist() for key in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (12, 3, 3)]]
    assert first[0] not in others


@pytest.mark.parametrize(
    "fault",
    [
        {"probability": 0},
        {"probability": 1},
        {"max_ngram": 0},
        {"mask_fraction": 0.8, "keep_fraction": 0.3},
        {"budget": "right_to_left"},
        {"ngram": 3},
    ],
)
def test_bad_masking_configuration(fault):
    with pytest.raises(InputError, match=next(iter(fault))):
        MaskingConfig(**fault)
