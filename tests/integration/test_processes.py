"""Commands and processes beside kernels, over REST, in real cells."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.conftest import ROOM
from tests.gateway import Client, Gateway, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="module")
def own() -> Iterator[Gateway]:
    """A gateway of this file's, with short output rings."""
    env = {**ROOM, "CELLBLOCK_PROCESSES__MAX_RUNNING": "4", "CELLBLOCK_AUDIT__KEEP_CODE": "true"}
    with running("--no-keep", env=env) as gateway:
        yield gateway


@pytest.fixture(scope="module")
async def alice(own: Gateway) -> AsyncIterator[Client]:
    """A client of alice's."""
    async with own.client() as client:
        yield client


@pytest.fixture(scope="module")
async def kernel_id(alice: Client) -> str:
    """A Python kernel that these tests share."""
    return await alice.start()


async def command(client: Client, kernel_id: str, line: str, *, status: int = 200, **body: Any) -> Any:
    """Run a line of bash."""
    return await client.json(
        "POST", f"/api/kernels/{kernel_id}/commands", {"command": line, **body}, status=status
    )


async def start(client: Client, kernel_id: str, *argv: str, **body: Any) -> str:
    """Start a process and return its id."""
    model = await client.json(
        "POST", f"/api/kernels/{kernel_id}/processes", {"argv": argv, **body}, status=201
    )
    return str(model["id"])


async def said(client: Client, kernel_id: str, process_id: str, text: str) -> dict[str, Any]:
    """Read a process's output until a text is in it; return the last answer with all text."""
    everything, cursor = "", 0
    async with asyncio.timeout(20):
        while True:
            output: dict[str, Any] = await client.json(
                "GET", f"/api/kernels/{kernel_id}/processes/{process_id}/output?cursor={cursor}&wait_s=10"
            )
            cursor = output["cursor"]
            everything += "".join(chunk["text"] for chunk in output["chunks"])
            over = output["process"]["state"] == "ended" and not output["chunks"]
            if text in everything or over:
                return {**output, "text": everything}


async def test_a_command_runs_in_the_cell_while_the_kernel_works(alice: Client, kernel_id: str) -> None:
    """It sees the kernel's files and limits, has its own exit code, and waits for nothing of the kernel's."""
    busy = asyncio.create_task(
        alice.run(kernel_id, "open('a.txt', 'w').write('6*7'); import time; time.sleep(3)")
    )
    await eventually_text(alice, kernel_id, "a.txt")
    begun = time.monotonic()
    result = await command(alice, kernel_id, "cat a.txt; id -u >&2; ulimit -n; exit 3")
    assert time.monotonic() - begun < 2
    assert not busy.done()
    assert (result["status"], result["exit_code"], result["truncated"]) == ("error", 3, False)
    assert result["stdout"] == "6*7512\n"
    assert int(result["stderr"]) >= 23_000
    assert (await command(alice, kernel_id, "tr a-z A-Z", stdin="héllo"))["stdout"] == "HéLLO"
    assert (await busy)["status"] == "ok"


async def eventually_text(client: Client, kernel_id: str, path: str) -> None:
    """Wait until a file has something in it."""
    async with asyncio.timeout(10):
        while (await command(client, kernel_id, f"test -s {path}"))["status"] != "ok":
            await asyncio.sleep(0.02)


async def test_a_commands_environment(alice: Client, kernel_id: str) -> None:
    """It is the kernel's, with what is asked beside it; nothing of the gateway's, and three descriptors."""
    line = "env; echo; ls /proc/self/fd; umask; readlink /proc/self/cwd"
    result = await command(alice, kernel_id, line, env={"MINE": "é"}, cwd="/tmp")
    names = {item.partition("=")[0] for item in result["stdout"].split("\n\n")[0].splitlines()}
    kernels = json.loads(await alice.out(kernel_id, "import os, json; print(json.dumps(list(os.environ)))"))
    assert names - set(kernels) <= {"MINE", "PWD", "SHLVL", "_", "OLDPWD"}
    assert "MINE=é" in result["stdout"]
    # the fourth is that of ls itself
    assert result["stdout"].split("\n\n")[1].split() == ["0", "1", "2", "3", "0007", "/tmp"]


