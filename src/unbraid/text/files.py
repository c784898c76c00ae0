"""A tokenizer on disk: what models on the hub hold, and what transformers reads."""

from __future__ import annotations

import json
import os
from collections.abc import Container
from pathlib import Path
from typing import Any

from unbraid.errors import InputError
from unbraid.hub import local_folder
from unbraid.text.spm import SpmEngine
from unbraid.text.tokenizer_json import JsonEngine, added_tokens, byte_level_bpe

SPECIAL_TOKENS = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
_FILES = ["spm.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"]


def read_pretrained(
    name: str | os.PathLike[str],
) -> tuple[SpmEngine | JsonEngine, dict[str, int], dict[str, str]]:
    """Reads the files of a folder or of a model on the Hugging Face hub.

    Returns:
        The vocabulary, the tokens added to it with their ids, and the spelling of the special tokens that state one.

    Raises:
        InputError: there is no such folder or model, or its files are missing or damaged.
    """
    folder = local_folder(name, _FILES)
    config = _read_json(folder / "tokenizer_config.json", optional=True)
    names = {role: _content(token) for role in SPECIAL_TOKENS if (token := config.get(f"{role}_token"))}
    added = {_content(token): int(index) for index, token in config.get("added_tokens_decoder", {}).items()}
    rewrites = [key for key in ("do_lower_case", "split_by_punct") if config.get(key)]
    if (folder / "spm.model").is_file() and not rewrites:
        added |= _read_json(folder / "added_tokens.json", optional=True)
        added = added or added_tokens(_read_json(folder / "tokenizer.json", optional=True))
        return SpmEngine((folder / "spm.model").read_bytes()), added, names
    if (folder / "tokenizer.json").is_file():
        source = _read_json(folder / "tokenizer.json")
        return JsonEngine(source), added | added_tokens(source), names
    if rewrites:
        raise InputError(f"{folder} sets {rewrites[0]}, which needs a tokenizer.json; write one with transformers.")
    if (folder / "vocab.json").is_file():
        vocabulary = _read_json(folder / "vocab.json")
        for token in (SPECIAL_TOKENS | names).values():
            if token not in vocabulary and token not in added:
                raise InputError(f"{folder / 'vocab.json'} lacks {token}; read GPT-2's own files with from_gpt2.")
        return JsonEngine(byte_level_bpe(vocabulary, _read_merges(folder / "merges.txt"))), added, names
    raise InputError(f"{folder} holds no spm.model, no tokenizer.json, and no vocab.json with merges.txt.")


def read_gpt2(vocabulary: str | os.PathLike[str], merges: str | os.PathLike[str]) -> JsonEngine:
    """Reads GPT-2's two files and puts the special tokens around its tokens as DeBERTa v1 does."""
    theirs = _read_json(Path(vocabulary))
    *before, mask = SPECIAL_TOKENS.values()
    tokens = [*before, *sorted(theirs, key=theirs.__getitem__), mask]
    ids = {token: index for index, token in enumerate(tokens)}
    return JsonEngine(byte_level_bpe(ids, _read_merges(Path(merges))))


def write_pretrained(
    folder: str | os.PathLike[str],
    engine: SpmEngine | JsonEngine,
    names: dict[str, str],
    ids: dict[str, int],
    written: Container[str],
) -> None:
    """Writes the files that :func:`read_pretrained` and transformers' ``AutoTokenizer`` read.

    They name transformers' general class, which takes ``tokenizer.json`` as it stands: its ``DebertaV2Tokenizer`` would
    replace the normalisation by its own, and its ``DebertaTokenizer`` the template of a pair.

    A tokenizer that stands in the folder is replaced.

    Args:
        folder: made if it is not there.
        engine: the vocabulary.
        names: the spelling of each special token.
        ids: of the special and the added tokens.
        written: those of them that a text can spell.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(engine, SpmEngine):
        (folder / "spm.model").write_bytes(engine.model)
        _write_json(folder / "added_tokens.json", ids)
    else:
        for name in ("spm.model", "added_tokens.json"):  # of another tokenizer, which would be read instead
            (folder / name).unlink(missing_ok=True)
    if source := engine.tokenizer_json():
        flags = {"single_word": False, "rstrip": False, "normalized": False}
        tokens = [
            {"id": index, "content": name, "lstrip": name in written, "special": name in names.values()} | flags
            for name, index in sorted(ids.items(), key=lambda token: token[1])
        ]
        template = _template(names["cls"], names["sep"], ids)
        _write_json(folder / "tokenizer.json", source | {"added_tokens": tokens, "post_processor": template})
    config = {f"{role}_token": name for role, name in names.items()} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names["cls"],
        "eos_token": names["sep"],
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", config)


def _template(cls: str, sep: str, ids: dict[str, int]) -> dict[str, Any]:
    """``[CLS] A [SEP]`` and ``[CLS] A [SEP] B [SEP]`` in the words of ``tokenizer.json``."""

    def special(name: str, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": segment}}

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [special(cls, 0), text("A", 0), special(sep, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), special(sep, 1)],
        "special_tokens": {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (cls, sep)},
    }


def _read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """A JSON object; an empty one for an optional file that is not there."""
    if optional and not path.is_file():
        return {}
    text = _read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); fetch or write it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; fetch or write it again.")
    return content


def _read_merges(path: Path) -> list[list[str]]:
    return [line.split() for line in _read_text(path).split("\n") if line.strip() and not line.startswith("#version")]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); fetch or write it again.") from None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]
