"""A protocol that raises: asyncio's own context for the exception handler, and the exception in
connection_lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .protocols import BufferedRecorder, Recorder, connected
from .support import BIG, Caught, run, settle, until


class Boom(Exception):
    """What the protocols raise."""


def check(caught: Caught, message: str, protocol: Recorder) -> None:
    context = caught.take()
    assert set(context) == {"message", "exception", "transport", "protocol"}
    assert context["message"] == message
    assert isinstance(context["exception"], Boom)
    assert context["transport"] is protocol.transport
    assert context["protocol"] is protocol


def test_data_received(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Raising(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise Boom

    async def main() -> None:
        async with connected(Raising()) as (transport, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.is_lost)
            check(caught, "Fatal error: protocol.data_received() call failed.", protocol)
            assert isinstance(protocol.loss, Boom)
            assert protocol.names == ["made", "data", "lost"]
            assert transport.is_closing()

    run(loop, main())


def test_eof_received(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Raising(Recorder):
        def eof_received(self) -> None:
            raise Boom

    async def main() -> None:
        async with connected(Raising()) as (_, protocol, peer):
            peer.close()
            await until(lambda: protocol.is_lost)
            check(caught, "Fatal error: protocol.eof_received() call failed.", protocol)
            assert isinstance(protocol.loss, Boom)

    run(loop, main())


def test_buffer_updated(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Raising(BufferedRecorder):
        def buffer_updated(self, nbytes: int) -> None:
            raise Boom

    async def main() -> None:
        async with connected(Raising()) as (_, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.is_lost)
            check(caught, "Fatal error: protocol.buffer_updated() call failed.", protocol)
            assert isinstance(protocol.loss, Boom)

    run(loop, main())


def test_get_buffer(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Raising(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> Any:
            raise Boom

    async def main() -> None:
        async with connected(Raising()) as (_, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.is_lost)
            check(caught, "Fatal error: protocol.get_buffer() call failed.", protocol)
            assert isinstance(protocol.loss, Boom)

    run(loop, main())


def test_an_empty_buffer(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    async def main() -> None:
        async with connected(BufferedRecorder(0)) as (_, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.is_lost)
            context = caught.take()
            assert context["message"] == "Fatal error: protocol.get_buffer() call failed."
            assert isinstance(context["exception"], RuntimeError)
            assert str(context["exception"]) == "get_buffer() returned an empty buffer"
            assert protocol.loss is context["exception"]

    run(loop, main())


@pytest.mark.parametrize("wrong", [None, 5, b"read-only", "text"])
def test_a_wrong_buffer(loop: asyncio.AbstractEventLoop, caught: Caught, wrong: object) -> None:
    class Wrong(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> Any:
            return wrong

    async def main() -> None:
        async with connected(Wrong()) as (_, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.is_lost)
            context = caught.take()
            assert isinstance(context["exception"], TypeError)
            assert context["message"] in (
                "Fatal error: protocol.get_buffer() call failed.",
                "Fatal read error on socket transport",
            )
            assert protocol.loss is context["exception"]

    run(loop, main())


@pytest.mark.normal_mode
def test_connection_made(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    """A plain callback to the loop: it is reported, and the connection lives."""

    class Raising(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            raise Boom

    async def main() -> None:
        async with connected(Raising()) as (transport, protocol, peer):
            context = caught.take()
            assert set(context) == {"message", "exception", "handle"}
            assert context["message"].startswith("Exception in callback ")
            assert "connection_made" in context["message"]
            assert isinstance(context["exception"], Boom)
            assert isinstance(context["handle"], asyncio.Handle)
            assert not transport.is_closing()
            peer.send(b"works")
            await until(lambda: protocol.data)
            assert protocol.names == ["made", "data"]

    run(loop, main())


@pytest.mark.normal_mode
def test_connection_lost(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Raising(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            raise Boom

    async def main() -> None:
        async with connected(Raising()) as (transport, protocol, _):
            sock = transport.get_extra_info("socket")
            transport.close()
            await until(lambda: protocol.is_lost)
            await settle()
            context = caught.take()
            assert set(context) == {"message", "exception", "handle"}
            assert context["message"].startswith("Exception in callback ")
            assert isinstance(context["exception"], Boom)
            assert sock.fileno() == -1  # the socket is closed all the same
            assert protocol.names == ["made", "lost"]

    run(loop, main())


def test_connection_lost_after_another_error(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Raising(Recorder):
        def data_received(self, data: bytes) -> None:
            raise Boom("first")

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            raise Boom("second")

    async def main() -> None:
        async with connected(Raising()) as (_, protocol, peer):
            peer.send(b"x")
            await until(lambda: len(caught) == 2)
            assert [str(context["exception"]) for context in caught] == ["first", "second"]
            assert str(protocol.loss) == "first"
            caught.clear()

    run(loop, main())


def test_pause_writing(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Raising(Recorder):
        def pause_writing(self) -> None:
            raise Boom

    async def main() -> None:
        async with connected(Raising()) as (transport, protocol, _):
            transport.write(b"x" * BIG)
            check(caught, "protocol.pause_writing() failed", protocol)
            assert not transport.is_closing()

    run(loop, main())


def test_resume_writing(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Raising(Recorder):
        def resume_writing(self) -> None:
            raise Boom

    async def main() -> None:
        async with connected(Raising()) as (transport, protocol, peer):
            transport.write(b"x" * BIG)
            while not caught:
                await loop.sock_recv(peer, 1 << 18)
            check(caught, "protocol.resume_writing() failed", protocol)
            assert not transport.is_closing()

    run(loop, main())


def test_errors_of_the_operating_system_are_not_reported(loop: asyncio.AbstractEventLoop) -> None:
    """An OSError is taken for a fault of the network, wherever it came from: for connection_lost alone."""
    error = ConnectionAbortedError("as if by the network")

    class Raising(Recorder):
        def data_received(self, data: bytes) -> None:
            raise error

    async def main() -> None:
        async with connected(Raising()) as (_, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.is_lost)
            assert protocol.loss is error

    run(loop, main())


@pytest.mark.parametrize("error", [GeneratorExit(), asyncio.CancelledError()])
def test_base_exceptions_are_reported(
    loop: asyncio.AbstractEventLoop, caught: Caught, error: BaseException
) -> None:
    class Raising(Recorder):
        def data_received(self, data: bytes) -> None:
            raise error

    async def main() -> None:
        async with connected(Raising()) as (_, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.is_lost)
            assert caught.take()["exception"] is error
            assert protocol.loss is error

    run(loop, main())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("method", ["connection_made", "data_received", "eof_received", "connection_lost"])
def test_these_leave_the_loop(
    loop: asyncio.AbstractEventLoop, kind: type[BaseException], method: str
) -> None:
    class Leaving(Recorder):
        def note(self, name: str, argument: Any = None) -> None:
            super().note(name, argument)
            if (
                name
                == {"connection_made": "made", "data_received": "data", "eof_received": "eof"}.get(
                    method, "lost"
                )
                and not left
            ):
                left.append(name)
                raise kind

    left: list[str] = []
    ready: list[int] = []

    async def main() -> None:
        async with connected(Leaving()) as (_, protocol, peer):
            ready.append(1)
            peer.send(b"x")
            await until(lambda: protocol.data or left)
            peer.shutdown(1)
            await until(lambda: protocol.is_lost)

    task = loop.create_task(main())
    with pytest.raises(kind):
        loop.run_until_complete(task)
    assert left
    loop.run_until_complete(task)
