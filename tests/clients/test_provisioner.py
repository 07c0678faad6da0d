"""The kernel provisioner with jupyter_client's own managers and clients: local kernels, each in a cell."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jupyter_kernel_test
import nbformat
import pytest
from jupyter_client import AsyncKernelManager, AsyncMultiKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from gateway.kernels.provisioner import KILLED, FirejailProvisioner, KernelRefused
from gateway.kernels.provisioner_spec import install
from gateway.kernels.specs import SpecCatalogue
from gateway.settings import KernelsSettings
from tests.clients.local import BIN, CANARY, KERNEL, Place, place_of
from tests.lifecycle import eventually
from tests.security import standins

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

LOOK = """
import json, os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
try:
    socket.socket(socket.AF_INET)
    network = "yes"
except OSError as error:
    network = error.strerror
print(json.dumps({
    **{name: status[name].strip() for name in ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd")},
    "env": dict(os.environ), "home": sorted(os.listdir(os.path.expanduser("~"))), "network": network,
    "interfaces": sorted(os.listdir("/sys")) if os.access("/sys", os.R_OK) else [],
    "pids": sum(name.isdigit() for name in os.listdir("/proc")),
}))
"""


# jupyter_client leaves sockets to the garbage collector where a start fails, and so do its blocking clients
pytestmark = pytest.mark.filterwarnings(
    "ignore:Unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A place that the module's tests share; this process is the Jupyter server."""
    with place_of() as shared, pytest.MonkeyPatch.context() as patch:
        for name, value in shared.environment().items():
            patch.setenv(name, value)
        yield shared


class Session:
    """A started kernel with a stock client."""

    def __init__(self, manager: AsyncKernelManager) -> None:
        self.manager = manager
        self.client = manager.client()
        self.client.start_channels()

    @property
    def provisioner(self) -> FirejailProvisioner:
        """The manager's provisioner."""
        found = self.manager.provisioner
        assert isinstance(found, FirejailProvisioner)
        return found

    async def run(self, code: str, timeout: float = 20) -> tuple[str, str]:
        """Execute code; return the status and all that was said, an error's value included."""
        said: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            said.append(message["content"].get("text") or message["content"].get("evalue") or "")

        reply = await self.client.execute_interactive(code, output_hook=hear, timeout=timeout)
        return reply["content"]["status"], "".join(said)

    async def close(self) -> None:
        """Shut the kernel down."""
        self.client.stop_channels()
        if self.manager.has_kernel:
            await self.manager.shutdown_kernel(now=True)
        else:
            await self.manager.cleanup_resources()


async def started(name: str = KERNEL, **options: Any) -> Session:
    """Start a kernel and wait until it answers."""
    manager = AsyncKernelManager(kernel_name=name)
    await manager.start_kernel(**options)
    session = Session(manager)
    await session.client.wait_for_ready(timeout=20)
    return session


@pytest.fixture
async def kernel(place: Place) -> AsyncIterator[Session]:
    """A kernel of one's own."""
    session = await started()
    yield session
    await session.close()


async def test_a_confined_kernel(place: Place, kernel: Session) -> None:
    """What stock managers start is a cell: walls, a home of its own, nothing of the server's environment."""
    status, said = await kernel.run(LOOK)
    seen = json.loads(said)

    assert status == "ok"
    assert (seen["NoNewPrivs"], seen["Seccomp"], int(seen["CapEff"], 16), int(seen["CapBnd"], 16)) == (
        *("1", "2"),
        *(0, 0),
    )
    assert CANARY not in said
    assert not set(seen["env"]) & {"CANARY", "JUPYTER_PATH", "CELLBLOCK_STATE_DIR", "JPY_PARENT_PID"}
    assert set(seen["home"]) <= {".ipython", ".bashrc", ".inputrc", ".config", ".cache"}
    assert seen["network"] == "Operation not supported"
    assert seen["interfaces"] == []
    assert seen["pids"] < 10


async def test_the_connection(place: Place, kernel: Session) -> None:
    """The manager's facts are the cell's sockets over ipc, in a directory that others may not enter."""
    info = kernel.manager.get_connection_info()
    written = json.loads(Path(kernel.manager.connection_file).read_text())

    assert info["transport"] == written["transport"] == "ipc"
    assert written["key"].encode() == info["key"] == kernel.manager.session.key
    assert len(info["key"]) == 64
    folder = Path(info["ip"]).parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "c.json",
        *(f"k-{port}" for port in range(1, 6)),
    ]
    assert all(stat.S_ISSOCK(path.lstat().st_mode) for path in folder.glob("k-*"))
    facts = await kernel.provisioner.get_provisioner_info()
    assert facts["connection_info"]["ip"] == info["ip"]
    assert facts["pid"] in place.cells()
    assert facts["cell"] == folder.parent.name


