"""The table of E2B's routes: sandboxes by keys, and what is in one by its token or its owner's key."""

from __future__ import annotations

from functools import partial

from gateway.http.access import PRINCIPAL, owner
from gateway.http.e2b import code, control, files, filesystem, process
from gateway.http.e2b.credentials import SANDBOX_ID, by_key, by_token
from gateway.http.e2b.failures import as_api, as_stream, as_text, as_unary
from gateway.http.e2b.views import (
    ContextView,
    ContextViews,
    CreatedSandbox,
    ExecuteCode,
    MetricViews,
    NewContext,
    NewSandbox,
    SandboxConnect,
    SandboxRefresh,
    SandboxTimeout,
    SandboxView,
    SandboxViews,
)
from gateway.http.route import Route
from gateway.models import Scope

JSON, STREAM = "application/json", "application/connect+json"
_control = partial(Route, tag="e2b", door="e2b", errors=as_api, credential=by_key)
_code = partial(
    Route,
    access=owner(SANDBOX_ID, Scope.EXECUTE),
    tag="e2b",
    door="e2b",
    errors=as_text,
    credential=by_token,
)
_files = partial(
    Route, access=owner(SANDBOX_ID, Scope.FILES), tag="e2b", door="e2b", errors=as_api, credential=by_token
)
_rpc = partial(Route, "POST", tag="e2b", door="e2b", credential=by_token)

# What E2B has besides, so that asking for it is answered clearly.
_OTHERS = (
    ("PUT", "/sandboxes/{sandbox_id}/network"),
    ("POST", "/sandboxes/{sandbox_id}/snapshots"),
    ("POST", "/sandboxes/{sandbox_id}/fork"),
    ("GET", "/sandboxes/{sandbox_id}/logs"),
    ("GET", "/v2/sandboxes/{sandbox_id}/logs"),
    ("GET", "/snapshots"),
    ("GET", "/templates"),
    ("POST", "/v3/templates"),
    ("DELETE", "/templates/{template_id}"),
    ("GET", "/templates/aliases/{alias}"),
    ("GET", "/volumes"),
    ("POST", "/volumes"),
    ("GET", "/secrets"),
    ("POST", "/secrets"),
)

CONTROL: tuple[Route, ...] = (
    *(
        _control(
            "POST",
            path,
            control.create_sandbox,
            PRINCIPAL,
            "E2B: make a sandbox.",
            {201: CreatedSandbox},
            body=NewSandbox,
        )
        for path in ("/sandboxes", "/v2/sandboxes")
    ),
    *(
        _control("GET", path, control.list_sandboxes, PRINCIPAL, "E2B: list sandboxes.", {200: SandboxViews})
        for path in ("/sandboxes", "/v2/sandboxes")
    ),
    _control(
        "GET",
        "/sandboxes/{sandbox_id}",
        control.get_sandbox,
        owner("sandbox_id"),
        "E2B: show a sandbox.",
        {200: SandboxView},
    ),
    _control(
        "DELETE",
        "/sandboxes/{sandbox_id}",
        control.kill_sandbox,
        owner("sandbox_id"),
        "E2B: end a sandbox, its kernels and its home.",
        {204: None},
    ),
    _control(
        "POST",
        "/sandboxes/{sandbox_id}/timeout",
        control.set_sandbox_timeout,
        owner("sandbox_id"),
        "E2B: have a sandbox end in so many seconds.",
        {204: None},
        body=SandboxTimeout,
    ),
    _control(
        "POST",
        "/sandboxes/{sandbox_id}/refreshes",
        control.refresh_sandbox,
        owner("sandbox_id"),
        "E2B: put a sandbox's end off.",
        {204: None},
        body=SandboxRefresh,
    ),
    _control(
        "POST",
        "/sandboxes/{sandbox_id}/pause",
        control.pause_sandbox,
        owner("sandbox_id"),
        "E2B: freeze a sandbox.",
        {204: None},
    ),
    _control(
        "POST",
        "/sandboxes/{sandbox_id}/resume",
        control.resume_sandbox,
        owner("sandbox_id"),
        "E2B: let a paused sandbox go on.",
        {201: CreatedSandbox},
        body=SandboxConnect,
    ),
    *(
        _control(
            "POST",
            path,
            control.connect_sandbox,
            owner("sandbox_id"),
            "E2B: come back to a sandbox.",
            {200: CreatedSandbox},
            body=SandboxConnect,
        )
        for path in ("/sandboxes/{sandbox_id}/connect", "/v2/sandboxes/{sandbox_id}/connect")
    ),
    _control(
        "GET",
        "/sandboxes/{sandbox_id}/metrics",
        control.sandbox_metrics,
        owner("sandbox_id"),
        "E2B: show what a sandbox uses.",
        {200: MetricViews},
    ),
    *(
        _control(
            method,
            path,
            control.not_offered,
            owner("sandbox_id") if "{sandbox_id}" in path else PRINCIPAL,
            "E2B: not offered here.",
            {501: JSON},
        )
        for method, path in _OTHERS
    ),
)

