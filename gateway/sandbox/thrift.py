"""Thrift, a part of the in-cell boot step: what ipykernel loads at its start though few kernels ever use it.

Each such module has a stand-in while ipykernel is loaded, which loads what it stands for when something of it
is used. They are gone from `sys.modules` before the first code of a user's, which so gets the modules
themselves; only the debugger's stays until a client asks for it. Stdlib only.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType
    from typing import Any
else:
    ModuleType = type(sys)

# whose modules the stand-ins were made for; beside others there are none
FITTING = ("ipykernel-7.", "ipython-9.", "jupyter_client-8.", "tornado-6.")
LOGGERS = {"access_log": "access", "app_log": "application", "gen_log": "general"}


def loaded(name: str) -> Any:
    """Return a module, loaded now if it is not there yet."""
    from importlib import import_module

    return import_module(name)


class StandIn(ModuleType):
    """A module that is loaded when something of it is used, but for what it is given beforehand."""

    def __init__(self, name: str, **known: Any) -> None:
        super().__init__(name)
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        """Return something of the module's own."""
        if name.startswith("__"):
            # who imports it, or looks through all modules, asks for these
            raise AttributeError(name)
        return getattr(self.replaced(), name)

    def replaced(self) -> Any:
        """Return the module itself, loaded now if it is not there yet."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return loaded(self.__name__)


class Package(ModuleType):
    """A package whose modules can be had before it runs itself, as it does when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        """Return something of the package's own."""
        running: set[int] = self.__dict__.setdefault("_running", set())
        if (thread := get_ident()) in running or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        running.add(thread)
        try:
            # two threads may come to it at once: it only imports, so that twice is no harm
            self.__spec__.loader.exec_module(self)
        finally:
            running.discard(thread)
        self.__class__ = ModuleType  # type: ignore[assignment]
        return getattr(self, name)


class Debugger:
    """Stands for ipykernel's debugger until a client asks it for something: what that loads is large."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments
        self._real: Any = None
        self._asked: Any = None

    def __getattr__(self, name: str) -> Any:
        """Return something of the debugger's own."""
        if self._real is None:
            stand_in = sys.modules["ipykernel.debugger"]
            module = stand_in.replaced() if isinstance(stand_in, StandIn) else stand_in
            self._real = module.Debugger(*self._arguments)
        return getattr(self._real, name)

    async def process_request(self, message: Any) -> Any:
        """Have the debugger answer."""
        process_request = self.__getattr__("process_request")
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(None)
        return await process_request(message)

    async def handle_stopped_event(self) -> None:
        """Wait for the first request, and be the debugger's own then; on the loop that requests come on."""
        if self._real is None:
            import asyncio

            self._asked = asyncio.get_running_loop().create_future()
            await self._asked
        await self.__getattr__("handle_stopped_event")()


class Forerunner:
    """Does a piece of work when the first of some modules is imported, which that work imports itself."""

    def __init__(self, names: tuple[str, ...], work: Callable[[], None]) -> None:
        self._names = names
        self._work = work
        self._spec: Any = None

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> Any:
        """Do the work, once, and have its module taken for the one that is looked for."""
        if name not in self._names or self not in sys.meta_path:
            return None
        from importlib.machinery import ModuleSpec

        sys.meta_path.remove(self)
        self._work()
        module = loaded(name)
        # who imports asks the module that is there for it, rather than this
        self._spec, module.__spec__ = module.__spec__, ModuleSpec(name, self)  # type: ignore[arg-type]
        return module.__spec__

    def create_module(self, spec: Any) -> Any:
        """Return the module that is there already."""
        return sys.modules[spec.name]

    def exec_module(self, module: Any) -> None:
        """Leave it as it is."""
        module.__spec__ = self._spec


class BlockingClient:
    """Stands for the client of itself that a kernel's application could make."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        """Make one."""
        return loaded("jupyter_client").BlockingKernelClient(*arguments, **named)


def load_ipykernel(*, debugger: bool) -> None:
    """Load ipykernel beside the stand-ins; `debugger` tells whether its debugger's is among them.

    Raises:
        ImportError: it is not there.
    """
    from importlib.util import find_spec

    spec = find_spec("ipykernel")
    if spec is None or spec.origin is None:
        raise ImportError("There is no ipykernel.")
    if not fits(os.listdir(os.path.dirname(os.path.dirname(spec.origin)))):
        return
    placed = place()
    try:
        if debugger:
            place_debugger()
        place_package()
        application = loaded("ipykernel.kernelapp").IPKernelApp
        # it comes with the first loop
        loaded("tornado.platform.asyncio")
    finally:
        for name, module in placed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
    for name, module in placed.items():
        # they are looked for in their packages without an import
        package, _, own = name.rpartition(".")
        if package in sys.modules:
            sys.modules[package].__dict__.setdefault(own, module)
    application.blocking_class.default_value = BlockingClient
    init_pdb = application.init_pdb

    def init_pdb_late(self: Any) -> None:
        """Put IPython's debugger in the place of Python's once either is used."""
        forerunner: Any = Forerunner(("pdb", "IPython.core.debugger"), lambda: init_pdb(self))
        sys.meta_path.insert(0, forerunner)

    application.init_pdb = init_pdb_late


def fits(names: Iterable[str]) -> bool:
    """Tell whether the distributions that the stand-ins are made for are among names of files."""
    found = [name.lower() for name in names if name.endswith(".dist-info")]
    return all(any(name.startswith(known) for name in found) for known in FITTING)


def place() -> dict[str, ModuleType]:
    """Put stand-ins where modules are looked for, and return them by their names."""
    import logging
    from datetime import datetime

    def isoparse(text: str) -> Any:
        """Read a message's date: all but a few are of the form that Python itself reads."""
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            return parser.replaced().isoparse(text)

    def tzlocal() -> Any:
        """Return the local time zone."""
        return zones.replaced().tzlocal()

    parser = StandIn("dateutil.parser", isoparse=isoparse)
    zones = StandIn("dateutil.tz", tzlocal=tzlocal)
    loggers = {name: logging.getLogger(f"tornado.{each}") for name, each in LOGGERS.items()}
    log = StandIn("tornado.log", **loggers)
    plain = map(StandIn, ("ssl", "asyncio.sslproto", "ipaddress"))
    placed: dict[str, ModuleType] = {each.__name__: each for each in (*plain, parser, zones, log)}
    sys.modules.update(placed)
    return placed


def place_debugger() -> None:
    """Put a debugger's stand-in in its place, where it stays until it is asked."""
    from importlib.util import find_spec

    there = find_spec("debugpy") is not None
    name = "ipykernel.debugger"
    sys.modules[name] = StandIn(name, _is_debugpy_available=there, Debugger=Debugger)


def place_package() -> None:
    """Have jupyter_client's modules without its clients and managers."""
    from importlib.util import find_spec, module_from_spec

    spec = find_spec("jupyter_client")
    if spec is None:
        return
    package = module_from_spec(spec)
    package.__class__ = Package
    sys.modules["jupyter_client"] = package
    connect = loaded("jupyter_client.connect")
    package.__dict__.update({name: getattr(connect, name) for name in connect.__all__})