async def test_nothing_but_sockets_beside_them(kernel: Session) -> None:
    """A cell cannot put a link where the server's sockets would follow it."""
    folder = Path(kernel.manager.get_connection_info()["ip"]).parent
    code = f"""
import os
for attempt in (
    lambda: os.symlink("/run/docker.sock", "{folder}/k-1~"),
    lambda: os.rename("{folder}/k-1", "{folder}/k-9"),
    lambda: open("{folder}/file", "w"),
    lambda: os.link("/etc/passwd", "{folder}/k-9"),
):
    try:
        attempt()
        print("done")
    except OSError:
        print("refused")
"""
    status, said = await kernel.run(code)

    assert status == "ok"
    # a socket may get another name: that takes the rights to remove one and to make one
    assert said.split() in (["refused", "done", "refused", "refused"], ["refused"] * 4)


@pytest.mark.parametrize(
    "code",
    [
        "import time\nwhile True: time.sleep(0.01)",
        "while True: pass",
        "import time; time.sleep(60)",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "9 ** 9 ** 9 ** 9",
    ],
    ids=["loop", "spin", "sleep", "child", "gil"],
)
async def test_interrupt(kernel: Session, code: str) -> None:
    """An interrupt ends the cell's execution at once and leaves the kernel as it was."""
    await kernel.run("kept = 1")
    running = asyncio.create_task(kernel.run(code))
    await asyncio.sleep(0.5)
    begun = time.monotonic()
    await kernel.manager.interrupt_kernel()
    status, _ = await running

    assert status == "error"
    assert time.monotonic() - begun < 2
    assert await kernel.run("print(kept)") == ("ok", "1\n")


async def test_restart(place: Place, kernel: Session) -> None:
    """A restart is a fresh cell at the same place with the same key: connected clients go on."""
    before, pid = kernel.manager.get_connection_info(), kernel.provisioner._cell.pid
    await kernel.run("import os; x = 1; open(os.path.expanduser('~/file'), 'w')")
    await kernel.manager.restart_kernel()
    await kernel.client.wait_for_ready(timeout=20)

    assert kernel.manager.get_connection_info() == before
    assert kernel.provisioner._cell.pid != pid
    assert (await kernel.run("x"))[0] == "error"
    assert await kernel.run("import os; print(os.path.exists(os.path.expanduser('~/file')))") == (
        "ok",
        "False\n",
    )
    assert len([line for line in place.cells().values() if "boot.py" in line.split(" --", 1)[0]]) == 1


@pytest.mark.parametrize(("code", "expected"), [("import os; os._exit(7)", 7), ("", -9)])
async def test_a_death_is_told(
    kernel: Session, caplog: pytest.LogCaptureFixture, code: str, expected: int
) -> None:
    """An end of the kernel's own is logged with its reason within a second, and its exit code kept."""
    with caplog.at_level(logging.ERROR):
        if code:
            kernel.client.execute(code)
        else:
            os.kill(kernel.provisioner._cell.pid, signal.SIGKILL)
        assert await eventually(lambda: "ended by itself" in caplog.text, timeout=1)

    assert not await kernel.manager.is_alive()
    code_kept = await kernel.provisioner.poll()
    assert code_kept in ({expected} if code else {-9, 137})
    assert (f"exit code {expected}" if code else "killed") in caplog.text


async def test_out_of_memory(kernel: Session, caplog: pytest.LogCaptureFixture) -> None:
    """Where there are control groups, the log says that memory ran out."""
    with caplog.at_level(logging.ERROR):
        kernel.client.execute("x = bytearray(3 << 30)")
        assert await eventually(lambda: "ended by itself" in caplog.text, timeout=15)

    assert "memory" in caplog.text


async def test_several_kernels(place: Place) -> None:
    """Two kernels of a multi-kernel manager do not see each other, and both are gone after shutdown_all."""
    manager = AsyncMultiKernelManager(default_kernel_name=KERNEL)
    ids = [await manager.start_kernel(), await manager.start_kernel()]
    sessions = [Session(manager.get_kernel(kernel_id)) for kernel_id in ids]
    for session in sessions:
        await session.client.wait_for_ready(timeout=20)
    other = Path(sessions[1].manager.get_connection_info()["ip"])
    assert await sessions[0].run(f"import os; print(os.path.exists('{other}-1'))") == ("ok", "False\n")
    for session in sessions:
        session.client.stop_channels()
    await manager.shutdown_all(now=True)

    assert await eventually(lambda: not place.cells())


