"""create_server: where it listens, when it serves, how it ends."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import sys
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from .protocols import Recorder, receive, receive_all
from .support import Caught, run, settle, until

HOST = "127.0.0.1"


class Echo(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


class Served:
    """A server's protocols, in the order of their connections."""

    def __init__(self) -> None:
        self.protocols: list[Recorder] = []

    def __call__(self) -> Recorder:
        self.protocols.append(Echo())
        return self.protocols[-1]

    @property
    def made(self) -> int:
        return sum("made" in protocol.names for protocol in self.protocols)


@asynccontextmanager
async def client(server: Any, index: int = 0) -> AsyncIterator[socket.socket]:
    """A bare socket, connected to the server."""
    listener = server.sockets[index]
    with socket.socket(listener.family) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
        yield sock


async def end(server: Any, served: Served) -> None:
    """Closes a server and sees all of its connections off."""
    server.close()
    for protocol in served.protocols:
        if protocol.transport is not None:
            protocol.transport.abort()
    await until(lambda: all(protocol.is_lost for protocol in served.protocols))
    await server.wait_closed()


def test_connections_are_served(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, HOST, 0)
        assert isinstance(server, asyncio.AbstractServer)
        for number in range(5):
            async with client(server) as sock:
                sock.send(b"%d" % number)
                assert await receive(sock, 1) == b"%d" % number
                transport = served.protocols[number].transport
                assert transport.get_extra_info("peername") == sock.getsockname()
                assert transport.get_extra_info("sockname") == sock.getpeername()
                option = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert option == 1
                assert isinstance(transport, asyncio.Transport)
        await until(lambda: all(protocol.is_lost for protocol in served.protocols))
        assert served.protocols[0].events == [("made", None), ("data", b"0"), ("eof", None), ("lost", None)]
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_what_the_server_tells(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        server = await loop.create_server(Recorder, HOST, 0)
        assert server.is_serving()
        assert server.get_loop() is loop
        assert len(server.sockets) == 1
        assert isinstance(server.sockets[0], TransportSocket)
        host, port = server.sockets[0].getsockname()
        assert (host, port > 0) == (HOST, True)
        assert repr(server).startswith("<Server sockets=(<asyncio.TransportSocket ")
        server.close()
        assert not server.is_serving()
        assert not server.sockets
        await server.wait_closed()
        server.close()

    run(loop, main())


def test_several_hosts(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, [HOST, "127.0.0.2", HOST], 0)
        assert sorted(sock.getsockname()[0] for sock in server.sockets) == [HOST, "127.0.0.2"]
        for index in range(2):
            async with client(server, index) as sock:
                sock.send(b"x")
                assert await receive(sock, 1) == b"x"
        await end(server, served)

    run(loop, main())


@pytest.mark.parametrize("host", [None, ""])
def test_every_interface(loop: asyncio.AbstractEventLoop, host: str | None) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, host, 0, family=socket.AF_INET)
        port = server.sockets[0].getsockname()[1]
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, (HOST, port))
            await until(lambda: served.made)
        await end(server, served)

    run(loop, main())


