"""E2B's SDKs as programs: each is pointed at a gateway by its own variables, and answers in JSON."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.agents import CLIENTS, PYTHON

if TYPE_CHECKING:
    from tests.gateway import Gateway

JS = CLIENTS / "js"
PROGRAMS = {
    "sync": [str(PYTHON), str(CLIENTS / "run_e2b.py")],
    "async": [str(PYTHON), str(CLIENTS / "run_e2b.py")],
    "js": ["/usr/bin/node", str(JS / "run_e2b.mjs")],
}


def environment(gateway: Gateway, principal: str, home: str) -> dict[str, str]:
    """Return all that a program of E2B's is told of a gateway."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "LANG": "C.UTF-8",
        "PYTHONNOUSERSITE": "1",
        "E2B_API_URL": gateway.url,
        "E2B_SANDBOX_URL": gateway.url,
        "E2B_API_KEY": gateway.key(principal),
    }


async def run(
    flavour: str,
    gateway: Gateway,
    *scenarios: str,
    principal: str = "alice",
    within_s: float = 110.0,
    **job: Any,
) -> Any:
    """Let an SDK go through scenarios and return the outcome of each by its name."""
    order = json.dumps({"flavour": flavour, "scenarios": scenarios, **job})
    with tempfile.TemporaryDirectory() as home:
        process = await asyncio.create_subprocess_exec(
            *PROGRAMS[flavour],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(gateway, principal, home),
            cwd=Path(home) if flavour != "js" else JS,
        )
        try:
            async with asyncio.timeout(within_s):
                out, err = await process.communicate(order.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, err.decode()[-3000:]
    outcome = json.loads(out.splitlines()[-1])
    for name in scenarios:
        assert not isinstance(outcome[name].get("failed"), str), f"{name}: {outcome[name]['failed']}"
    return outcome