async def test_a_refused_option(place: Place) -> None:
    """An option that there is none of, and a profile that there is not, start nothing and say so."""
    with pytest.raises(KernelRefused, match="no option shares"):
        FirejailProvisioner(shares="read-write")
    for name, value in {"profile": "nonesuch", "environment": "/etc"}.items():
        spec = place.directory / "share" / "jupyter" / "kernels" / KERNEL / "kernel.json"
        facts = json.loads(spec.read_text())
        facts["metadata"]["kernel_provisioner"]["config"][name] = value
        place.install(f"bad-{name}")
        spec.parent.with_name(f"bad-{name}").joinpath("kernel.json").write_text(json.dumps(facts))
        with pytest.raises(KernelRefused, match=value):
            await AsyncKernelManager(kernel_name=f"bad-{name}").start_kernel()

    assert not place.cells()


async def test_a_kernel_that_cannot_start(place: Place) -> None:
    """What the kernel says as it fails to start is in the error, and nothing of it is left."""
    place.install("broken")
    spec = place.directory / "share" / "jupyter" / "kernels" / "broken" / "kernel.json"
    facts = json.loads(spec.read_text())
    facts["argv"] = ["python", "-m", "no_such_module", "-f", "{connection_file}"]
    spec.write_text(json.dumps(facts))
    with pytest.raises(KernelRefused, match="no_such_module"):
        await AsyncKernelManager(kernel_name="broken").start_kernel()

    assert not place.cells()


@pytest.mark.parametrize("standin", [standins.RUNS_UNCONFINED, standins.RUNS_UNCONFINED_AS_THE_USER])
async def test_no_proof_no_kernel(standin: str) -> None:
    """A firejail that does not confine is found out before any byte of the kernel's code has run."""
    with place_of() as place, pytest.MonkeyPatch.context() as patch:
        canary = place.directory / "canary"
        spec = place.directory / "share" / "jupyter" / "kernels" / KERNEL / "kernel.json"
        facts = json.loads(spec.read_text())
        facts["argv"] = ["/bin/sh", "-c", f": > {canary}; exec sleep 300", "{connection_file}"]
        spec.write_text(json.dumps(facts))
        firejail = standins.install(place.directory / "bin" / "firejail", standin)
        for name, value in place.environment(CELLBLOCK_SANDBOX__FIREJAIL=str(firejail)).items():
            patch.setenv(name, value)
        place.directory.chmod(0o777)
        with pytest.raises(KernelRefused, match="not confined"):
            await AsyncKernelManager(kernel_name=KERNEL).start_kernel()

        assert not canary.exists()
        assert await place.nothing_left()


STARTS = """
import asyncio, sys
from jupyter_client import AsyncKernelManager
async def main():
    manager = AsyncKernelManager(kernel_name=sys.argv[1])
    await manager.start_kernel()
    print("started", flush=True)
    await asyncio.sleep(300)
asyncio.run(main())
"""


