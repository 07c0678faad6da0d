"""A stock host of MCP servers: OpenAI's Agents SDK, with a scripted model in the place of theirs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import agents

if TYPE_CHECKING:
    from tests.gateway import Client, Gateway

CALLS = (
    ("create_session", {}),
    ("execute_code", {"code": "import matplotlib.pyplot as plt\nx = 6; plt.plot([x]); plt.show(); x * 7"}),
    ("write_file", {"path": "data.csv", "content": "a\n1\n2\n"}),
    ("execute_code", {"code": "import pandas; print(pandas.read_csv('data.csv').a.sum() + x)"}),
    ("execute_code", {"code": "1 / 0"}),
    ("read_file", {"path": "nothing"}),
    ("close_session", {}),
)


@pytest.mark.parametrize("way", ["HTTP", "stdio"])
async def test_an_agent(gateway: Gateway, client: Client, way: str) -> None:
    """An agent works through the tools as they are: values, images, files, the code's errors and ours."""
    before = await client.json("GET", "/api/kernels")
    command = gateway.command("mcp", "--url", gateway.url) if way == "stdio" else None
    answer = await agents.run(
        "run_openai_agents.py", gateway, calls=CALLS, command=command, scopes="kernels,execute,files"
    )

    assert answer["final"] == "done"
    assert {"create_session", "execute_code", "write_file", "read_file"} <= set(answer["offered"])
    _, plotted, written, summed, failed, missing, closed = answer["heard"]
    assert any("image" in str(part.get("type")) for part in parts(plotted))
    assert '"text/plain":"42"' in text_of(plotted)
    assert '"created":true' in text_of(written)
    assert '"stdout":"9\\n"' in text_of(summed)
    assert "ZeroDivisionError" in text_of(failed)
    assert "not_found" in text_of(missing)
    assert '"done":true' in text_of(closed)
    assert await client.json("GET", "/api/kernels") == before


def parts(output: Any) -> list[dict[str, Any]]:
    """Return the parts of what a model hears of a call."""
    return output if isinstance(output, list) else [{"type": "text", "text": output}]


def text_of(output: Any) -> str:
    """Return the text among them: itself, or in a wrapping of JSON."""
    text = next(part["text"] for part in parts(output) if "text" in part)
    try:
        wrapped = json.loads(text)
    except json.JSONDecodeError:
        return str(text)
    return str(wrapped["text"]) if isinstance(wrapped, dict) and "text" in wrapped else str(text)
