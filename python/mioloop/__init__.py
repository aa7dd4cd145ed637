"""A drop-in asyncio event loop: Rust on mio.

Three ways to use it; the first two also work on Pythons that have no event loop policies any more::

    mioloop.run(main())

    with asyncio.Runner(loop_factory=mioloop.new_event_loop) as runner:
        runner.run(main())

    mioloop.install()
    asyncio.run(main())

Names and signatures are uvloop's, so that ``import mioloop as uvloop`` works.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Coroutine
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any, TypeVar

from .loop import Loop

if TYPE_CHECKING:
    from .policy import EventLoopPolicy

__all__ = ("EventLoopPolicy", "Loop", "install", "new_event_loop", "run")
__version__ = _version("mioloop")

_T = TypeVar("_T")


def new_event_loop() -> Loop:
    """Return a new event loop; the caller closes it.

    Raises OSError where the process has no descriptors left. What `asyncio.Runner` wants as its
    `loop_factory`.
    """
    return Loop()


def run(
    main: Coroutine[Any, Any, _T],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = new_event_loop,
    debug: bool | None = None,
) -> _T:
    """Run a coroutine on a new loop, close the loop and return the coroutine's result.

    `loop_factory` makes the loop; None leaves the choice to asyncio. `debug` turns asyncio's debug mode on or
    off; None leaves it to ``PYTHONASYNCIODEBUG`` and ``-X dev``.

    Raises what the coroutine raises, ValueError for what is no coroutine and RuntimeError inside a running
    loop. As `asyncio.run` from 3.12 on.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("mioloop.run() cannot be called from a running event loop")
    with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
        return runner.run(main)


def install() -> None:
    """Make mioloop the loop of every `asyncio.run` and `asyncio.new_event_loop` that follows.

    Raises ImportError on a Python that has no event loop policies (3.16 and later); give a loop factory
    there.
    """
    from .policy import EventLoopPolicy, set_event_loop_policy

    set_event_loop_policy(EventLoopPolicy())


def __getattr__(name: str) -> Any:
    # Made when it is asked for: newer Pythons warn of policies when they are touched, and then have none.
    if name == "EventLoopPolicy":
        try:
            from .policy import EventLoopPolicy
        except ImportError as error:
            raise AttributeError("this Python has no event loop policies") from error
        return EventLoopPolicy
    if name == "fs":
        # Whoever does not use files does not pay for them.
        return importlib.import_module(".fs", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
