"""A number is a transport's while its file is open, and another's thereafter.

A transport that outlives its descriptor must not write into whichever file has the number now, nor may a
program that closes the socket under a living transport hand the number to somebody else. Wherever a test
says "the stranger", it means a connection that got the number a transport had.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .protocols import Recorder, connected
from .support import BIG, run, run_once, run_until, settle, socketpair, tcp_pair, until


def move_away(sock: socket.socket) -> socket.socket:
    """The same under a number that no test is about."""
    moved = socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 500))
    sock.close()
    return moved


def connect_at(number: int) -> socket.socket:
    """The other end of a new connection, one end of which has that number now; nobody else had.

    TCP, because that takes whatever is sent into it: it ignores the addresses of datagrams.
    """
    with pytest.raises(OSError):
        os.fstat(number)
    left, right = map(move_away, tcp_pair())
    os.dup2(left.fileno(), number, inheritable=False)
    left.close()
    return right


@contextmanager
def stranger(number: int) -> Iterator[Callable[[], bytes]]:
    """A new connection that has the number; a function tells what comes out of its other end."""
    right = connect_at(number)

    def received() -> bytes:
        try:
            return right.recv(1000)
        except BlockingIOError:
            return b""

    yield received
    os.close(number)
    right.close()


only_one_transport = pytest.mark.mioloop_only(reason="asyncio lets both read, or closes the socket of both")


@contextmanager
def fast_switches() -> Iterator[None]:
    """Threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


# The transport is closed


@pytest.mark.mioloop_only(reason="asyncio's transport reports an AttributeError: it has no socket any more")
@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_closed_endpoint_does_not_send(loop: asyncio.AbstractEventLoop, end: str) -> None:
    async def main() -> None:
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        address = transport.get_extra_info("sockname")
        number = transport.get_extra_info("socket").fileno()
        getattr(transport, end)()
        await settle()
        with stranger(number) as received:
            for _ in range(3):
                transport.sendto(b"astray", address)
            await settle()
            assert received() == b""

    run(loop, main())


def test_a_closed_endpoint_with_a_peer_does_not_send(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            transport, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=peer.getsockname()
            )
            number = transport.get_extra_info("socket").fileno()
            transport.close()
            await settle()
            with stranger(number) as received:
                transport.sendto(b"astray")
                await settle()
                assert received() == b""

    run(loop, main())


@pytest.mark.mioloop_only(sys.version_info >= (3, 12), reason="asyncio's writelines fails after the end")
@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("asked", [False, True], ids=["", "asked for its socket"])
def test_a_closed_connection_does_not_write(
    loop: asyncio.AbstractEventLoop, accepted: bool, asked: bool
) -> None:
    protocols: list[Recorder] = []

    def factory() -> Recorder:
        protocols.append(Recorder())
        return protocols[-1]

    async def main() -> None:
        server = await loop.create_server(factory, "127.0.0.1", 0)
        client, protocol = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        await until(lambda: protocols and protocols[0].transport)
        transport: Any = protocols[0].transport if accepted else client
        other: Any = client if accepted else protocols[0].transport
        if asked:
            transport.get_extra_info("socket")
        number = int(repr(transport).split("fd=")[1].split()[0])
        transport.close()
        await until(lambda: protocol.is_lost and protocols[0].is_lost)
        await settle()
        server.close()
        await server.wait_closed()
        with stranger(number) as received:
            transport.write(b"astray")
            transport.writelines([b"a", b"stray"])
            transport.write_eof()
            transport.pause_reading()
            transport.resume_reading()
            transport.abort()
            transport.close()
            await settle()
            assert received() == b""
            os.fstat(number)
        assert transport.is_closing() and other.is_closing()

    run(loop, main())


# The program closes the socket of a transport that lives


