"""create_connection and connect_accepted_socket: addresses, families, errors."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from .protocols import Recorder, connected
from .support import Caught, run, settle, socketpair, tcp_pair, until

HOST = "127.0.0.1"


@asynccontextmanager
async def listening(host: str = HOST) -> AsyncIterator[tuple[int, list[Recorder]]]:
    """A server; its port and its protocols."""
    protocols: list[Recorder] = []

    def factory() -> Recorder:
        protocols.append(Recorder())
        return protocols[-1]

    server = await asyncio.get_running_loop().create_server(factory, host, 0)
    yield server.sockets[0].getsockname()[1], protocols
    server.close()
    await until(lambda: all(protocol.is_lost for protocol in protocols))


async def closed(transport: Any, protocol: Any) -> None:
    transport.abort()
    await until(lambda: protocol.is_lost)


@pytest.mark.parametrize("host", [HOST, "localhost"])
def test_by_host_and_port(loop: asyncio.AbstractEventLoop, host: str) -> None:
    async def main() -> None:
        async with listening() as (port, protocols):
            transport, protocol = await loop.create_connection(Recorder, host, port)
            assert isinstance(protocol, Recorder)
            assert protocol.transport is transport
            assert transport.get_extra_info("peername") == (HOST, port)
            transport.write(b"hello")  # type: ignore[attr-defined,unused-ignore]
            await until(lambda: protocols and protocols[0].data == b"hello")
            await closed(transport, protocol)

    run(loop, main())


def test_ipv6(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("the machine has no IPv6 loopback")
        async with listening("::1") as (port, protocols):
            transport, protocol = await loop.create_connection(Recorder, "::1", port)
            assert transport.get_extra_info("peername")[:2] == ("::1", port)
            await until(lambda: protocols)
            await closed(transport, protocol)

    run(loop, main())


def test_a_local_address(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with listening() as (port, protocols):
            transport, protocol = await loop.create_connection(
                Recorder, HOST, port, local_addr=("127.0.0.3", 0)
            )
            assert transport.get_extra_info("sockname")[0] == "127.0.0.3"
            await until(lambda: protocols and protocols[0].transport)
            assert protocols[0].transport.get_extra_info("peername")[0] == "127.0.0.3"
            await closed(transport, protocol)

    run(loop, main())


def test_a_local_address_that_is_not_ours(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with listening() as (port, _):
            with pytest.raises(OSError, match="error while attempting to bind on address") as raised:
                await loop.create_connection(Recorder, HOST, port, local_addr=("192.0.2.1", 0))
            assert raised.value.errno == errno.EADDRNOTAVAIL

    run(loop, main())


def test_refused(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with socket.socket() as reserved:
            reserved.bind((HOST, 0))
            port = reserved.getsockname()[1]
            with pytest.raises(ConnectionRefusedError) as raised:
                await loop.create_connection(Recorder, HOST, port)
            assert raised.value.errno == errno.ECONNREFUSED
            assert raised.value.strerror == f"Connect call failed ('{HOST}', {port})"

    run(loop, main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="all_errors came with Python 3.12")
def test_all_errors(loop: Any) -> None:
    async def main() -> None:
        with socket.socket() as reserved:
            reserved.bind((HOST, 0))
            with pytest.raises(ExceptionGroup) as raised:
                await loop.create_connection(Recorder, HOST, reserved.getsockname()[1], all_errors=True)
            assert [type(error) for error in raised.value.exceptions] == [ConnectionRefusedError]

    run(loop, main())


def several_addresses(monkeypatch: pytest.MonkeyPatch, loop: Any, *addresses: tuple[str, int]) -> None:
    """A name with several addresses."""

    async def getaddrinfo(*_args: object, **_kwargs: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("delay", [None, 0.001])
def test_the_second_address_answers(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, delay: float | None
) -> None:
    async def main() -> None:
        with socket.socket() as reserved:
            reserved.bind((HOST, 0))
            async with listening() as (port, _):
                several_addresses(monkeypatch, loop, reserved.getsockname(), (HOST, port))
                transport, protocol = await loop.create_connection(
                    Recorder, "several.example", 1, happy_eyeballs_delay=delay
                )
                assert transport.get_extra_info("peername") == (HOST, port)
                await closed(transport, protocol)

    run(loop, main())


@pytest.mark.parametrize("delay", [None, 0.001])
def test_no_address_answers(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, delay: float | None
) -> None:
    async def main() -> None:
        with socket.socket() as one, socket.socket() as other:
            one.bind((HOST, 0))
            other.bind((HOST, 0))
            several_addresses(monkeypatch, loop, one.getsockname(), other.getsockname())
            with pytest.raises(
                OSError, match="^Multiple exceptions: .*Connect call failed.*Connect call failed"
            ):
                await loop.create_connection(Recorder, "several.example", 1, happy_eyeballs_delay=delay)

    run(loop, main())


def test_a_name_without_addresses(loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    several_addresses(monkeypatch, loop)
    with pytest.raises(OSError, match=r"^getaddrinfo\(\) returned empty list$"):
        run(loop, loop.create_connection(Recorder, "none.example", 1))


def test_a_connected_socket(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, peer = tcp_pair()
        ours.setblocking(True)
        async with connected(Recorder(), (ours, peer)) as (transport, protocol, _):
            assert ours.gettimeout() == 0
            assert transport.get_extra_info("socket").fileno() == ours.fileno()
            peer.send(b"x")
            await until(lambda: protocol.data)

    run(loop, main())


def test_connect_accepted_socket(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with socket.create_server((HOST, 0)) as listener:
            peer = socket.create_connection(listener.getsockname())
            accepted, address = listener.accept()
        transport, protocol = await loop.connect_accepted_socket(Recorder, accepted)
        assert isinstance(protocol, Recorder)
        assert transport.get_extra_info("peername") == address
        peer.send(b"x")
        await until(lambda: protocol.data)
        peer.close()
        await until(lambda: protocol.is_lost)

    run(loop, main())


def test_a_factory_that_raises(loop: asyncio.AbstractEventLoop) -> None:
    def factory() -> Recorder:
        raise LookupError("no protocol")

    ours, peer = socketpair()
    with pytest.raises(LookupError, match="no protocol"):
        run(loop, loop.create_connection(factory, sock=ours))
    ours.close()
    peer.close()


def test_cancelled_while_connecting(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    """Whatever the moment, nothing stays open or registered."""

    async def main() -> None:
        async with listening() as (port, protocols):
            for rounds in range(10):
                task = asyncio.ensure_future(loop.create_connection(Recorder, HOST, port))
                for _ in range(rounds):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    await closed(*task.result())
            await until(lambda: all(protocol.is_lost for protocol in protocols))

    run(loop, main())


def test_wrong_arguments(loop: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="^host and port was not specified and no sock specified$"):
            await loop.create_connection(Recorder)
        with socket.socket() as sock:
            with pytest.raises(
                ValueError, match="^host/port and sock can not be specified at the same time$"
            ):
                await loop.create_connection(Recorder, HOST, 1, sock=sock)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            with pytest.raises(ValueError, match="^A Stream Socket was expected, got <socket"):
                await loop.create_connection(Recorder, sock=sock)
            with pytest.raises(ValueError, match="^A Stream Socket was expected, got <socket"):
                await loop.connect_accepted_socket(Recorder, sock)
        with pytest.raises(ValueError, match="^server_hostname is only meaningful with ssl$"):
            await loop.create_connection(Recorder, HOST, 1, server_hostname="name")
        with pytest.raises(ValueError, match="^ssl_handshake_timeout is only meaningful with ssl$"):
            await loop.create_connection(Recorder, HOST, 1, ssl_handshake_timeout=1)
        with pytest.raises(ValueError, match="^You must set server_hostname when using ssl without a host$"):
            await loop.create_connection(Recorder, ssl=True, sock=object())

    run(loop, main())


# Unix sockets


def test_a_unix_server_and_connection(loop: asyncio.AbstractEventLoop) -> None:
    async def main(path: str) -> None:
        protocols: list[Recorder] = []

        def factory() -> Recorder:
            protocols.append(Recorder())
            return protocols[-1]

        server = await loop.create_unix_server(factory, path)
        transport, protocol = await loop.create_unix_connection(Recorder, path)
        assert transport.get_extra_info("peername") == path
        transport.write(b"hello")  # type: ignore[attr-defined,unused-ignore]
        await until(lambda: protocols and protocols[0].data == b"hello")
        assert protocols[0].transport.get_extra_info("sockname") == path
        protocols[0].transport.write(b"back")
        await until(lambda: protocol.data == b"back")
        await closed(transport, protocol)
        await until(lambda: protocols[0].is_lost)
        server.close()
        await server.wait_closed()

    with tempfile.TemporaryDirectory() as folder:
        run(loop, main(os.path.join(folder, "socket")))


def test_a_missing_unix_socket(loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(FileNotFoundError):
        run(loop, loop.create_unix_connection(Recorder, "/no/such/socket"))


def test_a_refused_unix_socket(loop: asyncio.AbstractEventLoop) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "socket")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
        with pytest.raises(ConnectionRefusedError):
            run(loop, loop.create_unix_connection(Recorder, path))


def test_many_connections_at_once(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with listening() as (port, protocols):
            made = await asyncio.gather(*(loop.create_connection(Recorder, HOST, port) for _ in range(100)))
            await until(lambda: len(protocols) == 100)
            for number, (transport, _) in enumerate(made):
                transport.write(b"%03d" % number)  # type: ignore[attr-defined,unused-ignore]
            await until(lambda: all(len(protocol.data) == 3 for protocol in protocols))
            assert sorted(protocol.data for protocol in protocols) == [
                b"%03d" % number for number in range(100)
            ]
            for transport, _ in made:
                transport.close()
            await until(lambda: all(protocol.is_lost for _, protocol in made))
            await settle()

    run(loop, main())


@pytest.mark.parametrize("busy", [False, True])
def test_whoever_waits_for_a_connection_goes_on_before_there_is_data(
    loop: asyncio.AbstractEventLoop, busy: bool
) -> None:
    """However soon it comes, and whatever else the loop has to do."""
    log: list[str] = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            log.append("made")

        def data_received(self, data: bytes) -> None:
            log.append("received")

    def keep_busy() -> None:
        # For long enough that each iteration looks for I/O.
        time.sleep(0.0004)
        loop.call_soon(keep_busy)

    async def main() -> None:
        if busy:
            keep_busy()
        for _ in range(20):
            log.clear()
            left, right = socketpair()
            right.send(b"there already")
            transport, _ = await loop.create_connection(Protocol, sock=left)
            log.append("connected")
            await until(lambda: "received" in log)
            assert log == ["made", "connected", "received"]
            transport.close()
            right.close()

    run(loop, main())
