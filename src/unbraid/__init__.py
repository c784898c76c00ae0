"""DeBERTa, complete, exact and fast.

The names below are imported when they are first used, so that ``import unbraid`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unbraid.attention import disentangled_attention
    from unbraid.errors import InputError
    from unbraid.inference import FillMask, Predictor
    from unbraid.inference.answers import QuestionAnswerer
    from unbraid.inference.choices import Choices, MultipleChooser
    from unbraid.inference.classes import Classifier
    from unbraid.inference.entities import Cloze, EntityChooser
    from unbraid.inference.spans import Marked, SpanClassifier
    from unbraid.inference.tokens import TokenClassifier
    from unbraid.model.config import DebertaConfig, preset
    from unbraid.model.pretrained import (
        Deberta,
        DebertaForMaskedLM,
        DebertaForMultipleChoice,
        DebertaForQuestionAnswering,
        DebertaForReplacedTokenDetection,
        DebertaForSequenceClassification,
        DebertaForTokenClassification,
    )
    from unbraid.model.span_heads import DebertaForEntityChoice, DebertaForSpanClassification
    from unbraid.packing import Packing
    from unbraid.text.tokenizer import Tokenizer, train_tokenizer

__version__ = "0.1.0"

_HOMES = {
    "Choices": "unbraid.inference.choices",
    "Classifier": "unbraid.inference.classes",
    "Cloze": "unbraid.inference.entities",
    "Deberta": "unbraid.model.pretrained",
    "DebertaConfig": "unbraid.model.config",
    "DebertaForEntityChoice": "unbraid.model.span_heads",
    "DebertaForMaskedLM": "unbraid.model.pretrained",
    "DebertaForMultipleChoice": "unbraid.model.pretrained",
    "DebertaForQuestionAnswering": "unbraid.model.pretrained",
    "DebertaForReplacedTokenDetection": "unbraid.model.pretrained",
    "DebertaForSequenceClassification": "unbraid.model.pretrained",
    "DebertaForSpanClassification": "unbraid.model.span_heads",
    "DebertaForTokenClassification": "unbraid.model.pretrained",
    "EntityChooser": "unbraid.inference.entities",
    "FillMask": "unbraid.inference",
    "InputError": "unbraid.errors",
    "Marked": "unbraid.inference.spans",
    "MultipleChooser": "unbraid.inference.choices",
    "Packing": "unbraid.packing",
    "Predictor": "unbraid.inference",
    "QuestionAnswerer": "unbraid.inference.answers",
    "SpanClassifier": "unbraid.inference.spans",
    "TokenClassifier": "unbraid.inference.tokens",
    "Tokenizer": "unbraid.text.tokenizer",
    "disentangled_attention": "unbraid.attention",
    "preset": "unbraid.model.config",
    "train_tokenizer": "unbraid.text.tokenizer",
}

__all__ = [
    "Choices",
    "Classifier",
    "Cloze",
    "Deberta",
    "DebertaConfig",
    "DebertaForEntityChoice",
    "DebertaForMaskedLM",
    "DebertaForMultipleChoice",
    "DebertaForQuestionAnswering",
    "DebertaForReplacedTokenDetection",
    "DebertaForSequenceClassification",
    "DebertaForSpanClassification",
    "DebertaForTokenClassification",
    "EntityChooser",
    "FillMask",
    "InputError",
    "Marked",
    "MultipleChooser",
    "Packing",
    "Predictor",
    "QuestionAnswerer",
    "SpanClassifier",
    "TokenClassifier",
    "Tokenizer",
    "disentangled_attention",
    "preset",
    "train_tokenizer",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'unbraid' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
