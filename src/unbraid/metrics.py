"""The official metrics of the tasks, every one the larger the better."""

from __future__ import annotations

import operator
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
from scipy import stats
from seqeval.metrics import sequence_labeling
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def classification_metrics(predictions: np.ndarray, labels: np.ndarray, num_labels: int) -> dict[str, float]:
    """Accuracy, F1, the mean of both, and Matthews' correlation of predicted classes.

    With two classes F1 is that of class 1; with more it is the mean over the classes that occur.
    What is undefined (F1 of a class nobody predicts or is, the correlation with a constant) counts as 0.

    >>> classification_metrics(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]), num_labels=2)["accuracy"]
    0.75

    Args:
        predictions: (n,) int, class ids.
        labels: (n,) int, class ids.
        num_labels: how many classes the task has.
    """
    undefined = _constant(predictions) or _constant(labels)
    average = "binary" if num_labels == 2 else "macro"
    right, f1 = float(accuracy_score(labels, predictions)), _f1(labels, predictions, average)
    return {
        "accuracy": right,
        "f1": f1,
        "accuracy_f1": (right + f1) / 2,
        "matthews": 0.0 if undefined else float(matthews_corrcoef(labels, predictions)),
    }


def exact_groups(right: Sequence[bool], groups: Sequence[str]) -> float:
    """The share of groups whose examples are all right: the exact match of MultiRC, whose groups are questions.

    >>> exact_groups([True, False, True], ["q1", "q1", "q2"])
    0.5

    Args:
        right: whether each example is; at least one.
        groups: the group of each.
    """
    wrong = {group for group, each in zip(groups, right, strict=True) if not each}
    return 1 - len(wrong) / len(set(groups))


def multi_label_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """F1 over all labels of all examples, the mean of the labels' own F1, and the share of examples wholly right.

    The F1 of a label that nobody predicts or has counts as 0.

    >>> multi_label_metrics(np.array([[True, False], [True, True]]), np.array([[True, False], [False, True]]))["f1"]
    0.8

    Args:
        predictions: (n, labels) bool.
        labels: (n, labels) bool.
    """
    micro, macro = (_f1(labels, predictions, average) for average in ("micro", "macro"))
    return {"f1": micro, "f1_macro": macro, "accuracy": float((predictions == labels).all(-1).mean())}


def regression_metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation of scores, and the mean of the two.

    The correlation with a constant is undefined and counts as 0.

    >>> regression_metrics(np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 3.0]))["pearson"]
    1.0

    Args:
        predictions: (n,) float.
        labels: (n,) float.
    """
    pearson = _correlation(stats.pearsonr, predictions, labels)
    spearman = _correlation(stats.spearmanr, predictions, labels)
    return {"pearson": pearson, "spearman": spearman, "pearson_spearman": (pearson + spearman) / 2}


def accuracy(predictions: Sequence[object], labels: Sequence[object]) -> float:
    """The share that is right; 0 of nothing.

    >>> accuracy([1, 2, 0], [1, 0, 0])
    0.6666666666666666
    """
    return sum(map(operator.eq, predictions, labels)) / max(len(labels), 1)


def is_bio(labels: Iterable[str]) -> bool:
    """Whether labels mark where entities begin (B-), go on (I-) and are not (O), rather than being plain tags.

    >>> is_bio(["B-PER", "I-PER", "O"]), is_bio(["NOUN", "O"])
    (True, False)
    """
    names = set(labels)
    return "O" in names and len(names) > 1 and all(name == "O" or name[:2] in ("B-", "I-") for name in names)


def entities_of(labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities that BIO labels mark, as seqeval (and conlleval) counts them.

    An I- that continues nothing of its type begins an entity too.

    Returns:
        (type, first word, last word) of each.

    >>> entities_of(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [('PER', 0, 1), ('LOC', 3, 3), ('LOC', 4, 4)]
    """
    return sequence_labeling.get_entities(list(labels))


