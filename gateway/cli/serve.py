"""`cellblock serve`: become the service user, with a warden at hand, and serve."""

from __future__ import annotations

import asyncio
import errno
import gc
import resource
import signal
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.errors import ConfigurationError

HostOption = Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help="Address to bind.")]
PortOption = Annotated[
    int | None, typer.Option("--port", metavar="PORT", help="Port to bind; 0 takes a free one.")
]
StateDirOption = Annotated[
    Path | None, typer.Option("--state-dir", metavar="DIR", help="Everything that this gateway keeps.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings, as TOML.")]
NoKeepOption = Annotated[
    bool,
    typer.Option("--no-keep", help="End all kernels with the gateway, instead of leaving them to the next."),
]
BehindProxyOption = Annotated[
    bool | None,
    typer.Option("--behind-proxy", help="A proxy in front ends TLS: any address may be bound without it."),
]
RequireCgroupsOption = Annotated[
    bool, typer.Option("--require-cgroups", help="Refuse to start where cells cannot have control groups.")
]
PrintConfigOption = Annotated[
    bool, typer.Option("--print-config", help="Print the settings in force, as TOML, and leave.")
]


def serve(
    host: HostOption = None,
    port: PortOption = None,
    state_dir: StateDirOption = None,
    config: ConfigOption = None,
    no_keep: NoKeepOption = False,
    behind_proxy: BehindProxyOption = None,
    require_cgroups: RequireCgroupsOption = False,
    print_config: PrintConfigOption = False,
) -> None:
    """Serve kernels in cells over REST and WebSocket until SIGTERM or Ctrl-C.

    Every setting has a variable too, like CELLBLOCK_SERVER__PORT, and a place in the TOML file.
    """
    # what is imported stays: looking through it over and over takes an eighth of the start
    gc.disable()
    flags = {"host": host, "port": port, "behind_proxy": behind_proxy}
    given: dict[str, Any] = {"server": {name: value for name, value in flags.items() if value is not None}}
    if state_dir is not None:
        given["state_dir"] = state_dir.absolute()
    if require_cgroups:
        given["sandbox"] = {"require_cgroups": True}
    from gateway import settings as configuration  # noqa: PLC0415 - pydantic-settings would slow every --help

    settings = configuration.load(config, **given)
    if print_config:
        typer.echo(configuration.as_toml(settings), nl=False)
        return

    from gateway.app import serve as serve_gateway  # noqa: PLC0415 - slow to import, and only needed here
    from gateway.privilege import as_service_user, prepare_state  # noqa: PLC0415
    from gateway.sandbox import daemon  # noqa: PLC0415
    from gateway.telemetry import configure_logging  # noqa: PLC0415

    server = settings.server
    listener = bind(server.host, server.port, in_clear=not (server.tls.cert or server.behind_proxy))
    prepare_state(settings)
    daemon.hold(
        settings.state_dir / "lock",
        f"Another gateway serves {settings.state_dir}: choose another --state-dir.",
    )
    daemon.ensure(settings)
    as_service_user(settings)
    # a kernel takes some five descriptors, more while it starts, and a soft limit is often 1024
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    configure_logging(settings.log)
    asyncio.run(serve_gateway(settings, listener, keep=not no_keep))
    for number in (signal.SIGTERM, signal.SIGINT):
        # Python lets go of its handlers on the way out
        signal.signal(number, signal.SIG_IGN)


def bind(host: str, port: int, *, in_clear: bool = True) -> socket.socket:
    """Bind the gateway's address, in clear only one of loopback. Raises ConfigurationError, in a sentence."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if in_clear and not ip_address(str(address[0])).is_loopback:
            raise ConfigurationError(
                f"{host} is not loopback, and without TLS keys would cross the network in clear: set "
                "server.tls, or --behind-proxy when a proxy in front ends TLS."
            )
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"Port {port} on {host} is taken: choose another with --port."
            ) from error
        raise ConfigurationError(f"{host} port {port} cannot be bound: {error.strerror}.") from error
    return listener
