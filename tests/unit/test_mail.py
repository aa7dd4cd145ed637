"""What threads that know nothing of Python bring to a loop: names and files.

Whatever the loop does meanwhile (it sleeps, is busy, does not run at all, is driven by somebody else), what
was brought reaches those who wait for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mioloop import fs

from .support import SAFETY, pipe, run, run_once

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def names(loop: asyncio.AbstractEventLoop) -> Any:
    return loop.getaddrinfo("localhost", 80)


@pytest.fixture(params=["names", "files"])
def bring(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """Something that a thread does for the running loop."""
    if request.param == "names":
        return lambda: names(asyncio.get_running_loop())
    return lambda: fs.write_bytes(tmp_path / "file", b"data")


def test_a_busy_loop_gets_it(loop: asyncio.AbstractEventLoop, bring: Callable[[], Any]) -> None:
    async def main() -> None:
        done = False

        def again() -> None:
            if not done:
                loop.call_soon(again)

        again()
        for _ in range(20):
            assert await bring()
        done = True

    run(loop, main())


def test_a_loop_that_did_not_run_gets_it(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    task = loop.create_task(fs.read_bytes(fifo))
    run_once(loop)
    run_once(loop)
    # Opened when the thread has it open too, so that the result comes while nobody runs the loop.
    fifo.write_bytes(b"data")
    assert not task.done()
    assert run(loop, asyncio.wait_for(task, SAFETY)) == b"data"


def test_a_loop_that_runs_step_by_step_gets_it(
    loop: asyncio.AbstractEventLoop, bring: Callable[[], Any]
) -> None:
    async def main() -> None:
        for _ in range(5):
            assert await bring()

    task = loop.create_task(main())
    deadline = time.monotonic() + SAFETY
    while not task.done():
        assert time.monotonic() < deadline
        run_once(loop)
    task.result()


@pytest.mark.mioloop_only(reason="`_run_once` is private")
def test_whoever_runs_iterations_himself_gets_it(loop: Any, bring: Callable[[], Any]) -> None:
    async def main() -> bool:
        return bool(await bring())

    task = loop.create_task(main())
    loop.call_soon(loop.stop)
    loop.run_forever()
    asyncio._set_running_loop(loop)
    try:
        while not task.done():
            loop._run_once()
    finally:
        asyncio._set_running_loop(None)
    assert task.result()


def test_a_sleeping_loop_gets_it(loop: asyncio.AbstractEventLoop, bring: Callable[[], Any]) -> None:
    """After pauses of all lengths around that for which the threads watch before they sleep."""

    async def main() -> None:
        for pause in range(0, 100, 2):
            assert await bring()
            time.sleep(pause * 1e-6)
            assert await bring()
            await asyncio.sleep(pause * 1e-6)

    run(loop, main())


def test_nothing_of_much_is_lost(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """Names, files and calls in threads at once, some of which are given up."""
    chosen = random.Random(4)

    async def one(number: int) -> int:
        path = tmp_path / str(number % 50)
        for _ in range(3):
            kind = chosen.randrange(4)
            if kind == 0:
                assert await names(loop)
            elif kind == 1:
                assert await fs.write_bytes(path, b"data") == 4
            elif kind == 2:
                assert await asyncio.to_thread(abs, -number) == number
            else:
                await asyncio.sleep(chosen.random() / 1000)
        return number

    async def main() -> None:
        tasks = [loop.create_task(one(number)) for number in range(400)]
        for task in tasks[::7]:
            loop.call_later(chosen.random() / 50, task.cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, result in enumerate(results):
            given_up = number % 7 == 0 and isinstance(result, asyncio.CancelledError)
            assert given_up or result == number, result

    run(loop, main())


def test_each_loop_gets_its_own(loop_factory: LoopFactory, tmp_path: Path) -> None:
    results: list[int] = []

    async def main(number: int) -> None:
        for turn in range(100):
            name = tmp_path / f"{number}-{turn}"
            await fs.write_bytes(name, b"x" * turn)
            assert (await fs.stat(name)).st_size == turn
            assert await names(asyncio.get_running_loop())
        results.append(number)

    def work(number: int) -> None:
        loop = loop_factory()
        try:
            run(loop, main(number))
        finally:
            loop.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY)
    assert sorted(results) == [0, 1, 2, 3]


def test_much_of_it_does_not_keep_others_waiting(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """Something is in the box always, and there is nothing else: a descriptor has its turn all the same."""
    reader, writer = pipe()
    counts: list[int] = []
    jobs = 0
    done = False

    def readable() -> None:
        nonlocal jobs, done
        os.read(reader, 1)
        counts.append(jobs)
        jobs = 0
        done = len(counts) == 30
        if not done:
            os.write(writer, b"x")

    async def work() -> None:
        nonlocal jobs
        while not done:
            await fs.listdir(tmp_path)
            jobs += 1

    async def main() -> None:
        loop.add_reader(reader, readable)
        os.write(writer, b"x")
        await asyncio.gather(*(work() for _ in range(16)))
        loop.remove_reader(reader)

    run(loop, main())
    os.close(reader)
    os.close(writer)
    assert max(counts) < 1000, counts


def test_a_callback_that_goes_on_at_once_finds_its_context(
    loop: asyncio.AbstractEventLoop, bring: Callable[[], Any]
) -> None:
    variable = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []

    async def one(number: int) -> None:
        variable.set(number)
        await bring()
        seen.append(variable.get())

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(1, 20)))
        assert variable.get() == 0

    run(loop, main())
    assert sorted(seen) == list(range(1, 20))


@pytest.mark.mioloop_only(reason="another loop watches a descriptor")
def test_it_takes_no_descriptor(loop_factory: LoopFactory, bring: Callable[[], Any]) -> None:
    async def main() -> int:
        await bring()
        return len(os.listdir("/dev/fd"))

    first = loop_factory()
    run(first, main())  # what belongs to the process is there now
    second = loop_factory()

    async def count() -> int:
        return len(os.listdir("/dev/fd"))

    before = run(second, count())
    assert run(second, main()) == before
    first.close()
    second.close()


def test_what_comes_after_the_end_harms_nobody(
    loop: asyncio.AbstractEventLoop, loop_factory: LoopFactory, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    task: Any = loop.create_task(fs.read_bytes(fifo))
    run_once(loop)
    run_once(loop)
    task._log_destroy_pending = False
    loop.close()
    fifo.write_bytes(b"data")
    task.get_coro().close()
    other = loop_factory()
    assert run(other, fs.write_bytes(tmp_path / "file", b"more"))
    other.close()
