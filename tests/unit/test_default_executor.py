"""The default executor against the standard library's: how many threads, in which order, what becomes of what
a job raises, of cancelled jobs, and of those that are on when something ends.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import faulthandler
import gc
import signal
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .support import SAFETY, Caught, run, run_until, settle, until

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def size() -> int:
    """As many threads as asyncio's default executor has at most."""
    executor = concurrent.futures.ThreadPoolExecutor()
    return executor._max_workers


class Gate:
    """Jobs that are on until it opens."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.open = threading.Event()
        self.entered: list[int] = []

    def wait(self, number: int = 0) -> int:
        self.entered.append(number)
        assert self.open.wait(SAFETY)
        return number

    async def occupy(self, count: int) -> list[asyncio.Future[int]]:
        """Keeps that many threads busy."""
        futures = [self.loop.run_in_executor(None, self.wait, number) for number in range(count)]
        await until(lambda: len(self.entered) == count)
        return futures


@pytest.fixture
def gate(loop: asyncio.AbstractEventLoop) -> Iterator[Gate]:
    gate = Gate(loop)
    yield gate
    gate.open.set()


# The pool.


def test_there_is_none_before_the_first_job(loop: Any) -> None:
    assert loop._default_executor is None
    loop.run_until_complete(loop.run_in_executor(None, int))
    assert isinstance(loop._default_executor, concurrent.futures.ThreadPoolExecutor)
    assert loop._default_executor._max_workers == size()
    run(loop, loop.shutdown_default_executor())
    assert loop._default_executor is not None
    loop.close()
    assert loop._default_executor is None


def test_its_threads_are_python_threads(loop: Any, gate: Gate) -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        futures = await gate.occupy(3)
        threads = set(threading.enumerate()) - before
        assert sorted(thread.name for thread in threads) == ["asyncio_0", "asyncio_1", "asyncio_2"]
        assert not any(thread.daemon for thread in threads)
        assert threads == loop._default_executor._threads
        gate.open.set()
        assert await asyncio.gather(*futures) == [0, 1, 2]

    run(loop, main())
    run(loop, loop.shutdown_default_executor())
    assert set(threading.enumerate()) == before


@pytest.mark.mioloop_only(reason="asyncio may have the result before the thread is known to be idle")
def test_an_idle_thread_is_used_again(loop: Any) -> None:
    async def main() -> set[int]:
        return {await loop.run_in_executor(None, threading.get_ident) for _ in range(50)}

    assert len(run(loop, main())) == 1


def test_it_grows_to_its_size_and_no_further(loop: Any, gate: Gate) -> None:
    count = size()

    async def main() -> None:
        futures = await gate.occupy(count)
        late = [loop.run_in_executor(None, gate.wait, number) for number in range(count, count + 5)]
        await settle()
        assert len(gate.entered) == count
        assert len(loop._default_executor._threads) == count
        gate.open.set()
        assert await asyncio.gather(*futures, *late) == list(range(count + 5))
        assert sorted(gate.entered) == list(range(count + 5))

    run(loop, main())


@pytest.mark.parametrize("warm", [False, True])
def test_jobs_may_wait_for_each_other(loop: Any, warm: bool) -> None:
    """As many as there may be threads, whether these have to be started or to be woken."""
    count = size()
    barrier = threading.Barrier(count, timeout=SAFETY)

    async def main() -> None:
        for _ in range(5 if warm else 1):
            futures = [loop.run_in_executor(None, barrier.wait) for _ in range(count)]
            assert sorted(await asyncio.gather(*futures)) == list(range(count))
            # A job at a time leaves the others asleep.
            for number in range(20):
                assert await loop.run_in_executor(None, int, number) == number

    run(loop, main())


def test_jobs_start_in_order(loop: Any, gate: Gate) -> None:
    started: list[int] = []

    async def main() -> None:
        await gate.occupy(size() - 1)
        await asyncio.gather(*(loop.run_in_executor(None, started.append, number) for number in range(200)))

    try:
        run(loop, main())
        assert started == list(range(200))
    finally:
        gate.open.set()


def test_a_job_starts_while_the_loop_is_busy(loop: Any) -> None:
    """It does not wait for the loop to be idle, nor to run at all."""
    started = threading.Event()

    async def main() -> None:
        for _ in range(20):
            started.clear()
            future = loop.run_in_executor(None, started.set)
            assert started.wait(SAFETY)
            await future

    run(loop, main())
    for _ in range(20):
        started.clear()
        future = loop.run_in_executor(None, started.set)
        assert started.wait(SAFETY)
        loop.run_until_complete(future)


def test_the_loop_gets_its_turn_between_short_jobs(loop: Any, gate: Gate) -> None:
    """Thousands of jobs that never let go of the interpreter's lock do not keep it from the loop."""
    block = b"x" * 300_000
    interval = sys.getswitchinterval()

    async def gets_a_turn() -> bool:
        gate.open.clear()
        gate.entered.clear()
        await gate.occupy(size())
        futures = [loop.run_in_executor(None, block.count, b"y") for _ in range(1000)]
        gate.open.set()
        seen = set()
        while not all(future.done() for future in futures):
            await asyncio.sleep(0)
            seen.add(sum(future.done() for future in futures))
        return bool(seen - {0, 1000})

    async def main() -> None:
        # The system may let our thread wait for as long as all of them take.
        for _ in range(20):
            if await gets_a_turn():
                return
        pytest.fail("the loop got no turn")

    sys.setswitchinterval(0.0001)
    try:
        run(loop, main())
    finally:
        sys.setswitchinterval(interval)


