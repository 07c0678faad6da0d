"""The MCP server: lists tools, calls them, reads files as resources. Each request stands for itself."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import mcp_types as types
import structlog
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from gateway.errors import GatewayError, NotFound
from gateway.mcp.caller import caller_of
from gateway.mcp.content import described, failed, given, mime_type
from gateway.origin import acting
from gateway.toolbox.resources import TEMPLATES
from gateway.toolbox.tool import Call

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext

    from gateway.ports import Clock
    from gateway.toolbox.tool import Report
    from gateway.toolbox.toolbox import Toolbox

    Context = ServerRequestContext[Any, Any]

T = TypeVar("T")

CANCELLED = -32800
INSTRUCTIONS = (
    "Runs code in Jupyter kernels, each in a sandbox without network. Make a session with create_session and "
    "give its session_id to the other tools: variables and files stay in it. execute_code without a session "
    "runs in a fresh kernel. What takes longer than a minute or two is better begun by start_execution."
)

log = structlog.get_logger(__name__)


class ToolServer:
    """Answers MCP requests out of the toolbox.

    A tool runs in a task of its own, which is cancelled once when its caller goes away or takes the call
    back, and then ends at its own pace.
    """

    def __init__(self, toolbox: Toolbox, clock: Clock, *, version: str, extended: bool) -> None:
        self._toolbox = toolbox
        self._clock = clock
        self._extended = extended
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: dict[tuple[str, str, str], asyncio.Task[Any]] = {}
        self.server: Server[Any] = Server(
            "cellblock",
            title="Cellblock",
            version=version,
            instructions=INSTRUCTIONS,
            # or else every call lists all tools first, to hold its headers against them
            get_tool_input_schema=self._schema,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
        )
        self.server.add_notification_handler(
            "notifications/cancelled", types.CancelledNotificationParams, self._take_back
        )

    async def close(self) -> None:
        """Cancel the tools that run, and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _schema(self, name: str) -> Mapping[str, Any] | None:
        try:
            return self._toolbox.catalogue.find(name, extended=self._extended).input_schema
        except NotFound:
            return None

    async def _list_tools(
        self, ctx: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        tools = self._toolbox.catalogue.offered(caller_of(ctx).principal, extended=self._extended)
        return types.ListToolsResult(tools=[described(tool) for tool in tools])

    async def _call_tool(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        caller = caller_of(ctx)
        try:
            tool = self._toolbox.catalogue.find(params.name, extended=self._extended)
        except NotFound as error:
            raise MCPError(code=types.INVALID_PARAMS, message=error.message) from None
        call = Call(caller.principal, caller.origin, self._report(ctx))
        # in the caller's name, whatever task the SDK runs this in
        with acting(caller.origin):
            running = self._toolbox.catalogue.call(call, tool, params.arguments or {})
            try:
                return given(await self._run(running, caller.call(ctx.request_id)))
            except GatewayError as error:
                return failed(error)
            except MCPError:
                # taken back
                raise
            except Exception:
                log.exception("tool_crashed", tool=tool.name)
                return failed(GatewayError("The gateway failed in an unexpected way; its log says more."))

    async def _list_resources(
        self, _ctx: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        # files are named by the results of tools, and by the template
        return types.ListResourcesResult(resources=[])

    async def _list_templates(
        self, _ctx: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        templates = [
            types.ResourceTemplate(name=name, description=what, uri_template=template)
            for name, what, template in TEMPLATES
        ]
        return types.ListResourceTemplatesResult(resource_templates=templates)

    async def _read_resource(
        self, ctx: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        caller = caller_of(ctx)
        with acting(caller.origin):
            reading = self._toolbox.resources.read(caller.principal, params.uri)
            try:
                name, raw = await self._run(reading, caller.call(ctx.request_id))
            except GatewayError as error:
                raise MCPError(code=types.INVALID_PARAMS, message=error.message, data=error.body()) from None
        return types.ReadResourceResult(contents=[_contents(params.uri, name, raw)])

    async def _take_back(self, ctx: Context, params: types.CancelledNotificationParams) -> None:
        """Cancel a call that this very client made, by an earlier request of an older protocol revision."""
        call = caller_of(ctx).call(params.request_id)
        if call is not None and call in self._calls:
            self._calls[call].cancel()

    async def _run(self, work: Coroutine[Any, Any, T], call: tuple[str, str, str] | None) -> T:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if call is not None:
            self._calls[call] = task
        try:
            await asyncio.wait({task})
        finally:
            # nothing happens to one that has ended
            task.cancel()
            if call is not None and self._calls.get(call) is task:
                del self._calls[call]
        if task.cancelled():
            raise MCPError(code=CANCELLED, message="Request cancelled")
        return task.result()

    def _report(self, ctx: Context) -> Report | None:
        """Return what sends progress, if the client wants any: seconds so far, and the output's end."""
        if not ctx.meta or ctx.meta.get("progress_token") is None:
            return None
        began, last = self._clock.monotonic(), 0.0

        async def report(text: str) -> None:
            nonlocal last
            last = max(round(self._clock.monotonic() - began, 3), last + 0.001)
            await ctx.session.report_progress(last, message=text or "nothing printed yet")

        return report


def _contents(uri: str, name: str, raw: bytes) -> types.TextResourceContents | types.BlobResourceContents:
    kind = mime_type(name)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return types.BlobResourceContents(uri=uri, mime_type=kind, blob=base64.b64encode(raw).decode())
    shown = "text/plain" if kind == "application/octet-stream" else kind
    return types.TextResourceContents(uri=uri, mime_type=shown, text=text)
