"""What a timer keeps alive, and for how long. While the loop runs, the collector does not see new timers, and
the loop names it none: nothing may come of that, least of all afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from .support import run, run_once, run_until

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
NAME: contextvars.ContextVar[object] = contextvars.ContextVar("NAME", default="unset")

# More than are noted one by one, whatever the queue has room for.
COUNTS = pytest.mark.parametrize("count", [1, 1000])


class Owner:
    """Keeps the handle of a call of its own: a cycle."""

    handle: Any = None

    def method(self, *_args: object) -> None: ...


def hold(loop: asyncio.AbstractEventLoop, delay: float = 3600) -> Owner:
    owner = Owner()
    owner.handle = loop.call_later(delay, owner.method, loop)
    return owner


def inside(loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> Any:
    """Calls the function in a callback."""
    results: list[Any] = []
    loop.call_soon(lambda: results.append(function()))
    run_once(loop)
    return results.pop()


def drop(loops: list[asyncio.AbstractEventLoop]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loops.clear()
        gc.collect()
        gc.collect()


@COUNTS
@pytest.mark.parametrize("way", ["before", "stopped", "interrupted", "later"])
def test_an_abandoned_loop_is_collected_with_its_timers(
    loop_factory: LoopFactory, way: str, count: int
) -> None:
    """Each of them has the loop, which has it."""

    def leave() -> None:
        hold_all()
        if way == "interrupted":
            raise KeyboardInterrupt
        loops[0].stop()

    def hold_all() -> None:
        references.extend(weakref.ref(hold(loops[0])) for _ in range(count))

    loops = [loop_factory()]
    references: list[Any] = [weakref.ref(loops[0])]
    if way == "before":
        hold_all()
    else:
        loops[0].call_soon(leave)
    with contextlib.suppress(KeyboardInterrupt):
        if way == "before":
            run_once(loops[0])
        else:
            loops[0].run_forever()
    if way == "later":
        run_once(loops[0])
        run(loops[0], asyncio.sleep(0.001))
    gc.collect()
    assert None not in [reference() for reference in references]
    drop(loops)
    assert {reference() for reference in references} == {None}


@COUNTS
@pytest.mark.mioloop_only(reason="asyncio keeps cancelled timers until their time has come")
@pytest.mark.parametrize("where", ["same run", "next run", "outside"])
@pytest.mark.parametrize("through", ["context", "loop", "time"])
def test_a_cancelled_timer_in_a_cycle(
    loop_factory: LoopFactory, where: str, through: str, count: int
) -> None:
    """It has let go of its callback, but not of its context, its loop, and the time that it was given."""

    class Time(int):
        owner: Owner

    def schedule() -> None:
        for _ in range(count):
            owner = Owner()
            when = Time(loops[0].time() + 3600)
            context = contextvars.copy_context()
            if through == "context":
                context.run(NAME.set, owner)
            if through == "time":
                when.owner = owner
            owner.handle = loops[0].call_at(when, int, context=context)
            owners.append(owner)
        if through == "loop":
            loops[0].owners = owners.copy()  # type: ignore[attr-defined]

    def cancel() -> None:
        for owner in owners:
            owner.handle.cancel()

    loops = [loop_factory()]
    owners: list[Owner] = []
    if where == "same run":
        inside(loops[0], lambda: [step() for step in (schedule, cancel)])
    else:
        inside(loops[0], schedule)
        if where == "next run":
            inside(loops[0], cancel)
        else:
            cancel()
    references = [weakref.ref(owner) for owner in owners]
    owners.clear()
    if through == "loop":
        references.append(weakref.ref(loops[0]))  # type: ignore[arg-type]
        drop(loops)
    else:
        gc.collect()
    assert {reference() for reference in references} == {None}
    for loop in loops:
        loop.close()


@COUNTS
def test_what_only_a_timer_has_is_there_when_it_fires(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """The collector runs in between, in the run that has made the timer and in another."""
    log: list[object] = []

    def schedule() -> None:
        for number in range(count):
            ring: list[object] = [number]
            ring.append(ring)
            loop.call_later(0.002, lambda ring: log.append(ring[0]), ring)
        gc.collect()

    def check() -> None:
        gc.collect()
        run_until(loop, lambda: len(log) >= count)
        assert log == list(range(count))
        log.clear()

    schedule()
    inside(loop, gc.collect)
    check()
    inside(loop, schedule)
    inside(loop, gc.collect)
    check()


@pytest.mark.parametrize("count", [1, 200])
def test_fired_timers_that_somebody_has(loop: asyncio.AbstractEventLoop, count: int) -> None:
    references: list[weakref.ref[Owner]] = []

    def schedule() -> None:
        references.extend(weakref.ref(hold(loop, 0.001)) for _ in range(count))

    done: list[int] = []
    inside(loop, schedule)
    loop.call_later(0.003, done.append, 1)
    run_until(loop, lambda: done)
    gc.collect()
    assert {reference() for reference in references} == {None}


def test_a_timer_found_by_a_weak_reference_in_its_own_call(loop: asyncio.AbstractEventLoop) -> None:
    """Nobody has it when it is called, and somebody afterwards."""
    owners = [Owner()]

    def keep(reference: list[weakref.ref[asyncio.TimerHandle]], owner: Owner) -> None:
        owner.handle = reference[0]()

    def schedule() -> None:
        reference: list[weakref.ref[asyncio.TimerHandle]] = []
        reference.append(weakref.ref(loop.call_later(0, keep, reference, owners[0])))

    inside(loop, schedule)
    run_until(loop, lambda: owners[0].handle)
    assert isinstance(owners[0].handle, asyncio.TimerHandle)
    watched = weakref.ref(owners.pop())
    gc.collect()
    assert watched() is None


def test_a_timeout_that_is_put_off(loop: asyncio.AbstractEventLoop) -> None:
    tasks: list[weakref.ref[asyncio.Task[Any]]] = []

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(weakref.ref(task))
        async with asyncio.timeout(1000) as timeout:
            for _ in range(200):
                timeout.reschedule(loop.time() + 1000)
            gc.collect()
            await asyncio.sleep(0.001)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000) as timeout:
                timeout.reschedule(loop.time() + 0.001)
                gc.collect()
                await asyncio.sleep(1000)

    run(loop, main())
    gc.collect()
    assert tasks[0]() is None


@pytest.mark.parametrize("with_variable", [False, True])
def test_the_context_of_a_timer(loop: Any, with_variable: bool) -> None:
    """A copy of the current one, also where that has no variables and nobody has looked at it."""
    seen: list[object] = []
    handles: list[Any] = []

    def fire(number: int) -> None:
        seen.append(NAME.get())
        NAME.set(number)

    def schedule() -> None:
        if with_variable:
            NAME.set("the scheduler's")
        handles.extend(loop.call_later(0, fire, number) for number in range(3))
        contexts.append(handles[0]._context)
        NAME.set("set later")

    contexts: list[contextvars.Context] = []
    contextvars.Context().run(inside, loop, schedule)
    run_until(loop, lambda: len(seen) == 3)
    assert seen == ["the scheduler's" if with_variable else "unset"] * 3
    assert [handle._context[NAME] for handle in handles] == [0, 1, 2]
    assert handles[0]._context is contexts[0]
    assert NAME.get() == "unset"


def test_an_empty_context_of_the_users_own_is_kept(loop: Any) -> None:
    context = contextvars.Context()
    timer = loop.call_later(0, NAME.set, "set", context=context)
    assert timer._context is context
    run_once(loop)
    assert context[NAME] == "set"


def test_timers_that_are_due_at_once_and_cancel_each_other(loop: asyncio.AbstractEventLoop) -> None:
    """Many, so that they are sorted; half of them are cancelled when they are ready already."""
    log: list[int] = []
    timers: dict[int, asyncio.TimerHandle] = {}
    count = 2000

    def fire(number: int) -> None:
        log.append(number)
        timers[number ^ 1].cancel()

    start = loop.time() - 1
    for number in range(count):
        number = number * 7919 % count
        timers[number] = loop.call_at(start + number * 1e-4, fire, number)
    later = loop.call_later(3600, log.append, -1)
    run_once(loop)
    assert log == list(range(0, count, 2))
    assert not later.cancelled()


@pytest.mark.normal_mode
@pytest.mark.mioloop_only(reason="the standard loop's handles are objects like others")
class TestTracked:
    """When the collector is told of a timer."""

    @COUNTS
    def test_after_the_run(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        before = loop.call_later(3600, print)
        assert gc.is_tracked(before)

        def schedule() -> list[asyncio.TimerHandle]:
            new = [loop.call_later(3600, print) for _ in range(count)]
            assert not any(map(gc.is_tracked, new))
            assert gc.is_tracked(before)
            return new

        timers: list[asyncio.TimerHandle] = []
        for _ in range(2):
            timers += inside(loop, schedule)
            assert all(map(gc.is_tracked, timers))

        def cancel() -> None:
            for timer in timers:
                timer.cancel()

        inside(loop, cancel)
        assert all(map(gc.is_tracked, timers))

    def test_when_it_is_cancelled(self, loop: asyncio.AbstractEventLoop) -> None:
        def schedule() -> None:
            timer = loop.call_later(3600, print)
            timer.cancel()
            assert gc.is_tracked(timer)

        inside(loop, schedule)

    def test_when_it_has_fired(self, loop: asyncio.AbstractEventLoop) -> None:
        def schedule() -> None:
            timers.extend(loop.call_later(-1, int) for _ in range(200))
            loop.call_later(0, look)

        def look() -> None:
            tracked.extend(map(gc.is_tracked, timers))

        timers: list[asyncio.TimerHandle] = []
        tracked: list[bool] = []
        inside(loop, schedule)
        run_until(loop, lambda: tracked)
        assert tracked == [True] * 200

    def test_debug_mode(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.set_debug(True)
        assert inside(loop, lambda: gc.is_tracked(loop.call_later(3600, print)))
        timer = loop.call_later(3600, print)
        assert inside(loop, lambda: timer in gc.get_referents(loop))

    @COUNTS
    def test_a_run_within_a_run(self, loop: Any, count: int) -> None:
        """asyncio forbids it, but what some programs call themselves in order to have it is there."""

        def outer() -> list[asyncio.TimerHandle]:
            timers = [loop.call_later(3600, print) for _ in range(count)]
            loop.call_soon(loop.stop)
            loop._run_once()
            # The outer one sees to it.
            assert not any(map(gc.is_tracked, timers))
            timers += [loop.call_later(3600, print) for _ in range(count)]
            return timers

        assert all(map(gc.is_tracked, inside(loop, outer)))

    @COUNTS
    def test_a_loop_that_lets_go_of_all_while_it_runs(self, loop_factory: LoopFactory, count: int) -> None:
        loop: Any = loop_factory()
        references: list[weakref.ref[Owner]] = []

        def release() -> None:
            references.extend(weakref.ref(hold(loop)) for _ in range(count))
            loop.stop()
            loop._release()

        loop.call_soon(release)
        loop.run_forever()
        gc.collect()
        assert {reference() for reference in references} == {None}
        loop.close()


@pytest.mark.normal_mode
@pytest.mark.mioloop_only(reason="a figure of mioloop's own")
def test_a_short_run_does_not_pay_for_the_timers_of_others(loop: asyncio.AbstractEventLoop) -> None:
    def fastest() -> float:
        times = []
        for _ in range(50):
            start = time.perf_counter()
            inside(loop, lambda: loop.call_later(3600, print))
            times.append(time.perf_counter() - start)
        return min(times)

    alone = fastest()
    inside(loop, lambda: [loop.call_later(3600, print) for _ in range(200_000)] and None)
    # To look at each of them, however briefly, takes a hundred times as long.
    assert fastest() < 10 * alone
