"""jupyter_kernel_test's own tests, on an installed kernelspec. Usage: conformance.py KERNEL."""

from __future__ import annotations

import sys
import unittest
from typing import Any, ClassVar

import jupyter_kernel_test

KERNEL = sys.argv.pop() if len(sys.argv) > 1 else ""

SHOW = "from IPython.display import {0}, display; display({0}(r'{1}'))"


class CellblockTests(jupyter_kernel_test.KernelTests):  # type: ignore[misc]
    """What a Python kernel has to do, as the makers of the protocol test it."""

    kernel_name = KERNEL
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples: ClassVar[list[Any]] = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "import os; os.getpi", "matches": {"getpid"}},
    ]
    complete_code_samples: ClassVar[list[Any]] = [
        "1",
        "print('hello, world')",
        "def f(x):\n  return x*2\n\n\n",
    ]
    incomplete_code_samples: ClassVar[list[Any]] = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples: ClassVar[list[Any]] = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result: ClassVar[list[Any]] = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    ]
    code_display_data: ClassVar[list[Any]] = [
        {"code": SHOW.format("HTML", "<b>test</b>"), "mime": "text/html"},
        {"code": SHOW.format("Math", r"\frac{1}{2}"), "mime": "text/latex"},
    ]
    code_history_pattern = "1?2*"
    # what ipykernel itself claims
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


class CellblockWelcomeTests(jupyter_kernel_test.IopubWelcomeTests):  # type: ignore[misc]
    """Who subscribes is told so (JEP 65)."""

    kernel_name = KERNEL
    support_iopub_welcome = True


if __name__ == "__main__":
    unittest.main(verbosity=2)
