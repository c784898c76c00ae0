"""Classification of texts longer than the model reads: windows, their characters, and the mean over them."""

import itertools

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.inference.classes import Classifier
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForSequenceClassification
from unbraid.text.tokenizer import train_tokenizer

WORDS = ["the", "old", "river", "runs", "by", "many", "bridges", "of", "stone"]
LINES = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 9)) + "." for i in range(60)]
LONG = "  " + "  ".join(np.random.default_rng(0).choice([*WORDS, "ﬁre,", "Zoë", "İ"], 90)) + " "
SHORT = "the old bridges."


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    return train_tokenizer(LINES, request.param, 34 if request.param == "unigram" else 275)


def tiny(tokenizer, num_labels=3, **fields):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, position_buckets=8, type_vocab_size=2,
        id2label={i: f"class {i}" for i in range(num_labels)}, **fields,
    )  # fmt: skip
    model = DebertaForSequenceClassification(config)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, *((1.0, 0.1) if "norm" in name and "weight" in name else (0.0, 0.3)))
    return model.eval()


def logits_of(model, ids, segments):
    with torch.no_grad():
        ids, segments = torch.tensor([ids]), torch.tensor([segments])
        return model(ids, torch.ones_like(ids), segments).logits[0]


def expected_windows(length, size, overlap):
    """The first and last token of every window, and how many tokens are its own: to the middle of what is shared."""
    windows = []
    start = 0
    while not windows or windows[-1][1] < length:
        windows.append((start, min(start + size, length)))
        start += size - overlap
    ends = [(left[1] + right[0]) // 2 for left, right in itertools.pairwise(windows)]
    return windows, np.diff([0, *ends, length])


@pytest.mark.parametrize("tokens_per_batch", [1, 70, 8192])
@pytest.mark.parametrize(("max_length", "overlap"), [(32, 8), (17, 0), (24, 11)])
def test_a_long_text_is_read_in_windows(tokenizer, max_length, overlap, tokens_per_batch):
    model = tiny(tokenizer)
    classifier = Classifier(model, tokenizer, max_length=max_length, overlap=overlap, tokens_per_batch=tokens_per_batch)
    first, found, last = classifier.predict([SHORT, LONG, ""])
    assert "windows" not in first
    assert "windows" not in last
    encoding = tokenizer.encode(LONG)
    (cls, *ids, sep), offsets = encoding.ids, encoding.offsets[1:-1]
    windows, own = expected_windows(len(ids), max_length - 2, overlap)
    assert len(windows) > 5
    scores = []
    for (start, stop), window in zip(windows, found["windows"], strict=True):
        seen = [cls, *ids[start:stop], sep]
        scores.append(logits_of(model, seen, [0] * len(seen)).softmax(-1).numpy())
        assert window["scores"] == pytest.approx({f"class {i}": p for i, p in enumerate(scores[-1])}, rel=1e-4)
        assert window["label"] == f"class {scores[-1].argmax()}"
        assert window["score"] == max(window["scores"].values())
        assert (window["start"], window["end"]) == (offsets[start][0], offsets[stop - 1][1])
    mean = np.average(scores, axis=0, weights=own)
    assert list(found["scores"].values()) == pytest.approx(mean.tolist(), rel=1e-4)
    assert found["label"] == f"class {mean.argmax()}"
    assert found["windowed"] == "text"
    assert found["truncated"] is False
    assert np.ptp([window["score"] for window in found["windows"]]) > 0.01
    assert classifier.outputs([LONG])[0].tolist() == pytest.approx(mean.tolist(), rel=1e-4)


def test_the_windows_leave_no_character_out(tokenizer):
    (found,) = Classifier(tiny(tokenizer), tokenizer, max_length=20, overlap=4).predict([LONG])
    spans = [(window["start"], window["end"]) for window in found["windows"]]
    assert not (LONG[: spans[0][0]] + LONG[spans[-1][1] :]).strip()
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start <= end


def test_what_just_fits_is_read_at_once(tokenizer):
    model, length = tiny(tokenizer), len(tokenizer.encode(LONG).ids)
    whole, cut = (Classifier(model, tokenizer, max_length=length - less).predict([LONG])[0] for less in (0, 1))
    assert "windows" not in whole
    assert len(cut["windows"]) == 2
    length = len(tokenizer.encode(LONG, LONG).ids)  # each of them half of a window
    whole, cut = (Classifier(model, tokenizer, max_length=length - less).predict([LONG], [LONG])[0] for less in (0, 1))
    assert ("windows" in whole, whole["truncated"]) == (False, False)
    assert ("windows" in cut, cut["truncated"]) == (False, True)


@pytest.mark.parametrize("longer", ["text", "pair"])
def test_the_longer_text_of_a_pair_is_read_in_windows(tokenizer, longer):
    model, max_length, overlap = tiny(tokenizer), 64, 8
    texts = {"text": (LONG, SHORT), "pair": (SHORT, LONG)}[longer]
    (found,) = Classifier(model, tokenizer, max_length=max_length, overlap=overlap).predict([texts[0]], [texts[1]])
    (cls, *ids, sep), (_, *short, _) = tokenizer.encode(LONG).ids, tokenizer.encode(SHORT).ids
    offsets = tokenizer.encode(LONG).offsets[1:-1]
    windows, own = expected_windows(len(ids), max_length - 3 - len(short), overlap)
    assert len(windows) > 2
    assert (found["windowed"], found["truncated"]) == (longer, False)
    scores = []
    for (start, stop), window in zip(windows, found["windows"], strict=True):
        shown = [*ids[start:stop], sep], [*short, sep]
        left, right = shown if longer == "text" else shown[::-1]
        scores.append(logits_of(model, [cls, *left, *right], [0] * (len(left) + 1) + [1] * len(right)).softmax(-1))
        assert list(window["scores"].values()) == pytest.approx(scores[-1].tolist(), rel=1e-4)
        assert (window["start"], window["end"]) == (offsets[start][0], offsets[stop - 1][1])
    mean = np.average(np.stack(scores), axis=0, weights=own)
    assert list(found["scores"].values()) == pytest.approx(mean.tolist(), rel=1e-4)


def test_of_two_long_texts_the_shorter_fills_half_of_a_window_and_says_that_it_was_cut(tokenizer):
    model = tiny(tokenizer)
    half = LONG[: len(LONG) // 2]
    (found,) = Classifier(model, tokenizer, max_length=33, overlap=4).predict([half], [LONG])
    (cls, *ids, sep), kept = tokenizer.encode(LONG).ids, tokenizer.encode(half).ids[1:16]
    windows, _ = expected_windows(len(ids), 15, 4)
    assert (found["windowed"], found["truncated"], len(found["windows"])) == ("pair", True, len(windows))
    seen = [cls, *kept, sep, *ids[:15], sep]
    first = logits_of(model, seen, [0] * 17 + [1] * 16).softmax(-1)
    assert list(found["windows"][0]["scores"].values()) == pytest.approx(first.tolist(), rel=1e-4)
    (equal,) = Classifier(model, tokenizer, max_length=33).predict([LONG], [LONG])
    assert (equal["windowed"], equal["truncated"]) == ("pair", True)


def test_scores_and_several_labels_have_means_too(tokenizer):
    model = tiny(tokenizer, num_labels=1)
    (found,) = Classifier(model, tokenizer, overlap=0).predict([LONG])
    _, own = expected_windows(len(tokenizer.encode(LONG).ids) - 2, 30, 0)
    assert set(found) == {"score", "truncated", "windowed", "windows"}
    assert set(found["windows"][0]) == {"start", "end", "score"}
    scores = [window["score"] for window in found["windows"]]
    assert found["score"] == pytest.approx(np.average(scores, weights=own), rel=1e-4)

    model = tiny(tokenizer, problem_type="multi_label_classification")
    (found,) = Classifier(model, tokenizer, overlap=0).predict([LONG])
    scores = np.array([list(window["scores"].values()) for window in found["windows"]])
    mean = np.average(scores, axis=0, weights=own)
    assert list(found["scores"].values()) == pytest.approx(mean.tolist(), rel=1e-4)
    for each in (found, *found["windows"]):
        assert each["labels"] == [name for name, score in each["scores"].items() if score >= 0.5]
    assert abs(scores.sum(-1) - 1).max() > 0.1  # no distribution over the labels


def test_a_very_long_text_never_makes_a_large_batch(tokenizer):
    model, sizes = tiny(tokenizer), []
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    text = "stone " * 20_000
    (found,) = Classifier(model, tokenizer, tokens_per_batch=500).predict([text])
    assert max(sizes) <= 500
    assert sum(sizes) >= len(tokenizer.encode(text).ids)
    assert len(found["windows"]) > 500
    assert not text[found["windows"][-1]["end"] :].strip()


@pytest.mark.parametrize(("pairs", "max_length", "least"), [(None, 2, 3), (["a"], 4, 5)])
def test_no_room_is_refused(tokenizer, pairs, max_length, least):
    with pytest.raises(InputError, match=f"max_length {max_length} leaves no room for text; give at least {least}"):
        Classifier(tiny(tokenizer), tokenizer, max_length=max_length).predict(["a"], pairs)
