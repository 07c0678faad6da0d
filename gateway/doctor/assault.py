"""The table of attacks, made in throw-away cells of the user's own settings, beside another's kernel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.doctor import bait
from gateway.doctor.attacks import Attack, Verdict, load, outcome
from gateway.doctor.trial import services, throw_away
from gateway.errors import ConfigurationError, GatewayError, SandboxUnavailable
from gateway.models import ExecuteRequest, Frozen, KernelSpec, Limits, Principal, Scope
from gateway.privilege import prepare_state
from gateway.sandbox import daemon
from gateway.sandbox.link import WardenLink
from gateway.sandbox.profile import load_profile, profile_dirs, shipped_dir
from gateway.services.executions import ExecutionService
from gateway.services.kernels import KernelService
from gateway.settings import QuotaSettings, Settings

ATTACKER = Principal(name="attacker", key_id="attacker", scopes=frozenset(Scope))
VICTIM = Principal(name="victim", key_id="victim", scopes=frozenset(Scope))
CANARIES = {"CB_CANARY": "sing", "CB_SECRET_TOKEN": "sing"}
SPEC = "attacked"
PLANT = "open('/tmp/mine', 'w').write('x'); open('mine', 'w').write('x'); print(6 * 7)"
STILL = "import os; print(6 * 7 * os.path.exists('/tmp/mine') * os.path.exists('mine'))"
VICTIM_WAITS_S = 10.0
LATENCY_S = 3.0
POLL_S = 0.2
# What an attack on limits fills before it is stopped: a machine that has less to spare is not filled up.
FILLED = ("memory_bytes", "home_bytes", "tmp_bytes", "shm_bytes")
UNLIMITED = QuotaSettings(starts_per_minute="unlimited", executions_per_minute="unlimited")

OnResult = Callable[["Attacked"], None]


class Attacked(Frozen):
    """How one attack ended: `said` is what showed it."""

    id: str
    group: str
    verdict: Verdict
    expect: str
    why: str
    said: str = ""


class Report(Frozen):
    """How the table ended, for one profile; `lowered` has limits that this machine is too small for."""

    kernelspec: str
    profile: str
    backend: str
    multi_tenant: bool
    cgroups: str | None
    lowered: Mapping[str, int]
    attacks: tuple[Attacked, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing mandatory failed."""
        return all(attacked.verdict is not Verdict.FAILED for attacked in self.attacks)


@dataclass(frozen=True, slots=True)
class Cell:
    """A live kernel as the host sees it."""

    kernel: str
    cell: str
    ipc: Path
    key: str
    pid: int

    def status(self) -> dict[str, str]:
        """Return the kernel's /proc/PID/status."""
        lines = _read(f"/proc/{self.pid}/status").splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def confined(self) -> bool:
        """Tell from outside whether it is safe to let it do hazardous things."""
        facts = self.status()
        return (
            facts["NoNewPrivs"] == "1"
            and facts["Seccomp"] == "2"
            and int(facts["CapBnd"], 16) == 0
            and len(facts["NSpid"].split()) > 1
            and "0" not in facts["Uid"].split()
        )


async def look(link: WardenLink, cell: str) -> Cell:
    """Find a kernel's cell by asking the warden, as the next gateway would."""
    facts, pidfd = await link.adopt(cell)
    try:
        info = _read(f"/proc/self/fdinfo/{pidfd}")
    finally:
        os.close(pidfd)
    pid = re.search(r"^Pid:\s*(\d+)", info, re.MULTILINE)
    if pid is None:
        raise SandboxUnavailable("The kernel has ended.", reason="crashed")
    return Cell(facts.kernel_id, cell, Path(facts.connection.ip).parent, facts.connection.key, int(pid[1]))


def names_of(
    attacker: Cell, victim: Cell, *, limits: Limits, port: str, gateway: int, environment: Path
) -> dict[str, object]:
    """Return what the placeholders of a cell stand for, its limits among them; the bait has its own."""
    return {
        **{name.upper(): value for name, value in limits},
        "IPC": attacker.ipc,
        "BASE": attacker.ipc.parent,
        "KID": attacker.cell,
        "KEY": attacker.key,
        "OTHER_IPC": victim.ipc,
        "OTHER_HOME": victim.ipc.parent / "h",
        "OTHER_KID": victim.cell,
        "OTHER_KEY": victim.key,
        "OTHER_USER": pwd.getpwuid(int(victim.status()["Uid"].split()[0])).pw_name,
        "GW_PORT": port,
        "GW_PID": gateway,
        "HOST_KPID": victim.pid,
        "PROFILE": shipped_dir() / "default.toml",
        "KERNEL_ENV": environment,
    }


