"""The kernel reports an edge once: whoever stops short of what is there must come back for the rest.

What stops a read early: ancillary data and urgent data, which end a read before the buffer is full; an
exception that leaves the loop, in the middle of a batch. The reverse is a defect too: a source that comes
back more often than once in an iteration takes the others' turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any, Protocol

import pytest

from .protocols import BufferedRecorder, Recorder, connected
from .support import fill, pipe, reset, run, run_once, run_until, settle, socketpair, tcp_pair, until


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_data_behind_a_passed_descriptor(loop: asyncio.AbstractEventLoop, kind: type[Recorder]) -> None:
    async def main() -> None:
        async with connected(kind(), socketpair()) as (_, protocol, peer):
            await settle(2)
            socket.send_fds(peer, [b"first"], [peer.fileno()])
            peer.send(b"second")
            await until(lambda: len(protocol.data) >= 11)
            assert protocol.data == b"firstsecond"
            socket.send_fds(peer, [b"third"], [peer.fileno()])
            peer.close()
            await until(lambda: protocol.is_lost)
            assert protocol.data == b"firstsecondthird"

    run(loop, main())


def larger(kind: type[Recorder]) -> Recorder:
    """With room for whatever comes at once."""
    return BufferedRecorder(300_000) if kind is BufferedRecorder else kind()


@pytest.mark.parametrize("size", [5, 40_000])
@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_data_behind_urgent_data(loop: asyncio.AbstractEventLoop, kind: type[Recorder], size: int) -> None:
    async def main() -> None:
        async with connected(larger(kind)) as (_, protocol, peer):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setblocking(True)
            await settle(2)
            peer.sendall(b"1" * size)
            peer.send(b"!", socket.MSG_OOB)
            await asyncio.to_thread(peer.sendall, b"2" * size)
            await until(lambda: len(protocol.data) >= 2 * size)
            assert protocol.data == b"1" * size + b"2" * size
            peer.sendall(b"end")
            await until(lambda: len(protocol.data) > 2 * size)
            assert protocol.data.endswith(b"end")

    run(loop, main())


# Much data is looked for a second time, and what is found then must not be lost.


@pytest.mark.parametrize("size", [5, 40_000])
@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_the_end_right_behind_data(loop: asyncio.AbstractEventLoop, kind: type[Recorder], size: int) -> None:
    async def main() -> None:
        async with connected(larger(kind)) as (_, protocol, peer):
            await settle(2)
            peer.send(b"x" * size)
            peer.close()
            await until(lambda: protocol.is_lost)
            assert protocol.data == b"x" * size
            assert (protocol.names[-2:], protocol.loss) == (["eof", "lost"], None)

    run(loop, main())


@pytest.mark.parametrize("then", ["read on", "pause", "write", "pause and write"])
@pytest.mark.parametrize("size", [5, 40_000])
@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_a_reset_right_behind_data(
    loop: asyncio.AbstractEventLoop, kind: type[Recorder], size: int, then: str
) -> None:
    protocol = larger(kind)
    note: Noting = protocol.note

    def note_and_act(name: str, argument: Any = None) -> None:
        note(name, argument)
        if name == "data" and "pause" in then:
            protocol.transport.pause_reading()
        if name == "data" and "write" in then:
            protocol.transport.write(b"answer")

    async def main() -> None:
        async with connected(protocol) as (transport, _, peer):
            await settle(2)
            peer.send(b"x" * size)
            reset(peer)
            await until(lambda: protocol.data)
            if then == "pause":
                await settle(3)
                transport.resume_reading()
            await until(lambda: protocol.is_lost)
            assert protocol.data == b"x" * size
            assert protocol.names[-1] == "lost"
            assert isinstance(protocol.loss, ConnectionResetError)

    protocol.note = note_and_act  # type: ignore[method-assign]
    run(loop, main())


@pytest.mark.parametrize("pair", [tcp_pair, socketpair])
def test_the_urgent_byte_behind_data(loop: asyncio.AbstractEventLoop, pair: Any) -> None:
    """It is for whoever asks for it."""
    protocol = Recorder()
    note: Noting = protocol.note
    urgent = []

    def note_and_ask(name: str, argument: Any = None) -> None:
        note(name, argument)
        if protocol.names.count("data") == 1:
            with socket.socket(fileno=os.dup(protocol.transport.get_extra_info("socket").fileno())) as ours:
                urgent.append(ours.recv(1, socket.MSG_OOB))

    async def main() -> None:
        async with connected(protocol, pair()) as (_, _, peer):
            await settle(2)
            protocol.note = note_and_ask  # type: ignore[method-assign]
            peer.send(b"x" * 40_000)
            try:
                peer.send(b"!", socket.MSG_OOB)
            except OSError:
                pytest.skip("this kernel's Unix sockets know no urgent data")
            peer.send(b"y" * 50)
            await until(lambda: len(protocol.data) == 40_050)
            assert urgent == [b"!"]
            assert [len(data) for name, data in protocol.events if name == "data"] == [40_000, 50]

    run(loop, main())


# An exception leaves the loop; then the loop runs again.


class Noting(Protocol):
    def __call__(self, name: str, argument: Any = None) -> None: ...


def interrupting(protocol: Recorder, event: str) -> None:
    """Makes the protocol raise KeyboardInterrupt at the first such event."""
    note: Noting = protocol.note

    def interrupt(name: str, argument: Any = None) -> None:
        note(name, argument)
        if name == event and protocol.names.count(name) == 1:
            raise KeyboardInterrupt

    protocol.note = interrupt  # type: ignore[method-assign]


def connect(loop: asyncio.AbstractEventLoop, protocol: Recorder) -> tuple[Any, socket.socket]:
    ours, peer = socketpair()
    transport, _ = run(loop, loop.create_connection(lambda: protocol, sock=ours))
    return transport, peer


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_an_interrupted_read_is_followed_by_the_end(
    loop: asyncio.AbstractEventLoop, kind: type[Recorder]
) -> None:
    protocol = kind()
    interrupting(protocol, "data")
    _, peer = connect(loop, protocol)
    peer.send(b"data")
    peer.close()
    with pytest.raises(KeyboardInterrupt):
        run_until(loop, lambda: protocol.is_lost)
    assert protocol.names == ["made", "data"]
    run_until(loop, lambda: protocol.is_lost)
    assert protocol.names == ["made", "data", "eof", "lost"]
    assert protocol.loss is None


def test_an_interrupted_read_is_followed_by_the_rest(loop: asyncio.AbstractEventLoop) -> None:
    protocol = BufferedRecorder(4)
    interrupting(protocol, "data")
    transport, peer = connect(loop, protocol)
    peer.send(b"0123456789")
    with pytest.raises(KeyboardInterrupt):
        run_until(loop, lambda: len(protocol.data) == 10)
    assert protocol.data == b"0123"
    run_until(loop, lambda: len(protocol.data) == 10)
    assert protocol.data == b"0123456789"
    transport.abort()
    run_until(loop, lambda: protocol.is_lost)
    peer.close()


def test_an_interrupted_end_is_told_again(loop: asyncio.AbstractEventLoop) -> None:
    protocol = Recorder()
    interrupting(protocol, "eof")
    _, peer = connect(loop, protocol)
    peer.close()
    with pytest.raises(KeyboardInterrupt):
        run_until(loop, lambda: protocol.is_lost)
    run_until(loop, lambda: protocol.is_lost)
    assert protocol.names == ["made", "eof", "eof", "lost"]


@pytest.mark.mioloop_only(reason="the same in asyncio, but its transport forgets to close")
def test_an_interrupted_drain_is_followed_by_the_loss(loop: asyncio.AbstractEventLoop) -> None:
    protocol = Recorder()
    interrupting(protocol, "resume")
    transport, peer = connect(loop, protocol)
    transport.write(b"x" * 1_000_000)
    transport.close()
    assert protocol.names == ["made", "pause"]
    received = 0

    def drain() -> bool:
        nonlocal received
        with contextlib.suppress(BlockingIOError):
            received += len(peer.recv(1 << 20))
        return protocol.is_lost

    with pytest.raises(KeyboardInterrupt):
        run_until(loop, drain)
    run_until(loop, drain)
    run_until(loop, lambda: drain() and received == 1_000_000)
    assert protocol.names == ["made", "pause", "resume", "lost"]
    peer.close()


def test_an_interrupted_datagram_is_followed_by_the_others(loop: asyncio.AbstractEventLoop) -> None:
    received: list[bytes] = []

    class Interrupting(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            received.append(data)
            if len(received) == 1:
                raise KeyboardInterrupt

    transport, _ = run(loop, loop.create_datagram_endpoint(Interrupting, local_addr=("127.0.0.1", 0)))
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for data in (b"1", b"2", b"3"):
            sender.sendto(data, transport.get_extra_info("sockname"))
    with pytest.raises(KeyboardInterrupt):
        run_until(loop, lambda: len(received) == 3)
    assert received == [b"1"]
    run_until(loop, lambda: len(received) == 3)
    assert received == [b"1", b"2", b"3"]
    transport.close()
    run_once(loop)


@pytest.mark.mioloop_only(
    reason="asyncio's task of the interrupted connection leaves the socket to the collector"
)
def test_an_interrupted_connection_is_followed_by_the_others(loop: asyncio.AbstractEventLoop) -> None:
    made: list[Recorder] = []
    calls: list[int] = []

    def factory() -> Recorder:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        made.append(Recorder())
        return made[-1]

    server = run(loop, loop.create_server(factory, "127.0.0.1", 0))
    clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(4)]
    with pytest.raises(KeyboardInterrupt):
        run_until(loop, lambda: len(calls) == 4)
    assert len(calls) == 1
    run_until(loop, lambda: len(calls) == 4 and all(protocol.events for protocol in made))
    assert len(made) == 3
    for client in clients:
        client.close()
    run_until(loop, lambda: all(protocol.is_lost for protocol in made))
    server.close()
    run(loop, server.wait_closed())


# Once in an iteration, and no more


def resumes(transport: Any, loop: asyncio.AbstractEventLoop) -> None:
    transport.resume_reading()


def pauses_and_resumes(transport: Any, loop: asyncio.AbstractEventLoop) -> None:
    transport.pause_reading()
    transport.resume_reading()


def toggles_often(transport: Any, loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(10):
        pauses_and_resumes(transport, loop)


def resumes_soon(transport: Any, loop: asyncio.AbstractEventLoop) -> None:
    transport.pause_reading()
    loop.call_soon(transport.resume_reading)


@pytest.mark.parametrize("toggle", [resumes, pauses_and_resumes, toggles_often, resumes_soon])
def test_one_read_in_an_iteration(loop: asyncio.AbstractEventLoop, toggle: Any) -> None:
    class Toggling(BufferedRecorder):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            toggle(self.transport, loop)

    protocol = Toggling(64)
    transport, peer = connect(loop, protocol)
    fill(peer)
    run_until(loop, lambda: protocol.data)
    reads = []
    for _ in range(100):
        before = protocol.names.count("data")
        run_once(loop)
        reads.append(protocol.names.count("data") - before)
    assert max(reads) == 1, reads
    transport.abort()
    run_until(loop, lambda: protocol.is_lost)
    peer.close()


@pytest.mark.parametrize("side", ["reader", "writer"])
def test_a_cancelled_handle_is_not_polled_for(loop: Any, side: str) -> None:
    """The source is ready all the time; watched on, it would wake up the loop for ever."""
    left, right = socketpair()
    right.send(b"x")
    handle = getattr(loop, f"_add_{side}")(left.fileno(), pytest.fail, "it was cancelled")
    handle.cancel()
    run_once(loop)
    run_once(loop)
    assert getattr(loop, f"remove_{side}")(left) is False
    left.close()
    right.close()


def test_the_other_side_of_a_cancelled_handle_goes_on(loop: Any) -> None:
    left, right = socketpair()
    right.send(b"x")
    log: list[str] = []
    handle = loop._add_reader(left.fileno(), pytest.fail, "it was cancelled")
    loop.add_writer(left, log.append, "writer")
    handle.cancel()
    run_until(loop, lambda: len(log) >= 3)
    assert loop.remove_reader(left) is False
    assert loop.remove_writer(left) is True
    left.close()
    right.close()


def test_a_cancelled_handle_may_be_replaced(loop: Any) -> None:
    reader, writer = pipe()
    os.write(writer, b"x")
    log: list[str] = []
    loop._add_reader(reader, pytest.fail, "it was cancelled").cancel()
    loop.add_reader(reader, log.append, "new")
    run_until(loop, lambda: log)
    assert loop.remove_reader(reader) is True
    os.close(reader)
    os.close(writer)
