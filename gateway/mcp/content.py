"""What a tool gives, as a result of MCP's: structured, a copy of that as text, images, links to files."""

from __future__ import annotations

import mimetypes
from typing import TYPE_CHECKING, Any

import mcp_types as types
import orjson

from gateway.toolbox.file_views import WrittenFile
from gateway.toolbox.outcomes import Outcome
from gateway.toolbox.results import IMAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from gateway.errors import GatewayError
    from gateway.toolbox.tool import Tool

NO_TYPE = "application/octet-stream"
# now, as the machine's tables are files
mimetypes.init()


def described(tool: Tool) -> types.Tool:
    """Return how a tool is listed."""
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        annotations=types.ToolAnnotations(
            title=tool.title,
            read_only_hint=tool.hints.read_only,
            destructive_hint=tool.hints.destructive,
            idempotent_hint=tool.hints.idempotent,
            open_world_hint=False,
        ),
    )


def given(result: BaseModel) -> types.CallToolResult:
    """Return what a tool gave. Images are content of their own, and named in the structure."""
    structured: dict[str, Any] = result.model_dump(mode="json", exclude_none=True)
    images = list(_taken(structured)) if isinstance(result, Outcome) else []
    text = orjson.dumps(structured).decode()
    content: list[types.ContentBlock] = [types.TextContent(text=text), *images]
    if isinstance(result, Outcome):
        content += [link(made.uri, made.path, made.size) for made in result.artifacts if made.uri]
        content += [
            types.ResourceLink(uri=uri, name=uri.rpartition("/")[2], mime_type="text/plain")
            for uri in result.full_texts or ()
        ]
    if isinstance(result, WrittenFile):
        content.append(link(result.uri, result.path, result.size))
    return types.CallToolResult(content=content, structured_content=structured)


def failed(error: GatewayError) -> types.CallToolResult:
    """Return a failure that the model can read, and do better after."""
    reason = f" ({error.reason})" if error.reason else ""
    text = f"{error.code}{reason}: {error.message}"
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True)


def link(uri: str, path: str, size: int) -> types.ResourceLink:
    """Return a link to a file that resources/read takes."""
    return types.ResourceLink(uri=uri, name=path, mime_type=mime_type(path), size=size)


def mime_type(path: str) -> str:
    """Guess a media type by a file's name."""
    return mimetypes.guess_type(path)[0] or NO_TYPE


def _taken(structured: dict[str, Any]) -> Iterator[types.ImageContent]:
    """Take the images out of an outcome's results, and leave a word in the place of each."""
    for result in structured.get("results", ()):
        for kind in IMAGES:
            data = result.get(kind)
            if data is not None and not data.startswith("["):
                result[kind] = f"[an image of {len(data)} base64 bytes, in the content]"
                yield types.ImageContent(data=data, mime_type=kind)
