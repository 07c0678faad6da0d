"""What a cell allows, read from TOML files that people edit; whatever is wrong in one names its line."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway.errors import ConfigurationError
from gateway.models import Frozen, Limits
from gateway.policy import CodePolicy
from gateway.sandbox import seccomp
from gateway.sandbox.syscalls import ESSENTIAL, NUMBERED, WHY_NOT

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PATH = re.compile(r"(/[\w.+@-]+)+")
_MAX_BYTES = 256 << 10

_ETC_REFUSED = re.compile(
    r"(g?shadow|passwd|group|sudoers|firejail|ssh|krb5\.keytab|crypttab|fstab)([-.~].*|\.d)?"
)
_ETC_NEEDED = frozenset({"passwd", "group", "ld.so.cache"})
# Hiding one of these, or a parent of it, breaks every cell; gcc fails on an include path it may not read.
_CELL_NEEDS = tuple(
    PurePosixPath(path)
    for path in (
        *("/bin", "/dev/null", "/dev/shm", "/etc/passwd", "/home", "/lib", "/lib64", "/proc/self"),  # noqa: S108
        *("/run/firejail/lib", "/tmp", "/usr/bin", "/usr/include", "/usr/lib/python3"),  # noqa: S108
        *("/usr/lib/x86_64-linux-gnu", "/usr/local", "/usr/share/fonts"),
    )
)
_SHAREABLE = re.compile(
    r"/(?!(bin|boot|dev|etc|home|lib\w*|media|mnt|proc|root|run|sbin|sys|tmp|usr|var)(/|$)).+"
)
_VARIABLE_REFUSED = re.compile(
    r"(LD_|PYTHON|JPY_|FIREJAIL|DBUS_|GLIBC_|GCONV|MALLOC_).*"
    r"|PATH|HOME|USER|LOGNAME|SHELL|IFS|ENV|BASH_ENV|LOCPATH|NLSPATH|TMPDIR|container"
)


def _clean_path(path: str) -> str:
    if not _PATH.fullmatch(path) or ".." in PurePosixPath(path).parts or "." in path.split("/"):
        raise ValueError(f"{path!r} is not a plain absolute path (letters, digits and . _ + @ - only)")
    return path


HostPath = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_clean_path)]


class Files(Frozen):
    """What of the host's files a cell sees."""

    private_etc: tuple[str, ...] = Field(description="The only entries of /etc.")
    blacklist: tuple[HostPath, ...] = Field(
        (), strict=False, description="Paths hidden besides the fixed ones."
    )
    read_only: tuple[HostPath, ...] = Field((), description="Host directories shown read-only.")

    @field_validator("private_etc")
    @classmethod
    def _etc(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
                raise ValueError(f"{name!r} is not the name of one entry of /etc")
            if name not in _ETC_NEEDED and _ETC_REFUSED.fullmatch(name):
                raise ValueError(f"{name!r} holds what no cell may read")
        if missing := _ETC_NEEDED.difference(names):
            raise ValueError(f"no kernel starts without {', '.join(sorted(missing))}")
        return names

    @field_validator("blacklist")
    @classmethod
    def _hidden(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            for needed in _CELL_NEEDS:
                if needed == PurePosixPath(path) or PurePosixPath(path) in needed.parents:
                    raise ValueError(f"{path!r} cannot be hidden: every cell needs {needed}")
        return paths

    @field_validator("read_only")
    @classmethod
    def _shared(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if not _SHAREABLE.fullmatch(path):
                raise ValueError(
                    f"{path!r} cannot be shared: use a directory below /srv, /opt or one of your own"
                )
        return paths

    @model_validator(mode="after")
    def _agree(self) -> Files:
        for hidden in map(PurePosixPath, self.blacklist):
            for shown in map(PurePosixPath, self.read_only):
                if hidden == shown or hidden in shown.parents:
                    raise ValueError(f"read_only shows {shown} and blacklist hides it")
        return self


class Memory(Frozen):
    """What memory may be used for."""

    write_execute: bool = Field(False, description="Allow memory that is written and then executed.")


class Exec(Frozen):
    """Where programs may not run from."""

    noexec: tuple[Literal["home", "tmp", "shm"], ...] = Field(
        (), strict=False, description="Writable places."
    )


class Rlimits(Frozen):
    """Limits of the kernel's that are no field of Limits."""

    sigpending: int = Field(256, ge=32, le=65_536, description="Queued signals.")


class Syscalls(Frozen):
    """The system calls that exist for a cell."""

    keep: tuple[str, ...] = Field(description="Names, or $NUMBER where firejail knows no name.")

    @field_validator("keep")
    @classmethod
    def _kept(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if why := WHY_NOT.get(name):
                raise ValueError(f"{name!r} may not be kept: it {why}")
            if name.startswith("$") and name not in NUMBERED:
                raise ValueError(f"{name!r} may not be kept: write its name, or leave it out if it has none")
            if not re.fullmatch(r"[a-z_][a-z0-9_]*|\$\d+", name):
                raise ValueError(f"{name!r} is not the name of a system call")
        if missing := ESSENTIAL.difference(names):
            raise ValueError(f"no kernel runs without {', '.join(sorted(missing))}")
        if len(set(names)) < len(names):
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands there twice")
        return names


class SandboxProfile(Frozen):
    """All that may be chosen about a cell. What may not be is no option: see gateway/sandbox/firejail.py."""

    name: str
    description: str = Field(min_length=1, max_length=200)
    backend: Literal["firejail", "bubblewrap"] = Field("firejail", description="What makes the cell.")
    attendant: bool = Field(True, description="Have commands and tools beside the kernel.")
    files: Files
    memory: Memory = Field(default_factory=Memory)
    exec: Exec = Field(default_factory=Exec)
    limits: Limits = Field(default_factory=Limits)
    rlimits: Rlimits = Field(default_factory=Rlimits)
    environment: Mapping[str, str] = Field(default_factory=dict)
    policy: CodePolicy = Field(default_factory=CodePolicy)
    syscalls: Syscalls

    @field_validator("limits", mode="before")
    @classmethod
    def _never(cls, limits: Any) -> Any:
        """Read "never" as no limit, since TOML has no null."""
        if not isinstance(limits, dict):
            return limits
        endless = ("idle_timeout_s", "max_lifetime_s")
        return {k: None if k in endless and v == "never" else v for k, v in limits.items()}

    @field_validator("limits")
    @classmethod
    def _fits(cls, limits: Limits) -> Limits:
        for name in ("cpus", "timeout_s", "idle_timeout_s", "max_lifetime_s"):
            if math.isinf(getattr(limits, name) or 0):
                raise ValueError(f"{name} must be finite")
        if limits.home_bytes > limits.memory_bytes:
            raise ValueError("home_bytes exceeds memory_bytes, and the home lies in that memory")
        return limits

    @field_validator("environment")
    @classmethod
    def _variables(cls, variables: Mapping[str, str]) -> Mapping[str, str]:
        for name, value in variables.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) or _VARIABLE_REFUSED.fullmatch(name):
                raise ValueError(f"{name!r} may not be set by a profile")
            if len(value) > 1024 or not value.isprintable():
                raise ValueError(f"the value of {name} is too long or not printable")
        return variables

    @field_validator("exec")
    @classmethod
    def _mounted(cls, chosen: Exec, info: ValidationInfo) -> Exec:
        if chosen.noexec and info.data.get("backend") == "bubblewrap":
            raise ValueError("noexec cannot be had with bubblewrap, which mounts nothing so")
        return chosen

    @field_validator("syscalls")
    @classmethod
    def _numbered(cls, chosen: Syscalls, info: ValidationInfo) -> Syscalls:
        strangers = seccomp.unknown(chosen.keep) if info.data.get("backend") == "bubblewrap" else []
        if strangers:
            raise ValueError(f"{strangers[0]!r} in keep has no number that is known, and bubblewrap needs it")
        return chosen


Place = tuple[Path, int]


def _places(path: Path, text: str) -> dict[tuple[str, ...], Place]:
    """Map the keys of a TOML text, with their tables, to file and line."""
    places: dict[tuple[str, ...], Place] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([\w.\s\"'-]+)\]\s*(#|$)", line):
            table = tuple(part.strip(" \"'") for part in header[1].split("."))
            places.setdefault(table, (path, number))
        elif key := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            places.setdefault((*table, *(part.strip("\"'") for part in key[1].split("."))), (path, number))
    return places


def _tuples(value: Any) -> Any:
    """Turn TOML's arrays into the tuples that frozen models hold, so that the rest can be read strictly."""
    if isinstance(value, dict):
        return {key: _tuples(below) for key, below in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], Place]]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigurationError(f"{path}: the profile is larger than {_MAX_BYTES} bytes.")
        text = data.decode()
        return _tuples(tomllib.loads(text)), _places(path, text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise ConfigurationError(f"{path}:{line}: not valid TOML: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}.") from error


def _overlaid(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Lay a child's keys over its parent's, table by table."""
    merged = dict(parent)
    for key, value in child.items():
        below = merged.get(key)
        merged[key] = {**below, **value} if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _item_line(place: Place, value: Any) -> Place:
    """Return the line of one item of a list that starts at `place`, or the list's own."""
    path, start = place
    lines = path.read_text().splitlines()[start - 1 :]
    for offset, line in enumerate(lines):
        if f'"{value}"' in line or f"'{value}'" in line:
            return path, start + offset
    return place


def _explained(
    error: ValidationError, path: Path, places: Mapping[tuple[str, ...], Place]
) -> ConfigurationError:
    first = error.errors()[0]
    location = tuple(part for part in first["loc"] if part != "[key]")
    keys = tuple(str(part) for part in location if isinstance(part, str))
    place = next((places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in places), (path, 1))
    # a table's own check names the key that it is about
    named = (word for word in re.findall(r"[\w-]+", first["msg"]) if (*keys, word) in places)
    if key := next(named, None):
        place = places[(*keys, key)]
    quoted = re.match(r"Value error, '([^']+)'", first["msg"])
    if quoted or (location and isinstance(location[-1], int) and isinstance(first["input"], str)):
        place = _item_line(place, quoted[1] if quoted else first["input"])
    reason = (
        "unknown option" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    )
    return ConfigurationError(f"{place[0]}:{place[1]}: {'.'.join(keys)}: {reason}.")


def shipped_dir() -> Path:
    """Return where the shipped profiles lie: in the wheel's data, else at the top of the checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "data" / "sandbox_profiles"
    return installed if installed.is_dir() else package.parent / "sandbox_profiles"


def profile_dirs(first: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Return where profiles are searched: an operator's own directories, then the shipped ones."""
    return (*first, shipped_dir())


def _find(name: str, dirs: Sequence[Path]) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name[:64]!r} is not the name of a profile.")
    for directory in dirs:
        if (path := directory / f"{name}.toml").is_file():
            return path
    raise ConfigurationError(
        f"There is no profile {name!r} in {', '.join(map(str, dirs)) or 'no directory'}."
    )


def _lineage(
    name: str, dirs: Sequence[Path]
) -> Iterator[tuple[Path, dict[str, Any], dict[tuple[str, ...], Place]]]:
    """Yield a profile's file and those that it extends, child first."""
    seen: list[str] = []
    at = ""
    while True:
        if name in seen:
            raise ConfigurationError(f"{at}extends: {' extends '.join([*seen, name])}: a circle.")
        seen.append(name)
        try:
            path = _find(name, dirs)
        except ConfigurationError as error:
            raise ConfigurationError(f"{at}{error.message}") from error
        data, places = _read(path)
        yield path, data, places
        if "extends" not in data:
            return
        at = f"{path}:{places.get(('extends',), (path, 1))[1]}: "
        name = data["extends"]
        if not isinstance(name, str):
            raise ConfigurationError(f"{at}extends: Input should be the name of one profile.")


def load_profile(name: str, dirs: Sequence[Path]) -> SandboxProfile:
    """Read one profile by name from the first of the directories that has it, over those that it extends.

    Raises:
        ConfigurationError: there is no such profile, or it is wrong; the message starts with file and line.
    """
    merged: dict[str, Any] = {}
    places: dict[tuple[str, ...], Place] = {}
    files = list(_lineage(name, dirs))
    for _, data, known in reversed(files):
        merged = _overlaid(merged, data)
        places |= known
    merged.pop("extends", None)
    if "name" in merged:
        at = places[("name",)]
        raise ConfigurationError(f"{at[0]}:{at[1]}: name: unknown option; a profile is named by its file.")
    try:
        return SandboxProfile.model_validate({**merged, "name": name}, strict=True)
    except ValidationError as error:
        raise _explained(error, files[0][0], places) from error


def load_profiles(dirs: Sequence[Path]) -> dict[str, SandboxProfile]:
    """Read every profile of the directories, by name; of two with one name the first directory's counts.

    Raises:
        ConfigurationError: one of them is wrong, or its file's name is no profile's name.
    """
    names = dict.fromkeys(path.stem for directory in dirs for path in sorted(directory.glob("*.toml")))
    return {name: load_profile(name, dirs) for name in names}
