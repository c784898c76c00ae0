"""Token classification: reading, encoding, the loss, evaluation."""

import json
import logging

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForTokenClassification
from unbraid.objective import IGNORED
from unbraid.tasks.batches import TaskBatches
from unbraid.tasks.config import DataConfig
from unbraid.tasks.token_classification import TokenClassification, TokenObjective
from unbraid.text.tokenizer import train_tokenizer

LINES = ["Ann met Bob in New York, twice.", "Bob is of Oslo.", "Nobody met Ann's sister."] * 9
LABELS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
WORDS = DataConfig(words="tokens", label="ner")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES, "unigram", 32)


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def sentences(count, seed=0):
    """Names are persons and what follows "in" is a place."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        who, where = generator.choice(["Ann", "Bob"]), generator.choice(["New York", "Oslo"])
        place = where.split()
        rows.append(
            {
                "tokens": [who, "met", "in", *place, "."],
                "ner": ["B-PER", "O", "O", "B-LOC", *["I-LOC"] * (len(place) - 1), "O"],
            }
        )
    return rows


def tiny_model(tokenizer, seed=0, labels=LABELS, **fields):
    torch.manual_seed(seed)
    config = DebertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, position_buckets=8, id2label=dict(enumerate(labels)), **fields,
    )  # fmt: skip
    model = DebertaForTokenClassification(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def test_words_with_labels(tmp_path):
    rows = [{"tokens": ["Ann", "", "met"], "ner": ["B-PER", "O", "O"]}, {"tokens": [], "ner": []}]
    first, second = TokenClassification(data=WORDS).read(write(tmp_path / "a.jsonl", rows))
    assert first.sentence.text == "Ann  met"
    assert first.sentence.words == ((0, 3), (4, 4), (5, 8))
    assert first.labels == ("B-PER", "O", "O")
    assert second.labels == ()


def test_lists_in_a_table_are_json(tmp_path):
    (tmp_path / "a.tsv").write_text('tokens\tner\n["Ann", "met"]\t[1, 0]\n')
    assert TokenClassification(data=WORDS).read(str(tmp_path / "a.tsv"))[0].labels == ("1", "0")


def test_stretches_of_a_text_become_labels_of_its_words(tmp_path, caplog):
    spans = [{"start": 11, "end": 20, "label": "LOC"}, {"start": 0, "end": 4, "label": "PER", "id": 7}]
    rows = [
        {"text": "Ann met  in New York, twice", "label": spans},
        {"text": "Oslobound", "label": [{"start": 0, "end": 4, "label": "LOC"}]},
    ]
    with caplog.at_level(logging.WARNING):
        first, second = TokenClassification().read(write(tmp_path / "a.jsonl", rows))
    assert first.labels == ("B-PER", "O", "O", "B-LOC", "I-LOC", "O", "O")
    assert first.sentence.text == rows[0]["text"]
    assert second.labels == ("B-LOC",)
    assert caplog.messages == [
        f"{tmp_path / 'a.jsonl'}: 1 entities begin or end within a word and were widened to whole words."
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"], "ner": ["O", "O"]}, "there are 1 words but 2 labels"),
        ({"tokens": "a b", "ner": ["O", "O"]}, "'tokens' holds 'a b', which is not a list"),
        ({"tokens": ["a", 1], "ner": ["O", "O"]}, "'tokens' holds 1, which is not a text"),
        ({"tokens": ["a\ud83d"], "ner": ["O"]}, "half of a surrogate pair"),
        ({"tokens": ["a"], "ner": [None]}, "'ner' holds None, which names no class"),
        ({"tokens": ["a"], "ner": None}, "column 'ner' is missing its value"),
        ({"tokens": ["a"]}, "there is no column 'ner'"),
    ],
)
def test_faulty_words_are_named(tmp_path, row, message):
    with pytest.raises(InputError, match=rf"a.jsonl, line 2: .*{message}"):
        TokenClassification(data=WORDS).read(write(tmp_path / "a.jsonl", [{"tokens": ["a"], "ner": ["O"]}, row]))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([{"start": 0, "end": 4, "label": "X"}], "is no stretch of the 3 characters"),
        ([{"start": 1, "end": 1, "label": "X"}], "is no stretch"),
        ([{"start": -1, "end": 1, "label": "X"}], "is no stretch"),
        ([{"start": "0", "end": 1, "label": "X"}], "is no stretch"),
        ([{"start": 0, "end": 1}], "is no stretch"),
        ([[0, 1, "X"]], "is no stretch"),
        ([{"start": 0, "end": 3, "label": "X"}, {"start": 2, "end": 3, "label": "Y"}], "2 to 3 overlaps another"),
        ([{"start": 1, "end": 2, "label": "X"}], "1 to 2 holds no word"),
    ],
)
def test_faulty_stretches_are_named(tmp_path, spans, message):
    with pytest.raises(InputError, match=rf"a.jsonl, line 1: .*{message}"):
        TokenClassification().read(write(tmp_path / "a.jsonl", [{"text": "a b", "label": spans}]))


def test_classes_come_from_training(tmp_path):
    task = TokenClassification(data=WORDS)
    train = task.read(write(tmp_path / "train.jsonl", sentences(4)))
    task = task.labelled(train, "train.jsonl")
    assert task.labels == LABELS  # I-PER too, though no person has two words
    source = write(tmp_path / "dev.jsonl", [{"tokens": ["a"], "ner": ["B-ORG"]}])
    with pytest.raises(InputError, match="line 1: the label 'B-ORG' is unknown; the classes of this task are B-LOC"):
        task.read(source)
    with pytest.raises(InputError, match=r"dev.jsonl has only the label NOUN; it takes two"):
        TokenClassification(data=WORDS).labelled(
            TokenClassification(data=WORDS).read(write(tmp_path / "dev.jsonl", [{"tokens": ["a"], "ner": ["NOUN"]}])),
            "dev.jsonl",
        )
    plain = TokenClassification(data=WORDS)
    tags = plain.read(write(tmp_path / "dev.jsonl", [{"tokens": ["a", "b"], "ner": ["NOUN", "ADJ"]}]))
    assert plain.labelled(tags, "dev.jsonl").labels == ("ADJ", "NOUN")


@pytest.mark.parametrize("max_length", [4, 9, 64])
def test_labels_stand_at_first_pieces_and_each_once(tmp_path, tokenizer, max_length):
    task = TokenClassification(data=WORDS, labels=LABELS, max_length=max_length, overlap=2)
    examples = task.read(write(tmp_path / "a.jsonl", sentences(7)))
    data = task.encode(examples, tokenizer)
    assert data.num_truncated == 0
    batch = data.batch(np.arange(len(data)))
    counted = batch.labels != IGNORED
    assert batch.labels[counted].tolist() == [LABELS.index(label) for each in examples for label in each.labels]
    assert (batch.packing.offsets.diff() <= max_length).all()
    first = {
        token
        for word in ("Ann", "Bob", "met", "in", "New", "York", "Oslo")
        for token in tokenizer.encode(word).ids[1:2]
    }
    alone = [token for token in batch.input_ids[counted].tolist() if token not in first]
    spelled = {tokenizer.token(token).replace("▁", "") for token in alone}
    assert spelled <= {".", *"ABmiNYO"} | {"An", "Bo", "me"}, spelled
    one = data.batch(np.array([2]))
    assert one.input_ids.tolist() == data.windows[2].ids


def test_the_loss_is_the_sum_over_the_words(tmp_path, tokenizer):
    task = TokenClassification(data=WORDS, labels=LABELS)
    data = task.encode(task.read(write(tmp_path / "a.jsonl", sentences(3))), tokenizer)
    model = tiny_model(tokenizer).eval()
    batch = data.batch(np.arange(3))
    loss = TokenObjective(model)(batch)
    expected, right, count = 0.0, 0, 0
    for window, labels in zip(data.windows, data.labels, strict=True):
        logits = model(torch.tensor([window.ids])).logits[0].detach().double()
        for piece, label in zip(window.pieces, labels, strict=True):
            expected -= float(logits[piece].log_softmax(-1)[label])
            right += int(logits[piece].argmax()) == label
            count += 1
    assert loss.count == count
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.parts["correct"].item() == right
    loss.total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_divergence_counts_words_only(tmp_path, tokenizer):
    task = TokenClassification(data=WORDS, labels=LABELS)
    data = task.encode(task.read(write(tmp_path / "a.jsonl", sentences(3))), tokenizer)
    batch = data.batch(np.arange(3))
    clean, perturbed = torch.randn(2, len(batch.input_ids), len(LABELS))
    objective = TokenObjective(tiny_model(tokenizer))
    found = objective.divergence((clean,), (perturbed,), batch)
    words = batch.labels != IGNORED
    p, q = clean[words].softmax(-1), perturbed[words].softmax(-1)
    assert found.item() == pytest.approx(float(-(p * q.log() + q * p.log()).sum()), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_reads_long_sentences_whole(tmp_path, tokenizer, batch_size):
    rows = [{key: value * 4 for key, value in row.items()} for row in sentences(6)]
    task = TokenClassification(data=WORDS, labels=LABELS, max_length=12, overlap=4, batch_size=batch_size)
    data = task.encode(task.read(write(tmp_path / "a.jsonl", rows)), tokenizer)
    assert len(data) > 6
    model = tiny_model(tokenizer).train()
    metrics = task.evaluate(model, data)
    assert model.training
    model.eval()
    predicted = [["?"] * len(row["ner"]) for row in rows]
    for window, owner in zip(data.windows, data.owners, strict=True):
        best = model(torch.tensor([window.ids])).logits[0].argmax(-1)
        for word, piece in zip(window.words, window.pieces, strict=True):
            predicted[owner][word] = LABELS[int(best[piece])]
    right = [
        found == label
        for row, labels in zip(predicted, rows, strict=True)
        for found, label in zip(row, labels["ner"], strict=True)
    ]
    assert metrics["accuracy"] == pytest.approx(np.mean(right))
    assert set(metrics) == {"loss", "accuracy", "precision", "recall", "f1"}


def test_an_entity_ends_with_its_sentence(tmp_path, tokenizer):
    """As conlleval counts: in one document, Oslo and met seem to go on with what ends the sentence before."""
    lines = ["-DOCSTART- -X- O", "", "Ann B-PER", "met O", "York B-LOC", "", "Oslo B-LOC", "", "met O", "Bob B-PER", ""]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    task = TokenClassification(data=DataConfig(format="conll2003", words="words"), labels=LABELS)
    (example,) = task.read(str(tmp_path / "a.txt"))
    assert example.breaks == (3, 4)
    data = task.encode([example], tokenizer)
    said = [LABELS.index(label) for label in ("B-PER", "O", "B-LOC", "I-LOC", "I-LOC", "B-PER")]
    (window,) = data.windows
    answer = torch.zeros(len(window.ids), dtype=torch.int64)
    answer[torch.tensor(window.pieces)] = torch.tensor(said)
    # said: Ann, York, Oslo, met and Bob; right: all of them but met
    assert task.score(data, [answer]) == pytest.approx(
        {"accuracy": 4 / 6, "precision": 4 / 5, "recall": 1.0, "f1": 8 / 9}
    )


def test_a_tiny_model_learns_and_its_score_is_that_of_its_predictions(tmp_path, tokenizer):
    from unbraid.inference.tokens import TokenClassifier

    rows = sentences(16)
    task = TokenClassification(data=WORDS, labels=LABELS)
    examples = task.read(write(tmp_path / "a.jsonl", rows))
    data = task.encode(examples, tokenizer)
    model = tiny_model(tokenizer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    stream, objective = TaskBatches(data, 8, seed=0), TokenObjective(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        loss = objective(stream[step])
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    metrics = task.evaluate(model, data)
    assert metrics["f1"] == metrics["accuracy"] == 1.0
    for row, prediction in zip(
        rows, TokenClassifier(model, tokenizer).predict([row["tokens"] for row in rows]), strict=True
    ):
        assert [word["label"] for word in prediction["words"]] == row["ner"]
        assert [each["label"] for each in prediction["entities"]] == ["PER", "LOC"]
