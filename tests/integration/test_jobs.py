"""Executions as resources: waited for, streamed, polled, cancelled, kept, and lost with a name."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.conftest import ROOM
from tests.gateway import running
from tests.lifecycle import until_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Client

SLOW = "import time\nfor i in range(200):\n    print(i, flush=True)\n    time.sleep(0.1)"


async def begin(client: Client, code: str, **more: Any) -> str:
    """Begin a job and return its id."""
    job = await client.json("POST", "/api/executions", {"code": code, "mode": "job", **more}, status=202)
    return str(job["id"])


async def ended(client: Client, job_id: str, within_s: float = 20.0) -> dict[str, Any]:
    """Return a job once it has ended."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        job: dict[str, Any] = await client.json("GET", f"/api/executions/{job_id}?wait_s=2")
        if job["ended_at"] is not None:
            return job
        assert asyncio.get_running_loop().time() < deadline, job


async def events_of(client: Client, path: str, accept: str, body: Any = None) -> list[dict[str, Any]]:
    """Read a stream to its end and return its events."""
    method = "GET" if body is None else "POST"
    async with client.http.request(method, path, json=body, headers={"Accept": accept}) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == accept
        text = await response.text()
    if accept == "application/x-ndjson":
        return [json.loads(line) for line in text.splitlines()]
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    found = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        event = json.loads(fields["data"])
        assert (fields["id"], fields["event"]) == (str(event["seq"]), event["type"])
        found.append(event)
    return found


def texts(events: list[dict[str, Any]], kind: str = "stdout") -> str:
    """Join the texts of one kind of event."""
    return "".join(event["text"] for event in events if event["type"] == kind)


async def test_one_shot(client: Client) -> None:
    """Without a kernel one is started for it and ended after it; the result has everything."""
    before = {model["id"] for model in await client.json("GET", "/api/kernels")}
    job = await client.json("POST", "/api/executions", {"code": "print('a')\nprint('b')\n6 * 7"})

    assert (job["status"], job["reason"], job["failure"]) == ("ok", None, None)
    assert job["result"]["stdout"] == "a\nb\n"
    assert job["result"]["outputs"][-1]["data"] == {"text/plain": "42"}
    assert job["result"]["usage"]["wall_s"] > 0
    assert job["result"]["usage"]["cpu_s"] > 0
    assert job["kernel_id"] not in before
    async with asyncio.timeout(5):
        while job["kernel_id"] in {model["id"] for model in await client.json("GET", "/api/kernels")}:
            await asyncio.sleep(0.05)


async def test_in_a_kernel(client: Client, kernel: str) -> None:
    """In a kernel of one's own, state stays; the job is kept and listed."""
    await client.json("POST", "/api/executions", {"code": "x = 41", "kernel_id": kernel})
    job = await client.json("POST", "/api/executions", {"code": "x + 1", "kernel_id": kernel})

    assert job["result"]["outputs"][0]["data"]["text/plain"] == "42"
    again = await client.json("GET", f"/api/executions/{job['id']}")
    assert again == job
    listed = await client.json("GET", "/api/executions")
    assert listed[0]["id"] == job["id"]
    assert (listed[0]["status"], listed[0]["kernel_id"]) == ("ok", kernel)


async def test_an_error_has_two_faces(client: Client, kernel: str) -> None:
    """An exception is told in full, and clean: no colours, no frames but the code's own."""
    code = "import json\njson.loads('{')"
    job = await client.json("POST", "/api/executions", {"code": code, "kernel_id": kernel})

    assert job["status"] == "error"
    assert job["result"]["error"]["ename"] == "JSONDecodeError"
    assert any("decoder.py" in line for line in job["result"]["error"]["traceback"])
    assert "\x1b" not in job["result"]["clean"]
    assert "decoder.py" not in job["result"]["clean"]
    assert "json.loads('{')" in job["result"]["clean"]
    assert job["result"]["clean"].splitlines()[-1].startswith("JSONDecodeError: Expecting property name")


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_streams(client: Client, kernel: str, accept: str) -> None:
    """Events come in order and end; the same stream can be read again from any cursor."""
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\ndisplay({'a': 1})\n'last'"
    body = {"code": code, "kernel_id": kernel, "mode": "stream"}
    events = await events_of(client, "/api/executions", accept, body)

    kinds = [event["type"] for event in events]
    assert kinds == ["started", "stdout", "stderr", "display", "result", "task_ended", "ended"]
    assert [event["seq"] for event in events] == list(range(1, 8))
    assert (events[0]["kernel_id"], events[-1]["status"]) == (kernel, "ok")
    job_id = (await client.json("GET", "/api/executions"))[0]["id"]
    again = await events_of(client, f"/api/executions/{job_id}/events?cursor=3", accept)
    assert again == events[3:]


