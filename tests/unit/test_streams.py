"""asyncio's streams over the loop: open_connection, start_server and the reading methods with their
limits.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from .protocols import receive
from .support import BIG, run, settle, tcp_pair, until

HOST = "127.0.0.1"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def stream(
    limit: int = 2**16,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]]:
    """A stream, and the bare socket at the other end."""
    ours, peer = tcp_pair()
    reader, writer = await asyncio.open_connection(sock=ours, limit=limit)
    try:
        yield reader, writer, peer
    finally:
        peer.close()
        writer.transport.abort()
        await until(lambda: ours.fileno() == -1)


async def serve(
    handler: Handler, visit: Callable[[Any, Any], Coroutine[Any, Any, None]], **kwargs: Any
) -> None:
    """Runs a server and one client against it to the end of both."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()
            done.set_result(None)

    server = await asyncio.start_server(handle, HOST, 0, **kwargs)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await visit(reader, writer)
    writer.close()
    await writer.wait_closed()
    await done
    await settle()
    server.close()
    await server.wait_closed()


async def echo_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()


def test_echo_by_lines(loop: asyncio.AbstractEventLoop) -> None:
    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(100):
            writer.write(b"line %d\n" % number)
            await writer.drain()
            assert await reader.readline() == b"line %d\n" % number
        writer.write_eof()
        assert await reader.read() == b""
        assert reader.at_eof()

    run(loop, serve(echo_lines, visit))


def test_echo_of_much(loop: asyncio.AbstractEventLoop) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = os.urandom(BIG)

        async def send() -> None:
            for start in range(0, BIG, 50_000):
                writer.write(data[start : start + 50_000])
                await writer.drain()
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        assert await reader.read() == data
        await sending

    run(loop, serve(echo, visit))


def test_many_clients(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await echo_lines(reader, writer)
            writer.close()

        server = await asyncio.start_server(handle, HOST, 0)

        async def visit(number: int) -> None:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for turn in range(10):
                writer.write(b"%d.%d\n" % (number, turn))
                assert await reader.readline() == b"%d.%d\n" % (number, turn)
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*(visit(number) for number in range(50)))
        await settle()
        server.close()
        await server.wait_closed()
        await until(lambda: len(asyncio.all_tasks()) <= 2)

    run(loop, main())


def test_unix_streams(loop: asyncio.AbstractEventLoop) -> None:
    async def main(path: str) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await echo_lines(reader, writer)
            writer.close()

        server = await asyncio.start_unix_server(handle, path)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"by unix\n")
        assert await reader.readline() == b"by unix\n"
        writer.close()
        await writer.wait_closed()
        await settle()
        server.close()
        await server.wait_closed()

    with tempfile.TemporaryDirectory() as folder:
        run(loop, main(os.path.join(folder, "socket")))


# Reading


