"""Run code with Open WebUI's code interpreter on a gateway. tests/agents.py gives its orders."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Open WebUI asks for both as soon as any of it is imported
os.environ |= {"DATA_DIR": str(Path.cwd()), "WEBUI_SECRET_KEY": "none of ours"}

from open_webui.utils.code_interpreter import execute_code_jupyter


async def executed(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Run codes, each in a kernel of its own, which is this client's way."""
    answers = []
    for code in order["codes"]:
        said = await execute_code_jupyter(
            order["url"], code, order["token"], order.get("password", ""), order["timeout"]
        )
        answers.append({**said, "at": time.monotonic()})
    return answers


def main() -> None:
    """Obey the order."""
    answers = asyncio.run(executed(json.load(sys.stdin)))
    print(json.dumps(answers))  # noqa: T201 - it is a program


if __name__ == "__main__":
    main()
