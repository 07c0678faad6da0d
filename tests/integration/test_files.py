"""Files of a kernel's home over REST: what the API writes the kernel reads, and the other way round."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway import Client

if TYPE_CHECKING:
    from tests.gateway import Gateway


def url(kernel: str, path: str) -> str:
    """Return a file's address."""
    return f"/api/kernels/{kernel}/files/{path}"


def archive_url(kernel: str, kind: str, path: str = "") -> str:
    """Return the address of a directory's archive."""
    return f"/api/kernels/{kernel}/files-archive?format={kind}&path={path}"


async def put(client: Client, kernel: str, path: str, data: bytes, **headers: str) -> tuple[int, Any]:
    """Write a file; return the status and the JSON that is answered."""
    async with client.http.put(url(kernel, path), data=io.BytesIO(data), headers=headers) as response:
        return response.status, await response.json()


async def get(client: Client, kernel: str, path: str, **headers: str) -> tuple[int, bytes, Any]:
    """Read a file; return status, body and headers."""
    async with client.http.get(url(kernel, path), headers=headers) as response:
        return response.status, await response.read(), response.headers


async def listed(client: Client, kernel: str, query: str = "") -> list[str]:
    """List the home's paths, but for the dot files that shells and IPython make."""
    answer = await client.json("GET", f"/api/kernels/{kernel}/files{query}")
    return [entry["path"] for entry in answer["files"] if not entry["path"].startswith(".")]


async def test_round_trip(client: Client, kernel: str) -> None:
    """A file that is put is the kernel's own; one that the kernel writes is read back byte for byte."""
    data = bytes(range(256)) * 4000
    status, made = await put(client, kernel, "in/deep/data.bin", data)
    assert (status, made["size"], made["sha256"]) == (201, len(data), hashlib.sha256(data).hexdigest())

    code = """
        import os, hashlib
        data = open("in/deep/data.bin", "rb").read()
        found = os.stat("in/deep/data.bin")
        print(hashlib.sha256(data).hexdigest(), found.st_uid == os.getuid(), oct(found.st_mode & 0o777))
        open("out.bin", "wb").write(data[::-1])
    """
    out = await client.out(kernel, "\n".join(line[8:] for line in code.splitlines()))
    assert out.split() == [made["sha256"], "True", "0o644"]

    status, body, headers = await get(client, kernel, "out.bin")
    assert (status, body) == (200, data[::-1])
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Disposition"].startswith("attachment")
    assert headers["X-Content-Type-Options"] == "nosniff"
    async with client.http.head(url(kernel, "out.bin")) as response:
        assert (response.status, response.content_length) == (200, len(data))
        assert response.headers["ETag"] == headers["ETag"]


async def test_ranges(client: Client, kernel: str) -> None:
    """One range is served as RFC 9110 has it; what the file has not is 416, what is no range is all."""
    await put(client, kernel, "digits", b"0123456789")
    for asked, status, body in (
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=0-9", 200, b"0123456789"),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"),
    ):
        answer = await get(client, kernel, "digits", Range=asked)
        assert answer[:2] == (status, body), asked
    assert (await get(client, kernel, "digits", Range="bytes=2-4"))[2]["Content-Range"] == "bytes 2-4/10"
    assert (await get(client, kernel, "digits", Range="bytes=10-"))[0] == 416

    etag = (await get(client, kernel, "digits"))[2]["ETag"]
    assert (await get(client, kernel, "digits", **{"If-None-Match": etag}))[0] == 304
    fresh = {"Range": "bytes=0-0", "If-Range": etag}
    assert (await get(client, kernel, "digits", **fresh))[0] == 206
    await client.out(kernel, "open('digits', 'a').write('!')")
    assert (await get(client, kernel, "digits", **fresh))[0] == 200
    assert (await get(client, kernel, "digits", **{"If-None-Match": etag}))[0] == 200


