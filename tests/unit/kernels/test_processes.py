"""Processes beside a kernel, with the real attendant as a process of its own, and no cell around it."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.errors import BadRequest, Conflict, KernelDead, LimitReached, NotFound, SandboxUnavailable
from gateway.models.processes import Command, ProcessOutput
from tests.attendants import RealAttendant, attending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateway.kernels.processes import CellProcesses


@pytest.fixture
def attendant(tmp_path: Path) -> Iterator[RealAttendant]:
    """A real attendant, whose home is an empty directory."""
    with attending(tmp_path) as found:
        yield found


@pytest.fixture
async def processes(attendant: RealAttendant) -> AsyncIterator[CellProcesses]:
    """A gateway's side of it."""
    found = attendant.processes()
    yield found
    found.close()


async def everything(processes: CellProcesses, process_id: str) -> tuple[dict[str, str], ProcessOutput]:
    """Read a process's output to its end; return it by stream, and the last answer."""
    texts, cursor = {"stdout": "", "stderr": ""}, 0
    async with asyncio.timeout(20):
        while True:
            output = await processes.read(process_id, cursor=cursor, wait_s=5)
            cursor = output.cursor
            for chunk in output.chunks:
                texts[chunk.stream] += chunk.text
            if output.process.state == "ended" and not output.chunks:
                return texts, output


async def run(processes: CellProcesses, line: str) -> tuple[dict[str, str], ProcessOutput]:
    """Run a line of bash to its end."""
    process = await processes.start(Command(command=line), stdin=False)
    return await everything(processes, process.id)


def alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(condition) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_command_runs_in_the_home_and_its_end_comes_after_its_output(processes, tmp_path) -> None:
    """Streams are told apart, the exit code is the program's, and no output comes after the end."""
    texts, last = await run(processes, "pwd; echo wrong >&2; exit 7")

    assert texts == {"stdout": f"{tmp_path}\n", "stderr": "wrong\n"}
    assert (last.process.state, last.process.exit_code, last.lost) == ("ended", 7, 0)


async def test_arguments_and_variables_arrive_as_they_are(processes, tmp_path) -> None:
    """Without a shell nothing is expanded; arguments may be long, directories and variables others."""
    (tmp_path / "sub").mkdir()
    word = "é$HOME *" * 8000
    command = Command(argv=("sh", "-c", 'pwd; echo "$X"; echo "$1"', "sh", word), cwd="sub", env={"X": "ü"})
    process = await processes.start(command, stdin=False)
    texts, _ = await everything(processes, process.id)

    assert texts["stdout"] == f"{tmp_path}/sub\nü\n{word}\n"
    shown = process.argv[-1]
    assert len("".join(process.argv)) <= 801
    assert word.startswith(shown.rstrip("…"))


@pytest.mark.parametrize(
    "command",
    [Command(argv=("/nonexistent",)), Command(command="true", cwd="nowhere"), Command(argv=("/tmp",))],
)
async def test_what_cannot_be_run_is_an_error_and_leaves_nothing(processes, command) -> None:
    """A missing program or directory is a bad request; no process is listed, and the next one runs."""
    with pytest.raises(BadRequest):
        await processes.start(command, stdin=False)
    assert await processes.listing() == []
    assert (await run(processes, "echo on"))[0]["stdout"] == "on\n"


async def test_input_is_read_and_ends(processes) -> None:
    """What is written arrives, also much of it; then the program sees the end, and more is refused."""
    process = await processes.start(Command(argv=("wc", "-c")), stdin=True)
    await processes.write(process.id, b"x" * 700_000)
    await processes.write(process.id, b"y" * 50, eof=True)
    with pytest.raises(Conflict):
        await processes.write(process.id, b"more")

    texts, last = await everything(processes, process.id)
    assert (texts["stdout"], last.process.exit_code) == ("700050\n", 0)
    with pytest.raises(Conflict):
        await processes.signal(process.id, signal.SIGTERM)


