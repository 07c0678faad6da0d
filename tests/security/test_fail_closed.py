"""No kernel without a proved cell: whatever firejail does, the answer is 503 and no user code has run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.sandbox.daemon import run_dir, tree_name
from gateway.settings import load
from tests.gateway import Client, Gateway, new_state_dir, running
from tests.machine import wait_for
from tests.security import standins

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC = "canary"
ROOT = os.geteuid() == 0


class Place:
    """A directory for stand-ins, with a kernelspec whose program leaves a canary where it can."""

    def __init__(self, directory: Path) -> None:
        self.firejail = directory / "bin" / "firejail"
        self.specs = directory / "specs"
        self.canary = directory / "open" / "canary"
        self.canary.parent.mkdir()
        self.canary.parent.chmod(0o1777)
        self.argv = ["/bin/sh", "-c", f": > {self.canary}; exec sleep 300", "{connection_file}"]
        (self.specs / SPEC).mkdir(parents=True)
        spec = {"argv": self.argv, "display_name": SPEC, "language": "sh", "metadata": {"cellblock": {}}}
        (self.specs / SPEC / "kernel.json").write_text(json.dumps(spec))
        for path in (directory, self.specs, self.specs / SPEC):
            path.chmod(0o755)

    def environment(self) -> dict[str, str]:
        """Return the settings of a gateway that uses what is here."""
        return {
            "CELLBLOCK_SANDBOX__FIREJAIL": str(self.firejail),
            "CELLBLOCK_SANDBOX__START_TIMEOUT_S": "3",
            "CELLBLOCK_KERNELS__SPEC_DIRS": json.dumps([str(self.specs)]),
        }


@pytest.fixture
def place() -> Iterator[Place]:
    """A place of a test's own."""
    directory = new_state_dir()
    yield Place(directory)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def shared_place() -> Iterator[Place]:
    """The place of the gateway that has its firejail swapped."""
    directory = new_state_dir()
    yield Place(directory)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def swapped(shared_place: Place) -> Iterator[Gateway]:
    """A gateway that started with a firejail that works."""
    standins.install(shared_place.firejail, standins.PASSES_ON)
    with running("--no-keep", env=shared_place.environment()) as gateway:
        yield gateway


def swap(gateway: Gateway, place: Place, text: str) -> None:
    """Replace the firejail that a running gateway's cells are made with: root's warden keeps a copy."""
    used = gateway.state_dir / "warden" / "bin" / "firejail" if ROOT else place.firejail
    standins.install(used, text)


def traces(gateway: Gateway) -> dict[str, Any]:
    """Return all that cells leave on the host: directories, groups, processes, users, descriptors."""
    settings = load(state_dir=gateway.state_dir)
    cells = run_dir(settings)
    groups = Path("/sys/fs/cgroup").glob(f"*/cellblock/{tree_name(settings)}/*/")
    (warden,) = gateway.warden_pids()
    assert gateway.process is not None
    return {
        "directories": sorted(path.name for path in cells.iterdir()),
        "homes": sorted(path.name for path in (gateway.state_dir / "warden" / "homes").iterdir()),
        "groups": sorted(map(str, groups)),
        "processes": processes_naming(str(cells)),
        "users": [link for link in descriptors(warden) if link.startswith("/run/cellblock-uids/")],
        "warden": len(descriptors(warden)),
        "gateway": len(descriptors(gateway.process.pid)),
    }


def descriptors(pid: int) -> list[str]:
    """Return what a process has open."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return links


def processes_naming(text: str) -> list[str]:
    """Return the command lines that contain a text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if text in line:
                    found.append(line)
    return found


async def refused(client: Client, gateway: Gateway, place: Place, spec: str = SPEC) -> str:
    """Ask for a kernel that must not be had; return the sentence that says why."""
    assert await client.json("GET", "/api/me")  # its connection counts before and after
    before = traces(gateway)
    body = await client.json("POST", "/api/kernels", {"name": spec}, status=503)

    assert body["code"] == "sandbox_unavailable"
    assert body["message"].endswith(".") or "firejail said:" in body["message"]
    assert "Traceback" not in body["message"]
    assert not place.canary.exists()
    after = traces(gateway)
    # what an earlier kernel's sockets held may only now have been let go of
    most = before.pop("gateway")
    # a pooled connection of the store comes and goes
    assert await wait_for(lambda: traces(gateway)["gateway"] <= most)
    del after["gateway"]
    assert after == before
    assert SPEC not in [kernel["name"] for kernel in await client.json("GET", "/api/kernels")]
    reasons = [line.get("error", "") for line in gateway.log() if line["event"] == "kernel did not start"]
    assert body["message"] in reasons
    return str(body["message"])


def test_the_canary_can_sing(place: Place) -> None:
    """The control: run without a cell, the program of these tests leaves its canary."""
    program = subprocess.Popen(place.argv)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(1)
    finally:
        program.kill()
        program.wait()

    assert place.canary.exists()


async def test_firejail_missing(place: Place) -> None:
    """Without firejail the gateway serves, says why there are no kernels, and starts none."""
    with running("--no-keep", env=place.environment()) as gateway:
        async with gateway.client() as client:
            message = await refused(client, gateway, place)
            assert await client.json("GET", "/api/kernelspecs")

        assert str(place.firejail) in message
        assert "No such file" in message
        assert "No such file" in (gateway.state_dir / "warden" / "warden.log").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(standins.TOO_OLD, "0.9.72 or newer is needed", id="too-old"),
        pytest.param(standins.NOT_FIREJAIL, "does not say its version", id="another-program"),
    ],
)
async def test_firejail_not_usable(place: Place, text: str, says: str) -> None:
    """A firejail that is too old, or is none, is refused by name and number."""
    standins.install(place.firejail, text)
    with running("--no-keep", env=place.environment()) as gateway:
        async with gateway.client() as client:
            assert says in await refused(client, gateway, place)


