"""What is run around code so that variables and a directory hold for it: one pair of snippets per language.

Values never become code: they come as base64 of JSON, or as bytes written in digits, and names are checked.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

# A terminal gives bash lines of at most 4096 bytes, and a byte of a value takes four of them.
BASH_VALUE_BYTES = 900

# Shows figures and data frames as data, too: see there.
_FORMATS = Path(__file__).with_name("kernel_formats.py").read_text()

_PYTHON_BEFORE = """
import base64, json, os, sys
given = json.loads(base64.b64decode(given))
if given["fresh"] and not sys.__dict__.get("_cellblock_begun"):
    sys._cellblock_begun = True
    os.environ.update(given["lasting"])
    if given["formats"]:
        exec(compile(given["formats"], "<cellblock>", "exec"), {"__name__": "cellblock_formats"})
    if given["cwd"]:
        os.chdir(os.path.join(os.path.expanduser("~"), given["cwd"]))
sys._cellblock_env = [(name, os.environ.get(name)) for name in given["passing"]]
os.environ.update(given["passing"])
"""
_PYTHON_AFTER = """
import os, sys
for name, value in sys.__dict__.pop("_cellblock_env", []):
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
"""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What shall hold in a kernel: from its start on, and for the code that comes next alone.

    `fresh` says that the kernel may not have been told yet what lasts. `cwd` is absolute, or relative to the
    home; empty means the home.
    """

    lasting: Mapping[str, str]
    cwd: str
    passing: Mapping[str, str]
    fresh: bool


@dataclass(frozen=True, slots=True)
class Prelude:
    """The snippets of one language; each is run silently, and leaves nothing behind but what it is for."""

    before: Callable[[Surroundings], str]
    after: Callable[[Iterable[str]], str]
    always: bool = False


def prelude(language: str, wanted: Surroundings) -> Prelude | None:
    """Return the snippets that a language's kernel has to run, None where there is nothing to be said.

    Raises BadRequest for a language that has none.
    """
    found = _PRELUDES.get(language.lower())
    lasting = wanted.fresh and (wanted.lasting or wanted.cwd or (found is not None and found.always))
    if not lasting and not wanted.passing:
        return None
    if found is None:
        raise BadRequest(
            f"Environment variables and directories cannot be set for the language {language[:64]!r}.",
            reason="language",
        )
    return found


def _python_before(wanted: Surroundings) -> str:
    given = {
        "fresh": wanted.fresh,
        "lasting": dict(wanted.lasting) if wanted.fresh else {},
        "formats": _FORMATS if wanted.fresh else "",
        "cwd": wanted.cwd,
        "passing": dict(wanted.passing),
    }
    data = base64.b64encode(json.dumps(given).encode()).decode()
    return f"exec({_PYTHON_BEFORE!r}, {{'given': '{data}'}})"


def _python_after(names: Iterable[str]) -> str:  # noqa: ARG001 - it keeps them itself
    return f"exec({_PYTHON_AFTER!r}, {{}})"


def _bash(value: str) -> str:
    data = value.encode()
    if len(data) > BASH_VALUE_BYTES:
        raise BadRequest(f"A value for bash has at most {BASH_VALUE_BYTES} bytes.", reason="env")
    return "$'" + "".join(f"\\x{byte:02x}" for byte in data) + "'"


def _bash_before(wanted: Surroundings) -> str:
    lines = []
    if wanted.fresh:
        lines += ["if [[ -z ${_cellblock_begun-} ]]; then", "_cellblock_begun=1"]
        lines += [f"export {name}={_bash(value)}" for name, value in wanted.lasting.items()]
        if wanted.cwd:
            lines += ["cd -- ~", f"cd -- {_bash(wanted.cwd)}"]
        lines.append("fi")
    for name, value in wanted.passing.items():
        lines.append(f"_cellblock_had_{name}=${{{name}+x}}; _cellblock_old_{name}=${{{name}-}}")
        lines.append(f"export {name}={_bash(value)}")
    return "\n".join(lines)


def _bash_after(names: Iterable[str]) -> str:
    return "\n".join(
        f"if [[ -n $_cellblock_had_{name} ]]; then export {name}=$_cellblock_old_{name}\n"
        f"else unset {name}; fi; unset _cellblock_had_{name} _cellblock_old_{name}"
        for name in names
    )


def _r(value: str) -> str:
    return f"rawToChar(as.raw(c({','.join(str(byte) for byte in value.encode())})))"


def _r_before(wanted: Surroundings) -> str:
    lines = ["local({"]
    if wanted.fresh:
        lines += ['if (!isTRUE(getOption("cellblock.begun"))) {', "options(cellblock.begun = TRUE)"]
        lines += [f"Sys.setenv(`{name}` = {_r(value)})" for name, value in wanted.lasting.items()]
        if wanted.cwd:
            lines += ['setwd(Sys.getenv("HOME"))', f"setwd({_r(wanted.cwd)})"]
        lines.append("}")
    names = ",".join(f'"{name}"' for name in wanted.passing)
    lines.append(f"options(cellblock.env = Sys.getenv(c({names}), unset = NA, names = TRUE))")
    lines += [f"Sys.setenv(`{name}` = {_r(value)})" for name, value in wanted.passing.items()]
    return "\n".join([*lines, "})"])


def _r_after(names: Iterable[str]) -> str:  # noqa: ARG001 - it keeps them itself
    return (
        'local({ old <- getOption("cellblock.env"); for (name in names(old)) '
        "if (is.na(old[[name]])) Sys.unsetenv(name) else do.call(Sys.setenv, as.list(old[name])) })"
    )


_PRELUDES: Mapping[str, Prelude] = {
    "python": Prelude(_python_before, _python_after, always=True),
    "bash": Prelude(_bash_before, _bash_after),
    "r": Prelude(_r_before, _r_after),
}
