"""A hostile kernel against whoever reads and writes its home from outside."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from yarl import URL

from tests.gateway import Client
from tests.machine import entries

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.gateway import Gateway

PASSWD = b"root:x:0:"

SWAPPER = """if True:
    import ctypes, os, threading
    libc = ctypes.CDLL(None)
    os.makedirs('d/deep'); open('d/f', 'w').write('mine'); open('d/deep/f', 'w').write('mine')
    os.makedirs('other'); open('other/f', 'w').write('mine')
    os.symlink('/etc', 'link'); os.symlink('/proc/self/root/etc', 'magic')
    open('file', 'w').write('mine'); os.symlink('/etc/passwd', 'passwd')
    swaps, going = 0, True
    def swap():
        global swaps
        while going:
            for one, two in (('d', 'link'), ('file', 'passwd'), ('other', 'magic')):
                libc.renameat2(-100, one.encode(), -100, two.encode(), 2)
            swaps += 1
    thread = threading.Thread(target=swap)
    thread.start()
    """


def url(kernel: str, path: str) -> str:
    """Return a file's address."""
    return f"/api/kernels/{kernel}/files/{path}"


async def test_swaps_while_the_gateway_reads_and_writes(client: Client, kernel: str) -> None:
    """Over 1,000 swaps of directories and files with links, nothing of the host is touched."""
    before = Path("/etc/passwd").read_bytes()
    await client.out(kernel, SWAPPER)
    statuses: dict[str, set[int]] = {}

    async def ask(method: str, path: str, **more: Any) -> None:
        async with client.http.request(method, path, **more) as response:
            body = await response.read()
            statuses.setdefault(f"{method} {path[-12:]}", set()).add(response.status)
            assert PASSWD not in body
            assert response.status < 500

    for _ in range(60):
        await asyncio.gather(
            ask("GET", url(kernel, "d/passwd")),
            ask("GET", url(kernel, "d/f")),
            ask("GET", url(kernel, "file")),
            ask("GET", url(kernel, "other/passwd")),
            ask("PUT", url(kernel, "d/passwd"), data=b"pwned"),
            ask("PUT", url(kernel, "file"), data=b"new"),
            ask("POST", url(kernel, "d/passwd"), json={"op": "append", "text": "pwned"}),
            ask("GET", f"/api/kernels/{kernel}/files?recursive=true"),
        )
        async with client.http.get(f"/api/kernels/{kernel}/files-archive?format=tar.gz") as response:
            packed = await response.read()
            assert PASSWD not in zlib.decompress(packed, wbits=31)
    for _ in range(40):
        await ask("DELETE", url(kernel, "d/deep?recursive=true"))
        await ask("POST", url(kernel, "d/deep"), json={"op": "mkdir"})

    assert int(await client.out(kernel, "going = False; thread.join(); print(swaps)")) >= 1000
    assert Path("/etc/passwd").read_bytes() == before
    assert any(200 in seen for seen in statuses.values())


async def test_links_of_every_kind(client: Client, kernel: str) -> None:
    """Links to the host's files, /proc, devices and themselves are shown as links, and never opened."""
    code = """if True:
        import os
        for name, target in {'p': '/etc/passwd', 'root': '/proc/1/root', 'fd': '/proc/self/fd', 'me': 'me',
                             'dev': '/dev/zero', 'up': '..', 'mem': '/proc/self/mem'}.items():
            os.symlink(target, name)
        open('real', 'w').write('x'); os.link('real', 'hard')
        """
    await client.out(kernel, code)
    for path in ("p", "root/etc/passwd", "fd/0", "me", "dev", "up/x", "mem", "root", "up"):
        for method in ("GET", "PUT", "POST", "DELETE"):
            if method == "DELETE" and "/" not in path:
                continue
            body = {"op": "append", "text": "x"} if method == "POST" else None
            if method == "PUT" and "/" not in path:
                continue
            async with client.http.request(method, url(kernel, path), json=body) as response:
                assert response.status in {400, 404, 409}, (method, path)
    listed = await client.json("GET", f"/api/kernels/{kernel}/files")
    kinds = {entry["path"]: entry["type"] for entry in listed["files"]}
    assert {kinds[name] for name in ("p", "root", "fd", "me", "dev", "up", "mem")} == {"link"}
    assert kinds["hard"] == "file"


