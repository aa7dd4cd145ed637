"""What users of other loops have reported, kept from coming back here: downloads that go on after the
client has closed, TLS connections that crash or lose data when they are written to from within their own
callbacks, and memory that grows with every short TLS connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from .application import server_context
from .conftest import SAFETY, Run, Serve
from .serving import Certificate, progress, until

ENDLESS = 2**40  # bytes
SEEN_ENOUGH = 1_000_000
# What may be on its way when a client closes: the kernel's buffers at both ends, and ours.
ON_THE_WAY = 64 * 2**20
MiB = 2**20


@pytest.fixture(params=["plain", "TLS"])
def tls(request: pytest.FixtureRequest, certificate: Certificate) -> Certificate | None:
    return certificate if request.param == "TLS" else None


async def soon(condition: Callable[[], object]) -> None:
    """Returns when the condition holds; the test's own time limit ends the wait if it never does."""
    while not condition():
        await asyncio.sleep(0.001)


class Endless(asyncio.Protocol):
    """Sends whenever it may, and never reads."""

    def __init__(self) -> None:
        self.sent = 0
        self.may_write = True
        self.transport: Any = None
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        asyncio.get_running_loop().call_soon(self.write)

    def write(self) -> None:
        if self.lost:
            return
        if self.may_write:
            self.transport.write(bytes(65_536))
            self.sent += 65_536
        asyncio.get_running_loop().call_soon(self.write)

    def pause_writing(self) -> None:
        self.may_write = False

    def resume_writing(self) -> None:
        self.may_write = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


# A client that closes ends the download.


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_protocol_that_sends_without_end(run: Run, tls: Certificate | None, how: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        protocols: list[Endless] = []

        def factory() -> Endless:
            protocols.append(Endless())
            return protocols[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls and server_context(tls.file))  # type: ignore[arg-type]
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls and tls.client_context())
        await reader.readexactly(SEEN_ENOUGH)
        getattr(writer.transport, how)()
        [protocol] = protocols
        await soon(lambda: protocol.lost)
        assert protocol.sent < ON_THE_WAY
        sent = protocol.sent
        for _ in range(20):
            await asyncio.sleep(0)
        assert protocol.sent == sent
        assert len(protocol.lost) == 1
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_stream_that_drains(run: Run, tls: Certificate | None, how: str) -> None:
    """`drain` raises, and so the handler ends, though it never reads."""
    sent = 0
    ended: list[BaseException] = []

    async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while True:
                writer.write(bytes(65_536))
                await writer.drain()
                sent += 65_536
                await asyncio.sleep(0)
        except ConnectionError as error:
            ended.append(error)
        writer.transport.abort()

    async def main() -> None:
        server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls and server_context(tls.file))
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls and tls.client_context())
        await reader.readexactly(SEEN_ENOUGH)
        getattr(writer.transport, how)()
        await soon(lambda: ended)
        assert sent < ON_THE_WAY
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


def test_a_client_that_closes_while_it_receives(run: Run, tls: Certificate | None) -> None:
    """In the middle of a flood: not a byte more is delivered, and the kernel tells the server."""

    class Client(asyncio.Protocol):
        def __init__(self) -> None:
            self.received = 0
            self.after = 0
            self.transport: Any = None
            self.lost: list[Exception | None] = []

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                self.after += 1
            self.received += len(data)
            if self.received > SEEN_ENOUGH:
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.append(exc)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        servers: list[Endless] = []

        def factory() -> Endless:
            servers.append(Endless())
            return servers[-1]

        context = tls and server_context(tls.file)
        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=context)  # type: ignore[arg-type]
        port = server.sockets[0].getsockname()[1]
        _, client = await loop.create_connection(Client, "127.0.0.1", port, ssl=tls and tls.client_context())  # type: ignore[arg-type]
        await soon(lambda: client.lost and servers[0].lost)
        if not tls:  # TLS takes what is on its way before the peer's farewell, and asyncio's hands it on
            assert client.after == 0
        assert client.received < ON_THE_WAY
        assert servers[0].sent < ON_THE_WAY
        assert len(client.lost) == 1
        server.close()
        await server.wait_closed()

    run(main())


def test_an_aiohttp_download_ends_with_its_response(run: Run, serve: Serve) -> None:
    """The client leaves the response unread: its connection is closed, not read to the end."""

    async def main() -> None:
        async with serve() as server, server.client() as session, server.client() as other:
            async with session.get("/download", params={"size": ENDLESS}) as response:
                await response.content.readexactly(SEEN_ENOUGH)
            await until(other, lambda done: done.gone == 1)
            assert (await progress(other)).sent < ON_THE_WAY

    run(main())