@pytest.mark.mioloop_only(reason="asyncio's connection is broken from then on")
def test_a_socket_closed_under_its_transport_stays_open(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, peer = socketpair()
        number = ours.fileno()
        protocol = Recorder()
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
        await settle(2)
        ours.close()
        strangers = [socketpair() for _ in range(3)]
        assert number not in [sock.fileno() for pair in strangers for sock in pair]
        transport.write(b"to the peer")
        assert await loop.sock_recv(peer, 100) == b"to the peer"
        peer.send(b"from the peer")
        await until(lambda: protocol.data)
        assert protocol.data == b"from the peer"
        transport.close()
        await until(lambda: protocol.is_lost)
        await settle()
        with pytest.raises(OSError):
            os.fstat(number)
        for sock in (peer, *(sock for pair in strangers for sock in pair)):
            sock.close()

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio's endpoint is broken from then on")
def test_a_datagram_socket_closed_under_its_transport_stays_open(loop: asyncio.AbstractEventLoop) -> None:
    received: list[bytes] = []

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            received.append(data)

    async def main() -> None:
        ours = socket.socket(type=socket.SOCK_DGRAM)
        ours.setblocking(False)
        ours.bind(("127.0.0.1", 0))
        number = ours.fileno()
        transport, _ = await loop.create_datagram_endpoint(Receiver, sock=ours)
        ours.close()
        transport.sendto(b"to itself", transport.get_extra_info("sockname"))
        await until(lambda: received)
        transport.close()
        await settle()
        with pytest.raises(OSError):
            os.fstat(number)

    run(loop, main())
    assert received == [b"to itself"]


@pytest.mark.mioloop_only(reason="asyncio's transport forgets what it has not written, or reports an error")
def test_a_socket_closed_with_data_to_write(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, peer = tcp_pair()
        protocol = Recorder()
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
        transport.write(b"x" * BIG)
        ours.close()
        transport.close()
        total = 0
        while data := await loop.sock_recv(peer, 1 << 18):
            total += len(data)
        assert total == BIG
        await until(lambda: protocol.is_lost)
        assert protocol.loss is None
        peer.close()

    run(loop, main())


@only_one_transport
def test_a_second_transport_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder(), socketpair()) as (transport, protocol, peer):
            sock = transport.get_extra_info("socket")._sock
            with pytest.raises(RuntimeError, match="is used by transport"):
                await loop.create_connection(Recorder, sock=sock)
            # The first does not suffer from that.
            peer.send(b"still there")
            await until(lambda: protocol.data)
            assert protocol.data == b"still there"
            assert sock.fileno() != -1

    run(loop, main())


@only_one_transport
def test_of_two_transports_at_once_one_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, peer = socketpair()
        protocol = Recorder()
        answers = await asyncio.gather(
            loop.create_connection(lambda: protocol, sock=ours),
            loop.create_connection(lambda: protocol, sock=ours),
            return_exceptions=True,
        )
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        assert len(errors) == 1
        assert isinstance(errors[0], RuntimeError)
        peer.send(b"data")
        await until(lambda: protocol.data)
        assert protocol.events[1:] == [("data", b"data")]
        protocol.transport.abort()
        await until(lambda: protocol.is_lost)
        peer.close()

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio's selector takes the number for the file")
@pytest.mark.parametrize("side", ["reader", "writer"])
def test_watching_a_number_whose_transport_lost_it(loop: Any, side: str) -> None:
    protocol = Recorder()
    ours, peer = socketpair()
    number = ours.fileno()
    transport, _ = run(loop, loop.create_connection(lambda: protocol, sock=ours))
    run_once(loop)
    os.close(ours.detach())
    right = connect_at(number)
    log: list[str] = []
    getattr(loop, f"_add_{side}")(number, log.append, "ready")
    right.send(b"x")
    run_until(loop, lambda: log)
    assert getattr(loop, f"remove_{side}")(number) is True
    transport.abort()
    run_until(loop, lambda: protocol.is_lost)
    assert "data" not in protocol.names
    os.fstat(number)
    os.close(number)
    right.close()
    peer.close()


@pytest.mark.mioloop_only(reason="asyncio's selector takes the number for the file")
@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
def test_watching_a_number_makes_the_last_of_its_transport_go(loop: Any) -> None:
    """Nobody but the registration refers to the transport; what its finalizers do finds the loop in order."""
    outcomes: list[object] = []

    class Finalized(asyncio.Protocol):
        def __del__(self) -> None:
            try:
                outcomes.append(loop.remove_reader(number))
            except BaseException as error:
                outcomes.append(error)

    ours, peer = socketpair()
    number = ours.fileno()
    run(loop, loop.create_connection(Finalized, sock=ours))
    run_once(loop)
    os.close(ours.detach())
    del ours
    gc.collect()
    assert outcomes == []
    right = connect_at(number)
    loop._add_reader(number, pytest.fail, "it was removed")
    gc.collect()
    right.send(b"x")
    run_once(loop)
    run_once(loop)
    assert len(outcomes) == 1 and isinstance(outcomes[0], bool), outcomes
    loop.remove_reader(number)
    os.close(number)
    right.close()
    peer.close()


# The socket object of an accepted connection is made when it is first asked for


def test_two_threads_ask_for_the_socket_at_once(loop: asyncio.AbstractEventLoop) -> None:
    async def ask(transport: Any) -> None:
        number = int(repr(transport).split("fd=")[1].split()[0])
        barrier = threading.Barrier(2)
        answers: list[Any] = []

        def get() -> None:
            barrier.wait()
            answers.append(transport.get_extra_info("socket"))

        threads = [threading.Thread(target=get) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect(0)
        assert [sock.fileno() for sock in answers] == [number, number]
        os.fstat(number)
        transport.write(b"alive")

    async def main() -> None:
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        for _ in range(100):
            client = socket.create_connection(server.sockets[0].getsockname())
            client.setblocking(False)
            await until(lambda: made and made[0].transport)
            await ask(made[0].transport)
            assert await loop.sock_recv(client, 100) == b"alive"
            client.close()
            await until(lambda: made[0].is_lost)
            made.clear()
        server.close()
        await server.wait_closed()

    with fast_switches():
        run(loop, main())


@pytest.mark.parametrize("asked", [False, True], ids=["", "asked before"])
def test_the_socket_of_a_closed_connection(loop: asyncio.AbstractEventLoop, asked: bool) -> None:
    async def main() -> None:
        protocol = Recorder()
        server = await loop.create_server(lambda: protocol, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            await until(lambda: protocol.transport)
            if asked:
                assert protocol.transport.get_extra_info("socket").fileno() != -1
            protocol.transport.close()
            await until(lambda: protocol.is_lost)
            await settle()
        assert protocol.transport.get_extra_info("socket").fileno() == -1
        assert protocol.transport.get_extra_info("peername") is not None
        server.close()
        await server.wait_closed()

    run(loop, main())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_unclosed_connection_in_a_cycle(loop: asyncio.AbstractEventLoop) -> None:
    """The collector takes it apart in any order; the descriptor is closed, whatever that is."""

    class Cyclic(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

    def connect() -> tuple[int, socket.socket]:
        ours, peer = socketpair()
        run(loop, loop.create_connection(Cyclic, sock=ours))
        return ours.fileno(), peer

    number, peer = connect()
    loop.close()
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(number)
    assert peer.recv(1) == b""
    peer.close()
