"""The in-process rows under pyperf: a second opinion, with pyperf's calibration, warm-ups and statistics.

    python -m benches.micro_pyperf --loop mioloop -o mioloop.json
    python -m pyperf compare_to asyncio.json mioloop.json --table       (`make bench-micro` does all of it)

The report does not come from here, for one reason: pyperf finishes one loop before it begins the next, and a
machine that is slower by then shows as a slower loop. The benchmark's own runner has them take turns. What
pyperf is better at is the question whether two builds of one loop differ at all: it gives the spread of
dozens of processes, and says "not significant" where it is.

As everywhere here, a value is the process's CPU time, not pyperf's wall clock.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import re
from typing import Any

from mioloop.bench import FACTORIES, load_factory

from .loops import OURS
from .row import InProcess
from .rows import ROWS
from .worker import age_allocator


def time_row(count: int, row: InProcess, loop: str) -> float:
    """Does the row's work `count` times on a new loop and returns what it cost, in seconds."""
    with asyncio.Runner(loop_factory=load_factory(FACTORIES[loop])) as runner:
        cost = runner.run(row.time(row.prepare(runner.get_loop()), count))
    return cost.wall if row.measure == "wall" else cost.cpu


def pass_on(command: list[str], arguments: argparse.Namespace) -> None:
    """Tells pyperf's worker processes what this one was told."""
    command += ["--loop", arguments.loop, "--rows", arguments.rows]


def main() -> None:
    pyperf: Any = importlib.import_module("pyperf")
    runner = pyperf.Runner(add_cmdline_args=pass_on, program_args=["-m", "benches.micro_pyperf"])
    runner.argparser.add_argument("--loop", choices=FACTORIES, default=OURS)
    runner.argparser.add_argument("--rows", default="", metavar="PATTERN", help="only rows that match")
    arguments = runner.parse_args()
    age_allocator()
    for row in ROWS:
        if isinstance(row, InProcess) and re.search(arguments.rows, row.name, re.IGNORECASE):
            runner.bench_time_func(row.name, time_row, row, arguments.loop, inner_loops=row.batch)


if __name__ == "__main__":
    main()
