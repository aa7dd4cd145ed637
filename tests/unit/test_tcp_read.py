"""Reading by a stream transport: data_received in order, pausing, end of file, a protocol that is
exchanged.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from .protocols import BufferedRecorder, Recorder, connected, receive_all
from .support import fill, run, settle, tcp_pair, until

KINDS = pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
Kind = type[Recorder]


@KINDS
def test_data_arrives_in_order(loop: asyncio.AbstractEventLoop, kind: Kind) -> None:
    async def main() -> None:
        async with connected(kind()) as (_, protocol, peer):
            for number in range(50):
                peer.send(b"%d," % number)
                await asyncio.sleep(0)
            await until(lambda: protocol.data.endswith(b"49,"))
            assert protocol.data == b"".join(b"%d," % number for number in range(50))
            assert set(protocol.names) == {"made", "data"}

    run(loop, main())


@KINDS
def test_much_data(loop: asyncio.AbstractEventLoop, kind: Kind) -> None:
    async def main() -> None:
        data = os.urandom(3_000_000)
        async with connected(kind()) as (_, protocol, peer):
            await loop.sock_sendall(peer, data)
            await until(lambda: sum(len(event[1]) for event in protocol.events[1:]) == len(data))
            assert protocol.data == data

    run(loop, main())


def test_data_is_bytes(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (_, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.data)
            assert type(protocol.events[-1][1]) is bytes

    run(loop, main())


@KINDS
def test_messages_of_every_size_in_turn(loop: asyncio.AbstractEventLoop, kind: Kind) -> None:
    """Room is made for a message by the size of the one before, which says nothing of its own."""

    async def main() -> None:
        sizes = [
            1,
            6_000,
            7_000,
            1,
            7_000,
            7_900,
            8_000,
            60_000,
            110_000,
            120_000,
            124_000,
            3,
            200_000,
            200_000,
        ]
        async with connected(kind()) as (_, protocol, peer):
            sent = b""
            for size in sizes * 2:
                data = os.urandom(size)
                sent += data
                await loop.sock_sendall(peer, data)
                total = len(sent)
                await until(lambda total=total: len(protocol.data) == total)
            assert protocol.data == sent
            assert all(event[1] for event in protocol.events[1:])

    run(loop, main())


@KINDS
def test_connection_made_comes_before_data_that_waits(loop: asyncio.AbstractEventLoop, kind: Kind) -> None:
    async def main() -> None:
        pair = tcp_pair()
        pair[1].send(b"early")
        protocol = kind()
        async with connected(protocol, pair):
            assert protocol.names[0] == "made"
            await until(lambda: protocol.data)
            assert protocol.events == [("made", None), ("data", b"early")]

    run(loop, main())


def test_connection_made_gets_the_transport_before_create_connection_returns(
    loop: asyncio.AbstractEventLoop,
) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            assert protocol.names == ["made"]
            assert protocol.transport is transport
            assert transport.get_protocol() is protocol

    run(loop, main())


# Pausing


@KINDS
def test_pause_reading(loop: asyncio.AbstractEventLoop, kind: Kind) -> None:
    async def main() -> None:
        async with connected(kind()) as (transport, protocol, peer):
            assert transport.is_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            peer.send(b"one")
            await settle()
            assert protocol.data == b""
            peer.send(b"two")
            transport.resume_reading()
            assert transport.is_reading()
            await until(lambda: len(protocol.data) == 6)
            assert protocol.data == b"onetwo"

    run(loop, main())


def test_pausing_twice_and_resuming_twice(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.resume_reading()
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            transport.resume_reading()
            assert transport.is_reading()
            transport.resume_reading()
            peer.send(b"x")
            await until(lambda: protocol.data)
            assert protocol.data == b"x"

    run(loop, main())


@KINDS
def test_pausing_and_resuming_while_data_waits(loop: asyncio.AbstractEventLoop, kind: Kind) -> None:
    async def main() -> None:
        async with connected(kind()) as (transport, protocol, peer):
            for number in range(100):
                peer.send(bytes([number]))
                transport.pause_reading()
                if number % 3 == 0:
                    await asyncio.sleep(0)
                transport.resume_reading()
                if number % 2 == 0:
                    await asyncio.sleep(0)
            await until(lambda: len(protocol.data) == 100)
            assert protocol.data == bytes(range(100))

    run(loop, main())


def test_pausing_in_connection_made(loop: asyncio.AbstractEventLoop) -> None:
    class Paused(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    async def main() -> None:
        pair = tcp_pair()
        pair[1].send(b"early")
        async with connected(Paused(), pair) as (transport, protocol, _):
            await settle()
            assert protocol.names == ["made"]
            transport.resume_reading()
            await until(lambda: protocol.data)

    run(loop, main())


@KINDS
def test_pausing_in_data_received(loop: asyncio.AbstractEventLoop, kind: Any) -> None:
    """Not one more call, however much is in the socket already."""

    class Pausing(kind):  # type: ignore[misc]
        def note(self, name: str, argument: Any = None) -> None:
            super().note(name, argument)
            if name == "data":
                self.transport.pause_reading()

    async def main() -> None:
        data = os.urandom(100_000)
        async with connected(Pausing()) as (transport, protocol, peer):
            sending = asyncio.ensure_future(loop.sock_sendall(peer, data))
            while len(protocol.data) < len(data):
                count = len(protocol.events)
                transport.resume_reading()
                await until(lambda count=count: len(protocol.events) > count)
                for _ in range(3):
                    await asyncio.sleep(0)
                assert len(protocol.events) == count + 1
            await sending
            assert protocol.data == data

    run(loop, main())


def test_pausing_and_resuming_in_data_received(loop: asyncio.AbstractEventLoop) -> None:
    class Blinking(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            self.transport.resume_reading()

    async def main() -> None:
        data = os.urandom(1_000_000)
        async with connected(Blinking()) as (_, protocol, peer):
            await loop.sock_sendall(peer, data)
            await until(lambda: sum(len(event[1]) for event in protocol.events[1:]) == len(data))
            assert protocol.data == data

    run(loop, main())


def test_the_end_of_file_waits_for_resume(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.pause_reading()
            peer.send(b"last words")
            peer.close()
            await settle()
            assert protocol.names == ["made"]
            transport.resume_reading()
            await until(lambda: protocol.is_lost)
            assert protocol.events == [("made", None), ("data", b"last words"), ("eof", None), ("lost", None)]

    run(loop, main())


def test_pausing_after_close_does_nothing(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            transport.close()
            assert not transport.is_reading()
            transport.pause_reading()
            transport.resume_reading()
            assert not transport.is_reading()
            await until(lambda: protocol.is_lost)
            transport.pause_reading()
            transport.resume_reading()
            assert not transport.is_reading()

    run(loop, main())


# End of file


@KINDS
@pytest.mark.parametrize("answer", [None, False, 0])
def test_the_end_of_file_closes(loop: asyncio.AbstractEventLoop, kind: Any, answer: Any) -> None:
    class Closing(kind):  # type: ignore[misc]
        def eof_received(self) -> Any:
            super().eof_received()
            return answer

    async def main() -> None:
        async with connected(Closing()) as (transport, protocol, peer):
            peer.send(b"bye")
            peer.shutdown(1)
            await until(lambda: protocol.is_lost)
            assert protocol.events == [("made", None), ("data", b"bye"), ("eof", None), ("lost", None)]
            assert transport.is_closing()
            assert await receive_all(peer) == b""

    run(loop, main())


@KINDS
@pytest.mark.parametrize("answer", [True, 1])
def test_the_end_of_file_may_keep_the_connection_open(
    loop: asyncio.AbstractEventLoop, kind: Any, answer: Any
) -> None:
    class Keeping(kind):  # type: ignore[misc]
        def eof_received(self) -> Any:
            super().eof_received()
            return answer

    async def main() -> None:
        async with connected(Keeping()) as (transport, protocol, peer):
            peer.shutdown(1)
            await until(lambda: "eof" in protocol.names)
            await settle()
            assert protocol.names == ["made", "eof"]
            assert not transport.is_closing()
            transport.write(b"still here")
            transport.close()
            assert await receive_all(peer) == b"still here"
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None

    run(loop, main())


def test_answering_in_eof_received(loop: asyncio.AbstractEventLoop) -> None:
    class Answering(Recorder):
        def eof_received(self) -> None:
            self.transport.write(self.data[::-1])

    async def main() -> None:
        async with connected(Answering()) as (_, protocol, peer):
            peer.send(b"backwards")
            peer.shutdown(1)
            assert await receive_all(peer) == b"sdrawkcab"
            await until(lambda: protocol.is_lost)

    run(loop, main())


# Exchanging the protocol


@KINDS
@pytest.mark.parametrize("next_kind", [Recorder, BufferedRecorder])
def test_set_protocol(loop: asyncio.AbstractEventLoop, kind: Kind, next_kind: Kind) -> None:
    async def main() -> None:
        async with connected(kind()) as (transport, protocol, peer):
            peer.send(b"first")
            await until(lambda: protocol.data)
            successor = next_kind()
            transport.set_protocol(successor)
            assert transport.get_protocol() is successor
            peer.send(b"second")
            await until(lambda: successor.data)
            peer.close()
            await until(lambda: successor.is_lost)
            assert protocol.events == [("made", None), ("data", b"first")]
            assert successor.events == [("data", b"second"), ("eof", None), ("lost", None)]

    run(loop, main())


@KINDS
@pytest.mark.parametrize("next_kind", [Recorder, BufferedRecorder])
def test_set_protocol_inside_a_callback(loop: asyncio.AbstractEventLoop, kind: Any, next_kind: Kind) -> None:
    """As an upgrade to WebSocket does it: what comes after the header belongs to the next protocol."""
    successor = next_kind()

    class Upgrading(kind):  # type: ignore[misc]
        def note(self, name: str, argument: Any = None) -> None:
            super().note(name, argument)
            if name == "data":
                self.transport.set_protocol(successor)

    async def main() -> None:
        async with connected(Upgrading()) as (_, protocol, peer):
            peer.send(b"header")
            await until(lambda: protocol.data)
            for number in range(20):
                peer.send(b"%d " % number)
                await asyncio.sleep(0)
            await until(lambda: successor.data.endswith(b"19 "))
            assert protocol.data == b"header"
            assert successor.data == b"".join(b"%d " % number for number in range(20))

    run(loop, main())


# Buffered protocols


def test_get_buffer_is_asked_for_any_size(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(BufferedRecorder()) as (_, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.data)
            assert set(protocol.hints) == {-1}

    run(loop, main())


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_buffer_limits_each_update(loop: asyncio.AbstractEventLoop, size: int) -> None:
    async def main() -> None:
        data = os.urandom(2000)
        async with connected(BufferedRecorder(size)) as (_, protocol, peer):
            peer.send(data)
            await until(lambda: len(protocol.data) == len(data))
            assert protocol.data == data
            assert max(len(event[1]) for event in protocol.events[1:]) <= size

    run(loop, main())


def test_a_memoryview_as_buffer(loop: asyncio.AbstractEventLoop) -> None:
    class Filling(BufferedRecorder):
        """Fills one buffer up, part by part, as a parser of fixed-size frames does."""

        filled = 0

        def get_buffer(self, sizehint: int) -> memoryview:
            return memoryview(self.buffer)[self.filled :]

        def buffer_updated(self, nbytes: int) -> None:
            self.filled += nbytes
            if self.filled == len(self.buffer):
                self.note("data", bytes(self.buffer))
                self.filled = 0

    async def main() -> None:
        async with connected(Filling(4)) as (_, protocol, peer):
            for part in (b"a", b"bc", b"defg", b"h", b"ij"):
                peer.send(part)
                await asyncio.sleep(0)
            await until(lambda: len(protocol.data) == 8)
            assert [event[1] for event in protocol.events[1:]] == [b"abcd", b"efgh"]

    run(loop, main())


def test_the_buffer_is_free_again_after_the_update(loop: asyncio.AbstractEventLoop) -> None:
    """A bytearray can't be resized while somebody holds its buffer: the transport must not hold it."""

    class Resizing(BufferedRecorder):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.buffer += b"more"

    async def main() -> None:
        async with connected(Resizing(4)) as (_, protocol, peer):
            for number in range(5):
                peer.send(b"%d" % number)
                await until(lambda number=number: len(protocol.data) == number + 1)
            assert protocol.data == b"01234"

    run(loop, main())


