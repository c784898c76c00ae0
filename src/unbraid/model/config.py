"""DebertaConfig: the shape of a model, in config.json's field names, and the released sizes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from unbraid.errors import InputError
from unbraid.settings import read_settings, settings

PositionTerm = Literal["c2p", "p2c", "p2p"]
Activation = Literal["gelu", "gelu_new", "relu", "silu", "tanh"]
Probability = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]

_IGNORED_KEYS = frozenset(
    (
        *("_name_or_path", "architectures", "auto_map", "model_name", "transformers_version", "finetuning_task"),
        *("task_specific_params", "dtype", "torch_dtype", "use_bfloat16", "torchscript", "tf_legacy_loss", "legacy"),
        *("tie_word_embeddings", "z_steps", "vocab_type", "pooler_hidden_size", "chunk_size_feed_forward"),
        *("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "mask_token_id"),
        *("tokenizer_class", "prefix", "sentence_transformers", "gradient_checkpointing", "is_decoder"),
        *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "is_encoder_decoder"),
        *("use_cache", "output_past", "output_attentions", "output_hidden_states", "return_dict"),
        # of text that is generated
        *("bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample"),
        *("early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
        *("forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "min_length"),
        *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores"),
        *("remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens"),
        *("temperature", "top_k", "top_p", "typical_p"),
    )
)
"""Keys of released configurations that mean nothing here."""

_NEUTRAL = {
    "classifier_dropout": None,
    "quantization_config": None,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
}
"""Keys that mean nothing here with this value, and are unknown with another."""


@settings
class DebertaConfig:
    """The shape of a DeBERTa, or of a BERT- or RoBERTa-style baseline.

    Raises:
        unbraid.InputError: an unknown field, a wrong type, or fields that do not fit together.
    """

    model_type: Literal["deberta", "deberta-v2"] = "deberta-v2"
    """Family of checkpoint names: deberta (v1: no bias on content and position keys) or deberta-v2 (v2 and v3)."""
    vocab_size: Count = 128100
    """Rows of the word embedding table."""
    hidden_size: Count = 768
    """Width of the token states."""
    embedding_size: Count | None = None
    """Width of the embedding tables; None: hidden_size."""
    num_hidden_layers: Count = 12
    """Encoder layers."""
    num_attention_heads: Count = 12
    """Attention heads; they divide hidden_size."""
    intermediate_size: Count = 3072
    """Width of the feed-forward layer."""
    hidden_act: Activation = "gelu"
    """Activation of the feed-forward layer and of the prediction heads."""
    hidden_dropout_prob: Probability = 0.1
    """Dropout of embeddings, layer outputs and the relative table."""
    attention_probs_dropout_prob: Probability = 0.1
    """Dropout of attention weights."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    layer_norm_eps: float = 1e-7
    """Epsilon of every LayerNorm."""
    max_position_embeddings: Count = 512
    """Rows of the absolute position table, in tokens."""
    type_vocab_size: Annotated[int, Field(ge=0)] = 0
    """Number of token types; 0: none."""
    position_biased_input: bool = False
    """Whether absolute positions enter at the input (as in BERT) and not in the mask decoder."""
    relative_attention: bool = True
    """Whether attention reads relative positions."""
    pos_att_type: tuple[PositionTerm, ...] = ("c2p", "p2c")
    """Position terms of the score: content-to-position, position-to-content, position-to-position."""
    position_buckets: Count | None = 256
    """Log buckets on each side of distance 0; None: one slot a distance."""
    max_relative_positions: Count | None = None
    """Distance beyond which all are alike, in tokens; None: max_position_embeddings."""
    long_distance: Literal["clamp", "port"] = "clamp"
    """Distances beyond max_relative_positions: clamped as in the original, or row 0 as in transformers' port."""
    share_att_key: bool = True
    """Whether the relative table is projected by the content projections."""
    norm_rel_ebd: Literal["none", "layer_norm"] = "layer_norm"
    """Normalisation of the relative table."""
    conv_kernel_size: Annotated[int, Field(ge=0)] = 0
    """Width of the convolution beside the first layer, odd; 0: none."""
    conv_act: Activation = "gelu"
    """Activation of that convolution."""
    conv_groups: Count = 1
    """Groups of that convolution."""
    mask_decoder_passes: Annotated[int, Field(ge=0)] = 2
    """Passes of the Enhanced Mask Decoder; 0: predict from the last layer, as transformers does."""
    pooler_hidden_act: Activation = "gelu"
    """Activation of the pooler."""
    pooler_dropout: Probability = 0.0
    """Dropout before the pooler."""
    cls_dropout: Probability | None = None
    """Dropout before a classifier; None: hidden_dropout_prob."""
    id2label: dict[int, str] = dataclasses.field(default_factory=lambda: unnamed_labels(2))
    """Names of a classifier's labels, by id."""
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None
    """What a sequence classifier is trained for; None: regression with one label, else one of the labels."""
    pad_token_id: Annotated[int, Field(ge=0)] = 0
    """Id of [PAD]."""

    @model_validator(mode="after")
    def _fits_together(self) -> DebertaConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) does not divide hidden_size ({self.hidden_size})."
            )
        if len(set(self.pos_att_type)) < len(self.pos_att_type):
            raise ValueError(f"pos_att_type names a term twice: {', '.join(self.pos_att_type)}.")
        if self.pos_att_type and not self.relative_attention:
            raise ValueError("pos_att_type names position terms but relative_attention is false; empty it.")
        if self.position_buckets and self.position_buckets < 2:
            raise ValueError("position_buckets must be at least 2; leave it out for one slot a distance.")
        if self.position_buckets and self.max_distance < 2:
            raise ValueError("position_buckets needs max_relative_positions of at least 2; leave one of them out.")
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size ({self.conv_kernel_size}) must be odd, or 0 for no convolution.")
        if self.hidden_size % self.conv_groups:
            raise ValueError(f"conv_groups ({self.conv_groups}) does not divide hidden_size ({self.hidden_size}).")
        if sorted(self.id2label) != list(range(len(self.id2label))) or not self.id2label:
            raise ValueError("id2label must name the labels 0, 1, 2, ... without a gap.")
        if self.model_type == "deberta":
            foreign = {
                "position_buckets": self.position_buckets is not None,
                "share_att_key": self.share_att_key,
                "norm_rel_ebd": self.norm_rel_ebd != "none",
                "conv_kernel_size": self.conv_kernel_size > 0,
                "p2p": "p2p" in self.pos_att_type,
            }
            if wrong := [name for name, present in foreign.items() if present]:
                raise ValueError(f"model_type deberta (v1) has no {', '.join(wrong)}; use model_type deberta-v2.")
        return self

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_labels(self) -> int:
        """Number of labels of a classifier."""
        return len(self.id2label)

    @property
    def max_distance(self) -> int:
        """Distance beyond which all are alike, in tokens."""
        return self.max_relative_positions or self.max_position_embeddings

    @property
    def enhanced_mask_decoder(self) -> bool:
        """Whether masked tokens are predicted by the Enhanced Mask Decoder, and not from the last layer."""
        return self.mask_decoder_passes > 0 and not self.position_biased_input

    def replace(self, **changes: Any) -> DebertaConfig:
        """A copy with some fields changed; ``num_labels=3`` stands for three labels without names.

        Raises:
            InputError: the changes are unknown or do not fit.
        """
        if num_labels := changes.pop("num_labels", None):
            changes["id2label"] = unnamed_labels(num_labels)
        return read_settings(DebertaConfig, {**dataclasses.asdict(self), **changes}, "configuration")

    @classmethod
    def from_dict(cls, fields: dict[str, Any], source: str = "configuration") -> DebertaConfig:
        """Reads Hugging Face's config.json or Microsoft's model_config.json.

        Keys that an old file leaves out mean what the original's code took them for (no buckets, no shared
        projections, no norm, tanh in the convolution), not this class's defaults.

        Raises:
            InputError: an unknown key, a wrong type, fields that do not fit together.
        """
        fields = {
            key: value
            for key, value in fields.items()
            if key not in _IGNORED_KEYS and not (key in _NEUTRAL and value == _NEUTRAL[key])
        }
        read: dict[str, Any] = {
            "position_biased_input": True,
            "relative_attention": False,
            "position_buckets": None,
            "share_att_key": False,
            "norm_rel_ebd": "none",
        }
        if fields.get("conv_kernel_size"):
            read["conv_act"] = "tanh"
        pooling = fields.pop("pooling", {})
        read.update({f"pooler_{key}": pooling[key] for key in ("dropout", "hidden_act") if key in pooling})
        head_size = fields.pop("attention_head_size", None)
        padding = fields.pop("padding_idx", None)
        num_labels = fields.pop("num_labels", None)
        fields.pop("label2id", None)
        if fields.pop("talking_head", False):
            raise InputError(f"{source}: talking_head is not part of DeBERTa and not supported.")
        read.update(fields)
        read["pos_att_type"] = _position_terms(fields.get("pos_att_type"))
        for key in ("position_buckets", "max_relative_positions"):
            if isinstance(size := read.get(key), int) and size < 1:
                read[key] = None
        if "layer_norm" in str(read["norm_rel_ebd"]):
            read["norm_rel_ebd"] = "layer_norm"
        if padding is not None:
            read.setdefault("pad_token_id", padding)
        if read.get("pad_token_id", 0) is None:
            del read["pad_token_id"]
        if read.get("id2label") is None:
            read["id2label"] = unnamed_labels(num_labels or 2)
        config = read_settings(cls, read, source)
        if head_size not in (None, config.head_size):
            raise InputError(
                f"{source}: attention_head_size {head_size} times {config.num_attention_heads} heads "
                f"is not hidden_size {config.hidden_size}."
            )
        return config

    @classmethod
    def from_file(cls, path: str | Path) -> DebertaConfig:
        """Reads a config.json or model_config.json.

        Raises:
            InputError: not JSON, or see :meth:`from_dict`.
        """
        path = Path(path)
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not a JSON file ({error}).") from error
        if not isinstance(fields, dict):
            raise InputError(f"{path} holds no configuration: it must be one JSON object.")
        return cls.from_dict(fields, str(path))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as config.json holds it, readable by transformers and by :meth:`from_dict`."""
        fields = dataclasses.asdict(self)
        fields |= {
            "embedding_size": self.embedding_size or self.hidden_size,
            "position_buckets": self.position_buckets or -1,
            "max_relative_positions": self.max_relative_positions or -1,
            "pos_att_type": list(self.pos_att_type),
            "norm_rel_ebd": self.norm_rel_ebd if self.relative_attention else "none",
            "id2label": {str(i): label for i, label in self.id2label.items()},
            "label2id": {label: i for i, label in self.id2label.items()},
            "pooler_hidden_size": self.hidden_size,
            "legacy": False,
        }
        return fields


def unnamed_labels(count: int) -> dict[int, str]:
    """Labels as transformers calls them when nobody did.

    >>> unnamed_labels(2)
    {0: 'LABEL_0', 1: 'LABEL_1'}
    """
    return {i: f"LABEL_{i}" for i in range(count)}


def _position_terms(value: object) -> object:
    """``["c2p", "p2c"]`` from a list, from ``"c2p|p2c"``, from ``"none"`` or nothing; anything else as it is."""
    terms = value.lower().split("|") if isinstance(value, str) else value or []
    if not isinstance(terms, (list, tuple)):
        return terms
    stripped = [term.strip() if isinstance(term, str) else term for term in terms]
    return [term for term in stripped if term not in ("", "none")]


_V1 = {
    "model_type": "deberta",
    "vocab_size": 50265,
    "position_buckets": None,
    "share_att_key": False,
    "norm_rel_ebd": "none",
}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_V2 = {
    "hidden_size": 1536,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "conv_kernel_size": 3,
}
_XSMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
_BERT = {
    "vocab_size": 30522,
    "position_biased_input": True,
    "relative_attention": False,
    "pos_att_type": (),
    "position_buckets": None,
    "share_att_key": False,
    "norm_rel_ebd": "none",
}

PRESETS: dict[str, dict[str, Any]] = {
    "deberta-base": _V1,
    "deberta-large": {**_V1, **_LARGE},
    "deberta-xlarge": {**_V1, **_LARGE, "num_hidden_layers": 48},
    "deberta-v2-xlarge": {**_V2, "num_hidden_layers": 24},
    "deberta-v2-xxlarge": {**_V2, "num_hidden_layers": 48},
    "deberta-v3-xsmall": _XSMALL,
    "deberta-v3-small": {"num_hidden_layers": 6},
    "deberta-v3-base": {},
    "deberta-v3-large": _LARGE,
    "mdeberta-v3-base": {"vocab_size": 251000},
    "bert-base": {**_BERT, "type_vocab_size": 2},
    "roberta-base": {**_BERT, "vocab_size": 50265},
}
"""The released sizes, and baselines of the same code; values that differ from DebertaConfig's defaults.

Source: the configurations that microsoft/DeBERTa publishes with each model.
"""


def preset(name: str, **changes: Any) -> DebertaConfig:
    """The configuration of a released size, by its name.

    Raises:
        InputError: an unknown name, or changes that do not fit.

    >>> preset("deberta-v3-large").num_hidden_layers
    24
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return read_settings(DebertaConfig, {**PRESETS[name], **changes}, f"preset {name}")
