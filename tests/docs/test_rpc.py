"""rpc.md says of JSON-RPC what the table of methods has: no more, no less."""

from __future__ import annotations

from gateway.http.rpc.connection import MAX_FEEDS, MAX_REQUESTS
from gateway.http.rpc.registry import METHODS, SENT
from tests.docs.markdown import code, page, rows, section

PAGE = page("rpc.md")


def test_methods() -> None:
    """Every method stands there with its parameters and what it does."""
    documented = {
        code(cells[0])[0]: (set(code(cells[1])), cells[2])
        for cells in rows(section(PAGE, "Methods"), "method", "parameters")
    }
    expected = {
        method.name: (set(method.params.model_json_schema().get("properties", {})), method.summary)
        for method in METHODS.values()
    }

    assert documented == expected


def test_notifications() -> None:
    """Every notification that is sent stands there, and no other."""
    named = [
        name
        for cells in rows(section(PAGE, "Notifications"), "notification", "when")
        for name in code(cells[0])
    ]

    assert sorted(named) == sorted(SENT)


def test_bounds() -> None:
    """The bounds that the page names are those of the code."""
    assert MAX_REQUESTS == MAX_FEEDS
    assert f"{MAX_REQUESTS} requests under way, and as many subscriptions" in section(PAGE, "Bounds")
