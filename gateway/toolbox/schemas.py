"""JSON Schemas (2020-12) of tools, in the plain form that every host takes: no references, no titles."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
# What OpenAI's strict mode does not know.
_LOOSE = ("default", "minLength", "maxLength")


def input_schema(model: type[BaseModel]) -> Schema:
    """Return the schema of what a tool takes."""
    return _plain(model)


def output_schema(model: type[BaseModel]) -> Schema:
    """Return the schema of what a tool gives; what does not apply is left out, so little is required."""
    return _plain(model)


def strict_schema(schema: Schema) -> Schema | None:
    """Return a schema as OpenAI's strict mode wants it, or None where it cannot be said so.

    Every property is required there; what may be left out may be null instead. Free-form objects are not
    known.
    """
    tightened = deepcopy(schema)
    return tightened if _tighten(tightened) else None


def _plain(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema(mode="validation")
    inlined: Schema = _inline(schema, schema.pop("$defs", {}))
    inlined.setdefault("properties", {})
    return inlined


def _inline(node: Any, definitions: Schema) -> Any:
    if isinstance(node, list):
        return [_inline(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[str(node["$ref"]).rpartition("/")[2]]
        beside = {key: value for key, value in node.items() if key != "$ref"}
        # a model's docstring is for readers of the code
        return _inline(
            {**{key: value for key, value in target.items() if key != "description"}, **beside}, definitions
        )
    plain = {}
    for key, value in node.items():
        if key == "title" and isinstance(value, str):
            continue
        if key == "properties":
            plain[key] = {name: _inline(each, definitions) for name, each in value.items()}
        else:
            plain[key] = _inline(value, definitions)
    return plain


def _tighten(node: Any) -> bool:
    """Change a schema in place; tell whether it can be strict."""
    if isinstance(node, list):
        return all(_tighten(each) for each in node)
    if not isinstance(node, dict):
        return True
    for key in _LOOSE:
        node.pop(key, None)
    if node.get("type") == "object":
        if node.get("additionalProperties", False) is not False or "properties" not in node:
            return False
        required = set(node.get("required", ()))
        for name, each in node["properties"].items():
            if name not in required:
                node["properties"][name] = _nullable(each)
        node["required"] = list(node["properties"])
        node["additionalProperties"] = False
        return all(_tighten(each) for each in node["properties"].values())
    if not node.keys() & {"type", "anyOf", "enum", "const"}:
        # anything at all
        return False
    return all(_tighten(each) for each in node.values() if isinstance(each, dict | list))


def _nullable(schema: Schema) -> Schema:
    kinds = schema.get("anyOf")
    if kinds is not None:
        return schema if {"type": "null"} in kinds else {**schema, "anyOf": [*kinds, {"type": "null"}]}
    described = {key: value for key, value in schema.items() if key == "description"}
    bare = {key: value for key, value in schema.items() if key != "description"}
    return {**described, "anyOf": [bare, {"type": "null"}]}
