"""A typed asyncio client of the gateway, for the command line, tests and users."""

from gateway.client.connection import KernelConnection
from gateway.client.failures import ConnectionLost, GatewayUnreachable
from gateway.client.rest import Client, KernelSpecs

__all__ = ["Client", "ConnectionLost", "GatewayUnreachable", "KernelConnection", "KernelSpecs"]
