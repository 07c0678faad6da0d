"""Kernelspecs and their files: what front ends need, and nothing beside."""

from __future__ import annotations

import os

from tests.doubles import kernelspec
from tests.unit.http.conftest import opened

PNG = b"\x89PNG\r\n\x1a\n"


async def test_the_list(door):
    """The list has the default, and each kernelspec with argv as it is and without its environment."""
    status, body, _ = await door.call("GET", "/api/kernelspecs")

    assert (status, body["default"], set(body["kernelspecs"])) == (200, "python3", {"python3", "bash"})
    bash = body["kernelspecs"]["bash"]
    assert (bash["name"], bash["resources"], bash["spec"]["env"]) == ("bash", {}, {})
    assert bash["spec"]["argv"][-1] == "{connection_file}"
    assert {"display_name", "language", "interrupt_mode", "metadata"} <= set(bash["spec"])
    assert (await door.call("GET", "/api/kernelspecs/bash"))[1] == bash


async def test_the_url_that_jupyter_server_joins_wrongly(door):
    """jupyter_server with KERNEL_USERNAME asks for one kernelspec inside of `user`."""
    assert (await door.call("GET", "/api/kernelspecs?user=al/bash"))[1]["name"] == "bash"
    assert "default" in (await door.call("GET", "/api/kernelspecs?user=al"))[1]


async def test_resources(tmp_path):
    """Logos, kernel.js and kernel.css are listed and served; links and other files are not."""
    (tmp_path / "logo-64x64.png").write_bytes(PNG)
    (tmp_path / "logo-svg.svg").write_text("<svg/>")
    (tmp_path / "kernel.js").write_text("define(() => 1)")
    (tmp_path / "kernel.json").write_text("{}")
    (tmp_path / "logo-link.png").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "logo-pipe.png")
    (tmp_path / "logo-dir.png").mkdir()

    async with opened(specs=(kernelspec(resource_dir=str(tmp_path)),)) as door:
        listed = (await door.call("GET", "/api/kernelspecs/python3"))[1]["resources"]
        assert listed == {
            "logo-64x64": "/kernelspecs/python3/logo-64x64.png",
            "logo-svg": "/kernelspecs/python3/logo-svg.svg",
            "kernel.js": "/kernelspecs/python3/kernel.js",
        }
        async with door.client.get(listed["logo-64x64"], headers=door.bearer()) as answer:
            assert (await answer.read(), answer.content_type) == (PNG, "image/png")
            assert answer.headers["Cache-Control"] == "private, max-age=2592000"
        async with door.client.head(listed["logo-64x64"], headers=door.bearer()) as answer:
            assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(PNG)))
        for name in (
            "kernel.json",
            "logo-link.png",
            "logo-pipe.png",
            "logo-dir.png",
            "logo-none.png",
            "..%2fx",
        ):
            assert (await door.call("GET", f"/kernelspecs/python3/{name}"))[0] == 404, name
