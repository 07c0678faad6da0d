"""The tools for agents over plain HTTP: their schemas in three dialects, and a way to call them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from gateway.errors import BadRequest
from gateway.http.access import PRINCIPAL
from gateway.http.bodies import read_object
from gateway.http.context import context, origin, principal
from gateway.http.files import flag
from gateway.http.route import Route
from gateway.toolbox.schemas import strict_schema
from gateway.toolbox.tool import Call

if TYPE_CHECKING:
    from gateway.toolbox.tool import Tool


def _mcp(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "title": tool.title,
        "description": tool.description,
        "inputSchema": tool.input_schema,
        "outputSchema": tool.output_schema,
        "annotations": {
            "readOnlyHint": tool.hints.read_only,
            "destructiveHint": tool.hints.destructive,
            "idempotentHint": tool.hints.idempotent,
            "openWorldHint": False,
        },
    }


def _openai(tool: Tool) -> dict[str, Any]:
    schema = tool.input_schema
    strict = strict_schema(schema)
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": strict or schema,
        "strict": strict is not None,
    }
    return {"type": "function", "function": function}


def _anthropic(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}


FORMATS = {"mcp": _mcp, "openai": _openai, "anthropic": _anthropic}


async def list_tools(request: web.Request) -> web.Response:
    """Show the tools that the caller's credential may use."""
    wanted = request.query.get("format", "mcp")
    if wanted not in FORMATS:
        raise BadRequest(f"The format is one of {', '.join(FORMATS)}.", reason="format")
    ctx = context(request)
    extended = flag(request, "all") or ctx.settings.mcp.extended
    tools = ctx.toolbox.catalogue.offered(principal(request), extended=extended)
    return _json({"tools": [FORMATS[wanted](tool) for tool in tools]})


async def call_tool(request: web.Request) -> web.Response:
    """Call a tool with the body as its arguments."""
    catalogue = context(request).toolbox.catalogue
    tool = catalogue.find(request.match_info["name"], extended=True)
    arguments = await read_object(request) or {}
    result = await catalogue.call(Call(principal(request), origin(request, "rest")), tool, arguments)
    return _json(result.model_dump(mode="json", exclude_none=True))


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")


TOOL_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/tools",
        list_tools,
        PRINCIPAL,
        "Show the tools for agents, as schemas.",
        {200: "application/json"},
        "agents",
        query={
            "format": "`mcp` (the default), `openai` (functions) or `anthropic` (tools).",
            "all": "With the value `true` the extended tools too.",
        },
    ),
    Route(
        "POST",
        "/api/tools/{name}",
        call_tool,
        PRINCIPAL,
        "Call a tool: its arguments in, its result out.",
        {200: "application/json"},
        "agents",
    ),
)
