"""Token classification: a label for each word, learned and read at its first piece.

Sentences come as words with their labels (BIO or plain tags), or as texts with labelled stretches of characters, which
become BIO labels of the text's words.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unbraid.errors import InputError
from unbraid.inference.tokens import Sentence, TokenWindow, silent_label, token_windows
from unbraid.metrics import is_bio, token_metrics
from unbraid.model.embeddings import Perturbation
from unbraid.model.pretrained import DebertaForTokenClassification
from unbraid.objective import IGNORED, Loss
from unbraid.tasks.labels import check_label, training_labels
from unbraid.tasks.objective import Outputs, TaskObjective, labels_of, symmetric_kl
from unbraid.tasks.rows import Row
from unbraid.tasks.sources import group_of, read_rows
from unbraid.tasks.task import Task
from unbraid.text.batch import Batch, pack
from unbraid.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_CHUNK = 1024  # sentences tokenised at once; their character offsets are dropped before the next


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledSentence:
    """A sentence, or a document of several, and the label of each of its words.

    Attributes:
        sentence: the text and its words.
        labels: as many as words.
        breaks: the words, counted from 0, that begin the second sentence of a document and those after it.
        widened: how many stretches began or ended within a word and stand for the whole of it now.
        group: what it belongs together with in folds, or None.
    """

    sentence: Sentence
    labels: tuple[str, ...]
    breaks: tuple[int, ...] = ()
    widened: int = 0
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """Windows of sentences.

    Attributes:
        windows: of all sentences.
        owners: (n,) int64, the sentence of each window.
        labels: one (words,) int64 array of label ids a sentence.
        breaks: of each sentence, see :class:`LabelledSentence`.
        num_truncated: 0, since longer sentences are read in windows.
    """

    windows: list[TokenWindow]
    owners: np.ndarray
    labels: list[np.ndarray]
    breaks: list[tuple[int, ...]]
    num_truncated: int = 0

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, in tokens."""
        return np.array([len(window.ids) for window in self.windows])

    def batch(self, rows: np.ndarray) -> Batch:
        """Packs some windows; labels (N,) int64, -100 but at the words' first pieces."""
        windows = [self.windows[row] for row in rows]
        labels = []
        for window, owner in zip(windows, self.owners[rows], strict=True):
            row = np.full(len(window.ids), IGNORED)
            row[window.pieces] = self.labels[owner][window.words]
            labels.append(row)
        return pack(
            [window.ids for window in windows],
            torch.from_numpy(np.concatenate(labels)),
            [window.segments for window in windows],
        )


