"""A page of another origin that uses a gateway directly, with the libraries of JupyterLab's own build."""

from __future__ import annotations

import contextlib
import json
import mimetypes
import sys
import threading
import time
from copy import copy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from selenium.webdriver.common.by import By

from tests.browser.chromium import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

SOURCE = Path(__file__).with_name("direct")
STATIC = Path(sys.prefix) / "share" / "jupyter" / "lab" / "static"


class Files(BaseHTTPRequestHandler):
    """Serves the page and JupyterLab's build."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send a file."""
        path = urlsplit(self.path).path
        file = SOURCE / {"/": "index.html"}.get(path, Path(path).name)
        if path == "/main.js":
            [file] = STATIC.glob("main.*.js")
        elif path.startswith("/static/"):
            file = STATIC / Path(path).name
        data = file.read_bytes() if file.is_file() else b""
        self.send_response(200 if data else 404)
        self.send_header("Content-Type", mimetypes.guess_type(file.name)[0] or "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def site() -> Iterator[str]:
    """Give the origin that serves the page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


class Page:
    """The page with its cells, in one tab of the browser: to scenarios, what an open notebook is."""

    def __init__(self, driver: Chrome, origin: str, gateway: str, token: str, name: str) -> None:
        self._driver = driver
        self._facts = {"gateway": gateway, "token": token, "path": name}
        self._origin = origin
        self._window = ""

    def open(self, cells: Sequence[str], metadata: Mapping[str, Any] | None = None) -> Page:
        """Load the page and wait until its kernel is idle."""
        made = [{"source": source, "metadata": dict(metadata or {})} for source in cells]
        self._facts["cells"] = json.dumps(made)
        return self.again()

    def again(self) -> Page:
        """Load the page once more, in the tab that is in front."""
        self._driver.get("about:blank")
        self._driver.get(f"{self._origin}/#{urlencode(self._facts)}")
        self._window = self._driver.current_window_handle
        self.ready()
        return self

    def beside(self) -> Page:
        """Open the same once more, in a tab beside."""
        self._driver.switch_to.new_window("tab")
        return copy(self).again()

    def ready(self, timeout: float = 30.0) -> None:
        """Wait until the page shows an idle kernel."""
        until(lambda: self.status() == "idle", timeout, say=self.state)

    def state(self) -> str:
        """Say what stands on the page, for who reads a failure."""
        console = [entry["message"] for entry in self._driver.get_log("browser")][-8:]  # type: ignore[no-untyped-call]
        return self._driver.find_element(By.TAG_NAME, "body").text[-2000:] + "\n".join(console)

    def front(self) -> Page:
        """Bring the page's tab to the front."""
        self._driver.switch_to.window(self._window)
        return self

    def status(self) -> str:
        """Return what the page says that its kernel does."""
        return self._driver.find_element(By.ID, "status").text

    def cell(self, number: int) -> WebElement:
        """Return the cell of that number, from 0."""
        return self._driver.find_elements(By.CLASS_NAME, "cell")[number]

    def prompt(self, number: int) -> str:
        """Return what stands in the brackets before a cell."""
        return self.cell(number).find_element(By.CLASS_NAME, "prompt").text

    def output(self, number: int) -> str:
        """Return the text below a cell."""
        script = """return Array.from(arguments[0].querySelectorAll('.jp-OutputArea-output'))
                           .map(each => each.innerText).join('')"""
        return str(self._driver.execute_script(script, self.cell(number)))

    def find(self, number: int, selector: str) -> WebElement:
        """Wait for something below a cell."""
        return until(lambda: self.cell(number).find_element(By.CSS_SELECTOR, selector), say=self.state)

    def width(self, number: int, selector: str) -> int:
        """Return an image's own width below a cell, 0 as long as it is not loaded."""
        script = "return arguments[0].naturalWidth"
        return int(self._driver.execute_script(script, self.find(number, selector)))

    def shows(self, number: int, text: str, timeout: float = 20.0) -> float:
        """Wait until a text stands below a cell; return when, by the monotonic clock."""
        until(lambda: text in self.output(number), timeout, say=self.state)
        return time.monotonic()

    def ends(self, number: int, timeout: float = 30.0) -> float:
        """Wait until a cell runs no more; return when, by the monotonic clock."""
        until(lambda: self.prompt(number) != "*", timeout, say=self.state)
        return time.monotonic()

    def run(self, number: int) -> None:
        """Run a cell."""
        self.cell(number).find_element(By.TAG_NAME, "button").click()

    def done(self, *numbers: int, timeout: float = 30.0) -> str:
        """Run cells, one after the other, and return the text below the last one."""
        text = ""
        for number in numbers:
            self.run(number)
            self.ends(number, timeout)
            text = self.output(number)
        return text

    def interrupt(self) -> None:
        """Interrupt what runs."""
        self._driver.find_element(By.ID, "interrupt").click()

    def restart(self) -> None:
        """Restart the kernel, and wait until the new one is there."""
        self._driver.find_element(By.ID, "restart").click()
        until(lambda: self.status() != "idle", 10, say=self.state)
        self.ready()

    def told_of_restart(self) -> None:
        """Wait until the restarted kernel is there: this page has no dialogs."""
        self.ready()

    def picture(self, file: Path) -> None:
        """Save what the page looks like."""
        self._driver.find_element(By.TAG_NAME, "body").screenshot(str(file))