def token_metrics(predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """Accuracy over words, and the micro-averaged precision, recall and F1 over entities.

    Where the labels are plain tags, each word is an entity of its own, and all of these are the accuracy.
    What is undefined (precision where nothing is predicted) counts as 0.

    >>> token_metrics([["B-X", "O", "O"]], [["B-X", "I-X", "O"]])
    {'accuracy': 0.6666666666666666, 'precision': 0.0, 'recall': 0.0, 'f1': 0.0}

    Args:
        predictions: a label a word, for each sentence.
        labels: likewise.
    """
    pairs = [pair for both in zip(predictions, labels, strict=True) for pair in zip(*both, strict=True)]
    right = accuracy(*zip(*pairs, strict=True)) if pairs else 0.0
    if not is_bio({name for pair in pairs for name in pair} | {"O", "B-"}):
        return {"accuracy": right, "precision": right, "recall": right, "f1": right}
    micro = sequence_labeling.precision_recall_fscore_support(
        [list(sentence) for sentence in labels],
        [list(sentence) for sentence in predictions],
        average="micro",
        zero_division=0,  # type: ignore[arg-type], seqeval documents the number beside the text that it expects
    )
    precision, recall, f1 = (float(cast(float, value)) for value in micro[:3])  # lists only without an average
    return {"accuracy": right, "precision": precision, "recall": recall, "f1": f1}


def squad_scores(prediction: str, answers: Sequence[str], unanswerable: bool = False) -> tuple[float, float]:
    """Exact match and F1 of one predicted answer, the best over the right ones, as the official scripts of SQuAD do.

    Case, punctuation, English articles and white space do not count; F1 is over the words that remain.

    Args:
        prediction: "" for no answer.
        answers: the right ones; none if there is none.
        unanswerable: by the rules of SQuAD 2.0, where two texts without a word are equal and right answers without one
            do not count; in SQuAD 1.1 such texts have no F1.

    >>> squad_scores("The Broncos!", ["Denver Broncos", "broncos"])
    (1.0, 1.0)
    >>> squad_scores("", [], unanswerable=True)
    (1.0, 1.0)

    Source: the behaviour of evaluate-v1.1.py and evaluate-v2.0.py of SQuAD.
    """
    found = squad_words(prediction)
    right = [squad_words(answer) for answer in answers]
    if unanswerable:
        right = [words for words in right if words] or [[]]
    return (
        max((float(found == words) for words in right), default=0.0),
        max((_overlap(found, words, unanswerable) for words in right), default=0.0),
    )


def squad_metrics(scores: Sequence[tuple[float, float]], answerable: Sequence[bool] | None = None) -> dict[str, float]:
    """The means of exact match and F1, also over the questions with and without an answer.

    Args:
        scores: of :func:`squad_scores`, one a question.
        answerable: whether each question has an answer; None: all have, and there is nothing to tell apart.

    >>> squad_metrics([(1.0, 1.0), (0.0, 0.5)])
    {'exact': 0.5, 'f1': 0.75}
    """
    table = np.array(scores)
    groups = {"": np.ones(len(table), dtype=bool)}
    if answerable is not None:
        groups |= {"has_answer_": np.array(answerable), "no_answer_": ~np.array(answerable)}
    return {
        group + name: float(table[rows, column].mean())
        for group, rows in groups.items()
        if rows.any()
        for column, name in enumerate(("exact", "f1"))
    }


def best_threshold(margins: Sequence[float], gains: Sequence[float]) -> float:
    """The threshold with the best sum of scores, when answers whose margin lies above it are given up.

    Args:
        margins: by how much "no answer" beats each answer; finite, at least one.
        gains: what each answer gains over "no answer", possibly less than nothing.

    >>> best_threshold([-2.0, 1.0, 3.0], [1.0, 0.5, -1.0])
    2.0
    """
    order = np.argsort(margins, kind="stable")
    ordered = np.array(margins)[order]
    kept = np.concatenate([[0.0], np.cumsum(np.array(gains)[order])])  # of the first n answers
    bounds = np.concatenate([[ordered[0] - 1], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1]])
    apart = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])  # no bound between equals
    return float(bounds[np.where(apart, kept, -np.inf).argmax()])


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_words(answer: str) -> list[str]:
    """The words of an answer that the official scripts of SQuAD compare; see :func:`squad_scores`.

    >>> squad_words("The U.S.-led  team")
    ['usled', 'team']
    """
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()


def _overlap(found: list[str], right: list[str], empty_counts: bool) -> float:
    """F1 of two bags of words."""
    if empty_counts and not (found and right):
        return float(found == right)
    shared = sum((Counter(found) & Counter(right)).values())
    return 2 * shared / (len(found) + len(right)) if shared else 0.0


def _f1(labels: np.ndarray, predictions: np.ndarray, average: str) -> float:
    # The signature's default is a text, so checkers expect one; scikit-learn documents the number.
    return float(f1_score(labels, predictions, average=average, zero_division=0.0))  # type: ignore[arg-type], see above


def _correlation(measure: Callable[..., Any], predictions: np.ndarray, labels: np.ndarray) -> float:
    if _constant(predictions) or _constant(labels):
        return 0.0
    return float(measure(predictions.astype(np.float64), labels.astype(np.float64)).statistic)


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())
