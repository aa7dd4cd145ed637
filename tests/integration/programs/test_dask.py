"""Dask distributed: scheduler, workers and client in processes of their own, all on the loop under test."""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from ..application import loop_factory
from ..conftest import SAFETY
from .processes import HOST, free_port, program

# Dask's processes ask its configuration for a loop, which knows asyncio's and uvloop's alone; the default is
# whatever asyncio makes. Its preload modules come before that.
PRELOAD = ["--preload", "tests.integration.programs.dask_on_mioloop"]


def worker_loop(dask_worker: Any) -> str:
    return type(dask_worker.loop.asyncio_loop).__module__.split(".")[0]


def scheduler_loop(dask_scheduler: Any) -> str:
    return type(dask_scheduler.loop.asyncio_loop).__module__.split(".")[0]


def chunk(n: int) -> int:
    return sum(range(n * 1000, (n + 1) * 1000))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dask(loop_name: str, tmp_path: Path) -> None:
    """A tree of sums over two workers; one of them is killed at work, and the other does what it did."""
    port = free_port()
    preload = PRELOAD if loop_name.startswith("mioloop") else []
    environment = {"DASK_TEMPORARY_DIRECTORY": str(tmp_path), "PYTHONPATH": str(Path.cwd())}

    async def main() -> None:
        make: Any = Client
        async with make(f"tcp://{HOST}:{port}", asynchronous=True) as client:
            await client.wait_for_workers(2)
            loops = await client.run(worker_loop)
            assert set(loops.values()) == {loop_name.split(":")[0]}
            assert len(loops) == 2
            assert await client.run_on_scheduler(scheduler_loop) == loop_name.split(":")[0]
            level = client.map(chunk, range(200))
            while len(level) > 1:
                pairs = [level[n : n + 2] for n in range(0, len(level), 2)]
                level = [client.submit(sum, pair) for pair in pairs]
            assert await level[0] == sum(range(200_000))
            big = await client.scatter(bytes(5_000_000), broadcast=True)
            assert await client.submit(len, big) == 5_000_000
            failing = client.submit(int, "no number")
            with pytest.raises(ValueError, match="no number"):
                await failing

            # The work of a lost worker is done again.
            parts = client.map(chunk, range(1000, 1050))
            await client.gather(parts)
            workers[0].process.kill()
            assert sum(await client.gather(client.map(chunk, range(1000, 1100)))) == sum(
                range(1_000_000, 1_100_000)
            )

    with ExitStack() as stack:
        options = ["--no-dashboard", "--host", HOST]
        dask = [sys.executable, "-m", "dask"]
        scheduler = stack.enter_context(
            program(
                [
                    *dask,
                    "scheduler",
                    "--port",
                    str(port),
                    "--dashboard-address",
                    f"{HOST}:0",
                    *options,
                    *preload,
                ],
                environment=environment,
            )
        )
        scheduler.ready_on(port)
        nthreads = ["--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path)]
        workers = [
            stack.enter_context(
                program(
                    [*dask, "worker", f"tcp://{HOST}:{port}", *nthreads, *options, *preload],
                    environment=environment,
                )
            )
            for _ in range(2)
        ]
        with asyncio.Runner(loop_factory=loop_factory(loop_name)) as runner:
            runner.run(asyncio.wait_for(main(), SAFETY + 30))
