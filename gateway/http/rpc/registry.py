"""The one table of methods: what there is, and its description as JSON Schema."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from gateway.http.rpc import executions, files, kernels, processes
from gateway.http.rpc.feed import NOTIFICATIONS
from gateway.http.rpc.method import Call, Method, Nothing
from gateway.models.base import Model


class MethodView(Model):
    """A method, with JSON Schemas of its parameters and result."""

    name: str
    summary: str
    params: dict[str, Any]
    result: dict[str, Any] | None


class Description(Model):
    """What this door speaks."""

    jsonrpc: str = "2.0"
    version: str
    methods: list[MethodView]
    notifications: list[str]
    requests: list[str]


class Pong(Model):
    """That the gateway is there, and whom it takes the caller for."""

    principal: str


async def ping(call: Call, _: Nothing) -> Pong:
    """Answer."""
    return Pong(principal=call.principal.name)


async def describe(call: Call, _: Nothing) -> Description:
    """Describe every method."""
    return Description(
        version=call.ctx.version,
        methods=[
            MethodView(
                name=method.name,
                summary=method.summary,
                params=_schema(method.params, "validation"),
                result=_schema(method.result, "serialization") if method.result else None,
            )
            for method in METHODS.values()
        ],
        notifications=sorted(SENT),
        requests=["tool.call"],
    )


def _schema(model: type[BaseModel], mode: Any) -> dict[str, Any]:
    return model.model_json_schema(mode=mode)


OWN: tuple[Method, ...] = (
    Method("ping", ping, Nothing, Pong, "Answer, and say who the caller is.", changes=False),
    Method(
        "describe", describe, Nothing, Description, "Describe every method, as JSON Schema.", changes=False
    ),
)
METHODS: dict[str, Method] = {
    method.name: method
    for method in (*executions.METHODS, *kernels.METHODS, *processes.METHODS, *files.METHODS, *OWN)
}
SENT = {*NOTIFICATIONS.values(), "execution.accepted", "execution.lost"}