async def test_input_that_is_not_read_is_bounded(processes) -> None:
    """A program that does not read makes the writer stop, and not the attendant grow."""
    process = await processes.start(Command(argv=("sleep", "60")), stdin=True)
    piece = b"x" * (1 << 20)
    for _ in range(4):
        await processes.write(process.id, piece)
    with pytest.raises(LimitReached):
        await processes.write(process.id, piece)
    closed = await processes.start(Command(argv=("sleep", "60")), stdin=False)
    with pytest.raises(Conflict):
        await processes.write(closed.id, b"x")


async def test_a_signal_reaches_the_children_too(processes) -> None:
    """The whole group is signalled; the exit code is the signal's."""
    process = await processes.start(Command(command="sleep 60 & echo $!; wait"), stdin=False)
    output = await processes.read(process.id, cursor=0, wait_s=5)
    child = int(output.chunks[0].text)
    assert alive(child)
    for number in (0, -9, 65, 1 << 40):
        with pytest.raises(BadRequest):
            await processes.signal(process.id, number)
    await processes.signal(process.id, signal.SIGTERM)

    _, last = await everything(processes, process.id)
    assert last.process.exit_code == -signal.SIGTERM
    await until(lambda: not alive(child))


async def test_what_is_left_in_the_background_does_not_hold_the_end_back(processes) -> None:
    """A command ends with its shell, though a child of it has its streams; that goes on and is heard."""
    line = "(sleep 0.4; echo late; sleep 60) & echo early"
    process = await processes.start(Command(command=line), stdin=False)
    begun = time.monotonic()
    texts, last = await everything(processes, process.id)
    assert (texts["stdout"], last.process.exit_code) == ("early\n", 0)
    assert time.monotonic() - begun < 0.4

    await asyncio.sleep(0.8)
    late = await processes.read(process.id, cursor=last.cursor, wait_s=0)
    assert [chunk.text for chunk in late.chunks] == ["late\n"]


async def test_old_output_is_let_go_of_and_counted(attendant) -> None:
    """What is kept is bounded; a cursor before it is told how many bytes are lost, and they add up."""
    processes = attendant.processes(output_bytes=64 << 10)
    process = await processes.start(Command(command="head -c 5000000 /dev/zero | tr '\\0' x"), stdin=False)
    async with asyncio.timeout(20):
        while (await processes.listing())[0].state == "running":
            await asyncio.sleep(0.02)

    kept, cursor, lost = 0, 0, 0
    while (output := await processes.read(process.id, cursor=cursor, wait_s=0)).chunks:
        kept += sum(len(chunk.text) for chunk in output.chunks)
        lost += output.lost
        cursor = output.cursor
    assert kept + lost == cursor == 5_000_000
    assert 16 << 10 <= kept <= 64 << 10
    processes.close()


async def test_characters_are_whole_however_their_bytes_come(processes) -> None:
    """A character whose bytes come one by one is one character; what is none is replaced."""
    smile = r"printf '\xf0\x9f'; sleep 0.2; printf '\x98\x80'"
    line = rf"{smile}; sleep 0.2; printf '\xc3'; printf e >&2; sleep 0.2; printf '\xa9\xff'"
    texts, last = await run(processes, line)
    assert texts == {"stdout": "😀é\N{REPLACEMENT CHARACTER}", "stderr": "e"}
    assert last.cursor == 8


async def test_reading_waits_for_news(processes) -> None:
    """A read with nothing to bring waits for its time, or until there is something."""
    process = await processes.start(Command(command="sleep 0.5; echo a; sleep 60"), stdin=False)
    begun = time.monotonic()
    assert (await processes.read(process.id, cursor=0, wait_s=0.1)).chunks == []
    assert 0.1 <= time.monotonic() - begun < 0.4
    output = await processes.read(process.id, cursor=0, wait_s=30)
    assert output.chunks[0].text == "a\n"
    assert time.monotonic() - begun < 5
    # a position that nothing has reached yet is the end
    assert (await processes.read(process.id, cursor=1 << 50, wait_s=0)).cursor == 2


