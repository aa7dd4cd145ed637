"""call_later and call_at: what they accept, in which order they fire, what cancelling does.

Deadlines that are over when the loop looks at them make the order of timers and callbacks exact without
any waiting.
"""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import time
from fractions import Fraction
from typing import Any

import pytest

from .support import run, run_once, run_until

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("NAME", default="unset")


def test_time_is_monotonic_seconds(loop: asyncio.AbstractEventLoop) -> None:
    before = time.monotonic()
    now = loop.time()
    assert before <= now <= time.monotonic()
    assert isinstance(now, float)


def test_fires_with_its_arguments_once(loop: asyncio.AbstractEventLoop) -> None:
    log: list[tuple[object, ...]] = []
    loop.call_later(0.001, lambda *args: log.append(args), 1, "two", None)
    loop.call_at(loop.time() + 0.002, lambda *args: log.append(args))
    run_until(loop, lambda: len(log) == 2)
    run_once(loop)
    assert log == [(1, "two", None), ()]


def test_never_fires_early(loop: asyncio.AbstractEventLoop) -> None:
    early: list[float] = []
    timers: list[asyncio.TimerHandle] = []

    def fired(index: int) -> None:
        if loop.time() < timers[index].when() - time.get_clock_info("monotonic").resolution:
            early.append(timers[index].when())

    for index in range(20):
        timers.append(loop.call_later(0.0007 * index, fired, index))
    done: list[int] = []
    loop.call_later(0.02, done.append, 1)
    run_until(loop, lambda: done)
    assert early == []


