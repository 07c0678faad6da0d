"""Connections over real sockets: bounded in number, heads and time; and TLS that is renewed."""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.auth import COOKIE
from gateway.cli.serve import bind
from gateway.errors import ConfigurationError
from gateway.http.listener import Listener, neighbourhood
from gateway.http.tls import Certificates, load
from gateway.settings import ServerSettings, TlsSettings
from tests.unit.http.conftest import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def hello(request: web.Request) -> web.Response:
    """Answer; a body is read."""
    await request.read()
    return web.Response(text="hello")


class Place:
    """A listener that serves one page."""

    def __init__(self, listener: Listener, port: int) -> None:
        self.listener = listener
        self.port = port
        self.tls: ssl.SSLContext | None = None

    async def dial(self, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection and send something."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        return reader, writer

    async def ask(self, *, tls: ssl.SSLContext | None = None) -> str:
        """Make one request over a connection of its own."""
        scheme = "https" if tls else "http"
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            url = f"{scheme}://localhost:{self.port}/"
            async with session.get(url, ssl=tls or True) as answer:
                return await answer.text()

    @property
    def open(self) -> int:
        """How many connections are counted."""
        return self.listener._guests.total()


@asynccontextmanager
async def serving(certificates: Certificates | None = None, **server: Any) -> AsyncIterator[Place]:
    """Serve on a free port of loopback."""
    app = web.Application()
    app.router.add_route("*", "/", hello)
    runner = web.AppRunner(app, handle_signals=False)
    await runner.setup()
    listening = bind("127.0.0.1", 0)
    assert runner.server is not None
    certificate = certificates.context if certificates else lambda: None
    listener = Listener(listening, runner.server, ServerSettings(**server), certificate)
    task = asyncio.create_task(listener.run())
    try:
        yield Place(listener, listening.getsockname()[1])
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await runner.cleanup()


async def hang_up(*writers: asyncio.StreamWriter) -> None:
    """Close connections."""
    for writer in writers:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def eventually(true: Any) -> None:
    """Wait until something holds, for a moment."""
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


async def test_half_open_connections_do_not_lock_out():
    """With 200 half-open connections, at the bound, a real client has its answer within a second."""
    async with serving(max_connections_per_address=150) as place:
        dialled = [await place.dial(HEAD) for _ in range(200)]
        began = time.monotonic()

        assert await place.ask() == "hello"
        assert time.monotonic() - began < 1
        assert place.open <= 150
        await hang_up(*(writer for _, writer in dialled))
        await eventually(lambda: place.open == 0)


@pytest.mark.parametrize("bound", ["max_connections", "max_connections_per_address"])
async def test_those_who_asked_keep_their_places(bound):
    """At a bound, connections that have made a request stay, and a new one is closed at once."""
    async with serving(**{bound: 3}) as place:
        asked = [await place.dial(HEAD + b"\r\n") for _ in range(3)]
        for reader, _ in asked:
            await reader.readuntil(b"hello")
        fourth, writer = await place.dial(HEAD + b"\r\n")

        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(fourth.read(), 5) == b""
        for reader, each in asked:
            each.write(HEAD + b"\r\n")
            assert await asyncio.wait_for(reader.readuntil(b"hello"), 5)
        await hang_up(writer, *(each for _, each in asked))


async def test_a_trickled_head_ends():
    """A head that comes byte by byte is 408 after the time for heads, however busy its sender is."""
    async with serving(header_timeout_s=0.5) as place:
        reader, writer = await place.dial()
        began = time.monotonic()
        with suppress(ConnectionError):
            for byte in HEAD * 20:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
                if reader.at_eof() or place.open == 0:
                    break
        answer = await asyncio.wait_for(reader.read(), 5)

        assert time.monotonic() - began < 2
        assert answer.startswith(b"HTTP/1.1 408")
        await hang_up(writer)


async def test_a_silent_connection_ends():
    """Who connects and says nothing is let go."""
    async with serving(header_timeout_s=0.2) as place:
        reader, writer = await place.dial()

        assert await asyncio.wait_for(reader.read(), 5) == b""
        await hang_up(writer)


async def test_a_second_head_has_its_time_too():
    """On a connection that is kept alive, a later head that never ends is let go as well."""
    async with serving(header_timeout_s=0.3) as place:
        reader, writer = await place.dial(HEAD + b"\r\n")
        await reader.readuntil(b"hello")
        await asyncio.sleep(0.5)
        writer.write(HEAD)

        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 408")
        await hang_up(writer)


async def test_an_idle_connection_ends():
    """A connection without requests is closed after keepalive_s."""
    async with serving(keepalive_s=0.2) as place:
        reader, writer = await place.dial(HEAD + b"\r\n")
        await reader.readuntil(b"hello")

        assert await asyncio.wait_for(reader.read(), 5) == b""
        await hang_up(writer)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (HEAD + b"X-Long: " + b"a" * 9000 + b"\r\n\r\n", b"431"),
        (HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(500)) + b"\r\n", b"400"),
        (HEAD + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 4000) for n in range(9)), b"431"),
    ],
    ids=["line", "field", "count", "unfinished"],
)
async def test_floods_of_headers_end_quickly(head, status):
    """A line or field that is too long, too many headers, too much of an unfinished head: refused at once."""
    async with serving(header_timeout_s=30) as place:
        reader, writer = await place.dial(head)
        answer = await asyncio.wait_for(reader.read(), 5)

        assert answer.split(b" ")[1] == status
        await hang_up(writer)