async def test_so_many_run_and_so_many_are_remembered(attendant) -> None:
    """More processes at a time are refused; of the ended ones the oldest are forgotten, on both sides."""
    processes = attendant.processes(max_running=2, kept=3)
    running = [await processes.start(Command(argv=("sleep", "60")), stdin=False) for _ in range(2)]
    with pytest.raises(LimitReached):
        await processes.start(Command(argv=("true",)), stdin=False)
    await processes.remove(running[1].id)
    with pytest.raises(NotFound):
        await processes.read(running[1].id, cursor=0, wait_s=0)
    await until(lambda: not alive(running[1].pid))

    ids = []
    for number in range(6):
        process = await processes.start(Command(command=f"exit {number}"), stdin=False)
        await everything(processes, process.id)
        ids.append(process.id)
    assert [each.id for each in await processes.listing()] == [running[0].id, *ids[-3:]]
    processes.close()
    again = attendant.processes()
    assert [each.id for each in await again.listing()] == [running[0].id, *ids[-3:]]
    again.close()


async def test_the_next_gateway_takes_over(attendant) -> None:
    """It finds what runs, what has ended and what was written meanwhile; what nobody has read is lost."""
    first = attendant.processes()
    shell = await first.start(Command(argv=("bash",)), stdin=True)
    ended = await first.start(Command(command="sleep 0.3; echo meanwhile; exit 4"), stdin=False)
    await first.write(shell.id, b"echo 12345\n")
    assert (await first.read(shell.id, cursor=0, wait_s=5)).chunks[0].text == "12345\n"
    # it dies: nobody says goodbye
    flood = await first.start(Command(command="head -c 3000000 /dev/zero; sleep 60"), stdin=False)
    first.close()
    await asyncio.sleep(0.5)

    second = attendant.processes()
    found = {each.id: each for each in await second.listing()}
    assert list(found) == [shell.id, ended.id, flood.id]
    assert (found[shell.id].state, found[shell.id].argv, found[shell.id].pid) == (
        "running",
        ("bash",),
        shell.pid,
    )
    texts, last = await everything(second, ended.id)
    assert (texts["stdout"], last.process.exit_code) == ("meanwhile\n", 4)
    await second.write(shell.id, b"echo on\n")
    output = await second.read(shell.id, cursor=6, wait_s=5)
    assert (output.lost, [chunk.text for chunk in output.chunks], output.cursor) == (0, ["on\n"], 9)
    assert (await second.read(shell.id, cursor=0, wait_s=0)).lost == 6
    cursor = seen = 0
    async with asyncio.timeout(10):
        while cursor < 3_000_000:
            output = await second.read(flood.id, cursor=cursor, wait_s=5)
            cursor, seen = output.cursor, seen + output.lost + sum(len(chunk.text) for chunk in output.chunks)
    assert cursor == seen == 3_000_000
    later = await second.start(Command(command="echo new"), stdin=False)
    assert (await everything(second, later.id))[0]["stdout"] == "new\n"
    second.close()


async def test_the_cell_is_shown(processes, attendant) -> None:
    """Every process is in the tree; the snapshot tells of the system, and of packages where asked."""
    process = await processes.start(Command(argv=("sleep", "77")), stdin=False)
    found = {each.pid: each for each in await processes.tree()}
    assert found[process.pid].command == "sleep 77"
    assert found[process.pid].parent == attendant.process.pid
    shown = await processes.snapshot(packages=True)
    assert "pydantic" in shown.packages
    assert (shown.cpus, shown.memory_bytes) == (1.0, 1 << 30)
    assert (await processes.snapshot()).packages == {}

    await processes.kill(process.pid, signal.SIGKILL)
    assert (await everything(processes, process.id))[1].process.exit_code == -signal.SIGKILL
    for pid in (0, -1, process.pid, 1 << 40):
        with pytest.raises(NotFound):
            await processes.kill(pid, signal.SIGKILL)


async def test_a_dead_attendant_is_said_so_and_takes_its_children_along(processes, attendant) -> None:
    """Its processes die with it and count as ended; what they wrote can be read, and nothing else."""
    process = await processes.start(Command(command="echo here; sleep 60"), stdin=False)
    await processes.read(process.id, cursor=0, wait_s=5)
    waiting = asyncio.create_task(processes.read(process.id, cursor=5, wait_s=60))
    await asyncio.sleep(0.05)
    attendant.process.kill()

    with pytest.raises(SandboxUnavailable) as refused:
        await asyncio.wait_for(waiting, 5)
    assert refused.value.reason == "attendant_gone"
    await until(lambda: not alive(process.pid))
    assert (await processes.read(process.id, cursor=0, wait_s=0)).chunks[0].text == "here\n"
    assert (await processes.listing())[0].state == "ended"
    with pytest.raises(SandboxUnavailable):
        await processes.tree()


