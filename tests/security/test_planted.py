"""What a kernel plants for who comes after it: its next run, its uid's next owner; and a key's successor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

from tests.gateway import running, text_of
from tests.lifecycle import cells, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway import Client

SCOPES = "kernels,execute"
ROOT = os.geteuid() == 0

PLANT = """
import os, pathlib, sys
home = pathlib.Path.home()
site = home / f".local/lib/python3.{sys.version_info.minor}/site-packages"
mark = "import builtins, pathlib; builtins.PLANTED = __file__ if '__file__' in globals() else 'pth'\\n"
shell = "#!/bin/sh\\ntouch /tmp/planted-ran $HOME/planted-ran\\nexport PLANTED=1\\n"
weak = "ignore net\\nignore seccomp\\nignore caps.drop\\nignore noroot\\nignore nonewprivs\\nnoblacklist /\\n"
for name in ("sitecustomize.py", "usercustomize.py", "ipykernel_launcher.py", "zmq.py", "random.py"):
    for folder in (home, site):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(mark)
(site / "planted.pth").write_text("import builtins; builtins.PLANTED = 'pth'\\n")
for path, text in {
    ".ipython/profile_default/startup/00-planted.py": mark,
    ".ipython/profile_default/ipython_kernel_config.py": mark,
    ".ipython/profile_default/ipython_config.py": mark,
    ".jupyter/jupyter_config.py": mark,
    ".jupyter/migrated": "",
    ".pythonrc.py": mark,
    ".bashrc": shell, ".bash_profile": shell, ".profile": shell, ".bash_login": shell, ".xsession": shell,
    ".config/autostart/planted.desktop": "[Desktop Entry]\\nExec=/bin/sh\\n",
    ".config/matplotlib/matplotlibrc": "backend: planted\\n",
    "bin/python": shell, ".local/bin/python": shell, "python": shell,
    **{f".config/firejail/{name}": weak for name in (
        "default.profile", "default.local", "globals.local", "firejail.config", "server.profile",
        "python.profile", "python3.profile", "python3.11.profile", "noprofile.profile", "noprofile.local",
    )},
}.items():
    (home / path).parent.mkdir(parents=True, exist_ok=True)
    (home / path).write_text(text)
    (home / path).chmod(0o755)
for place in ("/tmp", "/dev/shm"):
    (pathlib.Path(place) / "planted").write_text("planted")
print(len(list(home.rglob("*"))))
"""
# only what needs no import of anything that could be planted
LOOK = """
import builtins, json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
found = [os.path.join(folder, name) for top in (os.path.expanduser("~"), "/tmp", "/dev/shm")
         for folder, _, names in os.walk(top) for name in names]