async def test_events_come_as_they_happen(client: Client, kernel: str) -> None:
    """What is printed is streamed at once, and not at the end."""
    body = {"code": SLOW, "kernel_id": kernel, "mode": "stream", "timeout_s": 2}
    loop = asyncio.get_running_loop()
    async with client.http.post("/api/executions", json=body) as response:
        began, first, last = loop.time(), 0.0, b""
        async for line in response.content:
            if line.startswith(b"data:") and b"stdout" in line and not first:
                first = loop.time() - began
            last = line if line.strip() else last

    assert 0 < first < 1
    assert json.loads(last.removeprefix(b"data: "))["status"] == "timeout"


async def test_quiet_streams_say_so() -> None:
    """While nothing happens the connection is kept open by lines that mean nothing."""
    with running("--no-keep", env=ROOM | {"CELLBLOCK_EXECUTIONS__KEEPALIVE_S": "0.2"}) as gateway:
        async with gateway.client() as client:
            body = {"code": "import time; time.sleep(1)", "mode": "stream"}
            for accept, beat in (
                ("text/event-stream", ": keepalive\n\n"),
                ("application/x-ndjson", '{"type":"keepalive"}\n'),
            ):
                async with client.http.post(
                    "/api/executions", json=body, headers={"Accept": accept}
                ) as response:
                    text = await response.text()
                assert 2 <= text.count(beat) <= 8


@pytest.mark.parametrize("mode", ["wait", "stream"])
async def test_who_goes_away_is_not_waited_for(client: Client, kernel: str, mode: str) -> None:
    """A caller that closes its connection has its execution interrupted; what came is kept."""
    body = {"code": SLOW, "kernel_id": kernel, "mode": mode}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0), client.http.post("/api/executions", json=body) as response:
            await response.read()
    await until_state(client, kernel, "idle")

    job_id = (await client.json("GET", "/api/executions"))[0]["id"]
    job = await ended(client, job_id)
    assert (job["status"], job["reason"]) == ("interrupted", "disconnected")
    assert job["result"]["stdout"].startswith("0\n1\n")


async def test_a_job_goes_on(client: Client, kernel: str) -> None:
    """A job does not need anybody; a reader of its events that leaves does not end it."""
    job_id = await begin(client, SLOW.replace("200", "12"), kernel_id=kernel)
    with pytest.raises(TimeoutError):
        async with (
            asyncio.timeout(0.5),
            client.http.get(f"/api/executions/{job_id}/events") as response,
        ):
            await response.read()

    job = await ended(client, job_id)
    assert job["status"] == "ok"
    assert job["result"]["stdout"] == "".join(f"{i}\n" for i in range(12))


async def test_polling_with_a_cursor(client: Client, kernel: str) -> None:
    """Whoever asks with a cursor gets what is new, and waits for it no longer than asked."""
    job_id = await begin(client, SLOW.replace("200", "8"), kernel_id=kernel)
    cursor, events = 0, []
    while True:
        job = await client.json("GET", f"/api/executions/{job_id}?cursor={cursor}&wait_s=5")
        events += job["events"]
        cursor = job["cursor"]
        if events and events[-1]["type"] == "ended":
            break

    assert texts(events) == "".join(f"{i}\n" for i in range(8))
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


async def test_cancel_is_real(client: Client, kernel: str) -> None:
    """A running job is ended though it swallows interrupts; one that waits behind it never runs."""
    stubborn = "while True:\n    try:\n        while True: pass\n    except KeyboardInterrupt: pass"
    first = await begin(client, stubborn, kernel_id=kernel)
    await until_state(client, kernel, "busy")
    second = await begin(client, "open('ran', 'w')", kernel_id=kernel)
    await client.json("DELETE", f"/api/executions/{second}", status=204)
    await client.json("DELETE", f"/api/executions/{first}", status=204)

    assert (await ended(client, first))["status"] == "cancelled"
    assert (await ended(client, second))["status"] == "cancelled"
    assert await client.out(kernel, "import os; print(os.path.exists('ran'))") == "False\n"


