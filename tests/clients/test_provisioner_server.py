"""A real Jupyter server whose own kernels are in cells, root's and an ordinary user's, and what it shares."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.protocol.messages import content
from tests.clients.local import CANARY, KERNEL, TOKEN, Place, place_of, serving
from tests.gateway import Client, text_of
from tests.lifecycle import eventually
from tests.security import standins

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

USER = f"cblocal{os.getpid()}"
MODES = ["root", "user"] if os.geteuid() == 0 else ["own"]


@pytest.fixture(scope="module")
def user() -> Iterator[pwd.struct_passwd]:
    """A throw-away ordinary user, or who runs the tests."""
    if os.geteuid() != 0:
        yield pwd.getpwuid(os.geteuid())
        return
    subprocess.run(["useradd", "-m", "-U", "-s", "/bin/bash", USER], check=True, capture_output=True)
    entry = pwd.getpwnam(USER)
    try:
        yield entry
    finally:
        subprocess.run(["userdel", "-r", "-f", USER], check=False, capture_output=True)
        shutil.rmtree(f"/tmp/cellblock-{entry.pw_uid}", ignore_errors=True)
        shutil.rmtree(entry.pw_dir, ignore_errors=True)


@pytest.fixture(scope="module", params=MODES)
def place(request: pytest.FixtureRequest, user: pwd.struct_passwd) -> Iterator[Place]:
    """A place of root's and one of the user's."""
    with place_of(None if request.param == "root" else user) as shared:
        yield shared


@pytest.fixture(scope="module")
async def lab(place: Place) -> AsyncIterator[Client]:
    """A client of the place's Jupyter server."""
    async with serving(place) as (_, client):
        yield client


async def test_a_kernels_life(place: Place, lab: Client) -> None:
    """Run, ask, interrupt, restart and end a kernel over the server's own REST and WebSocket."""
    kernel = await lab.start(KERNEL)
    async with lab.channels(kernel) as channels:
        seen = await channels.until_done(
            await channels.execute("import os; x = 1; print(sorted(os.environ.values()))")
        )
        assert CANARY not in text_of(seen)
        assert TOKEN not in text_of(seen)
        assert "C.UTF-8" in text_of(seen)

        asked = await channels.execute("print(input('who? '))", allow_stdin=True)
        await channels.until("input_request")
        await channels.send("stdin", "input_reply", {"value": "me"})
        assert "me\n" in text_of(await channels.until_done(asked))

        asked = await channels.execute("print('on', flush=True)\nwhile True: pass")
        await channels.until("stream")
        await lab.json("POST", f"/api/kernels/{kernel}/interrupt", status=204)
        messages = await channels.until_done(asked)
        assert [content(m)["ename"] for m in messages if m.msg_type == "error"] == ["KeyboardInterrupt"]

        # the same socket goes on after a restart
        await lab.json("POST", f"/api/kernels/{kernel}/restart")
        messages = await channels.until_done(await channels.execute("x"))
        assert [content(m)["ename"] for m in messages if m.msg_type == "error"] == ["NameError"]
        flood = await channels.until_done(await channels.execute("print('y' * (2 << 20))"))
        assert len(text_of(flood)) == (2 << 20) + 1
    await lab.delete(kernel)
    assert await eventually(lambda: not place.cells())


async def test_a_session_of_a_notebook(place: Place, lab: Client) -> None:
    """A notebook's session starts a kernel that sees nothing of the notebook's directory."""
    (place.notebooks / "secret.csv").write_text("1,2")
    wanted = {"path": "a.ipynb", "type": "notebook", "name": "a.ipynb", "kernel": {"name": KERNEL}}
    session = await lab.json("POST", "/api/sessions", wanted, status=201)
    async with lab.channels(session["kernel"]["id"]) as channels:
        code = f"import os; print(os.path.exists({str(place.notebooks)!r}), 'secret.csv' in os.listdir('.'))"
        assert text_of(await channels.until_done(await channels.execute(code))) == "False False\n"
    await lab.json("DELETE", f"/api/sessions/{session['id']}", status=204)
    assert await eventually(lambda: not place.cells())


async def test_a_killed_kernel(place: Place, lab: Client) -> None:
    """A kernel killed in an execution is told as restarting within a second, and the socket goes on."""
    kernel = await lab.start(KERNEL)
    async with lab.channels(kernel) as channels:
        await channels.execute("import time; print('on', flush=True); time.sleep(60)")
        await channels.until("stream")
        (pid,) = [pid for pid, line in place.cells().items() if "boot.py" in line.split(" --", 1)[0]]
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while content(status := await channels.until("status", timeout=5))["execution_state"] != "restarting":
            pass
        assert time.monotonic() - begun < 1
        assert status.parent_id in {None, ""}
        assert "ended by itself" in place.log.read_text()
        # the server's sockets come back one by one: what is asked in that moment may have its output lost
        await asyncio.sleep(2)
        seen = await channels.until_done(await channels.execute("print(6 * 7)"), timeout=20)
        assert text_of(seen) == "42\n"
    assert (await lab.kernel(kernel))["execution_state"] in {"idle", "busy"}
    await lab.delete(kernel)
    assert await eventually(lambda: not place.cells())