def test_readline(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (reader, _, peer):
            peer.send(b"one\ntwo\nthr")
            assert await reader.readline() == b"one\n"
            assert await reader.readline() == b"two\n"
            peer.send(b"ee\nunfinished")
            assert await reader.readline() == b"three\n"
            peer.close()
            assert await reader.readline() == b"unfinished"
            assert await reader.readline() == b""

    run(loop, main())


def test_readline_byte_by_byte(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (reader, _, peer):
            line = asyncio.ensure_future(reader.readline())
            for byte in b"slowly\n":
                assert not line.done()
                peer.send(bytes([byte]))
                await settle(2)
            assert await line == b"slowly\n"

    run(loop, main())


def test_readline_beyond_the_limit(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream(limit=16) as (reader, _, peer):
            peer.send(b"x" * 30 + b"\nnext\n")
            with pytest.raises(
                ValueError,
                match="^Separator is (not )?found, (but|and) chunk (is longer than|exceed the) limit$",
            ):
                await reader.readline()
            assert await reader.readline() == b"next\n"

    run(loop, main())


def test_readexactly(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (reader, _, peer):
            peer.send(b"abcdefgh")
            assert await reader.readexactly(0) == b""
            assert await reader.readexactly(3) == b"abc"
            reading = asyncio.ensure_future(reader.readexactly(8))
            await settle()
            peer.send(b"ij")
            await settle()
            assert not reading.done()
            peer.send(b"klm")
            assert await reading == b"defghijk"
            peer.close()
            with pytest.raises(asyncio.IncompleteReadError) as raised:
                await reader.readexactly(10)
            assert raised.value.partial == b"lm"
            assert raised.value.expected == 10
            with pytest.raises(ValueError, match="^readexactly size can not be less than zero$"):
                await reader.readexactly(-1)

    run(loop, main())


def test_readexactly_more_than_the_limit(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream(limit=100) as (reader, _, peer):
            data = os.urandom(100_000)
            sending = asyncio.ensure_future(loop.sock_sendall(peer, data))
            assert await reader.readexactly(100_000) == data
            await sending

    run(loop, main())


def test_readuntil(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream(limit=32) as (reader, _, peer):
            peer.send(b"head--body--")
            assert await reader.readuntil(b"--") == b"head--"
            assert await reader.readuntil(b"--") == b"body--"
            peer.send(b"x" * 40 + b"--tail")
            with pytest.raises(asyncio.LimitOverrunError) as raised:
                await reader.readuntil(b"--")
            assert raised.value.consumed == 40
            assert await reader.readexactly(42) == b"x" * 40 + b"--"
            peer.close()
            with pytest.raises(asyncio.IncompleteReadError) as incomplete:
                await reader.readuntil(b"--")
            assert incomplete.value.partial == b"tail"
            with pytest.raises(
                ValueError, match="^Separator should (be at least one-byte string|contain .*)$"
            ):
                await reader.readuntil(b"")

    run(loop, main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="several separators came with Python 3.13")
def test_readuntil_one_of_several(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (reader, _, peer):
            peer.send(b"a\r\nb\nc\r\n")
            separators: Any = (b"\r\n", b"\n")
            assert await reader.readuntil(separators) == b"a\r\n"
            assert await reader.readuntil(separators) == b"b\n"
            assert await reader.readuntil(separators) == b"c\r\n"

    run(loop, main())


def test_async_for(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (reader, _, peer):
            peer.send(b"a\nb\nc")
            peer.close()
            assert [line async for line in reader] == [b"a\n", b"b\n", b"c"]

    run(loop, main())


def test_a_reader_that_lags_pauses_the_transport(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream(limit=1000) as (reader, writer, peer):
            transport: Any = writer.transport
            data = os.urandom(1_000_000)
            sending = asyncio.ensure_future(loop.sock_sendall(peer, data))
            await until(lambda: not transport.is_reading())
            assert not sending.done()
            received = bytearray()
            while len(received) < len(data):
                received += await reader.read(5000)
            await sending
            assert received == data
            assert transport.is_reading()

    run(loop, main())


def test_two_readers_at_once(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (reader, _, peer):
            first = asyncio.ensure_future(reader.readline())
            await settle()
            message = r"^readuntil\(\) called while another coroutine is already waiting for incoming data$"
            with pytest.raises(RuntimeError, match=message):
                await reader.readline()
            peer.send(b"line\n")
            assert await first == b"line\n"

    run(loop, main())


def test_a_cancelled_read_loses_nothing(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (reader, _, peer):
            for number in range(50):
                reading = asyncio.ensure_future(reader.readexactly(4))
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                reading.cancel()
                await asyncio.wait([reading])
                peer.send(b"%04d" % number)
                assert await reader.readexactly(4) == b"%04d" % number

    run(loop, main())


# Writing


def test_drain_waits_for_a_slow_peer(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (_, writer, peer):
            writer.write(b"x" * BIG)
            draining = asyncio.ensure_future(writer.drain())
            await settle()
            assert not draining.done()
            assert len(await receive(peer, BIG)) == BIG
            await draining
            await writer.drain()

    run(loop, main())


def test_drain_after_the_connection_is_lost(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (_, writer, __):
            writer.write(b"x" * BIG)
            draining = asyncio.ensure_future(writer.drain())
            await settle()
            writer.transport.abort()
            await draining  # it waited for room, not for the data to arrive
            with pytest.raises(ConnectionResetError, match="Connection lost"):
                await writer.drain()
            assert writer.is_closing()

    run(loop, main())


def test_writelines_and_extra_info(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (_, writer, peer):
            writer.writelines([b"a", b"b", b"c"])
            assert await receive(peer, 3) == b"abc"
            assert writer.get_extra_info("sockname") == peer.getpeername()
            assert writer.can_write_eof()

    run(loop, main())


def test_wait_closed(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with stream() as (reader, writer, peer):
            writer.write(b"bye")
            writer.close()
            await writer.wait_closed()
            await writer.wait_closed()
            assert await receive(peer, 10) == b"bye"
            assert await reader.read() == b""

    run(loop, main())
