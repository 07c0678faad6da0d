"""The ways in which a page gets at a cell."""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

from gateway.kernels import provisioner_spec
from tests.browser import lab as labs
from tests.browser.chromium import chromium, until
from tests.browser.notebook import Notebook
from tests.browser.page import Page, site
from tests.browser.wire import Wire
from tests.conftest import ROOM
from tests.gateway import Gateway, kernel_pids, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from selenium.webdriver import Chrome

    from tests.browser.lab import Lab
    from tests.browser.scenarios import Shown


# the Jupyter server's own bound, which holds our mark back, too, while it is passed
JUPYTERS = "IOPub data rate exceeded"


class Place(ABC):
    """A browser, and what its pages have their kernels from: where scenarios are played."""

    cuts: tuple[str, ...] = ("[cellblock] ",)  # how a mark begins where output was cut
    # for how long the page is without a network; of any such time, JupyterLab makes 10 to 30 s of its own
    away_s = 0.0
    may_lose = 0  # messages that are lost with the page's connection

    def __init__(self, driver: Chrome, page: Wire, gateway: Gateway | None = None, wire: Wire | None = None):
        self.driver = driver
        self.page = page  # the network between the browser and its server
        self.wire = wire  # the network between a Jupyter server and the gateway
        self.gateway = gateway
        self.opened = 0

    @abstractmethod
    def notebook(self, *cells: str, metadata: Mapping[str, Any] | None = None) -> Shown:
        """Open a new notebook with these cells, on a kernel of its own; `metadata` is each cell's."""

    @abstractmethod
    def log(self) -> str:
        """Return what the server in front of the page has said."""

    def kernel_pids(self) -> list[int]:
        """List the kernels as the host's pids, the one started last at the end."""
        assert self.gateway is not None
        return self.gateway.kernel_pids()

    def restart_gateway(self) -> None:
        """End the gateway as a service manager does, and start it again at the same place."""
        assert self.gateway is not None
        self.gateway.end()
        self.gateway.start()
        (self.wire or self.page).lead_to(port_of(self.gateway.url))
        # what is sent before they are back, some clients lose without a word
        until(lambda: max(self._kernels(), key=lambda kernel: kernel["started_at"])["connections"] > 0, 50)

    def _kernels(self) -> list[dict[str, Any]]:
        assert self.gateway is not None
        headers = {"Authorization": f"token {self.gateway.key()}"}
        request = Request(f"{self.gateway.url}/api/kernels", headers=headers)
        with urlopen(request, timeout=5) as answer:
            kernels: list[dict[str, Any]] = json.load(answer)
        return kernels

    def close_tabs(self) -> None:
        """Close every tab but the first."""
        first, *others = self.driver.window_handles
        for window in others:
            self.driver.switch_to.window(window)
            self.driver.close()
        self.driver.switch_to.window(first)


class LabPlace(Place):
    """A JupyterLab, whose server loses what it writes before it notices that the page is gone."""

    may_lose = 3
    cuts = (*Place.cuts, JUPYTERS)

    def __init__(self, lab: Lab, driver: Chrome, page: Wire, **rest: Any) -> None:
        super().__init__(driver, page, **rest)
        self._lab = lab

    def notebook(self, *cells: str, metadata: Mapping[str, Any] | None = None) -> Notebook:
        """Open a new notebook with these cells."""
        name = f"{self.opened}.ipynb"
        self.opened += 1
        self._lab.write(name, cells, metadata)
        return Notebook(self.driver, self.page.url, name).open()

    def log(self) -> str:
        """Return what JupyterLab's server has said."""
        return self._lab.log


class LocalPlace(LabPlace):
    """A JupyterLab that has its cells without a gateway."""

    cuts = (JUPYTERS,)

    def kernel_pids(self) -> list[int]:
        """List the kernels below JupyterLab's server."""
        return kernel_pids({self._lab.process.pid})


class PagePlace(Place):
    """A page of another origin that uses a gateway's API itself."""

    away_s = 1.0

    def __init__(self, origin: str, driver: Chrome, page: Wire, gateway: Gateway) -> None:
        super().__init__(driver, page, gateway)
        self._origin = origin

    def notebook(self, *cells: str, metadata: Mapping[str, Any] | None = None) -> Page:
        """Open the page with these cells."""
        assert self.gateway is not None
        self.opened += 1
        page = Page(self.driver, self._origin, self.page.url, self.gateway.key(), f"{self.opened}.ipynb")
        return page.open(cells, metadata)

    def log(self) -> str:
        """Return what the gateway has said."""
        assert self.gateway is not None
        return self.gateway.log_path.read_text()


@contextmanager
def gateway_url(home: Path) -> Iterator[Place]:
    """`jupyter lab --gateway-url`: the whole server has its kernels from the gateway."""
    with running(env=ROOM) as gateway, Wire(port_of(gateway.url)) as wire:
        env = {"JUPYTER_GATEWAY_AUTH_TOKEN": gateway.key()}
        with (
            labs.running(home, "python3", f"--gateway-url={wire.url}", env=env) as lab,
            Wire(lab.port) as page,
            chromium(home / "chromium") as driver,
        ):
            yield LabPlace(lab, driver, page, gateway=gateway, wire=wire)


@contextmanager
def kernelspec(home: Path) -> Iterator[Place]:
    """A plain JupyterLab with a kernelspec of `cellblock kernelspec install`."""
    with running(env=ROOM) as gateway, Wire(port_of(gateway.url)) as wire:
        env = {**labs.environment(home), "CELLBLOCK_KEY": gateway.key()}
        command = gateway.command("kernelspec", "install", "--gateway", wire.url, "--store-key", "--prefix")
        subprocess.run([*command, str(home / "prefix")], env=env, check=True, capture_output=True, cwd=home)
        found = {"JUPYTER_PATH": str(home / "prefix" / "share" / "jupyter")}
        with (
            labs.running(home, "cellblock-python3", env=found) as lab,
            Wire(lab.port) as page,
            chromium(home / "chromium") as driver,
        ):
            yield LabPlace(lab, driver, page, gateway=gateway, wire=wire)


@contextmanager
def provisioner(home: Path) -> Iterator[Place]:
    """A plain JupyterLab whose own kernels are in cells, by the kernel provisioner."""
    provisioner_spec.install(display_name="Python 3 (Cellblock)", prefix=home / "prefix")
    found = {"JUPYTER_PATH": str(home / "prefix" / "share" / "jupyter")}
    with (
        labs.running(home, "python3-local", env=found) as lab,
        Wire(lab.port) as page,
        chromium(home / "chromium") as driver,
    ):
        yield LocalPlace(lab, driver, page)


@contextmanager
def direct(home: Path) -> Iterator[Place]:
    """A page with @jupyterlab/services, served by another origin that the gateway allows."""
    with (
        site() as origin,
        running(env={**ROOM, "CELLBLOCK_SERVER__ALLOW_ORIGINS": f'["{origin}"]'}) as gateway,
        Wire(port_of(gateway.url)) as page,
        chromium(home / "chromium") as driver,
    ):
        yield PagePlace(origin, driver, page, gateway)


def port_of(url: str) -> int:
    """Return the port of an address."""
    return int(url.rpartition(":")[2])
