"""A kernel of a gateway among those of a plain Jupyter: `cellblock kernelspec` and `cellblock bridge`."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zmq

from tests.clients.bridged import NAME, Jupyter, Local, is_idle
from tests.gateway import Client, Gateway, running
from tests.integration.test_kernel_life import STUBBORN
from tests.lifecycle import eventually, kernels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STARTER = """
import sys
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name=sys.argv[1])
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)
print(manager.provisioner.pid, flush=True)
sys.stdin.read()
"""
ECHO = """
from IPython import get_ipython
def opened(comm, message):
    @comm.on_msg
    def answered(message):
        comm.send({'got': message['content']['data']}, buffers=[bytes(b)[::-1] for b in message['buffers']])
    comm.send({'hello': len(message['buffers'])})
get_ipython().kernel.comm_manager.register_target('echo', opened)
"""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def jupyter(gateway: Gateway, tmp_path: Path) -> Jupyter:
    """A Jupyter that has the shared gateway's kernelspec."""
    jupyter = Jupyter(tmp_path)
    jupyter.install(gateway)
    return jupyter


@pytest.fixture
async def local(jupyter: Jupyter) -> AsyncIterator[Local]:
    """A kernel that was started by jupyter_client."""
    async with jupyter.kernel() as local:
        yield local


async def ids(client: Client) -> set[str]:
    """Return the ids of a principal's kernels."""
    return {model["id"] for model in await client.json("GET", "/api/kernels")}


