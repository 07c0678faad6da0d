"""A throw-away gateway without its doors: one kernel of every kernelspec, and attacks from inside a cell."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from gateway.app import make_host
from gateway.clock import SystemClock
from gateway.doctor.findings import Finding, fail, ok, warn
from gateway.errors import GatewayError, SandboxUnavailable
from gateway.models import AuditEvent, ExecuteRequest, ExecutionRecord, Principal, Scope
from gateway.ports.tracing import NoTracer
from gateway.privilege import prepare_state
from gateway.sandbox import daemon
from gateway.services.executions import ExecutionService
from gateway.services.kernels import KernelService
from gateway.services.quotas import Quotas
from gateway.settings import Settings
from gateway.store import SqlStore
from gateway.telemetry import Metrics

DOCTOR = Principal(name="doctor", key_id="doctor", scopes=frozenset(Scope))
PROBE_TIMEOUT_S = 20.0
WARDEN_END_S = 10.0
CANARY_NAME = "CELLBLOCK_DOCTOR_CANARY"
UNSAFE = "Serve nobody from this machine until it is understood; see docs/security.md."


@dataclass(frozen=True, slots=True)
class Probe:
    """One attack: code that prints HELD or BREACH in its last line, and why it matters."""

    name: str
    why: str
    code: str


@dataclass(frozen=True, slots=True)
class Bait:
    """What no cell may reach: a port, an abstract socket, a secret in the gateway's environment."""

    port: int
    abstract: str
    canary: str

    def into(self, code: str) -> str:
        """Write the bait into a probe's code."""
        for name, value in (("PORT", self.port), ("ABSTRACT", self.abstract), ("CANARY", self.canary)):
            code = code.replace(f"@@{name}@@", str(value))
        return code


def load_probes() -> list[Probe]:
    """Return the shipped probes."""
    data = tomllib.loads(Path(__file__).with_name("probes.toml").read_text())
    return [Probe(entry["name"], entry["why"], data["preamble"] + entry["code"]) for entry in data["probe"]]


@contextlib.contextmanager
def laid() -> Iterator[Bait]:
    """Lay out bait; the secret is in this process's environment, which a warden inherits."""
    bait = Bait(0, f"cellblock-doctor-{token_hex(8)}", token_hex(16))
    with socket.socket() as port, socket.socket(socket.AF_UNIX) as abstract:
        port.bind(("127.0.0.1", 0))
        port.listen()
        abstract.bind(f"\0{bait.abstract}")
        abstract.listen()
        os.environ[CANARY_NAME] = bait.canary
        try:
            yield Bait(port.getsockname()[1], bait.abstract, bait.canary)
        finally:
            del os.environ[CANARY_NAME]


@contextlib.contextmanager
def throw_away(settings: Settings) -> Iterator[Settings]:
    """Give settings of a state directory that is removed, with a warden of its own that has ended by then."""
    # where the gateway's own state is or would be: what is wrong with that place is found out, too
    place = next(path for path in (settings.state_dir, *settings.state_dir.parents) if path.is_dir())
    directory = Path(tempfile.mkdtemp(prefix="doctor-", dir=place))
    directory.chmod(0o755)
    # never the run directory of a gateway that may be running
    sandbox = settings.sandbox.model_copy(update={"run_dir": None})
    trial = settings.model_copy(update={"state_dir": directory, "sandbox": sandbox})
    try:
        yield trial
    finally:
        await_warden(trial.warden_socket.with_name("lock"))
        shutil.rmtree(directory, ignore_errors=True)


def await_warden(lock: Path) -> None:
    """Wait until the warden has ended, by the lock that it holds: asking would keep it waiting."""
    deadline = time.monotonic() + WARDEN_END_S
    with contextlib.suppress(FileNotFoundError), lock.open("rb") as held:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            else:
                return


def examine(settings: Settings) -> list[Finding]:
    """Start kernels in cells of their own and attack from one. Takes some seconds; leaves nothing.

    Raises:
        GatewayError: no kernel can be tried at all.
    """
    with laid() as bait, throw_away(settings) as trial:
        prepare_state(trial)
        daemon.ensure(trial)
        return asyncio.run(_examine(trial, bait))


