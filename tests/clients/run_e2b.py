"""Run in .venv-agents: E2B's own SDK against a gateway, in its sync and its async form, with the same steps.

Reads what to run from stdin, a JSON object with `flavour` and `scenarios`; writes one JSON object, the
outcome of each scenario by its name.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import e2b_code_interpreter as e2b

ENVS = {"QUOTED": 'it\'s a "b" \\ $HOME `id`\nnext', "PLAIN": "p"}
TRICK = "');import os;os.environ['HACKED']='1';('"
PLOT = """
import matplotlib.pyplot as plt
plt.plot([1, 2], [3, 4], label='L'); plt.xlabel('t (s)'); plt.show()
"""
DEATH = "print('last', flush=True)\nimport os, time; time.sleep(.2); os.kill(os.getpid(), 9)"
SCENARIOS: dict[str, Callable[[Any], Any]] = {}


class Loop:
    """An event loop in a thread, so that what is awaitable can be called step by step."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def wait(self, awaitable: Any) -> Any:
        """Return what an awaitable gives."""

        async def awaited() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result()


class Waited:
    """Something of the async SDK, whose methods wait."""

    def __init__(self, loop: Loop, inner: Any) -> None:
        self._loop, self._inner = loop, inner

    def __getattr__(self, name: str) -> Any:
        return self._of(getattr(self._inner, name))

    def _of(self, value: Any) -> Any:
        if inspect.isroutine(value) or isinstance(value, type(self.__init__)):

            def call(*arguments: Any, **named: Any) -> Any:
                plain = [given._inner if isinstance(given, Waited) else given for given in arguments]
                named = {k: v._inner if isinstance(v, Waited) else v for k, v in named.items()}

                async def called() -> Any:
                    found = value(*plain, **named)
                    return await found if inspect.isawaitable(found) else found

                return self._of(self._loop.wait(called()))

            return call
        module = type(value).__module__
        wraps = module.startswith(("e2b.sandbox_async", "e2b_code_interpreter.code_interpreter_async"))
        return Waited(self._loop, value) if wraps else value


class Kit:
    """What a scenario is given: the SDK's class, and a sandbox that the scenarios share."""

    def __init__(self, flavour: str) -> None:
        loop = Loop()
        self.Sandbox = e2b.Sandbox if flavour == "sync" else Waited(loop, e2b.AsyncSandbox)
        self._shared: Any = None

    @property
    def sandbox(self) -> Any:
        """A sandbox that some scenarios share."""
        if self._shared is None:
            self._shared = self.Sandbox.create(
                metadata={"who": "shared one", "%41": "a=b&c"}, envs=ENVS, retries=0
            )
        return self._shared

    def close(self) -> None:
        """End it."""
        if self._shared is not None:
            self._shared.kill()


def scenario(function: Callable[[Kit], Any]) -> Callable[[Kit], Any]:
    """Take a function into the table."""
    SCENARIOS[function.__name__] = function
    return function


