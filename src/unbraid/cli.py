"""The command line: verbs, recipes, and errors in one sentence.

A verb is a module of :mod:`unbraid.commands` with a ``Config`` dataclass, whose fields and their docstrings are its
options and its ``--help``, and a ``run(config)``. Nothing heavy is imported before ``run``.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unbraid import __version__
from unbraid.errors import InputError
from unbraid.files import read_toml

VERBS = {
    "demo": "show the small model that comes with the package, train it further, write a report; a few minutes",
    "tokenizer": "train a tokenizer from text",
    "pretrain": "pretrain a model from text: masked, replaced or next tokens",
    "ablate": "pretrain the variants of the papers' tables alike, fine-tune them, compare them",
    "finetune": "fine-tune a model on a task: classes, scores, words, questions, choices; or on one of the papers'",
    "evaluate": "measure a model on labelled examples, or a masked language model on text",
    "predict": "ask a model about texts: classes, words, answers, choices, or what stands at [MASK]",
    "submit": "write the prediction files of a task of the papers, as its server takes them",
    "info": "show which attention backend runs here, and why",
    "bench": "measure attention, the encoder and training beside other implementations",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs ``unbraid VERB [RECIPE.toml] [OPTIONS]``; exits with 2 and one sentence if the input is wrong."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return
    if arguments[0] == "--version":
        print(f"unbraid {__version__}")
        return
    verb, *rest = arguments
    try:
        if verb not in VERBS:
            raise InputError(f"there is no verb {verb!r}; the verbs are {', '.join(VERBS)}.")
        module = importlib.import_module(f"unbraid.commands.{verb}")
        module.run(read_config(module.Config, verb, rest))
        sys.stdout.flush()
    except InputError as error:
        print(f"unbraid: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {summary}" for verb, summary in VERBS.items())
    return (
        "usage: unbraid VERB [RECIPE.toml] [OPTIONS]\n\n"
        "DeBERTa, complete, exact and fast: pretrain it, fine-tune it, run it.\n\n"
        f"{verbs}\n\n"
        "A recipe is a TOML file of a verb's options; options on the command line override it.\n"
        "unbraid VERB --help explains the options of a verb."
    )


def read_config(config_class: type, verb: str, arguments: Sequence[str]) -> Any:
    """The configuration that a recipe, if there is one, and the options after it make.

    Args:
        config_class: a dataclass.
        verb: for messages.
        arguments: what follows the verb; a first one that ends in ``.toml`` is the recipe, or, where ``config_class``
            has a class method ``recipe``, any first one without a dash is what this makes a recipe of.

    Raises:
        InputError: the recipe is missing, is not TOML or has an unknown key.
        SystemExit: the options are wrong (tyro says how), or ``--help`` was asked for.
    """
    import tyro

    options = list(arguments)
    first = options[0] if options else "-"
    recipe = None
    if first.endswith(".toml"):
        recipe = read_recipe(Path(first), config_class)
    elif not first.startswith("-") and hasattr(config_class, "recipe"):
        recipe = config_class.recipe(first)
    if recipe is not None:
        # What stands without a name on the command line, as the model of predict does, goes before the options.
        unnamed = [recipe.pop(name) for name in _positional(config_class) if name in recipe]
        positional = [str(value) for entry in unnamed for value in (entry if isinstance(entry, list) else [entry])]
        given = options[1:]
        texts = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
        options = [*positional, *texts, *_options(recipe), *given[len(texts) :]]
    return tyro.cli(
        config_class,
        args=_with_preset(options),
        prog=f"unbraid {verb}",
        description=f"usage with a recipe: unbraid {verb} RECIPE.toml [OPTIONS]\n\n{config_class.__doc__}",
    )


def read_recipe(path: Path, config_class: type) -> dict[str, Any]:
    """The fields that a TOML file sets, all of them known.

    Raises:
        InputError: it is missing, is not TOML, or has a key that the configuration has not.
    """
    return _checked(read_toml(path), config_class, path)


def _positional(config_class: type) -> list[str]:
    """The fields whose values stand without a name on the command line, in their order."""
    import tyro

    hints = typing.get_type_hints(config_class, include_extras=True)
    return [name for name, hint in hints.items() if tyro.conf.Positional in getattr(hint, "__metadata__", ())]


def _checked(recipe: Mapping[str, Any], config_class: type, path: Path, prefix: str = "") -> dict[str, Any]:
    """The recipe, its keys all known; a table that is one value becomes what options give: name, value, name, value."""
    types = typing.get_type_hints(config_class)
    known = {field.name for field in dataclasses.fields(config_class)}
    checked: dict[str, Any] = {}
    for key, value in recipe.items():
        if key not in known:
            raise InputError(f"{path}: unknown key {prefix + key!r}; known here: {', '.join(sorted(known))}.")
        if not isinstance(value, Mapping):
            checked[key] = value
        elif any(typing.get_origin(kind) is dict for kind in typing.get_args(types[key])):
            checked[key] = [part for pair in value.items() for part in pair]
        elif dataclasses.is_dataclass(types[key]):
            checked[key] = _checked(value, types[key], path, f"{prefix}{key}.")
        else:
            raise InputError(f"{path}: {prefix + key} takes a value, not a table.")
    return checked


def _options(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A recipe as the options that it stands for.

    >>> list(_options({"seed": 3, "model": {"pos_att_type": ["c2p"]}, "quiet": True}))
    ['--seed', '3', '--model.pos_att_type', 'c2p', '--quiet']
    """
    for key, value in recipe.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _options(value, f"{name}.")
        elif isinstance(value, bool):
            yield f"--{name}" if value else f"--{prefix}no-{key}"
        else:
            yield f"--{name}"
            yield from map(str, value if isinstance(value, (list, tuple)) else [value])


def _with_preset(options: list[str]) -> list[str]:
    """Puts the fields of a ``--preset`` before the options, so that these override them."""
    from unbraid.model.config import PRESETS

    options = [
        part for option in options for part in (option.split("=", 1) if option.startswith("--preset=") else [option])
    ]
    if "--preset" not in options[:-1]:
        return options
    last = len(options) - 1 - options[::-1].index("--preset")
    name = options[last + 1]
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    fields = {key: "None" if value is None else value for key, value in PRESETS[name].items()}
    return [*_options({"model": fields}), *options]
