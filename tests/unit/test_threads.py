"""Other threads: call_soon_threadsafe loses nothing, keeps each thread's order and wakes an idle loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .support import SAFETY, Caught, run, run_once, run_until

WRONG_THREAD = "^Non-thread-safe operation invoked on an event loop other than the current one$"


def in_thread(function: Any, *args: object) -> Any:
    """Calls in a fresh thread; its result or its exception."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result(SAFETY)


def test_wakes_an_idle_loop(loop: asyncio.AbstractEventLoop) -> None:
    idle = threading.Event()

    def from_outside() -> None:
        idle.wait(SAFETY)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=from_outside)
    thread.start()
    loop.call_soon(idle.set)
    loop.run_forever()
    thread.join(SAFETY)


def test_each_wakes_the_loop_anew(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    turn = threading.Semaphore(0)

    def receive(number: int) -> None:
        log.append(number)
        turn.release()
        if number == 199:
            loop.stop()

    def from_outside() -> None:
        for number in range(200):
            loop.call_soon_threadsafe(receive, number)
            turn.acquire(timeout=SAFETY)

    thread = threading.Thread(target=from_outside)
    thread.start()
    loop.run_forever()
    thread.join(SAFETY)
    assert log == list(range(200))


def test_each_wakes_a_loop_that_also_waits_for_a_job(loop: asyncio.AbstractEventLoop) -> None:
    """It watches for the job's end for a moment before it sleeps: some calls come then, some later."""
    over, turn = threading.Event(), threading.Semaphore(0)
    in_time: list[bool] = []

    def from_outside() -> None:
        for number in range(2000):
            if number % 3 == 0:
                time.sleep(number % 50 * 1e-6)
            loop.call_soon_threadsafe(turn.release)
            in_time.append(turn.acquire(timeout=SAFETY))
        over.set()

    async def main() -> None:
        thread = threading.Thread(target=from_outside)
        thread.start()
        await loop.run_in_executor(None, over.wait)
        thread.join(SAFETY)

    run(loop, main())
    assert in_time == [True] * 2000


def test_before_the_run(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    in_thread(loop.call_soon_threadsafe, log.append, 1)
    loop.call_soon(log.append, 2)
    in_thread(loop.call_soon_threadsafe, log.append, 3)
    run_once(loop)
    assert log == [1, 2, 3]


def test_between_two_runs(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    run_once(loop)
    in_thread(loop.call_soon_threadsafe, log.append, 1)
    run_once(loop)
    assert log == [1]


def test_from_the_loops_own_thread_it_is_call_soon(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []

    def callback() -> None:
        loop.call_soon(log.append, 1)
        loop.call_soon_threadsafe(log.append, 2)
        loop.call_soon(log.append, 3)

    loop.call_soon(callback)
    run_once(loop)
    assert log == []
    run_once(loop)
    assert log == [1, 2, 3]


def test_many_threads_at_once(loop: asyncio.AbstractEventLoop) -> None:
    threads, calls = 8, 2000
    log: list[tuple[int, int]] = []
    start = threading.Barrier(threads)

    def hammer(thread: int) -> None:
        start.wait(SAFETY)
        for number in range(calls):
            loop.call_soon_threadsafe(log.append, (thread, number))

    workers = [threading.Thread(target=hammer, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    run_until(loop, lambda: len(log) >= threads * calls)
    for worker in workers:
        worker.join(SAFETY)
    run_once(loop)
    assert len(log) == threads * calls
    for thread in range(threads):
        assert [number for name, number in log if name == thread] == list(range(calls))


def test_the_loop_works_on_meanwhile(loop: asyncio.AbstractEventLoop) -> None:
    """A flood from outside starves neither the loop's own callbacks nor its timers."""
    flood = threading.Event()
    received: list[int] = []

    def from_outside() -> None:
        while not flood.is_set():
            loop.call_soon_threadsafe(received.append, 1)

    async def main() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
            await asyncio.sleep(0.0001)

    thread = threading.Thread(target=from_outside)
    thread.start()
    try:
        run(loop, main())
    finally:
        flood.set()
        thread.join(SAFETY)
    run_once(loop)


def test_cancelled_from_outside(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    handle = in_thread(loop.call_soon_threadsafe, log.append, 1)
    handle.cancel()
    run_once(loop)
    assert log == []


def test_an_exception_goes_to_the_handler(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    def fails() -> None:
        raise ValueError("from outside")

    handle = in_thread(loop.call_soon_threadsafe, fails)
    run_once(loop)
    context = caught.take()
    assert str(context["exception"]) == "from outside"
    assert context["handle"] is handle


def test_after_close(loop: asyncio.AbstractEventLoop) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match="^Event loop is closed$"):
        in_thread(loop.call_soon_threadsafe, print)


def test_close_while_threads_call(loop: asyncio.AbstractEventLoop) -> None:
    """Each call is either accepted or refused with the one error; nothing else may come out."""
    errors: list[BaseException] = []
    started = threading.Semaphore(0)

    def hammer() -> None:
        started.release()
        try:
            while True:
                loop.call_soon_threadsafe(int)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=hammer) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _ in workers:
        started.acquire()
    run_once(loop)
    loop.close()
    for worker in workers:
        worker.join(SAFETY)
    assert [(type(error), str(error)) for error in errors] == [(RuntimeError, "Event loop is closed")] * 4


def test_stop_from_outside(loop: asyncio.AbstractEventLoop) -> None:
    thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(loop.stop))
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join(SAFETY)


@pytest.mark.parametrize("method", ["call_soon", "call_later", "call_at"])
def test_debug_mode_refuses_a_call_from_a_wrong_thread(loop: asyncio.AbstractEventLoop, method: str) -> None:
    loop.set_debug(True)
    arguments: dict[str, tuple[object, ...]] = {
        "call_soon": (print,),
        "call_later": (1, print),
        "call_at": (1, print),
    }

    async def main() -> None:
        with pytest.raises(RuntimeError, match=WRONG_THREAD):
            in_thread(getattr(loop, method), *arguments[method])

    run(loop, main())


def test_debug_mode_lets_any_thread_prepare_an_idle_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.set_debug(True)
    log: list[int] = []
    in_thread(loop.call_soon, log.append, 1)
    run_once(loop)
    assert log == [1]


def test_debug_mode_allows_call_soon_threadsafe(loop: asyncio.AbstractEventLoop) -> None:
    loop.set_debug(True)
    log: list[int] = []

    async def main() -> None:
        in_thread(loop.call_soon_threadsafe, log.append, 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(loop, main())
    assert log == [1]


class Outside:
    """The loop in a thread of its own, as programs have it that use run_coroutine_threadsafe."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.thread = threading.Thread(target=loop.run_forever)

    def __enter__(self) -> asyncio.AbstractEventLoop:
        self.thread.start()
        return self.loop

    def __exit__(self, *_exc: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(SAFETY)


def test_run_coroutine_threadsafe_returns_the_result(loop: asyncio.AbstractEventLoop) -> None:
    async def add(left: int, right: int) -> int:
        await asyncio.sleep(0)
        return left + right

    with Outside(loop) as running:
        futures = [asyncio.run_coroutine_threadsafe(add(number, 1), running) for number in range(100)]
        assert [future.result(SAFETY) for future in futures] == list(range(1, 101))


def test_run_coroutine_threadsafe_raises_the_exception(loop: asyncio.AbstractEventLoop) -> None:
    async def fails() -> None:
        raise LookupError("in the other thread")

    with Outside(loop) as running, pytest.raises(LookupError, match="in the other thread"):
        asyncio.run_coroutine_threadsafe(fails(), running).result(SAFETY)


def test_run_coroutine_threadsafe_can_be_cancelled(loop: asyncio.AbstractEventLoop) -> None:
    entered, left = threading.Event(), threading.Event()

    async def waits() -> None:
        entered.set()
        try:
            await asyncio.sleep(3600)
        finally:
            left.set()

    with Outside(loop) as running:
        future = asyncio.run_coroutine_threadsafe(waits(), running)
        assert entered.wait(SAFETY)
        assert future.cancel()
        assert left.wait(SAFETY)
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(SAFETY)


def test_the_wrong_loop_of_the_thread(loop: asyncio.AbstractEventLoop) -> None:
    """Each thread has its own running loop."""
    seen: list[object] = []

    def elsewhere() -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            seen.append(str(error))

    loop.call_soon(in_thread, elsewhere)
    run_once(loop)
    assert seen == ["no running event loop"]
