"""What holds on this machine: the host, the kernel environments, and a throw-away cell under attack."""