async def gone(client: Client, before: set[str], timeout: float = 15.0) -> bool:
    """Wait until there are no kernels but those of before."""
    deadline = time.monotonic() + timeout
    while await ids(client) - before:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def test_what_is_installed(gateway: Gateway, jupyter: Jupyter, client: Client) -> None:
    """Name, language, logos and gateway are in the kernelspec; the key is nowhere but in its private file."""
    key, directory = gateway.key(), jupyter.kernels / NAME
    spec = json.loads((directory / "kernel.json").read_text())

    assert spec["display_name"] == "Python 3 (Cellblock)"
    assert spec["language"] == "python"
    assert spec["interrupt_mode"] == "message"
    assert spec["metadata"] == {"cellblock": {"gateway": gateway.url, "kernel": "python3"}}
    assert {"logo-32x32.png", "logo-64x64.png", "logo-svg.svg"} <= {path.name for path in directory.iterdir()}
    assert all(key.encode() not in path.read_bytes() for path in directory.iterdir())
    assert stat.S_IMODE(jupyter.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(jupyter.key_file.parent.stat().st_mode) == 0o700

    async with jupyter.kernel() as local:
        await local.run("1 / 0")
        lines = {
            path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if b"bridge" in cmdline(path)
        }
        assert any(b"gateway.cli\0bridge" in line for line in lines)
        assert all(key.encode() not in line for line in lines)
    assert key not in jupyter.log

    shown = jupyter.cellblock("kernelspec", "list", "--json")
    [listed] = json.loads(shown.stdout)
    assert (listed["name"], listed["gateway"], listed["kernel"]) == (NAME, gateway.url, "python3")
    assert jupyter.cellblock("kernelspec", "remove", NAME).returncode == 0
    assert not directory.exists()
    assert not jupyter.key_file.exists()


def cmdline(path: Path) -> bytes:
    """Return a process's command line, empty when it is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_outputs(jupyter: Jupyter, transport: str) -> None:
    """Streams, pictures, HTML, errors of any length and two megabytes of text arrive whole."""
    async with jupyter.kernel(transport=transport) as local:
        done = await local.run("import sys; print('out'); print('err', file=sys.stderr); 6 * 7")
        assert (done.text(), done.text("stderr")) == ("out\n", "err\n")
        [result] = done.of("execute_result")
        assert result["data"]["text/plain"] == "42"
        assert done.reply["execution_count"] == result["execution_count"]

        done = await local.run(
            "import matplotlib; matplotlib.use('agg')\n"
            "from IPython.display import HTML, Image, display\n"
            "import io, matplotlib.pyplot as plt\n"
            "plt.plot([1, 2]); made = io.BytesIO(); plt.savefig(made); display(Image(made.getvalue()))\n"
            "display(HTML('<b>bold</b>'))"
        )
        picture, html = done.of("display_data")
        assert base64.b64decode(picture["data"]["image/png"]).startswith(b"\x89PNG")
        assert html["data"]["text/html"] == "<b>bold</b>"

        done = await local.run("raise ValueError('x' * 100_000)")
        [error] = done.of("error")
        assert error["evalue"] == done.reply["evalue"] == "x" * 100_000

        done = await local.run("print('y' * (2 << 20))")
        assert done.text() == "y" * (2 << 20) + "\n"


async def test_questions(local: Local) -> None:
    """input() and getpass() ask whoever runs the cell, and get the answer."""
    done = await local.run(
        "import getpass; name = input('name? '); word = getpass.getpass('word? '); print(name, word)",
        answers=["ada", "lovelace"],
    )

    assert done.text() == "ada lovelace\n"
    assert [(asked["prompt"], asked["password"]) for asked in done.of("input_request")] == [
        ("name? ", False),
        ("word? ", True),
    ]


@pytest.mark.parametrize("by_signal", [False, True])
async def test_interrupt(local: Local, by_signal: bool) -> None:
    """A loop ends with KeyboardInterrupt when Jupyter interrupts it, or the bridge gets a SIGINT."""
    asked = local.ask("print('on', flush=True)\nwhile True: pass")
    seen = await local.until(asked, "stream")
    if by_signal:
        os.kill(local.pid, signal.SIGINT)
    else:
        await local.manager.interrupt_kernel()
    done = await local.result(asked, seen=seen)

    assert done.reply["ename"] == "KeyboardInterrupt"
    assert (await local.run("print('alive')")).text() == "alive\n"


async def test_restart(local: Local, client: Client) -> None:
    """After a restart by Jupyter there is another kernel, the old one is gone, and so are its variables."""
    await local.run("x = 1")
    before = await ids(client)
    await local.manager.restart_kernel()
    await local.client.wait_for_ready(timeout=60)

    assert (await local.run("x")).reply["ename"] == "NameError"
    after = await ids(client)
    assert len(after) == len(before)
    assert len(after - before) == 1


async def test_shutdown(jupyter: Jupyter, client: Client) -> None:
    """An orderly end deletes the kernel, ends the process with 0 and leaves no other process behind."""
    before = await ids(client)
    async with jupyter.kernel() as local:
        pid = local.pid
        assert len(await ids(client) - before) == 1
        local.client.shutdown()
        reply = await local.client.get_control_msg(timeout=15)
        assert reply["content"] == {"status": "ok", "restart": False}
        assert await local.manager.provisioner.wait() == 0
        assert await ids(client) == before
    assert await eventually(lambda: not bridges_of(pid, jupyter))


def bridges_of(pid: int, jupyter: Jupyter) -> list[int]:
    """List the processes of a Jupyter's bridges, and of their sweepers."""
    mark = str(jupyter.home).encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        line = cmdline(path)
        if b"gateway.cli\0bridge" in line and mark in line:
            found.append(int(path.parent.name))
    return found


async def test_a_kernel_that_is_killed(gateway: Gateway, jupyter: Jupyter, client: Client) -> None:
    """Who runs the cell reads why it ended, at once; then there is a fresh kernel, with the same id."""
    others = set(kernels(gateway))
    async with jupyter.kernel() as local:
        asked = local.ask("print('on', flush=True); import time; time.sleep(600)")
        seen = await local.until(asked, "stream")
        [pid] = set(kernels(gateway)) - others
        os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        done = await local.result(asked, seen=seen)

        assert time.monotonic() - begun < 1.0
        assert (done.reply["status"], done.reply["ename"]) == ("error", "KernelKilled")
        assert [error["evalue"] for error in done.of("error")] == ["The kernel was killed."]
        before = await ids(client)
        assert (await local.run("print('back')")).text() == "back\n"
        assert await ids(client) == before


async def test_widgets(local: Local) -> None:
    """A comm opened from the client's side carries buffers both ways, unchanged."""
    await local.run(ECHO)
    session, buffers = local.client.session, [bytes(range(256)), b"\x00\xff" * 50_000]
    channel = local.client.shell_channel.socket
    comm = {"comm_id": "c1", "target_name": "echo", "data": {}}
    opened = session.send(channel, "comm_open", comm, buffers=buffers)
    [*_, told] = await local.until(opened["header"]["msg_id"], "comm_msg")
    assert told["content"]["data"] == {"hello": 2}

    sent = session.send(channel, "comm_msg", {"comm_id": "c1", "data": {"n": 1}}, buffers=buffers)
    [*_, told] = await local.until(sent["header"]["msg_id"], "comm_msg")
    assert told["content"]["data"] == {"got": {"n": 1}}
    assert [bytes(buffer) for buffer in told["buffers"]] == [buffer[::-1] for buffer in buffers]
    await local.until(sent["header"]["msg_id"], "status")


async def test_two_clients(local: Local) -> None:
    """Both see all output; a reply goes to who asked, and so does a question."""
    async with local.another_client() as other:
        mine, theirs = await asyncio.gather(
            local.run("print(input('me? '))", answers=["one"]),
            other.run("print(input('you? '))", answers=["two"]),
        )
        assert (mine.text(), theirs.text()) == ("one\n", "two\n")

        asked = local.ask("print('for all')")
        seen = await other.until(asked, "stream")
        assert seen[-1]["content"]["text"] == "for all\n"
        await local.result(asked)


async def test_a_client_that_does_not_read(local: Local) -> None:
    """A client that is stopped in the middle of much output does not stop the others."""
    stuck = zmq.Context.instance().socket(zmq.SUB)
    stuck.rcvhwm = 1
    stuck.subscribe(b"")
    stuck.connect(f"tcp://127.0.0.1:{local.manager.iopub_port}")
    try:
        code = "for n in range(60): print('z' * 1_000_000, flush=True)"
        done = await local.run(code, timeout=60)
        assert done.reply["status"] == "ok"
        assert len(done.text()) > 1_000_000
        assert (await local.run("print('alive')")).text() == "alive\n"
    finally:
        stuck.close(0)


async def test_what_no_kernel_takes(local: Local) -> None:
    """A request of a type that the gateway does not pass on is answered with an error, and not left open."""
    session, channel = local.client.session, local.client.shell_channel.socket
    sent = session.send(channel, "connect_request", {})
    reply = await local.reply(sent["header"]["msg_id"])

    assert (reply["msg_type"], reply["content"]["status"]) == ("connect_reply", "error")


async def test_heartbeats(local: Local) -> None:
    """Heartbeats come back while a cell runs."""
    asked = local.ask("import time; time.sleep(2)")
    with zmq.Context.instance().socket(zmq.REQ) as heart:
        heart.linger = 0
        heart.connect(f"tcp://127.0.0.1:{local.manager.hb_port}")
        heart.send(b"ping")
        assert await asyncio.to_thread(heart.poll, 1500)
        assert heart.recv() == b"ping"
    await local.result(asked)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_bridge_that_is_ended(jupyter: Jupyter, client: Client, number: int) -> None:
    """However a bridge's process group ends, its kernel does not stay."""
    before = await ids(client)
    async with jupyter.kernel() as local:
        assert len(await ids(client) - before) == 1
        pid = local.pid
        os.killpg(pid, number)
        assert await gone(client, before)
        await local.manager.provisioner.wait()
    assert await eventually(lambda: not bridges_of(pid, jupyter))


async def test_a_parent_that_is_killed(jupyter: Jupyter, client: Client) -> None:
    """When Jupyter itself is killed, bridge and kernel are gone soon after."""
    before = await ids(client)
    command = [sys.executable, "-c", STARTER, NAME]
    parent = subprocess.Popen(
        command, env=jupyter.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    pid = int(await asyncio.to_thread(parent.stdout.readline))
    assert len(await ids(client) - before) == 1
    parent.kill()
    parent.communicate()

    assert await gone(client, before)
    assert await eventually(lambda: not bridges_of(pid, jupyter))


async def test_timeout(tmp_path: Path) -> None:
    """A cell beyond its time is interrupted, and its user reads why."""
    with running(env={"CELLBLOCK_EXECUTIONS__MAX_TIMEOUT_S": "1.5"}) as gateway:
        jupyter = Jupyter(tmp_path)
        jupyter.install(gateway)
        async with jupyter.kernel() as local:
            done = await local.run("kept = 1\nimport time; time.sleep(60)")
            assert "The time limit of 1.5 s is over" in done.text("stderr")
            assert done.reply["ename"] == "KeyboardInterrupt"

            done = await local.run(STUBBORN)
            assert done.reply["ename"] == "KernelTimeout"
            assert "ran out of time" in done.reply["evalue"]
            # the gateway has started it afresh
            assert (await local.run("kept")).reply["ename"] == "NameError"


async def test_a_gateway_that_restarts(tmp_path: Path) -> None:
    """The kernel is found again with its state; a cell that ran meanwhile is shown to its end."""
    with running("--port", str(free_port())) as gateway:
        jupyter = Jupyter(tmp_path)
        jupyter.install(gateway)
        async with jupyter.kernel() as local:
            await local.run("kept = 42")
            gateway.end(signal.SIGKILL)
            gateway.start()
            assert (await local.run("print(kept)")).text() == "42\n"

            asked = local.ask(
                "import time\nfor n in range(16):\n    print(n, flush=True); time.sleep(0.5)\nended = 1"
            )
            seen = await local.until(asked, "stream")
            gateway.end(signal.SIGKILL)
            gateway.start()
            done = await local.result(asked, seen=seen)
            assert done.reply["status"] == "ok"
            assert "0\n" in done.text()
            assert "15\n" in done.text()
            assert "The connection to the gateway was lost" in done.text("stderr")
            assert (await local.run("print(ended)")).text() == "1\n"


async def test_what_ended_while_the_gateway_was_away(tmp_path: Path) -> None:
    """A cell whose end nobody saw is answered all the same, and the cells that waited behind it are, too."""
    with running("--port", str(free_port())) as gateway:
        jupyter = Jupyter(tmp_path)
        jupyter.install(gateway)
        async with jupyter.kernel() as local:
            asked = local.ask("print('on', flush=True); import time; time.sleep(1)")
            behind = local.ask("print('never')")
            seen = await local.until(asked, "stream")
            gateway.end(signal.SIGKILL)
            await asyncio.sleep(2)
            gateway.start()
            done = await local.result(asked, seen=seen)
            assert (done.reply["status"], done.reply["ename"]) == ("error", "ConnectionLost")
            late = await local.result(behind)
            assert (late.reply["status"], late.reply["ename"]) == ("error", "ConnectionLost")
            assert (await local.run("print('alive')")).text() == "alive\n"


async def test_a_kernel_that_is_gone(tmp_path: Path) -> None:
    """A kernel that a gateway did not keep: what runs is told the reason, and so is what comes next."""
    with running("--no-keep", "--port", str(free_port())) as gateway:
        jupyter = Jupyter(tmp_path)
        jupyter.install(gateway)
        async with jupyter.kernel() as local:
            asked = local.ask("print('on', flush=True); import time; time.sleep(600)")
            seen = await local.until(asked, "stream")
            gateway.end(signal.SIGKILL)
            gateway.start()
            done = await local.result(asked, seen=seen)
            assert done.reply["ename"] == "KernelGone"
            assert "Restart the kernel" in done.reply["evalue"]
            assert [error["ename"] for error in done.of("error")] == ["KernelGone"]
            done = await local.run("1")
            assert [error["ename"] for error in done.of("error")] == ["KernelGone"]

            await local.manager.restart_kernel()
            await local.client.wait_for_ready(timeout=60)
            assert (await local.run("print('new')")).text() == "new\n"


async def test_a_bad_key(gateway: Gateway, jupyter: Jupyter) -> None:
    """The first cell says that the key is refused; with a good one in the file, the next cell runs."""
    jupyter.key_file.write_text("cb_000000000000_wrong\n")
    async with jupyter.kernel() as local:
        done = await local.run("print('run')")
        [error] = done.of("error")
        assert error["ename"] == done.reply["ename"] == "Unauthorized"
        assert is_idle(done.seen[-1])
        jupyter.key_file.write_text(gateway.key())
        assert (await local.run("print('run')")).text() == "run\n"


async def test_a_key_that_others_can_read(jupyter: Jupyter) -> None:
    """A key file that is open to others is not used, and the cell says so."""
    jupyter.key_file.chmod(0o644)
    async with jupyter.kernel() as local:
        done = await local.run("1")
        assert done.reply["ename"] == "ConfigurationError"
        assert "chmod 600" in done.reply["evalue"]
        jupyter.key_file.chmod(0o600)
        assert (await local.run("print('run')")).text() == "run\n"


async def test_too_many_kernels(tmp_path: Path) -> None:
    """A kernel beyond the quota: the cell says which limit it is; when there is room, the next cell runs."""
    with running(env={"CELLBLOCK_KERNELS__MAX_KERNELS_PER_OWNER": "1"}) as gateway:
        jupyter = Jupyter(tmp_path)
        jupyter.install(gateway)
        async with gateway.client() as client:
            taken = await client.start()
            async with jupyter.kernel() as local:
                done = await local.run("1")
                assert done.reply["ename"] == "LimitReached"
                await client.delete(taken)
                assert (await local.run("print('run')")).text() == "run\n"


async def test_nobody_listens(jupyter: Jupyter) -> None:
    """Where no gateway answers, the cell says so at once, and Jupyter can still end the kernel."""
    path = jupyter.kernels / NAME / "kernel.json"
    spec = json.loads(path.read_text())
    spec["argv"][spec["argv"].index("--gateway") + 1] = f"http://127.0.0.1:{free_port()}"
    path.write_text(json.dumps(spec))
    async with jupyter.kernel() as local:
        pid = local.pid
        done = await local.run("1", timeout=5)
        assert done.reply["ename"] == "GatewayUnreachable"
        assert "connection refused" in done.reply["evalue"]
    # its sweeper is gone, too, once it has tried for a while: here it is not waited for
    for number in bridges_of(pid, jupyter):
        os.kill(number, signal.SIGKILL)


def test_install_refuses(gateway: Gateway, tmp_path: Path) -> None:
    """A wrong key, an unknown kernelspec, no gateway, another's name: one sentence and exit code 2."""
    jupyter, key = Jupyter(tmp_path), gateway.key()
    install = ("kernelspec", "install", "--gateway", gateway.url)
    taken = jupyter.kernels / "ir"
    taken.mkdir(parents=True)
    (taken / "kernel.json").write_text('{"argv": ["R"], "display_name": "R", "language": "R"}')
    for arguments, used, said in (
        (install, "cb_000000000000_wrong", "The credential is missing or not valid"),
        ((*install, "--kernel", "ruby"), key, "The gateway has no kernelspec ruby; it has bash, "),
        (("kernelspec", "install", "--gateway", "http://127.0.0.1:9"), key, "cannot be reached"),
        ((*install, "--name", "ir"), key, "another program's kernelspec"),
        ((*install, "--name", "../x"), key, "A kernelspec's name has"),
        ((*install, "--user", "--sys-prefix"), key, "exclude each other"),
    ):
        done = jupyter.cellblock(*arguments, CELLBLOCK_KEY=used)
        assert (done.returncode, said in done.stderr) == (2, True), (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    assert json.loads((taken / "kernel.json").read_text())["language"] == "R"
    assert not (jupyter.kernels / NAME).exists()
