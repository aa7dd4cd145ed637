"""Running, stopping and closing a loop: who may call what when, and the exact errors."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .support import Caught, run, run_once

CLOSED = "^Event loop is closed$"
RUNNING = "^This event loop is already running$"
OTHER_RUNNING = "^Cannot run the event loop while another loop is running$"


asyncio_forgets = pytest.mark.mioloop_only(
    (3, 13) <= sys.version_info < (3, 13, 3),
    reason="asyncio of these versions takes its loop for stopped after it refused a second run_forever",
)


async def answer(value: object = 42) -> object:
    return value


@pytest.mark.normal_mode
def test_a_fresh_loop(loop: asyncio.AbstractEventLoop) -> None:
    assert not loop.is_running()
    assert not loop.is_closed()
    assert loop.get_debug() is False
    assert isinstance(loop, asyncio.AbstractEventLoop)
    assert isinstance(loop, asyncio.BaseEventLoop)


def test_is_running(loop: asyncio.AbstractEventLoop) -> None:
    log: list[object] = []
    loop.call_soon(lambda: log.append(loop.is_running()))
    loop.call_soon(lambda: log.append(asyncio.get_running_loop()))
    run_once(loop)
    assert log == [True, loop]
    assert not loop.is_running()
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


@pytest.mark.normal_mode
def test_repr_tells_the_state(loop: asyncio.AbstractEventLoop) -> None:
    name = type(loop).__name__
    assert repr(loop) == f"<{name} running=False closed=False debug=False>"
    loop.close()
    assert "closed=True" in repr(loop)


def test_can_be_referenced_weakly_and_dies_closed(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    loop = loop_factory()
    watched = weakref.ref(loop)
    assert watched() is loop
    loop.close()
    del loop
    gc.collect()
    assert watched() is None


def test_takes_attributes_and_subclasses(loop: Any) -> None:
    loop.something = "of the program's own"
    assert loop.something == "of the program's own"


# stop


def test_stop_before_the_run_runs_what_is_ready_once(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []

    def first() -> None:
        log.append(1)
        loop.call_soon(log.append, 2)

    loop.call_soon(first)
    loop.stop()
    loop.run_forever()
    assert log == [1]
    loop.stop()
    loop.run_forever()
    assert log == [1, 2]


def test_stop_before_the_run_polls_once(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    left, right = socket.socketpair()
    with left, right:
        right.send(b"x")
        loop.add_reader(left, log.append, "readable")
        loop.stop()
        loop.run_forever()
        assert log == ["readable"]
        loop.remove_reader(left)


def test_stop_before_the_run_fires_due_timers(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    loop.call_at(0, log.append, "timer")
    loop.stop()
    loop.run_forever()
    assert log == ["timer"]


def test_stop_is_forgotten_after_the_run(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    loop.stop()
    loop.stop()
    loop.run_forever()
    loop.call_later(0.001, log.append, 1)
    loop.call_later(0.002, loop.stop)
    loop.run_forever()
    assert log == [1]


def test_stop_in_a_callback_finishes_the_iteration(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    loop.call_soon(log.append, 1)
    loop.call_soon(loop.stop)
    loop.call_soon(log.append, 2)
    loop.call_soon(lambda: loop.call_soon(log.append, 3))
    loop.run_forever()
    assert log == [1, 2]
    run_once(loop)
    assert log == [1, 2, 3]


def test_stop_by_a_timer(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    loop.call_at(1, loop.stop)
    loop.call_at(2, log.append, 1)
    loop.run_forever()
    assert log == [1]


# run_until_complete


def test_run_until_complete_returns_the_result(loop: asyncio.AbstractEventLoop) -> None:
    assert loop.run_until_complete(answer()) == 42
    future: asyncio.Future[str] = loop.create_future()
    loop.call_soon(future.set_result, "future")
    assert loop.run_until_complete(future) == "future"
    assert loop.run_until_complete(future) == "future"


def test_run_until_complete_takes_any_awaitable(loop: asyncio.AbstractEventLoop) -> None:
    class Awaitable:
        def __await__(self) -> Any:
            return (yield from answer("awaited").__await__())

    assert loop.run_until_complete(Awaitable()) == "awaited"


def test_run_until_complete_raises_the_exception(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        loop.run_until_complete(main())


def test_run_until_complete_of_a_cancelled_task(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("stop it")
        await asyncio.sleep(3600)

    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(main())


def test_run_until_complete_stopped_too_early(loop: asyncio.AbstractEventLoop) -> None:
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match=r"^Event loop stopped before Future completed\.$"):
        loop.run_until_complete(future)
    loop.call_later(0.001, future.set_result, None)
    loop.run_until_complete(future)  # the done callback of the first call is gone: it would stop the next run


@pytest.mark.parametrize("wrong", [None, 5, "text", print])
def test_run_until_complete_of_no_awaitable(loop: Any, wrong: object) -> None:
    with pytest.raises(TypeError, match="An asyncio.Future, a coroutine or an awaitable is required"):
        loop.run_until_complete(wrong)


def test_run_until_complete_of_another_loops_future(
    loop: asyncio.AbstractEventLoop, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    other = loop_factory()
    try:
        message = "The future belongs to a different loop than the one specified as the loop argument"
        with pytest.raises(ValueError, match=message):
            loop.run_until_complete(other.create_future())
    finally:
        other.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_run_until_complete_lets_these_out(
    loop: asyncio.AbstractEventLoop, kind: type[BaseException]
) -> None:
    async def main() -> None:
        raise kind("out of the task")

    with pytest.raises(kind, match="out of the task"):
        loop.run_until_complete(main())
    assert loop.run_until_complete(answer()) == 42


# nested runs


def test_a_nested_run_until_complete(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=RUNNING):
            loop.run_until_complete(loop.create_future())
        assert asyncio.get_running_loop() is loop

    run(loop, main())


@asyncio_forgets
def test_a_nested_run_of_the_same_loop(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=RUNNING):
            loop.run_forever()
        assert loop.is_running()
        coroutine = answer()
        with pytest.raises(RuntimeError, match=RUNNING):
            loop.run_until_complete(coroutine)
        coroutine.close()
        assert asyncio.get_running_loop() is loop
        assert await answer() == 42

    run(loop, main())


@asyncio_forgets
def test_a_run_inside_another_loops_run(
    loop: asyncio.AbstractEventLoop, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    other = loop_factory()

    async def main() -> None:
        with pytest.raises(RuntimeError, match=OTHER_RUNNING):
            other.run_forever()
        coroutine = answer()
        with pytest.raises(RuntimeError, match=OTHER_RUNNING):
            other.run_until_complete(coroutine)
        coroutine.close()
        assert not other.is_running()

    run(loop, main())
    assert other.run_until_complete(answer()) == 42
    other.close()


@asyncio_forgets
def test_inside_asyncio_itself(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=OTHER_RUNNING):
            loop.run_forever()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
    assert loop.run_until_complete(answer()) == 42


@asyncio_forgets
def test_runs_in_two_threads_at_once(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with ThreadPoolExecutor() as pool:
            with pytest.raises(RuntimeError, match=RUNNING):
                pool.submit(loop.run_forever).result()
            with pytest.raises(RuntimeError, match="^Cannot close a running event loop$"):
                pool.submit(loop.close).result()

    run(loop, main())


def test_runs_in_one_thread_after_another(loop: asyncio.AbstractEventLoop) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(loop.run_until_complete, answer(1)).result() == 1
    assert loop.run_until_complete(answer(2)) == 2


def endless(loop: asyncio.AbstractEventLoop) -> list[int]:
    """The numbers of the iterations from now on, as they run."""
    log: list[int] = []

    def again() -> None:
        log.append(len(log))
        loop.call_soon(again)

    loop.call_soon(again)
    return log


def test_one_iteration_for_a_program_that_drives_the_loop(loop: Any) -> None:
    """`_run_once` is a private name, but input hooks of other loops call it."""
    log = endless(loop)
    for _ in range(3):
        loop._run_once()
    assert log == [0, 1, 2]
    assert not loop.is_running()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert log == [0, 1, 2, 3]


def test_iterations_within_a_callback(loop: Any) -> None:
    log: list[str] = []

    def outer() -> None:
        for number in range(3):
            loop.call_soon(log.append, f"inner {number}")
            loop._run_once()
        log.append("outer")

    loop.call_soon(outer)
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert log == ["inner 0", "inner 1", "inner 2", "outer"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="run_forever is in pieces from 3.13 on")
def test_a_program_that_is_its_own_run_forever(loop: Any) -> None:
    log = endless(loop)
    loop._run_forever_setup()
    try:
        for _ in range(3):
            loop._run_once()
    finally:
        loop._run_forever_cleanup()
    assert log == [0, 1, 2]


def test_two_loops_by_turns(
    loop: asyncio.AbstractEventLoop, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    other = loop_factory()
    for number in range(5):
        assert loop.run_until_complete(answer(number)) == number
        assert other.run_until_complete(answer(-number)) == -number
    other.close()


# close


def test_close_twice(loop: asyncio.AbstractEventLoop) -> None:
    loop.close()
    assert loop.is_closed()
    loop.close()
    assert loop.is_closed()
    assert not loop.is_running()


def test_close_while_running(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    loop.call_soon(loop.close)
    run_once(loop)
    error = caught.take()["exception"]
    assert isinstance(error, RuntimeError)
    assert str(error) == "Cannot close a running event loop"
    assert not loop.is_closed()


def test_close_drops_what_never_ran(loop: asyncio.AbstractEventLoop) -> None:
    class Token:
        pass

    tokens = [Token() for _ in range(4)]
    watched = [weakref.ref(token) for token in tokens]
    handles = [
        loop.call_soon(print, tokens.pop()),
        loop.call_soon_threadsafe(print, tokens.pop()),
        loop.call_later(60, print, tokens.pop()),
        loop.call_at(0, print, tokens.pop()),
    ]
    del handles
    loop.close()
    gc.collect()
    assert [reference() for reference in watched] == [None] * 4


def noop() -> None: ...


AFTER_CLOSE: dict[str, Callable[[Any], object]] = {
    "call_soon": lambda loop: loop.call_soon(noop),
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe(noop),
    "call_later": lambda loop: loop.call_later(1, noop),
    "call_at": lambda loop: loop.call_at(1, noop),
    "run_forever": lambda loop: loop.run_forever(),
    "run_until_complete": lambda loop: loop.run_until_complete(loop.create_future()),
    "run_in_executor": lambda loop: loop.run_in_executor(None, noop),
    "add_reader": lambda loop: loop.add_reader(0, noop),
    "add_writer": lambda loop: loop.add_writer(1, noop),
    "add_signal_handler": lambda loop: loop.add_signal_handler(10, noop),
}


@pytest.mark.parametrize("method", AFTER_CLOSE)
def test_use_after_close(loop: asyncio.AbstractEventLoop, method: str) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match=CLOSED):
        AFTER_CLOSE[method](loop)


def test_create_task_after_close(loop: asyncio.AbstractEventLoop) -> None:
    loop.close()
    coroutine = answer()
    with pytest.raises(RuntimeError, match=CLOSED):
        loop.create_task(coroutine)
    with pytest.raises(RuntimeError, match=CLOSED):
        loop.run_until_complete(coroutine)
    coroutine.close()


@pytest.mark.normal_mode
def test_what_still_works_after_close(loop: asyncio.AbstractEventLoop) -> None:
    handle, timer = loop.call_soon(noop), loop.call_later(60, noop)
    loop.close()
    handle.cancel()
    timer.cancel()
    assert loop.time() > 0
    assert loop.get_debug() is False
    assert loop.remove_reader(0) is False
    assert loop.remove_writer(1) is False
    loop.stop()
    loop.set_debug(True)
    repr(loop)
    repr(handle)


def test_a_done_future_calls_back_only_into_an_open_loop(loop: asyncio.AbstractEventLoop) -> None:
    future = loop.create_future()
    future.add_done_callback(lambda _future: None)
    loop.close()
    with pytest.raises(RuntimeError, match=CLOSED):
        future.set_result(None)


def test_the_async_generator_hooks_are_put_back(loop: asyncio.AbstractEventLoop) -> None:
    before = sys.get_asyncgen_hooks()
    during: list[object] = []
    loop.call_soon(lambda: during.append(sys.get_asyncgen_hooks()))
    run_once(loop)
    assert during != [before]
    assert sys.get_asyncgen_hooks() == before


def test_many_short_runs(loop: asyncio.AbstractEventLoop) -> None:
    for number in range(500):
        assert loop.run_until_complete(answer(number)) == number


@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
def test_an_unclosed_loop_warns(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    loop = loop_factory()
    text = repr(loop)
    with pytest.warns(ResourceWarning) as warned:
        del loop
        gc.collect()
    assert f"unclosed event loop {text}" in [str(warning.message) for warning in warned]


def test_a_closed_loop_goes_with_its_last_user(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    gc.disable()
    try:
        for used in (False, True):
            loop = loop_factory()
            if used:
                loop.run_until_complete(answer())
                loop.run_until_complete(loop.run_in_executor(None, int))
            loop.close()
            reference = weakref.ref(loop)
            del loop
            assert reference() is None
    finally:
        gc.enable()
