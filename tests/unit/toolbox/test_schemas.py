"""Schemas of tools: plain ones for everybody, and strict ones for who wants them so."""

from __future__ import annotations

from typing import Any, Literal

from jsonschema import Draft202012Validator
from pydantic import Field

from gateway.models import Frozen
from gateway.toolbox.schemas import input_schema, strict_schema


class Inner(Frozen):
    """A model's docstring."""

    name: str
    kind: Literal["a", "b"] = "a"


class Outer(Frozen):
    """Another."""

    title: str = Field(min_length=1, max_length=9, description="A field may be called title.")
    inner: Inner | None = Field(None, description="What is in it.")
    many: list[Inner] = Field(default_factory=list)
    count: int = Field(3, ge=1)


class Free(Frozen):
    """A free-form object."""

    env: dict[str, str] = Field(default_factory=dict)


class Anything(Frozen):
    """A value of any kind."""

    value: Any = None


def test_plain() -> None:
    """There is no reference and no title of pydantic's, and a property may be called so."""
    schema = input_schema(Outer)

    Draft202012Validator.check_schema(schema)
    assert "$ref" not in str(schema)
    assert "$defs" not in schema
    assert schema["required"] == ["title"]
    assert schema["properties"]["title"]["description"] == "A field may be called title."
    inner = schema["properties"]["many"]["items"]
    assert inner["properties"].keys() == {"name", "kind"}
    assert "title" not in inner
    assert "docstring" not in str(schema)


def test_strict() -> None:
    """Everything is required and nothing else allowed; what may be left out may be null."""
    plain = input_schema(Outer)
    strict = strict_schema(plain)

    assert strict is not None
    assert plain["required"] == ["title"], "the plain one stays as it is"
    assert strict["required"] == ["title", "inner", "many", "count"]
    assert {"type": "null"} in strict["properties"]["count"]["anyOf"]
    assert [kind for kind in strict["properties"]["inner"]["anyOf"] if kind == {"type": "null"}] == [
        {"type": "null"}
    ]
    item = strict["properties"]["many"]["anyOf"][0]["items"]
    assert item["required"] == ["name", "kind"]
    assert item["additionalProperties"] is False
    Draft202012Validator(strict).validate({"title": "t", "inner": None, "many": None, "count": None})
    for word in ("default", "minLength", "maxLength"):
        assert f"'{word}'" not in str(strict)


def test_what_cannot_be_strict() -> None:
    """Free-form objects and values of any kind have no strict form."""
    assert strict_schema(input_schema(Free)) is None
    assert strict_schema(input_schema(Anything)) is None
