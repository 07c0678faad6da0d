"""The table of doors, each of which runs the scenarios of test_doors.py.

A new door is a module `door_NAME.py` with a class made from `tests.clients.door.Door`, and a line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.clients.door_channels import ChannelsLegacy, ChannelsV1
from tests.clients.door_cli import CommandLine
from tests.clients.door_client import TypedClient
from tests.clients.door_e2b import E2bJavaScript, E2bPython
from tests.clients.door_mcp import Mcp, McpStdio
from tests.clients.door_rest import Execute, Executions, Job, Ndjson, Sse
from tests.clients.door_rpc import JsonRpc, JsonRpcStart

if TYPE_CHECKING:
    from tests.clients.door import Door

DOORS: tuple[type[Door], ...] = (
    Execute,
    Executions,
    Sse,
    Ndjson,
    Job,
    ChannelsV1,
    ChannelsLegacy,
    TypedClient,
    CommandLine,
    JsonRpc,
    JsonRpcStart,
    Mcp,
    McpStdio,
    E2bPython,
    E2bJavaScript,
)
SCENARIOS = (
    "text",
    "plot",
    "error",
    "long output",
    "timeout",
    "cancel",
    "disconnect",
    "kernel death",
    "other owner's id",
    "quota",
)
