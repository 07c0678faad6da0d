"""/api/tools: the same tools for agent loops without MCP, as schemas in three dialects, and by plain HTTP."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from tests.clients.mcp_client import over_http

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway import Client, Gateway

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


async def listed(client: Client, query: str = "") -> list[dict[str, Any]]:
    """Return the tools that a client is shown."""
    tools: list[dict[str, Any]] = (await client.json("GET", f"/api/tools{query}"))["tools"]
    return tools


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a schema that has properties."""
    if isinstance(schema, list):
        for each in schema:
            yield from objects(each)
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for each in schema.values():
            yield from objects(each)


async def test_mcp(gateway: Gateway, client: Client) -> None:
    """The default dialect is MCP's own: tool for tool what tools/list says."""
    async with over_http(gateway) as mcp:
        theirs = [
            tool.model_dump(by_alias=True, exclude_none=True, exclude={"annotations": {"title"}})
            for tool in (await mcp.list_tools()).tools
        ]

    assert await listed(client) == theirs
    assert await listed(client, "?format=mcp") == theirs


async def test_openai(client: Client) -> None:
    """Functions have names that OpenAI takes; strict ones keep to what its strict mode knows."""
    tools = await listed(client, "?format=openai&all=true")

    assert len(tools) == 29
    for tool in tools:
        assert tool["type"] == "function"
        function = tool["function"]
        assert NAME.fullmatch(function["name"])
        assert len(function["description"]) <= 1024
        Draft202012Validator.check_schema(function["parameters"])
        if function["strict"]:
            for each in objects(function["parameters"]):
                assert each["additionalProperties"] is False
                assert each["required"] == list(each["properties"])
            for word in ("default", "minLength", "maxLength", "$ref", "allOf"):
                assert f"'{word}'" not in str(function["parameters"])
    loose = {tool["function"]["name"] for tool in tools if not tool["function"]["strict"]}
    # their arguments have free-form objects
    assert loose == {"create_session", "answer_tool_calls"}


async def test_anthropic(client: Client) -> None:
    """Tools have exactly the fields that Anthropic's API takes."""
    for tool in await listed(client, "?format=anthropic"):
        assert tool.keys() == {"name", "description", "input_schema"}
        assert NAME.fullmatch(tool["name"])
        assert tool["input_schema"]["type"] == "object"
        Draft202012Validator.check_schema(tool["input_schema"])


async def test_what_is_offered(gateway: Gateway, client: Client) -> None:
    """Extended tools come when they are asked for; a key without a scope is not shown what needs it."""
    default, every = await listed(client), await listed(client, "?all=true")
    assert [tool["name"] for tool in every][: len(default)] == [tool["name"] for tool in default]
    assert {tool["name"] for tool in every} - {tool["name"] for tool in default} >= {"pause", "delete_file"}
    async with gateway.client("alice", "kernels") as looker:
        assert "execute_code" not in {tool["name"] for tool in await listed(looker)}
        refused = await looker.json("POST", "/api/tools/execute_code", {"code": "1"}, status=403)
        assert refused["reason"] == "missing_scope"
    await client.json("GET", "/api/tools?format=yaml", status=400)


async def test_an_agent_loop(client: Client) -> None:
    """Who has the schemas calls the tools: null is what strict mode sends for what is left out."""

    async def use(tool: str, **arguments: Any) -> Any:
        return await client.json("POST", f"/api/tools/{tool}", arguments)

    session = (await use("create_session", kernel=None, ttl_s=None))["session_id"]
    code = "import matplotlib.pyplot as plt; plt.plot([1]); plt.show(); print('x')"
    outcome = await use("execute_code", code=code, session_id=session, timeout_s=None)
    assert (outcome["status"], outcome["stdout"]) == ("ok", "x\n")
    # there is no other content to have the image in
    assert outcome["results"][0]["image/png"].startswith("iVBOR")
    await use("write_file", session_id=session, path="a", content="abc", expected_sha256=None)
    assert (await use("read_file", session_id=session, path="a"))["content"] == "abc"
    await use("move_file", session_id=session, path="a", to="b")
    assert (await use("close_session", session_id=session))["done"]


@pytest.mark.parametrize(
    ("tool", "arguments", "status", "code"),
    [
        ("rm_rf", {}, 404, "not_found"),
        ("usage", {"session_id": "s-nothing"}, 404, "not_found"),
        ("usage", {"session": 1}, 400, "bad_request"),
        ("execute_code", {}, 400, "bad_request"),
        ("execute_code", {"code": "1", "session_id": "../x"}, 404, "not_found"),
    ],
)
async def test_refusals(client: Client, tool: str, arguments: Any, status: int, code: str) -> None:
    """Here a refusal is an ordinary error of the API."""
    refused = await client.json("POST", f"/api/tools/{tool}", arguments, status=status)

    assert refused["code"] == code
