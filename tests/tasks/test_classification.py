"""Classification and regression: encoding, the stream, the loss, evaluation."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForSequenceClassification
from unbraid.tasks.batches import EncodedExamples, TaskBatches
from unbraid.tasks.classification import (
    Classification,
    MultiLabel,
    Regression,
    SequenceClassification,
    encode_examples,
)
from unbraid.tasks.examples import Example


@dataclasses.dataclass
class Words:
    """What a tokenizer answers, one id a word."""

    ids: list[int]
    segments: list[int]
    truncated: bool


class WordTokenizer:
    """Words w0, w1, ... have the ids 3, 4, ...; [CLS] is 1 and [SEP] 2."""

    def encode_batch(self, texts, pairs=None, *, max_length):
        return [self.encode(*both, max_length) for both in zip(texts, pairs or [None] * len(texts), strict=True)]

    def encode(self, text, pair, max_length):
        ids = [1, *(int(word[1:]) + 3 for word in text.split()), 2]
        segments = [0] * len(ids)
        if pair is not None:
            second = [*(int(word[1:]) + 3 for word in pair.split()), 2]
            ids, segments = ids + second, segments + [1] * len(second)
        return Words(ids[:max_length], segments[:max_length], len(ids) > max_length)


def random_data(count, seed=0, num_labels=3, longest=20):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, longest + 1, count)
    labels = generator.normal(size=count) if num_labels == 1 else generator.integers(0, num_labels, count)
    return EncodedExamples(
        ids=[generator.integers(3, 50, length).astype(np.int32) for length in lengths],
        segments=[(np.arange(length) > length // 2).astype(np.int8) for length in lengths],
        labels=torch.tensor(labels, dtype=torch.float32 if num_labels == 1 else torch.int64),
        num_truncated=0,
    )


def tiny_model(num_labels=3, seed=0, **fields):
    torch.manual_seed(seed)
    config = DebertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, position_buckets=8, type_vocab_size=2,
        id2label={i: f"c{i}" for i in range(num_labels)}, **fields,
    )  # fmt: skip
    model = DebertaForSequenceClassification(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def evaluate(model, data, batch_size=32):
    kind = Regression if model.config.num_labels == 1 else Classification
    return kind(batch_size=batch_size).evaluate(model, data)


def padded(data, rows):
    """The arguments of a padded call on some examples."""
    longest = max(len(data.ids[row]) for row in rows)

    def fill(arrays):
        return torch.tensor([[*map(int, arrays[row])] + [0] * (longest - len(arrays[row])) for row in rows])

    ones = [np.ones(len(ids)) for ids in data.ids]
    return {"input_ids": fill(data.ids), "attention_mask": fill(ones), "token_type_ids": fill(data.segments)}


def test_examples_are_encoded_in_order(caplog):
    examples = [Example("w5 w6", "w7", "yes"), Example("w1", "", "no"), Example("w1 w2 w3", "w4 w5", "yes")]
    with caplog.at_level(logging.WARNING):
        data = encode_examples(examples, WordTokenizer(), labels=("no", "yes"), max_length=7)
    assert [ids.tolist() for ids in data.ids] == [[1, 8, 9, 2, 10, 2], [1, 4, 2, 2], [1, 4, 5, 6, 2, 7, 8]]
    assert [segments.tolist() for segments in data.segments] == [
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 1],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert data.labels.tolist() == [1, 0, 1]
    assert data.labels.dtype == torch.int64
    assert data.num_truncated == 1
    assert caplog.messages == ["1 of 3 examples are longer than 7 tokens and were cut."]


def test_scores_are_encoded_as_numbers(caplog):
    examples = [Example(f"w{i % 9}", None, i / 4) for i in range(3000)]
    data = encode_examples(examples, WordTokenizer(), labels=None, max_length=8)
    assert data.labels.dtype == torch.float32
    assert data.labels.tolist() == [i / 4 for i in range(3000)]
    assert [ids[1] for ids in data.ids] == [i % 9 + 3 for i in range(3000)]
    assert data.num_truncated == 0
    assert not caplog.messages


def test_a_batch_holds_the_examples_asked_for():
    data = random_data(9)
    batch = data.batch(np.array([7, 2]))
    assert batch.input_ids.tolist() == [*data.ids[7], *data.ids[2]]
    assert batch.token_type_ids.tolist() == [*data.segments[7], *data.segments[2]]
    assert batch.labels.tolist() == [data.labels[7], data.labels[2]]
    assert batch.packing.offsets.tolist() == [0, len(data.ids[7]), len(data.ids[7]) + len(data.ids[2])]


def contents(batch):
    return [tuple(ids.tolist()) for ids in batch.input_ids.tensor_split(batch.packing.offsets[1:-1])]


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 8), (7, 3), (64, 8), (1001, 4)])
def test_every_epoch_reads_every_example_once(count, batch_size):
    data = random_data(count)
    stream = TaskBatches(data, batch_size, seed=3)
    assert stream.per_epoch == -(-count // batch_size)
    for epoch in range(2):
        batches = [contents(stream[epoch * stream.per_epoch + step]) for step in range(stream.per_epoch)]
        read = [example for batch in batches for example in batch]
        assert sorted(read) == sorted(tuple(ids.tolist()) for ids in data.ids)
        assert sorted(map(len, batches))[1:] == [batch_size] * (stream.per_epoch - 1)


def test_micro_batches_are_a_function_of_index_and_seed():
    data = random_data(50)
    stream = TaskBatches(data, 4, seed=1)
    forward = [contents(stream[index]) for index in range(40)]
    again = TaskBatches(data, 4, seed=1)
    for index in np.random.default_rng(0).permutation(40).tolist():
        assert contents(again[index]) == forward[index]
    assert forward[:13] != forward[13:26]
    other = TaskBatches(data, 4, seed=2)
    assert [contents(other[index]) for index in range(13)] != forward[:13]


def test_examples_of_like_length_share_a_micro_batch():
    data = random_data(2000, longest=100)
    stream = TaskBatches(data, 8, seed=0)
    batches = [stream[index] for index in range(stream.per_epoch)]
    real = sum(len(batch.input_ids) for batch in batches)
    cells = sum(batch.packing.longest * batch.packing.batch_size for batch in batches)
    assert cells < 1.1 * real  # 1.7 in random order
    longer = np.diff([batch.packing.longest for batch in batches]) > 0
    assert 0.4 < longer.mean() < 0.6  # short and long ones take turns


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_the_loss_is_the_sum_over_the_examples(num_labels):
    data, model = random_data(6, num_labels=num_labels), tiny_model(num_labels).eval()
    rows = np.array([4, 0, 5])
    loss = SequenceClassification(model)(data.batch(rows))
    logits = model(**padded(data, rows)).logits.detach().double()
    if num_labels == 1:
        expected = sum((float(logits[i, 0]) - float(data.labels[row])) ** 2 for i, row in enumerate(rows))
        assert loss.parts == {}
    else:
        expected = -sum(float(logits[i].log_softmax(-1)[data.labels[row]]) for i, row in enumerate(rows))
        right = sum(int(logits[i].argmax()) == int(data.labels[row]) for i, row in enumerate(rows))
        assert {name: part.item() for name, part in loss.parts.items()} == {"correct": right}
        assert not loss.parts["correct"].requires_grad
    assert loss.count == 3
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    loss.total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_two_texts_are_told_apart_by_their_segment():
    data, model = random_data(4), tiny_model().eval()
    same = dataclasses.replace(data, segments=[np.zeros_like(segments) for segments in data.segments])
    losses = [SequenceClassification(model)(each.batch(np.arange(4))).total.item() for each in (data, same)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_batch_needs_labels():
    batch = dataclasses.replace(random_data(2).batch(np.arange(2)), labels=None)
    with pytest.raises(InputError, match="no labels"):
        SequenceClassification(tiny_model())(batch)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluation_equals_one_example_at_a_time(num_labels, batch_size):
    data, model = random_data(11, num_labels=num_labels), tiny_model(num_labels).train()
    metrics = evaluate(model, data, batch_size=batch_size)
    assert model.training
    model.eval()
    logits = torch.cat([model(**padded(data, [row])).logits for row in range(11)]).detach().double()
    if num_labels == 1:
        scores, labels = logits[:, 0].numpy(), data.labels.double().numpy()
        assert metrics["loss"] == pytest.approx(((scores - labels) ** 2).mean(), rel=1e-5)
        assert metrics["pearson"] == pytest.approx(np.corrcoef(scores, labels)[0, 1], rel=1e-5)
        assert set(metrics) == {"loss", "pearson", "spearman", "pearson_spearman"}
    else:
        log_probabilities = logits.log_softmax(-1)[torch.arange(11), data.labels]
        assert metrics["loss"] == pytest.approx(-log_probabilities.mean().item(), rel=1e-5)
        assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == data.labels).double().mean().item())
        assert set(metrics) == {"loss", "accuracy", "f1", "accuracy_f1", "matthews"}


def test_evaluation_is_deterministic_and_does_not_depend_on_the_order():
    data, model = random_data(20), tiny_model(hidden_dropout_prob=0.5)
    turned = EncodedExamples(data.ids[::-1], data.segments[::-1], data.labels.flip(0), 0)
    first = evaluate(model, data, batch_size=4)
    assert evaluate(model, data, batch_size=4) == first
    assert evaluate(model, turned, batch_size=4) == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_a_tiny_model_learns_a_few_examples_by_heart(num_labels):
    data = random_data(12, num_labels=num_labels)
    model = tiny_model(num_labels, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    stream, objective = TaskBatches(data, 4, seed=0), SequenceClassification(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(120):
        loss = objective(stream[step])
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    metrics = evaluate(model, data)
    assert metrics["pearson_spearman" if num_labels == 1 else "accuracy"] > 0.95


SEVERAL = [Example("w1 w2", None, ("b", "a")), Example("w3", None, ()), Example("w4 w5 w6", None, ("c",))]


def test_several_labels_are_ones_and_zeros():
    task = MultiLabel().labelled(SEVERAL, "train.jsonl")
    assert task.labels == ("a", "b", "c")
    data = task.encode(SEVERAL, WordTokenizer())
    assert data.labels.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    with pytest.raises(InputError, match=r"train.jsonl has only the label c; it takes two"):
        MultiLabel().labelled(SEVERAL[1:], "train.jsonl")
    with pytest.raises(InputError, match=r"train.jsonl has no label; it takes two"):
        MultiLabel().labelled(SEVERAL[1:2], "train.jsonl")


def test_the_loss_of_several_labels_is_that_of_the_model():
    model = tiny_model(3, problem_type="multi_label_classification").eval()
    data = MultiLabel(labels=("a", "b", "c")).encode(SEVERAL, WordTokenizer())
    batch = data.batch(np.arange(3))
    loss = SequenceClassification(model)(batch)
    alone = model(**padded(data, [0, 1, 2]), labels=data.labels)
    assert loss.count == 3
    assert loss.total.item() == pytest.approx(3 * alone.loss.item(), rel=1e-5)
    p, q = (torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    found = SequenceClassification(model).divergence((p,), (q,), batch)
    expected = 0.0
    for one, other in zip(p.flatten().sigmoid().tolist(), q.flatten().sigmoid().tolist(), strict=True):
        cross = (
            one * np.log(other) + (1 - one) * np.log(1 - other) + other * np.log(one) + (1 - other) * np.log(1 - one)
        )
        expected -= cross / 3
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 100])
def test_evaluation_of_several_labels(batch_size):
    model = tiny_model(3, problem_type="multi_label_classification")
    task = MultiLabel(labels=("a", "b", "c"), batch_size=batch_size)
    data = task.encode(SEVERAL, WordTokenizer())
    metrics = task.evaluate(model, data)
    model.eval()
    logits = torch.cat([model(**padded(data, [row])).logits for row in range(3)]).detach()
    predicted, labels = logits > 0, data.labels > 0
    both, either = int((predicted & labels).sum()), int(predicted.sum() + labels.sum())
    assert metrics["f1"] == pytest.approx(2 * both / either)
    assert metrics["accuracy"] == pytest.approx((predicted == labels).all(-1).double().mean().item())
    assert set(metrics) == {"loss", "f1", "f1_macro", "accuracy"}
