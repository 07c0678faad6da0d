"""The audit trail of a real gateway: complete over a kill, provable, and silent about secrets of the code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.gateway import Gateway, running

if TYPE_CHECKING:
    from tests.gateway import Client


def audit(gateway: Gateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `cellblock audit`."""
    command = gateway.command("audit", *arguments, "--state-dir", str(gateway.state_dir))
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=60)


def records(gateway: Gateway) -> list[dict[str, Any]]:
    """Return the whole trail."""
    done = audit(gateway, "export")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(gateway: Gateway, action: str) -> list[dict[str, Any]]:
    """Return the records of an action."""
    return [record for record in records(gateway) if record["action"] == action]


async def until(gateway: Gateway, action: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until there are records of an action."""
    async with asyncio.timeout(30):
        while len(found := of(gateway, action)) < count:
            await asyncio.sleep(0.2)
    return found


async def test_what_people_do_is_recorded() -> None:
    """Keys, kernels, sessions, executions by both doors, refusals and the gateway's life are in the trail."""
    with running("--no-keep") as gateway:
        async with gateway.client("alice") as alice, gateway.client("bob") as bob:
            headers = {"X-Request-Id": "mine"}
            async with alice.http.post("/api/kernels", json={}, headers=headers) as answer:
                kernel = (await answer.json())["id"]
            await alice.out(kernel, "print(1)")
            async with alice.channels(kernel) as channels:
                await channels.until_done(await channels.execute("1/0"))
            await bob.json("GET", f"/api/kernels/{kernel}", status=404)
            async with alice.http.put(f"/api/kernels/{kernel}/files/a.txt", data=b"x") as answer:
                assert answer.ok
            await alice.json("DELETE", f"/api/kernels/{kernel}/files/a.txt", status=204)
            await alice.json("POST", f"/api/kernels/{kernel}/interrupt", status=204)
            await alice.json("POST", f"/api/kernels/{kernel}/restart")
            session = await alice.json(
                "POST", "/api/sessions", {"path": "a", "type": "x", "kernel": {"id": kernel}}, status=201
            )
            await alice.json("DELETE", f"/api/sessions/{session['id']}", status=204)
            async with aiohttp.ClientSession(gateway.url) as nobody, nobody.get("/api/kernels") as refused:
                assert refused.status == 401
        gateway.end()
        trail = records(gateway)
        key_id = gateway.key("alice").split("_")[1]

        assert {record["action"] for record in trail} >= {
            *("gateway.start", "gateway.stop", "key.create", "kernel.create", "kernel.interrupt"),
            *("kernel.restart", "session.create", "session.delete", "execution.end", "access.refused"),
            "auth.refused",
        }
        [created] = [record for record in trail if record["action"] == "kernel.create"]
        assert (created["who"], created["key_id"], created["door"]) == ("alice", key_id, "rest")
        assert (created["address"], created["request_id"], created["kernel_id"]) == (
            "127.0.0.1",
            "mine",
            kernel,
        )
        ends = [record for record in trail if record["action"] == "execution.end"]
        assert [(end["door"], end["reason"]) for end in ends] == [("rest", "ok"), ("websocket", "error")]
        assert all(end["code_sha256"] and "code" not in end and end["output_bytes"] > 0 for end in ends)
        files = [(r["action"], r["target"], r["outcome"]) for r in trail if r["action"].startswith("file.")]
        assert files == [("file.write", "a.txt", "ok"), ("file.delete", "a.txt", "ok")]
        [access] = [record for record in trail if record["action"] == "access.refused"]
        assert (access["who"], access["kernel_id"], access["outcome"]) == ("bob", kernel, "refused")
        assert [record["seq"] for record in trail] == list(range(1, len(trail) + 1))
        assert audit(gateway, "verify").returncode == 0


async def work(client: Client, kernel: str, received: list[str]) -> None:
    """Execute by REST until the gateway goes, noting what was answered."""
    number = 0
    with contextlib.suppress(aiohttp.ClientError, AssertionError, OSError):
        while True:
            number += 1
            mark = f"{kernel}-{number}"
            if (await client.out(kernel, f"print({mark!r})")).strip() == mark:
                received.append(mark)


async def talk(client: Client, kernel: str, received: list[str]) -> None:
    """Execute over a WebSocket until the gateway goes, noting what was answered in full."""
    number = 0
    with contextlib.suppress(aiohttp.ClientError, AssertionError, OSError):
        async with client.channels(kernel) as channels:
            while True:
                number += 1
                mark = f"{kernel}-{number}"
                await channels.until_done(await channels.execute(f"print({mark!r})"))
                received.append(mark)


async def test_a_kill_loses_no_record_of_a_received_result() -> None:
    """`kill -9` under load: every result that a client has got has its record, and the chain holds."""
    env = {"CELLBLOCK_AUDIT__KEEP_CODE": "true"}
    with running(env=env) as gateway:
        received: list[str] = []
        for _ in range(3):
            async with gateway.client() as client:
                kernels = [await client.start() for _ in range(2)]
                jobs = [
                    asyncio.create_task(do(client, kernel, received))
                    for do, kernel in zip((work, talk), kernels, strict=True)
                ]
                before = len(received)
                async with asyncio.timeout(60):
                    while len(received) < before + 40:
                        await asyncio.sleep(0.01)
                gateway.end(signal.SIGKILL)
                await asyncio.gather(*jobs)
            verdict = audit(gateway, "verify")
            assert verdict.returncode == 0, verdict.stdout
            gateway.start()
        recorded = {record["code"] for record in of(gateway, "execution.end")}

        assert len(received) >= 120
        assert [mark for mark in received if f"print({mark!r})" not in recorded] == []
        assert len(of(gateway, "kernel.adopt")) >= 2


async def test_tampering_is_found() -> None:
    """An edited record and a cut end are found and named, also after the gateway went on."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            for _ in range(5):
                await client.out(kernel, "print(1)")
        gateway.end()
        assert audit(gateway, "verify").returncode == 0
        [file] = (gateway.state_dir / "gateway" / "audit").glob("*.jsonl")
        whole = file.read_bytes()

        file.write_bytes(whole.replace(b'"who":"alice"', b'"who":"carol"', 1))
        edited = audit(gateway, "verify", "--json")
        assert (edited.returncode, json.loads(edited.stdout)["ok"]) == (1, False)
        assert "was changed" in edited.stdout

        lines = whole.splitlines(True)
        file.write_bytes(b"".join(lines[:-3]))
        cut = audit(gateway, "verify")
        assert cut.returncode == 1
        assert f"Records {len(lines) - 2} to {len(lines)} are missing" in cut.stdout

        gateway.start()
        gateway.end()
        assert f"Records {len(lines) - 2} to {len(lines)} are missing" in audit(gateway, "verify").stdout


async def test_without_a_trail_nothing_new_is_done() -> None:
    """When the files cannot be written, no execution or kernel begins; when they can, all goes on."""
    with running("--no-keep") as gateway:
        directory = gateway.state_dir / "gateway" / "audit"
        async with gateway.client() as client:
            kernel = await client.start()
            aside = directory.with_name("aside")
            directory.rename(aside)
            directory.write_text("in the way")
            execute = f"/api/kernels/{kernel}/execute"
            # the first to notice: it ran, and its result is withheld with its record
            withheld = await client.json("POST", execute, {"code": "1"}, status=503)
            assert withheld["code"] == "audit_unavailable"
            await client.json("POST", execute, {"code": "ran = True"}, status=503)
            await client.json("POST", "/api/kernels", {}, status=503)
            async with client.channels(kernel) as channels:
                await channels.execute("ran = True")
                assert await channels.closing() == 1011

            directory.unlink()
            aside.rename(directory)
            async with asyncio.timeout(30):
                while True:
                    async with client.http.post(execute, json={"code": "1"}) as answer:
                        if answer.status == 200:
                            break
                    await asyncio.sleep(0.1)
            assert await client.out(kernel, "print('ran' in globals())") == "False\n"
        assert audit(gateway, "verify").returncode == 0


async def test_a_flood_of_refusals_is_a_count() -> None:
    """Hundreds of equal refusals are a handful of records whose counts add up."""
    with running("--no-keep") as gateway:
        async with aiohttp.ClientSession(gateway.url) as nobody:
            for _ in range(300):
                async with nobody.get("/api/kernels") as refused:
                    assert refused.status == 401
        gateway.end()
        refusals = of(gateway, "auth.refused")
        counted = sum(record["extra"].get("folded", 1) for record in refusals)

        assert counted == 300
        assert len(refusals) < 100


async def test_tail_and_export() -> None:
    """`tail` shows the last and follows; `export` gives all; neither passes control characters on."""
    with running("--no-keep") as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            await client.json(
                "POST",
                "/api/sessions",
                {"path": "=1+\x1b[2J", "type": "x", "kernel": {"id": kernel}},
                status=201,
            )
            follow = subprocess.Popen(
                gateway.command(
                    "audit", "tail", "-n", "1", "--follow", "--state-dir", str(gateway.state_dir)
                ),
                stdout=subprocess.PIPE,
                cwd="/",
            )
            assert follow.stdout is not None
            first = await asyncio.to_thread(follow.stdout.readline)
            await client.delete(kernel)
            second = await asyncio.to_thread(follow.stdout.readline)
            follow.send_signal(signal.SIGINT)
            follow.stdout.close()
            assert await asyncio.to_thread(follow.wait, 20) in {0, 130}

        assert b"session.create" in first
        assert b"kernel.delete" in second
        last = audit(gateway, "tail", "-n", "2").stdout.splitlines()
        assert ["session.create" in last[0], "kernel.delete" in last[1], len(last)] == [True, True, 2]
        table = audit(gateway, "export", "--csv").stdout
        assert table.splitlines()[0].startswith("action,outcome,who")
        assert "\x1b" not in table + "".join(last)
        assert audit(gateway, "export", "--since", "2020-01-01").stdout == audit(gateway, "export").stdout
        assert audit(gateway, "export", "--since", "nonsense").returncode == 2


def test_without_a_state_nothing_is_made(tmp_path: Any) -> None:
    """Looking at a directory where no gateway was is an error, and makes nothing."""
    tmp_path.chmod(0o755)
    command = [sys.executable, "-m", "gateway.cli", "audit", "verify", "--state-dir", str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))

    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / "state").exists()