async def test_an_endless_head_is_not_kept():
    """A client that never stops sending its head is cut off after a bounded number of bytes."""
    async with serving(header_timeout_s=30) as place:
        reader, writer = await place.dial()
        sent = 0
        with suppress(ConnectionError):
            while sent < 64 << 20:
                writer.write(b"X: " + b"y" * 4000 + b"\r\n" if sent else HEAD)
                sent += 4000
                async with asyncio.timeout(5):
                    await writer.drain()
        assert sent < 16 << 20
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
        await hang_up(writer)
        await eventually(lambda: place.open == 0)


async def test_bodies_and_pipelining_are_untouched():
    """A body that takes longer than a head may, and requests sent in one go, are served."""
    async with serving(header_timeout_s=0.3) as place:
        reader, writer = await place.dial(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        await asyncio.sleep(0.6)
        writer.write(b"cd" + (HEAD + b"\r\n") * 3)
        text = b""
        async with asyncio.timeout(5):
            while text.count(b"hello") < 4:
                text += await reader.read(4096)
        await hang_up(writer)


def test_neighbourhoods():
    """IPv6 clients are counted by their /64, IPv4 ones by address, mapped ones as IPv4."""
    assert neighbourhood("2001:db8:1:2:3::1") == neighbourhood("2001:db8:1:2:ffff::9") == "2001:db8:1:2::"
    assert neighbourhood("::ffff:10.0.0.1") == neighbourhood("10.0.0.1") == "10.0.0.1"
    assert neighbourhood("fe80::1%eth0") == "fe80::"


# -- TLS


class Paper:
    """Certificate files, and clients that trust them."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.cert, self.key = directory / "cert.pem", directory / "key.pem"
        self.client_ca = directory / "client-ca.pem"
        self.issue(self.ca)

    def issue(self, ca: trustme.CA) -> None:
        """Write a new certificate of a CA's."""
        made = ca.issue_cert("localhost", "127.0.0.1")
        self.key.write_bytes(made.private_key_pem.bytes())
        self.key.chmod(0o600)
        self.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))

    def settings(self, **more: Any) -> TlsSettings:
        """Return settings that name the files."""
        return TlsSettings(cert=self.cert, key=self.key, **more)

    def trusting(self, ca: trustme.CA | None = None) -> ssl.SSLContext:
        """Return a client's context that trusts a CA."""
        context = ssl.create_default_context()
        (ca or self.ca).configure_trust(context)
        return context


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    """A CA and a certificate of its."""
    return Paper(tmp_path)


async def test_tls(paper):
    """With a certificate the page is served over TLS 1.2 and 1.3, not over 1.1, and not in clear."""
    async with serving(Certificates(paper.settings())) as place:
        assert await place.ask(tls=paper.trusting()) == "hello"
        with pytest.raises(aiohttp.ClientError):
            await place.ask()
        for version, works in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)):
            only = paper.trusting()
            only.minimum_version = only.maximum_version = version
            assert (await place.ask(tls=only) == "hello") is works
    async with serving(Certificates(paper.settings(min_version="1.3"))) as place:
        old = paper.trusting()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(aiohttp.ClientError):
            await place.ask(tls=old)


