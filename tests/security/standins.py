"""Programs that stand in for firejail: each fails in a way of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

REAL = "/usr/bin/firejail"
VERSION = 'if [ "$1" = --version ]; then echo "firejail version 0.9.72"; exit 0; fi'
# -p: the shell keeps the effective uid that it is started with, as firejail does
SHELL = f"#!/bin/sh -p\n{VERSION}\n"
SKIP_OPTIONS = 'while [ "${1#--}" != "$1" ]; do shift; done\n'

TOO_OLD = '#!/bin/sh\necho "firejail version 0.9.70"\n'
NOT_FIREJAIL = "#!/bin/sh\necho hello\n"
PASSES_ON = f'{SHELL}exec {REAL} "$@"\n'
EXITS_WITH_ERROR = f'{SHELL}echo "Error: cannot find the moon" >&2\nexit 3\n'
EXITS_WITHOUT_RUNNING = f"{SHELL}exit 0\n"
HANGS = f"{SHELL}sleep 300 &\nwait\n"
TALKS_NONSENSE = f"{SHELL}python3 -c \"import os; os.write(0, b'{{}}')\"\nexec sleep 300\n"
RUNS_UNCONFINED = f'{SHELL}{SKIP_OPTIONS}exec "$@"\n'
RUNS_UNCONFINED_AS_THE_USER = f'{SHELL}{SKIP_OPTIONS}exec setpriv --reuid="$(id -ru)" "$@"\n'
LEAVES_THE_PROGRAM_BEHIND = f'{SHELL}{SKIP_OPTIONS}exec 3<&0\nsetsid "$@" <&3 &\nsleep 300\n'
FORGETS_THE_CONTAINER = f'{SHELL}unset container\nexec {REAL} "$@"\n'


def without(option: str) -> str:
    """Return a stand-in that is the real firejail, but for one option."""
    keep = f'case "$given" in {option}) ;; *) set -- "$@" "$given" ;; esac'
    return f'{SHELL}for given do shift; {keep}; done\nexec {REAL} "$@"\n'


def install(path: Path, text: str) -> Path:
    """Write a stand-in to where everybody may run it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o755)
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    fresh.chmod(0o755)
    fresh.replace(path)
    return path
