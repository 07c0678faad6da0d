"""The MCP server tells the SDK what it needs of a tool, without a list of all."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from gateway.mcp.server import ToolServer
from gateway.models import Frozen
from gateway.toolbox.catalogue import Catalogue
from gateway.toolbox.tool import EXECUTE, Call, Tool
from tests.doubles import ManualClock, MemoryAudit


class Asked(Frozen):
    """What goes in."""

    code: str


class Box:
    """A toolbox with two tools, one of them extended."""

    def __init__(self) -> None:
        async def run(_call: Call, given: Any) -> BaseModel:
            return given

        tools = (
            Tool("plain", "Plain", "Is there.", Asked, Asked, run, EXECUTE),
            Tool("more", "More", "Is there if asked for.", Asked, Asked, run, EXECUTE, extended=True),
        )
        self.catalogue = Catalogue(tools, MemoryAudit())


def test_the_schema_of_one_tool() -> None:
    """A tool's schema is made once; what is not offered here has none, and that is no failure."""
    lookup = ToolServer(Box(), ManualClock(), version="0", extended=False).server.get_tool_input_schema
    assert lookup is not None

    assert lookup("plain")["required"] == ["code"]
    assert lookup("plain") is lookup("plain")
    assert lookup("more") is None
    assert lookup("nothing") is None
    extended = ToolServer(Box(), ManualClock(), version="0", extended=True).server.get_tool_input_schema
    assert extended("more")["required"] == ["code"]
