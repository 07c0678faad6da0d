"""mcp.md says what the tools are, and shows configurations that are JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from gateway.settings import McpSettings
from gateway.toolbox.toolbox import Toolbox
from tests.docs.markdown import blocks, code, page, rows
from tests.doubles import MemoryAudit

if TYPE_CHECKING:
    from gateway.services.use_cases import UseCases

PAGE = page("mcp.md")


class Unused:
    """Use cases that nobody calls: tools are only listed here."""

    def __getattr__(self, name: str) -> None:
        return None


def test_the_table_of_tools() -> None:
    """The page has every tool in its order, with its scopes, and whether it is always offered."""
    toolbox = Toolbox(cast("UseCases", Unused()), settings=McpSettings(), audit=MemoryAudit())
    documented = [
        (code(cells[0])[0], sorted(code(cells[1])), cells[2])
        for cells in rows(PAGE, "tool", "scopes", "offered")
    ]

    assert documented == [
        (tool.name, sorted(tool.scopes), "extended" if tool.extended else "always")
        for tool in toolbox.catalogue.tools()
    ]


def test_configurations() -> None:
    """Every configuration is JSON that names the gateway's endpoint, or the command."""
    shown = [json.loads(block) for block in blocks(PAGE, "json")]
    servers = [server for each in shown for server in (each.get("mcpServers") or each["servers"]).values()]

    assert len(servers) >= 3
    for server in servers:
        if "command" in server:
            assert [server["command"], server["args"][0]] == ["cellblock", "mcp"]
        else:
            assert server["url"].endswith("/mcp")
            assert server["headers"]["Authorization"].startswith("Bearer ")
