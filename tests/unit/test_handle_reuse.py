"""Handles are used again when they are dead. Nothing of that may show: not in what they are, not to the
collector, and not in a chain of any length.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from .support import SAFETY, Caught, run, run_once

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


NAME: contextvars.ContextVar[str] = contextvars.ContextVar("NAME", default="unset")


class Owner:
    """Keeps the handle of a call of its own: a cycle."""

    handle: Any = None

    def method(self, *_args: object) -> None: ...

    def note(self, log: list[object]) -> None:
        log.append(self.handle)


def test_a_handle_made_after_others_have_died_is_as_new(loop: Any) -> None:
    loop.set_debug(True)
    for handle in [loop.call_soon(print, 1, 2, 3) for _ in range(5)]:
        handle.cancel()
    loop.set_debug(False)
    run_once(loop)
    del handle
    handles = [loop.call_soon(len, (), context=contextvars.copy_context()) for _ in range(10)]
    for handle in handles:
        assert handle._callback is len
        assert handle._args == ((),)
        assert not handle.cancelled()
        assert handle._source_traceback is None
        assert repr(handle).startswith("<Handle len(")
    assert len(set(map(id, handles))) == 10
    run_once(loop)


def test_a_weak_reference_does_not_find_the_next_one(loop: asyncio.AbstractEventLoop) -> None:
    died: list[object] = []
    references = [weakref.ref(loop.call_soon(int), died.append) for _ in range(20)]
    run_once(loop)
    others = [loop.call_soon(int) for _ in range(20)]
    assert [reference() for reference in references] == [None] * 20
    assert died == references
    del others
    run_once(loop)


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_cycle_through_a_handle_is_collected(loop: Any, method: str, inside: bool) -> None:
    """Also one that was scheduled while the loop ran, when the collector does not see handles that are
    ready."""

    def schedule() -> weakref.ref[Owner]:
        owner = Owner()
        arguments = (0, owner.method) if method == "call_later" else (owner.method,)
        owner.handle = getattr(loop, method)(*arguments, owner)
        return weakref.ref(owner)

    references = []
    if inside:
        loop.call_soon(lambda: references.append(schedule()))
        run_once(loop)
    else:
        references.append(schedule())
    gc.collect()
    assert references[0]() is not None  # still to be called
    run(loop, asyncio.sleep(0.001))
    run_once(loop)
    gc.collect()
    assert references[0]() is None


def test_a_cycle_through_a_handle_that_was_cancelled_before_its_turn(loop: asyncio.AbstractEventLoop) -> None:
    owner = Owner()
    reference = weakref.ref(owner)

    def schedule(owner: Owner) -> None:
        context = contextvars.copy_context()
        variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")
        context.run(variable.set, owner)
        owner.handle = loop.call_soon(owner.method, context=context)
        owner.handle.cancel()

    loop.call_soon(schedule, owner)
    del owner
    run_once(loop)
    run_once(loop)
    gc.collect()
    assert reference() is None


def abandon(loop: asyncio.AbstractEventLoop, interrupted: bool) -> weakref.ref[Owner]:
    """Leaves a run while something is ready, with a cycle through a handle of it and the loop."""
    owner = Owner()

    def schedule() -> None:
        owner.handle = loop.call_soon(owner.method, loop)
        loop.call_soon(owner.method, loop)
        if interrupted:
            raise KeyboardInterrupt
        loop.stop()

    loop.call_soon(schedule)
    with contextlib.suppress(KeyboardInterrupt):
        loop.run_forever()
    return weakref.ref(owner)


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_abandoned_loop_is_collected_with_what_was_ready(
    loop_factory: LoopFactory, interrupted: bool
) -> None:
    loop = loop_factory()
    references = weakref.ref(loop), abandon(loop, interrupted)
    assert None not in [reference() for reference in references]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del loop
        gc.collect()
        gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_a_handle_found_by_a_weak_reference_in_its_own_call(loop: asyncio.AbstractEventLoop) -> None:
    """Nobody has it when it is called, and somebody afterwards."""
    owner = Owner()

    def keep(reference: list[weakref.ref[asyncio.Handle]], owner: Owner) -> None:
        owner.handle = reference[0]()

    def schedule(owner: Owner) -> None:
        reference: list[weakref.ref[asyncio.Handle]] = []
        reference.append(weakref.ref(loop.call_soon(keep, reference, owner)))

    loop.call_soon(schedule, owner)
    run_once(loop)
    run_once(loop)
    assert isinstance(owner.handle, asyncio.Handle)
    watched = weakref.ref(owner)
    del owner
    gc.collect()
    assert watched() is None


def test_handles_seen_by_the_collector_are_whole(loop: Any) -> None:
    def look() -> None:
        for thing in gc.get_objects():
            if type(thing) in kinds:
                assert isinstance(thing._loop, asyncio.AbstractEventLoop)
                assert thing._loop is not loop or callable(thing._callback)

    kinds = {type(loop.call_soon(int)), type(loop.call_later(0, int))}
    for _ in range(10):
        loop.call_soon(int)
        loop.call_later(0, int)
    run(loop, asyncio.sleep(0.001))
    look()
    waiting = [loop.call_soon(int), loop.call_later(60, int)]
    look()
    for handle in waiting:
        handle.cancel()
    run_once(loop)


@pytest.mark.normal_mode  # too many for a traceback each
@pytest.mark.parametrize("timers", [False, True])
def test_a_long_chain_of_handles(loop: asyncio.AbstractEventLoop, timers: bool) -> None:
    """Each has the last reference to the one before; they die all at once, and the stack holds."""

    def nothing(_handle: object) -> None: ...

    handle: Any = None
    for _ in range(100_000):
        handle = loop.call_later(0, nothing, handle) if timers else loop.call_soon(nothing, handle)
    first = weakref.ref(handle._args[0])
    run(loop, asyncio.sleep(0.001))
    assert first() is not None
    del handle
    assert first() is None


def test_a_chain_that_dies_while_another_thread_lets_go_of_a_handle(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The other one is in the middle of that for as long as a `__del__` takes."""
    inside, leave = threading.Event(), threading.Event()

    class Slow:
        def __del__(self) -> None:
            inside.set()
            leave.wait(SAFETY)

    def nothing(_argument: object) -> None: ...

    handles: list[Any] = [loop.call_soon(nothing, Slow())]
    handle: Any = loop.call_soon(nothing, Owner())
    first = weakref.ref(handle._args[0])
    for _ in range(200):
        handle = loop.call_soon(nothing, handle)
    run_once(loop)
    thread = threading.Thread(target=handles.clear)
    thread.start()
    try:
        assert inside.wait(SAFETY)
        del handle
        assert first() is None
    finally:
        leave.set()
        thread.join()