async def test_the_kernel_is_interrupted_and_the_command_is_not(alice: Client, kernel_id: str) -> None:
    """An interrupt is the kernel's alone; a restart takes all that it started along."""
    own = await alice.start()
    process = await start(alice, own, "sleep", "300")
    busy = asyncio.create_task(alice.run(own, "import time; time.sleep(60)"))
    await asyncio.sleep(0.5)
    await alice.json("POST", f"/api/kernels/{own}/interrupt", status=204)
    assert (await busy)["status"] == "interrupted"
    (model,) = await alice.json("GET", f"/api/kernels/{own}/processes")
    assert (model["id"], model["state"], model["argv"]) == (process, "running", ["sleep", "300"])
    await alice.json("POST", f"/api/kernels/{own}/restart")
    assert await alice.json("GET", f"/api/kernels/{own}/processes") == []
    assert (await command(alice, own, "pgrep sleep"))["exit_code"] == 1
    await alice.delete(own)


async def test_a_conversation_with_an_interpreter(alice: Client, kernel_id: str) -> None:
    """Input goes in as it comes, output comes out as it is written, and the end of input ends it."""
    process = await start(alice, kernel_id, "python3", "-iqu")
    path = f"/api/kernels/{kernel_id}/processes/{process}"
    await alice.json("POST", f"{path}/input", {"text": "x = 20\n"}, status=204)
    data = base64.b64encode(b"print(x + 22)\n").decode()
    await alice.json("POST", f"{path}/input", {"data": data}, status=204)
    assert "42\n" in (await said(alice, kernel_id, process, "42\n"))["text"]
    await alice.json("POST", f"{path}/input", {"text": "import time; time.sleep(60)\n"}, status=204)
    await asyncio.sleep(0.3)
    await alice.json("POST", f"{path}/signal", {"signal": "SIGINT"}, status=204)
    assert "KeyboardInterrupt" in (await said(alice, kernel_id, process, "KeyboardInterrupt"))["text"]
    await alice.json("POST", f"{path}/input", {"eof": True}, status=204)
    output = await said(alice, kernel_id, process, "nothing says this")
    # which of the two is the interpreter's own way
    assert output["process"]["exit_code"] in {0, -signal.SIGINT}
    error = await alice.json("POST", f"{path}/input", {"text": "more"}, status=409)
    assert error["reason"] == "ended"
    await alice.json("DELETE", path, status=204)
    await alice.json("DELETE", path, status=404)


async def test_signals(alice: Client, kernel_id: str) -> None:
    """By name and by number; what is none is a bad request; DELETE kills and forgets."""
    process = await start(
        alice, kernel_id, "bash", "-c", "trap 'echo got it' USR1; while :; do sleep 0.05; done"
    )
    path = f"/api/kernels/{kernel_id}/processes/{process}"
    await asyncio.sleep(0.2)
    await alice.json("POST", f"{path}/signal", {"signal": int(signal.SIGUSR1)}, status=204)
    await said(alice, kernel_id, process, "got it")
    for wrong in ("SIGNONE", 0, 65, -9, "", "9999"):
        assert (await alice.json("POST", f"{path}/signal", {"signal": wrong}, status=400))[
            "reason"
        ] == "signal"
    await alice.json("POST", f"{path}/signal", {"signal": "9"}, status=204)
    output = await said(alice, kernel_id, process, "nothing says this")
    assert output["process"]["exit_code"] == -9
    assert (await alice.json("POST", f"{path}/signal", {}, status=409))["reason"] == "ended"
    await alice.json("DELETE", path, status=204)


async def test_long_output_has_head_mark_and_tail(alice: Client, kernel_id: str) -> None:
    """A command's result is bounded for each stream; a process's output is read on by cursors."""
    result = await command(alice, kernel_id, "seq 1000000; seq 5 >&2", output_bytes=4096)
    assert result["stdout"].startswith("1\n2\n3\n")
    assert result["stdout"].endswith("999999\n1000000\n")
    assert "\n[cellblock: " in result["stdout"]
    assert 4096 <= len(result["stdout"]) < 4200
    assert (result["stderr"], result["truncated"], result["exit_code"]) == ("1\n2\n3\n4\n5\n", True, 0)
    process = await start(alice, kernel_id, "seq", "100000")
    output = await said(alice, kernel_id, process, "nothing says this")
    assert output["text"] == "".join(f"{number}\n" for number in range(1, 100_001))
    await alice.json("DELETE", f"/api/kernels/{kernel_id}/processes/{process}", status=204)


