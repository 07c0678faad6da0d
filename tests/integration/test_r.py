"""The shipped kernelspec `ir`: Debian's R and IRkernel in a cell.

IRkernel has a plain PUB socket for iopub and no iopub_welcome, says `aborted` of what was interrupted, sends
results as display_data, and asks questions whether or not the client allowed it. What programs of `system()`
print is not shown.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway import text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Client, Gateway


@pytest.fixture
async def r(client: Client) -> AsyncIterator[str]:
    """A fresh R kernel of alice's."""
    kernel_id = await client.start("ir")
    yield kernel_id
    await client.delete(kernel_id)


def r_pid(gateway: Gateway) -> int:
    """Return the one R of a gateway's, as the host's pid."""
    found = []
    for entry in Path("/proc").glob("[1-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if line.startswith(b"/usr/lib/R/bin/exec/R") and f"/{gateway.tree}/".encode() in line:
            found.append(int(entry.name))
    (pid,) = found
    return pid


def shown(result: dict[str, Any]) -> list[dict[str, str]]:
    """Return what a result displays, by MIME type."""
    return [output["data"] for output in result["outputs"] if output["output_type"] == "display_data"]


async def test_values_and_output(client: Client, r: str) -> None:
    """Prints, messages, warnings and values come in their ways, data frames as tables too; state is kept."""
    said = await client.run(r, "kept <- 20\ncat('out\\n'); message('err'); warning('look')\nkept + 1")
    assert (said["status"], said["stdout"]) == ("ok", "out\n")
    assert "err" in said["stderr"]
    assert "look" in said["stderr"]
    assert shown(said)[0]["text/plain"] == "[1] 21"

    (table,) = shown(await client.run(r, "data.frame(a = 1:2)"))
    assert "<table" in table["text/html"]
    assert await client.out(r, "cat(kept)") == "20"
    lines = await client.out(r, "for (i in 1:5000) cat(i, '\\n')")
    assert lines.split() == [str(i) for i in range(1, 5001)]


async def test_errors(client: Client, r: str) -> None:
    """An error has its text and its calls, and the kernel goes on."""
    failed = await client.run(r, "f <- function() stop('no luck')\nf()")

    assert failed["status"] == "error"
    assert "no luck" in failed["error"]["evalue"]
    assert "f()" in "".join(failed["error"]["traceback"])
    assert await client.out(r, "cat(1)") == "1"


async def test_a_plot(client: Client, r: str) -> None:
    """A plot is a PNG, by cairo and with fonts, without a word on stderr."""
    result = await client.run(r, "plot(1:10, main = 'Ten')")

    (figure,) = shown(result)
    assert base64.b64decode(figure["image/png"]).startswith(b"\x89PNG")
    assert result["stderr"] == ""


async def test_what_memory_without_execution_takes(client: Client, r: str) -> None:
    """Regular expressions, matrices and forked workers run where no memory can become code."""
    result = await client.run(
        r,
        "cat(gsub('a+(b)', '\\\\1', 'caab', perl = TRUE), strsplit('a b', '[ ]', perl = TRUE)[[1]])\n"
        "cat(dim(solve(matrix(runif(1e4), 100))))\n"
        "cat(unlist(parallel::mclapply(1:2, function(i) i^2, mc.cores = 2)))",
    )

    assert (result["status"], result["stderr"]) == ("ok", "")
    assert result["stdout"] == "cb a b100 1001 4"


async def test_is_confined(client: Client, r: str) -> None:
    """R is in a cell like any other: filters, no rights, no network, of /etc only what its profile shows."""
    status = await client.out(r, "cat(readLines('/proc/self/status'), sep = '\\n')")
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status

    assert await client.out(r, "cat(system('ls /etc', intern = TRUE))") == (
        "R alternatives fonts group ld.so.cache ld.so.conf ld.so.conf.d localtime mime.types passwd"
    )
    tried = "tryCatch(url('http://127.0.0.1:22', open = 'r'), error = function(e) cat('refused'))"
    assert await client.out(r, tried) == "refused"
    assert await client.out(r, "cat(file.exists('/srv/cellblock'), getwd() == Sys.getenv('HOME'))") == (
        "FALSE TRUE"
    )
    assert (await client.run(r, "writeLines('x', '/usr/lib/R/x')"))["status"] == "error"


async def test_questions_and_completion(client: Client, r: str) -> None:
    """readline() is answered over stdin, names are completed, and unfinished code is known as such."""
    async with client.channels(r) as channels:
        msg_id = await channels.execute("cat('hello', readline('who? '))", allow_stdin=True)
        question = await channels.until("input_request")
        assert json.loads(question.content)["prompt"] == "who? "
        await channels.send("stdin", "input_reply", {"value": "Ada"})
        assert text_of(await channels.until_done(msg_id)) == "hello Ada"

        await channels.send("shell", "complete_request", {"code": "read.cs", "cursor_pos": 7})
        reply = json.loads((await channels.until("complete_reply")).content)
        assert "read.csv" in reply["matches"]
        await channels.send("shell", "is_complete_request", {"code": "x <- ("})
        assert json.loads((await channels.until("is_complete_reply")).content)["status"] == "incomplete"


async def test_two_megabytes(client: Client, r: str) -> None:
    """One large print, which R sends as one message, reaches clients in pieces that they take."""
    async with client.channels(r) as channels:
        messages = await channels.until_done(await channels.execute("cat(strrep('x', 2e6))"))

    assert text_of(messages) == "x" * 2_000_000
    assert max(len(message.content) for message in messages) < 1 << 20


@pytest.mark.parametrize("code", ["Sys.sleep(60)", "while (TRUE) {}"])
async def test_interrupt(client: Client, r: str, code: str) -> None:
    """An interrupt ends what runs, and the variables stay."""
    await client.run(r, "kept <- 1")
    running = asyncio.create_task(client.run(r, code))
    await asyncio.sleep(1)
    begun = time.monotonic()
    await client.json("POST", f"/api/kernels/{r}/interrupt", status=204)

    assert (await running)["status"] == "aborted"
    assert time.monotonic() - begun < 5
    assert await client.out(r, "cat(kept)") == "1"


async def test_a_deadline(client: Client, r: str) -> None:
    """What is beyond its time is interrupted with the reason, and the variables stay."""
    await client.run(r, "kept <- 1")
    late = await client.run(r, "while (TRUE) {}", timeout_s=1)

    assert (late["status"], late["reason"]) == ("timeout", "timeout")
    assert "The time limit of 1 s is over" in late["stderr"]
    assert await client.out(r, "cat(kept)") == "1"


async def test_killed_and_out_of_memory(gateway: Gateway, client: Client, r: str) -> None:
    """A kernel that is killed, or takes too much memory, is dead at once, says why, and can be restarted."""
    running = asyncio.create_task(client.run(r, "Sys.sleep(60)"))
    await asyncio.sleep(1)
    begun = time.monotonic()
    os.kill(r_pid(gateway), signal.SIGKILL)
    dead = await running
    assert (dead["status"], dead["reason"]) == ("dead", "killed")
    assert time.monotonic() - begun < 1

    await client.json("POST", f"/api/kernels/{r}/restart")
    assert await client.out(r, "cat('again')") == "again"
    dead = await client.run(r, "x <- rep(1, 2e8)")
    assert (dead["status"], dead["reason"]) == ("dead", "oom")
