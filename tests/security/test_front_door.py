"""The front door of a real gateway: TLS, tokens, quotas, floods of connections, and fairness."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import signal
import ssl
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import trustme

from gateway.privilege import service_user
from gateway.protocol.messages import content
from tests.gateway import COMMAND, Client, Gateway, running
from tests.issuer import AUDIENCE, Issuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@asynccontextmanager
async def speaking(gateway: Gateway, token: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    """Give a client with any token."""
    headers = {"Authorization": f"Bearer {token}"}
    connector = aiohttp.TCPConnector(ssl=tls or True)
    async with aiohttp.ClientSession(gateway.url, headers=headers, connector=connector) as session:
        yield Client(session)


async def refused(client: Client, method: str, path: str, body: Any = None) -> tuple[str, Any]:
    """Make a request that must be 429; return the reason and the headers."""
    async with client.http.request(method, path, json=body) as answer:
        told = await answer.json()
        assert answer.status == 429, told
        return told["reason"], answer.headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_no_keys_in_clear(host):
    """A gateway that would send keys over a network in clear does not start, and says what to do."""
    command = [COMMAND, "serve", "--host", host, "--port", "0", "--state-dir", "/var/tmp/cellblock-never"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "in clear" in done.stderr
    assert "--behind-proxy" in done.stderr
    assert not Path("/var/tmp/cellblock-never").exists()


# -- TLS


@pytest.fixture
def papers() -> Iterator[Path]:
    """A directory that the service user can read."""
    with tempfile.TemporaryDirectory(prefix="cellblock-test-", dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def issue(ca: trustme.CA, papers: Path) -> None:
    """Write a certificate, its key for the service user's eyes only."""
    made = ca.issue_cert("localhost", "127.0.0.1")
    (papers / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key = papers / "key.pem"
    key.write_bytes(made.private_key_pem.bytes())
    key.chmod(0o600)
    if os.geteuid() == 0:
        user: pwd.struct_passwd = service_user("cellblock")
        os.chown(key, user.pw_uid, user.pw_gid)


async def test_tls_and_a_new_certificate(papers):
    """Everything works over TLS, and SIGHUP brings a new certificate under a kernel's open socket."""
    ca, next_ca = trustme.CA(), trustme.CA()
    issue(ca, papers)
    old, new = ssl.create_default_context(), ssl.create_default_context()
    ca.configure_trust(old)
    next_ca.configure_trust(new)
    env = {
        "CELLBLOCK_SERVER__TLS__CERT": str(papers / "cert.pem"),
        "CELLBLOCK_SERVER__TLS__KEY": str(papers / "key.pem"),
        "CELLBLOCK_SERVER__TLS__CHECK_INTERVAL_S": "3600",
    }
    with running("--no-keep", env=env) as gateway:
        assert gateway.url.startswith("https://")
        async with speaking(gateway, gateway.key(), old) as client:
            kernel = await client.start()
            async with client.http.get("/api/status") as answer:
                assert answer.headers["Strict-Transport-Security"].startswith("max-age=")
            async with client.channels(kernel) as channels:
                issue(next_ca, papers)
                assert gateway.process is not None
                gateway.process.send_signal(signal.SIGHUP)
                async with speaking(gateway, gateway.key(), new) as renewed, asyncio.timeout(10):
                    while True:
                        try:
                            await renewed.kernel(kernel)
                            break
                        except aiohttp.ClientConnectorCertificateError:
                            await asyncio.sleep(0.05)
                done = await channels.until_done(await channels.execute("1 + 1"))

        assert any(message.msg_type == "execute_result" for message in done)


# -- tokens of an issuer


async def test_tokens_of_an_issuer():
    """A token's principal is a tenant of its own, apart from a key's; its sockets end with it."""
    issuer = Issuer()
    async with issuer.server:
        env = {
            "CELLBLOCK_AUTH__OIDC__ISSUER": issuer.url,
            "CELLBLOCK_AUTH__OIDC__AUDIENCE": AUDIENCE,
            "CELLBLOCK_AUTH__OIDC__LEEWAY_S": "0",
        }
        with running("--no-keep", env=env) as gateway:
            brief = issuer.token(exp=int(time.time()) + 8)
            async with speaking(gateway, issuer.token()) as long, speaking(gateway, brief) as client:
                assert (await client.json("GET", "/api/me"))["identity"]["username"] == "jwt.alice"
                kernel = await long.start()
                async with client.channels(kernel) as channels:
                    await channels.until_done(await channels.execute("1"))
                    assert await channels.closing(timeout=12) == 1008
                await client.json("GET", "/api/kernels", status=401)
                assert await long.out(kernel, "print(2)") == "2\n"

            strangers = {
                gateway.key("alice"): 404,
                issuer.token(sub="mallory"): 404,
                issuer.token(scope="openid"): 403,
                issuer.token(aud="another"): 401,
                issuer.token(exp=int(time.time()) - 60): 401,
                issuer.token()[:-10] + "AAAAAAAAAA": 401,
                "x.y.z": 401,
            }
            for token, status in strangers.items():
                async with speaking(gateway, token) as stranger:
                    await stranger.json("GET", f"/api/kernels/{kernel}", status=status)


# -- quotas


async def test_quotas_hold_at_every_door():
    """Parallel executions by REST and WebSocket pass one gate, exactly; refusals say when to come again."""
    env = {
        "CELLBLOCK_QUOTAS__EXECUTIONS_PER_MINUTE": "12",
        "CELLBLOCK_QUOTAS__STARTS_PER_MINUTE": "3",
        "CELLBLOCK_QUOTAS__PRINCIPALS": json.dumps({"bob": {"executions_per_minute": "unlimited"}}),
    }
    with running("--no-keep", env=env) as gateway:
        async with gateway.client() as client, gateway.client("bob") as bob:
            first, second = await asyncio.gather(client.start(), client.start())
            ran = 0

            async def rest(kernel: str) -> None:
                nonlocal ran
                async with client.http.post(f"/api/kernels/{kernel}/execute", json={"code": "1"}) as answer:
                    ran += answer.status == 200
                    if answer.status == 429:
                        assert answer.headers["X-RateLimit-Limit"] == "12"
                        assert 0 < int(answer.headers["Retry-After"]) <= 60

            async with client.channels(first) as channels:
                asked = [await channels.execute("1", stop_on_error=False) for _ in range(10)]
                await asyncio.gather(*(rest(kernel) for kernel in [first, second] * 5))
                for msg_id in asked:
                    done = await channels.until_done(msg_id)
                    reply = next(message for message in done if message.msg_type == "execute_reply")
                    ran += content(reply)["status"] == "ok"
            assert ran == 12

            await client.start()
            reason, headers = await refused(client, "POST", f"/api/kernels/{first}/restart")
            assert reason == "starts_per_minute"
            assert int(headers["Retry-After"]) <= 60
            theirs = await bob.start()
            for _ in range(15):
                await bob.out(theirs, "print(1)")


async def test_a_days_cpu_is_kept_and_enforced():
    """Past a day's CPU time a loop is ended, nothing starts, and the next gateway still knows it."""
    env = {"CELLBLOCK_QUOTAS__CPU_S_PER_DAY": "4"}
    with running("--no-keep", env=env) as gateway:
        async with gateway.client() as client, gateway.client("bob") as bob:
            kernel, theirs = await client.start(), await bob.start()
            began = time.monotonic()
            stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
            async with client.http.post(
                f"/api/kernels/{kernel}/execute", json={"code": stubborn, "timeout_s": 100}
            ) as answer:
                ended = await answer.json()
            assert ended["status"] in {"dead", "interrupted"}, ended
            assert time.monotonic() - began < 40
            await client.json("GET", f"/api/kernels/{kernel}", status=404)
            assert (await refused(client, "POST", "/api/kernels"))[0] == "cpu_s_per_day"
            assert await bob.out(theirs, "print(1)") == "1\n"
        gateway.end()
        gateway.start()
        async with gateway.client() as client, gateway.client("bob") as bob:
            reason, headers = await refused(client, "POST", "/api/kernels")
            assert reason == "cpu_s_per_day"
            assert 0 < int(headers["Retry-After"]) <= 86_400
            await bob.delete(await bob.start())


async def test_a_death_makes_room():
    """A kernel that dies at work gives its owner's place back."""
    with running("--no-keep", env={"CELLBLOCK_QUOTAS__CONCURRENT_EXECUTIONS": "1"}) as gateway:
        async with gateway.client() as client:
            first, second = await asyncio.gather(client.start(), client.start())
            looping = asyncio.create_task(client.run(first, "import time; time.sleep(60)"))
            async with asyncio.timeout(10):
                while (await client.kernel(first))["execution_state"] != "busy":
                    await asyncio.sleep(0.05)
            path = f"/api/kernels/{second}/execute"
            assert (await refused(client, "POST", path, {"code": "1"}))[0] == "concurrent_executions"

            for pid in gateway.kernel_pids()[:1]:
                os.kill(pid, signal.SIGKILL)
            for pid in gateway.kernel_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert (await looping)["status"] in {"dead", "error"}
            await client.json("POST", f"/api/kernels/{second}/restart")
            assert await client.out(second, "print(1)") == "1\n"


# -- floods and fairness


async def test_half_open_connections():
    """200 connections with half a head, and 100 with none, keep nobody from an answer within a second."""
    with running("--no-keep", env={"CELLBLOCK_SERVER__MAX_CONNECTIONS_PER_ADDRESS": "150"}) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        async with gateway.client() as client:
            await client.json("GET", "/api/status")
        dialled = [await asyncio.open_connection(host, int(port)) for _ in range(300)]
        for _, writer in dialled[:200]:
            writer.write(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        await asyncio.sleep(0.2)

        for _ in range(3):
            began = time.monotonic()
            async with gateway.client() as client:
                await client.json("GET", "/api/status")
            assert time.monotonic() - began < 1
        for _, writer in dialled:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in dialled), return_exceptions=True)


async def test_one_tenants_load_leaves_the_others_their_turn():
    """While alice starts twenty kernels at once and loops in them, bob has his kernel and his results."""
    with running("--no-keep") as gateway:
        async with gateway.client() as alice, gateway.client("bob") as bob:
            # his key is made, and the warden warm, before the clock runs
            await bob.delete(await bob.start())
            starts = [asyncio.create_task(alice.start()) for _ in range(20)]
            await asyncio.sleep(0.2)
            began = time.monotonic()
            kernel = await bob.start()
            until_ready = time.monotonic() - began
            waiting = sum(not start.done() for start in starts)

            loops = [
                asyncio.create_task(
                    alice.run(each, "import time\nt = time.time()\nwhile time.time() - t < 15: pass")
                )
                for each in await asyncio.gather(*starts)
            ]
            await asyncio.sleep(1)
            slowest = 0.0
            for _ in range(5):
                began = time.monotonic()
                assert await bob.out(kernel, "print(1)") == "1\n"
                slowest = max(slowest, time.monotonic() - began)
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

        # he went before most of hers, though all of hers had asked before him
        assert waiting >= 5, (until_ready, waiting)
        assert until_ready < 20
        assert slowest < 5