def test_an_aiohttp_session_that_closes(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as server, server.client() as other:
            async with server.client() as session:
                responses = [await session.get("/download", params={"size": ENDLESS}) for _ in range(5)]
                for response in responses:
                    await response.content.readexactly(SEEN_ENOUGH)
            await until(other, lambda done: done.gone == 5)
            assert (await progress(other)).sent < 5 * ON_THE_WAY
            for response in responses:
                response.close()

    run(main())


# TLS transports that are written to from within their own callbacks.


class Reentrant(asyncio.Protocol):
    """A server's protocol whose callbacks do something to their transport. It keeps what it has written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.received = 0
        self.events: list[str] = []
        self.transport: Any = None

    def write(self, size: int) -> None:
        """In pieces: the first fills the connection below, the next ones the TLS layer's own buffer."""
        for start in range(0, size, 100_000):
            if self.transport.is_closing():
                return
            data = os.urandom(min(100_000, size - start))
            self.written += data
            self.transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += len(data)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")


class WritesWhenPaused(Reentrant):
    """It knows no manners: told to pause, it writes more."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.write(2_000_000)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write(100_001)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.events.count("resume") < 5:
            self.write(2_000_000)
        else:
            self.transport.close()


class ClosesWhenPaused(Reentrant):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.write(2_000_000)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write(100_000)
        self.transport.close()
        self.transport.write(b"too late")


class ClosesWhenResumed(Reentrant):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.write(2_000_000)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write(500_000)
        self.transport.close()


class WritesWhenLost(Reentrant):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.write(500_000)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for _ in range(3):
            self.transport.write(b"too late")
        self.transport.close()
        self.transport.abort()


class EchoesAndCloses(Reentrant):
    """It answers each piece with two, and closes when it has had enough, with more of both under way."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.write(2 * len(data))
        if self.received > 1_000_000:
            self.transport.close()


@contextlib.asynccontextmanager
async def talking(
    certificate: Certificate, factory: Callable[[], Reentrant]
) -> AsyncIterator[tuple[list[Reentrant], asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TLS client of such a server, with small buffers in between."""
    protocols: list[Reentrant] = []

    def make() -> Reentrant:
        protocols.append(factory())
        return protocols[-1]

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        for each in (listener, sock):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(make, sock=listener, ssl=server_context(certificate.file))
        sock.setblocking(False)
        await loop.sock_connect(sock, listener.getsockname())
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=certificate.client_context(), server_hostname="localhost", limit=65_536
        )
        try:
            yield protocols, reader, writer
        finally:
            if not writer.transport.is_closing():  # asyncio's stumble when they are both closed and aborted
                writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            await soon(lambda: all("lost" in protocol.events for protocol in protocols))
            server.close()
            await server.wait_closed()


@pytest.mark.parametrize("kind", [WritesWhenPaused, ClosesWhenPaused, ClosesWhenResumed, WritesWhenLost])
def test_reentrant_writes_arrive(run: Run, certificate: Certificate, kind: type[Reentrant]) -> None:
    """All that was written before `close`, in its order, and the end once."""

    async def main() -> None:
        async with talking(certificate, kind) as ([protocol], reader, writer):
            writer.write(b"go")
            received = await reader.read()
            assert received == protocol.written
            await soon(lambda: "lost" in protocol.events)
            assert protocol.events.count("lost") == 1

    run(main())


def test_reentrant_writes_under_a_flood(run: Run, certificate: Certificate) -> None:
    """Both sides have much under way when the server closes; what the client gets is right as far as it
    goes."""

    async def main() -> None:
        async with talking(certificate, EchoesAndCloses) as ([protocol], reader, writer):

            async def flood() -> None:
                with contextlib.suppress(ConnectionError):
                    while True:
                        writer.write(os.urandom(50_000))
                        await writer.drain()
                        await asyncio.sleep(0)

            flooding = asyncio.create_task(flood())
            received = b""
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                received = await reader.read()
            assert protocol.written.startswith(received)
            await flooding
            await soon(lambda: "lost" in protocol.events)
            assert protocol.events.count("lost") == 1

    run(main())


# Memory.


def test_short_tls_connections_leave_nothing(loop_name: str, certificate: Certificate) -> None:
    command = [sys.executable, "-m", "tests.stress.short_connections", loop_name, certificate.file, "2000"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SAFETY)  # type: ignore[arg-type]
    assert result.stderr == ""
    # The objects of one connection take some ten kilobytes; these are a thousand connections.
    assert int(result.stdout) < 2 * MiB
