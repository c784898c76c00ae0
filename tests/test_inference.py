"""Predictions on plain text equal the model called on one padded text at a time."""

import copy
import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.inference import Difference, FillMask, Predictor, difference, group_by_length
from unbraid.inference.classes import Classifier
from unbraid.model.config import DebertaConfig
from unbraid.model.precision import set_precision
from unbraid.model.pretrained import Deberta, DebertaForMaskedLM, DebertaForSequenceClassification
from unbraid.text.tokenizer import train_tokenizer

LINES = [
    f"the {who} {does} {what}, and one dog did not."
    for who in ("dog", "quick cat", "bird", "lazy child", "old fox")
    for does in ("sat on", "ran from", "looked at", "sang to", "jumped over")
    for what in ("the mat", "a hill", "one tree", "my house")
]
TEXTS = ["w1 w2 w3 w4 w5 w6", "w7", "", "w9 w10 w11", "w1 w2", "w3 w4 w5 w6 w7 w8 w9 w10 w11 w12"]


@dataclasses.dataclass
class Words:
    """What a tokenizer answers, one id a word."""

    ids: list[int]
    segments: list[int]
    truncated: bool


class WordTokenizer:
    """[PAD] 0, [CLS] 1, [SEP] 2, [MASK] 3, and the words w4 to w39 by their number."""

    pad_id, cls_id, sep_id, mask_id = range(4)
    special_ids = frozenset(range(4))

    def __len__(self):
        return 40

    def encode_batch(self, texts, pairs=None, *, max_length=1000):
        return [self.encode(*both, max_length) for both in zip(texts, pairs or [None] * len(texts), strict=True)]

    def number(self, words):
        return [self.mask_id if word == "[MASK]" else int(word[1:]) % 36 + 4 for word in words]

    def encode(self, text, pair, max_length):
        ids = [1, *self.number(re.findall(r"\[MASK\]|w\d+", text)), 2]
        segments = [0] * len(ids)
        if pair is not None:
            second = [*self.number(re.findall(r"w\d+", pair)), 2]
            ids, segments = ids + second, segments + [1] * len(second)
        return Words(ids[:max_length], segments[:max_length], len(ids) > max_length)

    def token(self, token):
        if token >= len(self):
            raise IndexError(token)
        return "[MASK]" if token == self.mask_id else f"w{token}"

    def fill(self, text, ids):
        words = iter(ids)
        return re.sub(r"\[MASK\]", lambda _: self.token(next(words)), text)


