"""Two marked stretches of plain text: characters to tokens, what a text that is too long keeps, predictions."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from unbraid.errors import InputError
from unbraid.inference.spans import Marked, SpanClassifier, around, encode_marked, tokens_of
from unbraid.model.config import DebertaConfig
from unbraid.model.span_heads import DebertaForSpanClassification
from unbraid.text.tokenizer import train_tokenizer

LINES = [f"{who} of {where} met {who} in {where}, where?" for who in ("Ann", "Bob") for where in ("Oslo", "York")] * 9
TEXT = "Ann met Bob in York, where Bob met Ann."


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    return train_tokenizer(LINES, request.param, 28 if request.param == "unigram" else 275)


def tiny(vocab_size):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, position_buckets=8, type_vocab_size=2, id2label={0: "no", 1: "yes"},
    )  # fmt: skip
    model = DebertaForSpanClassification(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    "text", [TEXT, "Ｆｕｌｌ ﬁ York", "e\u0301 Zoë\u2028👍🏽 İn \u200b\x00x", "a  b", "\u0e01\u0e33 한국 漢字"]
)
def test_a_stretch_has_every_token_that_shares_a_character_with_it(tokenizer, text):
    offsets = tokenizer.encode(text).offsets[1:-1]
    for start, end in itertools.combinations(range(len(text) + 1), 2):
        found = tokens_of(offsets, (start, end))
        # A token without a character of its own is a part of the next one that has, or white space.
        assert list(found) == [
            number
            for number, (a, b) in enumerate(offsets)
            if max(a, start) < min(b, end) or (a == b and start <= a < end)
        ]


def test_every_byte_of_a_character_belongs_to_its_stretch():
    tokenizer = train_tokenizer(LINES, "bpe", 275)
    encoding = tokenizer.encode("Ann 👍 met")
    found = tokens_of(encoding.offsets[1:-1], (4, 5))
    assert tokenizer.decode([encoding.ids[1:-1][number] for number in found]).strip() == "👍"
    assert len(found) == 5  # the space and the four bytes


@pytest.mark.parametrize("size", range(1, 10))
def test_a_window_around_tokens(size):
    for start, stop in itertools.combinations(range(2, 12), 2):
        if stop - start <= size:
            window = around(range(start, stop), range(2, 11 + 1), min(size, 10))
            assert len(window) == min(size, 10)
            assert window.start <= start
            assert stop <= window.stop
            assert window.start >= 2
            assert window.stop <= 12
            left, right = start - window.start, window.stop - stop
            assert abs(left - right) <= 1 or window.start == 2 or window.stop == 12


def shown(tokenizer, encoding):
    return [tokenizer.decode(encoding.ids[start:end]).strip() for start, end in encoding.spans]


def marks(text, *words):
    """Stretches of words, each from where the one before it ends."""
    spans, end = [], 0
    for word in words:
        start = text.index(word, end)
        spans.append((start, start + len(word)))
        end = start + len(word)
    return tuple(spans)


def test_a_text_that_fits_is_as_any_other(tokenizer):
    (encoding,) = encode_marked(tokenizer, [Marked(TEXT, marks(TEXT, "Ann", "Bob"))], None, 100)
    plain = tokenizer.encode(TEXT)
    assert (encoding.ids, encoding.segments, encoding.truncated) == (plain.ids, plain.segments, False)
    assert shown(tokenizer, encoding) == ["Ann", "Bob"]


def test_a_pair_that_fits_is_as_any_other(tokenizer):
    other = "where? in York."
    marked = Marked(TEXT, (*marks(TEXT, "York"), *marks(other, "York")))
    (encoding,) = encode_marked(tokenizer, [marked], [other], 100)
    plain = tokenizer.encode(TEXT, other)
    assert (encoding.ids, encoding.segments, encoding.truncated) == (plain.ids, plain.segments, False)
    assert shown(tokenizer, encoding) == ["York", "York"]
    assert encoding.spans[0][1] < plain.ids.index(tokenizer.sep_id) < encoding.spans[1][0]


def test_stretches_in_any_order_and_one_within_the_other(tokenizer):
    whole, inner = (0, len("Ann met Bob")), marks(TEXT, "met")[0]
    for spans, words in (
        (marks(TEXT, "Ann", "York")[::-1], ["York", "Ann"]),
        ((whole, inner), ["Ann met Bob", "met"]),
        ((inner, whole), ["met", "Ann met Bob"]),
        ((inner, inner), ["met", "met"]),
    ):
        (encoding,) = encode_marked(tokenizer, [Marked(TEXT, spans)], None, 100)
        assert shown(tokenizer, encoding) == words


LONG = "of Oslo " * 40 + "Ann " + "in York, " * 3 + "Bob " + "of Oslo " * 40
FAR = "of Oslo " * 20 + "Ann " + "in York, " * 60 + "Bob " + "of Oslo " * 30


def inner(encoding):
    return encoding.ids[1:-1]


def contains(ids, part):
    return any(ids[at : at + len(part)] == part for at in range(len(ids) - len(part) + 1))


@pytest.mark.parametrize("turned", [False, True])
def test_a_long_text_keeps_one_window_around_both(tokenizer, turned):
    spans = marks(LONG, "Ann", "Bob")
    (encoding,) = encode_marked(tokenizer, [Marked(LONG, spans[::-1] if turned else spans)], None, 60)
    assert len(encoding.ids) == 60
    assert encoding.truncated
    assert shown(tokenizer, encoding) == (["Bob", "Ann"] if turned else ["Ann", "Bob"])
    assert contains(tokenizer.encode(LONG).ids, inner(encoding))
    first, last = min(encoding.spans)[0] - 1, 59 - max(encoding.spans)[1]
    assert abs(first - last) <= 1


def test_a_stretch_within_the_other_of_a_long_text(tokenizer):
    outer = (LONG.index("Ann"), LONG.index("Bob") + 3)
    inner_one = (outer[0] + 4, outer[0] + 6)
    offsets = tokenizer.encode(LONG).offsets[1:-1]
    sizes = [len(tokens_of(offsets, span)) for span in (outer, inner_one)]
    for spans, lengths in (((outer, inner_one), sizes), ((inner_one, outer), sizes[::-1])):
        (encoding,) = encode_marked(tokenizer, [Marked(LONG, spans)], None, sizes[0] + 2)
        assert [end - start for start, end in encoding.spans] == lengths
        assert min(encoding.spans) == (1, 1 + sizes[0])
        assert len(encoding.ids) == sizes[0] + 2


@pytest.mark.parametrize("max_length", [20, 33])
def test_stretches_far_apart_keep_a_window_each(tokenizer, max_length):
    (encoding,) = encode_marked(tokenizer, [Marked(FAR, marks(FAR, "Ann", "Bob"))], None, max_length)
    assert len(encoding.ids) == max_length
    assert encoding.truncated
    assert encoding.segments == [0] * max_length
    assert shown(tokenizer, encoding) == ["Ann", "Bob"]
    whole, ids = tokenizer.encode(FAR).ids, inner(encoding)
    assert not contains(whole, ids)
    (_, first), (second, _) = encoding.spans
    cuts = [at for at in range(len(ids)) if contains(whole, ids[:at]) and contains(whole, ids[at:])]
    assert any(first - 1 <= at <= second - 1 and abs(len(ids) - 2 * at) <= 1 for at in cuts)  # half for each


@pytest.mark.parametrize("short", ["text", "pair", "neither"])
def test_a_long_pair_keeps_a_window_of_each(tokenizer, short):
    text, other = ("Ann met Bob." if short == side else LONG for side in ("text", "pair"))
    marked = Marked(text, (marks(text, "Ann")[0], marks(other, "Bob")[0]))
    (encoding,) = encode_marked(tokenizer, [marked], [other], 40)
    assert len(encoding.ids) == len(encoding.segments) == 40
    assert encoding.truncated
    assert shown(tokenizer, encoding) == ["Ann", "Bob"]
    end = encoding.ids.index(tokenizer.sep_id)
    assert encoding.segments == [0] * (end + 1) + [1] * (39 - end)
    assert encoding.spans[0][1] <= end < encoding.spans[1][0]
    if short == "text":
        assert encoding.ids[: end + 1] == tokenizer.encode(text).ids
    if short == "pair":
        assert encoding.ids[end:] == [tokenizer.sep_id, *tokenizer.encode(other).ids[1:]]


def test_a_long_stretch_takes_what_it_needs_of_a_pair(tokenizer):
    """Though by its length the second text would keep more."""
    stretch = "of Oslo " * 8 + "of"
    needed = len(inner(tokenizer.encode(stretch)))
    text = "of Oslo " * 9
    marked = Marked(text, ((0, len(stretch)), marks(LONG, "Ann")[0]))
    ann = len(tokens_of(tokenizer.encode(LONG).offsets[1:-1], marked.spans[1]))
    (encoding,) = encode_marked(tokenizer, [marked], [LONG], needed + ann + 3)
    (start, end), other = encoding.spans
    assert (start, end - start) == (1, needed)
    assert other == (end + 1, end + 1 + ann)
    with pytest.raises(InputError, match=f"text 0: its stretches have {needed + ann} tokens, and .* raise max_length"):
        encode_marked(tokenizer, [marked], [LONG], needed + ann + 2)


def test_a_stretch_at_every_place_of_a_long_text(tokenizer):
    """At the borders of the text too."""
    text = "Ann met Bob in York, " * 6
    offsets = tokenizer.encode(text).offsets[1:-1]
    words = [(start, end) for start, end in offsets if start < end]
    marked = [Marked(text, both) for both in itertools.product(words[:2] + words[15:17] + words[-2:], words)]
    for each, encoding in zip(marked, encode_marked(tokenizer, marked, None, 14), strict=True):
        assert len(encoding.ids) == 14
        for span, (start, end) in zip(each.spans, encoding.spans, strict=True):
            tokens = tokens_of(offsets, span)
            assert encoding.ids[start:end] == tokenizer.encode(text).ids[tokens.start + 1 : tokens.stop + 1]
            assert 1 <= start < end <= 13


@pytest.mark.parametrize(
    ("marked", "pairs", "message"),
    [
        (Marked("Ann", ((0, 3), (2, 4))), None, "here: characters 2 to 4 are no stretch of a text of 3"),
        (Marked("Ann", ((0, 3), (-1, 2))), None, "characters -1 to 2 are no stretch"),
        (Marked("Ann", ((2, 2), (0, 2))), None, "characters 2 to 2 are no stretch"),
        (Marked("Ann", ((0, 3), (0, 4))), ["Bob met"], None),
        (Marked("Ann", ((0, 3), (0, 4))), ["Bob"], "characters 0 to 4 are no stretch of a text of 3"),
        (Marked("Ann  Bob", ((0, 3), (3, 4))), None, "characters 3 to 4 stand for no token"),
        (Marked("Ann", ((0, 3), (0, 3))), ["a", "b"], "there are 1 texts but 2 second texts"),
        (Marked("Ann", ((0, 3), (0, 3))), [], "there are 1 texts but 0 second texts"),
        (Marked("Ann\ud83d", ((0, 3), (0, 3))), None, "lone surrogate"),
    ],
)
def test_what_cannot_be_marked(tokenizer, marked, pairs, message):
    if message is None:
        assert encode_marked(tokenizer, [marked], pairs, 50, ["here"])
        return
    with pytest.raises(InputError, match=message):
        encode_marked(tokenizer, [marked], pairs, 50, ["here"])


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 8192])
@pytest.mark.parametrize("paired", [False, True])
def test_predictions_are_those_of_padded_calls(tokenizer, tokens_per_batch, paired):
    model = tiny(len(tokenizer))
    others = ["where? Bob", TEXT, "Bob"] if paired else None
    second = others or [TEXT, "Ann met Bob.", LONG]
    texts = [
        Marked(text, (marks(text, "Ann")[0], marks(other, "Bob")[0]))
        for text, other in zip([TEXT, "Ann met Bob.", LONG], second, strict=True)
    ]
    classifier = SpanClassifier(model, tokenizer, max_length=60, tokens_per_batch=tokens_per_batch)
    predictions = classifier.predict(texts, others)
    assert [each["truncated"] for each in predictions] == [False, False, True]
    for prediction, output, encoding in zip(
        predictions, classifier.outputs(texts, others), encode_marked(tokenizer, texts, others, 60), strict=True
    ):
        wanted = (
            model(
                torch.tensor([encoding.ids]),
                token_type_ids=torch.tensor([encoding.segments]),
                spans=torch.tensor(encoding.spans),
            )
            .logits[0]
            .softmax(-1)
        )
        assert output.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
        assert list(prediction["scores"]) == ["no", "yes"]
        assert list(prediction["scores"].values()) == pytest.approx(wanted.tolist(), rel=1e-4)
        assert prediction["label"] == ["no", "yes"][int(wanted.argmax())]
        assert prediction["score"] == max(prediction["scores"].values())
    json.dumps(predictions, allow_nan=False)


def test_nothing_to_read_and_texts_without_stretches(tokenizer):
    classifier = SpanClassifier(tiny(len(tokenizer)), tokenizer)
    assert classifier.predict([]) == []
    for texts in (["Ann met Bob."], "Ann"):
        with pytest.raises(InputError, match="texts without any"):
            classifier.predict(texts)
