"""A million calls of the default executor, some of which fail and some of which are cancelled. Each is made
once or was cancelled before, every result comes back to whoever asked for it and in the order of asking, and
nothing stays behind.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import mioloop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

SAFETY = 100  # seconds; ends a test that would otherwise hang
CALLS = 1_000_000
SUBMITTERS = 20
LOOPS = 2000
RESIDENT_BOUND = 4 << 20  # bytes; an object kept of each call in the second half would be 40 MiB
BLOCKS_BOUND = 2000  # of Python's allocator


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    """Of this test; those of earlier ones may still be ending."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + SAFETY
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


class Failed(Exception):
    pass


def job(number: int, made: bytearray, index: int, fails: bool) -> int:
    made[index] += 1
    if fails:
        raise Failed(number)
    return number


class Submitter:
    """Asks for calls in bursts of changing size, and keeps the books."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.submitted = self.returned = self.failed = self.cancelled = 0
        self.made = 0

    async def work(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        while count > 0:
            size = min(count, self.random.choice((1, 1, 1, 2, 5, 50, 300)))
            await self.burst(loop, size)
            count -= size

    async def burst(self, loop: asyncio.AbstractEventLoop, size: int) -> None:
        draw = self.random.random
        # How often each call of the burst was made.
        made = bytearray(size)
        resolved: list[int] = []
        calls = []
        for index in range(size):
            number = self.submitted + index
            fails, cancels = draw() < 0.05, draw() < 0.05
            future = loop.run_in_executor(None, job, number, made, index, fails)
            calls.append((number, future, fails, cancels))
        self.submitted += size
        for _, future, _, cancels in calls:
            if cancels:
                future.cancel()
        for number, future, fails, cancels in calls:
            try:
                result = await future
            except Failed as error:
                assert fails and error.args == (number,)
                self.failed += 1
            except asyncio.CancelledError:
                assert cancels
                self.cancelled += 1
            else:
                assert result == number and not fails
                self.returned += 1
            resolved.append(number)
        assert resolved == sorted(resolved)
        # A cancelled call may be on at this moment, but not have been made twice.
        for index, (_, future, _, _) in enumerate(calls):
            assert made[index] == 1 or (future.cancelled() and made[index] == 0)
        self.made += sum(made)


def memory() -> tuple[int, int]:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"), sys.getallocatedblocks()


async def soak(calls: int) -> None:
    submitters = [Submitter(seed) for seed in range(SUBMITTERS)]
    await asyncio.gather(*(submitter.work(calls // SUBMITTERS) for submitter in submitters))
    assert sum(submitter.submitted for submitter in submitters) == calls
    for one in submitters:
        assert one.returned + one.failed + one.cancelled == one.submitted
        assert one.returned + one.failed <= one.made <= one.submitted
        assert min(one.returned, one.failed, one.cancelled) > 0


def test_a_million_calls(recwarn: pytest.WarningsRecorder) -> None:
    complaints: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=mioloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
        runner.run(soak(CALLS // 2))
        resident, blocks = memory()
        runner.run(soak(CALLS // 2))
        resident_after, blocks_after = memory()
    gc.collect()
    assert complaints == []
    assert resident_after - resident < RESIDENT_BOUND
    assert blocks_after - blocks < BLOCKS_BOUND
    assert not recwarn.list


def test_calls_of_one_submitter_start_in_order() -> None:
    """With a single thread free, for whatever the others are kept busy with."""
    release = threading.Event()
    started: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        first = await loop.run_in_executor(None, threading.current_thread)
        executor: Any = loop._default_executor  # type: ignore[attr-defined]
        busy = [loop.run_in_executor(None, release.wait, SAFETY) for _ in range(executor._max_workers - 1)]
        for start in range(0, 100_000, 1000):
            numbers = range(start, start + 1000)
            await asyncio.gather(*(loop.run_in_executor(None, started.append, number) for number in numbers))
        release.set()
        assert all(await asyncio.gather(*busy))
        assert first.is_alive()

    mioloop.run(asyncio.wait_for(main(), SAFETY))
    assert started == list(range(100_000))


def test_thousands_of_loops_leave_no_threads() -> None:
    for number in range(LOOPS):
        loop = mioloop.new_event_loop()
        calls = [loop.run_in_executor(None, int, number) for _ in range(3)]
        if number % 4:
            assert loop.run_until_complete(asyncio.wait_for(calls[0], SAFETY)) == number
        if number % 3 == 0:
            loop.run_until_complete(loop.shutdown_default_executor())
        # The others' threads end by themselves, when they have done what was queued.
        loop.close()
        if number % 100 == 0:
            gc.collect()