async def test_cancelling_what_is_paused(client: Client, kernel: str) -> None:
    """A paused job can be cancelled: it need not be resumed first."""
    job_id = await begin(client, "while True: pass", kernel_id=kernel)
    await until_state(client, kernel, "busy")
    await client.json("POST", f"/api/kernels/{kernel}/pause")
    await client.json("DELETE", f"/api/executions/{job_id}", status=204)

    assert (await ended(client, job_id))["status"] == "cancelled"
    assert (await client.kernel(kernel))["paused"] is False


async def test_an_ended_job_is_forgotten_by_delete(client: Client, kernel: str) -> None:
    """DELETE of what has ended removes it."""
    job = await client.json("POST", "/api/executions", {"code": "1", "kernel_id": kernel})
    await client.json("DELETE", f"/api/executions/{job['id']}", status=204)
    await client.json("GET", f"/api/executions/{job['id']}", status=404)
    await client.json("DELETE", f"/api/executions/{job['id']}", status=404)


async def test_interrupt(client: Client, kernel: str) -> None:
    """An interrupted job says so, keeps its output, and the kernel its state."""
    job_id = await begin(client, f"y = 5\n{SLOW}", kernel_id=kernel)
    await until_state(client, kernel, "busy")
    await asyncio.sleep(0.3)
    await client.json("POST", f"/api/executions/{job_id}/interrupt", status=204)

    job = await ended(client, job_id)
    assert job["status"] == "interrupted"
    assert job["result"]["stdout"].startswith("0\n")
    assert await client.out(kernel, "print(y)") == "5\n"
    await client.json("POST", f"/api/executions/{job_id}/interrupt", status=409)


@pytest.mark.parametrize(
    ("on_error", "statuses"),
    [("stop", ["ok", "error", "aborted"]), ("continue", ["ok", "error", "ok"])],
)
async def test_task_lists(client: Client, kernel: str, on_error: str, statuses: list[str]) -> None:
    """Tasks run in order in one kernel; an error stops them or does not, as asked."""
    tasks = [{"code": "z = [1]; print(z)", "name": "first"}, {"code": "1/0"}, {"code": "print(z)"}]
    body = {"tasks": tasks, "on_error": on_error, "kernel_id": kernel}
    job = await client.json("POST", "/api/executions", body)

    assert job["status"] == "error"
    assert job["result"] is None
    assert [task["status"] for task in job["tasks"]] == statuses
    assert job["tasks"][0]["name"] == "first"
    assert job["tasks"][0]["result"]["stdout"] == "[1]\n"
    last = job["tasks"][2]["result"]
    assert (last and last["stdout"]) == ("[1]\n" if on_error == "continue" else None)


async def test_each_task_has_its_own_time(client: Client, kernel: str) -> None:
    """A task's timeout is its own; the list's is for those that name none."""
    tasks = [{"code": "import time; time.sleep(1.2)", "timeout_s": 5}, {"code": "while True: pass"}]
    body = {"tasks": tasks, "timeout_s": 0.5, "kernel_id": kernel}
    job = await client.json("POST", "/api/executions", body)

    assert [task["status"] for task in job["tasks"]] == ["ok", "timeout"]
    assert (job["status"], job["reason"]) == ("timeout", "timeout")


async def test_files_as_tasks(client: Client, kernel: str) -> None:
    """A task may be a file of the home; one that is not there is the request's fault, and not the code's."""
    async with client.http.put(f"/api/kernels/{kernel}/files/a.py", data=b"print('from a file')") as response:
        assert response.ok
    body = {"path": "a.py", "kernel_id": kernel}
    job = await client.json("POST", "/api/executions", body)
    assert job["result"]["stdout"] == "from a file\n"

    failed = await client.json("POST", "/api/executions", body | {"path": "b.py"}, status=404)
    assert failed["code"] == "not_found"
    later = await client.json("POST", "/api/executions", body | {"path": "b.py", "mode": "job"}, status=202)
    later = await ended(client, later["id"])
    assert (later["status"], later["failure"]["code"]) == ("failed", "not_found")
    assert later["failure"] == failed


async def test_a_dead_kernel_is_named(client: Client, kernel: str) -> None:
    """The death of the kernel ends the job with its reason, and what was printed is kept."""
    code = "print('last', flush=True)\nimport os, time\ntime.sleep(0.3)\nos.kill(os.getpid(), 9)"
    job = await client.json("POST", "/api/executions", {"code": code, "kernel_id": kernel})

    assert (job["status"], job["reason"]) == ("dead", "killed")
    assert job["result"]["stdout"] == "last\n"