async def test_paths_as_bytes_on_the_wire(client: Client, kernel: str, gateway: Gateway) -> None:
    """However a path out of the home is written in the request line, it leads nowhere."""
    host, port = gateway.url.removeprefix("http://").split(":")
    for path in (
        "../../../../../../etc/passwd",
        "..%2f..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
        "%2fetc%2fpasswd",
        "a%00b",
        "..%5c..%5cetc%5cpasswd",
        "%252e%252e/etc/passwd",
        "..;/etc/passwd",
        "%c0%ae%c0%ae/etc/passwd",
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        line = f"GET {url(kernel, path)} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        writer.write(f"{line}Authorization: token {gateway.key()}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.split()[1] in {b"400", b"404"}, (path, answer[:200])
        assert PASSWD not in answer


async def test_sockets_and_leases_keep_nobody_waiting(client: Client, kernel: str) -> None:
    """A unix socket is no file, and a file under a lease is refused rather than waited for."""
    code = """if True:
        import fcntl, os, signal, socket
        s = socket.socket(socket.AF_UNIX); s.bind('sock')
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        f = open('leased', 'w+'); fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        """
    await client.out(kernel, code)
    async with asyncio.timeout(5):
        for path in ("sock", "leased"):
            for method in ("GET", "HEAD"):
                async with client.http.request(method, url(kernel, path)) as response:
                    assert response.status == 409
            await client.json("POST", url(kernel, path), {"op": "append", "text": "x"}, status=409)


async def test_a_file_that_grows_and_shrinks(client: Client, kernel: str) -> None:
    """A reader gets what the file had when it was opened; where that is gone, a broken answer."""
    code = """if True:
        import os, threading
        going = True
        def churn():
            while going:
                with open('f', 'ab') as f: f.write(b'x' * 65536)
                if os.path.getsize('f') > 8 << 20: os.truncate('f', 100)
        open('f', 'wb').write(b'x' * (4 << 20))
        thread = threading.Thread(target=churn); thread.start()
        """
    await client.out(kernel, code)
    whole = 0
    for _ in range(40):
        with contextlib.suppress(aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            async with client.http.get(url(kernel, "f")) as response:
                body = await response.read()
                assert len(body) == response.content_length
                assert body.strip(b"x") == b""
                whole += 1
    await client.out(kernel, "going = False; thread.join()")
    assert whole


async def test_sparse_files_and_many_entries(client: Client, kernel: str, gateway: Gateway) -> None:
    """A huge sparse file is sent in pieces and a huge directory is cut: memory stays bounded."""
    code = """if True:
        import os
        os.truncate(os.open('sparse', os.O_CREAT | os.O_RDWR, 0o600), 200 << 20)
        os.mkdir('many')
        try:
            for n in range(1_000_000): os.close(os.open(f'many/{n}', os.O_CREAT, 0o600))
        except OSError: print(n)
        """
    assert int(await client.out(kernel, code)) > 10_000
    assert gateway.process is not None
    before = resident(gateway.process.pid)
    async with client.http.get(url(kernel, "sparse")) as response:
        size = 0
        async for piece in response.content.iter_chunked(1 << 20):
            size += len(piece)
    assert size == 200 << 20
    listed = await client.json("GET", f"/api/kernels/{kernel}/files?path=many")
    assert (len(listed["files"]), listed["truncated"]) == (10_000, True)
    assert resident(gateway.process.pid) - before < 60 << 20
    async with client.http.get(f"/api/kernels/{kernel}/files-archive?path=many") as response:
        assert response.status == 413
    result = await client.run(kernel, "open('new', 'a').close()", artifacts=True)
    assert result["artifacts"]["truncated"] is True
    await client.json("DELETE", url(kernel, "many?recursive=true"), status=204)


async def test_names_that_hurt(client: Client, kernel: str) -> None:
    """Names of control characters, of no UTF-8, and of markup are carried by JSON and headers."""
    code = """if True:
        for name in (b'\\xff\\xfe', b'a\\r\\nX-Evil: 1', b'<script>', b'"quoted"', b'\\x1b[31m', b'%2e%2e'):
            open(name, 'wb').write(b'content')
        """
    await client.out(kernel, code)
    listed = await client.json("GET", f"/api/kernels/{kernel}/files")
    hrefs = [entry["href"] for entry in listed["files"] if not entry["path"].startswith(".")]
    assert len(hrefs) == 6
    for href in hrefs:
        address = URL(f"{client.http._base_url}".rstrip("/") + url(kernel, href), encoded=True)
        async with client.http.get(address) as response:
            assert (response.status, await response.read()) == (200, b"content"), href
            assert "X-Evil" not in response.headers


def tar(*members: tuple[str, bytes, dict[str, Any]]) -> bytes:
    """Make a tar.gz of members: name, content, and odd fields."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as made:
        for name, content, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            made.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def zipped(*members: tuple[str, bytes, int]) -> bytes:
    """Make a zip of members: name, content, and file type."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content, kind in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o644) << 16
            made.writestr(info, content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def lying_tar() -> bytes:
    """Make a tar whose pax header says that it has a terabyte."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    return zlib.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20), wbits=31)


def tar_of_zeros() -> bytes:
    """Make a tar of one large file of zeros."""
    info = tarfile.TarInfo("zeros")
    info.size = 90 << 20
    return info.tobuf() + bytes(info.size + 1024)


def lying_zip() -> bytes:
    """Make a zip whose file is longer than its header says."""
    made = bytearray(zipped(("f", b"x" * 1000, 0)))
    for at in (made.find(b"PK\3\4") + 22, made.find(b"PK\1\2") + 24):
        struct.pack_into("<L", made, at, 10)
    return bytes(made)


FINE = ("fine", b"x", {})
HOSTILE: dict[str, tuple[str, Callable[[], bytes], int]] = {
    "dots": ("tar.gz", lambda: tar(FINE, ("../evil", b"x", {})), 400),
    "dots within": ("tar.gz", lambda: tar(FINE, ("a/../../evil", b"x", {})), 400),
    "absolute": ("tar.gz", lambda: tar(FINE, ("/tmp/evil", b"x", {})), 400),
    "symlink": ("tar.gz", lambda: tar(FINE, ("l", b"", {"type": b"2", "linkname": "/etc"})), 400),
    "hard link": ("tar.gz", lambda: tar(FINE, ("l", b"", {"type": b"1", "linkname": "fine"})), 400),
    "device": ("tar.gz", lambda: tar(FINE, ("d", b"", {"type": b"3", "devmajor": 1})), 400),
    "fifo": ("tar.gz", lambda: tar(FINE, ("f", b"", {"type": b"6"})), 400),
    "twice": ("tar.gz", lambda: tar(FINE, FINE), 400),
    "file and directory": ("tar.gz", lambda: tar(FINE, ("fine/x", b"x", {})), 400),
    "deep": ("tar.gz", lambda: tar(FINE, ("d/" * 200 + "x", b"x", {})), 400),
    "pax": ("tar.gz", lying_tar, 400),
    "bomb": ("tar.gz", lambda: zlib.compress(tar_of_zeros(), 9, wbits=31), 413),
    "many": ("tar.gz", lambda: tar(*((f"f{n}", b"", {}) for n in range(10_001))), 413),
    "cut": ("tar.gz", lambda: tar(("f", os.urandom(50_000), {}))[:-20_000], 400),
    "garbage": ("tar.gz", lambda: b"garbage" * 100, 400),
    "nothing": ("tar.gz", lambda: b"", 400),
    "zip dots": ("zip", lambda: zipped(("fine", b"x", 0), ("../evil", b"x", 0)), 400),
    "zip absolute": ("zip", lambda: zipped(("/evil", b"x", 0)), 400),
    "zip backslash": ("zip", lambda: zipped(("..\\evil", b"x", 0)), 400),
    "zip symlink": ("zip", lambda: zipped(("fine", b"x", 0), ("l", b"/etc/passwd", 0o120000)), 400),
    "zip bomb": ("zip", lambda: zipped(("z", bytes(90 << 20), 0)), 413),
    "zip many": ("zip", lambda: zipped(*((f"f{n}", b"", 0) for n in range(10_001))), 413),
    "zip lie": ("zip", lying_zip, 400),
    "zip garbage": ("zip", lambda: b"garbage" * 100, 400),
    "zip directory": (
        "zip",
        lambda: b"x" * 9 + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 1 << 31, 0, 0),
        413,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_archives(client: Client, gateway: Gateway, archive_kernel: str, name: str) -> None:
    """An archive that leads out, holds what is no file, or unpacks to too much leaves nothing."""
    kind, make, status = HOSTILE[name]
    data = make()
    assert gateway.process is not None
    before = resident(gateway.process.pid)
    path = f"/api/kernels/{archive_kernel}/files-archive?format={kind}&path=into"
    async with client.http.post(path, data=io.BytesIO(data)) as response:
        answer = json.loads(await response.read())
        assert response.status == status, answer
    listed = await client.json("GET", f"/api/kernels/{archive_kernel}/files")
    assert "into" not in [entry["path"] for entry in listed["files"]]
    assert resident(gateway.process.pid) - before < 60 << 20


@pytest.fixture(scope="module")
async def archive_kernel(gateway: Gateway) -> Any:
    """One kernel for all archives: none of them leaves anything."""
    async with gateway.client() as client:
        kernel = await client.start()
        yield kernel
        await client.delete(kernel)


async def test_no_descriptor_is_left(client: Client, kernel: str, gateway: Gateway) -> None:
    """Clients that leave in the middle, and requests that fail, leave no descriptor open on either side."""
    await client.out(kernel, "open('big', 'wb').write(bytes(30 << 20)) and None")
    assert gateway.process is not None
    pids = [gateway.process.pid, *gateway.warden_pids()]
    await client.json("GET", f"/api/kernels/{kernel}/files")
    before = [entries(Path("/proc") / str(pid) / "fd") for pid in pids]
    for _ in range(10):
        headers = {"Authorization": f"token {gateway.key()}"}
        async with aiohttp.ClientSession(gateway.url, headers=headers) as other:
            response = await other.get(url(kernel, "big"))
            await response.content.read(1000)
            response.close()
            with pytest.raises((TimeoutError, aiohttp.ClientError)):
                async with asyncio.timeout(0.2):
                    await other.put(url(kernel, "new"), data=endless())
        async with client.http.get(url(kernel, "none")) as response:
            assert response.status == 404
    deadline = asyncio.get_running_loop().time() + 10
    while (now := [entries(Path("/proc") / str(pid) / "fd") for pid in pids]) > before:
        assert asyncio.get_running_loop().time() < deadline, (before, now)
        await asyncio.sleep(0.1)
    listed = await client.json("GET", f"/api/kernels/{kernel}/files")
    assert {entry["path"] for entry in listed["files"] if not entry["path"].startswith(".")} == {"big"}


async def endless() -> Any:
    """Yield a body that takes its time."""
    while True:
        yield b"x" * 1000
        await asyncio.sleep(0.05)


def resident(pid: int) -> int:
    """Return a process's resident bytes."""
    return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * 4096
