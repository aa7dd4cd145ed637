"""Servers over TCP, UDP and Unix sockets, written as a program would write them, under load from `load/`.

The figure is the server process's CPU alone. The servers set no options and no buffer sizes: what users get
is what a loop does by itself.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

from .load_program import load_with
from .memory import load_idle_connections
from .row import Body, InProcess, Loop, Served

Announce = Callable[[str], None]

# Longer than the usual 100, so that a burst of connections never waits for the kernel to repeat a lost SYN.
BACKLOG = 4096


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class EchoEach(Echo):
    """Answers each message on its own, as a server whose clients pipeline their requests does."""

    SIZE = 128
    rest = b""

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        whole = len(data) - len(data) % self.SIZE
        for start in range(0, whole, self.SIZE):
            self.transport.write(data[start : start + self.SIZE])
        self.rest = data[whole:]


class EchoBuffered(asyncio.BufferedProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = memoryview(bytearray(64 * 1024))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        # A copy, as the transport may keep what it can't send at once and the buffer is about to be used
        # again.
        self.transport.write(bytes(self.buffer[:nbytes]))


class EchoDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        self.transport.sendto(data, addr)


class Bulk(asyncio.Protocol):
    """Writes a fixed amount as fast as it is taken, minding its flow control; the client hangs up."""

    CHUNK = bytes(range(256)) * 1024
    AMOUNT = 512 * 1024 * 1024
    paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.left = self.AMOUNT // len(self.CHUNK)
        self.resume_writing()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        while self.left and not self.paused:
            self.left -= 1
            self.transport.write(self.CHUNK)


async def echo_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def serve_protocol(
    protocol: Callable[[], asyncio.BaseProtocol], folder: Path, announce: Announce
) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=BACKLOG)
    announce_socket(server.sockets[0], announce)
    await forever()


async def serve_streams(folder: Path, announce: Announce) -> None:
    server = await asyncio.start_server(echo_lines, "127.0.0.1", 0, backlog=BACKLOG)
    announce_socket(server.sockets[0], announce)
    await forever()


async def serve_unix_streams(folder: Path, announce: Announce) -> None:
    path = str(folder / "echo.sock")
    async with await asyncio.start_unix_server(echo_lines, path, backlog=BACKLOG):
        announce(path)
        await forever()


async def serve_sock(folder: Path, announce: Announce) -> None:
    loop = asyncio.get_running_loop()

    async def echo(connection: socket.socket) -> None:
        with connection:
            while data := await loop.sock_recv(connection, 64 * 1024):
                await loop.sock_sendall(connection, data)

    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        listener.setblocking(False)
        announce_socket(listener, announce)
        tasks = set()
        while True:
            connection, _ = await loop.sock_accept(listener)
            tasks.add(loop.create_task(echo(connection)))


async def serve_datagrams(folder: Path, announce: Announce) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(EchoDatagrams, local_addr=("127.0.0.1", 0))
    host, port = transport.get_extra_info("sockname")
    announce(f"{host}:{port}")
    await forever()


class Ending(asyncio.Protocol):
    """Tells when the connection is over, at both ends."""

    def __init__(self) -> None:
        self.over = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result(None)


def connect_accept_close(loop: Loop) -> Body:
    """A connection's whole life with both its ends on the loop, and no data."""

    async def run(count: int) -> None:
        accepted: asyncio.Queue[Ending] = asyncio.Queue()

        def accept() -> Ending:
            protocol = Ending()
            accepted.put_nowait(protocol)
            return protocol

        server = await loop.create_server(accept, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        for _ in range(count):
            transport, protocol = await loop.create_connection(Ending, *address)
            transport.close()
            await protocol.over
            await (await accepted.get()).over
        server.close()

    return run


def announce_socket(listener: socket.socket, announce: Announce) -> None:
    host, port = listener.getsockname()
    announce(f"{host}:{port}")


serve_echo = partial(serve_protocol, Echo)
KIB = 1024
# By size in KiB and number of connections.
PROTOCOL_GOALS: dict[int, dict[int, float | None]] = {
    1: {50: 0.90, 1: None, 500: None},
    16: {50: 0.80, 1: None, 500: None},
    100: {50: 0.68, 1: None, 500: None},
}

ROWS: tuple[InProcess | Served, ...] = (
    *(
        Served(
            f"TCP echo, Protocol, {size} KiB × {connections}",
            goal,
            serve_echo,
            load_with("tcp", size=size * KIB, connections=connections),
        )
        for size, goals in PROTOCOL_GOALS.items()
        for connections, goal in goals.items()
    ),
    Served(
        "TCP echo, Protocol, 128 B pipelined by 16 × 50",
        None,
        partial(serve_protocol, EchoEach),
        load_with("tcp", size=EchoEach.SIZE, depth=16),
    ),
    Served(
        "TCP echo, BufferedProtocol, 1 KiB × 50",
        0.88,
        partial(serve_protocol, EchoBuffered),
        load_with("tcp", size=KIB),
    ),
    Served(
        "TCP echo, streams (readline), 1 KiB × 50",
        0.50,
        serve_streams,
        load_with("tcp", size=KIB, lines=True),
    ),
    Served("TCP echo, sock_recv/sock_sendall, 1 KiB × 50", 0.45, serve_sock, load_with("tcp", size=KIB)),
    Served("UDP echo, 512 B × 50", 0.75, serve_datagrams, load_with("udp", size=512)),
    Served(
        "Unix streams, readline, 1 KiB × 50",
        0.70,
        serve_unix_streams,
        load_with("unix", size=KIB, lines=True),
    ),
    Served("accept, close", None, partial(serve_protocol, asyncio.Protocol), load_with("connect")),
    InProcess("connect, accept, close", 0.90, connect_accept_close),
    Served(
        "bulk write, 512 MiB", 0.90, partial(serve_protocol, Bulk), load_with("bulk", size=Bulk.AMOUNT >> 20)
    ),
    Served("memory per idle connection", 0.70, serve_echo, load_idle_connections, measure="bytes"),
)
