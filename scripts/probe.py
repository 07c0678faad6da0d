"""Small questions that the scripts ask, with the standard library only.

probe.py free-port            print a port that nobody has
probe.py bindable HOST PORT   succeed when that port can be had
probe.py healthy URL          succeed when a gateway answers there
probe.py prove URL KEY_FILE   run 1 + 1 in a kernel, have it look at its own cell, and tell
"""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

# A proxy of the user's is not for a gateway on this machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

LOOK_AROUND = """
import json, os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
try:
    shadow = len(open("/etc/shadow", "rb").read())
except OSError:
    shadow = None
try:
    interfaces = [name for _, name in socket.if_nameindex() if name != "lo"]
except OSError:
    interfaces = []
print(json.dumps({
    "seccomp": status["Seccomp"].strip(),
    "no_new_privs": status["NoNewPrivs"].strip(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "uid": os.getuid(),
    "interfaces": interfaces,
    "shadow": shadow,
}))
"""
CONFINED = {"seccomp": "2", "no_new_privs": "1", "capabilities": 0, "interfaces": [], "shadow": None}


def bindable(host: str, port: int) -> bool:
    """Tell whether a server could listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def healthy(url: str) -> bool:
    """Tell whether a gateway answers."""
    try:
        with OPENER.open(f"{url}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def call(method: str, url: str, key: str, body: dict[str, Any] | None = None) -> Any:
    """Make one request of the API; leave with the gateway's own sentence when it refuses."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with OPENER.open(request, timeout=120) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        try:
            message = json.load(error)["message"]
        except (ValueError, KeyError, TypeError):
            message = error.reason
        sys.exit(f"{method} {url} was refused ({error.code}): {message}")
    except OSError as error:
        sys.exit(f"{method} {url} failed: {error}.")
    return json.loads(text) if text else None


def prove(url: str, key: str) -> str:
    """Run 1 + 1 in a new kernel, see that its cell holds, and return what was found."""
    kernel = f"{url}/api/kernels/{call('POST', f'{url}/api/kernels', key, {})['id']}"
    try:
        result = call("POST", f"{kernel}/execute", key, {"code": "1 + 1"})
        answers = [output.get("data", {}).get("text/plain") for output in result["outputs"]]
        if answers != ["2"]:
            sys.exit(f"The kernel did not answer 2 to 1 + 1: {result}.")
        seen = json.loads(call("POST", f"{kernel}/execute", key, {"code": LOOK_AROUND})["stdout"])
    finally:
        call("DELETE", kernel, key)
    wrong = {name: seen[name] for name, wanted in CONFINED.items() if seen[name] != wanted}
    if wrong:
        sys.exit(f"The kernel is not confined as it should be: {wrong}.")
    return (
        f"1 + 1 is 2 in a kernel of uid {seen['uid']} with seccomp, no new privileges, no capabilities, "
        "no network and no /etc/shadow"
    )


def main(verb: str, *arguments: str) -> None:
    """Answer one question."""
    match verb, arguments:
        case "free-port", ():
            print(free_port())
        case "bindable", (host, port):
            sys.exit(not bindable(host, int(port)))
        case "healthy", (url,):
            sys.exit(not healthy(url))
        case "prove", (url, key_file):
            print(prove(url, Path(key_file).read_text().strip()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["help"]))
