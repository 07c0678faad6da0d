"""Run an agent of OpenAI's Agents SDK with a gateway's MCP tools. tests/agents.py gives its orders."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage
from agents.mcp import MCPServerStdio, MCPServerStreamableHttp
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText


class Scripted(Model):
    """A model that calls the tools that it was told to, in the session that the first call made."""

    def __init__(self, calls: list[tuple[str, dict[str, Any]]]) -> None:
        self._calls = iter(enumerate(calls))
        self.offered: list[str] = []
        self.heard: list[Any] = []

    async def get_response(self, system_instructions: Any, input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002, ARG002
        """Note what the last call gave, and ask for the next."""
        tools = args[1] if len(args) > 1 else kwargs["tools"]
        self.offered = [tool.name for tool in tools]
        said = [each["output"] for each in input if isinstance(each, dict) and "output" in each]
        self.heard = said
        try:
            number, (name, arguments) = next(self._calls)
        except StopIteration:
            text = ResponseOutputText(text="done", type="output_text", annotations=[])
            output: Any = ResponseOutputMessage(
                id="m", content=[text], role="assistant", status="completed", type="message"
            )
        else:
            if said:
                arguments = {**arguments, "session_id": session_of(said[0])}
            output = ResponseFunctionToolCall(
                arguments=json.dumps(arguments), call_id=f"c{number}", name=name, type="function_call"
            )
        return ModelResponse(output=[output], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing is streamed here."""
        raise NotImplementedError


def session_of(output: Any) -> str:
    """Return the handle in what create_session gave."""
    text = output if isinstance(output, str) else next(each["text"] for each in output if "text" in each)
    found = json.loads(text)
    return str((json.loads(found["text"]) if "text" in found else found)["session_id"])


async def work(order: dict[str, Any]) -> dict[str, Any]:
    """Let the agent work, and return what it was offered and what it heard."""
    if order.get("command"):
        program, *arguments = order["command"]
        params: Any = {"command": program, "args": arguments, "env": {"CELLBLOCK_KEY": order["token"]}}
        server: Any = MCPServerStdio(params=params, client_session_timeout_seconds=60)
    else:
        params = {
            "url": f"{order['url']}/mcp",
            "headers": {"Authorization": f"Bearer {order['token']}"},
            "timeout": 60,
        }
        server = MCPServerStreamableHttp(params=params, client_session_timeout_seconds=60)
    model = Scripted(order["calls"])
    async with server:
        agent = Agent(name="analyst", instructions="Do it.", model=model, mcp_servers=[server])
        result = await Runner.run(agent, "Go.", run_config=RunConfig(tracing_disabled=True))
    return {"final": result.final_output, "offered": model.offered, "heard": model.heard}


print(json.dumps(asyncio.run(work(json.load(sys.stdin)))))  # noqa: T201 - it is a program