def tiny(kind, num_labels=3, vocab_size=45, **fields):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, position_buckets=8, type_vocab_size=2,
        id2label={i: f"class {i}" for i in range(num_labels)}, **fields,
    )  # fmt: skip
    model = kind(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model.train()


def call(model, encoding, **arguments):
    with torch.no_grad():
        ids, types = torch.tensor([encoding.ids]), torch.tensor([encoding.segments])
        return model.eval()(ids, torch.ones_like(ids), types, **arguments).logits


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def trained(request):
    return train_tokenizer(LINES, request.param, 44 if request.param == "unigram" else 320)


@pytest.mark.parametrize("tokens_per_batch", [1, 12, 25, 10_000])
@pytest.mark.parametrize("paired", [False, True])
def test_classes(tokens_per_batch, paired):
    model, tokenizer = tiny(DebertaForSequenceClassification), WordTokenizer()
    pairs = TEXTS[::-1] if paired else None
    classifier = Classifier(model, tokenizer, max_length=19, tokens_per_batch=tokens_per_batch)
    predictions = classifier.predict(TEXTS, pairs)
    for prediction, encoding in zip(predictions, tokenizer.encode_batch(TEXTS, pairs), strict=True):
        assert list(prediction) == ["label", "score", "scores", "truncated"]
        assert prediction["truncated"] is False
        expected = call(model, encoding)[0].softmax(-1).tolist()
        assert prediction["scores"] == pytest.approx({f"class {i}": p for i, p in enumerate(expected)}, rel=1e-4)
        assert prediction["label"] == f"class {np.argmax(expected)}"
        assert prediction["score"] == max(prediction["scores"].values())
    assert np.ptp([prediction["score"] for prediction in predictions]) > 0.03  # so that a wrong order shows


def test_scores_of_a_regression():
    model, tokenizer = tiny(DebertaForSequenceClassification, num_labels=1), WordTokenizer()
    predictions = Classifier(model, tokenizer).predict(TEXTS)
    for prediction, encoding in zip(predictions, tokenizer.encode_batch(TEXTS, max_length=16), strict=True):
        assert prediction == {"score": pytest.approx(call(model, encoding).item(), rel=1e-4), "truncated": False}


def test_no_text_is_no_prediction():
    assert Classifier(tiny(DebertaForSequenceClassification), WordTokenizer()).predict([]) == []
    assert FillMask(tiny(DebertaForMaskedLM), WordTokenizer()).predict([]) == []
    assert Predictor(tiny(Deberta), WordTokenizer()).outputs([]) == []


def test_nothing_but_real_tokens_is_read_and_batches_stay_within_them():
    model, rows = tiny(DebertaForSequenceClassification), []
    layer = model.deberta.encoder.layers[1]
    layer.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 15, 200)
    Classifier(model, WordTokenizer(), tokens_per_batch=64).predict([" ".join(["w5"] * count) for count in counts])
    assert sum(rows) == counts.sum() + 2 * 200
    assert max(rows) <= 64
    assert min(rows[:-1]) > 64 - 17  # full but for what the next text needs
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("tokens_per_batch", [1, 30, 64, 10_000])
def test_groups_are_of_like_length(tokens_per_batch):
    lengths = np.random.default_rng(0).integers(1, 50, 300).tolist()
    groups = list(group_by_length(lengths, tokens_per_batch))
    assert sorted(index for group in groups for index in group) == list(range(300))
    for group, following in itertools.pairwise(groups):
        assert max(lengths[index] for index in group) <= min(lengths[index] for index in following)
        assert sum(lengths[index] for index in group) + lengths[following[0]] > tokens_per_batch
    assert all(len(group) == 1 or sum(lengths[index] for index in group) <= tokens_per_batch for group in groups)


