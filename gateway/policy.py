"""Advice on code before it runs: what a profile would rather not see imported or called.

Pure: it parses and never executes. It is no boundary, and what it cannot read it lets pass.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from gateway.models import Frozen

# Parsing stops the event loop: at this size it takes some 50 ms at the very worst.
MAX_CODE_BYTES = 32 << 10
MAX_FINDINGS = 50

_PYTHON_CELLS = re.compile(r"%%(time|timeit|capture|prun)\b")
# `%magic`, `!command`, `?help`, and `x = %magic` or `x = !command`
_NOT_PYTHON = re.compile(r"[%!?]|[\w.\[\], ]+=\s*[%!]")
_TIMED = re.compile(r"%time\s+")

DottedName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=128)]
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$", max_length=128)]


class CodePolicy(Frozen):
    """What a profile says about code. A name means itself and all that is below it."""

    action: Literal["off", "log", "warn", "reject"] = Field("off", description="What follows from a finding.")
    deny_imports: tuple[DottedName, ...] = Field((), description="Modules that are findings.")
    allow_imports: tuple[DottedName, ...] = Field(
        (), description="The only modules that are none; empty allows every one that is not denied."
    )
    deny_calls: tuple[DottedName, ...] = Field((), description="Functions whose calls are findings.")
    deny_builtins: tuple[PlainName, ...] = Field((), description="Builtins whose use is a finding.")

    @model_validator(mode="after")
    def _says_something(self) -> CodePolicy:
        rules = (self.deny_imports, self.allow_imports, self.deny_calls, self.deny_builtins)
        if self.action != "off" and not any(rules):
            raise ValueError("action needs a list of what it is for")
        return self


class Finding(Frozen):
    """One place in the code."""

    line: int
    rule: Literal["import", "call", "builtin"]
    name: str

    def __str__(self) -> str:
        """Say it in words."""
        return f"line {self.line}: {self.rule} {self.name}"


def review(code: str, policy: CodePolicy) -> tuple[Finding, ...]:
    """Return what a policy finds in an IPython cell, in the order of its lines; at most 50 findings.

    Shell lines, magics, other languages, code that is no Python or longer than 32 KiB have none.
    """
    if policy.action == "off" or len(code) > MAX_CODE_BYTES:
        return ()
    tree = _parsed(code)
    if tree is None:
        return ()
    aliases = _aliases(tree)
    found = {finding: None for node in ast.walk(tree) for finding in _findings(node, policy, aliases)}
    return tuple(sorted(found, key=lambda finding: finding.line)[:MAX_FINDINGS])


def _parsed(code: str) -> ast.AST | None:
    tree = _ast(code)
    if tree is not None:
        return tree
    lines = code.splitlines()
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if lines and lines[first].startswith("%%"):
        if not _PYTHON_CELLS.match(lines[first]):
            return None
        lines[first] = ""
    return _ast("\n".join(map(_python, lines)))


def _python(line: str) -> str:
    """Return a line as Python: what is IPython's alone becomes `pass`, so that lines keep their numbers."""
    text = line.strip()
    indent = line[: len(line) - len(line.lstrip())]
    if timed := _TIMED.match(text):
        return indent + text[timed.end() :]
    return f"{indent}pass" if _NOT_PYTHON.match(text) or text.endswith("?") else line


def _ast(code: str) -> ast.AST | None:
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = compile(code, "<cell>", "exec", flags=flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if isinstance(tree, ast.AST) else None


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Return what imported names stand for, wherever in the cell they are bound."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return aliases


def _findings(node: ast.AST, policy: CodePolicy, aliases: dict[str, str]) -> Iterator[Finding]:
    if isinstance(node, ast.Import):
        yield from _imports(node, [(alias.name,) for alias in node.names], policy)
    elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
        yield from _imports(
            node, [(node.module, f"{node.module}.{alias.name}") for alias in node.names], policy
        )
    elif isinstance(node, ast.Call):
        name = _dotted(node.func, aliases)
        if name in {"__import__", "importlib.import_module", "importlib.__import__"} and node.args:
            wanted = node.args[0]
            if isinstance(wanted, ast.Constant) and isinstance(wanted.value, str):
                yield from _imports(node, [(wanted.value,)], policy)
        if name and _matches(name, policy.deny_calls):
            yield Finding(line=node.lineno, rule="call", name=name)
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
        name = _dotted(node, aliases).removeprefix("builtins.")
        if name in policy.deny_builtins:
            yield Finding(line=node.lineno, rule="builtin", name=name)


def _imports(
    node: ast.stmt | ast.expr, names: Sequence[tuple[str, ...]], policy: CodePolicy
) -> Iterator[Finding]:
    for forms in names:
        denied = any(_matches(form, policy.deny_imports) for form in forms)
        allowed = any(_matches(form, policy.allow_imports) for form in forms)
        if denied or (policy.allow_imports and not allowed):
            yield Finding(line=node.lineno, rule="import", name=forms[-1])


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """Return the full name of `a.b.c` by what `a` stands for; empty for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([aliases.get(node.id, node.id), *reversed(parts)])


def _matches(name: str, entries: tuple[str, ...]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in entries)