def failed(call: Callable[[], Any]) -> list[str]:
    """Return the class and text of what a call raises."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def told(execution: Any) -> dict[str, Any]:
    """Return an execution in JSON."""
    error = execution.error
    return {
        "text": execution.text,
        "stdout": "".join(execution.logs.stdout),
        "stderr": "".join(execution.logs.stderr),
        "formats": [sorted(result.formats()) for result in execution.results],
        "error": error and [error.name, error.value],
        "count": execution.execution_count,
    }


@scenario
def results(kit: Kit) -> Any:
    """Text, streams, plots, HTML, data frames, errors."""
    run = kit.sandbox.run_code
    seen: list[list[str]] = []
    streams = run(
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\ndisplay('shown')\n6 * 7",
        on_stdout=lambda message: seen.append(["stdout", message.line]),
        on_stderr=lambda message: seen.append(["stderr", message.line]),
        on_result=lambda result: seen.append(["result", result.text]),
    )
    raised: list[str] = []
    error = run("kept = 5\nprint('before')\n1 / 0", on_error=lambda error: raised.append(error.name))
    plot = run(PLOT)
    bars = run("plt.bar(['a', 'b'], [3, 4]); plt.show()")
    frame = run("import pandas as pd\npd.DataFrame({'a': [1, None], 'b': ['x', 'y']})")
    return {
        "streams": told(streams),
        "seen": seen,
        "error": told(error),
        "traceback": error.error.traceback,
        "raised": raised,
        "plot": told(plot),
        "chart": plot.results[0].chart.to_dict(),
        "chart_class": type(plot.results[0].chart).__name__,
        "bars": bars.results[0].chart.to_dict()["elements"],
        "html": told(run("from IPython.display import HTML\nHTML('<b>x</b>')")),
        "frame": told(frame),
        "data": frame.results[0].data,
        "quotes": run("'a text'").text,
        "kept": run("kept").text,
    }


@scenario
def environment(kit: Kit) -> Any:
    """Variables of the sandbox, of one execution, and of a command."""
    run = kit.sandbox.run_code
    names = ("QUOTED", "PLAIN", "ONCE", "HACKED")
    show = f"import json, os; print(json.dumps([os.environ.get(n) for n in {names}]))"
    bash = kit.sandbox.create_code_context(language="bash")
    line = 'printf "%s|%s|%s" "$QUOTED" "$PLAIN" "${ONCE-unset}"'
    found = {
        "lasting": told(run(show))["stdout"],
        "once": told(run(show, envs={"ONCE": TRICK, "PLAIN": "q"}))["stdout"],
        "after": told(run(show))["stdout"],
        "after_error": [run("1 / 0", envs={"ONCE": "x"}).error.name, told(run(show))["stdout"]],
        "bash": told(run(line, context=bash))["stdout"],
        "bash_once": told(run(line, context=bash, envs={"ONCE": "$(id)\n'\"", "PLAIN": "q"}))["stdout"],
        "bash_after": told(run(line, context=bash))["stdout"],
        "command": kit.sandbox.commands.run(line, envs={"ONCE": "1", "PLAIN": "c"}).stdout,
    }
    kit.sandbox.remove_code_context(bash)
    return found


@scenario
def contexts(kit: Kit) -> Any:
    """Contexts: state of their own, files in common, a directory, a language, restart and removal."""
    box = kit.sandbox
    first = [[c.language, c.cwd] for c in box.list_code_contexts()]
    box.files.make_dir("work")
    box.run_code("state = 'first'; open('work/shared', 'w').write('x')")
    other = box.create_code_context(cwd="/home/user/work")
    found = {
        "first": first,
        "made": [other.language, other.cwd],
        "apart": told(box.run_code("state", context=other))["error"],
        "files": box.run_code("import os; state = 'other'; os.listdir()", context=other).text,
        "absolute": box.run_code("open('/home/user/work/shared').read()", context=other).text,
        "listed": len(box.list_code_contexts()),
    }
    box.restart_code_context(other)
    found["restarted"] = told(box.run_code("state", context=other))["error"]
    found["directory"] = box.run_code("import os; os.path.basename(os.getcwd())", context=other).text
    found["bash"] = told(box.run_code("echo $BASH_VERSION | cut -c1", language="bash"))["stdout"]
    found["bash_again"] = len(box.list_code_contexts())
    box.run_code("said=hello", language="bash")
    found["bash_state"] = told(box.run_code("echo $said", language="bash"))["stdout"]
    box.remove_code_context(other)
    found["removed"] = failed(lambda: box.run_code("1", context=other))
    found["unremovable"] = failed(lambda: box.remove_code_context(box.list_code_contexts()[0]))
    found["language"] = failed(lambda: box.run_code("1", language="cobol"))
    found["cwd"] = failed(lambda: box.create_code_context(cwd="/home/user/nowhere"))
    found["nowhere"] = failed(lambda: box.restart_code_context("00000000-0000-4000-8000-000000000000"))
    found["left"] = len(box.list_code_contexts())
    found["first_state"] = box.run_code("state").text
    return found


@scenario
def files(kit: Kit) -> Any:
    """Files: written in every form, read, listed, renamed, removed; and nothing outside of the home."""
    box, found = kit.sandbox, {}
    written = box.files.write("/home/user/f/ü text.txt", "öne\n")
    found["written"] = [written.name, written.path, written.type.value]
    found["read"] = box.files.read("f/ü text.txt")
    box.files.write("f/raw", bytes(range(256)) * 1000, use_octet_stream=True)
    box.files.write("f/zipped", b"z" * 100_000, gzip=True)
    found["bytes"] = [len(box.files.read(f"f/{name}", format="bytes")) for name in ("raw", "zipped")]
    several = box.files.write_files([{"path": f"/home/user/f/many/{n}", "data": str(n)} for n in range(3)])
    found["several"] = [info.path for info in several]
    found["seen"] = box.run_code("import os; sorted(os.listdir('/home/user/f'))").text
    found["listed"] = [[e.name, e.type.value, e.path] for e in box.files.list("/home/user/f")]
    found["deep"] = len(box.files.list("f", depth=3))
    info = box.files.get_info("f/raw")
    found["info"] = [info.size, info.permissions, info.owner, info.modified_time.year > 2000]
    found["exists"] = [box.files.exists("f/raw"), box.files.exists("f/none")]
    found["made"] = [box.files.make_dir("f/a/b"), box.files.make_dir("f/a/b")]
    found["renamed"] = box.files.rename("f/raw", "f/a/moved").path
    box.files.remove("f/many")
    found["gone"] = box.files.exists("f/many")
    box.run_code("import os; os.symlink('/etc', '/home/user/f/link')")
    found["kinds"] = {e.name: e.type.value for e in box.files.list("f") if e.name in {"a", "link"}}
    found["outside"] = [
        failed(lambda: box.files.read("/etc/passwd")),
        failed(lambda: box.files.read("../../etc/passwd")),
        failed(lambda: box.files.write("/tmp/x", "x")),
        failed(lambda: box.files.read("f/link/passwd")),
    ]
    found["missing"] = [
        failed(lambda: box.files.read("f/none")),
        failed(lambda: box.files.list("f/none")),
        failed(lambda: box.files.remove("f/none")),
        failed(lambda: box.files.rename("f/none", "f/x")),
    ]
    return found


@scenario
def commands(kit: Kit) -> Any:
    """Commands: output, codes, background, input, kill, list, deadlines."""
    box, found, seen = kit.sandbox, {}, []
    done = box.commands.run(
        "echo out; echo err >&2; basename $PWD",
        cwd="/home/user",
        on_stdout=lambda text: seen.append(["stdout", text]),
        on_stderr=lambda text: seen.append(["stderr", text]),
    )
    found["plain"] = [done.stdout.splitlines()[0], done.stderr, done.exit_code]
    found["seen"] = sorted({name for name, _ in seen})
    found["python"] = box.commands.run("python -c 'print(6 * 7)'").stdout
    try:
        box.commands.run("echo some; exit 3")
    except e2b.CommandExitException as error:
        found["failed"] = [error.exit_code, error.stdout]
    cat = box.commands.run("cat; echo end", background=True, stdin=True)
    found["running"] = [p.args[-1] for p in box.commands.list() if p.pid == cat.pid]
    box.commands.send_stdin(cat.pid, "line\n")
    box.commands.close_stdin(cat.pid)
    found["echoed"] = cat.wait().stdout
    sleeper = box.commands.run("echo begun; sleep 60", background=True)
    found["while_busy"] = box.run_code("1 + 1").text
    again = box.commands.connect(sleeper.pid)
    found["killed"] = [box.commands.kill(sleeper.pid), box.commands.kill(999_999)]
    found["after_kill"] = failed(again.wait)
    found["none"] = [p.args[-1] for p in box.commands.list() if "sleep 60" in p.args[-1]]
    began = time.monotonic()
    found["deadline"] = failed(lambda: box.commands.run("sleep 31", timeout=1))[0]
    found["deadline_s"] = time.monotonic() - began
    time.sleep(1)
    found["ended"] = [p.args[-1] for p in box.commands.list()]
    found["nowhere"] = failed(lambda: box.commands.run("true", cwd="/home/user/nowhere"))[0]
    return found


@scenario
def deadline(kit: Kit) -> Any:
    """A client's own deadline interrupts the code, and the kernel stays with what it knew."""
    box = kit.sandbox
    box.run_code("kept = 'here'")
    began = time.monotonic()
    raised = failed(lambda: box.run_code("import time; time.sleep(60)", timeout=1))
    took = time.monotonic() - began
    began = time.monotonic()
    kept = box.run_code("kept").text
    return {"raised": raised, "took": took, "kept": kept, "next_took": time.monotonic() - began}


