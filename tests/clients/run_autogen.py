"""Run code with AutoGen on a gateway, by either of its executors. tests/agents.py gives its orders."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def answer(result: Any) -> dict[str, Any]:
    """Return what an executor gave, with the beginnings of the files that it wrote."""
    files = [Path(path) for path in result.output_files or []]
    heads = [path.read_bytes()[:20].hex() for path in files]
    said = {"exit_code": result.exit_code, "output": result.output, "at": time.monotonic()}
    return {**said, "files": [path.suffix for path in files], "heads": heads}


async def microsoft(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Run codes by autogen-ext's executor, in one kernel."""
    from autogen_core import CancellationToken
    from autogen_core.code_executor import CodeBlock
    from autogen_ext.code_executors.docker_jupyter import DockerJupyterCodeExecutor
    from autogen_ext.code_executors.docker_jupyter._jupyter_server import JupyterConnectionInfo

    where = urlsplit(order["url"])
    info = JupyterConnectionInfo(where.hostname or "", use_https=False, port=where.port, token=order["token"])
    answers = []
    async with DockerJupyterCodeExecutor(
        info, kernel_name="python3", timeout=order["timeout"], output_dir=Path.cwd()
    ) as executor:
        for code in order["codes"]:
            if code == "restart":
                await executor.restart()
                continue
            blocks = [CodeBlock(code=code, language="python")]
            answers.append(answer(await executor.execute_code_blocks(blocks, CancellationToken())))
    return answers


def classic(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Run codes by the executor of autogen (ag2), in one kernel."""
    from autogen.coding import CodeBlock
    from autogen.coding.jupyter import JupyterCodeExecutor, JupyterConnectionInfo

    where = urlsplit(order["url"])
    info = JupyterConnectionInfo(where.hostname or "", use_https=False, port=where.port, token=order["token"])
    answers = []
    with JupyterCodeExecutor(info, timeout=order["timeout"]) as executor:
        for code in order["codes"]:
            if code == "restart":
                executor.restart()
                continue
            answers.append(answer(executor.execute_code_blocks([CodeBlock(code=code, language="python")])))
    return answers


def main() -> None:
    """Obey the order."""
    order = json.load(sys.stdin)
    answers = asyncio.run(microsoft(order)) if order["way"] == "autogen-ext" else classic(order)
    print(json.dumps(answers))  # noqa: T201 - it is a program


if __name__ == "__main__":
    main()
