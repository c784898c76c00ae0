"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest

from unbraid.metrics import (
    best_threshold,
    classification_metrics,
    entities_of,
    exact_groups,
    is_bio,
    multi_label_metrics,
    regression_metrics,
    squad_metrics,
    squad_scores,
    token_metrics,
)


def test_two_classes_score_the_second_one():
    # 2 true positives, 1 false positive, 3 false negatives, 4 true negatives
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    predictions = np.array([1, 1, 0, 0, 0, 1, 0, 0, 0, 0])
    metrics = classification_metrics(predictions, labels, num_labels=2)
    matthews = (2 * 4 - 1 * 3) / math.sqrt(3 * 5 * 5 * 7)
    assert metrics == pytest.approx({"accuracy": 0.6, "f1": 4 / 8, "accuracy_f1": 0.55, "matthews": matthews})


def test_more_classes_average_over_classes():
    labels = np.array([0, 0, 1, 1, 2, 2])
    predictions = np.array([0, 1, 1, 1, 2, 0])
    metrics = classification_metrics(predictions, labels, num_labels=3)
    # Matthews for K classes (Gorodkin 2004): 6 examples, 4 right, predicted 2, 3, 1 times, each there 2 times
    matthews = (4 * 6 - (2 * 2 + 3 * 2 + 1 * 2)) / math.sqrt((36 - (4 + 9 + 1)) * (36 - 12))
    f1 = (2 * 1 / 4 + 2 * 2 / 5 + 2 * 1 / 3) / 3
    mean = (4 / 6 + f1) / 2
    assert metrics == pytest.approx({"accuracy": 4 / 6, "f1": f1, "accuracy_f1": mean, "matthews": matthews})


def test_multirc_by_hand():
    # Three questions with 3, 2 and 2 answers: one wrong in the first, none in the second, both in the third.
    labels = np.array([1, 1, 0, 1, 0, 1, 0])
    predictions = np.array([1, 0, 0, 1, 0, 0, 1])
    groups = ["q1", "q1", "q1", "q2", "q2", "q3", "q3"]
    # F1a is over all answers: 2 true positives, 1 false positive, 2 false negatives
    assert classification_metrics(predictions, labels, num_labels=2)["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert exact_groups((predictions == labels).tolist(), groups) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("right", "groups", "share"),
    [
        ([True], ["a"], 1.0),
        ([False], ["a"], 0.0),
        ([True, True, False], ["a", "b", "a"], 0.5),  # a group need not stand together
        ([True, True, True, False], ["a", "a", "b", "c"], 2 / 3),
    ],
)
def test_groups_are_right_as_a_whole(right, groups, share):
    assert exact_groups(right, groups) == pytest.approx(share)


def test_a_class_that_does_not_occur_does_not_count_in_f1():
    metrics = classification_metrics(np.array([0, 1, 1]), np.array([0, 1, 1]), num_labels=5)
    assert metrics["f1"] == 1.0


@pytest.mark.parametrize("predicted", [0, 1])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
def test_one_class_for_everything_is_defined(predicted, labels):
    metrics = classification_metrics(np.full(4, predicted), np.array(labels), num_labels=2)
    hits = labels.count(predicted)
    assert metrics["accuracy"] == hits / 4
    assert metrics["matthews"] == 0.0
    assert metrics["f1"] == pytest.approx(2 * hits / (4 + labels.count(1)) if predicted else 0.0)


def test_correlations():
    predictions, labels = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 5.0])
    pearson, spearman = 5.5 / math.sqrt(5 * 8.75), 1 - 6 * 2 / (4 * 15)
    expected = {"pearson": pearson, "spearman": spearman, "pearson_spearman": (pearson + spearman) / 2}
    assert regression_metrics(predictions, labels) == pytest.approx(expected)


def test_ties_share_their_rank():
    metrics = regression_metrics(np.array([1.0, 1.0, 7.0]), np.array([1.0, 2.0, 3.0]))
    assert metrics["spearman"] == pytest.approx(1.5 / math.sqrt(1.5 * 2))


@pytest.mark.parametrize(("predictions", "labels"), [([2, 2, 2], [1, 2, 3]), ([1, 2, 3], [0, 0, 0]), ([1], [2])])
def test_correlation_with_a_constant_is_zero(predictions, labels):
    metrics = regression_metrics(np.array(predictions, dtype=np.float32), np.array(labels, dtype=np.float32))
    assert metrics == {"pearson": 0.0, "spearman": 0.0, "pearson_spearman": 0.0}