@scenario
def death(kit: Kit) -> Any:
    """A kernel that dies is told of; the next code has a fresh one, with the files and variables."""
    box = kit.sandbox
    box.files.write("survives", "yes")
    died = told(box.run_code(DEATH))
    return {
        "died": died,
        "after": box.run_code("open('survives').read()").text,
        "env": box.run_code("import os; os.environ['PLAIN']").text,
    }


@scenario
def life(kit: Kit) -> Any:
    """Create, look, list, put off, pause, come back, end."""
    box = kit.Sandbox.create(metadata={"life": "1"}, timeout=600)
    shared = kit.sandbox.sandbox_id
    info = box.get_info()
    pages, listed = kit.Sandbox.list(limit=1), []
    while pages.has_next:
        listed += [each.sandbox_id for each in pages.next_items()]
    query = e2b.SandboxQuery(metadata={"who": "shared one", "%41": "a=b&c"})
    found = {
        "info": [info.sandbox_id == box.sandbox_id, info.template_id, info.metadata, info.state.value],
        "left_s": (info.end_at - info.started_at).total_seconds(),
        "listed": {box.sandbox_id, shared} <= set(listed) and len(set(listed)) == len(listed),
        "by_metadata": [each.metadata["who"] for each in kit.Sandbox.list(query=query).next_items()],
        "running": box.is_running(),
    }
    box.set_timeout(60)
    info = box.get_info()
    found["put_off"] = (info.end_at - info.started_at).total_seconds() < 120
    box.run_code("kept = 1")
    found["paused"] = [box.pause(), box.pause(), box.is_running(), box.get_info().state.value]
    found["while_paused"] = failed(lambda: box.files.list("."))[0]
    other = kit.Sandbox.connect(box.sandbox_id)
    found["came_back"] = [other.is_running(), other.run_code("kept").text, box.run_code("kept").text]
    found["metrics"] = [metric.mem_used > 0 for metric in box.get_metrics()]
    found["killed"] = [box.kill(), box.kill(), box.is_running()]
    found["gone"] = [
        failed(box.get_info),
        failed(lambda: box.set_timeout(5)),
        failed(lambda: box.run_code("1"))[0],
        failed(lambda: box.files.list("."))[0],
        failed(lambda: box.commands.run("true"))[0],
    ]
    return found