async def test_firejail_fails_open_from_the_start(place: Place) -> None:
    """A firejail that runs programs without any cell, and succeeds, gives no kernel."""
    standins.install(place.firejail, standins.RUNS_UNCONFINED)
    with running("--no-keep", env=place.environment()) as gateway:
        async with gateway.client() as client:
            message = await refused(client, gateway, place)
            await refused(client, gateway, place, "python3")

    assert "The cell is not confined" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(standins.EXITS_WITH_ERROR, "cannot find the moon", id="error"),
        pytest.param(standins.EXITS_WITHOUT_RUNNING, "firejail ended before the cell was up", id="exit-0"),
        pytest.param(standins.HANGS, "did not come up within 3 s", id="hangs"),
        pytest.param(standins.TALKS_NONSENSE, "did not say who it is", id="nonsense"),
        pytest.param(standins.RUNS_UNCONFINED, "Seccomp is not 2", id="fails-open"),
        pytest.param(standins.RUNS_UNCONFINED_AS_THE_USER, "Seccomp is not 2", id="fails-open-as-user"),
        pytest.param(standins.LEAVES_THE_PROGRAM_BEHIND, "not confined", id="fails-open-and-forks"),
        pytest.param(standins.without("--noroot"), "the user namespace is the host's", id="noroot"),
        pytest.param(standins.without("--caps.drop=*"), "CapBnd is not zero", id="caps"),
        pytest.param(standins.without("--net=none"), "the net namespace is the host's", id="net"),
        pytest.param(standins.without("--ipc-namespace"), "the ipc namespace is the host's", id="ipc"),
        pytest.param(standins.without("--seccomp*"), "the keep-list filter is not in force", id="seccomp"),
        pytest.param(standins.without("--seccomp.keep=*"), "the keep-list filter", id="keep-list"),
        pytest.param(standins.without("--restrict-namespaces"), "the namespaces filter", id="namespaces"),
        pytest.param(standins.without("--protocol=*"), "the protocol filter", id="protocol"),
    ],
)
async def test_firejail_swapped_while_running(
    swapped: Gateway, shared_place: Place, text: str, says: str
) -> None:
    """After good kernels, a firejail that fails in any way gives none; put right, it gives good ones."""
    async with swapped.client() as client:
        swap(swapped, shared_place, standins.PASSES_ON)
        kernel = await client.start("python3")
        await client.delete(kernel)
        swap(swapped, shared_place, text)

        assert says in await refused(client, swapped, shared_place)

        swap(swapped, shared_place, standins.PASSES_ON)
        kernel = await client.start("python3")
        assert await client.out(kernel, "print(6 * 7)") == "42\n"
        await client.delete(kernel)


async def test_others_work_while_cells_are_refused(swapped: Gateway, shared_place: Place) -> None:
    """A kernel that is there already goes on working while every new one is refused."""
    async with swapped.client() as client, swapped.client("bob") as bob:
        swap(swapped, shared_place, standins.PASSES_ON)
        kernel = await bob.start("python3")
        swap(swapped, shared_place, standins.RUNS_UNCONFINED)
        await refused(client, swapped, shared_place)

        assert await bob.out(kernel, "print('here')") == "here\n"

        # a restart is a new cell, and refused like one: the kernel is dead then, not unconfined
        body = await bob.json("POST", f"/api/kernels/{kernel}/restart", status=503)
        assert body["code"] == "sandbox_unavailable"
        assert (await bob.kernel(kernel))["execution_state"] == "dead"
        await bob.delete(kernel)
        swap(swapped, shared_place, standins.PASSES_ON)


class NestedGateway(Gateway):
    """A gateway in a pid namespace, as in a container, where firejail runs programs with no cell."""

    def command(self, *arguments: str) -> list[str]:
        """Return a command line for the gateway's namespace."""
        own_user = [] if ROOT else ["--user", "--map-current-user"]
        namespace = ["unshare", *own_user, "--pid", "--fork", "--kill-child", "--mount-proc"]
        return [*namespace, *super().command(*arguments)]

    def destroy(self) -> None:
        """End the namespace's first process, and with it everything in there."""
        for pid, line in self._processes():
            if " serve " in line:
                os.kill(pid, signal.SIGKILL)
        super().destroy()


@pytest.fixture
def nested(place: Place) -> Iterator[Gateway]:
    """A gateway in a pid namespace, started with the firejail of its place."""
    gateway = NestedGateway("--no-keep", env=place.environment())
    yield gateway
    gateway.destroy()


async def test_container_in_which_firejail_fails_open(nested: Gateway, place: Place) -> None:
    """In a container firejail itself runs programs without a cell, rc 0: seen, and refused."""
    standins.install(place.firejail, standins.FORGETS_THE_CONTAINER)
    async with nested.start().client() as client:
        message = await refused(client, nested, place)
        await refused(client, nested, place, "python3")

    assert "The cell is not confined" in message or not ROOT


async def test_container_with_the_real_firejail(nested: Gateway, place: Place) -> None:
    """In a container a kernel is either confined like everywhere, or refused."""
    standins.install(place.firejail, standins.PASSES_ON)
    async with nested.start().client() as client, client.http.post("/api/kernels", json={}) as response:
        body = await response.json()
        if response.status == 503:
            assert body["code"] == "sandbox_unavailable"
            return
        status = dict(
            line.split(":\t", 1)
            for line in (await client.out(body["id"], "print(open('/proc/self/status').read())")).splitlines()
            if ":\t" in line
        )
        assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapBnd"], 16)) == ("2", "1", 0)