# From inside a callback


def test_echo_from_data_received(loop: asyncio.AbstractEventLoop) -> None:
    class Echo(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    async def main() -> None:
        data = os.urandom(2_000_000)
        async with connected(Echo()) as (_, _protocol, peer):
            sending = asyncio.ensure_future(loop.sock_sendall(peer, data))
            received = bytearray()
            while len(received) < len(data):
                received += await loop.sock_recv(peer, 1 << 18)
            await sending
            assert received == data

    run(loop, main())


def test_echo_from_buffer_updated(loop: asyncio.AbstractEventLoop) -> None:
    class Echo(BufferedRecorder):
        def buffer_updated(self, nbytes: int) -> None:
            self.transport.write(memoryview(self.buffer)[:nbytes].tobytes())

    async def main() -> None:
        data = os.urandom(300_000)
        async with connected(Echo(4096)) as (_, _protocol, peer):
            sending = asyncio.ensure_future(loop.sock_sendall(peer, data))
            received = bytearray()
            while len(received) < len(data):
                received += await loop.sock_recv(peer, 1 << 18)
            await sending
            assert received == data

    run(loop, main())


@KINDS
def test_close_in_data_received_ends_the_reading(loop: asyncio.AbstractEventLoop, kind: Any) -> None:
    class Closing(kind):  # type: ignore[misc]
        def note(self, name: str, argument: Any = None) -> None:
            super().note(name, argument)
            if name == "data":
                self.transport.close()

    async def main() -> None:
        async with connected(Closing()) as (_, protocol, peer):
            fill(peer)
            await until(lambda: protocol.is_lost)
            await settle()
            assert protocol.names == ["made", "data", "lost"]
            assert protocol.loss is None

    run(loop, main())


def test_abort_in_data_received(loop: asyncio.AbstractEventLoop) -> None:
    class Aborting(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.abort()

    async def main() -> None:
        async with connected(Aborting()) as (_, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.is_lost)
            assert protocol.events == [("made", None), ("data", b"x"), ("lost", None)]

    run(loop, main())
