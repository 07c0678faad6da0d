"""client.md says what the client has: no more, no less; and its examples do what they say."""

from __future__ import annotations

import inspect
import re

import pytest

from gateway.client import Client, History
from gateway.client.retry import Retry
from tests.docs.markdown import code, page, rows

TEXT = page("client.md")
NOUNS = ("executions", "kernels", "kernelspecs", "contexts", "files", "workspaces", "processes", "history")


def methods(thing: object) -> set[str]:
    """Return the public methods of an object."""
    return {name for name, _ in inspect.getmembers(thing, callable) if not name.startswith("_")}


def documented(text: str) -> set[str]:
    """Return the methods of the first table in a text."""
    table = re.split(r"^(?!\|)", text[text.index("| method |") :], flags=re.MULTILINE)[0]
    return {name for cells in rows(table, "method", "what it does") for name in code(cells[0])}


@pytest.mark.parametrize("noun", NOUNS)
def test_methods(noun: str) -> None:
    """Every public method of a noun stands in the table behind its name, and no others."""
    client = Client("http://127.0.0.1:1", "x")
    behind = TEXT[TEXT.index(f"`client.{noun}`") :]

    assert documented(behind) == methods(getattr(client, noun))


def test_the_client_itself() -> None:
    """So do the methods of the client itself; its nouns each have a table."""
    client = Client("http://127.0.0.1:1", "x")
    nouns = {name for name in vars(client) if not name.startswith("_")}

    assert documented(TEXT[TEXT.index("## The client itself") :]) == methods(Client)
    assert nouns == set(NOUNS)


def test_the_numbers() -> None:
    """The page's bounds of repeats and of the history are the defaults."""
    retry, parameters = Retry(), inspect.signature(History).parameters

    assert f"from {retry.first_s:g} to {retry.longest_s:g} seconds" in TEXT
    assert f"retries={retry.retries},\nretry_budget_s={retry.budget_s:g}" in TEXT
    assert f"the last {parameters['most'].default} pieces" in TEXT
    assert parameters["max_bytes"].default == 64 << 20
