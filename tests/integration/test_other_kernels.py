"""Any Jupyter kernel works by a kernelspec and an environment; one that asks for too much does not start."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway import new_state_dir, running, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.gateway import Client, Gateway

BASH = "/srv/cellblock/envs/bash"
# ipykernel as it was before iopub_welcome: its iopub is a plain PUB socket
OLDEN = """
import zmq
from ipykernel.iostream import IOPubThread
from ipykernel.kernelapp import IPKernelApp
zmq.XPUB = zmq.PUB
IOPubThread._setup_xpub_listener = lambda self: None
IPKernelApp.launch_instance()
"""


def spec(*argv: str, profile: str = "default", environment: str = BASH, **more: Any) -> dict[str, Any]:
    """Return a kernel.json."""
    ours = {"profile": profile, "environment": environment}
    return {"argv": argv, "display_name": "x", "language": "x", "metadata": {"cellblock": ours}, **more}


STARTED_BADLY, NO_CELL = (502, "kernel_start_failed"), (503, "sandbox_unavailable")
BASH_ARGV = ("python", "-m", "bash_kernel", "-f", "{connection_file}")
SPECS = {
    "bash": spec(*BASH_ARGV, env={"GREETING": "from the kernelspec"}),
    "bash-by-message": spec(*BASH_ARGV, interrupt_mode="message"),
    "program": spec("ipython", "kernel", "-f", "{connection_file}"),
    "shell-script": spec(
        "/bin/sh", "-c", 'exec python -m ipykernel_launcher -f "$1"', "x", "{connection_file}"
    ),
    "olden": spec("python", "-c", OLDEN, "-f", "{connection_file}"),
    "exits": spec("python", "-c", "import sys; sys.exit('no luck today')"),
    "silent": spec("python", "-c", "import time; time.sleep(60)"),
    "missing": spec("no-such-program", "{connection_file}"),
    "unknown-profile": spec(*BASH_ARGV, profile="lax"),
    "outside": spec(*BASH_ARGV, environment="/var/tmp"),
    "dotted": spec(*BASH_ARGV, environment="/srv/cellblock/../../etc"),
    "root-itself": spec(*BASH_ARGV, environment="/srv"),
    "absent": spec(*BASH_ARGV, environment="/srv/cellblock/envs/absent"),
}


@pytest.fixture(scope="module")
def polyglot() -> Iterator[Gateway]:
    """A gateway with the kernelspecs above."""
    state_dir = new_state_dir()
    writable = state_dir / "roots" / "writable"
    writable.mkdir(parents=True)
    writable.chmod(0o777)
    broken = spec(*BASH_ARGV)
    broken["metadata"]["cellblock"]["privileged"] = True
    needy = spec(*BASH_ARGV)
    needy["metadata"]["cellblock"]["needs"] = [BASH, str(state_dir / "later")]
    more = {"writable": spec(*BASH_ARGV, environment=str(writable)), "broken": broken, "needy": needy}
    for name, kernel_json in (SPECS | more).items():
        (state_dir / "specs" / name).mkdir(parents=True)
        (state_dir / "specs" / name / "kernel.json").write_text(json.dumps(kernel_json))
    env = {
        "CELLBLOCK_KERNELS__SPEC_DIRS": json.dumps([str(state_dir / "specs")]),
        "CELLBLOCK_KERNELS__READY_TIMEOUT_S": "5",
        "CELLBLOCK_SANDBOX__ENVIRONMENT_ROOTS": json.dumps(["/srv", str(writable.parent)]),
    }
    with running("--no-keep", env=env, state_dir=state_dir) as gateway:
        yield gateway


@pytest.fixture
async def polyglot_client(polyglot: Gateway) -> AsyncIterator[Client]:
    """A client of that gateway; what it started is ended."""
    async with polyglot.client() as client:
        yield client
        for model in await client.json("GET", "/api/kernels"):
            await client.delete(model["id"])


async def test_all_are_offered(polyglot_client: Client) -> None:
    """Kernelspecs of a directory stand beside the shipped ones; their env is not shown."""
    listed = await polyglot_client.json("GET", "/api/kernelspecs")

    assert {"python3", "python3-scientific", *SPECS} <= set(listed["kernelspecs"])
    assert listed["kernelspecs"]["bash"]["spec"]["env"] == {}


@pytest.mark.parametrize("name", ["bash", "bash-by-message"])
async def test_bash(polyglot_client: Client, name: str) -> None:
    """bash_kernel runs, keeps its state, shows errors, and has the kernelspec's variables."""
    kernel = await polyglot_client.start(name)

    assert await polyglot_client.out(kernel, "echo hello") == "hello\n"
    await polyglot_client.run(kernel, "kept=41; cd /tmp")
    assert await polyglot_client.out(kernel, "echo $((kept + 1)) $PWD") == "42 /tmp\n"
    if name == "bash":
        assert await polyglot_client.out(kernel, "echo $GREETING") == "from the kernelspec\n"
    assert (await polyglot_client.run(kernel, "false"))["status"] == "error"
    assert (await polyglot_client.kernel(kernel))["name"] == name


