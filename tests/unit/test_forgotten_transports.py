"""A transport that nobody holds and that has nothing to do is closed by the collector; others are not."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from .protocols import receive_all
from .support import BIG, run, settle, tcp_pair, until

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


class HalfOpen(asyncio.Protocol):
    """Keeps the connection when the peer has sent all."""

    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def eof_received(self) -> bool:
        return True


class Paused(HalfOpen):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()


class PausedLater(HalfOpen):
    def data_received(self, data: bytes) -> None:
        for _ in range(3):
            self.transport.pause_reading()
            self.transport.resume_reading()
        self.transport.pause_reading()


async def forgetful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers and forgets to close."""
    writer.write(await reader.readline())


async def is_ended(peer: socket.socket) -> bool:
    """Whether the connection ends although nobody closes it."""
    for _ in range(20):
        await settle()
        gc.collect()
        try:
            return peer.recv(1) == b""
        except BlockingIOError:
            continue
        except ConnectionError:
            return True
    return False


async def connect(protocol: asyncio.Protocol) -> socket.socket:
    """The peer of a connection that only the protocol holds."""
    ours, peer = tcp_pair()
    await asyncio.get_running_loop().create_connection(lambda: protocol, sock=ours)
    return peer


@pytest.mark.parametrize("make", [HalfOpen, Paused, PausedLater])
def test_a_protocols(loop: asyncio.AbstractEventLoop, make: Callable[[], HalfOpen]) -> None:
    async def main() -> None:
        peer = await connect(make())
        peer.send(b"something")
        peer.shutdown(socket.SHUT_WR)
        assert await is_ended(peer)
        peer.close()

    run(loop, main())


def test_a_streams(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        server = await asyncio.start_server(forgetful, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.write_eof()
        ending = asyncio.ensure_future(reader.read())
        for _ in range(20):
            await settle()
            gc.collect()
        assert await ending == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_the_program_is_warned(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        peer = await connect(Paused())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert await is_ended(peer)
        assert any(str(warning.message).startswith("unclosed transport") for warning in caught)
        peer.close()

    run(loop, main())


def test_one_that_reads_is_kept(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        peer = await connect(HalfOpen())
        assert not await is_ended(peer)
        peer.shutdown(socket.SHUT_WR)
        assert await is_ended(peer)
        peer.close()

    run(loop, main())


def test_one_that_reads_again_is_kept(loop: asyncio.AbstractEventLoop) -> None:
    class Echo(HalfOpen):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()
            asyncio.get_running_loop().call_soon(transport.resume_reading)

        def data_received(self, data: bytes) -> None:
            self.transport.pause_reading()
            self.transport.write(data)
            self.transport.resume_reading()

    async def main() -> None:
        peer = await connect(Echo())
        for _ in range(3):
            await settle()
            gc.collect()
            peer.send(b"x")
            assert await asyncio.get_running_loop().sock_recv(peer, 10) == b"x"
        assert not await is_ended(peer)
        peer.shutdown(socket.SHUT_WR)
        assert await is_ended(peer)
        peer.close()

    run(loop, main())


@pytest.mark.parametrize("make", [HalfOpen, Paused])
def test_one_that_has_to_send_is_kept(loop: asyncio.AbstractEventLoop, make: Callable[[], HalfOpen]) -> None:
    """And let go of when all is sent."""

    async def main() -> None:
        protocol = make()
        peer = await connect(protocol)
        peer.shutdown(socket.SHUT_WR)
        await settle()
        protocol.transport.write(bytes(BIG))
        assert protocol.transport.get_write_buffer_size()
        del protocol
        gc.collect()
        receiving = asyncio.ensure_future(receive_all(peer))
        while not receiving.done():
            await asyncio.sleep(0.01)
            gc.collect()
        assert await receiving == bytes(BIG)
        peer.close()

    run(loop, main())


def test_one_that_closes_is_kept(loop: asyncio.AbstractEventLoop) -> None:
    lost = []

    class Closing(Paused):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.append(exc)

    async def main() -> None:
        protocol = Closing()
        peer = await connect(protocol)
        protocol.transport.write(bytes(BIG))
        protocol.transport.close()
        del protocol
        gc.collect()
        assert await receive_all(peer) == bytes(BIG)
        await until(lambda: lost)
        assert lost == [None]
        peer.close()

    run(loop, main())


def test_its_number_is_free(loop: asyncio.AbstractEventLoop) -> None:
    """What gets the number next is not mistaken for it."""

    async def main() -> None:
        running = asyncio.get_running_loop()
        for _ in range(20):
            peer = await connect(Paused())
            assert await is_ended(peer)
            peer.close()
            left, right = tcp_pair()
            readable = asyncio.Event()
            running.add_reader(left, readable.set)
            right.send(b"x")
            await asyncio.wait_for(readable.wait(), 10)
            assert running.remove_reader(left)
            left.close()
            right.close()

    run(loop, main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="servers know their connections from 3.13 on")
def test_a_server_does_not_wait_for_it(loop: asyncio.AbstractEventLoop) -> None:
    made = []

    class Kept(Paused):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            made.append(self)

    def forget() -> None:
        made.clear()
        gc.collect()

    async def main() -> None:
        running = asyncio.get_running_loop()
        server = await running.create_server(Kept, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            await until(lambda: made)
            server.close()
            running.call_later(0.05, forget)
            await asyncio.wait_for(server.wait_closed(), 10)

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio reports a context that is entered already, from 3.15 on for ever")
def test_resuming_within_a_run_within_a_callback(loop: Any) -> None:
    names: list[str] = []

    class Nested(asyncio.Protocol):
        transport: Any

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(bytes(BIG))
            received = 0
            while received < BIG:
                try:
                    received += len(peer.recv(1 << 20))
                except BlockingIOError:
                    loop.call_soon(int)
                    loop._run_once()
            names.append("drained")

        def resume_writing(self) -> None:
            names.append("resumed")

    ours, peer = tcp_pair()
    transport, _ = run(loop, loop.create_connection(Nested, sock=ours))
    loop.set_exception_handler(lambda _loop, _context: None)
    peer.send(b"x")

    async def wait() -> None:
        await until(lambda: len(names) == 2)

    run(loop, wait())
    assert sorted(names) == ["drained", "resumed"]
    transport.abort()
    run(loop, settle())
    peer.close()
