"""TLS by `ssl=` and by start_tls, with a certificate made for the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
import trustme

from .protocols import Recorder
from .support import BIG, Caught, run, settle, until

HOST = "127.0.0.1"


class Contexts(NamedTuple):
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def tls() -> Contexts:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", HOST).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Contexts(server, client)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # a client that fails in the middle is what some tests are about
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def serving(context: ssl.SSLContext | None, **kwargs: Any) -> AsyncIterator[tuple[str, int]]:
    server = await asyncio.start_server(echo, HOST, 0, ssl=context, **kwargs)
    yield server.sockets[0].getsockname()
    server.close()
    await until(lambda: len(asyncio.all_tasks()) <= 2)
    await server.wait_closed()


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def test_echo(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(tls.server) as address:
            reader, writer = await asyncio.open_connection(*address, ssl=tls.client)
            for number in range(20):
                writer.write(b"%d\n" % number)
                assert await reader.readline() == b"%d\n" % number
            await closed(writer)

    run(loop, main())


def test_much_data(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(tls.server) as address:
            reader, writer = await asyncio.open_connection(*address, ssl=tls.client)
            data = os.urandom(BIG)

            async def send() -> None:
                for start in range(0, BIG, 100_000):
                    writer.write(data[start : start + 100_000])
                    await writer.drain()

            sending = asyncio.ensure_future(send())
            assert await reader.readexactly(BIG) == data
            await sending
            await closed(writer)

    run(loop, main())


def test_extra_info(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(tls.server) as address:
            _, writer = await asyncio.open_connection(*address, ssl=tls.client)
            assert writer.get_extra_info("peername") == address
            assert writer.get_extra_info("sslcontext") is tls.client
            assert isinstance(writer.get_extra_info("ssl_object"), ssl.SSLObject)
            assert writer.get_extra_info("cipher")[1].startswith("TLS")
            names = writer.get_extra_info("peercert")["subjectAltName"]
            assert ("DNS", "localhost") in names
            assert isinstance(writer.transport, asyncio.Transport)
            assert writer.transport.can_write_eof() is False
            await closed(writer)

    run(loop, main())


def test_many_connections_at_once(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(tls.server) as address:

            async def visit(number: int) -> None:
                reader, writer = await asyncio.open_connection(*address, ssl=tls.client)
                writer.write(b"%d\n" % number)
                assert await reader.readline() == b"%d\n" % number
                await closed(writer)

            await asyncio.gather(*(visit(number) for number in range(20)))

    run(loop, main())


def test_the_name_of_the_server(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(tls.server) as address:
            reader, writer = await asyncio.open_connection(
                *address, ssl=tls.client, server_hostname="localhost"
            )
            writer.write(b"x\n")
            assert await reader.readline() == b"x\n"
            await closed(writer)

    run(loop, main())


@pytest.mark.normal_mode
def test_a_wrong_name(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(tls.server) as address:
            with pytest.raises(
                ssl.SSLCertVerificationError, match="Hostname mismatch.*other.example"
            ) as raised:
                await asyncio.open_connection(*address, ssl=tls.client, server_hostname="other.example")
            assert raised.value.reason == "CERTIFICATE_VERIFY_FAILED"
            await settle()

    run(loop, main())


@pytest.mark.normal_mode
def test_an_unknown_authority(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(tls.server) as address:
            with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
                await asyncio.open_connection(*address, ssl=ssl.create_default_context())
            await settle()

    run(loop, main())


@pytest.mark.normal_mode
def test_a_client_that_does_not_speak_tls(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(tls.server) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):  # the close may cut off the alert
                await reader.read()
            await closed(writer)
            # The server goes on serving others.
            _, other = await asyncio.open_connection(*address, ssl=tls.client)
            await closed(other)

    run(loop, main())


def test_the_handshake_times_out(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """The server is a listening socket that nobody serves."""

    async def main() -> None:
        with socket.create_server((HOST, 0)) as listener:
            with pytest.raises(
                ConnectionAbortedError, match=r"^SSL handshake is taking longer than 0\.01 seconds"
            ):
                await loop.create_connection(
                    Recorder, *listener.getsockname(), ssl=tls.client, ssl_handshake_timeout=0.01
                )

    run(loop, main())


@pytest.mark.normal_mode
def test_a_handshake_that_times_out_at_the_server(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(tls.server, ssl_handshake_timeout=0.01) as address:
            reader, writer = await asyncio.open_connection(*address)
            assert await reader.read() == b""
            await closed(writer)

    run(loop, main())


def test_the_peer_closes_in_the_handshake(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        with socket.create_server((HOST, 0)) as listener:
            listener.setblocking(False)
            connecting = asyncio.ensure_future(
                loop.create_connection(Recorder, *listener.getsockname(), ssl=tls.client)
            )
            peer, _ = await loop.sock_accept(listener)
            await loop.sock_recv(peer, 100_000)  # the client's hello, lest the close be a reset
            peer.close()
            with pytest.raises(ConnectionError):
                await connecting

    run(loop, main())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("timeout", [0, -1])
def test_a_wrong_handshake_timeout(loop: asyncio.AbstractEventLoop, tls: Contexts, timeout: float) -> None:
    async def main() -> None:
        async with serving(None) as address:
            with pytest.raises(
                ValueError, match="^ssl_handshake_timeout should be a positive number, got (0|-1)$"
            ):
                await loop.create_connection(
                    Recorder, *address, ssl=tls.client, ssl_handshake_timeout=timeout
                )
            await settle()

    run(loop, main())


def test_start_tls(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """Both ends begin in the clear and upgrade, as SMTP and PostgreSQL do."""

    class Upgrading(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            if data == b"STARTTLS\n":
                self.transport.write(b"go\n")
                self.upgrade = asyncio.ensure_future(self.start())
            else:
                self.transport.write(b"secret " + data)

        async def start(self) -> None:
            transport = await loop.start_tls(self.transport, self, tls.server, server_side=True)
            assert transport is not None
            self.transport = transport
            transport.write(b"secure\n")

        def connection_lost(self, exc: Exception | None) -> None:
            lost.append(exc)

    lost: list[Exception | None] = []

    async def main() -> None:
        server = await loop.create_server(Upgrading, HOST, 0)
        client = Recorder()
        plain, _ = await loop.create_connection(lambda: client, *server.sockets[0].getsockname())
        plain.write(b"STARTTLS\n")  # type: ignore[attr-defined,unused-ignore]
        await until(lambda: client.data == b"go\n")
        secure = await loop.start_tls(plain, client, tls.client, server_hostname="localhost")
        assert secure is not None
        assert secure.get_extra_info("cipher") is not None
        await until(lambda: client.data == b"go\nsecure\n")
        secure.write(b"hello")
        await until(lambda: client.data == b"go\nsecure\nsecret hello")
        secure.close()
        await until(lambda: client.is_lost and lost)
        assert lost == [None]
        assert client.loss is None
        server.close()

    run(loop, main())


def test_start_tls_of_streams(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(tls.server)
        writer.write(b"secret " + await reader.readline())
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(handle, HOST, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(tls.client, server_hostname="localhost")
        writer.write(b"hello\n")
        assert await reader.readline() == b"secret hello\n"
        await closed(writer)
        await until(lambda: len(asyncio.all_tasks()) <= 2)
        server.close()

    run(loop, main())


def test_start_tls_wants_a_context(loop: Any, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(None) as address:
            transport, protocol = await loop.create_connection(Recorder, *address)
            message = "^sslcontext is expected to be an instance of ssl.SSLContext, got True$"
            with pytest.raises(TypeError, match=message):
                await loop.start_tls(transport, protocol, True)
            with pytest.raises(TypeError, match=r"^transport .* is not supported by start_tls\(\)$"):
                await loop.start_tls(asyncio.Transport(), protocol, tls.client)
            transport.close()
            await until(lambda: protocol.is_lost)

    run(loop, main())


def test_backpressure_through_tls(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with serving(tls.server) as address:
            client = Recorder()
            transport, _ = await loop.create_connection(lambda: client, *address, ssl=tls.client)
            transport.pause_reading()  # type: ignore[attr-defined,unused-ignore]
            sent = 0
            while "pause" not in client.names:
                transport.write(b"x" * 100_000)  # type: ignore[attr-defined,unused-ignore]
                sent += 100_000
                await asyncio.sleep(0)
            transport.resume_reading()  # type: ignore[attr-defined,unused-ignore]
            await until(lambda: sum(len(event[1]) for event in client.events if event[0] == "data") == sent)
            assert "resume" in client.names
            transport.close()
            await until(lambda: client.is_lost)

    run(loop, main())


def test_abort(loop: asyncio.AbstractEventLoop, tls: Contexts, caught: Caught) -> None:
    async def main() -> None:
        async with serving(tls.server) as address:
            client = Recorder()
            transport, _ = await loop.create_connection(lambda: client, *address, ssl=tls.client)
            transport.abort()  # type: ignore[attr-defined,unused-ignore]
            await until(lambda: client.is_lost)
            assert client.loss is None

    run(loop, main())