async def test_bash_is_confined(polyglot_client: Client) -> None:
    """A shell sees its cell and nothing else: no host processes, files, network, other environments."""
    kernel = await polyglot_client.start("bash")

    async def said(code: str) -> str:
        result = await polyglot_client.run(kernel, code)
        return str(result["stdout"] + result["stderr"])

    status = await said("cat /proc/self/status")
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert "uid=0" not in await said("id")
    assert "No such file" in await said("cat /etc/shadow") or "denied" in await said("cat /etc/shadow")
    assert int(await said("ls -d /proc/[0-9]* | wc -l")) < 20
    assert (await said("cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' \\n'")).strip() == "lo"
    assert "connected" not in await said("(echo > /dev/tcp/127.0.0.1/22) && echo connected")
    touched = await said('touch "$(dirname "$(command -v python)")/x"')
    assert "Read-only" in touched or "denied" in touched
    assert "python3" not in await said("ls -A /srv/cellblock/envs")


@pytest.mark.parametrize("name", ["bash", "bash-by-message", "program", "olden"])
async def test_interrupts(polyglot_client: Client, name: str) -> None:
    """An interrupt ends what runs, in either interrupt mode, and the kernel goes on."""
    kernel = await polyglot_client.start(name)
    sleep, echo = (
        ("sleep 60", "echo on") if "bash" in name else ("import time; time.sleep(60)", "print('on')")
    )
    running = asyncio.create_task(polyglot_client.run(kernel, sleep))
    await asyncio.sleep(1)
    begun = time.monotonic()

    await polyglot_client.json("POST", f"/api/kernels/{kernel}/interrupt", status=204)
    await running

    assert time.monotonic() - begun < 8
    assert await polyglot_client.out(kernel, echo) == "on\n"


@pytest.mark.parametrize("name", ["program", "shell-script", "olden"])
async def test_kernels_by_exec(polyglot_client: Client, name: str) -> None:
    """A program of the environment, a script, and a kernel without iopub_welcome work like any other."""
    kernel = await polyglot_client.start(name)

    assert await polyglot_client.out(kernel, "x = 6\nprint(x)") == "6\n"
    result = await polyglot_client.run(kernel, "x * 7")
    assert result["outputs"][-1]["data"]["text/plain"] == "42"
    async with polyglot_client.channels(kernel) as channels:
        assert text_of(await channels.until_done(await channels.execute("print(x)"))) == "6\n"
    confined = "[l for l in open('/proc/self/status') if l.startswith(('Seccomp:', 'CapBnd:'))]"
    assert await polyglot_client.out(kernel, f"print({confined})") == (
        "['CapBnd:\\t0000000000000000\\n', 'Seccomp:\\t2\\n']\n"
    )
    assert (
        await polyglot_client.out(kernel, "import os; print(os.getcwd() == os.path.expanduser('~'))")
        == "True\n"
    )
    dead = await polyglot_client.run(kernel, "import os; os._exit(1)")
    assert (dead["status"], dead["reason"]) == ("dead", "crashed")
    await polyglot_client.json("POST", f"/api/kernels/{kernel}/restart")
    assert await polyglot_client.out(kernel, "print(2)") == "2\n"


@pytest.mark.parametrize(
    ("name", "refusal", "said"),
    [
        ("exits", STARTED_BADLY, "no luck today"),
        ("silent", STARTED_BADLY, "did not answer within 5 s"),
        ("missing", STARTED_BADLY, "no-such-program"),
        ("unknown-profile", NO_CELL, "'lax'"),
        ("outside", NO_CELL, "/var/tmp is not below an allowed root"),
        ("dotted", NO_CELL, "not below an allowed root"),
        ("root-itself", NO_CELL, "not below an allowed root"),
        ("absent", NO_CELL, "absent"),
        ("writable", NO_CELL, "can be written by others"),
    ],
)
async def test_what_cannot_start_says_why(
    polyglot: Gateway, polyglot_client: Client, name: str, refusal: tuple[int, str], said: str
) -> None:
    """A kernelspec that cannot start is the server's fault, not the caller's; nothing is left of it."""
    async with polyglot_client.http.post("/api/kernels", json={"name": name}) as response:
        body = await response.json()

    assert (response.status, body["code"]) == refusal, body
    assert said in body["message"]
    assert await polyglot_client.json("GET", "/api/kernels") == []
    assert polyglot.kernel_pids() == []


async def test_a_kernelspec_waits_for_what_it_needs(polyglot: Gateway, polyglot_client: Client) -> None:
    """One whose `needs` are not all there is not offered, and is at once when they are."""
    assert "needy" not in (await polyglot_client.json("GET", "/api/kernelspecs"))["kernelspecs"]
    await polyglot_client.json("POST", "/api/kernels", {"name": "needy"}, status=404)

    (polyglot.state_dir / "later").touch()

    assert "needy" in (await polyglot_client.json("GET", "/api/kernelspecs"))["kernelspecs"]
    assert await polyglot_client.out(await polyglot_client.start("needy"), "echo here") == "here\n"


async def test_a_kernelspec_that_is_wrong_is_left_out(polyglot: Gateway, polyglot_client: Client) -> None:
    """One with unknown keys is not offered, from the start on; the log names its file and the key."""
    (line,) = [line for line in polyglot.log() if line["event"] == "kernelspec_left_out"]
    assert "broken/kernel.json is wrong: metadata.cellblock has unknown keys: privileged" in line["error"]

    assert "broken" not in (await polyglot_client.json("GET", "/api/kernelspecs"))["kernelspecs"]
    refused = await polyglot_client.json("POST", "/api/kernels", {"name": "broken"}, status=404)
    assert refused["code"] == "unknown_kernelspec"
