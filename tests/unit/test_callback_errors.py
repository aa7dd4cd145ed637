"""A callback that raises: asyncio's own context for the exception handler, and the exceptions that leave
the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable
from typing import Any

import pytest

from .support import ARGUMENTS_ARE_SHOWN, Caught, run_once

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("NAME", default="unset")


def fails(*_args: object) -> None:
    raise ValueError("from the callback")


SCHEDULE: dict[str, Callable[..., asyncio.Handle]] = {
    "call_soon": lambda loop, *args: loop.call_soon(*args),
    "call_soon_threadsafe": lambda loop, *args: loop.call_soon_threadsafe(*args),
    "call_later": lambda loop, *args: loop.call_later(0, *args),
    "call_at": lambda loop, *args: loop.call_at(0, *args),
}


@pytest.mark.normal_mode
@pytest.mark.parametrize("method", SCHEDULE)
def test_the_context_of_a_failed_callback(
    loop: asyncio.AbstractEventLoop, caught: Caught, method: str
) -> None:
    handle = SCHEDULE[method](loop, fails, 1)
    run_once(loop)
    context = caught.take()
    assert set(context) == {"message", "exception", "handle"}
    arguments = "1" if ARGUMENTS_ARE_SHOWN else ""
    line = fails.__code__.co_firstlineno
    assert context["message"] == f"Exception in callback fails({arguments}) at {__file__}:{line}"
    assert isinstance(context["exception"], ValueError)
    assert str(context["exception"]) == "from the callback"
    assert context["exception"].__traceback__ is not None
    assert context["handle"] is handle


def test_debug_mode_adds_the_source_traceback(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    loop.set_debug(True)
    loop.call_soon(fails, 1)
    run_once(loop)
    context = caught.take()
    assert set(context) == {"message", "exception", "handle", "source_traceback"}
    assert context["message"].startswith("Exception in callback fails(1) at ")
    assert context["source_traceback"][-1].filename == __file__


def test_the_traceback_starts_in_the_callback(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    loop.call_soon(fails)
    run_once(loop)
    traceback = caught.take()["exception"].__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    assert traceback.tb_frame.f_code is fails.__code__


def test_the_others_run_on(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    log: list[int] = []
    loop.call_soon(log.append, 1)
    loop.call_soon(fails)
    loop.call_soon(log.append, 2)
    loop.call_soon(fails)
    loop.call_soon(log.append, 3)
    run_once(loop)
    assert log == [1, 2, 3]
    assert len(caught) == 2
    caught.clear()


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="from 3.12 on the handler runs in the handle's context"
)
def test_the_handler_runs_in_the_callbacks_context(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    loop.set_exception_handler(lambda _loop, _context: log.append(NAME.get()))
    context = contextvars.copy_context()
    context.run(NAME.set, "callback's")
    loop.call_soon(fails, context=context)
    run_once(loop)
    assert log == ["callback's"]


class OddError(BaseException):
    """Neither an Exception nor one of the two that leave the loop."""


@pytest.mark.parametrize("error", [OddError("odd"), GeneratorExit(), asyncio.CancelledError()])
def test_other_base_exceptions_go_to_the_handler(
    loop: asyncio.AbstractEventLoop, caught: Caught, error: BaseException
) -> None:
    def callback() -> None:
        raise error

    loop.call_soon(callback)
    run_once(loop)
    assert caught.take()["exception"] is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("method", SCHEDULE)
def test_these_leave_the_loop(
    loop: asyncio.AbstractEventLoop, kind: type[BaseException], method: str
) -> None:
    error = kind("out")

    def callback() -> None:
        raise error

    log: list[str] = []
    SCHEDULE[method](loop, callback)
    with pytest.raises(kind) as raised:
        loop.run_forever()
    assert raised.value is error
    assert not loop.is_running()
    loop.call_soon(log.append, "still works")
    run_once(loop)
    assert log == ["still works"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_was_behind_runs_in_the_next_run(
    loop: asyncio.AbstractEventLoop, kind: type[BaseException]
) -> None:
    log: list[int] = []

    def callback() -> None:
        raise kind

    loop.call_soon(log.append, 1)
    loop.call_soon(callback)
    loop.call_soon(log.append, 2)
    loop.call_soon(log.append, 3)
    with pytest.raises(kind):
        loop.run_forever()
    assert log == [1]
    run_once(loop)
    assert log == [1, 2, 3]


def test_a_failed_run_until_complete_leaves_the_rest(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []

    async def main() -> None:
        loop.call_soon(log.append, "behind")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    run_once(loop)
    run_once(loop)
    assert log == ["behind"]


def test_an_error_with_a_message_that_fails_itself(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    def callback() -> None:
        raise Hostile

    loop.call_soon(callback)
    run_once(loop)
    assert isinstance(caught.take()["exception"], Hostile)


def test_a_handler_that_fails_is_reported_by_the_default_one(
    loop: asyncio.AbstractEventLoop, caught: Caught
) -> None:
    def handler(_loop: object, _context: object) -> None:
        raise RuntimeError("the handler failed")

    log: list[str] = []
    loop.set_exception_handler(handler)
    loop.call_soon(fails)
    loop.call_soon(log.append, "goes on")
    run_once(loop)
    context = caught.take()
    assert context["message"].startswith("Unhandled error in exception handler\ncontext: {")
    assert str(context["exception"]) == "the handler failed"
    assert log == ["goes on"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_handler_may_leave_the_loop(loop: asyncio.AbstractEventLoop, kind: type[BaseException]) -> None:
    def handler(_loop: object, _context: object) -> None:
        raise kind

    loop.set_exception_handler(handler)
    loop.call_soon(fails)
    with pytest.raises(kind):
        run_once(loop)
    assert not loop.is_running()
    run_once(loop)


def test_a_handler_may_stop_the_loop(loop: Any, caught: Caught) -> None:
    def handler(running: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        caught.append(context)
        running.stop()

    loop.set_exception_handler(handler)
    loop.call_soon(fails)
    loop.run_forever()
    assert str(caught.take()["exception"]) == "from the callback"
