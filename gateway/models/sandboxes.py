"""The nouns of sandboxes: a home that several kernels share, until a moment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from gateway.models import Scope
from gateway.models.base import Frozen

EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
EnvValue = Annotated[str, StringConstraints(max_length=64 << 10, pattern=r"^[^\x00]*$")]
Env = Annotated[dict[EnvName, EnvValue], Field(max_length=64)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=256)], Annotated[str, Field(max_length=4096)]], Field(max_length=64)
]


class SandboxContext(Frozen):
    """A kernel of a sandbox's, by the kernel's id. Code that names a language alone runs in its own one."""

    id: str
    language: str
    cwd: str
    own: bool = Field(False, description="Whether it is its language's own.")


class SandboxRecord(Frozen):
    """A sandbox, as the store keeps it: whose, from what, until when, and its contexts, the first one first.

    `key_id`, `scopes` and `credential_ends_at` are of the credential that made it or came back to it last:
    its token is worth no more than that one is.
    """

    id: str
    owner: str
    key_id: str
    scopes: frozenset[Scope]
    credential_ends_at: datetime | None
    template: str
    spec: str
    workspace: str
    metadata: Mapping[str, str]
    env: Mapping[str, str]
    contexts: tuple[SandboxContext, ...]
    paused: bool
    created_at: datetime
    end_at: datetime
