"""The tools for agents over MCP: the official SDK's server behind the gateway's own guard."""
