"""`cellblock mcp`: an MCP server on stdin and stdout, for hosts that start their servers themselves."""

from __future__ import annotations

from gateway.cli.connection import DEFAULT_URL, KeyFileOption, UrlOption, api_key


def mcp(url: UrlOption = DEFAULT_URL, key_file: KeyFileOption = None) -> None:
    """Offer a gateway's tools to an MCP host over stdin and stdout.

    Started by the host, as its configuration says. Nothing but MCP is written to stdout.
    """
    key = api_key(key_file)

    import asyncio  # noqa: PLC0415 - not for --help

    from gateway.mcp.proxy import proxy  # noqa: PLC0415 - the SDK takes half a second

    asyncio.run(proxy(url, key))