async def test_a_time_limit_ends_the_whole_group(alice: Client, kernel_id: str) -> None:
    """SIGTERM, then SIGKILL for who ignores it, children included; what was written is there."""
    begun = time.monotonic()
    loop = "while :; do sleep 1; done"
    line = f"echo first; trap '' TERM; bash -c 'trap \"\" TERM; {loop}' & {loop}"
    result = await command(alice, kernel_id, line, timeout_s=0.5)
    assert (result["status"], result["exit_code"], result["stdout"]) == ("timeout", -9, "first\n")
    assert 1.4 < time.monotonic() - begun < 5
    # who has left somebody behind that writes on without end has ended all the same
    left = await command(alice, kernel_id, "echo here; yes & exit 6", timeout_s=20)
    assert (left["status"], left["exit_code"], left["stdout"][:5]) == ("error", 6, "here\n")
    await command(alice, kernel_id, "pkill yes")
    polite = await command(alice, kernel_id, "trap 'echo bye; exit 5' TERM; sleep 60 & wait", timeout_s=0.3)
    assert (polite["status"], polite["exit_code"], polite["stdout"]) == ("timeout", 5, "bye\n")
    assert (await command(alice, kernel_id, "pgrep bash"))["exit_code"] == 1


async def test_who_disconnects_takes_the_command_along(alice: Client, kernel_id: str) -> None:
    """The command of a caller that goes away is killed."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await command(alice, kernel_id, "sleep 123")

    async def gone() -> bool:
        return (await command(alice, kernel_id, "pgrep -f 'sleep 12[3]'"))["exit_code"] == 1

    async with asyncio.timeout(5):
        while not await gone():
            await asyncio.sleep(0.05)
    assert await alice.json("GET", f"/api/kernels/{kernel_id}/processes") == []


async def test_the_cell_is_shown_and_its_processes_killed(alice: Client, kernel_id: str) -> None:
    """The tree has the kernel, the attendant and what both started; any of them can be signalled."""
    await alice.run(kernel_id, "import subprocess; p = subprocess.Popen(['sleep', '456'])")
    tree = {each["command"]: each for each in await alice.json("GET", f"/api/kernels/{kernel_id}/tree")}
    found = tree["sleep 456"]
    assert (found["name"], found["state"], found["threads"]) == ("sleep", "S", 1)
    kernel = next(each for line, each in tree.items() if "boot.py" in line and each["parent"] == 1)
    assert found["parent"] == kernel["pid"]
    assert tree["cellblock-attendant"]["parent"] == 1
    await alice.json("DELETE", f"/api/kernels/{kernel_id}/tree/{found['pid']}", status=204)
    assert await alice.out(kernel_id, "print(p.wait())") == "-9\n"
    for pid, status in (("99999", 404), ("0", 400), ("-1", 400), ("x", 400), ("9999999999", 404)):
        await alice.json("DELETE", f"/api/kernels/{kernel_id}/tree/{pid}", status=status)
    await alice.json("DELETE", f"/api/kernels/{kernel_id}/tree/2?signal=NONE", status=400)


async def test_the_system_is_shown(alice: Client, kernel_id: str) -> None:
    """What the cell is and has; packages are the kernel's environment's."""
    shown = await alice.json("GET", f"/api/kernels/{kernel_id}/system?packages=true")
    assert "ipykernel" in shown["packages"]
    assert (shown["hostname"], shown["cpus"], shown["memory_bytes"]) == ("kernel", 1.0, 1 << 30)
    home = next(each for each in shown["file_systems"] if each["path"] == shown["home"])
    assert home["size_bytes"] == 256 << 20
    assert 0 < shown["uptime_s"] < 300
    assert (await alice.json("GET", f"/api/kernels/{kernel_id}/system"))["packages"] == {}


async def test_so_many_at_a_time(alice: Client, kernel_id: str) -> None:
    """More processes than may run are refused with 429, commands too."""
    ids = [await start(alice, kernel_id, "sleep", "60") for _ in range(4)]
    error = await command(alice, kernel_id, "true", status=429)
    assert error["reason"] == "processes"
    for each in ids:
        await alice.json("DELETE", f"/api/kernels/{kernel_id}/processes/{each}", status=204)
    assert (await command(alice, kernel_id, "true"))["status"] == "ok"


async def test_a_paused_kernel_runs_no_commands(alice: Client, own: Gateway) -> None:
    """While it is paused: 409. A command that was at work stands still, and its time limit is kept later."""
    kernel_id = await alice.start()
    task = asyncio.create_task(command(alice, kernel_id, "echo a; sleep 60", timeout_s=1))
    await asyncio.sleep(0.5)
    await alice.json("POST", f"/api/kernels/{kernel_id}/pause")
    error = await command(alice, kernel_id, "true", status=409)
    assert error["reason"] == "paused"
    await asyncio.sleep(1)
    assert not task.done()
    await alice.json("POST", f"/api/kernels/{kernel_id}/resume")
    result = await asyncio.wait_for(task, 10)
    assert (result["status"], result["stdout"]) == ("timeout", "a\n")
    await alice.delete(kernel_id)


@pytest.mark.parametrize("name", ["bash", "bubblewrap", "ir"])
async def test_any_kernel_has_them(alice: Client, name: str) -> None:
    """Commands run beside a Bash and an R kernel as well, and in bubblewrap's cells."""
    specs = (await alice.json("GET", "/api/kernelspecs"))["kernelspecs"]
    spec = next(each for each in specs if name in each)
    kernel_id = await alice.start(spec)
    result = await command(alice, kernel_id, "echo $HOME; pwd; kill -0 $PPID && echo parent")
    home = result["stdout"].split()[0]
    assert result["stdout"] == f"{home}\n{home}\nparent\n"
    assert (await alice.json("GET", f"/api/kernels/{kernel_id}/system"))["home"] == home
    await alice.delete(kernel_id)


