"""Methods on kernels, and on contexts: a caller's own names for them."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from gateway.http.contexts import ContextList
from gateway.http.kernels import started
from gateway.http.rpc.method import Call, Method, Nothing
from gateway.http.views import KernelCreate, KernelList
from gateway.models import Kernel, Usage
from gateway.models.base import Frozen
from gateway.models.jobs import ContextChange, ContextName, ContextView

KernelId = Annotated[str, Field(max_length=64)]


class Create(KernelCreate):
    """Parameters of `kernels.create`."""

    model_config = ConfigDict(extra="forbid")


class OneKernel(Frozen):
    """Names a kernel."""

    kernel_id: KernelId


class Open(ContextChange):
    """Parameters of `contexts.open`."""

    name: ContextName


class OneContext(Frozen):
    """Names a context."""

    name: ContextName


async def create(call: Call, wanted: Create) -> Kernel:
    """Start a kernel."""
    return (await started(call.ctx, call.principal, wanted)).model()


async def listing(call: Call, _: Nothing) -> KernelList:
    """List the caller's kernels."""
    return KernelList([handle.model() for handle in call.ctx.kernels.list(call.principal)])


async def get(call: Call, wanted: OneKernel) -> Kernel:
    """Show a kernel."""
    return call.ctx.kernels.get(call.principal, wanted.kernel_id).model()


async def usage(call: Call, wanted: OneKernel) -> Usage:
    """Show what a kernel's cell uses."""
    return await call.ctx.kernels.usage(call.principal, wanted.kernel_id)


async def delete(call: Call, wanted: OneKernel) -> None:
    """End a kernel."""
    await call.ctx.kernels.delete(call.principal, wanted.kernel_id)


async def open_context(call: Call, wanted: Open) -> ContextView:
    """Make a context, if there is none of that name that lives."""
    await call.ctx.contexts.open(call.principal, wanted.name, wanted, ttl_s=wanted.ttl_s)
    return await call.ctx.contexts.get(call.principal, wanted.name)


async def list_contexts(call: Call, _: Nothing) -> ContextList:
    """List the caller's contexts."""
    return ContextList(await call.ctx.contexts.list(call.principal))


async def keep_context(call: Call, wanted: OneContext) -> ContextView:
    """Have a context's idle time begin anew."""
    return await call.ctx.contexts.keep_alive(call.principal, wanted.name)


async def close_context(call: Call, wanted: OneContext) -> None:
    """End a context and its kernel."""
    await call.ctx.contexts.close(call.principal, wanted.name)


METHODS: tuple[Method, ...] = (
    Method("kernels.create", create, Create, Kernel, "Start a kernel in a cell of its own."),
    Method("kernels.list", listing, Nothing, KernelList, "List the caller's kernels.", changes=False),
    Method("kernels.get", get, OneKernel, Kernel, "Show a kernel.", changes=False),
    Method("kernels.usage", usage, OneKernel, Usage, "Show what a kernel's cell uses.", changes=False),
    Method("kernels.delete", delete, OneKernel, None, "End a kernel and everything that it started."),
    Method("contexts.open", open_context, Open, ContextView, "Make a context, if there is none of the name."),
    Method("contexts.list", list_contexts, Nothing, ContextList, "List one's contexts.", changes=False),
    Method("contexts.keep", keep_context, OneContext, ContextView, "Have a context's idle time begin anew."),
    Method("contexts.close", close_context, OneContext, None, "End a context and its kernel."),
)