async def test_idempotency_keys(client: Client, kernel: str) -> None:
    """The same key and request is the same job, at the same moment too; another request is a conflict."""
    body = {"code": "n = globals().get('n', 0) + 1; print(n)", "kernel_id": kernel}
    headers = {"Idempotency-Key": uuid4().hex}

    async def ask(body: Any) -> tuple[int, Any]:
        async with client.http.post("/api/executions", json=body, headers=headers) as response:
            return response.status, await response.json()

    answers = await asyncio.gather(*(ask(body) for _ in range(5)))
    assert {status for status, _ in answers} == {200}
    assert len({job["id"] for _, job in answers}) == 1
    assert {job["result"]["stdout"] for _, job in answers} == {"1\n"}
    status, refused = await ask(body | {"code": "2"})
    assert (status, refused["code"], refused["reason"]) == (409, "conflict", "idempotency_key")
    assert await client.out(kernel, "print(n)") == "1\n"


async def test_long_texts_are_cut_and_paged(client: Client, kernel: str) -> None:
    """A result's texts are cut where asked, with a mark, and can be read in full piece by piece."""
    body = {"code": "print('x' * 300_000 + 'end')", "kernel_id": kernel, "text_chars": 1000}
    job = await client.json("POST", "/api/executions", body)

    short = job["result"]["stdout"]
    assert job["result"]["truncated"] is True
    assert len(short) < 1100
    assert "characters cut]" in short
    assert short.endswith("end\n")
    offset, text = 0, ""
    while offset is not None:
        page = await client.json(
            "GET", f"/api/executions/{job['id']}/text/stdout?offset={offset}&limit=100000"
        )
        text += page["text"]
        offset = page["next_offset"]
    assert text == "x" * 300_000 + "end\n"
    assert page["total"] == len(text)


async def test_more_than_is_kept_leaves_a_gap(client: Client, kernel: str) -> None:
    """Output past the journal's bound is let go of, with a gap; in the result a mark stands where it was."""
    code = "from IPython.display import HTML\nfor i in range(80): display(HTML(str(i).zfill(6) * 20_000))"
    job = await client.json("POST", "/api/executions", {"code": code, "kernel_id": kernel})
    events = (await client.json("GET", f"/api/executions/{job['id']}?cursor=0"))["events"]

    assert events[0]["type"] == "gap"
    assert events[0]["bytes"] > 1_000_000
    assert [event["type"] for event in events[-3:]] == ["display", "task_ended", "ended"]
    assert events[-3]["data"]["text/html"].startswith("000079")
    assert job["result"]["truncated"] is True
    assert job["result"]["outputs"][0]["data"]["text/html"].startswith("000000")
    assert "bytes of output cut]" in json.dumps(job["result"]["outputs"])


async def test_dataframes_as_json(client: Client, kernel: str) -> None:
    """A DataFrame is shown as JSON where that is asked for, beside its text and HTML, and else is not."""
    code = "import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', None]})"
    shown = {}
    for asked in (True, False):
        body = {"code": code, "kernel_id": kernel, "dataframes": asked}
        job = await client.json("POST", "/api/executions", body)
        shown[asked] = job["result"]["outputs"][0]["data"]

    frame = shown[True]["application/vnd.dataresource+json"]
    assert [field["name"] for field in frame["schema"]["fields"]] == ["index", "a", "b"]
    assert frame["data"] == [{"index": 0, "a": 1, "b": "x"}, {"index": 1, "a": 2, "b": None}]
    assert {"text/plain", "text/html"} < set(shown[True])
    assert set(shown[False]) == {"text/plain", "text/html"}

    odd = "pd.DataFrame([[1, 2]], columns=['same', 'same'])"
    job = await client.json("POST", "/api/executions", {"code": odd, "kernel_id": kernel, "dataframes": True})
    assert (job["status"], job["result"]["stderr"]) == ("ok", "")


