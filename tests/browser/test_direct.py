"""A page of another origin with @jupyterlab/services, on the gateway itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser import scenarios, ways
from tests.browser.chromium import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.browser.ways import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The one server and browser of all scenarios."""
    with ways.direct(tmp_path_factory.mktemp("direct")) as place:
        yield place


class TestCells(scenarios.Cells):
    """See there."""


class TestOnGateway(scenarios.OnGateway):
    """See there."""


ECHO = """from comm import create_comm
comm = create_comm(target_name='echo')
comm.on_msg(lambda message: print('back:', sum(map(sum, message['buffers'])), flush=True))
comm.send({}, buffers=[bytes([0, 255, 1] * 100)])"""
ELSE = """
const [services, serverSettings, done] = [window.page.services, window.page.serverSettings, arguments[0]];
const asked = {
  contents: () => new services.ContentsManager({ serverSettings }).get('a.ipynb'),
  save: () => new services.ContentsManager({ serverSettings }).newUntitled({ type: 'notebook' }),
  settings: () => new services.SettingManager({ serverSettings }).fetch('@jupyterlab/any:thing'),
  user: async () => {
    const manager = new services.UserManager({ serverSettings });
    await manager.ready;
    return manager.identity.username;
  }
};
Promise.all(Object.entries(asked).map(([name, ask]) =>
  ask().then(value => [name, value], error => [name, `${error.response?.status} ${error.message}`])
)).then(Object.fromEntries).then(done);
"""


class TestServices:
    """What else @jupyterlab/services does."""

    def test_binary_messages(self, place: Place) -> None:
        """Buffers come and go over v1, byte for byte."""
        notebook = place.notebook(ECHO, "print('on')")
        notebook.run(0)

        until(lambda: place.driver.title == "300 bytes", say=notebook.state)
        assert notebook.done(1) == "on\n"

    def test_what_else_is_asked(self, place: Place) -> None:
        """Who the user is, is told; contents and settings are refused in a form that is understood."""
        place.notebook("1")
        answers = place.driver.execute_async_script(ELSE)

        assert answers.pop("user") == "alice"
        assert set(answers) == {"contents", "save", "settings"}
        for answer in answers.values():
            assert answer.startswith("404 ")
            assert answer != "404 undefined"
