"""A kernel provisioner of jupyter_client's: local kernels in cells, without a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from pydantic import ValidationError
from tornado.web import HTTPError
from traitlets import Enum, Unicode

from gateway import settings as configuration
from gateway.errors import GatewayError, SandboxUnavailable
from gateway.kernels.channels import bound
from gateway.kernels.provisioner_cell import Conversation, TiedCell, own
from gateway.sandbox.profile import load_profile, profile_dirs
from gateway.sandbox.wire import Ending, LaunchOrder, Place, Share
from gateway.settings import Settings

NAME = "firejail-provisioner"
POLL_S = 0.005
KILLED = -signal.SIGKILL


class KernelRefused(HTTPError):
    """No kernel, and why: in a sentence that Jupyter's own servers pass on to their users."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message.replace("%", "%%"))
        self.message = message

    def __str__(self) -> str:
        return self.message


class FirejailProvisioner(KernelProvisionerBase):
    """Starts each kernel in a proved cell of this user's warden, and lets the server talk to its sockets.

    Options come from `metadata.kernel_provisioner.config` of a kernelspec, or from the server's settings.
    The cell ends with this object and with this process, whatever ends it.
    """

    profile = Unicode("default", config=True, help="The sandbox profile of the cell.")
    environment = Unicode(None, allow_none=True, config=True, help="The kernel environment, a directory.")
    share = Enum(
        ["none", "read-only", "read-write"],
        "none",
        config=True,
        help="What the cell gets of the directory that the server starts the kernel in.",
    )

    def __init__(self, **options: Any) -> None:
        if unknown := sorted(name for name in options if not self.has_trait(name)):
            raise KernelRefused(f"The {NAME} has no option {', '.join(unknown)}.")
        super().__init__(**options)
        self._talk: Conversation | None = None
        self._cell: TiedCell | None = None
        self._place: Place | None = None
        self._watching: asyncio.AbstractEventLoop | None = None
        self._telling: asyncio.Task[None] | None = None
        # whether the kernel is to run, and whether its end was seen
        self._wanted = False
        self._noticed = False

    @property
    def has_process(self) -> bool:
        """Whether there is a kernel, alive or not yet waited for."""
        return self._cell is not None

    async def pre_launch(self, **options: Any) -> dict[str, Any]:
        """Take of a start's options what a cell may have: arguments and a directory, no environment."""
        extra = options.pop("extra_arguments", None) or []
        options.pop("env", None)
        if self.parent is not None:
            # no ports are cached and none is looked for: the cell's own sockets are files
            self.parent.transport = "ipc"
            self.parent.cache_ports = False
        return {**options, "cmd": [*self.kernel_spec.argv, *extra]}

    async def launch_kernel(self, cmd: list[str], **options: Any) -> KernelConnectionInfo:
        """Start the kernel in a cell and return once its sockets are there. Raises KernelRefused."""
        try:
            settings = own(configuration.load())
            order = self._order(settings, cmd, options.get("cwd"))
            self._cell = await self._launched(settings, order)
            await self._bound(self._cell, settings.kernels.ready_timeout_s)
        except GatewayError as error:
            raise KernelRefused(error.message) from error
        except ValidationError as error:
            first = error.errors()[0]
            raise KernelRefused(f"The kernelspec cannot be used in a cell: {first['msg']}.") from error
        facts = self._cell.facts
        self.log.info("Kernel %s runs in cell %s, pid %d", self.kernel_id, facts.cell, self._cell.pid)
        # the place and the key stay the kernel's over restarts: its clients stay connected, as with ports
        self._place = Place(cell=facts.cell, key=facts.connection.key)
        self._wanted, self._noticed = True, False
        self._watch(self._cell)
        info: dict[str, Any] = facts.connection.model_dump(exclude={"kernel_name"})
        self.connection_info = cast("KernelConnectionInfo", {**info, "key": facts.connection.key.encode()})
        return self.connection_info

    async def poll(self) -> int | None:
        """Return None while the kernel runs, and then its exit code; that it ended by itself is logged."""
        cell = self._cell
        if cell is None:
            return 0
        if not cell.exited:
            return None
        first, self._noticed = not self._noticed, True
        self._unwatch(cell)
        ending = await asyncio.to_thread(cell.end)
        if first and self._wanted:
            self.log.error("Kernel %s ended by itself: %s", self.kernel_id, reason(ending))
        return KILLED if ending.exit_code is None else ending.exit_code

    async def wait(self) -> int | None:
        """Wait for the kernel's end and return its exit code."""
        while (code := await self.poll()) is None:  # noqa: ASYNC110 - also where another loop watches
            await asyncio.sleep(POLL_S)
        self._cell = None
        return code

    async def send_signal(self, signum: int) -> None:
        """Interrupt through the warden, which reaches children; end the whole cell; or just signal."""
        if self._cell is None:
            return
        if signum == signal.SIGINT:
            await asyncio.to_thread(self._cell.do, "interrupt")
        elif signum in {signal.SIGTERM, signal.SIGKILL}:
            await self.kill()
        else:
            self._cell.signal(signum)

    async def kill(self, restart: bool = False) -> None:  # noqa: ARG002 - ended in any case
        """End the whole cell."""
        self._wanted = False
        if self._cell is not None:
            self._unwatch(self._cell)
            await asyncio.to_thread(self._cell.end)

    async def terminate(self, restart: bool = False) -> None:
        """End the whole cell: what asks nicely is the shutdown request, which came before."""
        await self.kill(restart)

    async def shutdown_requested(self, restart: bool = False) -> None:  # noqa: ARG002 - likewise
        """Expect the kernel's end."""
        self._wanted = False

    async def cleanup(self, restart: bool = False) -> None:
        """End what is left of the cell, and unless another follows the conversation too."""
        await self.kill(restart)
        if not restart:
            self._cell = None
            self._hang_up()

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return the base's facts, the cell and the kernel's pid: to look at, since the cell ends with us."""
        facts: dict[str, Any] = await super().get_provisioner_info()
        cell = self._cell
        return {**facts, "cell": cell and cell.facts.cell, "pid": cell and cell.pid}

    def _order(self, settings: Settings, cmd: list[str], cwd: object) -> LaunchOrder:
        profile = load_profile(self.profile, profile_dirs(settings.sandbox.profile_dirs))
        share = None
        if self.share != "none":
            path = Path(str(cwd or Path.cwd())).resolve()
            share = Share(path=str(path), writable=self.share == "read-write")
        return LaunchOrder(
            kernel_id=self.kernel_id,
            profile=self.profile,
            argv=tuple(cmd),
            environment=self.environment,
            env=self.kernel_spec.env,
            limits=profile.limits,
            share=share,
            place=self._place,
            tied=True,
        )

    async def _launched(self, settings: Settings, order: LaunchOrder) -> TiedCell:
        """Launch in a thread; should nobody wait for it any more, the conversation ends and the cell too."""
        try:
            if self._talk is None or not self._talk.open:
                self._talk = await asyncio.to_thread(Conversation.begin, settings)
                if self._talk.other_settings:
                    self.log.warning("The warden that is running was started with other settings")
            return await asyncio.to_thread(TiedCell.launch, self._talk, order)
        except BaseException:
            self._hang_up()
            raise

    async def _bound(self, cell: TiedCell, timeout_s: float) -> None:
        """Wait until the kernel has bound its sockets, and take their directory from it."""
        try:
            async with asyncio.timeout(timeout_s):
                while not bound(cell.facts.connection.ip):
                    if cell.exited:
                        ending = await asyncio.to_thread(cell.end)
                        raise SandboxUnavailable(f"The kernel ended while it started: {reason(ending)}.")  # noqa: TRY301
                    await asyncio.sleep(POLL_S)
            await asyncio.to_thread(cell.do, "seal")
        except BaseException as error:
            await self.cleanup()
            if isinstance(error, TimeoutError):
                raise SandboxUnavailable(f"The kernel was not up within {timeout_s:g} s.") from None
            raise

    def _watch(self, cell: TiedCell) -> None:
        """Hear of the kernel's end when it comes, and not when the server looks again, seconds later."""
        self._watching = asyncio.get_running_loop()
        self._watching.add_reader(cell.pidfd, self._died, cell)

    def _unwatch(self, cell: TiedCell) -> None:
        if self._watching is not None:
            self._watching.remove_reader(cell.pidfd)
            self._watching = None

    def _died(self, cell: TiedCell) -> None:
        self._unwatch(cell)
        if self._wanted and not self._noticed:
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        """Log why the kernel ended, and have a restarter look now, which tells the kernel's clients."""
        found = getattr(self.parent, "_restarter", None)
        restarter = found if isinstance(found, AsyncIOLoopKernelRestarter) else None
        if restarter:
            # it goes on with the next kernel; two looks at one end would be two restarts
            restarter.stop()
        await self.poll()
        if restarter and self._wanted:
            await restarter.poll()

    def _hang_up(self) -> None:
        if self._talk is not None:
            self._talk.close()
            self._talk = None


def reason(ending: Ending) -> str:
    """Say how a kernel ended."""
    if ending.oom:
        return "it ran out of the memory that its profile allows"
    code = ending.exit_code
    how = "its cell was killed" if code is None else f"exit code {code}"
    if code is not None and code > 128:
        with contextlib.suppress(ValueError):
            how = f"killed by {signal.Signals(code - 128).name}"
    return f"{how}; {ending.stderr[-500:]}" if ending.stderr else how
