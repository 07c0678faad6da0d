"""jupyter-kernel-client, which jupyter-mcp-server uses: REST and WebSocket, as it stands.

Its older framing only, the default: with its v1 framing version 1.0.2 loses every message that it receives (a
KeyError where it logs them), whatever the server.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from jupyter_kernel_client import JupyterKernelClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway import Gateway


@pytest.fixture
def kernel(gateway: Gateway) -> Iterator[JupyterKernelClient]:
    """A client with a kernel of its own."""
    with JupyterKernelClient(server_url=gateway.url, token=gateway.key()) as client:
        yield client


def test_execute(kernel: JupyterKernelClient) -> None:
    """Code runs and keeps state; outputs have nbformat's shape."""
    assert kernel.execute("x = 20; print('said')")["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "said\n"}
    ]
    reply = kernel.execute("x + 1")

    assert reply["status"] == "ok"
    assert reply["execution_count"] == 2
    assert reply["outputs"][0]["data"]["text/plain"] == "21"


def test_an_error(kernel: JupyterKernelClient) -> None:
    """An exception comes as an error output and status."""
    reply = kernel.execute("1 / 0")

    assert reply["status"] == "error"
    assert reply["outputs"][0]["ename"] == "ZeroDivisionError"


def test_variables(kernel: JupyterKernelClient) -> None:
    """Variables of the kernel are listed, by the code that the client sends for it."""
    kernel.execute("answer = 42")

    assert "answer" in {variable["name"] for variable in kernel.list_variables()}


def test_input(kernel: JupyterKernelClient) -> None:
    """What the code asks for by input() is asked of the hook, and its answer arrives."""

    def answer(message: dict[str, object]) -> None:
        kernel._manager.client.input("Ada")

    reply = kernel.execute("print('hello', input('who? '))", allow_stdin=True, stdin_hook=answer)

    assert reply["outputs"][-1]["text"] == "hello Ada\n"


def test_interrupt_and_restart(kernel: JupyterKernelClient) -> None:
    """Interrupting ends what runs; after a restart the variables are gone and the client goes on."""
    kernel.execute("x = 1")
    timer = threading.Timer(1, kernel.interrupt)
    timer.start()
    begun = time.monotonic()
    reply = kernel.execute("import time; time.sleep(60)", timeout=30)
    timer.join()
    assert reply["outputs"][0]["ename"] == "KeyboardInterrupt"
    assert time.monotonic() - begun < 10

    kernel.restart()

    assert kernel.execute("x", timeout=30)["outputs"][0]["ename"] == "NameError"


def test_another_clients_kernel(gateway: Gateway, kernel: JupyterKernelClient) -> None:
    """A second client joins a kernel by id, sees its variables, and leaves it alive."""
    kernel.execute("shared = 'yes'")
    assert kernel.id in {model["id"] for model in kernel.list_kernels()}

    with JupyterKernelClient(server_url=gateway.url, token=gateway.key(), kernel_id=kernel.id) as other:
        assert other.execute("print(shared)")["outputs"][0]["text"] == "yes\n"

    assert kernel.execute("print(shared)")["outputs"][0]["text"] == "yes\n"