def test_ipv6(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        served = Served()
        try:
            server = await loop.create_server(served, "::1", 0)
        except OSError:
            pytest.skip("the machine has no IPv6 loopback")
        async with client(server) as sock:
            sock.send(b"x")
            assert await receive(sock, 1) == b"x"
            assert served.protocols[0].transport.get_extra_info("peername") == sock.getsockname()
            assert len(sock.getsockname()) == 4
        await end(server, served)

    run(loop, main())


def test_a_socket_of_the_programs_own(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        served = Served()
        listener = socket.socket()
        listener.bind((HOST, 0))
        server = await loop.create_server(served, sock=listener)
        assert listener.gettimeout() == 0
        async with client(server) as sock:
            await until(lambda: served.made)
            assert sock.getpeername() == listener.getsockname()
        await end(server, served)
        assert listener.fileno() == -1

    run(loop, main())


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="the platform has no SO_REUSEPORT")
def test_reuse_port(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        one = await loop.create_server(Recorder, HOST, 0, reuse_port=True)
        port = one.sockets[0].getsockname()[1]
        other = await loop.create_server(Recorder, HOST, port, reuse_port=True)
        assert other.sockets[0].getsockname()[1] == port
        one.close()
        other.close()

    run(loop, main())


def test_reuse_address_is_the_default(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        server = await loop.create_server(Recorder, HOST, 0)
        assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) != 0
        server.close()

    run(loop, main())


def test_an_address_in_use(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        server = await loop.create_server(Recorder, HOST, 0)
        address = server.sockets[0].getsockname()
        with pytest.raises(OSError) as raised:
            await loop.create_server(Recorder, *address)
        assert raised.value.errno == errno.EADDRINUSE
        assert "error while attempting to bind on address" in str(raised.value)
        server.close()

    run(loop, main())


def test_start_serving_later(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, HOST, 0, start_serving=False)
        assert not server.is_serving()
        with socket.socket() as sock:
            sock.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await loop.sock_connect(sock, server.sockets[0].getsockname())
        await server.start_serving()
        await server.start_serving()
        assert server.is_serving()
        async with client(server):
            await until(lambda: served.made)
        await end(server, served)

    run(loop, main())


def test_a_closed_port_refuses(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        server = await loop.create_server(Recorder, HOST, 0)
        address = server.sockets[0].getsockname()
        server.close()
        await server.wait_closed()
        await settle(2)
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Recorder, *address)

    run(loop, main())


def test_closing_the_server_leaves_its_connections(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, HOST, 0)
        async with client(server) as sock:
            await until(lambda: served.made)
            server.close()
            await settle()
            sock.send(b"still served")
            assert await receive(sock, 12) == b"still served"
        await end(server, served)

    run(loop, main())


def test_what_waits_to_be_accepted_is_dropped_with_the_server(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, HOST, 0)
        sock = socket.create_connection(server.sockets[0].getsockname())
        server.close()
        await settle()
        assert served.made == 0
        sock.close()

    run(loop, main())


# wait_closed, serve_forever, async with


@pytest.mark.skipif(sys.version_info < (3, 13), reason="before Python 3.13 wait_closed did not always wait")
def test_wait_closed_waits_for_server_and_connections(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, HOST, 0)
        waiting = asyncio.ensure_future(server.wait_closed())
        await settle()
        assert not waiting.done()
        async with client(server):
            await until(lambda: served.made)
            server.close()
            await settle()
            assert not waiting.done()
        await waiting
        assert served.protocols[0].is_lost

    run(loop, main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="close_clients came with Python 3.13")
def test_close_clients(loop: Any) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, HOST, 0)
        async with client(server) as one, client(server) as other:
            await until(lambda: served.made == 2)
            server.close()
            server.close_clients()
            assert await receive_all(one) == b""
            assert await receive_all(other) == b""
            await server.wait_closed()
        assert [protocol.loss for protocol in served.protocols] == [None, None]

    run(loop, main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="abort_clients came with Python 3.13")
def test_abort_clients(loop: Any) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, HOST, 0)
        async with client(server):
            await until(lambda: served.made)
            served.protocols[0].transport.write(b"x" * 10_000_000)
            server.close()
            server.abort_clients()
            await server.wait_closed()
        assert served.protocols[0].loss is None

    run(loop, main())


def test_serve_forever(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, HOST, 0, start_serving=False)
        serving = asyncio.ensure_future(server.serve_forever())
        await until(server.is_serving)
        with pytest.raises(
            RuntimeError, match=r"^server <.*> is already being awaited on serve_forever\(\)$"
        ):
            await server.serve_forever()
        async with client(server):
            await until(lambda: served.made)
        await until(lambda: served.protocols[0].is_lost)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not server.is_serving()
        with pytest.raises(RuntimeError, match=r"^server <.*> is closed$"):
            await server.serve_forever()

    run(loop, main())


def test_serve_forever_ends_with_close(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        server = await loop.create_server(Recorder, HOST, 0)
        serving = asyncio.ensure_future(server.serve_forever())
        await settle()
        server.close()
        with pytest.raises(asyncio.CancelledError):
            await serving

    run(loop, main())


def test_async_with(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        server = await loop.create_server(Recorder, HOST, 0)
        async with server as entered:
            assert entered is server
            assert server.is_serving()
        assert not server.is_serving()
        assert not server.sockets

    run(loop, main())


# Wrong arguments


def test_wrong_arguments(loop: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="^Neither host/port nor sock were specified$"):
            await loop.create_server(Recorder)
        with socket.socket() as sock:
            with pytest.raises(
                ValueError, match="^host/port and sock can not be specified at the same time$"
            ):
                await loop.create_server(Recorder, HOST, 0, sock=sock)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            with pytest.raises(ValueError, match="^A Stream Socket was expected, got <socket"):
                await loop.create_server(Recorder, sock=sock)
        with pytest.raises(TypeError, match="^ssl argument must be an SSLContext or None$"):
            await loop.create_server(Recorder, HOST, 0, ssl=True)
        with pytest.raises(ValueError, match="^ssl_handshake_timeout is only meaningful with ssl$"):
            await loop.create_server(Recorder, HOST, 0, ssl_handshake_timeout=1)

    run(loop, main())


# Protocol factories


@pytest.mark.normal_mode
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_factory_that_raises_drops_the_connection(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        def factory() -> Recorder:
            raise LookupError("no protocol")

        server = await loop.create_server(factory, HOST, 0)
        async with client(server) as sock:
            await settle()
            gc.collect()  # asyncio leaves the socket to the collector
            assert await receive_all(sock) == b""
        server.close()

    run(loop, main())


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_debug_mode_reports_a_factory_that_raises(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 60

    async def main() -> None:
        def factory() -> Recorder:
            raise LookupError("no protocol")

        server = await loop.create_server(factory, HOST, 0)
        async with client(server):
            await until(lambda: caught)
        server.close()
        context = caught.take()
        assert set(context) == {"message", "exception"}
        assert context["message"] == "Error on transport creation for incoming connection"
        assert str(context["exception"]) == "no protocol"

    run(loop, main())
    gc.collect()


def test_each_connection_has_its_own_protocol(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, HOST, 0)
        async with client(server) as one, client(server) as other:
            one.send(b"one")
            other.send(b"other")
            assert await receive(one, 3) == b"one"
            assert await receive(other, 5) == b"other"
            assert served.protocols[0] is not served.protocols[1]
        await end(server, served)

    run(loop, main())


def test_a_burst_of_connections(loop: asyncio.AbstractEventLoop) -> None:
    """Every one is served. (What is beyond the backlog the kernel would drop, and repeat after a second.)"""

    async def main() -> None:
        served = Served()
        server = await loop.create_server(served, HOST, 0, backlog=600)
        address = server.sockets[0].getsockname()

        async def visit(number: int) -> None:
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                await loop.sock_sendall(sock, b"%03d" % number)
                assert await receive(sock, 3) == b"%03d" % number

        await asyncio.gather(*(visit(number) for number in range(500)))
        await until(lambda: all(protocol.is_lost for protocol in served.protocols))
        assert len(served.protocols) == 500
        server.close()
        await server.wait_closed()

    run(loop, main())
