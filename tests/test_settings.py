import dataclasses
from typing import Annotated

import pytest
from pydantic import Field, model_validator

from unbraid.errors import InputError
from unbraid.settings import read_settings, settings


@settings
class Inner:
    size: Annotated[int, Field(gt=0)] = 1
    name: str | None = None

    @model_validator(mode="after")
    def _fits(self):
        if self.size == 7:
            raise ValueError("size cannot be 7: give 6.")
        return self


@settings
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)


FAULTS = [
    ({"size": 0}, "size: Input should be greater than 0."),
    ({"size": "many"}, "size: Input should be a valid integer, unable to parse string as an integer."),
    ({"size": 7}, "size cannot be 7: give 6."),
    ({"width": 3}, "unknown field 'width'."),
]


@pytest.mark.parametrize(("fields", "message"), FAULTS)
def test_a_fault_is_one_sentence(fields, message):
    with pytest.raises(InputError) as caught:
        Inner(**fields)
    assert str(caught.value) == message


def test_a_changed_copy_is_checked_too():
    assert dataclasses.replace(Inner(name="a"), size=2) == Inner(size=2, name="a")
    with pytest.raises(InputError, match="give 6"):
        dataclasses.replace(Inner(), size=7)


def test_nothing_can_be_set_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Inner().size = 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inner": {"size": 0}}, "a.toml: inner.size: Input should be greater than 0."),
        ({"inner": {"size": 7}}, "a.toml: inner: size cannot be 7: give 6."),
        ({"inner": {"width": 3}}, "a.toml: unknown field 'inner.width'."),
    ],
)
def test_from_plain_values(fields, message):
    assert read_settings(Outer, {"inner": {"size": 2}}, "a.toml") == Outer(inner=Inner(size=2))
    with pytest.raises(InputError) as caught:
        read_settings(Outer, fields, "a.toml")
    assert str(caught.value) == message
