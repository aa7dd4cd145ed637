"""Debug mode: slow callbacks are logged, wrong callbacks refused, the origin of coroutines tracked."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .protocols import Recorder
from .support import pipe, run, run_once, until

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("COLOUR", default="none")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


async def coroutine_function() -> None: ...


@pytest.mark.normal_mode
def test_set_debug(loop: asyncio.AbstractEventLoop) -> None:
    assert loop.get_debug() is False
    loop.set_debug(True)
    assert loop.get_debug() is True
    assert "debug=True" in repr(loop)
    loop.set_debug(False)
    assert loop.get_debug() is False


def test_set_debug_while_running(loop: asyncio.AbstractEventLoop) -> None:
    """The origin tracking follows at the next turn of the loop, and ends with the run."""
    depths: list[int] = []

    async def main() -> None:
        loop.set_debug(True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        depths.append(sys.get_coroutine_origin_tracking_depth())
        loop.set_debug(False)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        depths.append(sys.get_coroutine_origin_tracking_depth())
        loop.set_debug(True)
        await asyncio.sleep(0)

    run(loop, main())
    assert depths[0] > 0
    assert depths[1] == 0
    assert sys.get_coroutine_origin_tracking_depth() == 0


@pytest.mark.normal_mode
def test_the_origin_of_coroutines_is_tracked(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> object:
        coroutine: Any = coroutine_function()
        coroutine.close()
        return coroutine.cr_origin

    assert run(loop, main()) is None
    loop.set_debug(True)
    assert run(loop, main()) is not None


@pytest.mark.parametrize(
    "command",
    [["-X", "dev"], []],
    ids=["-X dev", "PYTHONASYNCIODEBUG=1"],
)
def test_the_environment_turns_it_on(loop_factory: Callable[[], Any], command: list[str]) -> None:
    module = loop_factory.__module__
    name = loop_factory.__qualname__
    if module.startswith("asyncio."):
        module, name = "asyncio", "SelectorEventLoop"
    script = f"import {module.split('.')[0]} as m; l = m.{name}(); print(l.get_debug()); l.close()"
    environment = dict(os.environ)
    environment.pop("PYTHONASYNCIODEBUG", None)
    if not command:
        environment["PYTHONASYNCIODEBUG"] = "1"
    result = subprocess.run(
        [sys.executable, *command, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.returncode) == ("True\n", 0), result.stderr


def test_slow_callbacks_are_logged(loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture) -> None:
    def slow() -> None: ...

    loop.set_debug(True)
    loop.slow_callback_duration = 0.0  # so that everything is slow
    loop.call_soon(slow)
    run_once(loop)
    messages = [message for message in warnings_of(caplog) if "slow()" in message]
    assert len(messages) == 1
    assert messages[0].startswith("Executing <Handle ")
    assert f"slow() at {__file__}:" in messages[0]
    assert " created at " in messages[0]
    assert re.search(r" took \d+\.\d{3} seconds$", messages[0])


def test_a_callback_that_cancels_its_handle_is_still_named(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    handles: list[asyncio.Handle] = []

    def slow() -> None:
        handles[0].cancel()

    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    handles.append(loop.call_soon(slow))
    run_once(loop)
    assert any("cancelled" in message and "slow()" in message for message in warnings_of(caplog))


def test_slow_task_steps_name_the_task(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow_main() -> None:
        time.sleep(0.002)

    loop.set_debug(True)
    loop.slow_callback_duration = 0.001
    loop.run_until_complete(slow_main())
    assert any(
        message.startswith("Executing <Task ") and "slow_main() " in message
        for message in warnings_of(caplog)
    )


def test_slow_timers_and_readers_are_logged(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def slow_timer() -> None: ...

    def slow_reader() -> None:
        os.read(reader, 1)

    reader, writer = pipe()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    loop.call_later(0, slow_timer)
    loop.add_reader(reader, slow_reader)
    os.write(writer, b"x")
    run_once(loop)
    run_once(loop)
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)
    assert any("slow_timer" in message for message in warnings_of(caplog))
    assert any("slow_reader" in message for message in warnings_of(caplog))


@pytest.mark.normal_mode
def test_nothing_is_logged_when_debug_is_off(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.slow_callback_duration = 0.0
    loop.call_soon(time.sleep, 0.002)
    run_once(loop)
    assert warnings_of(caplog) == []


def test_slow_callback_duration(loop: asyncio.AbstractEventLoop) -> None:
    assert loop.slow_callback_duration == 0.1
    loop.slow_callback_duration = 5
    assert loop.slow_callback_duration == 5


METHODS: dict[str, Callable[[Any, object], object]] = {
    "call_soon": lambda loop, callback: loop.call_soon(callback),
    "call_soon_threadsafe": lambda loop, callback: loop.call_soon_threadsafe(callback),
    "call_at": lambda loop, callback: loop.call_at(1, callback),
}


@pytest.mark.parametrize("method", METHODS)
def test_coroutines_are_no_callbacks(loop: asyncio.AbstractEventLoop, method: str) -> None:
    loop.set_debug(True)
    coroutine = coroutine_function()
    for wrong in (coroutine, coroutine_function):
        with pytest.raises(TypeError, match=rf"^coroutines cannot be used with {method}\(\)$"):
            METHODS[method](loop, wrong)
    coroutine.close()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_callable_is_no_callback(loop: asyncio.AbstractEventLoop, method: str) -> None:
    loop.set_debug(True)
    message = rf"^a callable object was expected by {method}\(\), got 'text'$"
    with pytest.raises(TypeError, match=message):
        METHODS[method](loop, "text")


def test_call_later_checks_as_call_at_does(loop: Any) -> None:
    loop.set_debug(True)
    with pytest.raises(TypeError, match=r"^coroutines cannot be used with call_at\(\)$"):
        loop.call_later(1, coroutine_function)
    with pytest.raises(TypeError, match=r"^a callable object was expected by call_at\(\), got None$"):
        loop.call_later(1, None)


def test_a_coroutine_that_was_never_awaited_is_named(loop: asyncio.AbstractEventLoop) -> None:
    loop.set_debug(True)

    async def main() -> None:
        with pytest.warns(RuntimeWarning, match="coroutine 'coroutine_function' was never awaited"):
            coroutine_function()  # type: ignore[unused-coroutine]

    run(loop, main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_connections_are_logged(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture, tmp_path: Path, kind: str
) -> None:
    """Whose they are, where they come from, and the descriptor; in the context of whoever made the server."""
    colours: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "got a new connection" in record.getMessage():
                colours.append(COLOUR.get())

    async def main() -> None:
        COLOUR.set("red")
        if kind == "tcp":
            server = await loop.create_server(Recorder, "127.0.0.1", 0)
        else:
            server = await loop.create_unix_server(Recorder, tmp_path / "socket")
        with caplog.at_level(logging.DEBUG, "asyncio"), socket.socket(server.sockets[0].family) as sock:
            sock.connect(server.sockets[0].getsockname())
            name = sock.getsockname()
            await until(lambda: colours == ["red"])
        message = next(message for message in caplog.messages if "got a new connection" in message)
        before, after = message.split(" got a new connection from ")
        assert before == repr(server)
        assert re.match(re.escape(repr(name)) + r": <socket\.socket fd=\d+", after)
        server.close()
        await server.wait_closed()

    loop.set_debug(True)
    handler = Handler()
    logging.getLogger("asyncio").addHandler(handler)
    try:
        run(loop, main())
    finally:
        logging.getLogger("asyncio").removeHandler(handler)
