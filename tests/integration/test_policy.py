"""A profile's code policy holds at every door, is in the audit trail, and lets pass what it cannot read."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from gateway.kernels.specs import shipped_dir
from tests.gateway import Gateway, new_state_dir, running, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

POLICY = """
description = "The default with a policy that is tried here."
extends = "default"

[policy]
action = "{action}"
deny_imports = ["socket"]
deny_calls = ["os.system"]
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway with a kernelspec for each action."""
    state_dir = new_state_dir()
    for action in ("log", "warn", "reject"):
        profile = state_dir / "profiles" / f"{action}.toml"
        profile.parent.mkdir(exist_ok=True)
        profile.write_text(POLICY.format(action=action))
        spec = state_dir / "specs" / action
        shutil.copytree(shipped_dir() / "python3", spec)
        facts = json.loads((spec / "kernel.json").read_text())
        facts["metadata"]["cellblock"]["profile"] = action
        (spec / "kernel.json").write_text(json.dumps(facts))
    env = {
        "CELLBLOCK_SANDBOX__PROFILE_DIRS": json.dumps([str(state_dir / "profiles")]),
        "CELLBLOCK_KERNELS__SPEC_DIRS": json.dumps([str(state_dir / "specs")]),
    }
    with running("--no-keep", env=env, state_dir=state_dir) as gateway:
        yield gateway


def policy_records(gateway: Gateway, kernel: str) -> list[dict[str, object]]:
    """Return what the trail has of a kernel's policy."""
    command = gateway.command("audit", "export", "--state-dir", str(gateway.state_dir))
    lines = subprocess.run(command, capture_output=True, check=True, cwd="/").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    return [r for r in records if r["action"].startswith("policy.") and r.get("kernel_id") == kernel]


async def test_reject(gateway: Gateway) -> None:
    """A rejected cell is answered as one that raises, at both doors, and has not run; the kernel lives on."""
    async with gateway.client() as client:
        kernel = await client.start("reject")
        result = await client.run(kernel, "ran = 1\nimport socket")
        assert (result["status"], result["error"]["ename"]) == ("error", "PolicyRefused")
        assert "line 2: import socket" in result["error"]["evalue"]

        async with client.channels(kernel) as channels:
            messages = await channels.until_done(
                await channels.execute("ran = 1\nimport os; os.system('id')")
            )
            assert [message.msg_type for message in messages if message.msg_type == "error"] == ["error"]
            assert any(b"PolicyRefused" in m.content for m in messages if m.msg_type == "execute_reply")
            done = await channels.until_done(await channels.execute("print('ran' in globals())"))
            assert text_of(done) == "False\n"

        assert (await client.run(kernel, "!echo import socket"))["status"] == "ok"
        assert (await client.run(kernel, "import socket("))["error"]["ename"] == "SyntaxError"
        model = await client.kernel(kernel)
        assert (model["execution_state"], model["executions"]) == ("idle", 3)

    refused = policy_records(gateway, kernel)
    assert [(r["action"], r["outcome"], r["door"], r["who"]) for r in refused] == [
        ("policy.refused", "refused", "rest", "alice"),
        ("policy.refused", "refused", "websocket", "alice"),
    ]
    assert refused[0]["extra"] == {"findings": "line 2: import socket"}


async def test_warn(gateway: Gateway) -> None:
    """A cell that is warned of runs, with a line on stderr before its output."""
    async with gateway.client() as client:
        kernel = await client.start("warn")
        result = await client.run(kernel, "import socket\nprint('ran')")

    assert (result["status"], result["stdout"]) == ("ok", "ran\n")
    assert "advises against: line 1: import socket" in result["stderr"]
    assert [record["action"] for record in policy_records(gateway, kernel)] == ["policy.noted"]


async def test_log(gateway: Gateway) -> None:
    """A cell that is only logged runs as if there were no policy."""
    async with gateway.client() as client:
        kernel = await client.start("log")
        result = await client.run(kernel, "import socket\nprint('ran')")

    assert (result["status"], result["stdout"], result["stderr"]) == ("ok", "ran\n", "")
    assert [record["action"] for record in policy_records(gateway, kernel)] == ["policy.noted"]
