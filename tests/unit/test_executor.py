"""run_in_executor and the default executor."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from .support import SAFETY, run

SHUT_DOWN = "^Executor shutdown has been called$"


def test_the_result_comes_back(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        assert await loop.run_in_executor(None, max, 3, 7, 5) == 7
        assert await loop.run_in_executor(None, str.upper, "text") == "TEXT"

    run(loop, main())


def test_the_exception_comes_back(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError, match="zero"):
            await loop.run_in_executor(None, lambda: 1 / 0)

    run(loop, main())


def test_it_is_another_thread(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        thread = await loop.run_in_executor(None, threading.current_thread)
        assert thread is not threading.current_thread()
        assert thread.name.startswith("asyncio_")

    run(loop, main())


def test_it_returns_a_future_of_the_loop(loop: asyncio.AbstractEventLoop) -> None:
    future = loop.run_in_executor(None, int)
    assert isinstance(future, asyncio.Future)
    assert future.get_loop() is loop
    assert loop.run_until_complete(future) == 0


def test_many_at_once(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        results = await asyncio.gather(
            *(loop.run_in_executor(None, int, str(number)) for number in range(500))
        )
        assert results == list(range(500))

    run(loop, main())


def test_a_given_executor(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="given") as pool:
            thread = await loop.run_in_executor(pool, threading.current_thread)
        assert thread.name.startswith("given")

    run(loop, main())


class OwnThreads(Executor):
    """An executor of the user's: a thread for each call."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        thread = threading.Thread(target=lambda: future.set_result(function(*args, **kwargs)))
        thread.start()
        thread.join()
        return future


def test_any_executor_will_do(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        assert await loop.run_in_executor(OwnThreads(), max, 1, 2) == 2

    run(loop, main())


def test_an_executor_that_refuses(loop: asyncio.AbstractEventLoop) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        loop.run_in_executor(pool, int)


def test_to_thread_copies_the_context(loop: asyncio.AbstractEventLoop) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def main() -> None:
        variable.set("seen")
        assert await asyncio.to_thread(variable.get) == "seen"

    run(loop, main())


def test_cancelling_the_future_leaves_the_loop_usable(loop: asyncio.AbstractEventLoop) -> None:
    release = threading.Event()

    async def main() -> None:
        future = loop.run_in_executor(None, release.wait)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        release.set()
        assert await loop.run_in_executor(None, int) == 0

    run(loop, main())


def test_set_default_executor(loop: asyncio.AbstractEventLoop) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        loop.set_default_executor(pool)
        thread = loop.run_until_complete(loop.run_in_executor(None, threading.current_thread))
    assert thread.name.startswith("mine")


@pytest.mark.parametrize("wrong", [None, 5, OwnThreads()])
def test_set_default_executor_takes_thread_pools_alone(loop: Any, wrong: object) -> None:
    with pytest.raises(TypeError, match="^executor must be ThreadPoolExecutor instance$"):
        loop.set_default_executor(wrong)


def test_debug_mode_checks_the_function(loop: Any) -> None:
    async def coroutine_function() -> None: ...

    loop.set_debug(True)
    with pytest.raises(TypeError, match=r"^coroutines cannot be used with run_in_executor\(\)$"):
        loop.run_in_executor(None, coroutine_function)
    with pytest.raises(TypeError, match=r"^a callable object was expected by run_in_executor\(\), got 5$"):
        loop.run_in_executor(None, 5)


def test_shutdown_waits_for_the_threads(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    release = threading.Event()

    def work() -> None:
        release.wait()
        log.append("worked")

    async def main() -> None:
        future = loop.run_in_executor(None, work)
        loop.call_later(0.001, release.set)
        await loop.shutdown_default_executor()
        log.append("shut down")
        await future

    run(loop, main())
    assert log == ["worked", "shut down"]


def test_shutdown_refuses_further_calls(loop: asyncio.AbstractEventLoop) -> None:
    run(loop, loop.shutdown_default_executor())
    with pytest.raises(RuntimeError, match=SHUT_DOWN):
        loop.run_in_executor(None, int)
    with ThreadPoolExecutor(1) as pool:
        assert loop.run_until_complete(loop.run_in_executor(pool, int)) == 0
    run(loop, loop.shutdown_default_executor())


@pytest.mark.skipif(
    sys.version_info < (3, 13), reason="the timeout came with Python 3.12, and worked later still"
)
def test_shutdown_gives_up_after_its_timeout(loop: Any) -> None:
    release = threading.Event()

    async def main() -> None:
        future = loop.run_in_executor(None, release.wait)
        try:
            with pytest.warns(
                RuntimeWarning, match=r"did not finishing joining its threads within 0\.01 seconds"
            ):
                await loop.shutdown_default_executor(0.01)
        finally:
            release.set()  # or the interpreter waits for the thread at its end
        await future

    run(loop, main())


def test_close_does_not_wait_for_the_threads(loop: asyncio.AbstractEventLoop) -> None:
    release, done = threading.Event(), threading.Event()

    def work() -> None:
        release.wait()
        done.set()

    try:
        loop.run_in_executor(None, work).cancel()
        loop.close()
        assert not done.is_set()
    finally:
        release.set()  # or the interpreter waits for the thread at its end
    assert done.wait(SAFETY)