class TokenObjective(TaskObjective):
    """Cross entropy of the words' labels."""

    def __init__(self, model: DebertaForTokenClassification):
        super().__init__()
        self.model = model

    def outputs(self, batch: Batch, perturbation: Perturbation | None = None) -> Outputs:
        """Logits (N, num_labels)."""
        output = self.model(
            batch.input_ids, packing=batch.packing, token_type_ids=batch.token_type_ids, perturbation=perturbation
        )
        return (output.logits.float(),)

    def loss_from(self, outputs: Outputs, batch: Batch) -> Loss:
        """The sum over the words; also how many are right.

        Raises:
            InputError: a batch without labels.
        """
        (logits,), labels = outputs, labels_of(batch)
        total = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        right = logits.detach().argmax(-1) == labels  # nothing is -100
        return Loss(total, {"correct": right.sum().float()}, int((labels != IGNORED).sum()))

    def divergence(self, clean: Outputs, perturbed: Outputs, batch: Batch) -> Tensor:
        """The symmetric KL of the words' labels."""
        counted = labels_of(batch) != IGNORED
        return symmetric_kl(clean[0][counted], perturbed[0][counted]).sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClassification(Task[LabelledSentence, TokenRows]):
    """A label for each word."""

    head = DebertaForTokenClassification
    new = ("classifier",)
    has_classes = True

    def read(self, source: str) -> list[LabelledSentence]:
        """See :meth:`Task.read`."""
        known = None if self.labels is None else frozenset(self.labels)
        read = self._of_words if self.data.words is not None else self._of_text
        examples = []
        for row in read_rows(source, self.data):
            example = read(row)
            for label in example.labels:
                check_label(label, known, row.place)
            examples.append(example)
        if widened := sum(example.widened for example in examples):
            log.warning("%s: %d entities begin or end within a word and were widened to whole words.", source, widened)
        return examples

    def labelled(self, examples: Sequence[LabelledSentence], source: str) -> Self:
        """See :meth:`Task.labelled`; each type of entity has both its B- and its I-."""
        if self.labels is not None:
            return self
        found = {label for example in examples for label in example.labels}
        if is_bio(found | {"O", "B-"}):
            types = {label[2:] for label in found - {"O"}}
            found |= {f"{mark}-{name}" for mark in "BI" for name in types} | {"O"}
        return dataclasses.replace(self, labels=training_labels(found, source))

    def model_fields(self) -> dict[str, Any]:
        """See :meth:`Task.model_fields`."""
        return {"id2label": dict(enumerate(self.labels or ())), "problem_type": None}

    def encode(self, examples: Sequence[LabelledSentence], tokenizer: Tokenizer) -> TokenRows:
        """See :meth:`Task.encode`; longer sentences become several windows."""
        ids_of = {label: index for index, label in enumerate(self.labels or ())}
        windows: list[TokenWindow] = []
        owners: list[int] = []
        for start in range(0, len(examples), _CHUNK):
            chunk = [example.sentence for example in examples[start : start + _CHUNK]]
            encodings = tokenizer.encode_batch([sentence.text for sentence in chunk])
            for owner, (sentence, encoding) in enumerate(zip(chunk, encodings, strict=True), start):
                cut = token_windows(sentence, encoding, self.max_length, self.overlap)
                windows += cut
                owners += [owner] * len(cut)
        labels = [np.array([ids_of[label] for label in example.labels], dtype=np.int64) for example in examples]
        return TokenRows(windows, np.array(owners), labels, [example.breaks for example in examples])

    def objective(self, model: DebertaForTokenClassification) -> TaskObjective:
        """See :meth:`Task.objective`."""
        return TokenObjective(model)

    def answers(self, outputs: Outputs, batch: Batch) -> Sequence[Tensor]:
        """The most probable label of each token, (T,) int64 a window."""
        return outputs[0].argmax(-1).cpu().split(batch.packing.offsets.diff().tolist())

    def score(self, data: TokenRows, answers: list[Tensor]) -> dict[str, float]:
        """See :func:`token_metrics`; an entity ends with its sentence, as for conlleval.

        The original has seqeval read the sentences of a document as one, so that an entity may go on in the next.
        """
        names = list(self.labels or ())

        def named(rows: Sequence[np.ndarray]) -> list[list[str]]:
            sentences = [each for row, breaks in zip(rows, data.breaks, strict=True) for each in np.split(row, breaks)]
            return [[names[label] for label in sentence] for sentence in sentences]

        predicted = [np.full(len(labels), silent_label(names)) for labels in data.labels]
        for window, owner, answer in zip(data.windows, data.owners, answers, strict=True):
            predicted[owner][window.words] = answer.numpy()[window.pieces]
        return token_metrics(named(predicted), named(data.labels))

    def _of_words(self, row: Row) -> LabelledSentence:
        words = row.texts(str(self.data.words))
        labels = row.names(self.data.label)
        if len(words) != len(labels):
            raise InputError(f"{row.place}: there are {len(words)} words but {len(labels)} labels; give one a word.")
        lengths = [] if self.data.format is None else row.items("sentences")
        breaks = tuple(itertools.accumulate(lengths[:-1]))
        return LabelledSentence(Sentence.of(words), tuple(labels), breaks, group=group_of(row, self.data))

    def _of_text(self, row: Row) -> LabelledSentence:
        sentence = Sentence.of(row.text(self.data.text))
        labels, widened = ["O"] * len(sentence.words), 0
        for entry in row.items(self.data.label):
            start, end, name = _stretch(entry, len(sentence.text), row.place)
            inside = [word for word, (first, last) in enumerate(sentence.words) if first < end and last > start]
            if not inside or any(labels[word] != "O" for word in inside):
                fault = "overlaps another" if inside else "holds no word"
                raise InputError(f"{row.place}: the entity at characters {start} to {end} {fault}; mend or drop it.")
            widened += sentence.words[inside[0]][0] < start or end < sentence.words[inside[-1]][1]
            labels[inside[0]] = f"B-{name}"
            for word in inside[1:]:
                labels[word] = f"I-{name}"
        return LabelledSentence(sentence, tuple(labels), widened=widened, group=group_of(row, self.data))


def _stretch(entry: Any, length: int, place: str) -> tuple[int, int, str]:
    match entry:
        case {"start": int(start), "end": int(end), "label": str(name)} if 0 <= start < end <= length and name:
            return start, end, name
    raise InputError(
        f"{place}: {entry!r} is no stretch of the {length} characters of the text; give its start, end and label, "
        'as in {"start": 0, "end": 5, "label": "PER"}.'
    )
