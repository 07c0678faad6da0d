"""Let `python -m gateway.cli` be the `cellblock` command."""

from gateway.cli import main

main()
