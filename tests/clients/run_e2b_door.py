"""Run in .venv-agents: E2B's async SDK, told by lines of JSON on stdin what to do, each answered by one."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from e2b_code_interpreter import AsyncSandbox

KINDS = {"text": "text/plain", "html": "text/html", "png": "image/png"}
HELD: dict[str, AsyncSandbox] = {}


async def open_sandbox(order: dict[str, Any]) -> dict[str, Any]:
    """Make a sandbox, or come back to one."""
    given = order.get("sandbox")
    box = await (AsyncSandbox.connect(given, retries=0) if given else AsyncSandbox.create(retries=0))
    HELD["box"] = box
    return {"sandbox": box.sandbox_id, "kernel": (await box.list_code_contexts())[0].id}


async def run(order: dict[str, Any]) -> dict[str, Any]:
    """Run code. What was printed before the end, whatever that is, is told by callbacks."""
    said: dict[str, list[str]] = {"stdout": [], "stderr": []}
    found: dict[str, Any] = {"results": [], "error": None, "raised": None}
    try:
        execution = await HELD["box"].run_code(
            order["code"],
            timeout=order["timeout_s"],
            on_stdout=lambda message: said["stdout"].append(message.line),
            on_stderr=lambda message: said["stderr"].append(message.line),
        )
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the door tells what it means
        found["raised"] = [type(error).__name__, str(error)]
    else:
        for each in execution.results:
            found["results"].append({kind: each[name] for name, kind in KINDS.items() if each[name]})
        found["error"] = execution.error and [execution.error.name, execution.error.value]
    return found | {name: "".join(texts) for name, texts in said.items()}


async def foreign(order: dict[str, Any]) -> list[Any]:
    """Use a sandbox by its id in every way there is."""
    name, said = order["sandbox"], []
    for call in (
        lambda: AsyncSandbox.connect(name),
        lambda: AsyncSandbox.get_info(name),
        lambda: AsyncSandbox.set_timeout(name, 60),
        lambda: AsyncSandbox.pause(name),
        lambda: AsyncSandbox.kill(name),
    ):
        try:
            said.append(str(await call()))
        except Exception as error:  # noqa: BLE001 - the door tells what it means
            said.append([type(error).__name__, str(error)])
    return said


async def close_sandbox(_order: dict[str, Any]) -> None:
    """End the sandbox."""
    await HELD["box"].kill()


OPERATIONS = {"open": open_sandbox, "run": run, "foreign": foreign, "close": close_sandbox}


async def done(order: dict[str, Any]) -> None:
    """Do one thing and answer."""
    try:
        answer = {"answer": await OPERATIONS[order["op"]](order)}
    except Exception as error:  # noqa: BLE001 - the door tells what it means
        answer = {"failed": [type(error).__name__, str(error)]}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Do what comes, one thing at a time; `cancel` gives up what is being done."""
    reader = asyncio.StreamReader(limit=16 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    task: asyncio.Task[None] | None = None
    while line := await reader.readline():
        order = json.loads(line)
        if order["op"] == "cancel" and task is not None:
            task.cancel()
        else:
            task = asyncio.create_task(done(order))


if __name__ == "__main__":
    asyncio.run(main())