async def test_preconditions(client: Client, kernel: str) -> None:
    """A writer who says what is there writes only when that is so; nothing is changed otherwise."""
    status, first = await put(client, kernel, "a", b"one", **{"If-None-Match": "*"})
    assert status == 201
    status, refused = await put(client, kernel, "a", b"two", **{"If-None-Match": "*"})
    assert (status, refused["code"]) == (412, "precondition_failed")
    status, second = await put(client, kernel, "a", b"two", **{"If-Match": first["etag"]})
    assert (status, second["etag"] != first["etag"]) == (200, True)
    assert (await put(client, kernel, "a", b"three", **{"If-Match": first["etag"]}))[0] == 412
    assert (await put(client, kernel, "b", b"three", **{"If-Match": "*"}))[0] == 412

    wrong, right = (hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    assert (await put(client, kernel, "a", b"x", **{"X-Expected-Sha256": wrong}))[0] == 412
    assert (await get(client, kernel, "a"))[1] == b"two"
    assert (await put(client, kernel, "a", b"x", **{"X-Expected-Sha256": right}))[0] == 200
    assert (await put(client, kernel, "a", b"x", **{"X-Expected-Sha256": "abc"}))[0] == 400
    assert (await put(client, kernel, "a", b"x", **{"If-Match": "abc"}))[0] == 400
    assert await listed(client, kernel) == ["a"]


async def test_one_of_many_writers_wins(client: Client, kernel: str) -> None:
    """Of writers with the same expectation exactly one is taken."""
    _, first = await put(client, kernel, "a", b"0")
    answers = await asyncio.gather(
        *(put(client, kernel, "a", b"%d" % n, **{"If-Match": first["etag"]}) for n in range(6))
    )
    assert sorted(status for status, _ in answers) == [200, 412, 412, 412, 412, 412]


async def test_a_mode_outlives_a_rewrite(client: Client, kernel: str) -> None:
    """A program that is written anew stays one."""
    await put(client, kernel, "run.sh", b"echo one")
    await client.out(kernel, "import os; os.chmod('run.sh', 0o755)")
    _, made = await put(client, kernel, "run.sh", b"echo two")

    assert made["executable"] is True


async def test_append_and_edit(client: Client, kernel: str) -> None:
    """Text is added at the end; an edit takes place when it finds what it expects, as often as it expects."""
    path = url(kernel, "notes.txt")
    await client.json("POST", path, {"op": "append", "text": "one\n"})
    await client.json("POST", path, {"op": "append", "text": "two ünd one\n"})
    edit = {"op": "edit", "old": "one", "new": "1"}
    refused = await client.json("POST", path, edit, status=409)
    assert (refused["reason"], "2 times" in refused["message"]) == ("replacements", True)
    await client.json("POST", path, edit | {"expected_replacements": 2})
    assert (await get(client, kernel, "notes.txt"))[1].decode() == "1\ntwo ünd 1\n"
    await client.json("POST", path, edit | {"old": ""}, status=400)
    await client.json("POST", path, {"op": "edit", "old": "1"}, status=400)
    await client.json("POST", path, {"op": "burn"}, status=400)
    await client.json("POST", url(kernel, "none"), edit, status=404)


async def test_directories(client: Client, kernel: str) -> None:
    """Directories are made, listed by level or whole, moved, and removed when empty or when told."""
    await client.json("POST", url(kernel, "a/b/c"), {"op": "mkdir"}, status=201)
    await client.json("POST", url(kernel, "a/b/c"), {"op": "mkdir"}, status=409)
    await put(client, kernel, "a/x y.txt", b"1")
    await put(client, kernel, "a/b/z.txt", b"22")
    assert await listed(client, kernel) == ["a"]
    assert await listed(client, kernel, "?path=a") == ["a/b", "a/x y.txt"]
    whole = await listed(client, kernel, "?path=a&recursive=true")
    assert whole == ["a/b", "a/x y.txt", "a/b/c", "a/b/z.txt"]
    cut = await client.json("GET", f"/api/kernels/{kernel}/files?path=a&limit=1")
    assert (len(cut["files"]), cut["truncated"]) == (1, True)

    await client.json("POST", url(kernel, "a/x%20y.txt"), {"op": "move", "to": "a/b/z.txt"}, status=409)
    moved = {"op": "move", "to": "a/b/z.txt", "replace": True}
    assert (await client.json("POST", url(kernel, "a/x%20y.txt"), moved))["path"] == "a/b/z.txt"
    assert (await get(client, kernel, "a/b/z.txt"))[1] == b"1"
    await client.json("POST", url(kernel, "a"), {"op": "move", "to": "a/b/in-itself"}, status=400)

    await client.json("DELETE", url(kernel, "a"), status=409)
    await client.json("DELETE", url(kernel, "a/b/c"), status=204)
    await client.json("DELETE", url(kernel, "a?recursive=true"), status=204)
    assert await listed(client, kernel) == []
    await client.json("DELETE", url(kernel, "a"), status=404)


async def test_what_is_no_file(client: Client, kernel: str) -> None:
    """A directory is not read or written, what is not there is 404, the home itself is left alone."""
    await client.json("POST", url(kernel, "d"), {"op": "mkdir"}, status=201)
    assert (await get(client, kernel, "d"))[0] == 409
    assert (await put(client, kernel, "d", b"x"))[0] == 409
    assert (await get(client, kernel, "none"))[0] == 404
    assert (await get(client, kernel, "d/none/x"))[0] == 404
    await put(client, kernel, "f", b"x")
    assert (await get(client, kernel, "f/x"))[0] == 404
    assert (await put(client, kernel, "f/x", b"x"))[0] in {404, 409}
    await client.json("DELETE", url(kernel, "%2F"), status=400)
    await client.json("DELETE", url(kernel, "d%2F..?recursive=true"), status=400)


async def test_a_full_home(client: Client, kernel: str) -> None:
    """What does not fit is 507 and leaves the old file as it was, and no room is lost to it."""
    await put(client, kernel, "keep", b"kept")
    model = await client.kernel(kernel)
    home = model["limits"]["home_bytes"]
    await client.out(kernel, f"open('ballast', 'wb').write(bytes({home} - (8 << 20))) and None")
    status, refused = await put(client, kernel, "keep", bytes(16 << 20))
    assert (status, refused["code"]) == (507, "insufficient_storage")
    assert (await get(client, kernel, "keep"))[1] == b"kept"
    assert (await put(client, kernel, "other", bytes(6 << 20)))[0] == 201


async def test_too_large(client: Client, kernel: str) -> None:
    """A body over the limit is 413: at once where it says so, and otherwise when it comes to that."""
    async with client.http.put(
        url(kernel, "a"), data=b"x", headers={"Content-Length": str(1 << 40)}, skip_auto_headers=["Expect"]
    ) as response:
        assert response.status == 413
    assert await listed(client, kernel) == []


async def test_a_dead_kernels_home_is_gone(client: Client, kernel: str) -> None:
    """After a kernel's death its files are refused, and a restart begins with an empty home."""
    await put(client, kernel, "a", b"x")
    await client.run(kernel, "import os; os._exit(3)")
    status, body, _ = await get(client, kernel, "a")
    assert (status, b"kernel_dead" in body) == (409, True)
    await client.json("POST", f"/api/kernels/{kernel}/restart")
    assert (await get(client, kernel, "a"))[0] == 404


async def test_ownership_and_scope(client: Client, kernel: str, gateway: Gateway) -> None:
    """Files of another's kernel do not exist, and a key without the scope touches none."""
    await put(client, kernel, "a", b"x")
    async with gateway.client("bob") as bob, gateway.client("alice", "kernels,execute") as narrow:
        for method in ("GET", "PUT", "DELETE"):
            async with bob.http.request(method, url(kernel, "a")) as response:
                assert response.status == 404
            async with narrow.http.request(method, url(kernel, "a")) as response:
                assert response.status == 403
    assert (await get(client, kernel, "a"))[1] == b"x"


@pytest.mark.parametrize("name", ["ünïcode ☃", "with\nnewline", "semi;colon?#&%", " lead", "-rf", "'\"<b>"])
async def test_odd_names(client: Client, kernel: str, name: str) -> None:
    """Any name that is text goes there and back by its href."""
    await client.out(kernel, f"open({name!r}, 'w').write('x')")
    found = await client.json("GET", f"/api/kernels/{kernel}/files")
    (entry,) = (entry for entry in found["files"] if entry["path"] == name)
    async with client.http.get(url(kernel, entry["href"])) as response:
        assert await response.text() == "x"
    await client.json("DELETE", url(kernel, entry["href"]), status=204)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
async def test_archives(client: Client, kernel: str, kind: str) -> None:
    """A directory comes back from its archive as it was: bytes, empty directories, programs, odd names."""
    code = """if True:
        import os
        os.makedirs('work/empty'); os.makedirs('work/deep/er')
        open('work/ünï☃.txt', 'w').write('snow')
        open('work/deep/er/data.bin', 'wb').write(bytes(range(256)) * 5000)
        open('work/run.sh', 'w').write('echo'); os.chmod('work/run.sh', 0o755)
        open('work/none', 'w')
        os.symlink('/etc/passwd', 'work/link')
        """
    await client.out(kernel, code)
    async with client.http.get(archive_url(kernel, kind, "work")) as response:
        data = await response.read()
        assert (response.status, "work." in response.headers["Content-Disposition"]) == (200, True)
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            assert opened.testzip() is None
            names = {name.rstrip("/") for name in opened.namelist()}
    else:
        with tarfile.open(fileobj=io.BytesIO(data)) as opened:
            names = set(opened.getnames())
    assert names == {"empty", "deep", "deep/er", "deep/er/data.bin", "ünï☃.txt", "run.sh", "none"}

    async with client.http.post(archive_url(kernel, kind, "copy"), data=io.BytesIO(data)) as response:
        assert (response.status, (await response.json())["files"]) == (201, 4)
    check = """if True:
        import subprocess
        print(subprocess.run('rm work/link; diff -r work copy && test -x copy/run.sh && echo same',
              shell=True, capture_output=True, text=True).stdout)
        """
    assert (await client.out(kernel, check)).strip() == "same"


async def test_an_archive_that_does_not_fit_changes_nothing(client: Client) -> None:
    """An archive whose content has no room is refused before the first file is written."""
    small = await client.start(limits={"home_bytes": 8 << 20})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as made:
        for number in range(9):
            info = tarfile.TarInfo(f"part{number}")
            info.size = 1 << 20
            made.addfile(info, io.BytesIO((os.urandom(1 << 10) + bytes(7 << 10)) * 128))
    packed.seek(0)
    async with client.http.post(archive_url(small, "tar.gz"), data=packed) as response:
        assert response.status == 507, await response.text()
    assert await listed(client, small) == []
    await client.delete(small)