@pytest.mark.parametrize(
    ("texts", "pairs", "message"),
    [
        ("a text", None, "a single text came where several are read"),
        (["a"], "b", "a single text came where several are read"),
        (["a", None], None, "Text 1 "),
        (["a", "b"], ["c"], "2 texts but 1 pairs"),
        (["a\ud83d"], None, "lone surrogate"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(trained, texts, pairs, message):
    with pytest.raises(InputError, match=message):
        Classifier(tiny(DebertaForSequenceClassification, vocab_size=len(trained)), trained).predict(texts, pairs)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_several_labels_at_once(num_labels):
    fields = {"num_labels": num_labels, "problem_type": "multi_label_classification"}
    model, tokenizer = tiny(DebertaForSequenceClassification, **fields), WordTokenizer()
    predictions = Classifier(model, tokenizer).predict(TEXTS)
    for prediction, encoding in zip(predictions, tokenizer.encode_batch(TEXTS, max_length=16), strict=True):
        expected = (1 / (1 + (-call(model, encoding)[0]).exp())).tolist()
        assert list(prediction) == ["labels", "scores", "truncated"]
        assert list(prediction["scores"].values()) == pytest.approx(expected, rel=1e-4)
        assert prediction["labels"] == [f"class {i}" for i, p in enumerate(expected) if p > 0.5]
    assert len({len(prediction["labels"]) for prediction in predictions}) > 1


def test_a_foreign_tokenizer_is_refused():
    model = DebertaForSequenceClassification(
        dataclasses.replace(tiny(DebertaForSequenceClassification).config, vocab_size=39)
    )
    with pytest.raises(InputError, match="the tokenizer has 40 tokens but the model only 39"):
        Classifier(model, WordTokenizer())


MASKED = ["w1 [MASK] w3 [MASK]", "[MASK]", "w4 w5 w6[MASK]w7 w8", "w1 w2 [MASK][MASK] w9 w9 w9 w9"]


@pytest.mark.parametrize("tokens_per_batch", [1, 20, 10_000])
@pytest.mark.parametrize("passes", [0, 2])
def test_masks_are_filled(tokens_per_batch, passes):
    model, tokenizer = tiny(DebertaForMaskedLM, mask_decoder_passes=passes), WordTokenizer()
    model.vocabulary.bias.data[40:] = 1.0  # spare rows of the table, no token of the tokenizer
    answers = FillMask(model, tokenizer, tokens_per_batch=tokens_per_batch).predict(MASKED, top_k=3)
    for text, answer in zip(MASKED, answers, strict=True):
        encoding = tokenizer.encode(text, None, 16)
        places = [place for place, token in enumerate(encoding.ids) if token == 3]
        predict = torch.tensor([[token == 3 for token in encoding.ids]])
        probabilities = call(model, encoding, predict=predict).softmax(-1).numpy()
        assert len(answer["masks"]) == len(places) == text.count("[MASK]")
        ids = []
        for row, candidates in zip(probabilities, answer["masks"], strict=True):
            best = sorted(range(40), key=lambda token: -row[token])[:3]
            assert [candidate["token"] for candidate in candidates] == [tokenizer.token(token) for token in best]
            assert [candidate["probability"] for candidate in candidates] == pytest.approx(row[best].tolist(), rel=1e-4)
            ids.append(best[0])
        assert answer["text"] == tokenizer.fill(text, ids)
        assert answer["truncated"] is False


def test_a_cut_after_the_mask_is_said():
    fill = FillMask(tiny(DebertaForMaskedLM), WordTokenizer(), max_length=6)
    assert [answer["truncated"] for answer in fill.predict(["[MASK] w1", "w1 [MASK] w1 w1 w1 w1"])] == [False, True]


@pytest.mark.parametrize(
    ("texts", "top_k", "message"),
    [
        ("[MASK]", 5, "a single text came"),
        (["w1 [MASK]", "w1"], 5, r"Text 1 has no \[MASK\]"),
        (["[MASK] w1 w2 w3 w4 [MASK]"], 5, r"Text 0 has a \[MASK\] beyond the 6 tokens"),
        (["[MASK]"], 0, "top_k is 0"),
        (["[MASK]"], 41, "top_k is 41"),
    ],
)
def test_what_cannot_be_filled_is_refused(texts, top_k, message):
    with pytest.raises(InputError, match=message):
        FillMask(tiny(DebertaForMaskedLM), WordTokenizer(), max_length=6).predict(texts, top_k=top_k)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("one [MASK] sat on the mat", "one {} sat on the mat"),
        ("[MASK] and cat", "{} and cat"),
        ("the [MASK], the [MASK].", "the {}, the {}."),
        ("the 🐍\n[MASK] —  ﬁne", "the 🐍\n{} —  ﬁne"),
    ],
)
def test_the_filled_text_reads_as_text(trained, text, filled):
    model = tiny(DebertaForMaskedLM, vocab_size=len(trained) + 3)
    words = {token: trained.decode([token]).strip() for token in np.flatnonzero(~trained.continues_word)}
    token = next(token for token, word in words.items() if word.isalpha() and len(word) > 1)
    model.vocabulary.bias.data[token] = 1000.0
    answer = FillMask(model, trained).predict([text], top_k=1)[0]
    assert answer["text"] == filled.replace("{}", words[token])
    assert answer["masks"] == [[{"token": trained.token(token), "probability": 1.0}]] * text.count("[MASK]")


@pytest.mark.parametrize(
    ("predictor", "texts"),
    [(Classifier, ["the dogs jump", "", "one cat sat"]), (FillMask, ["the [MASK] jump", "[MASK] cat [MASK] on"])],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_folder_gives_the_same_predictions(trained, predictor, texts, precision, tmp_path):
    model = tiny(predictor.head, vocab_size=len(trained))
    model.save_pretrained(tmp_path)
    trained.save_pretrained(tmp_path)
    read = predictor.from_pretrained(tmp_path, precision=precision)
    set_precision(model, precision)
    assert read.predict(texts) == predictor(model, trained).predict(texts)


@pytest.mark.parametrize("tokens_per_batch", [1, 25, 10_000])
def test_states_are_those_of_each_text_alone(tokens_per_batch):
    model, tokenizer = tiny(Deberta), WordTokenizer()
    outputs = Predictor(model, tokenizer, tokens_per_batch=tokens_per_batch).outputs(TEXTS, TEXTS[::-1])
    for output, encoding in zip(outputs, tokenizer.encode_batch(TEXTS, TEXTS[::-1], max_length=16), strict=True):
        ids, types = torch.tensor([encoding.ids]), torch.tensor([encoding.segments])
        assert torch.allclose(output, model(ids, token_type_ids=types).last_hidden_state[0], atol=1e-5)


def test_a_reader_of_its_own():
    predictor = Predictor(tiny(Deberta), WordTokenizer(), tokens_per_batch=20)
    lengths = predictor.map(lambda batch: batch.packing.offsets.diff().tolist(), predictor.encode(TEXTS))
    assert lengths == [8, 3, 2, 5, 4, 12]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("predictor", [Classifier, FillMask])
def test_order_and_company_change_nothing(predictor, precision):
    model, texts = tiny(predictor.head), TEXTS if predictor is Classifier else MASKED
    set_precision(model, precision)
    alone = [Predictor.outputs(predictor(model, WordTokenizer()), [text])[0] for text in texts]
    tolerance = 0.02 if precision == "bfloat16" else 1e-5
    for order in (range(len(texts)), reversed(range(len(texts)))):
        rows = list(order)
        outputs = predictor(model, WordTokenizer(), tokens_per_batch=20).outputs([texts[row] for row in rows])
        for row, output in zip(rows, outputs, strict=True):
            assert output.dtype == torch.float32
            assert torch.allclose(output, alone[row], atol=tolerance)


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 0.02), ("int8", 0.01)])
@pytest.mark.parametrize("predictor", [Classifier, FillMask])
def test_lower_precision_stays_near(predictor, precision, bound):
    model, texts = tiny(predictor.head), TEXTS if predictor is Classifier else MASKED
    expected = predictor(copy.deepcopy(model), WordTokenizer()).outputs(texts)
    set_precision(model, precision)
    found = difference(expected, predictor(model, WordTokenizer()).outputs(texts))
    assert 1e-5 < found.mean <= found.largest < bound


