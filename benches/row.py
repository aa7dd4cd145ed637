"""A row of the benchmark: a piece of work for every loop, and the share of uvloop's cost that it may take.

There are two kinds. The work of an `InProcess` row happens wholly within the process under test, which
times it itself. A `Served` row is a server in the process under test, and a load from outside that also
does the timing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

Loop = asyncio.AbstractEventLoop
Body = Callable[[int], Awaitable[None]]
Measure = Literal["cpu", "wall", "bytes"]


@dataclass(frozen=True)
class Sample:
    """What one operation cost (seconds or bytes), how many there were in a second, and how long they took."""

    cost: float
    rate: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None


@dataclass(frozen=True)
class Row:
    name: str
    goal: float | None
    """The share of uvloop's cost that mioloop aims at."""


@dataclass(frozen=True)
class InProcess(Row):
    prepare: Callable[[Loop], Body]
    """Sets up outside the timing; what it returns does the given number of operations."""
    measure: Measure = "cpu"
    batch: int = 1
    """Operations in one unit of the body's count, for work that only exists in the thousands."""
    pinned: bool = True
    """Whether the process is kept on one core: not where the work is threads' or other processes'."""
    modules: tuple[str, ...] = ()
    """What the row can't do without, and is left out without."""

    def run(self, factory: Callable[[], Loop], seconds: float, samples: int) -> Sample:
        """Finds the count that takes about `seconds`, then takes the median of `samples` timings of it."""
        with asyncio.Runner(loop_factory=factory) as runner:
            body = self.prepare(runner.get_loop())
            count, cost = 1, runner.run(self.time(body, 1))
            while cost.wall < seconds / 4:
                # From a too short time little can be told, so the count grows tenfold at most.
                count *= max(2, min(10, int(seconds / 2 / max(cost.wall, 1e-9))))
                cost = runner.run(self.time(body, count))
            count = max(1, round(count * seconds / cost.wall))
            costs = [runner.run(self.time(body, count)) for _ in range(samples)]
        operations = count * self.batch
        wall = median(cost.wall for cost in costs)
        cpu = median(cost.cpu for cost in costs)
        return Sample((cpu if self.measure == "cpu" else wall) / operations, operations / wall)

    @staticmethod
    async def time(body: Body, count: int) -> Cost:
        wall, cpu = time.perf_counter(), time.process_time()
        await body(count)
        return Cost(time.process_time() - cpu, time.perf_counter() - wall)


@dataclass(frozen=True)
class Cost:
    cpu: float
    wall: float


@dataclass(frozen=True)
class Target:
    """A server that is up: what a load needs to know."""

    address: str
    pid: int
    core: int | None
    """Where the load is to run, on a machine that has a core to spare for it."""
    seconds: float
    warmup: float


@dataclass(frozen=True)
class Served(Row):
    serve: Callable[[Path, Callable[[str], None]], Coroutine[Any, Any, None]]
    """Serves for ever; is given a folder for its files, and whom to tell its address once it listens."""
    load: Callable[[Target], Sample]
    measure: Measure = "cpu"
    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    """What the row can't do without, and is left out without."""