print(json.dumps({
    "planted": getattr(builtins, "PLANTED", os.environ.get("PLANTED")),
    "found": [path for path in found if "planted" in path or "firejail" in path or "custom" in path],
    "cell": {name: status[name].strip() for name in ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd", "CapAmb")},
    "uid": os.getuid(),
    "interfaces": os.listdir("/sys/class/net") if os.path.isdir("/sys/class/net") else [],
    "routes": open("/proc/net/route").read().count("\\n"),
}))
"""


async def look(client: Client, kernel: str) -> dict[str, Any]:
    """Return what a kernel finds of what was planted, and how it is confined."""
    found: dict[str, Any] = json.loads(await client.out(kernel, LOOK))
    return found


async def test_a_restart_runs_nothing_that_was_planted(client: Client, kernel: str) -> None:
    """Startup files of every kind, planted before a restart, are neither run nor there after it."""
    before = await look(client, kernel)
    assert int(await client.out(kernel, PLANT)) > 30

    await client.json("POST", f"/api/kernels/{kernel}/restart")

    after = await look(client, kernel)
    assert (after["planted"], after["found"]) == (None, [])
    assert (after["cell"], after["routes"]) == (before["cell"], before["routes"])


async def test_a_forced_restart_runs_nothing_that_was_planted(client: Client, kernel: str) -> None:
    """The same holds where the kernel was killed for its deadline in the middle of it."""
    stubborn = "\nwhile True:\n    try:\n        import time; time.sleep(9)\n    except BaseException: pass\n"
    assert (await client.run(kernel, PLANT + stubborn, timeout_s=2))["status"] == "timeout"

    after = await look(client, kernel)
    assert (after["planted"], after["found"]) == (None, [])


async def test_a_workspace_keeps_what_was_planted_inside_its_cell(client: Client) -> None:
    """In a home that is kept, planted files are its owner's: no profile there weakens the next cell."""
    body = {"workspace": f"planted-{os.getpid()}"}
    first = await client.start(**body)
    before = await look(client, first)
    code = PLANT.replace('"ipykernel_launcher.py", "zmq.py", "random.py"', "")
    assert int(await client.out(first, code)) > 20
    await client.delete(first)

    second = await client.start(**body)
    after = await look(client, second)
    await client.delete(second)

    assert any("default.profile" in path for path in after["found"])
    assert (after["cell"], after["routes"]) == (before["cell"], before["routes"])
    await client.json("DELETE", f"/api/workspaces/{body['workspace']}", status=204)


LEAVE = """
import ctypes, os, pathlib, socket
libc = ctypes.CDLL(None, use_errno=True)
for place in (pathlib.Path.home(), pathlib.Path("/tmp"), pathlib.Path("/dev/shm")):
    (place / "left").write_text("alice's")
libc.shmget(0x6C656674, 4096, 0o1600 | 0o666)
libc.msgget(0x6C656674, 0o1000 | 0o666)
libc.syscall(248, b"user", b"left", b"alice's", 7, -4)
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0left")
abstract.listen()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/bin/sleep", ["left-behind", "300"])
    os._exit(0)
print(os.getuid())
"""
FIND = """
import ctypes, json, os, pathlib, socket
libc = ctypes.CDLL(None, use_errno=True)
found = []
for top in (os.path.expanduser("~"), "/tmp", "/dev/shm", "/var", "/run", "/srv"):
    for folder, _, names in os.walk(top):
        found += [os.path.join(folder, name) for name in names if name == "left"]
if libc.shmget(0x6C656674, 4096, 0) >= 0: found.append("shm")
if libc.msgget(0x6C656674, 0) >= 0: found.append("msg")
if libc.syscall(250, 10, -4, b"user", b"left", 0) >= 0: found.append("key")
for entry in pathlib.Path("/proc").glob("[1-9]*/cmdline"):
    try:
        if b"left-behind" in entry.read_bytes(): found.append(str(entry))
    except OSError: pass
try:
    socket.socket(socket.AF_UNIX).connect("\\0left")
    found.append("abstract socket")
except OSError: pass
print(json.dumps([os.getuid(), found]))
"""


@contextlib.contextmanager
def pool_of_one() -> Iterator[dict[str, str]]:
    """Give the settings of a gateway whose cells have one uid between them, which no other gateway takes."""
    prefix = "lone" + "".join(chr(ord("a") + int(digit)) for digit in str(os.getpid()))
    first = 28_001 + os.getpid() % 1000
    pool = {"PREFIX": prefix, "FIRST_UID": str(first), "SIZE": "1"}
    try:
        yield {f"CELLBLOCK_SANDBOX__POOL_{name}": value for name, value in pool.items()}
    finally:
        if ROOT:
            subprocess.run(["userdel", "-f", f"{prefix}0001"], check=False, capture_output=True)
            shutil.rmtree(f"/home/{prefix}0001", ignore_errors=True)


async def test_the_next_owner_of_a_uid_finds_nothing() -> None:
    """With one uid for all, bob's kernel has that of alice's before it, and sees nothing that she left."""
    with pool_of_one() as env, running("--no-keep", env=env) as gateway:
        async with gateway.client() as alice, gateway.client("bob") as bob:
            hers = await alice.start()
            uid = int(await alice.out(hers, LEAVE))
            # it is all there for herself
            assert {"/tmp/left", "abstract socket"} <= set(json.loads(await alice.out(hers, FIND))[1])
            if ROOT:
                refused = await bob.json("POST", "/api/kernels", {}, status=503)
                assert refused["code"] == "sandbox_unavailable"
            await alice.delete(hers)

            his = await bob.start()
            assert json.loads(await bob.out(his, FIND)) == [uid, []]
            await bob.delete(his)
            assert await eventually(lambda: not cells(gateway)), cells(gateway)


# -- keys -------------------------------------------------------------------------------------------------


async def test_key_rotation_with_open_sockets() -> None:
    """A revoked key loses its streaming socket within 2 s; its successor has kernels, state and output."""
    with running("--no-keep") as gateway:
        old = gateway.key()
        async with gateway.client() as before, gateway.client(scopes=SCOPES) as after:
            kernel = await before.start()
            await before.run(kernel, "n = 0")
            async with (
                before.channels(kernel, session_id="a") as losing,
                after.channels(kernel, session_id="b") as staying,
            ):
                await losing.execute(
                    "import time\nwhile n < 80:\n    n += 1; print(n, flush=True); time.sleep(0.1)"
                )
                await staying.until("stream")
                # who reads takes part in the closing; who does not is cut off
                closed = asyncio.create_task(losing.closing(30))
                revoke = gateway.command("keys", "revoke", old.split("_")[1])
                await asyncio.to_thread(
                    subprocess.run,
                    [*revoke, "--state-dir", str(gateway.state_dir)],
                    check=True,
                    capture_output=True,
                )
                begun = time.monotonic()
                assert await closed == 1008
                assert time.monotonic() - begun < 2

                await before.json("GET", "/api/kernels", status=401)
                # what the old key began goes on, and the new key's socket has missed nothing
                await staying.until("stream")
                assert [model["id"] for model in await after.json("GET", "/api/kernels")] == [kernel]
                done = await staying.until_done(await staying.execute("print('n is', n)"))
                assert text_of(done) == "n is 80\n"
