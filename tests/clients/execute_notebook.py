"""Execute a notebook with nbclient or papermill in a kernel of a gateway, by jupyter_server's gateway client.

Usage: execute_notebook.py nbclient|papermill NOTEBOOK OUTPUT, with JUPYTER_GATEWAY_URL and
JUPYTER_GATEWAY_AUTH_TOKEN set. A program of its own, because that client keeps its configuration in the
process and spins while it waits.
Outside a Jupyter server, jupyter_server 2.21's client sends the token by REST and forgets it on the
WebSocket, whatever the gateway: here it is added, and everything else is as it stands.
"""

from __future__ import annotations

import os
import sys
from functools import partial

import nbformat
import papermill
import websocket
from jupyter_server.gateway.managers import GatewayKernelManager
from nbclient import NotebookClient


def main(tool: str, source: str, target: str) -> None:
    """Execute `source`, and write what came of it to `target`."""
    header = {"Authorization": f"token {os.environ['JUPYTER_GATEWAY_AUTH_TOKEN']}"}
    websocket.create_connection = partial(websocket.create_connection, header=header)
    if tool == "papermill":
        papermill.execute_notebook(
            source, target, parameters={"n": 7}, progress_bar=False, kernel_manager_class=GatewayKernelManager
        )
        return
    notebook = nbformat.read(source, as_version=4)
    NotebookClient(notebook, kernel_manager_class=GatewayKernelManager, timeout=100).execute()
    nbformat.write(notebook, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