def test_a_collapsed_model_is_scored_without_a_warning():
    predictions = np.array([1.0, 1.0 + 2e-7, 1.0, 1.0 + 4e-7], dtype=np.float32)
    assert 0 < regression_metrics(predictions, np.array([0.0, 1.0, 0.0, 2.0], dtype=np.float32))["pearson"] <= 1


def test_predictions_that_are_no_numbers_show():
    metrics = regression_metrics(np.array([1.0, math.nan, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert math.isnan(metrics["pearson"])


def test_entities_are_counted_as_conlleval_does():
    # seqeval's own example: one person found, a wrong end of MISC
    labels = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predictions = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert token_metrics(predictions, labels) == pytest.approx(
        {"accuracy": 0.8, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    )
    # An entity does not go on in the next sentence, and an I- of another type begins one.
    assert token_metrics([["B-X"], ["I-X"]], [["B-X"], ["B-X"]])["f1"] == 1.0
    assert entities_of(["I-X", "I-Y", "O", "B-Y", "I-Y"]) == [("X", 0, 0), ("Y", 1, 1), ("Y", 3, 4)]


def test_nothing_predicted_and_nothing_there():
    assert token_metrics([["O"]], [["B-X"]]) == {"accuracy": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert token_metrics([["O"], []], [["O"], []]) == {"accuracy": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_plain_tags_are_entities_of_one_word():
    metrics = token_metrics([["NOUN", "O", "VERB"]], [["NOUN", "O", "NOUN"]])
    assert metrics == pytest.approx(dict.fromkeys(("accuracy", "precision", "recall", "f1"), 2 / 3))
    assert not is_bio(["B-PER", "X", "O"])
    assert not is_bio(["O"])


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1),
        ("the Denver  BRONCOS.", ["Denver Broncos"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),
        ("Denver", ["Carolina Panthers", "Denver, Colorado", "Denver Denver"], 0, 2 / 3),
        ("24-10", ["24–10", "2410"], 1, 1),  # ASCII marks are dropped, others stay
        ("U.S.", ["US"], 1, 1),
        ("theatre", ["atre"], 0, 0),
        ("a b b", ["b b c"], 0, 2 * 1 * (2 / 3) / (1 + 2 / 3)),  # "a" is an article; words count as often as they stand
        ("", ["x"], 0, 0),
        ("Zoë", ["zoë"], 1, 1),
    ],
)
@pytest.mark.parametrize("unanswerable", [False, True])
def test_squad_scores(prediction, answers, exact, f1, unanswerable):
    assert squad_scores(prediction, answers, unanswerable) == pytest.approx((exact, f1))


def test_squad_scores_of_no_answer():
    # SQuAD 2.0: right only if nothing is said; an article says nothing.
    assert squad_scores("", [], unanswerable=True) == (1.0, 1.0)
    assert squad_scores("the", [], unanswerable=True) == (1.0, 1.0)
    assert squad_scores("x", [], unanswerable=True) == (0.0, 0.0)
    assert squad_scores("", ["x", "the"], unanswerable=True) == (0.0, 0.0)  # "the" does not count as an answer
    # SQuAD 1.1: equal without a word is a match but has no F1.
    assert squad_scores("the", ["a"]) == (1.0, 0.0)


def test_squad_metrics_tell_questions_without_an_answer_apart():
    metrics = squad_metrics([(1, 1), (0, 0.5), (0, 0), (1, 1)], [True, True, False, False])
    assert metrics == {
        "exact": 0.5, "f1": 0.625, "has_answer_exact": 0.5, "has_answer_f1": 0.75, "no_answer_exact": 0.5,
        "no_answer_f1": 0.5,
    }  # fmt: skip
    assert set(squad_metrics([(1, 1)], [True])) == {"exact", "f1", "has_answer_exact", "has_answer_f1"}


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_than_the_best(seed):
    generator = np.random.default_rng(seed)
    margins = generator.integers(-4, 5, 12).astype(float)  # with ties
    gains = generator.choice([-1.0, 0.0, 0.4, 1.0], 12)

    def total(threshold):
        return gains[margins <= threshold].sum()

    best = max(total(threshold) for threshold in np.arange(-6, 7, 0.5))
    assert total(best_threshold(margins, gains)) == pytest.approx(best)


def test_several_labels():
    labels = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=bool)
    predictions = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=bool)
    # over all: 2 right of 3 predicted and 3 there; a 2/3, b 2/3, c undefined
    assert multi_label_metrics(predictions, labels) == pytest.approx(
        {"f1": 2 / 3, "f1_macro": 4 / 9, "accuracy": 1 / 3}
    )
    nothing = np.zeros((2, 2), dtype=bool)
    assert multi_label_metrics(nothing, nothing) == {"f1": 0.0, "f1_macro": 0.0, "accuracy": 1.0}
