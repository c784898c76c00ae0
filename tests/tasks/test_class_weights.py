"""Class weights: the weighted loss by hand, in any division into micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from unbraid.errors import InputError
from unbraid.model.config import DebertaConfig
from unbraid.model.pretrained import DebertaForSequenceClassification, DebertaForTokenClassification
from unbraid.objective import IGNORED
from unbraid.tasks.batches import EncodedExamples
from unbraid.tasks.class_weights import Weighted, weights_of
from unbraid.tasks.classification import SequenceClassification
from unbraid.tasks.config import SiftConfig, TaskConfig
from unbraid.tasks.sift import Sift
from unbraid.tasks.token_classification import TokenObjective
from unbraid.text.batch import pack

LABELS = ("a", "b", "c")
GIVEN = torch.tensor([0.5, 1.0, 4.0])


def weighted(kind, objective):
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=20, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    model = kind(config)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm.weight" in name else 0.0, 0.1 if "norm.weight" in name else 0.3)
    return Weighted(objective(model.eval()), GIVEN)


def texts(labels, seed=0):
    generator = np.random.default_rng(seed)
    ids = [generator.integers(3, 20, length).astype(np.int32) for length in generator.integers(2, 9, len(labels))]
    return EncodedExamples(ids, [np.zeros(len(each), np.int8) for each in ids], torch.tensor(labels), 0)


def by_hand(logits, labels):
    counted = [(row.detach().double().log_softmax(-1), label) for row, label in zip(logits, labels, strict=True)]
    return -sum(float(GIVEN[label]) * float(row[label]) for row, label in counted if label != IGNORED)


def test_the_loss_of_texts():
    data = texts([0, 2, 1, 2, 0, 0, 1])
    objective = weighted(DebertaForSequenceClassification, SequenceClassification)
    loss = objective(data.batch(np.arange(7)))
    (logits,) = objective.outputs(data.batch(np.arange(7)))
    assert loss.total.item() == pytest.approx(by_hand(logits, data.labels.tolist()), rel=1e-5)
    assert loss.count == 7
    assert loss.parts["correct"].item() == (logits.argmax(-1) == data.labels).sum()


def test_the_loss_of_words():
    labels = torch.tensor([IGNORED, 2, 0, IGNORED, 1, 2, IGNORED])
    batch = pack([[3, 4, 5, 6], [7, 8, 9]], labels)
    objective = weighted(DebertaForTokenClassification, TokenObjective)
    loss = objective(batch)
    (logits,) = objective.outputs(batch)
    assert loss.total.item() == pytest.approx(by_hand(logits, labels.tolist()), rel=1e-5)
    assert loss.count == 4


def test_micro_batches_add_up():
    data = texts([0, 2, 1, 2, 0, 0, 1])
    objective = weighted(DebertaForSequenceClassification, SequenceClassification)

    def gradient(*parts):
        objective.zero_grad()
        losses = [objective(data.batch(np.array(part))) for part in parts]
        sum(loss.total for loss in losses).backward()
        count = sum(loss.count for loss in losses)
        return torch.cat([weight.grad.flatten() / count for weight in objective.parameters()])

    whole = gradient(range(7))
    torch.testing.assert_close(gradient([1, 3], [0, 2, 4, 5, 6]), whole, rtol=1e-4, atol=1e-6)


def test_sift_around_them():
    data = texts([0, 2, 1])
    objective = Sift(weighted(DebertaForSequenceClassification, SequenceClassification), SiftConfig(weight=5)).train()
    loss = objective(data.batch(np.arange(3)))
    loss.total.backward()
    assert loss.parts["consistency"] > 0
    assert "objective.weights" not in objective.state_dict()


@pytest.mark.parametrize("count", [7, 3000])
def test_balanced_weights_are_those_of_scikit_learn(count):
    labels = np.random.default_rng(0).choice(3, count, p=[0.7, 0.2, 0.1]).tolist()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = weights_of("balanced", LABELS, texts(labels))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert found[labels].mean().item() == pytest.approx(1)


def test_a_class_without_examples_does_not_count():
    found = weights_of("balanced", LABELS, texts([0, 0, 0, 2]))
    assert found.tolist() == pytest.approx([4 / 6, 1.0, 2.0])


def test_weights_by_name():
    assert weights_of({"c": 4.0, "a": 0.5}, LABELS, texts([0])).tolist() == GIVEN.tolist()
    with pytest.raises(InputError, match=r"names 'd', which is none of the classes a, b, c\."):
        weights_of({"d": 1.0}, LABELS, texts([0]))


@pytest.mark.parametrize("kind", ["regression", "multi-label", "question-answering", "multiple-choice"])
def test_other_kinds_have_none(kind):
    with pytest.raises(ValueError, match="class_weights are for classification and token-classification"):
        TaskConfig(train="a", dev="b", kind=kind, class_weights="balanced")
