"""What a cell writes is bounded in bytes and in files, wherever it can write."""

from __future__ import annotations

import pytest

FILL = """
import os
place, written = {place!r}, 0
try:
    for number in range(4096):
        with open(f"{{place}}/fill{{number}}", "wb") as file:
            file.write(bytes(1 << 20))
            written += 1
except OSError as error:
    print(error.strerror, written)
"""
FILES = """
import os
place, made = {place!r}, 0
os.mkdir(f"{{place}}/many")
try:
    for number in range(200_000):
        os.close(os.open(f"{{place}}/many/{{number}}", os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError as error:
    print(error.strerror, made)
"""
PLACES = [("/tmp", "tmp_bytes"), ("/dev/shm", "shm_bytes"), ("{home}", "home_bytes")]


@pytest.mark.parametrize(("place", "limit"), PLACES)
async def test_bytes_are_bounded(client, place: str, limit: str) -> None:
    """Home, /tmp and /dev/shm hold what the limits say, then there is no space left."""
    kernel = await client.start(limits={limit: 32 << 20})
    try:
        home = (await client.out(kernel, "import os; print(os.path.expanduser('~'))")).strip()
        said, written = (await client.out(kernel, FILL.format(place=place.format(home=home)))).rsplit(" ", 1)
    finally:
        await client.delete(kernel)

    assert said == "No space left on device"
    assert 20 < int(written) <= 32


@pytest.mark.parametrize(("place", "limit"), PLACES)
async def test_files_are_bounded(client, place: str, limit: str) -> None:
    """The number of files is bounded too: an inode is memory of the machine's."""
    kernel = await client.start(limits={"home_inodes": 2000})
    try:
        home = (await client.out(kernel, "import os; print(os.path.expanduser('~'))")).strip()
        said, made = (await client.out(kernel, FILES.format(place=place.format(home=home)))).rsplit(" ", 1)
    finally:
        await client.delete(kernel)

    assert said == "No space left on device"
    assert 1000 < int(made) <= 2000
