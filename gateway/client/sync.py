"""The client for programs without asyncio: the same nouns and methods, each of which blocks."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from gateway.client.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from types import TracebackType

    from gateway.client.contexts import Contexts
    from gateway.client.executions import Executions
    from gateway.client.files import Files
    from gateway.client.history import History
    from gateway.client.kernels import Kernels
    from gateway.client.kernelspecs import Specs
    from gateway.client.processes import Processes
    from gateway.client.workspaces import Workspaces

P = ParamSpec("P")
T = TypeVar("T")

FAREWELL_S = 15.0  # for an interrupted call to say so to the gateway


class Loop:
    """An event loop in a thread of its own, on which one blocks for what asyncio does.

    Ctrl-C while one waits cancels the call, lets it say goodbye, and goes on as KeyboardInterrupt: an
    execution that `run` waits for is interrupted.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start the loop and its thread."""
        self._loop = loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="cellblock-client", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the loop and its thread."""
        if self._loop is not None and self._thread is not None:
            # in its own thread: in this one another loop may run, as in a notebook
            self.wait(self._loop.shutdown_asyncgens())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        self._loop = self._thread = None

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result."""
        loop = self._loop
        if loop is None:
            work.close()
            raise RuntimeError("use the client as a context manager")
        over = threading.Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                over.set()

        future = asyncio.run_coroutine_threadsafe(watched(), loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            over.wait(FAREWELL_S)
            raise

    def blocking(self, method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        """Return a method that blocks until the async one has ended."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.wait(method(*args, **kwargs))

        call.__doc__ = method.__doc__
        return call

    def iterating(self, method: Callable[P, AsyncIterator[T]]) -> Callable[P, Iterator[T]]:
        """Return a method whose iterator blocks for each thing that the async one yields."""

        def call(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
            items = method(*args, **kwargs)
            try:
                while True:
                    try:
                        item = self.wait(_next(items))
                    except StopAsyncIteration:
                        return
                    yield item
            finally:
                self.wait(_closed(items))

        call.__doc__ = method.__doc__
        return call


class SyncKernels:
    """`Client.kernels`, blocking; sockets to a kernel are for asyncio alone."""

    def __init__(self, kernels: Kernels, loop: Loop) -> None:
        self.list = loop.blocking(kernels.list)
        self.create = loop.blocking(kernels.create)
        self.get = loop.blocking(kernels.get)
        self.interrupt = loop.blocking(kernels.interrupt)
        self.restart = loop.blocking(kernels.restart)
        self.pause = loop.blocking(kernels.pause)
        self.resume = loop.blocking(kernels.resume)
        self.delete = loop.blocking(kernels.delete)
        self.usage = loop.blocking(kernels.usage)
        self.execute = loop.blocking(kernels.execute)


class SyncSpecs:
    """`Client.kernelspecs`, blocking."""

    def __init__(self, specs: Specs, loop: Loop) -> None:
        self.list = loop.blocking(specs.list)
        self.resource = loop.blocking(specs.resource)


class SyncExecutions:
    """`Client.executions`, blocking.

    `on_event` and asynchronous tools run in the client's own thread, where nothing may block: plain functions
    given as tools have threads of theirs.
    """

    def __init__(self, executions: Executions, loop: Loop) -> None:
        self.run = loop.blocking(executions.run)
        self.start = loop.blocking(executions.start)
        self.get = loop.blocking(executions.get)
        self.wait = loop.blocking(executions.wait)
        self.follow = loop.iterating(executions.follow)
        self.list = loop.blocking(executions.list)
        self.cancel = loop.blocking(executions.cancel)
        self.interrupt = loop.blocking(executions.interrupt)
        self.text = loop.blocking(executions.text)
        self.answer = loop.blocking(executions.answer)


class SyncContexts:
    """`Client.contexts`, blocking."""

    def __init__(self, contexts: Contexts, loop: Loop) -> None:
        self.list = loop.blocking(contexts.list)
        self.open = loop.blocking(contexts.open)
        self.get = loop.blocking(contexts.get)
        self.keep_alive = loop.blocking(contexts.keep_alive)
        self.close = loop.blocking(contexts.close)


class SyncFiles:
    """`Client.files`, blocking."""

    def __init__(self, files: Files, loop: Loop) -> None:
        self.list = loop.blocking(files.list)
        self.stat = loop.blocking(files.stat)
        self.read = loop.blocking(files.read)
        self.read_bytes = loop.blocking(files.read_bytes)
        self.write = loop.blocking(files.write)
        self.append = loop.blocking(files.append)
        self.edit = loop.blocking(files.edit)
        self.mkdir = loop.blocking(files.mkdir)
        self.move = loop.blocking(files.move)
        self.delete = loop.blocking(files.delete)
        self.upload = loop.blocking(files.upload)
        self.download = loop.blocking(files.download)
        self.upload_archive = loop.blocking(files.upload_archive)
        self.download_archive = loop.blocking(files.download_archive)


class SyncProcesses:
    """`Client.processes`, blocking."""

    def __init__(self, processes: Processes, loop: Loop) -> None:
        self.run = loop.blocking(processes.run)
        self.start = loop.blocking(processes.start)
        self.list = loop.blocking(processes.list)
        self.read = loop.blocking(processes.read)
        self.follow = loop.iterating(processes.follow)
        self.write = loop.blocking(processes.write)
        self.signal = loop.blocking(processes.signal)
        self.kill = loop.blocking(processes.kill)
        self.tree = loop.blocking(processes.tree)
        self.end = loop.blocking(processes.end)
        self.system = loop.blocking(processes.system)


class SyncWorkspaces:
    """`Client.workspaces`, blocking."""

    def __init__(self, workspaces: Workspaces, loop: Loop) -> None:
        self.list = loop.blocking(workspaces.list)
        self.delete = loop.blocking(workspaces.delete)


class SyncClient:
    """`Client`, blocking. Use as a context manager, from any number of threads."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        retries: int = 4,
        retry_budget_s: float = 60.0,
        history: History | None = None,
    ) -> None:
        client = Client(url, token, retries=retries, retry_budget_s=retry_budget_s, history=history)
        self._client = client
        self._loop = loop = Loop()
        self.history = client.history
        self.kernels = SyncKernels(client.kernels, loop)
        self.kernelspecs = SyncSpecs(client.kernelspecs, loop)
        self.executions = SyncExecutions(client.executions, loop)
        self.contexts = SyncContexts(client.contexts, loop)
        self.files = SyncFiles(client.files, loop)
        self.processes = SyncProcesses(client.processes, loop)
        self.workspaces = SyncWorkspaces(client.workspaces, loop)
        self.me = loop.blocking(client.me)
        self.status = loop.blocking(client.status)
        self.health = loop.blocking(client.health)
        self.ready = loop.blocking(client.ready)

    def __enter__(self) -> Self:
        self._loop.open()
        self._loop.wait(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._loop.wait(self._client.__aexit__(kind, error, trace))
        finally:
            self._loop.close()


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


async def _closed(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()
