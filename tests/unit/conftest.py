"""Fixtures that every unit test shares.

The idea: asyncio's own selector loop is the reference. Each behavioural test runs on it ("asyncio") and
on mioloop ("mioloop"), so a test that describes something asyncio does not do fails before it can blame
mioloop. Where mioloop promises more than asyncio, or this version of asyncio errs, the test is marked
`mioloop_only`.

The `loop` fixture records every call of the exception handler; one that the test did not take out of
`caught` fails it, and so does a task that is still pending, a ResourceWarning or an exception that nobody
could catch.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from .support import SAFETY, Caught

# The same examples in every run: a suite that fails by chance blames the wrong commit.
settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.load_profile("deterministic")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class TestHung(SystemExit):
    """A test ran for too long. A SystemExit, because every loop has to let that out of a callback."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mioloop_only(condition=True, *, reason): asyncio promises less")
    config.addinivalue_line("markers", "normal_mode: says what debug mode does otherwise")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if asyncio.coroutines._is_debug_mode() and item.get_closest_marker("normal_mode"):  # type: ignore[attr-defined]
        pytest.skip("asyncio's debug mode is on")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loop_factory" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("mioloop_only")
        alone = marker is not None and all(marker.args)
        metafunc.parametrize("loop_factory", ["mioloop"] if alone else ["asyncio", "mioloop"], indirect=True)


@pytest.fixture(scope="session", autouse=True)
def _cheap_collections() -> None:
    """Takes pytest's own objects out of the collector's sight: we collect after each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _watchdog() -> Iterator[None]:
    """Ends a test that hangs; a safety net, not a measurement."""

    def expired(_signum: int, _frame: object) -> None:
        raise TestHung(f"the test hung for {SAFETY} seconds")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(
        signal.ITIMER_REAL, SAFETY, SAFETY
    )  # again and again: the fixtures' ends may hang as well
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    if request.param == "asyncio":
        return asyncio.SelectorEventLoop
    import mioloop

    return mioloop.new_event_loop


@pytest.fixture
def caught() -> Iterator[Caught]:
    """What the loop's exception handler was called with, and what asyncio logged at level ERROR.

    A test takes out what it expects.
    """
    caught = Caught()
    logger = logging.getLogger("asyncio")
    logger.addHandler(caught.log_handler)
    yield caught
    logger.removeHandler(caught.log_handler)


@pytest.fixture
def loop(loop_factory: LoopFactory, caught: Caught) -> Iterator[asyncio.AbstractEventLoop]:
    loop = loop_factory()
    loop.set_exception_handler(caught.handler)
    yield loop
    pending: set[asyncio.Task[object]] = set()
    if not loop.is_closed():
        pending = asyncio.all_tasks(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    # Exceptions that nobody retrieved are reported when their task or future dies.
    gc.collect()
    assert not pending, f"tasks left behind: {pending}"
    assert not caught, f"the exception handler was called: {list(caught)}"


@pytest.fixture
def needs() -> Callable[[str], str]:
    """Where a program is. Without it the test is skipped; but not in CI, which has to have everything."""

    def find(program: str) -> str:
        path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is None:
            assert not os.environ.get("CI"), f"{program} is missing"
            pytest.skip(f"{program} is missing")
        return path

    return find
