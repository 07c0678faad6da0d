"""Files and workspaces of an ordinary user's gateway: the same API, over plain directories."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gateway import Gateway, running

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = f"cbfiles{os.getpid()}"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway that runs as a throw-away ordinary user."""
    subprocess.run(["useradd", "-m", "-U", "-s", "/bin/bash", USER], check=True, capture_output=True)
    user = pwd.getpwnam(USER)
    try:
        state = Path(user.pw_dir) / "state"
        state.mkdir(mode=0o700)
        os.chown(state, user.pw_uid, user.pw_gid)
        (Path(user.pw_dir) / "secret").write_text("secret")
        with running("--no-keep", state_dir=state, user=USER) as gateway:
            yield gateway
    finally:
        subprocess.run(["userdel", "-r", "-f", USER], check=False, capture_output=True)
        shutil.rmtree(f"/tmp/cellblock-{user.pw_uid}", ignore_errors=True)


async def test_files(gateway: Gateway) -> None:
    """Files are written, read and listed, and links to the user's own files lead nowhere."""
    async with gateway.client() as client:
        kernel = await client.start()
        base = f"/api/kernels/{kernel}/files"
        async with client.http.put(f"{base}/a/b", data=b"from outside") as response:
            assert response.status == 201
        assert await client.out(kernel, "print(open('a/b').read())") == "from outside\n"
        await client.out(kernel, "import os; os.symlink('/', 'root'); os.symlink('../../..', 'up')")
        secret = f"{pwd.getpwnam(USER).pw_dir}/secret"
        for path in (f"root{secret}", "up/secret", "../secret", "..%2f..%2fsecret"):
            async with client.http.get(f"{base}/{path}") as response:
                assert response.status in {400, 404}
                assert b"secret" not in (await response.read()).replace(b"/secret", b"")
        await client.json("DELETE", f"{base}/a?recursive=true", status=204)
        await client.delete(kernel)


async def test_a_workspace(gateway: Gateway) -> None:
    """A workspace outlives its kernel here too, is used by one at a time, and can be deleted."""
    async with gateway.client() as client:
        first = await client.start(workspace="w")
        await client.out(first, "open('kept', 'w').write('kept')")
        await client.json("POST", "/api/kernels", {"workspace": "w"}, status=409)
        await client.json("DELETE", "/api/workspaces/w", status=409)
        await client.delete(first)
        second = await client.start(workspace="w")
        assert await client.out(second, "print(open('kept').read())") == "kept\n"
        await client.delete(second)
        (listed,) = await client.json("GET", "/api/workspaces")
        assert listed == {"name": "w", "size_bytes": None, "used_bytes": None, "in_use": False}
        await client.json("DELETE", "/api/workspaces/w", status=204)
        assert not list(Path(gateway.state_dir, "warden", "workspaces").glob("*/*"))


async def test_a_shared_workspace(gateway: Gateway) -> None:
    """Kernels that say so share a directory, others are refused meanwhile, and the last one frees it."""
    async with gateway.client() as client:
        first, second = [await client.start(workspace="both", shared=True) for _ in range(2)]
        await client.out(first, "open('x', 'w').write('one')")
        assert await client.out(second, "print(open('x').read())") == "one\n"
        await client.json("POST", "/api/kernels", {"workspace": "both"}, status=409)
        await client.delete(first)
        await client.json("DELETE", "/api/workspaces/both", status=409)
        await client.delete(second)
        await client.json("DELETE", "/api/workspaces/both", status=204)
