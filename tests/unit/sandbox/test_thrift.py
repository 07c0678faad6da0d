"""What ipykernel does without at its start in a cell, with the versions that kernels have; how it comes."""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path

import pytest

from gateway.sandbox import thrift

PYTHON = Path("/srv/cellblock/envs/python3/bin/python")
# as the boot step does it, with the names that are looked for afterwards
LOAD = f"""
import json, sys
names = {{"__name__": "thrift"}}
exec(compile(open({thrift.__file__!r}).read(), "thrift", "exec"), names)
names["load_ipykernel"](debugger=True)
def there(*modules):
    return [name for name in modules if name in sys.modules]
"""
LARGE = (
    "ssl",
    "_ssl",
    "asyncio.sslproto",
    "dateutil.parser",
    "dateutil.tz",
    "debugpy",
    "html.entities",
    "importlib.metadata",
    "ipaddress",
    "jupyter_client.kernelspec",
    "jupyter_client.manager",
    "tornado.log",
)


def inside(code: str, *, load: bool = True) -> object:
    """Run code in the kernels' own Python once ipykernel is loaded; return what it prints, from JSON."""
    program = (LOAD if load else "import json\n") + textwrap.dedent(code)
    done = subprocess.run([PYTHON, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_none_of_it_is_loaded_with_the_versions_that_kernels_have() -> None:
    """Whoever locks other versions sees here whether the stand-ins still do their work."""
    assert inside(f"print(json.dumps(there(*{LARGE!r})))") == []
    plain = "import sys, ipykernel.kernelapp, ipykernel.debugger, tornado.platform.asyncio\n"
    everything = inside(f"{plain}print(json.dumps([n for n in {LARGE!r} if n in sys.modules]))", load=False)
    assert everything == list(LARGE)


def test_who_imports_them_gets_the_modules_themselves() -> None:
    """A user's import is the real module, and what was there before it sees the same one."""
    found = inside("""
        import asyncio, ssl, dateutil.tz, ipaddress, tornado.log, tornado.ioloop, types, urllib.parse
        plain = [type(each) is types.ModuleType for each in (ssl, dateutil.tz, ipaddress, tornado.log)]
        same = [
            asyncio.base_events.ssl.SSLContext is ssl.SSLContext,
            asyncio.sslproto.SSLProtocol is asyncio.base_events.sslproto.SSLProtocol,
            tornado.ioloop.app_log is tornado.log.app_log,
            urllib.parse.urlsplit("http://[::1]/").hostname == "::1",
        ]
        print(json.dumps([plain, same, there("asyncio.sslproto")]))
    """)
    assert found == [[True] * 4, [True] * 4, ["asyncio.sslproto"]]


def test_a_package_runs_itself_when_something_of_its_own_is_used() -> None:
    """Jupyter's client has all its names, and one that it has not is an AttributeError as ever."""
    found = inside("""
        import jupyter_client, types
        before = there("jupyter_client.manager")
        found = [jupyter_client.KernelManager.__name__, jupyter_client.__version__[0] >= "8"]
        try:
            jupyter_client.nothing
        except AttributeError:
            found.append(type(jupyter_client) is types.ModuleType)
        from ipykernel.kernelapp import IPKernelApp
        client = IPKernelApp().blocking_client()
        found.append(isinstance(client, jupyter_client.BlockingKernelClient))
        print(json.dumps([before, found]))
    """)
    assert found == [[], ["KernelManager", True, True, True]]


def test_dates_of_messages_are_read_as_before() -> None:
    """Python reads them; what it does not take, and dates without a zone, go to dateutil."""
    found = inside("""
        from jupyter_client.jsonutil import parse_date
        texts = ["2026-01-02T03:04:05.123456Z", "2026-01-02T03:04:05+01:30", "2026-01-02T24:00:00Z"]
        dates = [parse_date(each).isoformat() for each in texts[:2]], there("dateutil.parser")
        import warnings
        warnings.simplefilter("ignore")
        midnight, local = parse_date(texts[2]), parse_date("2026-01-02T03:04:05")
        print(json.dumps([dates, midnight.isoformat(), local.tzinfo is not None, parse_date("no")]))
    """)
    read = ["2026-01-02T03:04:05.123456+00:00", "2026-01-02T03:04:05+01:30"]
    assert found == [[read, []], "2026-01-03T00:00:00+00:00", True, "no"]


def test_the_debugger_comes_with_its_first_request() -> None:
    """Until then it waits on the loop that requests come on; then it answers, and handles its own events."""
    found = inside("""
        import asyncio, types
        stand_in = sys.modules["ipykernel.debugger"]
        class Real:
            def __init__(self, *arguments):
                self.arguments, self.handled = arguments, 0
            async def process_request(self, message):
                return [message, self.arguments]
            async def handle_stopped_event(self):
                self.handled += 1
                await asyncio.sleep(60)
        debugger = stand_in.Debugger("log", "stream")
        sys.modules["ipykernel.debugger"] = types.SimpleNamespace(Debugger=Real)
        async def use():
            waiting = asyncio.create_task(debugger.handle_stopped_event())
            await asyncio.sleep(0.01)
            before = debugger.__dict__["_real"] is None, waiting.done()
            answer = await debugger.process_request("asked")
            await asyncio.sleep(0.01)
            waiting.cancel()
            return [before, answer, debugger.handled, stand_in._is_debugpy_available]
        print(json.dumps(asyncio.run(use())))
    """)
    assert found == [[True, False], ["asked", ["log", "stream"]], 1, True]


@pytest.mark.parametrize("first", ["pdb", "IPython.core.debugger"])
def test_pythons_debugger_becomes_ipythons_when_either_is_imported(first: str) -> None:
    """Whichever comes first: the patch is made then, and modules are what an import makes of them."""
    found = inside(f"""
        from ipykernel.kernelapp import IPKernelApp
        IPKernelApp().init_pdb()
        before = there("pdb", "IPython.core.debugger")
        import importlib
        first = importlib.import_module({first!r})
        import inspect, pdb, IPython.core.debugger
        print(json.dumps([
            before,
            first is sys.modules[{first!r}],
            pdb.Pdb is IPython.core.debugger.InterruptiblePdb,
            pdb.set_trace is IPython.core.debugger.set_trace,
            [each.__spec__.loader.name for each in (pdb, IPython.core.debugger)],
            "def post_mortem" in inspect.getsource(pdb),
            importlib.reload(pdb) is pdb,
        ]))
    """)
    assert found == [[], True, True, True, ["pdb", "IPython.core.debugger"], True, True]


FITTING = ["ipykernel-7.4.0", "ipython-9.18.1", "jupyter_client-8.10.0", "tornado-6.6.1", "zmq-1"]


@pytest.mark.parametrize("missing", range(4))
def test_there_are_none_beside_versions_that_nobody_has_tried(missing: int) -> None:
    """One that does not fit is enough for ipykernel to be loaded as it is."""
    names = [f"{name}.dist-info" for name in FITTING]
    assert thrift.fits(names)
    assert not thrift.fits(FITTING)
    names[missing] = names[missing].replace("-", "-1", 1)
    assert not thrift.fits(names)
