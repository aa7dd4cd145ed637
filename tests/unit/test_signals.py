"""add_signal_handler, and signals that Python's own handlers get while the loop is idle."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .support import SAFETY, Caught, pipe, run, run_once, run_until, settle

# Seconds for a loop that has nothing to do to fall asleep: asyncio misses a signal that comes just before.
FALLS_ASLEEP = 0.1

HANDLED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGWINCH, signal.SIGCHLD, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (*HANDLED, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    assert signal.set_wakeup_fd(-1) == -1


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", HANDLED)
def test_the_callback_is_called_in_the_loop(loop: asyncio.AbstractEventLoop, number: signal.Signals) -> None:
    log: list[tuple[object, ...]] = []

    def callback(*args: object) -> None:
        assert asyncio.get_running_loop() is loop
        log.append(args)

    loop.add_signal_handler(number, callback, 1, "two")
    run_once(loop)
    assert log == []
    send(number)
    run_until(loop, lambda: log)
    assert log == [(1, "two")]
    assert loop.remove_signal_handler(number) is True


def test_a_signal_before_the_run(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    loop.add_signal_handler(signal.SIGUSR1, log.append, 1)
    send(signal.SIGUSR1)
    assert log == []
    run_until(loop, lambda: log)
    assert log == [1]


def test_each_signal_counts(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    loop.add_signal_handler(signal.SIGUSR1, log.append, 1)
    loop.add_signal_handler(signal.SIGUSR2, log.append, 2)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR1):
        send(number)
    run_until(loop, lambda: len(log) >= 4)
    run_once(loop)
    assert log == [1, 2, 1, 1]


def test_an_idle_loop_wakes_up(loop: asyncio.AbstractEventLoop) -> None:
    idle = threading.Event()

    def from_outside() -> None:
        idle.wait(SAFETY)
        send(signal.SIGUSR1)

    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    thread = threading.Thread(target=from_outside)
    thread.start()
    loop.call_soon(idle.set)
    loop.run_forever()
    thread.join(SAFETY)


def test_a_second_callback_replaces_the_first(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, log.append, "first")
    loop.add_signal_handler(signal.SIGUSR1, log.append, "second")
    send(signal.SIGUSR1)
    run_until(loop, lambda: log)
    run_once(loop)
    assert log == ["second"]


def test_an_exception_goes_to_the_handler(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    def fails() -> None:
        raise ValueError("in the signal callback")

    loop.add_signal_handler(signal.SIGUSR1, fails)
    send(signal.SIGUSR1)
    run_until(loop, lambda: caught)
    context = caught.take()
    assert context["message"].startswith("Exception in callback ")
    assert str(context["exception"]) == "in the signal callback"


def test_removing_restores_the_default(loop: asyncio.AbstractEventLoop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGINT, print)
    assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert loop.remove_signal_handler(signal.SIGINT) is True
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_removing_what_was_never_added(loop: asyncio.AbstractEventLoop) -> None:
    assert loop.remove_signal_handler(signal.SIGUSR1) is False
    loop.add_signal_handler(signal.SIGUSR1, print)
    assert loop.remove_signal_handler(signal.SIGUSR2) is False
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert loop.remove_signal_handler(signal.SIGUSR1) is False


def test_removed_between_signal_and_callback(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    loop.add_signal_handler(signal.SIGUSR1, log.append, 1)
    loop.add_signal_handler(signal.SIGUSR2, log.append, 2)
    send(signal.SIGUSR1)
    send(signal.SIGUSR2)
    loop.remove_signal_handler(signal.SIGUSR1)
    run_until(loop, lambda: log)
    run_once(loop)
    assert log == [2]


def test_close_removes_the_handlers(loop: asyncio.AbstractEventLoop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGUSR2, print)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_the_handler_of_sigint_replaces_keyboard_interrupt(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    loop.add_signal_handler(signal.SIGINT, log.append, 1)
    send(signal.SIGINT)
    run_until(loop, lambda: log)
    assert log == [1]


# Wrong arguments


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_signals_that_cannot_be_caught(loop: asyncio.AbstractEventLoop, number: signal.Signals) -> None:
    with pytest.raises(RuntimeError, match=f"^sig {number} cannot be caught$"):
        loop.add_signal_handler(number, print)
    assert loop.remove_signal_handler(number) is False


@pytest.mark.parametrize("number", [0, -1, 9999, signal.NSIG])
def test_numbers_that_are_no_signal(loop: asyncio.AbstractEventLoop, number: int) -> None:
    with pytest.raises(ValueError, match=f"^invalid signal number {number}$"):
        loop.add_signal_handler(number, print)
    with pytest.raises(ValueError, match=f"^invalid signal number {number}$"):
        loop.remove_signal_handler(number)


@pytest.mark.parametrize("number", ["SIGUSR1", None, 1.5])
def test_what_is_no_number(loop: Any, number: object) -> None:
    with pytest.raises(TypeError, match=f"^sig must be an int, not {number!r}$"):
        loop.add_signal_handler(number, print)
    with pytest.raises(TypeError, match=f"^sig must be an int, not {number!r}$"):
        loop.remove_signal_handler(number)


def test_coroutines_are_no_callbacks(loop: Any) -> None:
    async def coroutine_function() -> None: ...

    coroutine = coroutine_function()
    for wrong in (coroutine_function, coroutine):
        with pytest.raises(TypeError, match=r"^coroutines cannot be used with add_signal_handler\(\)$"):
            loop.add_signal_handler(signal.SIGUSR1, wrong)
    coroutine.close()


def test_only_in_the_main_thread(loop: asyncio.AbstractEventLoop) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(loop.add_signal_handler, signal.SIGUSR1, print)
        message = "^set_wakeup_fd only works in main thread of the main interpreter$"
        with pytest.raises(RuntimeError, match=message):
            future.result()


# The wakeup descriptor


def test_no_wakeup_fd_is_left_after_the_run(loop: asyncio.AbstractEventLoop) -> None:
    run(loop, asyncio.sleep(0.001))
    assert signal.set_wakeup_fd(-1) == -1


def test_no_wakeup_fd_is_left_after_the_last_handler(loop: asyncio.AbstractEventLoop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, print)
    run_once(loop)
    loop.remove_signal_handler(signal.SIGUSR1)
    run_once(loop)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_wakeup_fd_of_the_programs_own_survives_the_run(loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe()
    signal.set_wakeup_fd(writer)
    try:
        run(loop, asyncio.sleep(0.001))
    finally:
        assert signal.set_wakeup_fd(-1) == writer
        os.close(reader)
        os.close(writer)


def test_a_run_in_another_thread_leaves_signals_alone(loop: asyncio.AbstractEventLoop) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, loop, asyncio.sleep(0.001)).result(SAFETY)
    assert signal.set_wakeup_fd(-1) == -1


# Python's own handlers


def test_a_python_handler_runs_while_the_loop_is_idle(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    idle = threading.Event()

    def handler(number: int, _frame: object) -> None:
        log.append(number)
        loop.call_soon_threadsafe(loop.stop)

    def from_outside() -> None:
        idle.wait(SAFETY)
        time.sleep(FALLS_ASLEEP)
        send(signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=from_outside)
    thread.start()
    loop.call_soon(idle.set)
    loop.run_forever()
    thread.join(SAFETY)
    assert log == [signal.SIGUSR1]


def test_a_python_handler_that_raises_leaves_the_idle_loop(loop: asyncio.AbstractEventLoop) -> None:
    class Alarm(Exception):
        """What a timeout by signal would raise."""

    def handler(_number: int, _frame: object) -> None:
        raise Alarm

    def from_outside() -> None:
        time.sleep(FALLS_ASLEEP)
        send(signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=from_outside)
    thread.start()
    with pytest.raises(Alarm):
        loop.run_forever()
    thread.join(SAFETY)
    assert not loop.is_running()
    run_once(loop)


@pytest.mark.mioloop_only(reason="asyncio misses a signal that comes just before it falls asleep")
def test_no_signal_is_missed_whenever_it_comes(loop: asyncio.AbstractEventLoop) -> None:
    count = 0
    turn = threading.Semaphore(0)

    def handler(_number: int, _frame: object) -> None:
        nonlocal count
        count += 1
        turn.release()
        if count == 300:
            loop.call_soon_threadsafe(loop.stop)

    def from_outside() -> None:
        for _ in range(300):
            send(signal.SIGUSR1)
            turn.acquire(timeout=SAFETY)

    signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=from_outside)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join(SAFETY)
    assert count == 300


@pytest.mark.mioloop_only(reason="asyncio sleeps on when another thread gets the signal")
def test_a_signal_that_another_thread_gets(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []

    def handler(number: int, _frame: object) -> None:
        log.append(number)
        loop.call_soon_threadsafe(loop.stop)

    def from_outside() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=from_outside)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join(SAFETY)
    assert log == [signal.SIGUSR1]


def test_keyboard_interrupt_while_busy(loop: asyncio.AbstractEventLoop) -> None:
    def busy() -> None:
        loop.call_soon(busy)

    def from_outside() -> None:
        time.sleep(0.01)
        send(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=from_outside)
    loop.call_soon(busy)
    loop.call_soon(thread.start)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    thread.join(SAFETY)


def test_keyboard_interrupt_while_idle(loop: asyncio.AbstractEventLoop) -> None:
    def from_outside() -> None:
        time.sleep(FALLS_ASLEEP)
        send(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=from_outside)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    thread.join(SAFETY)
    log: list[str] = []
    loop.call_soon(log.append, "goes on")
    run_once(loop)
    assert log == ["goes on"]


def test_a_wakeup_descriptor_that_was_there_before(loop: asyncio.AbstractEventLoop) -> None:
    """Its owner hears of the signals while the loop runs."""
    reader, writer = pipe()
    os.set_blocking(writer, False)
    handled: list[int] = []
    signal.signal(signal.SIGUSR2, lambda *_: None)
    signal.set_wakeup_fd(writer)
    try:
        seen = bytearray()

        async def main() -> None:
            loop.add_reader(reader, lambda: seen.extend(os.read(reader, 100)))
            send(signal.SIGUSR2)
            while seen != bytes([signal.SIGUSR2]):
                await asyncio.sleep(0.01)
            loop.remove_reader(reader)

        run(loop, asyncio.wait_for(main(), SAFETY))
        assert signal.set_wakeup_fd(writer) == writer
        # Full: what can't be passed on is lost, and the loop's own handler called all the same.
        while True:
            try:
                os.write(writer, bytes(1000))
            except BlockingIOError:
                break
        loop.add_signal_handler(signal.SIGUSR1, handled.append, 1)
        send(signal.SIGUSR1)
        run_until(loop, lambda: handled)
        loop.remove_signal_handler(signal.SIGUSR1)
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


def test_two_loops_do_not_pass_signals_on_to_each_other(
    loop: asyncio.AbstractEventLoop, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    handled: list[str] = []
    other = loop_factory()

    async def main() -> None:
        other.add_signal_handler(signal.SIGUSR1, handled.append, "other")

    try:
        for _ in range(3):
            run(loop, main())
            run(other, settle())
        send(signal.SIGUSR1)
        for _ in range(5):
            run(loop, settle())
            run(other, settle())
        assert len(handled) <= 1
        other.remove_signal_handler(signal.SIGUSR1)
    finally:
        other.close()


def test_a_loop_does_not_pass_signals_on_to_itself(loop: asyncio.AbstractEventLoop) -> None:
    handled: list[int] = []

    async def main() -> int:
        return signal.set_wakeup_fd(-1)

    loop.add_signal_handler(signal.SIGUSR1, handled.append, 1)
    own = run(loop, main())
    loop.remove_signal_handler(signal.SIGUSR1)
    signal.set_wakeup_fd(own)
    loop.add_signal_handler(signal.SIGUSR1, handled.append, 2)
    send(signal.SIGUSR1)
    for _ in range(5):
        run(loop, settle())
    assert handled in ([], [2])
    loop.remove_signal_handler(signal.SIGUSR1)
    signal.set_wakeup_fd(-1)


def test_a_loop_that_was_closed_in_anothers_run(
    loop: asyncio.AbstractEventLoop, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Its descriptor's number may be another file's by then: it is not put back."""
    other = loop_factory()
    other.add_signal_handler(signal.SIGUSR1, lambda: None)

    async def main() -> None:
        other.close()

    run(loop, main())
    assert signal.set_wakeup_fd(-1) == -1


def test_closing_a_loop_leaves_the_programs_descriptor_in_place(loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe()
    os.set_blocking(writer, False)
    run(loop, settle())
    signal.set_wakeup_fd(writer)
    try:
        loop.close()
        assert signal.set_wakeup_fd(-1) == writer
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)
