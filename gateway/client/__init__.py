"""A typed client of the gateway, for programs with asyncio (`Client`) and without (`SyncClient`)."""

from gateway.client.client import Client
from gateway.client.connection import KernelConnection
from gateway.client.failures import ConnectionLost, GatewayUnreachable, NoAnswer
from gateway.client.history import Entry, History
from gateway.client.sync import SyncClient
from gateway.client.views import KernelSpecs, SpecEntry
from gateway.models.jobs import Task, ToolOffer

__all__ = [
    "Client",
    "ConnectionLost",
    "Entry",
    "GatewayUnreachable",
    "History",
    "KernelConnection",
    "KernelSpecs",
    "NoAnswer",
    "SpecEntry",
    "SyncClient",
    "Task",
    "ToolOffer",
]