@scenario
def not_offered(kit: Kit) -> Any:
    """What is out of scope is answered clearly, each in its own way."""
    box = kit.sandbox
    return {
        "snapshot": failed(box.create_snapshot),
        "fork": failed(box.fork),
        "network": failed(lambda: kit.Sandbox.create(allow_internet_access=True)),
        "volume": failed(lambda: kit.Sandbox.create(volume_mounts={"/data": "v"})),
        "template": failed(lambda: kit.Sandbox.create("my-own")),
        "timeout": failed(lambda: kit.Sandbox.create(timeout=10_000_000)),
        "pty": failed(lambda: pty(box)),
        "watch": failed(lambda: watch(box)),
        "metadata": failed(lambda: box.files.write("x", "x", metadata={"a": "b"})),
    }


def pty(box: Any) -> Any:
    """Ask for a terminal."""
    size = e2b.PtySize(24, 80)
    if isinstance(box, Waited):
        return box.pty.create(size=size, on_data=lambda _: None)
    return box.pty.create(size=size)


def watch(box: Any) -> Any:
    """Ask for a directory to be watched."""
    if isinstance(box, Waited):
        return box.files.watch_dir("/home/user", on_event=lambda _: None)
    return box.files.watch_dir("/home/user")


@scenario
def create_one(kit: Kit) -> Any:
    """Make a sandbox and leave it; whatever was refused is told."""
    try:
        box = kit.Sandbox.create(retries=0, timeout=JOB.get("timeout", 300))
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return {"refused": [type(error).__name__, str(error)]}
    box.run_code("kept = 'before'; open('file', 'w').write('f')")
    return {"id": box.sandbox_id}


@scenario
def foreign(kit: Kit) -> Any:
    """Use a sandbox that is not one's own."""
    found = {}
    for name in (JOB["id"], "0" * 20):
        mine = kit.sandbox.sandbox_id
        found[name] = [
            failed(lambda name=name: kit.Sandbox.connect(name)),
            failed(lambda name=name: kit.Sandbox.get_info(name)),
            failed(lambda name=name: kit.Sandbox.set_timeout(name, 5)),
            failed(lambda name=name: kit.Sandbox.pause(name)),
            [str(kit.Sandbox.kill(name))],
            [each.sandbox_id for each in kit.Sandbox.list().next_items() if each.sandbox_id != mine],
        ]
    return found


@scenario
def come_back(kit: Kit) -> Any:
    """Come back to a sandbox that was left."""
    box = kit.Sandbox.connect(JOB["id"])
    ran = box.commands.run("pwd").exit_code
    return {"kept": box.run_code("kept").text, "file": box.files.read("file"), "ran": ran}


JOB: dict[str, Any] = {}


def main() -> None:
    """Do what stdin says."""
    JOB.update(json.load(sys.stdin))
    kit, outcome = Kit(JOB["flavour"]), {}
    for name in JOB["scenarios"]:
        try:
            outcome[name] = SCENARIOS[name](kit)
        except Exception:  # noqa: BLE001 - the test shows it
            outcome[name] = {"failed": traceback.format_exc()}
    kit.close()
    print(json.dumps(outcome))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
