"""A secret given to a kernel is in that kernel's environment, and nowhere else."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.gateway import Gateway, running

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRETS = {"CELLBLOCK_KERNELS__SECRETS_ALLOWED": '["API_TOKEN"]', "CELLBLOCK_LOG__LEVEL": "debug"}
SHOW = "import os; print(os.environ.get('API_TOKEN'))"

ENVIRONMENTS = """
import pathlib
for entry in pathlib.Path("/proc").glob("[1-9]*"):
    try:
        print((entry / "environ").read_bytes())
    except OSError:
        pass
"""


@pytest.fixture
def canary() -> str:
    """A value that occurs once in the world."""
    return f"canary-{uuid4().hex}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """A gateway that logs all it can and allows one secret."""
    with running(env={**SECRETS, "CELLBLOCK_AUDIT__KEEP_CODE": "true"}) as gateway:
        yield gateway


def holders(gateway: Gateway, value: str) -> list[Path]:
    """Return the files of the state directory that contain a value: store, trail, log, and all."""
    files = [path for path in gateway.state_dir.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if value.encode() in path.read_bytes()]


def processes(value: str) -> set[int]:
    """Return the processes that have a value in their arguments or environment."""
    found = set()
    for entry in Path("/proc").glob("[1-9]*"):
        for name in ("cmdline", "environ"):
            try:
                if value.encode() in (entry / name).read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


def export(gateway: Gateway) -> str:
    """Return the audit trail."""
    command = gateway.command("audit", "export", "--state-dir", str(gateway.state_dir))
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout


async def test_a_secret_is_nowhere_but_in_its_kernel(gateway: Gateway, canary: str) -> None:
    """Not in an answer, the store, the log, the trail, an argument list, or any other kernel."""
    secret, said = {"API_TOKEN": canary}, []
    async with gateway.client("alice") as alice, gateway.client("bob") as bob:
        mine, other, theirs = await asyncio.gather(
            alice.start(secrets=secret), alice.start(secrets={"API_TOKEN": "another"}), bob.start()
        )
        assert await alice.out(mine, SHOW) == f"{canary}\n"
        assert await alice.out(other, SHOW) == "another\n"
        assert await bob.out(theirs, SHOW) == "None\n"

        await alice.json("POST", f"/api/kernels/{mine}/restart")
        assert await alice.out(mine, SHOW) == f"{canary}\n"

        for path in (
            f"/api/kernels/{mine}",
            "/api/kernels",
            "/api/kernelspecs",
            "/api/sessions",
            "/api/status",
        ):
            async with alice.http.get(path) as answer:
                said.append(await answer.text())
        wrong: list[dict[str, Any]] = [
            {"secrets": {"PATH": canary}},
            {"secrets": {"API_TOKEN": canary + "\0"}},
            {"secrets": {"API_TOKEN": [canary]}},
            {"secrets": {"API_TOKEN": canary}, "env": {"API_TOKEN": "x"}},
            {"secrets": {"API_TOKEN": canary * 5000}},
            {"secrets": canary},
        ]
        said += [str(await alice.json("POST", "/api/kernels", body, status=400)) for body in wrong]
        seen = await bob.out(theirs, ENVIRONMENTS)
        assert "b'" in seen
        assert canary not in seen

        # a Python kernel is told by its boot step: not even its own process shows it
        assert processes(canary) == set()
        await alice.delete(mine)
    gateway.end()

    assert not [text for text in said if canary in text]
    assert holders(gateway, canary) == []
    assert '"secrets":"API_TOKEN"' in export(gateway)


async def test_nothing_is_kept_on_disk(gateway: Gateway, canary: str) -> None:
    """While such a kernel lives and after it, no file of the state directory has its secret."""
    async with gateway.client() as client:
        kernel = await client.start(secrets={"API_TOKEN": canary})
        assert await client.out(kernel, SHOW) == f"{canary}\n"
        assert holders(gateway, canary) == []
        await client.delete(kernel)
    gateway.end()

    assert holders(gateway, canary) == []


async def test_an_adopted_kernel_keeps_its_secret_and_is_not_restarted_without(
    gateway: Gateway, canary: str
) -> None:
    """After a gateway's death its kernels go on; a restart, which would lose the secret, is refused."""
    async with gateway.client() as client:
        kernel = await client.start(secrets={"API_TOKEN": canary})
        plain = await client.start(env={"KERNEL_X": "1"})
        await client.out(kernel, "x = 7")
    gateway.end(signal.SIGKILL)
    gateway.start()
    async with gateway.client() as client:
        refused = await client.json("POST", f"/api/kernels/{kernel}/restart", status=409)
        assert (refused["code"], refused["reason"]) == ("conflict", "secrets")
        assert canary not in refused["message"]
        assert await client.out(kernel, f"{SHOW}; print(x)") == f"{canary}\n7\n"
        await client.json("POST", f"/api/kernels/{plain}/restart")
        assert await client.out(plain, "import os; print(os.environ['KERNEL_X'])") == "1\n"

    assert holders(gateway, canary) == []


async def test_plain_environment_is_kept_privately(gateway: Gateway, canary: str) -> None:
    """What `env` has is stored for adoption, readable for the gateway's user alone, and in no answer."""
    async with gateway.client() as client:
        kernel = await client.start(env={"KERNEL_X": canary})
        for path in (f"/api/kernels/{kernel}", "/api/kernels"):
            async with client.http.get(path) as answer:
                assert canary not in await answer.text()
        stored = holders(gateway, canary)

    assert stored
    assert {path.parent.name for path in stored} == {"gateway"}
    assert {path.stat().st_mode & 0o777 for path in stored} == {0o600}
    assert all(path.name.startswith("cellblock.db") for path in stored)
    assert '"env":"KERNEL_X"' in export(gateway)
    assert canary not in export(gateway)
