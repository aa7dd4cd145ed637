"""The default executor of a loop: the cold half, for which `_core.ThreadPool` does what happens once per job.

To whoever looks at `loop._default_executor` it is a `ThreadPoolExecutor`: the same size, names of threads and
methods. A loop has its own, made on first use, as with asyncio.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from . import _core

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _pause() -> None:
    """Does nothing, but as every Python function it lets another thread run if one has waited for long."""


def _resolve(
    future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
        del future  # which would be a cycle: the exception's traceback holds this frame
    else:
        future.set_result(result)


class DefaultExecutor(_core.ThreadPool, ThreadPoolExecutor):
    """Runs calls in threads, which come on demand and go when they have been idle for long."""

    _idle_seconds = 30.0
    _pause = staticmethod(_pause)

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="asyncio")
        self._threads: set[threading.Thread] = set()
        _executors.add(weakref.ref(self, _executors.discard))
        if _exiting:
            self._close(exiting=True)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have `fn(*args, **kwargs)` called in a thread; return a `concurrent.futures.Future`.

        Raises RuntimeError after `shutdown`. As `concurrent.futures.Executor.submit`.
        """
        future: Future[_T] = Future()
        self._submit(future, _resolve, (future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Those that were submitted are still made, unless `cancel_futures` is true.

        wait: return when the threads have ended. As `concurrent.futures.Executor.shutdown`.
        """
        self._shutdown = True
        self._close(exiting=False)
        if cancel_futures:
            for loop, future in self._drain():
                if loop is None:
                    future.cancel()
                elif not loop.is_closed():
                    loop.call_soon_threadsafe(future.cancel)
        if wait:
            self._join()

    def _join(self) -> None:
        for thread in self._threads.copy():
            thread.join()

    def _start_thread(self, worker: _core.Worker) -> None:
        names = set()
        # Copied, because other threads may change the set meanwhile.
        for thread in self._threads.copy():
            if thread.is_alive():
                names.add(thread.name)
            else:
                self._threads.discard(thread)
        name = next(name for number in itertools.count() if (name := f"asyncio_{number}") not in names)
        thread = threading.Thread(name=name, target=worker.run)
        try:
            thread.start()
        finally:
            # It may have started in spite of a KeyboardInterrupt.
            if thread.is_alive():
                self._threads.add(thread)


_executors: set[weakref.ref[DefaultExecutor]] = set()
_exiting = False


def _after_fork() -> None:
    """The child has its parent's executors, without their threads."""
    for reference in _executors.copy():
        executor = reference()
        if executor is not None:
            executor._after_fork()
            executor._threads.clear()


os.register_at_fork(after_in_child=_after_fork)


def _exit() -> None:
    """The interpreter ends: what was submitted is done first."""
    global _exiting
    _exiting = True
    executors = [executor for reference in _executors.copy() if (executor := reference()) is not None]
    for executor in executors:
        executor._close(exiting=False)
    for executor in executors:
        executor._join()


# Not atexit, whose callbacks run when the threads have been waited for already. (This is what
# concurrent.futures does.)
threading._register_atexit(_exit)  # type: ignore[attr-defined]