@pytest.mark.normal_mode
def test_more_than_are_kept(loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(2):
        log: list[int] = []
        for number in range(40_000):
            loop.call_soon(log.append, number)
        run_once(loop)
        assert log == list(range(40_000))


def test_a_callback_that_cancels_its_own_handle_keeps_its_arguments(loop: asyncio.AbstractEventLoop) -> None:
    class Token:
        alive = True

        def __del__(self) -> None:
            Token.alive = False

    seen: list[object] = []
    handles: list[Any] = []

    class Callback:
        def __call__(self, token: Token, *_rest: object) -> None:
            handles[0].cancel()
            seen.append((Token.alive, handles[0]._callback, handles[0]._args, token.alive))

    for rest in ((), (1, 2, 3, 4)):
        Token.alive = True
        handles[:] = [loop.call_soon(Callback(), Token(), *rest)]
        run_once(loop)
        assert seen.pop() == (True, None, None, True)
        assert not Token.alive


def test_a_built_in_that_cancels_its_own_handle(loop: Any) -> None:
    """A method of C takes its arguments as they lie, without references of its own."""
    log: list[object] = []

    class Key:
        def __eq__(self, other: object) -> bool:
            handles[0].cancel()
            gc.collect()
            return False

        def __hash__(self) -> int:
            return 1

    table = {Key(): 1}
    handles = [loop.call_soon(table.setdefault, Key(), log)]
    run_once(loop)
    assert handles[0].cancelled()
    assert len(table) == 2


def test_a_handle_that_is_run_by_its_own_callback(loop: Any, caught: Caught) -> None:
    handles: list[Any] = []
    log: list[str] = []

    def again() -> None:
        log.append("called")
        handles[0]._run()

    handles.append(loop.call_soon(again))
    run_once(loop)
    assert log == ["called"]
    assert "cannot enter context" in str(caught.take()["exception"])
    assert handles[0]._callback is again
    handles[0].cancel()
    assert handles[0]._callback is None


def test_arguments_that_schedule_when_they_die(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []

    class Last:
        def __init__(self, left: int) -> None:
            self.left = left

        def __del__(self) -> None:
            log.append(self.left)
            if self.left:
                loop.call_soon(nothing, Last(self.left - 1))
                loop.call_later(60, nothing, self.left).cancel()

    def nothing(_last: object) -> None: ...

    loop.call_soon(nothing, Last(100))
    for _ in range(110):
        run_once(loop)
    assert log == list(range(100, -1, -1))


@pytest.mark.parametrize("with_variable", [False, True])
def test_the_context_of_a_call_from_a_thread(loop: Any, with_variable: bool) -> None:
    """A copy of the thread's, also where that has no variables and nobody has looked at it."""
    seen: list[object] = []

    def callback(number: int) -> None:
        seen.append(NAME.get())
        NAME.set(f"set by {number}")

    def schedule() -> None:
        if with_variable:
            NAME.set("the thread's")
        for number in range(3):
            handles.append(loop.call_soon_threadsafe(callback, number))
        contexts.append(handles[0]._context)
        NAME.set("set later")

    handles: list[Any] = []
    contexts: list[contextvars.Context] = []
    thread = threading.Thread(target=schedule)
    thread.start()
    thread.join()
    run_once(loop)
    assert seen == ["the thread's" if with_variable else "unset"] * 3
    contexts.append(handles[1]._context)
    for number, handle in enumerate(handles):
        assert handle._context[NAME] == f"set by {number}"
    assert contexts == [handles[0]._context, handles[1]._context]
    assert contexts[0] is handles[0]._context
    assert contexts[0] is not contexts[1]


@pytest.mark.normal_mode
def test_threads_that_schedule_and_cancel(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    rounds = 3000

    def flood(number: int) -> None:
        for index in range(rounds):
            handle = loop.call_soon_threadsafe(log.append, number)
            if index % 3 == 0:
                handle.cancel()
                handle.cancelled()
        loop.call_soon_threadsafe(ended.append, number)

    ended: list[int] = []
    threads = [threading.Thread(target=flood, args=(number,)) for number in range(4)]

    async def main() -> None:
        for thread in threads:
            thread.start()
        while len(ended) < len(threads):
            await asyncio.sleep(0)

    run(loop, main())
    for thread in threads:
        thread.join()
    for number in range(len(threads)):
        # A call that was about to be cancelled may have been made before.
        assert rounds * 2 // 3 <= log.count(number) <= rounds
