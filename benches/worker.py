"""The fresh process of one sample: `python -m benches.worker FACTORY ROW ...` runs one row on one loop.

An `InProcess` row is timed here and its sample printed as JSON. A `Served` row is served until the process is
ended; its address is the one line it prints.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import dataclasses
import json
import resource
import signal
from pathlib import Path

from mioloop.bench import load_factory

from . import floor
from .row import InProcess
from .rows import ROWS


def age_allocator() -> None:
    """Brings malloc to where a program that has run for a while has it.

    glibc takes large blocks from the kernel one by one until the first of them has been freed, and blocks
    up to that size from its own heap thereafter. asyncio and others receive into blocks of 256 KiB, which a
    young process thus maps, faults in and unmaps for every message, at four times the cost. A server past
    its start-up has long freed a larger one.
    """
    block = bytearray(4 * 1024 * 1024)
    del block


def die_with_parent() -> None:
    """No worker outlives the benchmark; a thread that watched a pipe for that would be in the figures."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benches.worker")
    parser.add_argument("factory")
    parser.add_argument("row", nargs="?", help="without one, only that the loop can be made is tried")
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path())
    arguments = parser.parse_args()

    die_with_parent()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    age_allocator()
    factory = load_factory(arguments.factory)
    if arguments.row is None:
        factory().close()
        return
    row = next(row for row in (*ROWS, *floor.ROWS.values()) if row.name == arguments.row)
    if isinstance(row, InProcess):
        print(json.dumps(dataclasses.asdict(row.run(factory, arguments.seconds, arguments.samples))))
    else:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(row.serve(arguments.folder, lambda address: print(address, flush=True)))


if __name__ == "__main__":
    main()