async def test_a_refusal_reaches_the_user(place: Place, lab: Client) -> None:
    """Why no kernel was started is in the answer that JupyterLab shows."""
    place.install("strange")
    spec = place.directory / "share" / "jupyter" / "kernels" / "strange" / "kernel.json"
    facts = json.loads(spec.read_text())
    facts["metadata"]["kernel_provisioner"]["config"]["environment"] = "/etc"
    spec.write_text(json.dumps(facts))
    async with lab.http.post("/api/kernels", json={"name": "strange"}) as response:
        assert response.status == 503
        assert "The kernel environment /etc is not below" in (await response.json())["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_the_servers_end(place: Place, number: int) -> None:
    """However the server ends, its kernels end at once, and soon nothing is left on the machine."""
    with place_of(place.user) as own:
        async with serving(own) as (server, client):
            await asyncio.gather(client.start(KERNEL), client.start(KERNEL))
            assert own.cells()
            await asyncio.to_thread(server.end, number)
        assert await eventually(lambda: not own.cells(), timeout=3)
        assert await own.nothing_left()


async def test_no_proof_no_kernel(place: Place) -> None:
    """A firejail that does not confine is found out, and the user is told."""
    with place_of(place.user) as own:
        canary = own.notebooks / "canary"
        spec = own.directory / "share" / "jupyter" / "kernels" / KERNEL / "kernel.json"
        facts = json.loads(spec.read_text())
        facts["argv"] = ["/bin/sh", "-c", f": > {canary}; exec sleep 300", "{connection_file}"]
        spec.write_text(json.dumps(facts))
        standin = standins.install(own.directory / "bin" / "firejail", standins.RUNS_UNCONFINED)
        async with (
            serving(own, CELLBLOCK_SANDBOX__FIREJAIL=str(standin)) as (_, client),
            client.http.post("/api/kernels", json={"name": KERNEL}) as response,
        ):
            assert response.status == 503
            assert "not confined" in (await response.json())["message"]
        assert not canary.exists()


# -- sharing: an ordinary user's alone


@pytest.fixture(scope="module")
def sharing(user: pwd.struct_passwd) -> Iterator[Place]:
    """A place of the user's with kernelspecs that share the notebook's directory."""
    with place_of(user) as own:
        own.install("reads", share="read-only")
        own.install("writes", share="read-write")
        own.install("writes-bubblewrap", kernel="python3-bubblewrap", share="read-write")
        for name in ("work", "other", ".keys"):
            (own.notebooks / name).mkdir()
            (own.notebooks / name / "data.csv").write_text("1,2")
        (own.notebooks / "linked").symlink_to(own.notebooks / ".keys")
        own.give()
        yield own


@pytest.fixture(scope="module")
async def shares(sharing: Place) -> AsyncIterator[Client]:
    """A client of that place's server."""
    async with serving(sharing) as (_, client):
        yield client


async def out(client: Client, kernel: str, code: str) -> str:
    """Execute code and return what it printed, or the error's name."""
    async with client.channels(kernel) as channels:
        messages = await channels.until_done(await channels.execute(code))
        errors = [content(m)["ename"] for m in messages if m.msg_type == "error"]
        return errors[0] if errors else text_of(messages).strip()


@pytest.mark.parametrize("mode", ["reads", "writes", "writes-bubblewrap"])
async def test_a_shared_directory(sharing: Place, shares: Client, mode: str) -> None:
    """The notebook's directory is there, to read or to write; nothing beside or above it is."""
    work = sharing.notebooks / "work"
    kernel = await shares.start(mode, path="work/a.ipynb")
    assert await out(shares, kernel, "import os; print(os.getcwd(), open('data.csv').read())") == (
        f"{work} 1,2"
    )
    written = await out(shares, kernel, "open('new.txt', 'w').write('made'); print('written')")
    assert written == ("OSError" if mode == "reads" else "written")
    for code in (
        f"open({str(sharing.notebooks / 'other' / 'data.csv')!r})",
        f"os.listdir({str(sharing.notebooks)!r})",
        "os.listdir('..')",
        f"open({sharing.user.pw_dir + '/.bashrc' if sharing.user else '/nonesuch'!r})",
        "os.symlink('/etc/passwd', 'link')",
        "h = os.path.expanduser('~/link'); os.symlink('/etc/passwd', h); os.rename(h, 'x')",
        "os.mkfifo('fifo')",
        "import socket; socket.socket(socket.AF_UNIX).bind('socket')",
        "os.mkdir('../more')",
    ):
        assert await out(shares, kernel, code) in {"PermissionError", "FileNotFoundError", "OSError"}, code
    # its home is its own, and elsewhere
    said = await out(shares, kernel, "h = os.path.expanduser('~'); open(h + '/t', 'w'); print(h)")
    assert "/warden/homes/" in said
    status = await out(shares, kernel, "print([l for l in open('/proc/self/status') if 'Seccomp:' in l])")
    assert "2" in status
    await shares.delete(kernel)

    assert (work / "new.txt").exists() is (mode != "reads")
    if mode != "reads":
        made = (work / "new.txt").stat()
        assert (made.st_uid, made.st_mode & 0o777) == (work.stat().st_uid, 0o644)
        (work / "new.txt").unlink()
    assert await eventually(lambda: not sharing.cells())
    assert not Path(said).exists()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (".keys/a.ipynb", "hidden directories"),
        ("linked/a.ipynb", "hidden directories"),
    ],
)
async def test_what_is_not_shared(shares: Client, path: str, why: str) -> None:
    """A directory where keys are kept is not shared, whatever name leads to it."""
    async with shares.http.post("/api/kernels", json={"name": "writes", "path": path}) as response:
        assert response.status == 503
        assert why in (await response.json())["message"]


async def test_without_a_share_nothing(sharing: Place, shares: Client) -> None:
    """The same server's kernel without a share has its home where it always is, and no such directory."""
    kernel = await shares.start(KERNEL, path="work/a.ipynb")
    code = f"import os; print(os.getcwd(), os.path.exists({str(sharing.notebooks)!r}))"
    home = sharing.user.pw_dir if sharing.user else str(Path.home())
    assert await out(shares, kernel, code) == f"{home} False"
    await shares.delete(kernel)
