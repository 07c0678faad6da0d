"""Describes the table of routes in OpenAPI 3.1."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from gateway.http.access import Access, Rule
from gateway.http.views import ErrorBody

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import BaseModel

    from gateway.http.route import Route

Schema = dict[str, Any]
SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"token": []}, {"cookie": []}]


def document(routes: Iterable[Route], *, version: str, cookie: str) -> Schema:
    """Return the description of these routes; `cookie` is the name of the cookie that carries a key."""
    # E2B's API is described by E2B, and its errors have another shape
    table = [route for route in routes if route.errors is None]
    schemas, definitions = _schemas(table)
    paths: dict[str, Schema] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cellblock",
            "version": version,
            "summary": "Jupyter kernels in firejail cells, over Jupyter's own API and a few verbs more.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions,
            "responses": {
                "Error": {"description": "What went wrong.", "content": _json(schemas[ErrorBody])},
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`Authorization: Bearer <key>`; `token <key>` is understood as well.",
                },
                "token": {"type": "apiKey", "in": "query", "name": "token"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": cookie},
            },
        },
    }


def _schemas(routes: list[Route]) -> tuple[dict[type[BaseModel], Schema], Schema]:
    """Return a reference to each model of the table, and the definitions that they refer to."""
    modes: dict[type[BaseModel], JsonSchemaMode] = {ErrorBody: "serialization"}
    for route in routes:
        if route.body is not None:
            modes[route.body] = "validation"
        modes |= {m: "serialization" for m in route.responses.values() if isinstance(m, type)}
    references, definitions = models_json_schema(
        list(modes.items()), ref_template="#/components/schemas/{model}"
    )
    return {model: references[model, mode] for model, mode in modes.items()}, definitions["$defs"]


def _operation(route: Route, schemas: dict[type[BaseModel], Schema]) -> Schema:
    operation: Schema = {
        "operationId": route.handler.__name__ if route.method != "HEAD" else f"head_{route.handler.__name__}",
        "summary": route.summary,
        "description": _rule(route.access),
        "tags": [route.tag],
        "security": [] if route.access.rule is Rule.PUBLIC else SECURITY,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", route.path)
        ]
        + [
            {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
            for name, text in route.query.items()
        ],
        "responses": {
            **{str(status): _response(content, schemas) for status, content in route.responses.items()},
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
    if route.errors is not None or route.door == "mcp":
        operation["responses"]["default"] = {"description": "What went wrong, in the door's own form."}
    if route.streams is not None:
        first = operation["responses"][str(next(iter(route.responses)))]
        first["content"] |= {kind: {} for kind in route.streams.split(", ")}
    if route.body is not None:
        operation["requestBody"] = {"content": _json(schemas[route.body])}
    return operation


def _response(content: type[BaseModel] | str | None, schemas: dict[type[BaseModel], Schema]) -> Schema:
    match content:
        case None:
            return {"description": "Done."}
        case str():
            return {"description": "The content.", "content": {kind: {} for kind in content.split(", ")}}
        case _:
            return {"description": "The answer.", "content": _json(schemas[content])}


def _rule(access: Access) -> str:
    match access.rule:
        case Rule.PUBLIC:
            return "Open to everybody."
        case Rule.PRINCIPAL:
            return "Takes a credential; shows and changes what is the caller's own."
        case Rule.ADMIN:
            return f"Takes the scope `{access.scope}`."
        case Rule.OWNER:
            return f"Takes the scope `{access.scope}`; what is another's is 404."


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}