def test_no_thread_can_be_started(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="^can't start new thread$"):
            loop.run_in_executor(None, int)


@pytest.mark.mioloop_only(reason="asyncio's gives up though it has queued the job")
def test_no_further_thread_can_be_started(loop: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        first = await gate.occupy(1)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            second = loop.run_in_executor(None, gate.wait, 1)
        gate.open.set()
        assert await asyncio.gather(*first, second) == [0, 1]
        gate.open.clear()
        gate.entered.clear()
        futures = await gate.occupy(3)
        gate.open.set()
        assert await asyncio.gather(*futures) == [0, 1, 2]

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio's never shrinks")
def test_threads_go_when_they_were_idle_for_long(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mioloop.executor import DefaultExecutor

    monkeypatch.setattr(DefaultExecutor, "_idle_seconds", 0.001)

    async def main() -> None:
        gate = Gate(loop)
        for _ in range(3):
            futures = await gate.occupy(size())
            gate.open.set()
            await asyncio.gather(*futures)
            await until(lambda: sum(thread.is_alive() for thread in loop._default_executor._threads) == 1)
            gate.open.clear()
            gate.entered.clear()
        for number in range(1000):
            calls = [loop.run_in_executor(None, int, number) for _ in range(number % 4 + 1)]
            assert await asyncio.gather(*calls) == [number] * len(calls)
            if number % 50 == 0:
                await asyncio.sleep(0.001)

    run(loop, main())


def test_many_loops_leave_no_threads(loop_factory: LoopFactory) -> None:
    before = set(threading.enumerate())
    for number in range(300):
        loop = loop_factory()
        assert loop.run_until_complete(loop.run_in_executor(None, int, number)) == number
        if number % 2:
            loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    deadline = time.monotonic() + SAFETY
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert set(threading.enumerate()) <= before


# What a job gives.


class Special(BaseException):
    """Nothing that `except Exception` catches."""


@pytest.mark.parametrize(
    "kind",
    [
        ValueError,
        OSError,
        Special,
        GeneratorExit,
        StopAsyncIteration,
        asyncio.CancelledError,
        asyncio.InvalidStateError,
        concurrent.futures.CancelledError,
        concurrent.futures.InvalidStateError,
        concurrent.futures.BrokenExecutor,
    ],
)
def test_what_a_job_raises_is_in_the_future(loop: Any, kind: type[BaseException]) -> None:
    error = kind("why")

    def fail() -> None:
        raise error

    future = loop.run_in_executor(None, fail)
    run_until(loop, future.done)
    raised = future.exception()
    converted: dict[type[BaseException], type[BaseException]] = {
        concurrent.futures.CancelledError: asyncio.CancelledError,
        concurrent.futures.InvalidStateError: asyncio.InvalidStateError,
    }
    assert type(raised) is converted.get(kind, kind)
    assert raised.args == ("why",)
    if kind not in converted:
        assert raised is error
        assert "fail" in [frame.name for frame in traceback.extract_tb(raised.__traceback__)]
        assert raised.__context__ is None


def test_the_traceback_is_the_whole_one(loop: Any) -> None:
    def inner() -> None:
        raise LookupError("deep")

    def outer() -> None:
        try:
            inner()
        except LookupError as error:
            raise ValueError("above") from error

    async def main() -> None:
        await loop.run_in_executor(None, outer)

    with pytest.raises(ValueError, match="above") as caught:
        run(loop, main())
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "outer"
    cause = caught.value.__cause__
    assert cause is not None
    assert [frame.name for frame in traceback.extract_tb(cause.__traceback__)] == ["outer", "inner"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_exceptions_that_leave_the_loop(loop: Any, kind: type[BaseException]) -> None:
    """They go into the future; whoever awaits it lets them out of the loop."""

    def fail() -> None:
        raise kind("on purpose")

    future = loop.run_in_executor(None, fail)
    run_until(loop, future.done)
    with pytest.raises(kind, match="on purpose"):
        future.result()

    async def main() -> None:
        await loop.run_in_executor(None, fail)

    task = loop.create_task(main())
    with pytest.raises(kind, match="on purpose"):
        loop.run_forever()
    assert isinstance(task.exception(), kind)
    assert loop.run_until_complete(loop.run_in_executor(None, int)) == 0


def stop_iteration() -> None:
    raise StopIteration("why")


def futures_take_stop_iteration() -> bool:
    """From some 3.12 on, as a RuntimeError."""
    loop = asyncio.new_event_loop()
    try:
        future = loop.create_future()
        future.set_exception(StopIteration())
        future.exception()
        return True
    except TypeError:
        return False
    finally:
        loop.close()


TAKES_STOP_ITERATION = futures_take_stop_iteration()


@pytest.mark.skipif(not TAKES_STOP_ITERATION, reason="a future refuses it")
def test_stop_iteration(loop: Any) -> None:
    async def main() -> None:
        await loop.run_in_executor(None, stop_iteration)

    with pytest.raises(RuntimeError, match="StopIteration interacts badly with generators") as caught:
        run(loop, main())
    assert isinstance(caught.value.__cause__, StopIteration)


@pytest.mark.mioloop_only(reason="asyncio's future stays pending for ever where it refuses the exception")
@pytest.mark.skipif(TAKES_STOP_ITERATION, reason="above")
def test_stop_iteration_before_futures_took_it(loop: Any) -> None:
    async def main() -> None:
        await loop.run_in_executor(None, stop_iteration)

    with pytest.raises(TypeError, match="StopIteration interacts badly with generators"):
        run(loop, main())


def test_an_exception_that_nobody_retrieves(loop: Any, caught: Caught) -> None:
    future = loop.run_in_executor(None, stop_iteration if TAKES_STOP_ITERATION else lambda: 1 / 0)
    run_until(loop, future.done)
    del future
    gc.collect()
    assert caught.take()["message"] == "Future exception was never retrieved"


def test_somebody_else_resolves_the_future(loop: Any, caught: Caught, gate: Gate) -> None:
    async def main() -> None:
        (future,) = await gate.occupy(1)
        future.set_result(-1)
        gate.open.set()
        assert await future == -1
        await until(lambda: caught)

    run(loop, main())
    assert isinstance(caught.take()["exception"], (AssertionError, asyncio.InvalidStateError))


@pytest.mark.mioloop_only(
    sys.version_info >= (3, 14), reason="asyncio takes the result of a job that has ended by now at once"
)
def test_what_a_job_schedules_comes_before_its_result(loop: Any) -> None:
    async def main() -> None:
        for _ in range(300):
            log: list[str] = []

            def job(log: list[str] = log) -> None:
                loop.call_soon_threadsafe(log.append, "scheduled")

            future = loop.run_in_executor(None, job)
            future.add_done_callback(lambda _, log=log: log.append("done"))
            await future
            assert log == ["scheduled", "done"]

    run(loop, main())


def test_references_are_let_go(loop: Any) -> None:
    class Thing:
        def method(self, other: object) -> object:
            return Thing()

        def fail(self) -> None:
            raise ValueError(self)

    async def main() -> list[weakref.ref[object]]:
        function, argument = Thing(), Thing()
        result = await loop.run_in_executor(None, function.method, argument)
        watched: list[weakref.ref[object]] = [weakref.ref(thing) for thing in (function, argument, result)]
        failing = Thing()
        with contextlib.suppress(ValueError):
            await loop.run_in_executor(None, failing.fail)
        return [*watched, weakref.ref(failing)]

    watched = run(loop, main())
    gc.collect()
    # asyncio's thread may still have hold of its last job.
    run_until(loop, lambda: [reference() for reference in watched] == [None] * 4)


def test_a_result_whose_end_runs_python_code(loop: Any, gate: Gate) -> None:
    """The last reference to the result of a cancelled job goes in the midst of the core."""
    ended: list[str] = []

    class Thing:
        def __del__(self) -> None:
            ended.append(threading.current_thread().name)
            loop.call_soon_threadsafe(ended.append, "called")

    async def main() -> None:
        (busy,) = await gate.occupy(1)
        future = loop.run_in_executor(None, lambda: gate.open.wait(SAFETY) and Thing())
        await settle()
        future.cancel()
        gate.open.set()
        await busy
        await until(lambda: "called" in ended)

    run(loop, main())


# Context variables.

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


def test_a_job_has_its_thread_s_context(loop: Any) -> None:
    async def main() -> None:
        variable.set(1)
        assert await loop.run_in_executor(None, variable.get) == 0
        assert await asyncio.to_thread(variable.get) == 1

        def change() -> None:
            variable.set(2)

        await asyncio.to_thread(change)
        assert variable.get() == 1
        assert await loop.run_in_executor(None, variable.get) == 0

    run(loop, main())


# Cancellation.


def test_a_cancelled_job_that_waits_does_not_run(loop: Any, gate: Gate) -> None:
    ran: list[int] = []

    async def main() -> None:
        busy = await gate.occupy(size())
        futures = [loop.run_in_executor(None, ran.append, number) for number in range(10)]
        for future in futures[::2]:
            assert future.cancel()
        await settle()
        gate.open.set()
        await asyncio.gather(*busy, *futures[1::2])
        assert all(future.cancelled() for future in futures[::2])
        assert sorted(ran) == [1, 3, 5, 7, 9]

    run(loop, main())


def test_a_cancelled_job_that_runs_is_left_alone(loop: Any, caught: Caught, gate: Gate) -> None:
    async def main() -> None:
        def fail() -> None:
            gate.wait()
            raise ValueError("nobody hears it")

        futures = [loop.run_in_executor(None, gate.wait), loop.run_in_executor(None, fail)]
        await until(lambda: len(gate.entered) == 2)
        for future in futures:
            future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await future
        gate.open.set()
        assert await loop.run_in_executor(None, int) == 0
        await settle()

    run(loop, main())


def test_a_task_that_waits_is_cancelled(loop: Any, gate: Gate) -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.to_thread(gate.wait))
        await until(lambda: gate.entered)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(gate.wait), 0.001)
        gate.open.set()

    run(loop, main())


# Shutting down.


def test_shutdown_runs_what_is_queued(loop: Any, gate: Gate) -> None:
    async def main() -> None:
        futures = await gate.occupy(size())
        futures += [loop.run_in_executor(None, gate.wait, number) for number in range(size(), size() + 20)]
        loop.call_later(0.001, gate.open.set)
        await loop.shutdown_default_executor()
        assert len(gate.entered) == size() + 20
        assert await asyncio.gather(*futures) == list(range(size() + 20))

    run(loop, main())


def test_a_closed_loop_drops_the_results(loop: Any, gate: Gate) -> None:
    """The jobs are done all the same, also those that wait; nothing is reported."""
    futures = run(loop, gate.occupy(size()))
    done = threading.Event()
    futures.append(loop.run_in_executor(None, done.set))
    threads = loop._default_executor._threads.copy()
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.run_in_executor(None, int)
    gate.open.set()
    assert done.wait(SAFETY)
    for thread in threads:
        thread.join(SAFETY)
    assert not any(thread.is_alive() for thread in threads)
    assert not any(future.done() for future in futures)


def test_the_shutdown_is_cancelled(loop: Any, gate: Gate) -> None:
    if sys.version_info < (3, 13):
        pytest.skip(
            "it waits all the same; in 3.12 its thread resolves the cancelled future, which is reported"
        )

    async def main() -> None:
        futures = await gate.occupy(2)
        task = asyncio.create_task(loop.shutdown_default_executor())
        await settle()
        task.cancel()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.gather(*futures)

    run(loop, main())


# As an executor in its own right.


@pytest.fixture
def executor(loop: Any) -> concurrent.futures.ThreadPoolExecutor:
    loop.run_until_complete(loop.run_in_executor(None, int))
    executor: concurrent.futures.ThreadPoolExecutor = loop._default_executor
    return executor


def test_submit(executor: concurrent.futures.ThreadPoolExecutor) -> None:
    future: Any = executor.submit(sorted, [1, 3, 2], reverse=True)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(SAFETY) == [3, 2, 1]
    error = executor.submit(lambda: 1 / 0).exception(SAFETY)
    assert isinstance(error, ZeroDivisionError)
    assert list(executor.map(pow, [2, 3], [3, 2])) == [8, 9]


def test_a_submitted_call_is_cancelled(
    executor: concurrent.futures.ThreadPoolExecutor, gate: Gate, loop: Any
) -> None:
    run(loop, gate.occupy(size()))
    ran: list[int] = []
    future = executor.submit(ran.append, 1)
    assert future.cancel()
    gate.open.set()
    assert executor.submit(int).result(SAFETY) == 0
    run_until(loop, lambda: not executor._work_queue.qsize())
    assert ran == []


def test_it_is_passed_by_the_caller(executor: concurrent.futures.ThreadPoolExecutor, loop: Any) -> None:
    thread = loop.run_until_complete(loop.run_in_executor(executor, threading.current_thread))
    assert thread in executor._threads
    loop.set_default_executor(executor)
    thread = loop.run_until_complete(loop.run_in_executor(None, threading.current_thread))
    assert thread in executor._threads


def test_another_loop_uses_it(
    executor: concurrent.futures.ThreadPoolExecutor, loop_factory: LoopFactory
) -> None:
    other = loop_factory()
    thread = other.run_until_complete(other.run_in_executor(executor, threading.current_thread))
    assert thread in executor._threads
    other.close()


def test_shutdown_with_cancellation(
    executor: concurrent.futures.ThreadPoolExecutor, gate: Gate, loop: Any
) -> None:
    busy = run(loop, gate.occupy(size()))
    submitted = executor.submit(int)
    ours = loop.run_in_executor(None, int)
    executor.shutdown(wait=False, cancel_futures=True)
    assert submitted.cancelled()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(ours)
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        executor.submit(int)
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        loop.run_in_executor(None, int)
    gate.open.set()
    assert loop.run_until_complete(asyncio.gather(*busy)) == list(range(size()))
    executor.shutdown()
    assert not any(thread.is_alive() for thread in executor._threads)


def test_an_executor_that_nobody_has_ends(loop_factory: LoopFactory) -> None:
    loop: Any = loop_factory()
    assert loop.run_until_complete(loop.run_in_executor(None, int)) == 0
    threads = loop._default_executor._threads.copy()
    loop._default_executor = None
    gc.collect()
    for thread in threads:
        thread.join(SAFETY)
        assert not thread.is_alive()
    loop.close()


@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
def test_a_loop_that_nobody_closed_is_collected(loop_factory: LoopFactory) -> None:
    loop: Any = loop_factory()
    loop.run_until_complete(asyncio.wait_for(loop.run_in_executor(None, int), SAFETY))
    threads = loop._default_executor._threads.copy()
    watched = weakref.ref(loop)
    del loop
    gc.collect()
    assert watched() is None
    for thread in threads:
        thread.join(SAFETY)
        assert not thread.is_alive()


# What others see of the threads.


def test_faulthandler_sees_the_python_frames(loop: Any, gate: Gate) -> None:
    async def main() -> None:
        futures = await gate.occupy(1)
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            text = file.read().decode()
        (thread,) = (part for part in text.split("\n\n") if "in _bootstrap" in part and __file__ in part)
        assert "in wait" in thread
        gate.open.set()
        await asyncio.gather(*futures)

    run(loop, main())


@pytest.mark.parametrize("hook", ["settrace", "setprofile"])
def test_hooks_of_threading(loop: Any, hook: str) -> None:
    called: list[str] = []

    def see(frame: Any, event: str, _argument: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    def the_job() -> None: ...

    previous = threading.gettrace() if hook == "settrace" else threading.getprofile()
    getattr(threading, hook)(see)
    try:
        loop.run_until_complete(loop.run_in_executor(None, the_job))
    finally:
        getattr(threading, hook)(previous)
    assert "the_job" in called


def test_thread_locals_end_with_their_thread(loop: Any) -> None:
    local = threading.local()
    ended: list[int] = []

    class Value:
        def __del__(self) -> None:
            ended.append(threading.get_ident())

    def job() -> int:
        local.value = Value()
        return threading.get_ident()

    thread = loop.run_until_complete(loop.run_in_executor(None, job))
    assert ended == []
    run(loop, loop.shutdown_default_executor())
    assert ended == [thread]


def test_a_loop_in_a_job(loop: Any, loop_factory: LoopFactory) -> None:
    def job(number: int) -> int:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(asyncio.to_thread(pow, number, 2))

    async def main() -> None:
        squares = await asyncio.gather(*(asyncio.to_thread(job, number) for number in range(8)))
        assert squares == [number**2 for number in range(8)]

    run(loop, main())


def test_a_job_submits_another(loop: Any) -> None:
    """From its thread, in which asyncio's works too."""

    def job() -> int:
        results: concurrent.futures.Future[int] = asyncio.run_coroutine_threadsafe(
            asyncio.to_thread(int, "7"), loop
        )
        return results.result(SAFETY)

    async def main() -> None:
        assert await asyncio.gather(*(asyncio.to_thread(job) for _ in range(3))) == [7, 7, 7]

    run(loop, main())


# Signals.


def test_keyboard_interrupt_in_the_middle(loop: Any) -> None:
    """It leaves the loop, and no job is lost."""
    results: list[int] = []
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def job(number: int) -> int:
        if number == 50:
            signal.pthread_kill(main_thread, signal.SIGINT)
        return number

    async def main() -> None:
        jobs = [loop.run_in_executor(None, job, number) for number in range(100)]
        for future in jobs:
            results.append(await future)

    task = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    # It may have been raised in the task itself.
    if task.done():
        assert isinstance(task.exception(), KeyboardInterrupt)
    elif isinstance(loop, asyncio.SelectorEventLoop):
        # Here it may have been raised in a callback that was to bring a result.
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
    else:
        loop.run_until_complete(task)
        assert results == list(range(100))
    assert loop.run_until_complete(loop.run_in_executor(None, int)) == 0


def test_interrupted_while_a_thread_starts(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.run_in_executor(None, int)
    assert loop.run_until_complete(loop.run_in_executor(None, int)) == 0
    run(loop, loop.shutdown_default_executor())
