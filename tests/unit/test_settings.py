"""Settings come from a file, variables and flags, and are written as a file that gives them again."""

from __future__ import annotations

import pytest

from gateway.errors import ConfigurationError
from gateway.settings import as_toml, load


def test_written_settings_give_themselves(tmp_path, monkeypatch):
    """What as_toml writes is read back as it was, nested groups, tables and odd names included."""
    monkeypatch.setenv("CELLBLOCK_SERVER__TLS__CERT", "/etc/c.pem")
    monkeypatch.setenv("CELLBLOCK_SERVER__TLS__KEY", "/etc/k.pem")
    monkeypatch.setenv("CELLBLOCK_AUTH__OIDC__SCOPES", '{"lab users": ["kernels", "execute"]}')
    monkeypatch.setenv(
        "CELLBLOCK_QUOTAS__PRINCIPALS", '{"jwt.a@b.c": {"kernels": 3, "sockets": "unlimited"}}'
    )
    monkeypatch.setenv("CELLBLOCK_QUOTAS__CPU_S_PER_DAY", "100")
    hooks = '[{"url": "https://h.example/a b?c=\\"d\\"", "secret_file": "/s", "events": ["limit.hit"]}]'
    monkeypatch.setenv("CELLBLOCK_WEBHOOKS", hooks)
    first = load(server={"port": 9000})
    for name in ("SERVER__TLS__CERT", "SERVER__TLS__KEY", "AUTH__OIDC__SCOPES"):
        monkeypatch.delenv(f"CELLBLOCK_{name}")
    for name in ("PRINCIPALS", "CPU_S_PER_DAY"):
        monkeypatch.delenv(f"CELLBLOCK_QUOTAS__{name}")
    monkeypatch.delenv("CELLBLOCK_WEBHOOKS")
    written = tmp_path / "s.toml"
    written.write_text(as_toml(first))

    again = load(written)

    assert again.model_dump() == first.model_dump()
    assert again.quotas.principals["jwt.a@b.c"].sockets == "unlimited"
    assert again.quotas.cpu_s_per_day == 100
    assert again.webhooks[0].url == 'https://h.example/a b?c="d"'
    assert list(again.auth.oidc.scopes) == ["lab users"]


@pytest.mark.parametrize(
    "given",
    [
        {"quotas": {"sockets": 0}},
        {"quotas": {"sockets": "many"}},
        {"quotas": {"principals": {"a:b": {}}}},
        {"quotas": {"principals": {"alice": {"kernel": 1}}}},
        {"auth": {"oidc": {"issuer": "https://x.example"}}},
        {"auth": {"oidc": {"issuer": "http://x.example", "audience": "a"}}},
        {"auth": {"oidc": {"algorithms": ["HS256"]}}},
        {"auth": {"oidc": {"algorithms": []}}},
        {"auth": {"oidc": {"scopes": {"x": ["root"]}}}},
        {"server": {"tls": {"min_version": "1.0"}}},
        {"server": {"tls": {"cert": "/c"}}},
    ],
)
def test_wrong_settings(given):
    """A value that would weaken the door, or means nothing, is refused by name."""
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        load(**given)
