"""What a stream transport tells of itself: extra info, classes, repr, a warning when nobody closed it."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import weakref
from asyncio.trsock import TransportSocket
from typing import Any

import pytest

from .protocols import Recorder, connected
from .support import BIG, reset, run, run_until, socketpair, tcp_pair, until


def test_extra_info(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        async with connected(Recorder(), (ours, theirs)) as (transport, _, __):
            assert transport.get_extra_info("sockname") == ours.getsockname()
            assert transport.get_extra_info("peername") == ours.getpeername()
            assert transport.get_extra_info("nothing") is None
            assert transport.get_extra_info("nothing", 5) == 5
            assert transport.get_extra_info("nothing", default="default") == "default"
            assert transport.get_extra_info("peername", 5) == ours.getpeername()

    run(loop, main())


def test_the_socket(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        async with connected(Recorder(), (ours, theirs)) as (transport, _, __):
            sock = transport.get_extra_info("socket")
            assert isinstance(sock, TransportSocket)
            assert sock.fileno() == ours.fileno()
            assert sock.family == socket.AF_INET
            assert sock.getsockname() == ours.getsockname()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert transport.get_extra_info("socket") is sock

    run(loop, main())


def test_the_names_of_unix_sockets(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder(), socketpair()) as (transport, _, __):
            assert transport.get_extra_info("peername") == ""
            assert transport.get_extra_info("sockname") == ""
            assert transport.get_extra_info("socket").family == socket.AF_UNIX

    run(loop, main())


def test_a_peer_that_is_gone_already(loop: asyncio.AbstractEventLoop) -> None:
    """The name of the peer is asked for once, at the beginning; that it has none is no error."""

    async def main() -> None:
        ours, theirs = tcp_pair()
        reset(theirs)
        protocol = Recorder()
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
        assert transport.get_extra_info("peername") is None
        await until(lambda: protocol.is_lost)
        assert isinstance(protocol.loss, ConnectionResetError)

    run(loop, main())


def test_it_is_an_asyncio_transport(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, __):
            for kind in (
                asyncio.Transport,
                asyncio.ReadTransport,
                asyncio.WriteTransport,
                asyncio.BaseTransport,
            ):
                assert isinstance(transport, kind)
            assert not isinstance(transport, asyncio.DatagramTransport)
            assert weakref.ref(transport)() is transport
            assert hash(transport) == hash(transport)
            assert transport == transport

    run(loop, main())


def test_repr(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            fd = transport.get_extra_info("socket").fileno()
            name = type(transport).__name__
            await until(lambda: "read=polling" in repr(transport))
            assert repr(transport) == f"<{name} fd={fd} read=polling write=<idle, bufsize=0>>"
            transport.pause_reading()
            assert repr(transport) == f"<{name} fd={fd} read=idle write=<idle, bufsize=0>>"
            transport.write(b"x" * BIG)
            size = transport.get_write_buffer_size()
            assert repr(transport) == f"<{name} fd={fd} read=idle write=<polling, bufsize={size}>>"
            transport.close()
            assert repr(transport) == f"<{name} closing fd={fd} read=idle write=<polling, bufsize={size}>>"
            transport.abort()
            await until(lambda: protocol.is_lost)
            await asyncio.sleep(0)
            assert repr(transport) == f"<{name} closed fd={fd}>"

    run(loop, main())


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
def test_an_unclosed_transport_warns(loop: asyncio.AbstractEventLoop) -> None:
    ours, theirs = tcp_pair()

    async def main(sock: socket.socket) -> str:
        transport: Any
        transport, _ = await loop.create_connection(Recorder, sock=sock)
        transport.pause_reading()
        return re.escape(repr(transport)[:20])

    start = run(loop, main(ours))
    loop.close()
    del ours
    with pytest.warns(ResourceWarning) as warned:
        gc.collect()
    assert any(re.match(f"unclosed transport {start}", str(warning.message)) for warning in warned), list(
        warned
    )
    theirs.setblocking(True)
    assert theirs.recv(1) == b""  # and its socket is closed
    theirs.close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_reading_transport_lives_without_references(loop: asyncio.AbstractEventLoop) -> None:
    """The poller keeps it: a program may hold its protocol alone, or nothing at all."""
    log: list[bytes] = []

    class Logging(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            log.append(data)

    async def connect() -> socket.socket:
        ours, theirs = tcp_pair()
        await loop.create_connection(Logging, sock=ours)
        return theirs

    theirs = run(loop, connect())
    gc.collect()
    theirs.send(b"alive")
    run_until(loop, lambda: log)
    assert log == [b"alive"]
    theirs.close()
    run(loop, asyncio.sleep(0.01))