async def test_the_servers_death() -> None:
    """A server killed with SIGKILL leaves no kernel, and soon no warden; another server's kernels stay."""
    with place_of() as place:
        command = [sys.executable, "-c", STARTS, KERNEL]
        servers = [
            subprocess.Popen(command, env=place.environment(), stdout=subprocess.PIPE) for _ in range(2)
        ]
        try:
            for server in servers:
                assert server.stdout is not None
                assert await asyncio.to_thread(server.stdout.readline) == b"started\n"
            assert len(place.warden.warden_pids()) == 1
            both = set(place.cells())
            servers[0].kill()
            assert await eventually(lambda: 0 < len(place.cells()) <= len(both) // 2, timeout=2)
            await asyncio.sleep(1)
            assert place.cells()
        finally:
            for server in servers:
                server.kill()
                server.wait()
                assert server.stdout is not None
                server.stdout.close()
        assert await eventually(lambda: not place.cells(), timeout=2)
        assert await place.nothing_left()


async def test_the_wardens_death(place: Place, kernel: Session) -> None:
    """A warden that dies takes its cells along; the manager sees it and its next start finds another."""
    for pid in [*place.warden.keeper_pids(), *place.warden.warden_pids()]:
        os.kill(pid, signal.SIGKILL)
    assert await eventually(lambda: not place.cells(), timeout=5)
    assert await kernel.provisioner.wait() == KILLED
    await kernel.manager.restart_kernel(now=True)
    await kernel.client.wait_for_ready(timeout=20)

    assert await kernel.run("print(6 * 7)") == ("ok", "42\n")


async def test_sharing_as_root(place: Place) -> None:
    """Root's cells run as users without access to anybody's files, so a share is refused in a sentence."""
    place.install("sharing", share="read-only")
    with pytest.raises(KernelRefused, match="not shared with cells: a cell of root's"):
        await AsyncKernelManager(kernel_name="sharing").start_kernel(cwd=str(place.notebooks))


async def test_nbclient(place: Place) -> None:
    """An unchanged nbclient executes a notebook, and is told within seconds of a kernel that is killed."""
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": KERNEL, "display_name": KERNEL}})
    book.cells = [nbformat.v4.new_code_cell(code) for code in ("x = 6", "print(x * 7)", "x")]
    await NotebookClient(book, kernel_name=KERNEL, timeout=30).async_execute()
    assert book.cells[1].outputs[0].text == "42\n"
    assert book.cells[2].outputs[0].data["text/plain"] == "6"

    book.cells = [nbformat.v4.new_code_cell("import os; os._exit(1)")]
    begun = time.monotonic()
    with pytest.raises(DeadKernelError):
        await NotebookClient(book, kernel_name=KERNEL, timeout=30).async_execute()
    assert time.monotonic() - begun < 10
    assert await eventually(lambda: not place.cells())


async def test_papermill(place: Place) -> None:
    """The papermill command executes a notebook with parameters."""
    cell = nbformat.v4.new_code_cell("factor = 1", metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": KERNEL, "display_name": "x"}})
    book.metadata["language_info"] = {"name": "python"}
    book.cells = [cell, nbformat.v4.new_code_cell("import os; print(6 * factor, 'CANARY' in os.environ)")]
    source, target = place.notebooks / "in.ipynb", place.notebooks / "out.ipynb"
    nbformat.write(book, source)
    command = [str(BIN / "papermill"), str(source), str(target), "-p", "factor", "7", "--no-progress-bar"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    outputs = [output for cell in nbformat.read(target, 4).cells for output in cell.get("outputs", [])]
    assert "42 False\n" in [output.get("text") for output in outputs]
    assert await eventually(lambda: not place.cells())


async def test_console(place: Place) -> None:
    """jupyter-console runs on a kernel in a cell."""
    command = [str(BIN / "jupyter-console"), "--kernel", KERNEL, "--simple-prompt"]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        input="print(6 * 7)\nimport os; print('CANARY' in os.environ)\nexit\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert re.search(r"\b42\b", done.stdout), (done.stdout, done.stderr)
    assert "False" in done.stdout
    assert await eventually(lambda: not place.cells())


async def test_everything_goes(place: Place) -> None:
    """Once no kernel is left the warden goes as well: no processes, sockets, mounts or groups."""
    assert await place.nothing_left()


def test_the_gateways_catalogue(tmp_path: Path) -> None:
    """A gateway that reads Jupyter's kernelspecs leaves those of the provisioner's out."""
    install(prefix=tmp_path)
    settings = KernelsSettings(spec_dirs=(tmp_path / "share" / "jupyter" / "kernels",))

    assert KERNEL not in SpecCatalogue(settings).specs()
    assert "python3" in SpecCatalogue(settings).specs()


@pytest.mark.usefixtures("place")
class TestConformance(jupyter_kernel_test.KernelTests):
    """jupyter_kernel_test against the kernelspec: what any kernel must answer."""

    kernel_name = KERNEL
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples: ClassVar = [{"text": "zi", "matches": {"zip"}}]
    complete_code_samples: ClassVar = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples: ClassVar = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples: ClassVar = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise ValueError"
    code_execute_result: ClassVar = [{"code": "1+2+3", "result": "6"}]
    code_display_data: ClassVar = [
        {"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))", "mime": "text/html"}
    ]
    code_history_pattern = "1?2*"
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    def test_history(self) -> None:
        """The last inputs and a search of them; of ranges ipykernel names another session."""
        code = self.code_execute_result[0]["code"]
        tail = self.history_helper([code], output=False, raw=True, hist_access_type="tail", n=1)
        found = self.history_helper(
            [code], output=False, raw=True, hist_access_type="search", pattern=self.code_history_pattern, n=1
        )

        assert [entry[2] for entry in tail["content"]["history"]] == [code]
        assert [entry[2] for entry in found["content"]["history"]] == [code]
