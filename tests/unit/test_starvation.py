"""Nobody waits for ever: not for one connection that never stops sending, nor for callbacks that never stop
scheduling themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from .protocols import Recorder
from .support import SAFETY, pipe, run, socketpair

QUIET = 100


class Sink(asyncio.Protocol):
    """Takes all that comes, and lets nothing hold the sender up."""

    received = 0

    def data_received(self, data: bytes) -> None:
        self.received += len(data)


class Flood:
    """Keeps a socket full whenever it takes more; from within the loop, so that it never falls behind."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.loop, self.sock = loop, sock
        loop.call_soon(self.send)
        self.over = False

    def send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while not self.over:
                self.sock.send(b"x" * 65536)
        if not self.over:
            self.loop.call_soon(self.send)


@contextlib.contextmanager
def busy(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Two callbacks that schedule themselves anew as long as this lasts: the loop is never idle."""
    over = False

    def again() -> None:
        if not over:
            loop.call_soon(again)

    again()
    again()
    yield
    over = True


async def quiet_conversations(loop: asyncio.AbstractEventLoop) -> None:
    """A hundred connections with a message each, which take turns at answering."""
    pairs = [socketpair() for _ in range(QUIET)]
    recorders = []
    for near, _ in pairs:
        _, recorder = await loop.create_connection(Recorder, sock=near)
        recorders.append(recorder)
    for round_number in range(3):
        for number, (_, far) in enumerate(pairs):
            far.send(b"%d %d." % (round_number, number))
        expected = [b"".join(b"%d %d." % (r, n) for r in range(round_number + 1)) for n in range(QUIET)]
        while [recorder.data for recorder in recorders] != expected:
            await asyncio.sleep(0)
    for recorder, (_, far) in zip(recorders, pairs, strict=True):
        recorder.transport.close()
        far.close()


async def ticks(count: int) -> None:
    """A timer that goes off `count` times."""
    for _ in range(count):
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("idle", [True, False])
def test_a_connection_that_never_stops_sending(loop: asyncio.AbstractEventLoop, idle: bool) -> None:
    async def main() -> None:
        near, far = socketpair()
        transport, sink = await loop.create_connection(Sink, sock=near)
        flood = Flood(loop, far)
        with contextlib.nullcontext() if idle else busy(loop):
            await asyncio.gather(quiet_conversations(loop), ticks(20))
        assert sink.received > 0
        flood.over = True
        transport.close()
        far.close()

    run(loop, main())


def test_callbacks_without_end_do_not_hold_up_descriptors(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        reader, writer = pipe()
        got: list[bytes] = []
        loop.add_reader(reader, lambda: got.append(os.read(reader, 1)))
        with busy(loop):
            for number in range(50):
                os.write(writer, b"x")
                while len(got) <= number:
                    await asyncio.sleep(0)
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)

    run(loop, main())


def test_callbacks_without_end_do_not_hold_up_timers(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with busy(loop):
            await ticks(50)

    run(loop, main())


def test_callbacks_without_end_do_not_hold_up_threads(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with busy(loop):
            for number in range(50):
                assert await loop.run_in_executor(None, int, number) == number

    run(loop, main())


def test_a_timer_keeps_its_place_among_callbacks_without_end(loop: asyncio.AbstractEventLoop) -> None:
    """One that is due when an iteration begins is called in it, before what that schedules."""
    log: list[str] = []

    async def main() -> None:
        with busy(loop):
            for _ in range(50):
                start = loop.time()
                timer = loop.call_later(0.0002, log.append, "timer")
                while loop.time() < timer.when():
                    await asyncio.sleep(0)
                    assert loop.time() - start < SAFETY
                # Due by now: the next iteration calls it, and the one after that resumes this.
                loop.call_soon(loop.call_soon, log.append, "after")
                while log[-1:] != ["after"]:
                    await asyncio.sleep(0)
                assert log == ["timer", "after"]
                log.clear()

    run(loop, main())
