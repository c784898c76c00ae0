"""What words counted by TF-IDF and a linear model reach, on each kind of task."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from scipy.sparse import hstack
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.preprocessing import normalize

from unbraid.metrics import accuracy, regression_metrics, squad_metrics, squad_scores, token_metrics

Rows = list[dict[str, Any]]


def classified(train: Rows, test: Rows, *texts: str, label: str = "label") -> float:
    """Accuracy of a logistic regression of the words and pairs of words of some columns."""
    seen, unseen = _counted(train, test, texts)
    model = LogisticRegression(C=10, max_iter=1000).fit(seen, [row[label] for row in train])
    return float(model.score(unseen, [row[label] for row in test]))


def scored(train: Rows, test: Rows, text: str, label: str) -> float:
    """Mean of Pearson's and Spearman's correlation of a ridge regression of words and pairs of words."""
    seen, unseen = _counted(train, test, (text,))
    found = Ridge().fit(seen, [row[label] for row in train]).predict(unseen)
    return regression_metrics(found, np.array([row[label] for row in test]))["pearson_spearman"]


def tagged(train: Rows, test: Rows, words: str, labels: str) -> dict[str, float]:
    """Metrics of a logistic regression of each word, its end, its shape and its neighbours."""
    hasher = FeatureHasher(2**20)
    seen = hasher.transform([word for row in train for word in _word_features(row[words])])
    model = SGDClassifier(
        loss="log_loss",
        alpha=1e-5,
        max_iter=20,
        tol=None,  # pyright: ignore[reportArgumentType]  # the stubs lack None, which is "no early stop"
        random_state=0,
    )
    model.fit(seen, [label for row in train for label in row[labels]])
    found = iter(model.predict(hasher.transform([word for row in test for word in _word_features(row[words])])))
    predicted = [list(map(str, itertools.islice(found, len(row[words])))) for row in test]
    return token_metrics(predicted, [row[labels] for row in test])


def chosen(train: Rows, test: Rows) -> float:
    """Accuracy of a logistic regression of what a choice shares with the context and with the question."""
    counter = TfidfVectorizer(sublinear_tf=True)
    counter.fit([text for row in train for text in (row["context"], row["question"], *row["choices"])])

    def likeness(row: dict[str, Any]) -> np.ndarray:
        choices = counter.transform(row["choices"])
        others = counter.transform([row["context"], row["question"]])
        lengths = np.array([[len(choice.split())] for choice in row["choices"]])
        return np.hstack([(choices @ others.T).toarray(), np.log1p(lengths)])

    right = np.concatenate([np.arange(len(row["choices"])) == row["label"] for row in train])
    model = LogisticRegression(max_iter=1000).fit(np.concatenate([likeness(row) for row in train]), right)
    found = [int(model.decision_function(likeness(row)).argmax()) for row in test]
    return accuracy(found, [row["label"] for row in test])


def answered(train: Rows, test: Rows) -> float:
    """F1 of answering with the whole sentence that is most like the question."""
    counter = TfidfVectorizer(sublinear_tf=True).fit([row["context"] for row in train])
    scores = []
    for row in test:
        sentences = [part for part in row["context"].split(". ") if part.strip()]
        like = normalize(counter.transform(sentences)) @ counter.transform([row["question"]]).T
        scores.append(squad_scores(sentences[int(like.toarray().argmax())], row["answers"]["text"]))
    return squad_metrics(scores)["f1"]


def _counted(train: Rows, test: Rows, texts: tuple[str, ...]) -> tuple[Any, Any]:
    """Sparse features of both, each text with words of its own."""
    seen, unseen = [], []
    for column in texts:
        counter = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        seen.append(counter.fit_transform([row[column] for row in train]))
        unseen.append(counter.transform([row[column] for row in test]))
    return hstack(seen), hstack(unseen)


def _word_features(words: list[str]) -> list[dict[str, Any]]:
    padded = ["<s>", *words, "</s>"]
    return [
        {
            "before": padded[at],
            "after": padded[at + 2],
            "word": word,
            "lower": word.lower(),
            "shape": word[:1].isupper(),
            "end": word[-3:],
            "last": word[-2:],
            "digit": any(map(str.isdigit, word)),
        }
        for at, word in enumerate(words)
    ]
