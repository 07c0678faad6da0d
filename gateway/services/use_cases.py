"""All use cases together, built over the ports: what every door is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.services.archives import ArchiveService
from gateway.services.artifacts import ArtifactService
from gateway.services.contexts import ContextService
from gateway.services.executions import ExecutionService
from gateway.services.files import FileService
from gateway.services.job_book import JobBook
from gateway.services.job_runner import JobRunner
from gateway.services.jobs import JobService
from gateway.services.kernels import KernelService
from gateway.services.processes import ProcessService
from gateway.services.quotas import Quotas
from gateway.services.sessions import SessionService
from gateway.services.starting import KernelStarter
from gateway.services.workspaces import WorkspaceService

if TYPE_CHECKING:
    from gateway.ports import Audit, Clock, KernelHost, Store
    from gateway.ports.events import Notifier
    from gateway.settings import Settings


@dataclass(frozen=True)
class UseCases:
    """The services, one of each."""

    kernels: KernelService
    executions: ExecutionService
    jobs: JobService
    contexts: ContextService
    sessions: SessionService
    files: FileService
    processes: ProcessService
    archives: ArchiveService
    artifacts: ArtifactService
    workspaces: WorkspaceService
    quotas: Quotas

    @classmethod
    def over(
        cls,
        host: KernelHost,
        store: Store,
        *,
        clock: Clock,
        settings: Settings,
        quotas: Quotas,
        audit: Audit,
        notifier: Notifier,
    ) -> UseCases:
        """Build them. `jobs` has to be at work (`JobService.working`) while a door is open."""
        kernels = KernelService(host, store, clock, settings, quotas, audit=audit)
        executions = ExecutionService(kernels, clock, settings, audit)
        sessions = SessionService(kernels, store, clock, audit)
        files = FileService(kernels, settings, audit)
        artifacts = ArtifactService(files)
        workspaces = WorkspaceService(host, settings, quotas, audit)
        starter = KernelStarter(kernels, workspaces)
        contexts = ContextService(sessions, starter, clock, audit)
        runner = JobRunner(
            kernels=kernels,
            executions=executions,
            contexts=contexts,
            starter=starter,
            files=files,
            artifacts=artifacts,
            clock=clock,
        )
        book = JobBook(store, clock, settings.executions)
        jobs = JobService(
            book, runner, kernels, clock=clock, settings=settings, audit=audit, notifier=notifier
        )
        return cls(
            kernels=kernels,
            executions=executions,
            jobs=jobs,
            contexts=contexts,
            sessions=sessions,
            files=files,
            processes=ProcessService(kernels, quotas, clock, settings, audit),
            archives=ArchiveService(files, settings),
            artifacts=artifacts,
            workspaces=workspaces,
            quotas=quotas,
        )