def test_difference_counts_answers_and_gaps():
    expected = [torch.tensor([0.7, 0.2, 0.1]), torch.tensor([[0.6, 0.4], [0.5, 0.5]]), torch.tensor([2.5])]
    outputs = [torch.tensor([0.3, 0.5, 0.2]), torch.tensor([[0.8, 0.2], [0.6, 0.4]]), torch.tensor([2.4])]
    found = difference(expected, outputs)
    assert dataclasses.astuple(found) == pytest.approx((3, 1 / 3, 0.4, (0.4 + 0.2 + 0.1) / 3))
    assert difference(expected, expected) == Difference(3, 0.0, 0.0, 0.0)
    assert difference([torch.empty(0, 3)], [torch.empty(0, 3)]) == Difference(1, 0.0, 0.0, 0.0)  # a text without words
    # Where several labels may hold, each is decided apart.
    labels = [torch.tensor([0.9, 0.51])], [torch.tensor([0.9, 0.49])]
    several = Classifier(tiny(Classifier.head, problem_type="multi_label_classification"), WordTokenizer()).decision
    assert (difference(*labels).changed, difference(*labels, several).changed) == (0, 1)
    # One mask of two is enough for another answer.
    masks = [torch.tensor([[0.6, 0.4], [0.4, 0.6]])], [torch.tensor([[0.6, 0.4], [0.6, 0.4]])]
    assert difference(*masks).changed == 1
    assert str(found) == ("over 3 texts 33.3% of the answers differ, the numbers by 0.4 at most and 0.23 on average")


@pytest.mark.parametrize("outputs", [([], []), ([torch.ones(2)], []), ([torch.ones(2)], [torch.ones(3)])], ids=str)
def test_what_cannot_be_compared_is_refused(outputs):
    with pytest.raises(InputError, match="cannot be compared"):
        difference(*outputs)


def test_a_wrong_precision_is_one_sentence(trained, tmp_path):
    tiny(Deberta, vocab_size=len(trained)).save_pretrained(tmp_path)
    trained.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="precision='fp8' is unknown"):
        Predictor.from_pretrained(tmp_path, precision="fp8")


def test_masks_are_not_filled_in_pairs():
    with pytest.raises(InputError, match="single texts, no pairs"):
        FillMask(tiny(DebertaForMaskedLM), WordTokenizer()).predict(["[MASK]"], ["w1"])