async def _examine(settings: Settings, bait: Bait) -> list[Finding]:
    async with services(settings) as (kernels, executions):
        specs, default = await kernels.specs(), kernels.default_spec()
        findings = []
        if default not in specs:
            remedy = "Set kernels.default, or run `make setup`."
            findings.append(fail("kernelspecs", f"The default, {default!r}, is not among them.", remedy))
        tried = {name: await _start(kernels, name) for name in specs}
        findings += tried.values()
        python = [
            name for name, spec in specs.items() if spec.language == "python" and tried[name].grade == "ok"
        ]
        python.sort(key=lambda name: name != default)
        if not python:
            return [
                *findings,
                fail("probes", "No Python kernel starts, so nothing could be tried in a cell.", UNSAFE),
            ]
        handle = await kernels.create(DOCTOR, name=python[0])
        for probe in load_probes():
            findings.append(await _probe(executions, handle.id, probe, bait))
        return findings


class Unrecorded:
    """The audit trail of a throw-away gateway: none. A `ports.Audit` and a `ports.ExecutionObserver`."""

    def record(self, event: AuditEvent) -> None:
        """Take an event and do nothing."""

    def admit(self) -> None:
        """Let everything begin."""

    async def written(self) -> None:
        """Be done at once."""

    def ended(self, record: ExecutionRecord) -> None:
        """Take a record and do nothing."""


@contextlib.asynccontextmanager
async def services(settings: Settings) -> AsyncIterator[tuple[KernelService, ExecutionService]]:
    """Give the services of a gateway without doors; its kernels end with it."""
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        store = await SqlStore.open(settings.store_path)
        stack.push_async_callback(store.close)
        quotas, unrecorded = Quotas(settings, store, clock), Unrecorded()
        host = make_host(
            settings,
            clock,
            Metrics(),
            gate=quotas,
            audit=unrecorded,
            observer=unrecorded,
            tracer=NoTracer(),
            keep=False,
        )
        stack.push_async_callback(host.close, keep=False)
        kernels = KernelService(host, store, clock, settings, quotas, audit=unrecorded)
        yield kernels, ExecutionService(kernels, clock, settings, unrecorded)


async def _start(kernels: KernelService, name: str) -> Finding:
    """Start a kernel of a kernelspec: that its environment is there, readable in a cell, and complete."""
    check, begun = f"kernel {name}", time.monotonic()
    spec = (await kernels.specs())[name]
    try:
        handle = await kernels.create(DOCTOR, name=name)
        await kernels.delete(DOCTOR, handle.id)
    except SandboxUnavailable as error:
        if error.reason == "bubblewrap_missing":
            return warn(check, error.message, "Install it, or leave this kernel out with kernels.allowed.")
        return fail(
            check, error.message, "Without a proved cell no kernel runs: put right what the message names."
        )
    except GatewayError as error:
        return fail(check, error.message, f"Run `make setup`, or look at {spec.resource_dir}/kernel.json.")
    return ok(check, f"Answers in its cell after {time.monotonic() - begun:.1f} s.")


async def _probe(executions: ExecutionService, kernel_id: str, probe: Probe, bait: Bait) -> Finding:
    check = f"cell: {probe.name}"
    request = ExecuteRequest(code=bait.into(probe.code), timeout_s=PROBE_TIMEOUT_S)
    try:
        result = await executions.run(DOCTOR, kernel_id, request)
    except GatewayError as error:
        return fail(check, error.message, UNSAFE)
    return judge(check, probe.why, result.stdout, result.error.evalue if result.error else result.status)


def judge(check: str, why: str, said: str, end: str) -> Finding:
    """Return what a probe's output means; one that says neither HELD nor BREACH proves nothing."""
    lines = said.strip().splitlines()
    verdict, _, detail = (lines[-1] if lines else "").partition(" ")
    if "BREACH" in said:
        return fail(check, detail[:300] or "Not confined.", UNSAFE)
    if verdict == "HELD":
        return ok(check, why)
    return fail(check, f"The probe did not end as it should: {end}", UNSAFE)