async def test_artifacts(client: Client, kernel: str) -> None:
    """Files that a task made are listed where that is asked for."""
    body = {"code": "open('plot.txt', 'w').write('x')", "kernel_id": kernel, "artifacts": True}
    job = await client.json("POST", "/api/executions", body)

    assert [made["path"] for made in job["result"]["artifacts"]["files"]] == ["plot.txt"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "one of code, path and tasks"),
        ({"code": "1", "path": "a"}, "one of code, path and tasks"),
        ({"code": "1", "tasks": [{"code": "1"}]}, "one of code, path and tasks"),
        ({"tasks": [{}]}, "either code or path"),
        ({"code": "1", "kernel_id": "x", "context": "y"}, "not both"),
        ({"code": "1", "kernel_id": "x", "kernel": "python3"}, "kernel that is started"),
        ({"code": "1", "mode": "later"}, "mode"),
        ({"code": "1", "timeout_s": -1}, "timeout_s"),
        ({"code": "1", "tools": [{"name": "no tool"}]}, "name"),
        ({"code": "1", "nonsense": 1}, "nonsense"),
        ({"code": "\ud800"}, "JSON"),
    ],
)
async def test_requests_that_are_wrong(client: Client, body: dict[str, Any], reason: str) -> None:
    """What contradicts itself, or is no request, is 400 and says where; nothing is started."""
    before = await client.json("GET", "/api/executions")
    data = json.dumps(body).encode()
    async with client.http.post("/api/executions", data=data) as response:
        refused = await response.json()

    assert response.status == 400
    assert refused["code"] == "bad_request"
    assert reason in refused["message"]
    assert await client.json("GET", "/api/executions") == before


@pytest.mark.parametrize(
    "query", ["cursor=-1", "cursor=x", "wait_s=61", "wait_s=x", "wait_s=nan", "text_chars=0"]
)
async def test_queries_that_are_wrong(client: Client, kernel: str, query: str) -> None:
    """A cursor or wait that is none is 400."""
    job = await client.json("POST", "/api/executions", {"code": "1", "kernel_id": kernel})
    await client.json("GET", f"/api/executions/{job['id']}?{query}", status=400)


@pytest.fixture
async def strict() -> AsyncIterator[Client]:
    """A client of a gateway with narrow bounds on jobs."""
    env = ROOM | {
        "CELLBLOCK_EXECUTIONS__MAX_JOBS": "2",
        "CELLBLOCK_EXECUTIONS__KEPT_S": "1.5",
        "CELLBLOCK_EXECUTIONS__KEPT_JOBS": "5",
    }
    with running("--no-keep", env=env) as gateway:
        async with gateway.client() as client:
            yield client


async def test_bounds(strict: Client) -> None:
    """Jobs on their way are bounded, and ended ones expire."""
    kernel = await strict.start()
    jobs = [await begin(strict, "import time; time.sleep(20)", kernel_id=kernel) for _ in range(2)]
    refused = await strict.json(
        "POST", "/api/executions", {"code": "1", "kernel_id": kernel, "mode": "job"}, status=429
    )
    assert (refused["code"], refused["reason"]) == ("limit_reached", "jobs")
    for job_id in reversed(jobs):
        await strict.json("DELETE", f"/api/executions/{job_id}", status=204)

    job = await strict.json("POST", "/api/executions", {"code": "1", "kernel_id": kernel})
    await strict.json("GET", f"/api/executions/{job['id']}")
    await asyncio.sleep(1.6)
    await strict.json("GET", f"/api/executions/{job['id']}", status=404)
    assert await strict.json("GET", "/api/executions") == []


async def test_a_restart_of_the_gateway() -> None:
    """What had ended is there as it was; what ran is lost, by that name; its key does not run it again."""
    with running(env=ROOM) as gateway:
        async with gateway.client() as client:
            kernel = await client.start()
            done = await client.json(
                "POST", "/api/executions", {"code": "print('kept'); 5", "kernel_id": kernel}
            )
            events = (await client.json("GET", f"/api/executions/{done['id']}?cursor=0"))["events"]
            body = {"code": SLOW, "kernel_id": kernel, "mode": "job"}
            headers = {"Idempotency-Key": "once"}
            async with client.http.post("/api/executions", json=body, headers=headers) as response:
                going = (await response.json())["id"]
            await until_state(client, kernel, "busy")
        gateway.end(signal.SIGKILL)
        gateway.start()
        async with gateway.client() as client:
            assert await client.json("GET", f"/api/executions/{done['id']}") == done
            assert (await client.json("GET", f"/api/executions/{done['id']}?cursor=0"))["events"] == events
            lost = await client.json("GET", f"/api/executions/{going}")
            assert (lost["status"], lost["result"]) == ("lost", None)
            assert lost["ended_at"] is not None
            async with client.http.post("/api/executions", json=body, headers=headers) as response:
                assert (await response.json())["id"] == going
            assert (await client.kernel(kernel))["id"] == kernel
