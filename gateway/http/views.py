"""What the API takes and shows where it differs from the nouns in models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr, StrictFloat, StrictInt

from gateway.models import Kernel, KernelSpec, Model, SessionRecord

if TYPE_CHECKING:
    from gateway.ports import KernelHandle


class Lenient(BaseModel):
    """A request body of Jupyter's own API: clients send more than is asked for, and the rest is ignored."""

    model_config = ConfigDict(extra="ignore")


class KernelCreate(Lenient):
    """The body of POST /api/kernels; every field, and the body itself, may be left out."""

    name: str | None = Field(None, max_length=128, description="Kernelspec; the default one when left out.")
    path: str | None = Field(None, max_length=4096, description="A client's own path; a hint, not used.")
    kernel_id: str | None = Field(None, max_length=64, description="UUID that the kernel shall have.")
    env: dict[str, str] | None = Field(None, description="KERNEL_* and other allowed variables.")
    secrets: dict[str, SecretStr] | None = Field(
        None,
        description="Variables likewise, whose values are never stored, logged or shown.",
        json_schema_extra={"writeOnly": True},
    )
    limits: dict[str, StrictInt | StrictFloat] | None = Field(
        None, description="Limits lower than the profile's."
    )
    workspace: str | None = Field(
        None, max_length=128, description="A home of the caller's that persists; made when it is new."
    )
    shared: bool = Field(False, description="Share that home with other kernels that say the same.")


class KernelChoice(Lenient):
    """The kernel that a session shall have: a live one by id, or a new one by kernelspec."""

    id: str | None = Field(None, max_length=64)
    name: str | None = Field(None, max_length=128)


class NotebookChoice(Lenient):
    """The deprecated way to name a session's path."""

    path: str | None = Field(None, max_length=4096)
    name: str | None = Field(None, max_length=4096)


class SessionChange(Lenient):
    """The body of PATCH /api/sessions/{session_id}: what is left out stays as it is."""

    path: str | None = Field(None, max_length=4096)
    name: str | None = Field(None, max_length=4096)
    type: str | None = Field(None, max_length=128)
    kernel: KernelChoice | None = None
    notebook: NotebookChoice | None = Field(None, json_schema_extra={"deprecated": True})

    def wanted_path(self) -> str | None:
        """Return the path, wherever the client put it."""
        return self.notebook.path if self.path is None and self.notebook else self.path

    def wanted_name(self) -> str | None:
        """Return the name, wherever the client put it."""
        return self.notebook.name if self.name is None and self.notebook else self.name

    def wanted_type(self) -> str | None:
        """Return the type; the deprecated form means a notebook."""
        return "notebook" if self.type is None and self.notebook else self.type


class SessionCreate(SessionChange):
    """The body of POST /api/sessions: path and type, or the deprecated `notebook`."""


class KernelList(RootModel[list[Kernel]]):
    """The caller's kernels, oldest first."""


class NotebookView(Model):
    """The deprecated part of a notebook's session."""

    path: str
    name: str


def absent(value: object) -> bool:
    """Tell whether a field is left out of what is shown."""
    return value is None


class SessionView(Model):
    """A session as Jupyter shows it."""

    id: str
    path: str
    name: str
    type: str
    kernel: Kernel
    notebook: NotebookView | None = Field(None, exclude_if=absent)

    @classmethod
    def of(cls, record: SessionRecord, handle: KernelHandle) -> SessionView:
        """Show a session and its kernel."""
        notebook = NotebookView(path=record.path, name=record.name) if record.type == "notebook" else None
        return cls(
            id=record.id,
            path=record.path,
            name=record.name,
            type=record.type,
            kernel=handle.model(),
            notebook=notebook,
        )


class SessionList(RootModel[list[SessionView]]):
    """The caller's sessions, oldest first."""


class SpecFile(Model):
    """A kernelspec as kernel.json holds it. `env` is always empty: its values may be secrets."""

    argv: tuple[str, ...]
    env: dict[str, str]
    display_name: str
    language: str
    interrupt_mode: str
    metadata: dict[str, Any]


class SpecView(Model):
    """A kernelspec as Jupyter shows it; `resources` maps names to paths on this server."""

    name: str
    spec: SpecFile
    resources: dict[str, str]

    @classmethod
    def of(cls, spec: KernelSpec, resources: dict[str, str]) -> SpecView:
        """Show a kernelspec."""
        shown = SpecFile(
            argv=spec.argv,
            env={},
            display_name=spec.display_name,
            language=spec.language,
            interrupt_mode=spec.interrupt_mode,
            metadata=dict(spec.metadata),
        )
        return cls(name=spec.name, spec=shown, resources=resources)


class SpecList(Model):
    """All kernelspecs that may be started."""

    default: str
    kernelspecs: dict[str, SpecView]


class Version(Model):
    """The gateway's version."""

    version: str


class Health(Model):
    """That the process answers."""

    status: str = "ok"


class Ready(Model):
    """That kernels can be had, and what was checked."""

    status: str = "ready"
    checks: dict[str, str]


class Status(Model):
    """The caller's own share of the server: open sockets, kernels, and the last of their activities."""

    connections: int
    kernels: int
    last_activity: str
    started: str


class Identity(Model):
    """Who the caller is, in JupyterLab's fields."""

    username: str
    name: str
    display_name: str
    initials: str | None = None
    avatar_url: str | None = None
    color: str | None = None


class Me(Model):
    """The caller's identity, and which of the asked permissions it has."""

    identity: Identity
    permissions: dict[str, list[str]]


class ErrorBody(Model):
    """Every error, from every door."""

    message: str
    reason: str | None = None
    code: str