def assault(
    settings: Settings, *, profile: str | None = None, kernel: str | None = None, on_result: OnResult
) -> Report:
    """Make every attack of the table in cells of a kernelspec or profile. Takes minutes; leaves nothing.

    Raises:
        GatewayError: no kernel can be attacked at all: it does not start, or is no Python.
    """
    with throw_away(settings) as place, _canaries(), bait.laid(place.state_dir) as found:
        trial = place.model_copy(update={"quotas": UNLIMITED})
        if profile is not None:
            trial, kernel = with_profile(trial, profile, kernel), SPEC
        prepare_state(trial)
        daemon.ensure(trial)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            names = {**found, "GW_PORT": str(listener.getsockname()[1])}
            return asyncio.run(_assault(trial, kernel, names, on_result))


def with_profile(settings: Settings, profile: str, kernel: str | None) -> Settings:
    """Return settings with a kernelspec of this profile beside the others. Raises ConfigurationError."""
    load_profile(profile, profile_dirs(settings.sandbox.profile_dirs))
    directory = settings.state_dir / "specs" / SPEC
    directory.mkdir(parents=True)
    kernels = settings.kernels
    body = {
        "argv": ["python", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": SPEC,
        "language": "python",
        "metadata": {"cellblock": {"profile": profile, "environment": _environment(settings, kernel)}},
    }
    (directory / "kernel.json").write_text(json.dumps(body), encoding="utf-8")
    update = {
        "spec_dirs": (directory.parent, *kernels.spec_dirs),
        "allowed": (*kernels.allowed, SPEC) if kernels.allowed else (),
    }
    return settings.model_copy(update={"kernels": kernels.model_copy(update=update)})


def _environment(settings: Settings, kernel: str | None) -> str | None:
    from gateway.kernels.specs import SpecCatalogue  # noqa: PLC0415 - slow, and for a profile alone

    name = kernel or settings.kernels.default
    specs = SpecCatalogue(settings.kernels).specs()
    if name not in specs:
        raise ConfigurationError(f"There is no kernelspec {name!r}.")
    return specs[name].environment


@contextlib.contextmanager
def _canaries() -> Iterator[None]:
    """Put secrets into this process's environment, which a warden inherits and no cell may."""
    os.environ |= CANARIES
    try:
        yield
    finally:
        for name in CANARIES:
            del os.environ[name]


async def _assault(
    settings: Settings, kernel: str | None, names: Mapping[str, object], on_result: OnResult
) -> Report:
    link = WardenLink(settings.warden_socket, keep_s=0)
    async with services(settings) as (kernels, executions):
        try:
            name = kernel or kernels.default_spec()
            spec = (await kernels.specs()).get(name)
            if spec is None or spec.language != "python":
                raise ConfigurationError(f"{name!r} is no kernelspec of a Python kernel.")
            facts = await link.facts()
            profile = load_profile(spec.profile, profile_dirs(settings.sandbox.profile_dirs))
            lowered = spared(profile.limits, available_bytes())
            arena = Arena(
                kernels,
                executions,
                link,
                spec=spec,
                names=names,
                backend=profile.backend,
                lowered=lowered,
                privileged=facts.privileged,
            )
            await arena.begin()
            done = []
            for attack in load():
                done.append(await arena.make(attack))
                on_result(done[-1])
        finally:
            link.close()
    return Report(
        kernelspec=name,
        profile=spec.profile,
        backend=profile.backend,
        multi_tenant=facts.privileged,
        cgroups=facts.cgroups,
        lowered=lowered,
        attacks=tuple(done),
    )


def available_bytes() -> int:
    """Return how much memory the machine has to give now."""
    facts = dict(line.split(":") for line in _read("/proc/meminfo").splitlines())
    return int(facts["MemAvailable"].split()[0]) << 10


def spared(limits: Limits, available: int) -> dict[str, int]:
    """Return the limits that are lowered, to half of what the machine has to give."""
    most = available // 2
    return {name: most for name in FILLED if getattr(limits, name) > most}


class Arena:
    """A victim's kernel, and attackers' kernels of a kernelspec, one after the other."""

    def __init__(
        self,
        kernels: KernelService,
        executions: ExecutionService,
        link: WardenLink,
        *,
        spec: KernelSpec,
        names: Mapping[str, object],
        backend: str,
        lowered: Mapping[str, int],
        privileged: bool,
    ) -> None:
        self._kernels = kernels
        self._executions = executions
        self._link = link
        self._spec = spec
        self._names = names
        self._backend = backend
        self._lowered = lowered
        self._privileged = privileged
        self._attacker: Cell | None = None
        self._victim: Cell

    async def begin(self) -> None:
        """Start the victim, with something in it to be taken. Raises GatewayError."""
        self._victim = await self._start(VICTIM)
        await self._ask(PLANT)

    async def make(self, attack: Attack) -> Attacked:
        """Make one attack and tell how it ended."""
        if not attack.possible:
            return _ended(attack, Verdict.NOT_APPLICABLE, "It is made of x86-64's system calls.")
        if attack.single_tenant and attack.hazard and not self._privileged:
            return _ended(attack, Verdict.OPEN, f"Not tried: {attack.single_tenant}.")
        try:
            failure = await self._make(attack)
        except GatewayError as error:
            failure = error.message
        if failure and attack.single_tenant and not self._privileged:
            return _ended(attack, Verdict.OPEN, f"{attack.single_tenant}: {failure}")
        return _ended(attack, Verdict.FAILED if failure else Verdict.HELD, failure)

    async def _make(self, attack: Attack) -> str:
        attacker = await self._fresh(always=attack.consumes)
        if not attacker.confined():
            return "The cell is not confined, seen from outside: nothing was tried in it."
        code = attack.filled(self._placeholders(attacker), backend=self._backend)
        async with self._watched() as slowest:
            request = ExecuteRequest(code=code, timeout_s=attack.timeout)
            result = await self._executions.run(ATTACKER, attacker.kernel, request)
        if attack.consumes:
            await self._end_attacker()
        if failure := attack.failure(outcome(result)):
            return failure
        return f"Another kernel waited {slowest[0]:.1f} s for an answer." if slowest[0] > LATENCY_S else ""

    def _placeholders(self, attacker: Cell) -> dict[str, object]:
        names = names_of(
            attacker,
            self._victim,
            limits=self._kernels.get(ATTACKER, attacker.kernel).limits,
            port=str(self._names["GW_PORT"]),
            gateway=os.getpid(),
            environment=Path(self._spec.environment or "/usr").resolve(),
        )
        return {**names, **self._names}

    async def _fresh(self, *, always: bool) -> Cell:
        """Return an attacker that is alive: the one that there is, or a fresh one."""
        if self._attacker and not always:
            handle = self._kernels.get(ATTACKER, self._attacker.kernel)
            if handle.model().execution_state == "idle":
                return self._attacker
        await self._end_attacker()
        self._attacker = await self._start(ATTACKER)
        return self._attacker

    async def _end_attacker(self) -> None:
        if self._attacker:
            kernel, self._attacker = self._attacker.kernel, None
            await self._kernels.delete(ATTACKER, kernel)

    async def _start(self, principal: Principal) -> Cell:
        before = set(await self._link.cells())
        await self._kernels.create(principal, name=self._spec.name, limits=self._lowered)
        (cell,) = set(await self._link.cells()) - before
        return await look(self._link, cell)

    async def _ask(self, code: str) -> None:
        request = ExecuteRequest(code=code, timeout_s=VICTIM_WAITS_S)
        result = await self._executions.run(VICTIM, self._victim.kernel, request)
        if result.stdout != "42\n":
            raise SandboxUnavailable("Another kernel was harmed.", reason=str(result.reason or result.status))

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[list[float]]:
        """Ask the victim again and again meanwhile; give the longest that it took. Raises GatewayError."""
        slowest, over = [0.0], asyncio.Event()

        async def ask() -> None:
            while True:
                begun = time.monotonic()
                await self._ask(STILL)
                slowest[0] = max(slowest[0], time.monotonic() - begun)
                if over.is_set():
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), POLL_S)

        watching = asyncio.create_task(ask())
        try:
            yield slowest
        finally:
            over.set()
            await watching


def _ended(attack: Attack, verdict: Verdict, said: str) -> Attacked:
    return Attacked(
        id=attack.id, group=attack.group, verdict=verdict, expect=attack.expect, why=attack.why, said=said
    )


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")
