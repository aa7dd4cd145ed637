"""Handle and TimerHandle: what call_soon, call_later and call_at return, as asyncio documents it and as
programs peek at it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import weakref
from typing import Any

import pytest

from .support import ARGUMENTS_ARE_SHOWN, Caught, run_once


def callback(*_args: object) -> None:
    """A callback with a name for the repr."""


def test_is_an_asyncio_handle(loop: asyncio.AbstractEventLoop) -> None:
    soon, later, at = loop.call_soon(callback), loop.call_later(1, callback), loop.call_at(1, callback)
    assert isinstance(soon, asyncio.Handle)
    assert not isinstance(soon, asyncio.TimerHandle)
    assert isinstance(loop.call_soon_threadsafe(callback), asyncio.Handle)
    for timer in (later, at):
        assert isinstance(timer, asyncio.TimerHandle)
        assert isinstance(timer, asyncio.Handle)


def test_cancel_before_the_run(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    handle = loop.call_soon(log.append, 1)
    assert handle.cancelled() is False
    assert handle.cancel() is None  # type: ignore[func-returns-value]
    assert handle.cancelled() is True
    run_once(loop)
    assert log == []


def test_cancel_from_an_earlier_callback_of_the_iteration(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    handles: list[asyncio.Handle] = []
    loop.call_soon(lambda: handles[0].cancel())
    handles.append(loop.call_soon(log.append, "cancelled"))
    loop.call_soon(log.append, "kept")
    run_once(loop)
    assert log == ["kept"]


def test_cancel_during_its_own_run(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    handles: list[asyncio.Handle] = []

    def own() -> None:
        handles[0].cancel()
        log.append("ran on")

    handles.append(loop.call_soon(own))
    run_once(loop)
    assert log == ["ran on"]
    assert handles[0].cancelled()


def test_cancel_during_its_own_run_then_raise(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    handles: list[asyncio.Handle] = []

    def own() -> None:
        handles[0].cancel()
        raise ValueError("after cancel")

    handles.append(loop.call_soon(own))
    run_once(loop)
    context = caught.take()
    assert str(context["exception"]) == "after cancel"
    assert context["handle"] is handles[0]


def test_cancel_after_the_run(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    handle = loop.call_soon(log.append, 1)
    run_once(loop)
    assert not handle.cancelled()
    handle.cancel()
    assert handle.cancelled()
    assert log == [1]


def test_cancel_twice(loop: asyncio.AbstractEventLoop) -> None:
    handles: list[asyncio.Handle] = [loop.call_soon(callback), loop.call_later(5, callback)]
    for handle in handles:
        handle.cancel()
        handle.cancel()
        assert handle.cancelled()
    run_once(loop)


def test_cancel_lets_go_of_callback_and_arguments(loop: asyncio.AbstractEventLoop) -> None:
    class Token:
        def method(self, _other: object) -> None: ...

    token, argument = Token(), Token()
    watched = weakref.ref(token), weakref.ref(argument)
    handles = [loop.call_soon(token.method, argument), loop.call_later(60, token.method, argument)]
    del token, argument
    assert None not in [reference() for reference in watched]
    for handle in handles:
        handle.cancel()
    assert [reference() for reference in watched] == [None, None]


@pytest.mark.normal_mode
def test_private_fields(loop: Any) -> None:
    for handle in (loop.call_soon(callback, 1, "two"), loop.call_later(5, callback, 1, "two")):
        assert handle._callback is callback
        assert handle._args == (1, "two")
        assert handle._cancelled is False
        assert handle._loop is loop
        assert handle._source_traceback is None
        handle.cancel()
        assert handle._callback is None
        assert handle._args is None
        assert handle._cancelled is True


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Handle.get_context came with Python 3.12")
def test_get_context(loop: Any) -> None:
    context = contextvars.copy_context()
    assert loop.call_soon(callback, context=context).get_context() is context
    assert loop.call_later(5, callback, context=context).get_context() is context
    assert loop.call_at(5, callback, context=context).get_context() is context
    assert isinstance(loop.call_soon(callback).get_context(), contextvars.Context)


def test_run_calls_the_callback_in_its_context(loop: Any) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    context = contextvars.copy_context()
    handle = loop.call_soon(variable.set, 7, context=context)
    assert handle._run() is None
    assert context[variable] == 7
    assert variable.get(None) is None
    handle.cancel()


def test_run_hands_exceptions_to_the_handler(loop: Any, caught: Caught) -> None:
    def fails() -> None:
        raise ValueError("by hand")

    handle = loop.call_soon(fails)
    handle._run()
    context = caught.take()
    assert str(context["exception"]) == "by hand"
    assert context["handle"] is handle
    handle.cancel()


def test_can_be_referenced_weakly(loop: asyncio.AbstractEventLoop) -> None:
    handle, timer = loop.call_soon(callback), loop.call_later(0, callback)
    watched = weakref.ref(handle), weakref.ref(timer)
    assert watched[0]() is handle
    assert watched[1]() is timer
    del handle, timer
    run_once(loop)
    run_once(loop)
    assert [reference() for reference in watched] == [None, None]


def test_handles_are_equal_only_to_themselves(loop: asyncio.AbstractEventLoop) -> None:
    one, other = loop.call_soon(callback), loop.call_soon(callback)
    assert one == one
    assert one != other
    assert len({one, other, one}) == 2


@pytest.mark.normal_mode
def test_repr(loop: asyncio.AbstractEventLoop) -> None:
    handle = loop.call_soon(callback, 1, "two")
    source = f"{__file__}:{callback.__code__.co_firstlineno}"
    arguments = "1, 'two'" if ARGUMENTS_ARE_SHOWN else ""
    assert repr(handle) == f"<Handle callback({arguments}) at {source}>"


def test_repr_of_a_partial(loop: asyncio.AbstractEventLoop) -> None:
    text = repr(loop.call_soon(functools.partial(callback, 1), 2))
    assert text.startswith("<Handle callback(")
    assert f" at {__file__}:" in text


@pytest.mark.normal_mode
def test_repr_of_a_builtin_and_of_an_instance(loop: Any) -> None:
    class Instance:
        def __call__(self) -> None: ...

        def __repr__(self) -> str:
            return "the instance"

    assert repr(loop.call_soon(print)) in ("<Handle print()>", "<Handle <built-in function print>()>")
    text = repr(loop.call_soon(Instance()))
    assert text.startswith("<Handle ")
    assert text.endswith(">")


@pytest.mark.normal_mode
def test_repr_cancelled(loop: asyncio.AbstractEventLoop) -> None:
    handle = loop.call_soon(callback)
    handle.cancel()
    assert repr(handle) == "<Handle cancelled>"
    timer = loop.call_at(12.5, callback)
    timer.cancel()
    assert repr(timer) == "<TimerHandle cancelled when=12.5>"


@pytest.mark.normal_mode
def test_repr_of_a_timer(loop: asyncio.AbstractEventLoop) -> None:
    source = f"{__file__}:{callback.__code__.co_firstlineno}"
    assert repr(loop.call_at(12.5, callback)) == f"<TimerHandle when=12.5 callback() at {source}>"
    assert repr(loop.call_at(12, callback)).startswith("<TimerHandle when=12 callback()")


def test_repr_in_debug_mode_tells_where(loop: asyncio.AbstractEventLoop) -> None:
    loop.set_debug(True)
    line = sys._getframe().f_lineno
    soon = loop.call_soon(callback, 1)
    later = loop.call_later(9, callback, 1)
    at = loop.call_at(9, callback, 1)
    threadsafe = loop.call_soon_threadsafe(callback, 1)
    source = f"{__file__}:{callback.__code__.co_firstlineno}"
    assert repr(soon) == f"<Handle callback(1) at {source} created at {__file__}:{line + 1}>"
    assert (
        repr(later)
        == f"<TimerHandle when={later.when()} callback(1) at {source} created at {__file__}:{line + 2}>"
    )
    assert repr(at) == f"<TimerHandle when=9 callback(1) at {source} created at {__file__}:{line + 3}>"
    assert repr(threadsafe).endswith(f"callback(1) at {source} created at {__file__}:{line + 4}>")


def test_repr_in_debug_mode_survives_cancel(loop: asyncio.AbstractEventLoop) -> None:
    loop.set_debug(True)
    handle = loop.call_soon(callback, 1)
    handle.cancel()
    text = repr(handle)
    assert text.startswith("<Handle cancelled callback(1) at ")
    assert " created at " in text


def test_source_traceback_in_debug_mode(loop: Any) -> None:
    loop.set_debug(True)
    for handle in (loop.call_soon(callback), loop.call_later(5, callback), loop.call_at(5, callback)):
        last = handle._source_traceback[-1]
        assert last.filename == __file__
        assert last.name == "test_source_traceback_in_debug_mode"


@pytest.mark.parametrize("when", [0, 1.5, -3.0, 1e18, float("inf")])
def test_when_of_call_at(loop: asyncio.AbstractEventLoop, when: float) -> None:
    timer = loop.call_at(when, callback)
    assert timer.when() == when
    timer.cancel()
    assert timer.when() == when


def test_when_of_call_later(loop: asyncio.AbstractEventLoop) -> None:
    before = loop.time()
    timer = loop.call_later(100, callback)
    after = loop.time()
    assert before + 100 <= timer.when() <= after + 100


def test_timers_are_ordered_by_their_time(loop: Any) -> None:
    early, late = loop.call_at(1000, callback), loop.call_at(2000, callback)
    assert early < late
    assert early <= late
    assert late > early
    assert late >= early
    assert not early > late
    assert not early >= late
    assert not late < early
    assert not late <= early
    assert sorted([late, early]) == [early, late]


def test_timers_are_equal_by_what_they_do(loop: Any) -> None:
    one, same = loop.call_at(1000, callback, 1), loop.call_at(1000, callback, 1)
    assert one == same
    assert hash(one) == hash(same) == hash(1000)
    assert one <= same
    assert one >= same
    assert not one < same
    assert one != loop.call_at(1000, callback, 2)
    assert one != loop.call_at(1000, print, 1)
    assert one != loop.call_at(1001, callback, 1)
    same.cancel()
    assert one != same


def test_timers_do_not_compare_with_other_things(loop: Any) -> None:
    timer, handle = loop.call_at(1000, callback), loop.call_soon(callback)
    assert timer != handle
    assert timer != 1000
    for other in (handle, 1000, None):
        with pytest.raises(TypeError, match="not supported between instances of '.*TimerHandle' and"):
            timer < other  # noqa: B015
        with pytest.raises(TypeError, match="not supported between instances of '.*TimerHandle' and"):
            timer >= other  # noqa: B015


def test_a_timer_that_ran_is_not_cancelled(loop: asyncio.AbstractEventLoop) -> None:
    timer = loop.call_later(0, loop.stop)
    loop.run_forever()
    assert not timer.cancelled()
    timer.cancel()
    assert timer.cancelled()
