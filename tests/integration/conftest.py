"""Fixtures of the integration tests: the loop to run on, and the application served on it.

Each test runs on asyncio's own loop as well: there it has to pass too, so that a fault of the library, or of
the test, is told from one of ours.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trustme

from .application import loop_factory
from .serving import Certificate, Server, in_a_process, in_this_loop

LOOPS = {"asyncio": "asyncio:SelectorEventLoop", "mioloop": "mioloop:new_event_loop"}
SAFETY = 60  # seconds; ends a test that would otherwise hang

Run = Callable[[Coroutine[Any, Any, None]], None]
Serve = Callable[[], AbstractAsyncContextManager[Server]]


@pytest.fixture(scope="module", params=LOOPS)
def loop_name(request: pytest.FixtureRequest) -> str:
    """What makes the loop under test, as `module:attribute`."""
    return LOOPS[request.param]


@pytest.fixture
def run(loop_name: str) -> Run:
    """Runs a coroutine on the loop under test. Nothing may reach the exception handler or leak."""

    def run(main: Coroutine[Any, Any, None]) -> None:
        reported: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=loop_factory(loop_name)) as runner:
            runner.get_loop().set_exception_handler(lambda _loop, context: reported.append(context))
            runner.run(asyncio.wait_for(main, SAFETY))
            # What was not closed, and exceptions that nobody retrieved, are reported when they die.
            gc.collect()
        assert not reported

    return run


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    authority = trustme.CA()
    file = tmp_path_factory.mktemp("certificate") / "server.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))
    return Certificate(authority, file)


@pytest.fixture(params=["http-one-loop", "https-one-loop", "http-two-processes", "https-two-processes"])
def serve(request: pytest.FixtureRequest, loop_name: str, certificate: Certificate) -> Serve:
    """Serves the application in the test's loop or in a process on the same kind of loop."""
    scheme, place = request.param.split("-", 1)
    tls = certificate if scheme == "https" else None
    return lambda: in_this_loop(tls) if place == "one-loop" else in_a_process(loop_name, tls)
