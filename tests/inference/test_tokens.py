"""Token classification of plain text: words, pieces, windows, entities."""

import dataclasses
import unicodedata

import pytest
import torch

from unbraid.errors import InputError
from unbraid.inference.tokens import Sentence, TokenClassifier, token_windows
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForTokenClassification
from unbraid.text.tokenizer import train_tokenizer

LINES = [
    f"{who} of {where} met {who} in {where}, twice." for who in ("Ann", "Bob") for where in ("Oslo", "New York")
] * 9
BIO = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    return train_tokenizer(LINES, request.param, 29 if request.param == "unigram" else 275)


def tiny(vocab_size, labels=BIO):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, position_buckets=8, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    model = DebertaForTokenClassification(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ann's e-mail: 3.5%", ["Ann", "'", "s", "e", "-", "mail", ":", "3", ".", "5", "%"]),
        ("", []),
        (" \n\t", []),
        ("naïve ﬁx\u2028x_1", ["naïve", "ﬁx", "x_1"]),
        ("東京へgo", ["東", "京", "へ", "go"]),
        ("cafe\u0301s, e\u0301", ["cafe\u0301s", ",", "e\u0301"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cخواهم ❤\ufe0f!", ["می\u200cخواهم", "❤\ufe0f", "!"]),
        ("ลัง", ["ลั", "ง"]),
        ("\u0301x", ["\u0301", "x"]),
    ],
)
def test_words_of_a_text(text, words):
    sentence = Sentence.of(text)
    assert sentence.text == text
    assert [text[start:end] for start, end in sentence.words] == words


def test_words_as_they_come():
    words = ["New York", "", "é", "!"]
    sentence = Sentence.of(words)
    assert [sentence.text[start:end] for start, end in sentence.words] == words
    with pytest.raises(InputError, match="holds 3; give texts"):
        Sentence.of(["a", 3])


@pytest.mark.parametrize("max_length", [3, 5, 9, 64])
@pytest.mark.parametrize(
    "text",
    ["Ann met Bob in New York.", "", "Zoë \u200b of  Oslo\u00a0\u3000twice", "ｆｕｌｌ ﬁ ½ Åse e\u0301", "\u200b"],
)
def test_each_word_is_read_once_from_its_first_piece(tokenizer, text, max_length):
    sentence, encoding = Sentence.of(text), tokenizer.encode(text)
    windows = token_windows(sentence, encoding, max_length, overlap=2)
    read = [word for window in windows for word in window.words]
    assert len(read) == len(set(read))
    for window in windows:
        assert len(window.ids) <= max_length
        assert (window.ids[0], window.ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
        assert all(0 < piece < len(window.ids) - 1 for piece in window.pieces)
    # The first piece, found the slow way: of the tokens with a character of the word, the first.
    whole = token_windows(sentence, encoding, 1000, overlap=0)[0]
    slow = {}
    for word, (start, end) in enumerate(sentence.words):
        inside = [place for place, (first, last) in enumerate(encoding.offsets) if max(first, start) < min(last, end)]
        if inside:
            slow[word] = inside[0]
    assert dict(zip(whole.words, whole.pieces, strict=True)) == slow
    assert sorted(read) == sorted(slow)
    for window in windows:
        for word, piece in zip(window.words, window.pieces, strict=True):
            assert window.ids[piece] == encoding.ids[slow[word]]


def probabilities(model, tokenizer, words):
    """Of each word's first piece, by one padded call on the whole text."""
    encoding = tokenizer.encode(" ".join(words))
    logits = model.eval()(torch.tensor([encoding.ids])).logits[0].detach()
    rows, end = [], -1
    for word in words:
        start, end = end + 1, end + 1 + len(word)
        rows.append(next(i for i, (a, b) in enumerate(encoding.offsets) if a < b and b > start and a < end))
    return logits[rows].softmax(-1)


WORDS = ["Ann", "met", "Bob", "in", "New", "York", ",", "twice"]


@pytest.mark.parametrize("tokens_per_batch", [1, 30, 8192])
def test_labels_are_those_of_one_padded_call(tokenizer, tokens_per_batch):
    model = tiny(len(tokenizer))
    classifier = TokenClassifier(model, tokenizer, tokens_per_batch=tokens_per_batch)
    texts = [WORDS, "Bob in Oslo, twice", [], WORDS[3:], ""]
    outputs = classifier.outputs(texts)
    predictions = classifier.predict(texts)
    for text, output, prediction in zip(texts, outputs, predictions, strict=True):
        words = text if isinstance(text, list) else ["Bob", "in", "Oslo", ",", "twice"][: 5 * bool(text)]
        assert [word["text"] for word in prediction["words"]] == words
        if text == WORDS:
            expected = probabilities(model, tokenizer, words)
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
            assert [word["label"] for word in prediction["words"]] == [BIO[int(best)] for best in expected.argmax(-1)]
            assert [word["score"] for word in prediction["words"]] == pytest.approx(
                expected.amax(-1).tolist(), rel=1e-4
            )
    assert outputs[2].shape == (0, 5)
    assert predictions[2] == predictions[4] == {"words": [], "entities": []}


def test_a_long_text_is_read_in_windows_with_offsets_into_the_whole(tokenizer):
    model = tiny(len(tokenizer))
    text = " Ann met  Bob in New York, twice." * 200
    prediction = TokenClassifier(model, tokenizer, max_length=24, overlap=8).predict([text])[0]
    assert [word["text"] for word in prediction["words"]] == [
        "Ann",
        "met",
        "Bob",
        "in",
        "New",
        "York",
        ",",
        "twice",
        ".",
    ] * 200
    for each in (*prediction["words"], *prediction["entities"]):
        assert text[each["start"] : each["end"]] == each["text"]
    assert prediction["words"][-1]["end"] == len(text)
    assert all(word["score"] > 0.2 for word in prediction["words"])  # all of them were read
    # A window reads like a text of its own: its first words are those of a call on the beginning alone.
    ids = tokenizer.encode(text).ids
    alone = model.eval()(torch.tensor([[*ids[:23], ids[-1]]])).logits[0].softmax(-1)
    first = next(i for i, (a, b) in enumerate(tokenizer.encode(text).offsets) if (a, b) != (0, 0) and b > 1)
    assert prediction["words"][0]["score"] == pytest.approx(alone[first].max().item(), rel=1e-4)


class Fixed(torch.nn.Module):
    """Answers labels by token id, so that what is made of them can be told in advance."""

    def __init__(self, model, label_of):
        super().__init__()
        self.config, self.label_of, self.weight = model.config, label_of, model.classifier.weight

    def forward(self, input_ids, **_):
        labels = torch.tensor([self.label_of.get(token, BIO.index("O")) for token in input_ids.tolist()])
        return dataclasses.make_dataclass("Output", ["logits"])(10.0 * torch.nn.functional.one_hot(labels, len(BIO)))


@pytest.mark.parametrize(
    ("labels", "entities"),
    [
        ("O B-LOC I-LOC O", [("new york", "LOC")]),
        ("I-PER I-LOC I-LOC O", [("ann", "PER"), ("new york", "LOC")]),
        ("B-PER B-PER B-LOC I-PER", [("ann", "PER"), ("new", "PER"), ("york", "LOC"), ("!", "PER")]),
        ("O O O O", []),
    ],
)
def test_entities(labels, entities):
    text = "  ann  new\u00a0york!"
    bpe = train_tokenizer(["ann new york !"] * 20, "bpe", 271)
    encoding, label_of = bpe.encode(text), {}
    for (start, _), label in zip(Sentence.of(text).words, labels.split(), strict=True):
        piece = next(i for i, (a, b) in enumerate(encoding.offsets) if a < b and a == start)
        label_of[encoding.ids[piece]] = BIO.index(label)
    assert len(label_of) == 4
    found = TokenClassifier(Fixed(tiny(len(bpe)), label_of), bpe).predict([text])[0]["entities"]
    assert [(unicodedata.normalize("NFKC", each["text"]), each["label"]) for each in found] == entities
    for each in found:
        assert text[each["start"] : each["end"]] == each["text"]
        assert each["score"] == pytest.approx(1 / (1 + 4 * 2.718281828**-10), rel=1e-3)


def test_plain_tags_make_no_entities(tokenizer):
    model = tiny(len(tokenizer), labels=("NOUN", "VERB"))
    assert set(TokenClassifier(model, tokenizer).predict(["Ann met"])[0]) == {"words"}


@pytest.mark.parametrize(("labels", "silent"), [(BIO, "O"), (("NOUN", "VERB"), "NOUN")])
def test_a_word_that_the_vocabulary_has_nothing_for(labels, silent):
    unigram = train_tokenizer(LINES, "unigram", 29)
    prediction = TokenClassifier(tiny(len(unigram), labels), unigram).predict([["Ann", "\u200b", ""]])[0]
    assert [(word["label"], word["score"]) for word in prediction["words"][1:]] == [(silent, 0.0)] * 2
    assert prediction["words"][0]["score"] > 0


def test_a_folder_gives_the_same(tokenizer, tmp_path):
    model = tiny(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["Ann met Bob in New York."]
    assert TokenClassifier.from_pretrained(tmp_path).predict(texts) == TokenClassifier(model, tokenizer).predict(texts)


@pytest.mark.parametrize(
    ("texts", "pairs", "message"),
    [
        ("a text", None, "a single text came"),
        (["a"], ["b"], "it takes no pairs"),
        ([["a", None]], None, "holds None; give texts"),
        (["a\ud83d"], None, "lone surrogate"),
    ],
)
def test_what_is_no_text_is_refused(tokenizer, texts, pairs, message):
    with pytest.raises(InputError, match=message):
        TokenClassifier(tiny(len(tokenizer)), tokenizer).predict(texts, pairs)