async def test_a_stopped_attendant_is_given_time_and_nothing_hangs(attendant) -> None:
    """Requests end as `attendant_silent`; when it goes on, so does everything; nothing was started twice."""
    processes = attendant.processes(answer_s=0.3)
    shell = await processes.start(Command(argv=("bash",)), stdin=True)
    attendant.process.send_signal(signal.SIGSTOP)
    for ask in (
        lambda: processes.start(Command(argv=("sleep", "88")), stdin=False),
        lambda: processes.write(shell.id, b"echo no\n"),
        processes.tree,
    ):
        with pytest.raises(SandboxUnavailable) as refused:
            await ask()
        assert refused.value.reason == "attendant_silent"
    attendant.process.send_signal(signal.SIGCONT)

    await asyncio.sleep(0.3)
    assert [each.id for each in await processes.listing()] == [shell.id]
    assert "sleep 88" not in [each.command for each in await processes.tree()]
    processes.close()


async def test_waiting_for_a_first_word_does_not_add_up(attendant) -> None:
    """Who asks while a first answer is awaited waits for that one; a cell that is closed ends it at once."""
    attendant.process.send_signal(signal.SIGSTOP)
    processes = attendant.processes(answer_s=0.5)
    begun = time.monotonic()
    asked = await asyncio.gather(*(processes.listing() for _ in range(20)), return_exceptions=True)
    assert time.monotonic() - begun < 1.5
    assert {error.reason for error in asked} == {"attendant_silent"}
    assert len(set(map(id, asked))) == 20

    patient = attendant.processes(answer_s=30)
    asking = asyncio.create_task(patient.listing())
    await asyncio.sleep(0.1)
    patient.close()
    with pytest.raises((KernelDead, SandboxUnavailable)):
        await asyncio.wait_for(asking, 2)
    attendant.process.send_signal(signal.SIGCONT)
    assert await processes.listing() == []
    processes.close()


async def test_a_paused_kernel_is_not_asked(processes) -> None:
    """While the kernel is paused requests are refused at once."""
    process = await processes.start(Command(argv=("sleep", "60")), stdin=False)
    processes.paused = True
    for ask in (processes.tree(), processes.start(Command(argv=("true",)), stdin=False)):
        with pytest.raises(Conflict) as refused:
            await ask
        assert refused.value.reason == "paused"
    assert (await processes.listing())[0].id == process.id


async def test_a_caller_that_goes_away_leaves_no_process(processes, attendant) -> None:
    """A start that nobody waits for any more is undone, whether or not it had happened."""
    await processes.listing()
    attendant.process.send_signal(signal.SIGSTOP)
    task = asyncio.create_task(processes.start(Command(argv=("sleep", "99")), stdin=False))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    attendant.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(5):
        # who was killed is there until the system has let go of it
        while "sleep 99" in [each.command for each in await processes.tree()]:
            await asyncio.sleep(0.01)
    assert await processes.listing() == []


async def test_everything_ends_with_the_kernel(processes, attendant) -> None:
    """The attendant ends with its kernel, and what it has started too; a closed cell is a dead kernel's."""
    process = await processes.start(Command(argv=("sleep", "60")), stdin=False)
    attendant.kernel.kill()
    attendant.process.wait(timeout=5)
    await until(lambda: not alive(process.pid))
    waiting = asyncio.create_task(processes.read(process.id, cursor=0, wait_s=60))
    processes.close()
    with pytest.raises((KernelDead, SandboxUnavailable)):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(KernelDead):
        await processes.listing()


async def test_descriptors_are_given_back(attendant) -> None:
    """Neither side keeps a descriptor for a process that is over."""
    processes = attendant.processes(kept=1)
    await run(processes, "true")
    before = [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in ("self", attendant.process.pid)]
    for _ in range(10):
        await run(processes, "echo x")
        await processes.snapshot()
    assert [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in ("self", attendant.process.pid)] == before
    processes.close()
