"""The command of a benchmark: `make bench`, or `.venv-bench/client/bin/python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from datetime import UTC, datetime

from benchmarks import machine
from benchmarks.results import Result
from benchmarks.runner import Runner, workloads
from benchmarks.sizes import FULL, QUICK


def arguments() -> argparse.Namespace:
    """Read the command line."""
    names = [workload.name for workload in workloads(random.Random())]
    parser = argparse.ArgumentParser(prog="make bench", description="Measure Cellblock and the incumbents.")
    parser.add_argument("--quick", action="store_true", help="small numbers, under 3 minutes")
    parser.add_argument("--only", action="append", choices=names, default=[], help="this workload (repeat)")
    parser.add_argument("--name", help="name of the result's files; the date and time when left out")
    parser.add_argument("--seed", type=int, default=1, help="order of targets and doors")
    parser.add_argument("--disturbed", action="store_true", help="run on a loaded machine, and say so")
    parser.add_argument("--publish", action="store_true", help="put the figures into docs/performance.md")
    return parser.parse_args()


async def measured(runner: Runner) -> bool:
    """Run until the end, Ctrl-C or SIGTERM; tell whether it came to its end."""
    task = asyncio.ensure_future(runner.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
        return True
    return False


def main() -> int:
    """Measure, and write the result. Returns 1 where something failed, 2 where nothing was measured."""
    options = arguments()
    os.environ.pop("PYTHONPATH", None)
    before = machine.load() if options.disturbed else machine.settle()
    disturbed = before > machine.QUIET_LOAD
    if disturbed and not options.disturbed:
        print(
            f"The load is {before:.1f}: others use this machine, and the figures would be theirs. "
            "Stop them, or say --disturbed (DISTURBED=1) to have the result marked.",
            file=sys.stderr,
        )
        return 2
    sizes = QUICK if options.quick else FULL
    runner = Runner(sizes, options.seed, options.only)
    begun = time.monotonic()
    if not asyncio.run(measured(runner)):
        print("Stopped; everything that was started is ended, and no result is written.", file=sys.stderr)
        return 130
    result = Result(
        name=options.name or datetime.now(UTC).strftime("%Y-%m-%d-%H%M"),
        command=command(options),
        quick=options.quick,
        seed=options.seed,
        load_before=round(before, 2),
        disturbed=disturbed or options.disturbed,
        took_s=time.monotonic() - begun,
        machine=machine.description(),
        sizes=sizes,
        samples=runner.samples,
    )
    print(f"\n{result.page()}\n\nWritten: {result.write()}")
    if options.publish:
        result.publish()
    return 1 if runner.samples.failures else 0


def command(options: argparse.Namespace) -> str:
    """Return the command that gives such a result again."""
    words = ["make bench"]
    words += ["QUICK=1"] if options.quick else []
    words += [f'ONLY="{" ".join(options.only)}"'] if options.only else []
    words += [f"SEED={options.seed}"] if options.seed != 1 else []
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
