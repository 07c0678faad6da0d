"""All tools together, in the order in which they are listed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.toolbox.catalogue import Catalogue
from gateway.toolbox.commands import CommandTools
from gateway.toolbox.executions import ExecutionTools
from gateway.toolbox.files import FileTools
from gateway.toolbox.handles import Handles
from gateway.toolbox.processes import ProcessTools
from gateway.toolbox.resources import Resources
from gateway.toolbox.sessions import SessionTools

if TYPE_CHECKING:
    from gateway.ports import Audit
    from gateway.services.use_cases import UseCases
    from gateway.settings import McpSettings


class Toolbox:
    """What agents are offered, and what they may read as resources."""

    def __init__(self, use_cases: UseCases, *, settings: McpSettings, audit: Audit) -> None:
        handles = Handles(use_cases.contexts)
        sessions = SessionTools(use_cases, handles, settings)
        executions = ExecutionTools(use_cases.jobs, handles, settings)
        commands = CommandTools(use_cases.processes, handles, settings)
        processes = ProcessTools(use_cases.processes, handles)
        files = FileTools(use_cases.files, handles, settings)
        self.resources = Resources(files, use_cases.jobs, settings.file_bytes)
        self.catalogue = Catalogue(
            (
                *sessions.tools(),
                *executions.tools(),
                *sessions.controls(),
                *commands.tools(),
                *files.tools(),
                *sessions.facts(),
                *sessions.extended(),
                *processes.extended(),
                *files.extended(),
                *executions.extended(),
            ),
            audit,
        )
