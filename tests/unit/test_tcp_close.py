"""How a stream transport ends: close flushes, abort does not, connection_lost comes once and last."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from .protocols import BufferedRecorder, Recorder, connected, receive_all
from .support import BIG, reset, run, settle, socketpair, until


def test_close(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            assert not transport.is_closing()
            assert transport.close() is None
            assert transport.is_closing()
            assert protocol.names == ["made"]  # connection_lost never comes from inside close
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None
            assert transport.is_closing()
            assert await receive_all(peer) == b""

    run(loop, main())


def test_connection_lost_comes_in_the_next_iteration(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            transport.close()
            await asyncio.sleep(0)
            assert protocol.is_lost

    run(loop, main())


def test_close_twice(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            transport.close()
            transport.close()
            await until(lambda: protocol.is_lost)
            transport.close()
            transport.abort()
            await settle()
            assert protocol.names == ["made", "lost"]

    run(loop, main())


def test_close_flushes(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.write(b"x" * BIG)
            transport.close()
            await settle()
            assert not protocol.is_lost
            assert len(await receive_all(peer)) == BIG
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None

    run(loop, main())


def test_nothing_is_read_after_close(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.write(b"x" * BIG)  # so that the end takes time
            transport.close()
            peer.send(b"ignored")
            await settle()
            assert "data" not in protocol.names

    run(loop, main())


def test_abort_loses_what_was_buffered(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.write(b"x" * BIG)
            buffered = transport.get_write_buffer_size()
            assert buffered > 0
            assert transport.abort() is None
            assert transport.is_closing()
            assert transport.get_write_buffer_size() == 0
            assert not protocol.is_lost
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None
            assert len(await receive_all(peer)) == BIG - buffered

    run(loop, main())


def test_abort_after_close_cuts_the_flushing(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.write(b"x" * BIG)
            transport.close()
            await settle()
            transport.abort()
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None
            assert len(await receive_all(peer)) < BIG

    run(loop, main())


def test_the_descriptor_is_closed_after_connection_lost(loop: asyncio.AbstractEventLoop) -> None:
    class Watching(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.note("fileno", self.transport.get_extra_info("socket").fileno())

    async def main() -> None:
        async with connected(Watching()) as (transport, protocol, _):
            sock = transport.get_extra_info("socket")
            transport.close()
            await until(lambda: sock.fileno() == -1)
            assert protocol.events[-1][1] > 0

    run(loop, main())


def test_the_peer_closes(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            peer.close()
            await until(lambda: protocol.is_lost)
            assert protocol.events == [("made", None), ("eof", None), ("lost", None)]
            assert transport.is_closing()

    run(loop, main())


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_the_peer_resets(loop: asyncio.AbstractEventLoop, kind: type[Recorder]) -> None:
    async def main() -> None:
        async with connected(kind()) as (transport, protocol, peer):
            reset(peer)
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "lost"]
            assert isinstance(protocol.loss, ConnectionResetError)
            assert str(protocol.loss) == "[Errno 104] Connection reset by peer"
            assert transport.is_closing()

    run(loop, main())


def test_the_peer_resets_while_we_write(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.pause_reading()
            transport.write(b"x" * BIG)
            await settle()
            reset(peer)
            await until(lambda: protocol.is_lost)
            assert isinstance(protocol.loss, (ConnectionResetError, BrokenPipeError))
            assert transport.get_write_buffer_size() == 0
            assert protocol.names == ["made", "pause", "lost"]

    run(loop, main())


def test_a_write_that_finds_the_peer_gone(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder(), socketpair()) as (transport, protocol, peer):
            peer.close()
            transport.write(b"x")
            assert transport.is_closing()
            assert not protocol.is_lost
            await until(lambda: protocol.is_lost)
            assert isinstance(protocol.loss, BrokenPipeError)
            assert protocol.names == ["made", "lost"]

    run(loop, main())


def test_a_reset_of_a_paused_transport_is_seen_later(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.pause_reading()
            await settle()
            reset(peer)
            await settle()
            transport.resume_reading()
            await until(lambda: protocol.is_lost)
            assert isinstance(protocol.loss, ConnectionResetError)

    run(loop, main())


def test_close_in_connection_made(loop: asyncio.AbstractEventLoop) -> None:
    class Closing(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.write(b"bye")
            transport.close()

    async def main() -> None:
        async with connected(Closing()) as (transport, protocol, peer):
            assert transport.is_closing()
            assert await receive_all(peer) == b"bye"
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "lost"]

    run(loop, main())


def test_abort_in_connection_made(loop: asyncio.AbstractEventLoop) -> None:
    class Aborting(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.abort()

    async def main() -> None:
        async with connected(Aborting()) as (_, protocol, peer):
            assert await receive_all(peer) == b""
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "lost"]

    run(loop, main())


def test_close_in_pause_writing(loop: asyncio.AbstractEventLoop) -> None:
    class Closing(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.close()

    async def main() -> None:
        async with connected(Closing()) as (transport, protocol, peer):
            transport.write(b"x" * BIG)
            assert transport.is_closing()
            assert len(await receive_all(peer)) == BIG
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None

    run(loop, main())


def test_abort_in_pause_writing(loop: asyncio.AbstractEventLoop) -> None:
    class Aborting(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.abort()

    async def main() -> None:
        async with connected(Aborting()) as (transport, protocol, peer):
            transport.write(b"x" * BIG)
            assert transport.is_closing()
            assert len(await receive_all(peer)) < BIG
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "pause", "lost"]

    run(loop, main())


@pytest.mark.mioloop_only(
    sys.version_info < (3, 14, 10), reason="asyncio of these versions loses the connection twice"
)
@pytest.mark.parametrize("method", ["close", "abort"])
def test_the_end_in_resume_writing(loop: asyncio.AbstractEventLoop, method: str) -> None:
    class Ending(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            getattr(self.transport, method)()

    async def main() -> None:
        async with connected(Ending()) as (transport, protocol, peer):
            transport.write(b"x" * BIG)
            while not protocol.is_lost:
                try:
                    peer.recv(1 << 20)
                except BlockingIOError:
                    await asyncio.sleep(0)
            await settle()
            assert protocol.names == ["made", "pause", "resume", "lost"]
            assert protocol.loss is None

    run(loop, main())


def test_calls_after_connection_lost(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            transport.close()
            await until(lambda: protocol.is_lost)
            await settle()
            transport.write(b"x")
            transport.write(b"")
            transport.close()
            transport.abort()
            transport.write_eof()
            transport.pause_reading()
            transport.resume_reading()
            transport.set_write_buffer_limits(high=10)
            assert transport.is_closing()
            assert not transport.is_reading()
            assert transport.can_write_eof() is True
            assert transport.get_write_buffer_size() == 0
            assert transport.get_write_buffer_limits() == (2, 10)
            assert transport.get_extra_info("peername") is not None
            assert transport.get_extra_info("socket").fileno() == -1
            assert transport.get_protocol() is None
            repr(transport)
            await settle()
            assert protocol.names == ["made", "lost"]

    run(loop, main())


def test_calls_in_connection_lost(loop: asyncio.AbstractEventLoop) -> None:
    class Busy(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.transport.write(b"too late")
            self.transport.close()
            self.transport.abort()
            self.transport.pause_reading()
            self.transport.resume_reading()

    async def main() -> None:
        async with connected(Busy()) as (_, protocol, peer):
            peer.close()
            await until(lambda: protocol.is_lost)
            await settle()
            assert protocol.names == ["made", "eof", "lost"]

    run(loop, main())


def test_an_end_from_both_sides_at_once(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        for rounds in range(6):
            async with connected(Recorder()) as (transport, protocol, peer):
                peer.close()
                for _ in range(rounds):
                    await asyncio.sleep(0)
                transport.close()
                await until(lambda protocol=protocol: protocol.is_lost)
                await settle(2)
                assert protocol.names in (["made", "lost"], ["made", "eof", "lost"])
                assert protocol.loss is None

    run(loop, main())
