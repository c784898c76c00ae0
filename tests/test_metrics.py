"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest

from unbraid.metrics import classification_metrics, regression_metrics


def test_two_classes_score_the_second_one():
    # 2 true positives, 1 false positive, 3 false negatives, 4 true negatives
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    predictions = np.array([1, 1, 0, 0, 0, 1, 0, 0, 0, 0])
    metrics = classification_metrics(predictions, labels, num_labels=2)
    assert metrics == pytest.approx(
        {"accuracy": 0.6, "f1": 4 / 8, "matthews": (2 * 4 - 1 * 3) / math.sqrt(3 * 5 * 5 * 7)}
    )


def test_more_classes_average_over_classes():
    labels = np.array([0, 0, 1, 1, 2, 2])
    predictions = np.array([0, 1, 1, 1, 2, 0])
    metrics = classification_metrics(predictions, labels, num_labels=3)
    # Matthews for K classes (Gorodkin 2004): 6 examples, 4 right, predicted 2, 3, 1 times, each there 2 times
    matthews = (4 * 6 - (2 * 2 + 3 * 2 + 1 * 2)) / math.sqrt((36 - (4 + 9 + 1)) * (36 - 12))
    f1 = (2 * 1 / 4 + 2 * 2 / 5 + 2 * 1 / 3) / 3
    assert metrics == pytest.approx({"accuracy": 4 / 6, "f1": f1, "matthews": matthews})


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