async def test_a_new_certificate(paper):
    """New connections meet new files, found or told of; open ones go on; bad files are not taken."""
    certificates = Certificates(paper.settings(check_interval_s=0.05))
    watching = asyncio.create_task(certificates.watch())
    try:
        async with serving(certificates) as place:
            reader, writer = await asyncio.open_connection("localhost", place.port, ssl=paper.trusting())
            other = trustme.CA()
            before = certificates.context()
            paper.issue(other)
            await eventually(lambda: certificates.context() is not before)

            assert await place.ask(tls=paper.trusting(other)) == "hello"
            with pytest.raises(aiohttp.ClientError):
                await place.ask(tls=paper.trusting())
            writer.write(HEAD + b"\r\n")
            assert await asyncio.wait_for(reader.readuntil(b"hello"), 5)
            await hang_up(writer)

            paper.cert.write_text("nonsense")
            await asyncio.sleep(0.2)
            assert await place.ask(tls=paper.trusting(other)) == "hello"
            kept = certificates.context()
            paper.issue(paper.ca)
            certificates.reload()
            await eventually(lambda: certificates.context() is not kept)
            assert await place.ask(tls=paper.trusting()) == "hello"
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def test_client_certificates(paper):
    """With a client CA only those with a certificate of its have an answer."""
    clients, strangers = trustme.CA(), trustme.CA()
    clients.cert_pem.write_to_path(str(paper.client_ca))
    async with serving(Certificates(paper.settings(client_ca=paper.client_ca))) as place:
        for ca, works in ((clients, True), (strangers, False), (None, False)):
            tls = paper.trusting()
            if ca:
                ca.issue_cert("alice@example.org").configure_cert(tls)
            if works:
                assert await place.ask(tls=tls) == "hello"
            else:
                with pytest.raises((aiohttp.ClientError, ConnectionError)):
                    await place.ask(tls=tls)


async def test_handshakes_are_bounded(paper):
    """Who connects to TLS and does not shake hands is let go, and does not lock anybody out."""
    async with serving(Certificates(paper.settings()), max_connections=20, header_timeout_s=0.5) as place:
        dialled = [await place.dial(b"\x16\x03\x01" if n % 2 else b"") for n in range(60)]
        began = time.monotonic()
        assert await place.ask(tls=paper.trusting()) == "hello"
        assert time.monotonic() - began < 1

        await eventually(lambda: place.open == 0)
        await hang_up(*(writer for _, writer in dialled))


@pytest.mark.parametrize("fault", ["missing", "mixed", "open", "passphrase", "garbage"])
def test_bad_files(paper, fault):
    """What is wrong with a certificate is said in a sentence."""
    more: dict[str, Any] = {}
    if fault == "missing":
        paper.key.unlink()
    elif fault == "mixed":
        cert = paper.cert.read_bytes()
        paper.issue(paper.ca)
        paper.cert.write_bytes(cert)
    elif fault == "open":
        paper.key.chmod(0o644)
    elif fault == "garbage":
        paper.client_ca.write_text("nothing")
        more = {"client_ca": paper.client_ca}
    else:
        from cryptography.hazmat.primitives import serialization as form

        key = form.load_pem_private_key(paper.key.read_bytes(), None)
        locked = form.BestAvailableEncryption(b"secret")
        paper.key.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked))

    with pytest.raises(ConfigurationError) as told:
        load(paper.settings(**more))
    assert told.value.message.endswith(".")


def test_settings_of_tls_belong_together(tmp_path):
    """A certificate without its key is an error, and so is a client CA without either."""
    for half in ({"cert": tmp_path / "c"}, {"key": tmp_path / "k"}, {"client_ca": tmp_path / "a"}):
        with pytest.raises(ValueError, match="belong together"):
            TlsSettings(**half)


def test_only_loopback_in_clear():
    """Without TLS or a proxy no other address than loopback's is bound, by whatever name."""
    for host in ("0.0.0.0", "::", "::ffff:0.0.0.0"):
        with pytest.raises(ConfigurationError, match="clear"):
            bind(host, 0)
    for host in ("127.0.0.1", "localhost"):
        bind(host, 0).close()
    bind("0.0.0.0", 0, in_clear=False).close()


async def test_under_tls(paper):
    """HSTS goes with TLS, and a page that came in clear is foreign to a gateway with TLS."""
    async with opened() as door:
        door.app.router.freeze()
        server = TestServer(door.app, scheme="https")
        await server.start_server(ssl=load(paper.settings()))
        tls = paper.trusting()
        async with aiohttp.ClientSession() as session:
            url = server.make_url("/api/me").with_host("localhost")
            own = f"https://localhost:{url.port}"
            by_cookie = {"Cookie": f"{COOKIE}={door.tokens['alice']}"}
            statuses = {}
            for origin in (own, own.replace("https", "http"), "https://evil.example"):
                async with session.get(url, ssl=tls, headers=by_cookie | {"Origin": origin}) as answer:
                    statuses[origin] = answer.status
                    assert answer.headers["Strict-Transport-Security"].startswith("max-age=")
        await server.close()

    assert list(statuses.values()) == [200, 403, 403]
