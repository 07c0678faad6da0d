"""A cell's programs that are links through /etc/alternatives work, though it has not all of those links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.gateway import Client

LOOK = """
import json, os, subprocess
links = {each: os.path.realpath(f"/etc/alternatives/{each}") for each in os.listdir("/etc/alternatives")}
said = subprocess.run(["awk", "BEGIN { print 6 * 7 }"], capture_output=True, text=True).stdout
print(json.dumps([links, said]))
"""


async def test_programs_are_found_through_them(client: Client, kernel: str) -> None:
    """Every link that leads to anything but a manual page is there and leads to the same, and no other is."""
    links, said = json.loads(await client.out(kernel, LOOK))
    system = [each for each in Path("/etc/alternatives").iterdir() if each.is_symlink()]
    wanted = [each for each in system if "man" not in each.readlink().parts]
    assert links == {each.name: str(each.resolve()) for each in wanted}
    assert said == "42\n"
