"""Settings: dataclasses that check their fields, and say in one sentence what is wrong with them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from unbraid.errors import InputError

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, Field))
def settings(cls: type[T]) -> type[T]:
    """Makes a class a frozen pydantic dataclass, its fields given by name.

    Its constructor raises :class:`unbraid.errors.InputError` for an unknown field, a wrong value, or fields that do not
    fit together (a ValueError of one of its pydantic validators).
    """
    made: Any = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(cls)
    construct = made.__init__

    @functools.wraps(construct)
    def checked(self: T, **fields: Any) -> None:
        try:
            construct(self, **fields)
        except ValidationError as error:
            raise InputError(_explained(error)) from error

    made.__init__ = checked
    return made


def read_settings(cls: type[T], fields: Mapping[str, Any], source: str) -> T:
    """Settings from plain values, those within them from mappings.

    Args:
        cls: made by :func:`settings`.
        fields: as JSON or TOML hold them.
        source: what the message names first.

    Raises:
        InputError: as the constructor does.
    """
    try:
        return TypeAdapter(cls).validate_python(fields)
    except ValidationError as error:
        raise InputError(f"{source}: {_explained(error)}") from error


def _explained(error: ValidationError) -> str:
    """One sentence for the first thing that pydantic found wrong."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown field {field!r}."
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message.removesuffix('.')}." if field else message
