"""What a kernel can learn of the gateway, of other kernels and of its own making: what is documented."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.models import Limits
from gateway.sandbox.bootorder import kernel_environment
from gateway.sandbox.profile import load_profile, profile_dirs
from gateway.sandbox.users import CellUser
from tests.gateway import Client, Gateway, running

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "canary-7f3a91"
TENANT = "tenant-qqzx"
PAIRS = 10
# what IPython and the interpreter add by themselves to what a cell is given
ADDED = {
    *("CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "GIT_PAGER", "MPLBACKEND", "PAGER", "TERM"),
    *("LC_CTYPE", "PYDEVD_USE_FRAME_EVAL"),
}
LOOK = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.fixture(scope="module")
def secretive() -> Iterator[Gateway]:
    """A gateway whose own environment is full of secrets."""
    secrets = {
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "DATABASE_URL": f"postgres://u:{CANARY}@h/d",
        "KERNEL_LOOKS_ALLOWED": CANARY,
        "JPY_PARENT_PID": "1",
        "LD_LIBRARY_PATH": f"/{CANARY}",
        "PYTHONPATH_CANARY": CANARY,
    }
    with running("--no-keep", env=secrets) as gateway:
        yield gateway


async def environment(client: Client, kernel: str) -> dict[str, str]:
    """Return a kernel's environment as its code sees it."""
    seen: dict[str, str] = json.loads(await client.out(kernel, LOOK))
    return seen


def everything_visible() -> str:
    """Return all processes' arguments as any user of the machine sees them."""
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*drop, "ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True
    ).stdout


async def test_environment_is_what_is_documented(secretive: Gateway) -> None:
    """A kernel has the variables of its cell and kernelspec, and those that IPython adds."""
    async with secretive.client(TENANT) as client:
        kernel = await client.start(env={"KERNEL_MINE": "1"})
        seen = await environment(client, kernel)
        await client.delete(kernel)

    profile = load_profile("default", profile_dirs())
    user = CellUser(seen["USER"], 23001, 23001, Path(seen["HOME"]))
    given = kernel_environment(user, profile, None, {}, limits=Limits())
    assert set(given) <= set(seen)
    assert set(seen) - set(given) - ADDED == {"KERNEL_MINE"}
    assert CANARY not in json.dumps(seen)
    assert TENANT not in json.dumps(seen)


async def test_nothing_of_the_gateways_in_any_process(secretive: Gateway) -> None:
    """No process of a cell, as its own code sees it or as root does, has a variable of the gateway's."""
    async with secretive.client(TENANT) as client:
        kernel = await client.start()
        code = (
            "import glob\n"
            "for path in glob.glob('/proc/[0-9]*/environ') + ['/proc/self/environ']:\n"
            "    try: print(open(path, 'rb').read())\n"
            "    except OSError as error: print(error.strerror)\n"
        )
        assert CANARY not in await client.out(kernel, code)
        uid = json.loads(await client.out(kernel, "import os; print(os.getuid())"))
        await asyncio.to_thread(no_canary_in_processes_of, uid)
        await client.delete(kernel)


def no_canary_in_processes_of(uid: int) -> None:
    """Look at every process of a cell's user from outside."""
    looked = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (entry / "status").read_text()
            namespaced = len(status.split("NSpid:")[1].splitlines()[0].split()) > 1
            if namespaced and f"Uid:\t{uid}\t" in status:
                looked += 1
                assert CANARY.encode() not in (entry / "environ").read_bytes()
    assert looked


async def test_concurrent_starts_do_not_mix_environments(secretive: Gateway) -> None:
    """Kernels that start at the same time each have their own variables and nobody else's."""

    async def start(client: Client, name: str) -> None:
        kernel = await client.start(env={f"KERNEL_{name}": name, "KERNEL_SHARED": name})
        try:
            seen = await environment(client, kernel)
        finally:
            await client.delete(kernel)
        mine = {key: value for key, value in seen.items() if key.startswith("KERNEL_")}
        assert mine == {f"KERNEL_{name}": name, "KERNEL_SHARED": name}

    async with secretive.client("left") as left, secretive.client("right") as right:
        for pair in range(PAIRS):
            await asyncio.gather(start(left, f"L{pair}"), start(right, f"R{pair}"))


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "PYTHONPATH", "PATH", "HOME", "JPY_PARENT_PID", "SECRET_THING"]
)
async def test_a_request_sets_no_other_variables(secretive: Gateway, name: str) -> None:
    """A variable that decides what runs before the user's code, or that nobody allowed, is refused."""
    async with (
        secretive.client(TENANT) as client,
        client.http.post("/api/kernels", json={"env": {name: "/tmp/x"}}) as response,
    ):
        # Jupyter's own clients send what they have: what is not allowed may be left out, but never set
        if response.status == 201:
            kernel = (await response.json())["id"]
            assert (await environment(client, kernel)).get(name) != "/tmp/x"
            await client.delete(kernel)
        else:
            assert response.status == 400


async def test_arguments_name_no_tenant_key_or_token(secretive: Gateway) -> None:
    """Whoever runs ps on the machine learns no tenant's name, no API key, no kernel's id or signing key."""
    async with secretive.client(TENANT) as client:
        kernel = await client.start(env={"KERNEL_HIDDEN": "value-of-mine"})
        key = await client.out(kernel, "print(get_ipython().kernel.session.key.decode())")
        seen = await asyncio.to_thread(everything_visible)
        inside = await client.out(
            kernel,
            "import glob\nfor path in glob.glob('/proc/[0-9]*/cmdline'):\n"
            "    try: print(open(path).read())\n    except OSError: pass",
        )
        await client.delete(kernel)

    token = secretive.key(TENANT)
    assert "boot.py" in seen
    for secret in (TENANT, token, token.rsplit("_", 1)[1], kernel, key.strip(), "value-of-mine"):
        assert secret not in seen
        assert secret not in inside


async def test_connection_file_is_gone(secretive: Gateway) -> None:
    """After a kernel has started, its connection file is nowhere: not for the cell, not for the host."""
    async with secretive.client(TENANT) as client:
        kernel = await client.start()
        ip = await client.out(kernel, "print(get_ipython().kernel.parent.ip)")
        ipc = Path(ip.strip()).parent
        inside = await client.out(
            kernel,
            f"import os; print(os.path.exists('{ipc}/c.json'))\n"
            f"try: print(os.listdir('{ipc}'))\nexcept OSError as error: print(error.strerror)",
        )
        assert inside.splitlines()[0] == "False"
        assert "c.json" not in inside
        assert not (ipc / "c.json").exists()
        assert sorted(path.name for path in ipc.iterdir()) == [f"k-{port}" for port in range(1, 6)]

        code = "import os; print(any('key' in name.lower() for name in os.environ))"
        assert await client.out(kernel, code) == "False\n"
        await client.delete(kernel)
        assert not ipc.exists()


async def test_each_start_has_a_key_of_its_own(secretive: Gateway) -> None:
    """The signing key is as long as its hash, and a restart makes another."""
    ask = "print(get_ipython().kernel.session.key.decode())"
    async with secretive.client(TENANT) as client:
        kernel = await client.start()
        first = await client.out(kernel, ask)
        await client.json("POST", f"/api/kernels/{kernel}/restart")
        second = await client.out(kernel, ask)
        await client.delete(kernel)

    assert first != second
    assert len(first.strip()) == len(second.strip()) == 64
