"""A notebook that is open in JupyterLab, used as people use it: keys, menus, what stands on the page."""

from __future__ import annotations

import time
from copy import copy
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.chromium import until
from tests.browser.lab import TOKEN

if TYPE_CHECKING:
    from pathlib import Path

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

READY_S = 45.0
WIDGET = "Array.from(window.jupyterapp?.shell.widgets('main') ?? [])[0]"
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"


class Notebook:
    """One notebook in one tab of the browser, in front of all others."""

    def __init__(self, driver: Chrome, url: str, name: str) -> None:
        self._driver = driver
        self._window = ""
        self.name = name
        self._page = f"{url}/lab/workspaces/{uuid4().hex}/tree/{name}?token={TOKEN}"

    def open(self) -> Notebook:
        """Load the page and wait until its kernel is idle."""
        self._driver.get(self._page)
        self._window = self._driver.current_window_handle
        self.ready()
        return self

    def beside(self) -> Notebook:
        """Open the same once more, in a tab beside."""
        self._driver.switch_to.new_window("tab")
        return copy(self).again()

    def ready(self, timeout: float = READY_S) -> None:
        """Wait until the page shows an idle kernel."""
        until(lambda: self.status() == "idle", timeout, say=self.state)

    def state(self) -> str:
        """Say what stands on the page, for who reads a failure."""
        body = self._driver.find_element(By.TAG_NAME, "body").text
        console = [entry["message"] for entry in self._driver.get_log("browser")][-8:]  # type: ignore[no-untyped-call]
        return f"{self.status()}\n{body[-3000:]}\n" + "\n".join(console)

    def front(self) -> Notebook:
        """Bring the notebook's tab to the front."""
        self._driver.switch_to.window(self._window)
        return self

    # -- what stands on the page --------------------------------------------------------------------------

    def status(self) -> str:
        """Return what the page takes its kernel for, such as `idle`."""
        script = f"return {WIDGET}?.sessionContext?.kernelDisplayStatus ?? ''"
        return str(self._driver.execute_script(script))

    def cell(self, number: int) -> WebElement:
        """Return the cell of that number, from 0."""
        return self._driver.find_elements(By.CSS_SELECTOR, f"{PANEL} .jp-Notebook .jp-CodeCell")[number]

    def prompt(self, number: int) -> str:
        """Return what stands in the brackets before a cell: a number, `*`, or nothing."""
        text = self.cell(number).find_element(By.CSS_SELECTOR, ".jp-InputPrompt").text
        return text.strip().strip("[]:").strip()

    def output(self, number: int) -> str:
        """Return the text below a cell."""
        script = """return Array.from(arguments[0].querySelectorAll('.jp-OutputArea-output'))
                           .map(each => each.innerText).join('')"""
        return str(self._driver.execute_script(script, self.cell(number)))

    def find(self, number: int, selector: str) -> WebElement:
        """Wait for something below a cell."""
        return until(
            lambda: self.cell(number).find_element(By.CSS_SELECTOR, f".jp-Cell-outputWrapper {selector}"),
            say=self.state,
        )

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

    # -- what people do -----------------------------------------------------------------------------------

    def select(self, number: int) -> None:
        """Click beside a cell, which selects it as a whole."""
        self.cell(number).find_element(By.CSS_SELECTOR, ".jp-InputPrompt").click()

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        ActionChains(self._driver).send_keys(*keys).perform()

    def chord(self, modifier: str, key: str) -> None:
        """Press a key while another is held."""
        ActionChains(self._driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def run(self, number: int) -> None:
        """Run a cell with Ctrl-Enter, and see that it begins."""
        before = self.prompt(number)
        self.select(number)
        self.chord(Keys.CONTROL, Keys.ENTER)
        until(lambda: self.prompt(number) != before, say=self.state)

    def done(self, *numbers: int, timeout: float = 30.0) -> str:
        """Run cells, one after the other, and return the text below the last one."""
        text = ""
        for number in numbers:
            self.run(number)
            self.ends(number, timeout)
            text = self.output(number)
        return text

    def command(self, name: str, **arguments: Any) -> None:
        """Do what a menu entry does, and do not wait for it."""
        script = "window.jupyterapp.commands.execute(arguments[0], arguments[1]); return null"
        self._driver.execute_script(script, name, arguments)

    def click(self, selector: str) -> None:
        """Click on something of the page, once it is there."""
        until(lambda: self._driver.find_element(By.CSS_SELECTOR, selector), say=self.state).click()

    def dialog(self) -> str:
        """Return the text of a dialog, or nothing."""
        found = self._driver.find_elements(By.CSS_SELECTOR, ".jp-Dialog-content")
        return found[0].text if found else ""

    def accept(self) -> None:
        """Press the accepting button of a dialog."""
        self.click(".jp-Dialog-button.jp-mod-accept")

    def interrupt(self) -> None:
        """Press I twice."""
        self.press("i", "i")

    def restart(self) -> None:
        """Press 0 twice, say yes, and wait until the new kernel is there."""
        self.press("0", "0")
        self.accept()
        until(lambda: self.status() != "idle", 10, say=self.state)
        self.ready()

    def told_of_restart(self) -> None:
        """Read that the kernel is restarted, and agree."""
        until(lambda: "It will restart automatically" in self.dialog(), say=self.state)
        self.accept()
        until(lambda: not self.dialog(), say=self.state)
        self.ready()

    def saved(self) -> None:
        """Wait until nothing of the notebook is unsaved."""
        script = f"return {WIDGET}.context.model.dirty === false"
        until(lambda: self._driver.execute_script(script), say=self.state)

    def again(self) -> Notebook:
        """Load the page once more, in the tab that is in front, and wait until its kernel is idle."""
        return self.open()

    def picture(self, file: Path) -> None:
        """Save what JupyterLab looks like."""
        self._driver.save_screenshot(str(file))
