"""The code policy finds what it is told to find, at its line, and never stumbles over a cell."""

from __future__ import annotations

import time

import pytest
from pydantic import ValidationError

from gateway.policy import CodePolicy, review

POLICY = CodePolicy(
    action="reject",
    deny_imports=("socket", "urllib.request", "importlib"),
    deny_calls=("os.system", "subprocess", "shutil.rmtree"),
    deny_builtins=("eval", "__import__"),
)


def found(code: str, policy: CodePolicy = POLICY) -> list[str]:
    """Return the findings in words."""
    return [str(finding) for finding in review(code, policy)]


@pytest.mark.parametrize(
    ("code", "findings"),
    [
        ("import socket", ["line 1: import socket"]),
        ("x = 1\nimport json, socket as s", ["line 2: import socket"]),
        ("from urllib import request", ["line 1: import urllib.request"]),
        ("import urllib.request.x", ["line 1: import urllib.request.x"]),
        ("from urllib.request import urlopen", ["line 1: import urllib.request.urlopen"]),
        ("import urllib", []),
        ("import socketserver", []),
        ("from . import socket", []),
        ("__import__('socket')", ["line 1: import socket", "line 1: builtin __import__"]),
        ("import os as o\no.system('id')", ["line 2: call os.system"]),
        ("from os import system as run\nrun('id')", ["line 2: call os.system"]),
        ("import subprocess\nsubprocess.run(['id'])", ["line 2: call subprocess.run"]),
        ("os.systemic()", []),
        ("f = eval\nf('1')", ["line 1: builtin eval"]),
        ("import builtins\nbuiltins.eval('1')", ["line 2: builtin eval"]),
        ("class A:\n  def eval(self): ...\nA().eval()", []),
        ("await x\nasync with y: import socket", ["line 2: import socket"]),
        ("%matplotlib inline\nimport socket", ["line 2: import socket"]),
        ("if 1:\n    !ls\n    import socket", ["line 3: import socket"]),
        ("files = !ls\nimport socket\nlen?", ["line 2: import socket"]),
        ("%time import socket", ["line 1: import socket"]),
        ("\n%%time\nimport socket", ["line 3: import socket"]),
        ("x = (7\n  % 2)\nimport socket", ["line 3: import socket"]),
    ],
)
def test_findings(code: str, findings: list[str]) -> None:
    """What is denied is found under its full name, whatever it is called in the cell; the rest is not."""
    assert found(code) == findings


def test_only_what_is_allowed() -> None:
    """With a list of allowed modules every other one is a finding; a denied one stays denied."""
    policy = CodePolicy(action="log", allow_imports=("json", "numpy"), deny_imports=("numpy.ctypeslib",))

    assert found("import json, numpy.linalg, sys, numpy.ctypeslib", policy) == [
        "line 1: import sys",
        "line 1: import numpy.ctypeslib",
    ]


@pytest.mark.parametrize(
    "code",
    [
        "import socket(",
        "%%bash\nimport socket",
        "%%javascript\nimport socket",
        "!import socket",
        "import\0socket",
        "(" * 30_000,
        "-" * 30_000 + "1",
        "x" + ".a" * 15_000,
        "1" + "+1" * 15_000,
        " " * 32_000 + "x",
        "\ud800",
        "import socket\n" * 4_000,
        "",
        "%%time",
    ],
)
def test_what_cannot_be_read_passes_quickly(code: str) -> None:
    """Shell, other languages, no Python at all, and what is too long or too deep have no findings."""
    began = time.perf_counter()

    assert found(code) == []
    assert time.perf_counter() - began < 1


def test_findings_are_bounded() -> None:
    """A cell full of findings has fifty."""
    assert len(review("import socket\n" * 1000, POLICY)) == 50


def test_off() -> None:
    """A policy that is off finds nothing, and one that acts on no list is refused."""
    assert found("import socket", CodePolicy(deny_imports=("socket",))) == []
    with pytest.raises(ValidationError, match="needs a list"):
        CodePolicy(action="warn")