async def test_a_kernel_does_not_wait_for_the_attendant(alice: Client) -> None:
    """The attendant is no child of the kernel's, and the kernel's exit code is its own."""
    kernel_id = await alice.start()
    code = "import os\ntry:\n    os.wait()\nexcept ChildProcessError as error:\n    print('none')"
    assert await alice.out(kernel_id, code) == "none\n"
    process = await start(alice, kernel_id, "sleep", "60")
    result = await alice.run(kernel_id, "os._exit(3)")
    assert (result["status"], result["reason"]) == ("dead", "crashed")
    error = await alice.json("GET", f"/api/kernels/{kernel_id}/processes/{process}/output", status=409)
    assert error["code"] == "kernel_dead"
    await alice.delete(kernel_id)


async def test_what_is_done_is_in_the_audit_trail(alice: Client, own: Gateway, kernel_id: str) -> None:
    """Commands with hash, code where that is kept, exit code and bytes; starts, input and signals."""
    await command(alice, kernel_id, "echo audited; exit 9")
    process = await start(alice, kernel_id, "cat")
    path = f"/api/kernels/{kernel_id}/processes/{process}"
    await alice.json("POST", f"{path}/input", {"text": "secret"}, status=204)
    await alice.json("DELETE", path, status=204)
    records = [
        json.loads(line)
        for file in sorted((own.state_dir / "gateway" / "audit").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    run = next(each for each in records if each.get("code") == "echo audited; exit 9")
    assert (run["action"], run["outcome"], run["reason"], run["output_bytes"]) == (
        "command.run",
        "error",
        "error",
        8,
    )
    assert run["extra"]["exit_code"] == 9
    assert len(run["code_sha256"]) == 64
    actions = [(each["action"], each["extra"]) for each in records if each.get("target") == process]
    assert actions == [
        ("process.start", {}),
        ("process.input", {"bytes": 6}),
        ("process.signal", {"signal": 9}),
    ]
    assert "secret" not in json.dumps([each for each in records if each.get("target") == process])


async def test_others_see_nothing(alice: Client, own: Gateway, kernel_id: str) -> None:
    """Another owner's kernel does not exist, nor its processes."""
    process = await start(alice, kernel_id, "sleep", "60")
    async with own.client("bob") as bob:
        await command(bob, kernel_id, "true", status=404)
        for method, rest in (("GET", "/output"), ("POST", "/input"), ("POST", "/signal"), ("DELETE", "")):
            await bob.json(method, f"/api/kernels/{kernel_id}/processes/{process}{rest}", status=404)
        theirs = await bob.start()
        await bob.json("DELETE", f"/api/kernels/{theirs}/processes/{process}", status=404)
        await bob.delete(theirs)
    async with own.client("alice", "kernels") as limited:
        await command(limited, kernel_id, "true", status=403)
    await alice.json("DELETE", f"/api/kernels/{kernel_id}/processes/{process}", status=204)


async def test_processes_outlive_their_gateway() -> None:
    """After kill -9 of the gateway the next one shows what runs, and talks to it."""
    with running(env=ROOM) as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            process = await start(client, kernel_id, "bash")
            path = f"/api/kernels/{kernel_id}/processes/{process}"
            await client.json("POST", f"{path}/input", {"text": "mine=7; echo before\n"}, status=204)
            await said(client, kernel_id, process, "before")
            task = asyncio.create_task(command(client, kernel_id, "sleep 2; echo late; sleep 60"))
            await asyncio.sleep(0.5)
            gateway.end(signal.SIGKILL)
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await task
        gateway.start()
        async with gateway.client() as client:
            models = {
                each["id"]: each for each in await client.json("GET", f"/api/kernels/{kernel_id}/processes")
            }
            assert models[process]["state"] == "running"
            assert len(models) == 2
            await client.json("POST", f"{path}/input", {"text": "echo $((mine * 6))\n"}, status=204)
            async with asyncio.timeout(20):
                while True:
                    output = await client.json("GET", f"{path}/output?cursor=7&wait_s=5")
                    if output["chunks"]:
                        break
            assert (output["chunks"], output["lost"]) == ([{"stream": "stdout", "text": "42\n"}], 0)
            (orphan,) = [each for each in models if each != process]
            assert "late" in (await said(client, kernel_id, orphan, "late"))["text"]
            assert await client.out(kernel_id, "print('on')") == "on\n"


async def test_commands_count_as_executions() -> None:
    """They are taken from the minute's quota, and their output from the day's."""
    env = {"CELLBLOCK_QUOTAS__EXECUTIONS_PER_MINUTE": "3", "CELLBLOCK_QUOTAS__OUTPUT_BYTES_PER_DAY": "100000"}
    with running("--no-keep", env=env) as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start()
            await client.run(kernel_id, "1")
            await command(client, kernel_id, "true")
            await start(client, kernel_id, "true")
            assert (await command(client, kernel_id, "true", status=429))["reason"] == "executions_per_minute"
        async with gateway.client("bob") as bob:
            kernel_id = await bob.start()
            await command(bob, kernel_id, "head -c 200000 /dev/zero")
            error = await command(bob, kernel_id, "true", status=429)
            assert error["reason"] == "output_bytes_per_day"


async def test_a_profile_may_do_without(tmp_path) -> None:
    """With `attendant = false` there is no such process, commands are refused, and the kernel is as ever."""
    tmp_path.chmod(0o755)
    (tmp_path / "bare.toml").write_text(
        'extends = "default"\ndescription = "No commands."\nattendant = false\n'
    )
    specs = tmp_path / "specs" / "bare"
    specs.mkdir(parents=True)
    kernel = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Bare",
        "language": "python",
        "metadata": {"cellblock": {"profile": "bare", "environment": "/srv/cellblock/envs/python3"}},
    }
    (specs / "kernel.json").write_text(json.dumps(kernel))
    for path in (tmp_path, specs.parent, specs):
        path.chmod(0o755)
    env = {
        "CELLBLOCK_SANDBOX__PROFILE_DIRS": json.dumps([str(tmp_path)]),
        "CELLBLOCK_KERNELS__SPEC_DIRS": json.dumps([str(specs.parent)]),
    }
    for path in (tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    with running("--no-keep", env=env) as gateway:
        async with gateway.client() as client:
            kernel_id = await client.start("bare")
            error = await command(client, kernel_id, "true", status=503)
            assert (error["code"], error["reason"]) == ("sandbox_unavailable", "attendant_off")
            code = "import glob; print([p for p in glob.glob('/proc/*/comm') if 'atten' in open(p).read()])"
            assert await client.out(kernel_id, code) == "[]\n"
