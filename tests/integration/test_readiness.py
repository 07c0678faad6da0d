"""/readyz: a cell is really had, for all who ask together, at nobody's cost; and without one it says so."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.gateway import Gateway, new_state_dir, running
from tests.lifecycle import cells, eventually
from tests.security import standins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def trials(gateway: Gateway) -> list[dict[str, Any]]:
    """Return the trials that a gateway's audit trail has."""
    files = sorted((gateway.state_dir / "gateway" / "audit").glob("*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [record for record in records if record["action"] == "gateway.trial"]


async def ask(gateway: Gateway, times: int = 1) -> list[tuple[int, dict[str, Any]]]:
    """Ask without a key, as often at the same time as told."""

    async def one(session: aiohttp.ClientSession) -> tuple[int, dict[str, Any]]:
        async with session.get("/readyz") as answer:
            return answer.status, await answer.json()

    async with aiohttp.ClientSession(gateway.url) as session:
        return list(await asyncio.gather(*(one(session) for _ in range(times))))


@pytest.fixture(scope="module")
def full() -> Iterator[Gateway]:
    """A gateway with a place for one kernel, of one that anybody may start in a minute."""
    env = {
        "CELLBLOCK_KERNELS__MAX_KERNELS": "1",
        "CELLBLOCK_QUOTAS__STARTS_PER_MINUTE": "1",
        "CELLBLOCK_QUOTAS__EXECUTIONS_PER_MINUTE": "1",
        "CELLBLOCK_SERVER__READY_CACHE_S": "1",
    }
    with running("--no-keep", env=env) as gateway:
        yield gateway


async def test_hammering_costs_one_cell() -> None:
    """A hundred who ask at once, and again, are answered from one trial, which is the gateway's own act."""
    with running("--no-keep") as gateway:
        answers = await ask(gateway, 100) + await ask(gateway, 100)

        expected = (200, {"status": "ready", "checks": {"audit": "ok", "store": "ok", "cell": "ok"}})
        assert all(answer == expected for answer in answers), answers[0]
        assert await eventually(lambda: len(trials(gateway)) == 1)
        [trial] = trials(gateway)
        assert (trial["door"], trial["outcome"]) == ("gateway", "ok")
        assert trial.get("who") is None
        assert trial["duration_s"] > 0.05, "a kernel was really started"


async def test_a_trial_takes_nobodys_place(full: Gateway) -> None:
    """Where all places and a minute's starts are used up the trial goes on, unseen, and refuses nobody."""
    async with full.client("root", "admin") as client:
        kernel_id = await client.start()

        asking = asyncio.create_task(ask(full))
        seen = set()
        while not asking.done():
            seen |= {kernel["id"] for kernel in await client.json("GET", "/api/kernels")}
            await asyncio.sleep(0.02)

        assert (await asking)[0][0] == 200
        assert seen == {kernel_id}
        assert await client.out(kernel_id, "print(1)") == "1\n"
        await asyncio.sleep(1.1)
        assert (await ask(full))[0][0] == 200
        assert await eventually(lambda: len(trials(full)) >= 2)
        # the next start is refused for the minute's sake, not for a place that a trial took
        await client.delete(kernel_id)
        refused = await client.json("POST", "/api/kernels", {}, status=429)
        assert refused["reason"] == "starts_per_minute"


async def test_nothing_of_a_trial_is_left(full: Gateway) -> None:
    """When the answer is there the trial's cell is gone, with every process of it."""
    await asyncio.sleep(1.1)
    assert (await ask(full))[0][0] == 200
    async with full.client("root", "admin") as client:
        for kernel in await client.json("GET", "/api/kernels"):
            await client.delete(kernel["id"])

    assert await eventually(lambda: not cells(full)), cells(full)


@pytest.fixture
def firejail() -> Iterator[Path]:
    """Where a stand-in for firejail may lie."""
    directory = new_state_dir()
    yield directory / "bin" / "firejail"
    shutil.rmtree(directory)


@pytest.mark.parametrize("text", [None, standins.RUNS_UNCONFINED], ids=["missing", "fails open"])
async def test_without_cells_it_is_not_ready(firejail: Path, text: str | None) -> None:
    """Without firejail, and with one that confines nothing: 503, no details, and nothing runs."""
    if text is not None:
        standins.install(firejail, text)
    env = {"CELLBLOCK_SANDBOX__FIREJAIL": str(firejail), "CELLBLOCK_SANDBOX__START_TIMEOUT_S": "3"}
    with running("--no-keep", env=env) as gateway:
        answers = await ask(gateway, 20) + await ask(gateway, 20)

        assert {status for status, _ in answers} == {503}
        assert {body["code"] for _, body in answers} == {"sandbox_unavailable"}
        assert all(str(firejail) not in json.dumps(body) for _, body in answers)
        assert await eventually(lambda: [trial["outcome"] for trial in trials(gateway)] == ["error"])
        assert not cells(gateway)
        async with aiohttp.ClientSession(gateway.url) as session, session.get("/healthz") as alive:
            assert alive.status == 200
        said = [line for line in gateway.log() if line["event"] == "not_ready"]
        assert [line["code"] for line in said] == ["sandbox_unavailable"]
        assert any(line.get("error") for line in said), "the log says why"
