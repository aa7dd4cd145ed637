"""Writes that follow another in one iteration leave at its end, those of one transport together; to the
program it looks as if each had been sent at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mioloop

from .support import BIG, SAFETY, Caught, fill, run, run_until, socketpair, tcp_pair, until


class Recorder(asyncio.Protocol):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(type(exc))


async def connect(sock: socket.socket) -> tuple[Any, Recorder]:
    transport, protocol = await asyncio.get_running_loop().create_connection(Recorder, sock=sock)
    return transport, protocol


@contextlib.asynccontextmanager
async def connections(count: int) -> AsyncIterator[tuple[list[Any], list[socket.socket]]]:
    """Transports and their peers; both ends are closed at the end."""
    pairs = [socketpair() for _ in range(count)]
    transports = [(await connect(ours))[0] for ours, _ in pairs]
    yield transports, [peer for _, peer in pairs]
    for transport in transports:
        transport.abort()
    await until(lambda: all(ours.fileno() == -1 for ours, _ in pairs))
    for _, peer in pairs:
        peer.close()


def receive_all(peer: socket.socket) -> bytes:
    """What has arrived by now."""
    data = b""
    try:
        while part := peer.recv(1 << 20):
            data += part
    except BlockingIOError:
        pass
    return data


steps = st.one_of(
    st.builds(lambda data: ("write", data), st.binary(max_size=30)),
    st.builds(lambda data: ("write", data), st.binary(max_size=30)),
    st.builds(lambda size: ("write", b"x" * size), st.sampled_from([20_000, 40_000])),
    st.builds(lambda data: ("write", bytearray(data)), st.binary(max_size=30)),
    # Some versions of asyncio never get over empty pieces, or pieces for a closed transport.
    st.builds(
        lambda pieces: ("writelines", pieces),
        st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=4),
    ),
    st.sampled_from(
        [("next",), ("size",), ("size",), ("write_eof",), ("close",), ("abort",), ("limits", 0), ("socket",)]
    ),
    # Another transport that writes before makes the first write wait too.
    st.just(("other",)),
)


async def play(program: list[tuple[Any, ...]]) -> list[Any]:
    seen: list[Any] = []
    ours, peer = socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    transport, protocol = await connect(ours)
    other_ours, other_peer = socketpair()
    other, _ = await connect(other_ours)
    for name, *args in program:
        try:
            if name == "next":
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                seen.append(receive_all(peer))
            elif name == "size":
                seen.append(transport.get_write_buffer_size())
                seen.append(receive_all(peer))
            elif name == "limits":
                transport.set_write_buffer_limits(args[0])
            elif name == "other":
                other.write(b".")
            elif name == "socket":
                seen.append(transport.get_extra_info("socket").fileno() >= 0)
                seen.append(receive_all(peer))
            elif name != "writelines" or not transport.is_closing():
                getattr(transport, name)(*args)
                for arg in args:
                    if isinstance(arg, bytearray):
                        arg[:] = b"!" * len(arg)
        except RuntimeError as error:
            seen.append(str(error))
        seen.append(transport.is_closing())
    await asyncio.sleep(0)
    transport.close()
    other.close()
    rest = b""

    def over() -> bool:
        nonlocal rest
        rest += receive_all(peer)
        return ours.fileno() == other_ours.fileno() == -1

    await until(over)
    seen.append(receive_all(other_peer))
    peer.close()
    other_peer.close()
    return [*seen, rest, protocol.told]


@settings(max_examples=150)
@given(st.lists(steps, max_size=12))
def test_random_programs(program: list[tuple[Any, ...]]) -> None:
    outcomes = []
    for factory in asyncio.SelectorEventLoop, mioloop.new_event_loop:
        loop = factory()
        fresh = [(name, *map(type_preserving_copy, args)) for name, *args in program]
        outcomes.append(run(loop, play(fresh)))
        loop.close()
    assert outcomes[0] == outcomes[1]


def type_preserving_copy(argument: Any) -> Any:
    return bytearray(argument) if isinstance(argument, bytearray) else argument


@pytest.mark.mioloop_only(reason="asyncio makes a system call for each write")
def test_the_first_leaves_at_once_and_the_others_together(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, peer = socketpair()
        transport, _ = await connect(ours)
        await asyncio.sleep(0)
        transport.write(b"1")
        assert receive_all(peer) == b"1"
        for digit in b"234":
            transport.write(bytes([digit]))
        transport.writelines([b"5", b"6"])
        assert receive_all(peer) == b""
        await asyncio.sleep(0)
        assert receive_all(peer) == b"23456"
        peer.close()
        transport.abort()
        await until(lambda: ours.fileno() == -1)

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio makes a system call for each write")
def test_the_first_waits_where_others_followed_the_last_time(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, peer = socketpair()
        transport, _ = await connect(ours)

        async def answer(*pieces: bytes) -> tuple[bytes, bytes]:
            """What has left at once, and what at the end of the iteration."""
            for piece in pieces:
                transport.write(piece)
            at_once = receive_all(peer)
            await asyncio.sleep(0)
            return at_once, receive_all(peer)

        assert await answer(b"head", b"body") == (b"head", b"body")
        assert await answer(b"head", b"body") == (b"", b"headbody")
        # An iteration without writes says nothing.
        await asyncio.sleep(0)
        assert await answer(b"head", b"", b"body") == (b"", b"headbody")
        # It was all there was: so it may be the next time.
        assert await answer(b"whole") == (b"", b"whole")
        assert await answer(b"whole") == (b"whole", b"")
        assert await answer(b"whole") == (b"whole", b"")
        assert await answer(b"head", b"body") == (b"head", b"body")
        # What is large waits for nothing, whether it comes alone or behind something small.
        large = b"x" * 40_000
        assert await answer(large) == (large, b"")
        assert await answer(b"head", b"body") == (b"head", b"body")
        assert await answer(b"head", large) == (b"head" + large, b"")
        assert await answer(b"head", b"body") == (b"", b"headbody")
        # Who looks, finds it sent.
        transport.write(b"head")
        assert transport.get_write_buffer_size() == 0
        assert receive_all(peer) == b"head"
        assert await answer(b"body") == (b"", b"body")
        assert await answer(b"head", b"body") == (b"", b"headbody")
        transport.write(b"last")
        transport.close()
        await until(lambda: ours.fileno() == -1)
        assert receive_all(peer) == b"last"
        peer.close()

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio makes a system call for each write")
def test_other_transports_wait_for_the_end_of_the_iteration(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connections(40) as (transports, peers):

            def arrived() -> list[bytes]:
                return [receive_all(peer) for peer in peers]

            for _ in range(2):
                await asyncio.sleep(0)
                for transport in transports[:5]:
                    transport.write(b"x")
                assert arrived()[:5] == [b"x", b"", b"", b"", b""]
                await asyncio.sleep(0)
                assert arrived()[:5] == [b"", b"x", b"x", b"x", b"x"]
            # A look at one of them sends its own.
            for transport in transports[:3]:
                transport.write(b"y")
            assert transports[2].get_write_buffer_size() == 0
            assert arrived()[:3] == [b"y", b"", b"y"]
            transports[1].write(b"z")
            transports[1].close()
            assert arrived()[1] == b"yz"
            await asyncio.sleep(0)
            # Not for more than so many others, but until the callback has returned.
            rest = transports[3:]
            early: list[int] = []
            for transport in rest:
                loop.call_soon(transport.write, b"z")
            loop.call_soon(lambda: early.append(arrived()[3:].count(b"z")))
            await asyncio.sleep(0)
            assert 1 < early[0] < len(rest)
            await asyncio.sleep(0)
            assert early[0] + arrived()[3:].count(b"z") == len(rest)
            for transport in rest:
                transport.write(b"all")
            assert arrived()[3:] == [b"all"] + [b""] * 36
            await asyncio.sleep(0)
            assert arrived()[3:] == [b""] + [b"all"] * 36

    run(loop, main())


def test_an_error_of_one_does_not_keep_the_others(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    async def main() -> None:
        pairs = [socketpair() for _ in range(30)]
        connections = [await connect(ours) for ours, _ in pairs]
        for transport, _ in connections:
            transport.pause_reading()
        for _, peer in pairs[::2]:
            peer.close()
        for transport, _ in connections:
            transport.write(b"x")
        await until(lambda: all(protocol.told for _, protocol in connections[::2]))
        assert [protocol.told for _, protocol in connections] == [[BrokenPipeError], []] * 15
        assert [receive_all(peer) for _, peer in pairs[1::2]] == [b"x"] * 15
        for transport, _ in connections:
            transport.abort()
        await until(lambda: all(ours.fileno() == -1 for ours, _ in pairs))
        for _, peer in pairs[1::2]:
            peer.close()
        assert not caught

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio makes a system call for each write")
def test_one_that_looks_again_and_again_does_not_count_as_many(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connections(3) as ((first, patient, curious), peers):

            def look() -> None:
                curious.write(b"z")
                curious.get_write_buffer_size()

            loop.call_soon(first.write, b"x")
            loop.call_soon(patient.write, b"y")
            for _ in range(40):
                loop.call_soon(look)
            seen: list[bytes] = []
            loop.call_soon(lambda: seen.extend(receive_all(peer) for peer in peers))
            await asyncio.sleep(0)
            assert seen == [b"x", b"", b"z" * 40]
            await asyncio.sleep(0)
            assert receive_all(peers[1]) == b"y"

    run(loop, main())


def test_what_a_closing_transport_is_given_to_write_does_not_keep_it(loop: asyncio.AbstractEventLoop) -> None:
    """Its protocol writes when it may go on, after another one has written in that iteration."""
    other: Any = None

    class Writer(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            if len(self.told) == 2:
                other.write(b"o")
                self.transport.write(b"more")

    async def main() -> None:
        nonlocal other
        (ours, peer), (other_ours, other_peer) = socketpair(), socketpair()
        other, _ = await connect(other_ours)
        transport, protocol = await loop.create_connection(Writer, sock=ours)
        transport.set_write_buffer_limits(high=100, low=0)
        transport.write(b"x" * BIG)
        transport.close()
        received = b""

        def over() -> bool:
            nonlocal received
            received += receive_all(peer)
            return ours.fileno() == -1

        await until(over)
        assert received == b"x" * BIG + b"more"
        assert protocol.told == ["pause", "resume", type(None)]
        assert receive_all(other_peer) == b"o"
        other.abort()
        await until(lambda: other_ours.fileno() == -1)
        for sock in (peer, other_peer):
            sock.close()

    run(loop, main())


def test_another_threads_writes_do_not_wait_for_the_loop(loop: asyncio.AbstractEventLoop) -> None:
    """They are not allowed, and work all the same."""

    async def main() -> None:
        asleep = threading.Event()
        async with connections(3) as (transports, peers):
            for peer in peers:
                peer.settimeout(SAFETY)
            # One that is used to writing twice.
            transports[0].write(b"head")
            transports[0].write(b"body")
            assert peers[0].recv(4) == b"head"

            def write() -> list[bytes]:
                assert peers[0].recv(4) == b"body"
                asleep.wait()
                for transport in transports:
                    transport.write(b"x")
                return [peer.recv(1) for peer in peers]

            def wake_the_writer() -> None:
                # As good as certain: the loop has nothing else to do by then.
                time.sleep(0.05)
                asleep.set()

            with concurrent.futures.ThreadPoolExecutor() as threads:
                written = threads.submit(write)
                woken = loop.create_future()
                written.add_done_callback(lambda _: loop.call_soon_threadsafe(woken.set_result, None))
                threads.submit(wake_the_writer)
                await woken
                assert written.result() == [b"x"] * 3

    run(loop, main())


def test_the_error_that_came_first_is_told(loop: asyncio.AbstractEventLoop) -> None:
    """A reset is found by a read, while something is held back."""
    reset: Any = None

    class Answering(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(b".")
            reset.write(b"late")

    async def main() -> None:
        nonlocal reset
        (ours, peer), (asked_ours, asked_peer) = tcp_pair(), socketpair()
        await loop.create_connection(Answering, sock=asked_ours)
        reset, protocol = await connect(ours)
        await asyncio.sleep(0.001)
        asked_peer.send(b"?")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        await until(lambda: protocol.told)
        assert protocol.told == [ConnectionResetError]
        asked_peer.close()
        await until(lambda: asked_ours.fileno() == ours.fileno() == -1)

    run(loop, main())


def test_writes_outside_of_iterations_do_not_count(loop: asyncio.AbstractEventLoop) -> None:
    ours, peer = socketpair()
    transport, _ = run(loop, connect(ours))
    transport.write(b"1")
    transport.write(b"2")

    async def write() -> bytes:
        transport.write(b"3")
        return receive_all(peer)

    assert run(loop, write()) == b"123"
    transport.abort()
    run_until(loop, lambda: ours.fileno() == -1)
    peer.close()


@pytest.mark.parametrize("end", [lambda loop: loop.stop(), lambda loop: exit()])
def test_the_end_of_the_run_sends_them(
    loop: asyncio.AbstractEventLoop, end: Callable[[asyncio.AbstractEventLoop], None]
) -> None:
    ours, peer = socketpair()
    transport, _ = run(loop, connect(ours))

    def write() -> None:
        for digit in b"123":
            transport.write(bytes([digit]))
        end(loop)

    loop.call_soon(write)
    with contextlib.suppress(SystemExit):
        loop.run_forever()
    assert receive_all(peer) == b"123"
    # Outside of an iteration each leaves at once.
    transport.write(b"4")
    transport.write(b"5")
    assert receive_all(peer) == b"45"
    transport.abort()
    run_until(loop, lambda: ours.fileno() == -1)
    peer.close()


def test_a_full_socket_pauses_the_protocol(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, peer = tcp_pair()
        transport, protocol = await connect(ours)
        filled = fill(ours)
        for _ in range(10):
            transport.write(b"x" * 10_000)
        await asyncio.sleep(0)
        assert protocol.told == ["pause"]
        assert transport.get_write_buffer_size() > 0
        received = b""

        def drained() -> bool:
            nonlocal received
            received += receive_all(peer)
            return len(received) == filled + 100_000

        await until(drained)
        await until(lambda: protocol.told == ["pause", "resume"])
        peer.close()
        transport.abort()
        await until(lambda: ours.fileno() == -1)

    run(loop, main())


def test_a_lost_peer_is_told_of(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    async def main() -> None:
        ours, peer = socketpair()
        transport, protocol = await connect(ours)
        transport.pause_reading()
        peer.close()
        for _ in range(3):
            transport.write(b"to nobody")
        await until(lambda: protocol.told)
        assert protocol.told == [BrokenPipeError]
        assert not caught

    run(loop, main())


def test_much_is_not_held_back(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, peer = tcp_pair()
        transport, _ = await connect(ours)
        sent = 0
        received = b""
        while sent < BIG:
            transport.write(b"y" * 1000)
            sent += 1000
            if sent % 100_000 == 0:
                received += receive_all(peer)
        assert received

        def over() -> bool:
            nonlocal received
            received += receive_all(peer)
            return len(received) == sent

        await until(over)
        peer.close()
        transport.abort()
        await until(lambda: ours.fileno() == -1)

    run(loop, main())
