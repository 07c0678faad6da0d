"""What a check found, and the guard under which it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

from gateway.errors import GatewayError
from gateway.models import Frozen


class Grade(StrEnum):
    """How a check ended: only a failure says that the gateway should not serve here."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


class Finding(Frozen):
    """One line of the doctor's: what was looked at, how it stands, why, and what to do about it."""

    check: str
    grade: Grade
    why: str
    remedy: str = ""


def ok(check: str, why: str) -> Finding:
    """Return that a check holds."""
    return Finding(check=check, grade=Grade.OK, why=why)


def warn(check: str, why: str, remedy: str) -> Finding:
    """Return that something is weaker than it could be."""
    return Finding(check=check, grade=Grade.WARN, why=why, remedy=remedy)


def fail(check: str, why: str, remedy: str) -> Finding:
    """Return that something mandatory does not hold."""
    return Finding(check=check, grade=Grade.FAIL, why=why, remedy=remedy)


def guarded(check: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check; one that cannot be made is a failure of its own, never a traceback."""
    try:
        return list(look())
    except GatewayError as error:
        return [fail(check, error.message, "Put right what the message names.")]
    except Exception as error:  # noqa: BLE001 - a doctor that dies of one symptom helps nobody
        return [fail(check, f"The check could not be made: {type(error).__name__}: {error}.", "Report it.")]