def test_fires_in_order_of_the_deadlines(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    start = loop.time()
    for number in (5, 3, 9, 1, 7, 2, 8, 4, 6, 0):
        loop.call_at(start + number * 0.001, log.append, number)
    run_until(loop, lambda: len(log) == 10)
    assert log == list(range(10))


@pytest.mark.parametrize("delay", [0, -0.0, -1, -1e9, float("-inf"), Fraction(-1, 3), False])
def test_a_delay_that_is_over_fires_in_the_next_iteration(
    loop: asyncio.AbstractEventLoop, delay: float
) -> None:
    log: list[str] = []
    loop.call_later(delay, log.append, "timer")
    loop.call_soon(log.append, "soon")
    run_once(loop)
    assert log == ["soon", "timer"]


def test_timers_come_after_what_was_ready(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    loop.call_at(0, log.append, "timer")
    for _ in range(3):
        loop.call_soon(log.append, "soon")
    run_once(loop)
    assert log == ["soon", "soon", "soon", "timer"]


def test_a_due_timer_set_in_a_callback_waits_for_the_next_iteration(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []

    def callback() -> None:
        loop.call_later(0, log.append, "timer")
        loop.call_soon(log.append, "soon")
        log.append("callback")

    loop.call_soon(callback)
    run_once(loop)
    assert log == ["callback"]
    run_once(loop)
    assert log == ["callback", "soon", "timer"]


@pytest.mark.parametrize("delay", [1e18, 1e300, float("inf"), 10**30])
def test_a_huge_delay_never_fires_and_keeps_the_loop_alive(
    loop: asyncio.AbstractEventLoop, delay: float
) -> None:
    log: list[str] = []
    timer = loop.call_later(delay, log.append, "huge")
    assert timer.when() >= loop.time() + 1e17
    loop.call_at(loop.time() + delay, log.append, "huge")
    loop.call_later(0.003, log.append, "short")
    run_until(loop, lambda: log)
    assert log == ["short"]
    timer.cancel()
    run_once(loop)


def test_a_huge_delay_leaves_an_idle_loop_wakeable(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> int:
        loop.call_later(1e18, print)
        return await loop.run_in_executor(None, lambda: 5)

    assert run(loop, main()) == 5


def test_a_nan_deadline_fires_when_the_loop_has_work(loop: asyncio.AbstractEventLoop) -> None:
    # Every comparison with NaN is false, the one that asks whether the deadline lies ahead as well.
    log: list[str] = []
    loop.call_later(float("nan"), log.append, "timer")
    loop.call_soon(log.append, "soon")
    run_once(loop)
    assert log == ["soon", "timer"]


def test_too_big_for_a_float(loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(OverflowError, match="int too large to convert to float"):
        loop.call_later(10**400, print)


def test_a_fraction_will_do(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    when = Fraction(int(loop.time() * 1000) - 5, 1000)
    timer = loop.call_at(when, log.append, "at")  # type: ignore[arg-type]
    assert timer.when() == when
    timer = loop.call_later(Fraction(1, 1000), log.append, "later")  # type: ignore[arg-type]
    assert isinstance(timer.when(), float)
    run_until(loop, lambda: len(log) == 2)
    assert log == ["at", "later"]


def test_none_is_refused(loop: Any) -> None:
    with pytest.raises(TypeError, match="^delay must not be None$"):
        loop.call_later(None, print)
    with pytest.raises(TypeError, match="^when cannot be None$"):
        loop.call_at(None, print)


@pytest.mark.parametrize("delay", ["1", b"1", [], object(), decimal.Decimal(1)])
def test_what_is_no_number_is_refused(loop: Any, delay: object) -> None:
    kind = type(delay).__name__
    if isinstance(delay, decimal.Decimal):
        kind = "decimal.Decimal"
    with pytest.raises(TypeError, match=rf"^unsupported operand type\(s\) for \+: 'float' and '{kind}'$"):
        loop.call_later(delay, print)


@pytest.mark.parametrize("when", ["1", [], object()])
def test_a_time_that_is_no_number_is_an_error_at_the_latest_in_the_run(loop: Any, when: object) -> None:
    with pytest.raises(TypeError):
        loop.call_at(when, print)
        run_once(loop)
    loop.close()


def test_arguments_are_required(loop: Any) -> None:
    for method in (loop.call_later, loop.call_at):
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            method(1)
        with pytest.raises(TypeError, match="missing 2 required positional arguments"):
            method()
        with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
            method(1, print, x=1)


def test_context(loop: asyncio.AbstractEventLoop) -> None:
    context = contextvars.copy_context()
    log: list[str] = []
    loop.call_later(0, NAME.set, "later", context=context)
    run_once(loop)
    assert context[NAME] == "later"
    loop.call_at(0, NAME.set, "at", context=context)
    run_once(loop)
    assert context[NAME] == "at"
    context.run(lambda: loop.call_later(0, lambda: log.append(NAME.get())))
    run_once(loop)
    assert log == ["at"]
    assert NAME.get() == "unset"


def test_cancel_before_the_deadline(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    timers = [loop.call_at(0, log.append, name) for name in "abc"]
    timers[1].cancel()
    run_once(loop)
    assert sorted(log) == ["a", "c"]


def test_cancel_from_a_callback_of_the_same_iteration(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    victim = loop.call_at(2, log.append, "victim")
    loop.call_at(1, victim.cancel)
    loop.call_at(3, log.append, "last")
    run_once(loop)
    assert log == ["last"]


def test_a_timer_may_set_itself_again(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []

    def again(left: int) -> None:
        log.append(left)
        if left:
            loop.call_later(0, again, left - 1)
        else:
            loop.stop()

    loop.call_later(0, again, 500)
    loop.run_forever()
    assert log == list(range(500, -1, -1))


def test_many_cancelled_timers(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    start = loop.time() - 1
    timers = [
        loop.call_at(start + (number * 7919 % 5000) * 1e-4, log.append, number) for number in range(5000)
    ]
    for number, timer in enumerate(timers):
        if number % 10:
            timer.cancel()
    run_once(loop)
    assert sorted(log) == list(range(0, 5000, 10))
    assert [number * 7919 % 5000 for number in log] == sorted(number * 7919 % 5000 for number in log)


def test_cancelled_timers_do_not_keep_the_loop_from_newer_ones(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    for _ in range(300):
        loop.call_later(1000, log.append, "never").cancel()
    loop.call_later(0.002, log.append, "short")
    run_until(loop, lambda: log)
    assert log == ["short"]


def test_an_earlier_timer_set_in_a_callback_shortens_the_wait(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    loop.call_later(3600, log.append, "hour")

    def callback() -> None:
        loop.call_later(0.001, loop.stop)

    loop.call_later(0.001, callback)
    loop.run_forever()
    assert log == []


def test_sleep_returns_its_result(loop: asyncio.AbstractEventLoop) -> None:
    assert run(loop, asyncio.sleep(0.001, "slept")) == "slept"
    assert run(loop, asyncio.sleep(0, "yielded")) == "yielded"


def test_wait_for_times_out(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        future = loop.create_future()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.001)
        assert future.cancelled()

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio leaves the order of equal deadlines open, its heap mixes them up")
def test_equal_deadlines_fire_in_the_order_they_were_set(loop: asyncio.AbstractEventLoop) -> None:
    log: list[tuple[int, int]] = []
    for number in range(1000):
        loop.call_at(number % 7, log.append, (number % 7, number))
    run_once(loop)
    assert log == sorted(log)
    assert len(log) == 1000


@pytest.mark.mioloop_only(reason="asyncio leaves the order of equal deadlines open, its heap mixes them up")
def test_equal_deadlines_keep_their_order_through_cancels(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    when = loop.time() - 1
    timers = [loop.call_at(when, log.append, number) for number in range(1000)]
    for timer in timers[::3]:
        timer.cancel()
    for number in range(1000, 1100):
        loop.call_at(when, log.append, number)
    run_once(loop)
    assert log == [number for number in range(1100) if number % 3 or number >= 1000]