CODE: tuple[Route, ...] = (
    _code(
        "POST",
        "/execute",
        code.execute_code,
        summary="E2B: run code in a sandbox.",
        responses={200: JSON},
        body=ExecuteCode,
    ),
    _code(
        "GET",
        "/contexts",
        code.list_code_contexts,
        summary="E2B: list a sandbox's contexts.",
        responses={200: ContextViews},
    ),
    _code(
        "POST",
        "/contexts",
        code.create_code_context,
        summary="E2B: make a context.",
        responses={200: ContextView},
        body=NewContext,
    ),
    _code(
        "POST",
        "/contexts/{context_id}/restart",
        code.restart_code_context,
        summary="E2B: start a context afresh.",
        responses={204: None},
    ),
    _code(
        "DELETE",
        "/contexts/{context_id}",
        code.remove_code_context,
        summary="E2B: end a context.",
        responses={204: None},
    ),
    Route(
        "GET",
        "/health",
        code.sandbox_health,
        owner(SANDBOX_ID),
        "E2B: tell whether a sandbox runs.",
        {200: JSON, 204: None},
        "e2b",
        door="e2b",
        errors=as_api,
        credential=by_token,
    ),
)

FILES: tuple[Route, ...] = (
    _files(
        "GET",
        "/files",
        files.download_file,
        summary="E2B: read a file of a sandbox's home.",
        responses={200: "application/octet-stream"},
        query={"path": "The file."},
    ),
    _files(
        "POST",
        "/files",
        files.upload_files,
        summary="E2B: write files of a sandbox's home.",
        responses={200: JSON},
        query={"path": "The file, where there is one; else the parts' file names say it."},
    ),
)

RPC: tuple[Route, ...] = (
    *(
        _rpc(
            f"/filesystem.Filesystem/{name}",
            handler,
            owner(SANDBOX_ID, Scope.FILES),
            f"E2B: {what}",
            {200: JSON},
            errors=as_unary,
        )
        for name, handler, what in (
            ("Stat", filesystem.stat_entry, "show what is at a path."),
            ("ListDir", filesystem.list_directory, "list a directory."),
            ("MakeDir", filesystem.make_directory, "make a directory."),
            ("Move", filesystem.move_entry, "rename something."),
            ("Remove", filesystem.remove_entry, "remove a file or directory."),
            ("CreateWatcher", filesystem.watch, "not offered here."),
            ("GetWatcherEvents", filesystem.watch, "not offered here."),
            ("RemoveWatcher", filesystem.watch, "not offered here."),
        )
    ),
    _rpc(
        "/filesystem.Filesystem/WatchDir",
        filesystem.watch,
        owner(SANDBOX_ID, Scope.FILES),
        "E2B: not offered here.",
        {200: STREAM},
        errors=as_stream,
    ),
    *(
        _rpc(
            f"/process.Process/{name}",
            handler,
            owner(SANDBOX_ID, Scope.EXECUTE),
            f"E2B: {what}",
            {200: JSON},
            errors=as_unary,
        )
        for name, handler, what in (
            ("List", process.list_sandbox_processes, "list the processes that run."),
            ("SendInput", process.send_process_input, "write to a process."),
            ("CloseStdin", process.close_process_input, "close a process's standard input."),
            ("SendSignal", process.signal_sandbox_process, "signal a process."),
            ("Update", process.update_process, "not offered here."),
        )
    ),
    *(
        _rpc(
            f"/process.Process/{name}",
            handler,
            owner(SANDBOX_ID, Scope.EXECUTE),
            f"E2B: {what}",
            {200: STREAM},
            errors=as_stream,
        )
        for name, handler, what in (
            ("Start", process.start_process, "start a process and follow it."),
            ("Connect", process.connect_process, "follow a process."),
            ("StreamInput", process.stream_process_input, "write to a process what comes."),
        )
    ),
)

E2B_ROUTES = (*CONTROL, *CODE, *FILES, *RPC)
