"""What is run around code: values stay values in real interpreters, and everything is put back."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gateway.errors import BadRequest
from gateway.services.preludes import Surroundings, prelude

VALUES = {
    "A": 'it\'s "quoted" `id` $(id) ${HOME}',
    "B": "\\n\n\t\x01é",
    "C": "",
    "D": "');import os;os.abort();('",
}


def around(language: str, wanted: Surroundings) -> tuple[str, str]:
    """Return both snippets."""
    found = prelude(language, wanted)
    assert found is not None
    return found.before(wanted), found.after(wanted.passing)


def test_python():
    """Variables and directory are set from data, variables put back, and nothing is left in the namespace."""
    wanted = Surroundings({"LASTS": "l"}, "/tmp", VALUES, fresh=True)
    before, after = around("python", wanted)
    names = [*VALUES, "LASTS"]
    program = (
        "import json, os, sys, types\n"
        "fake = types.ModuleType('IPython'); fake.get_ipython = lambda: None\n"
        "core = types.ModuleType('IPython.core'); formatters = types.ModuleType('IPython.core.formatters')\n"
        "formatters.BaseFormatter = object; traits = types.ModuleType('traitlets')\n"
        "traits.ObjectName = traits.Unicode = lambda text: text\n"
        "sys.modules.update({'IPython': fake, 'IPython.core': core, 'IPython.core.formatters': formatters,"
        " 'traitlets': traits})\n"
        f"seen = lambda: {{n: os.environ.get(n) for n in {names!r}}}\n"
        "os.environ['A'] = 'mine'; was = set(globals()) | {'was'}\n"
        f"{before}\n"
        "during = seen()\n"
        f"{after}\n"
        "print(json.dumps([during, seen(), os.getcwd(), sorted(set(globals()) - was - {'during'})]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    during, then, cwd, left = json.loads(done.stdout)
    assert during == {**VALUES, "LASTS": "l"}
    assert then == {"A": "mine", "B": None, "C": None, "D": None, "LASTS": "l"}
    assert (cwd, left) == ("/tmp", [])


def test_bash():
    """The same in a real bash, where a variable that was unset is unset again."""
    wanted = Surroundings({"LASTS": "l'\"$(id)"}, "/tmp", VALUES, fresh=True)
    before, after = around("bash", wanted)
    show = "\n".join(f'printf "%s\\0" "${{{name}-unset}}"' for name in [*VALUES, "LASTS"])
    program = (
        f'A=mine\n{before}\n{show}\n{after}\n{show}\nprintf "%s\\0" "$PWD"\nset | grep -c "^_cellblock_o"\n'
    )
    env = {"PATH": os.environ["PATH"], "HOME": "/", "LANG": "C.UTF-8"}
    done = subprocess.run(["bash", "-c", program], capture_output=True, env=env, check=False)
    told = done.stdout.decode().split("\0")
    assert told[:5] == [*VALUES.values(), "l'\"$(id)"]
    assert told[5:10] == ["mine", "unset", "unset", "unset", "l'\"$(id)"]
    assert told[10:] == ["/tmp", "0\n"]


def test_r():
    """The same in a real R."""
    values = {name: value for name, value in VALUES.items() if value}
    wanted = Surroundings({"LASTS": "l"}, "/tmp", values, fresh=True)
    before, after = around("R", wanted)
    show = "\n".join(f'cat(Sys.getenv("{name}", unset = "unset"), "", sep = "|")' for name in values)
    program = f'Sys.setenv(A = "mine")\n{before}\n{show}\n{after}\n{show}\ncat(getwd())\n'
    done = subprocess.run(["Rscript", "-e", program], capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"{value}|" for value in values.values()) + "mine|unset|unset|/tmp"


def test_what_needs_nothing_said():
    """Nothing is run where nothing is to be set; a kernel is told once what lasts."""
    nothing = Surroundings({}, "", {}, fresh=True)
    assert prelude("bash", nothing) is None
    assert prelude("julia", nothing) is None
    # how figures are shown as data
    assert prelude("python", nothing) is not None
    told = Surroundings({"A": "a"}, "x", {}, fresh=False)
    assert prelude("python", told) is None
    assert "export A" not in around("bash", Surroundings({"A": "a"}, "x", {"B": "b"}, fresh=False))[0]


def test_what_cannot_be_set():
    """A language that is not known, and a value that bash's terminal would cut, are refused."""
    wanted = Surroundings({}, "", {"A": "x" * 1000}, fresh=True)
    with pytest.raises(BadRequest):
        prelude("julia", wanted)
    with pytest.raises(BadRequest):
        around("bash", wanted)
