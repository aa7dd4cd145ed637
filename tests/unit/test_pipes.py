"""Pipe transports: for pipes, FIFOs, sockets and terminals, to read from and to write to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import pty
import re
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .protocols import Recorder
from .support import Caught, run, settle, until


class Ends:
    """Something to read at one end and to write at the other, as files."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        if kind == "pipe":
            read_fd, write_fd = os.pipe()
        elif kind == "fifo":
            path = folder / "fifo"
            os.mkfifo(path)
            read_fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            write_fd = os.open(path, os.O_WRONLY)
        elif kind == "socket":
            left, right = socket.socketpair()
            read_fd, write_fd = left.detach(), right.detach()
        else:
            assert kind == "terminal"
            read_fd, write_fd = pty.openpty()
            tty.setraw(write_fd)
        self.reader = open(read_fd, "rb", buffering=0)
        self.writer = open(write_fd, "wb", buffering=0)

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.reader.close()
        self.writer.close()


@pytest.fixture(params=["pipe", "fifo", "socket", "terminal"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    with Ends(request.param, tmp_path) as ends:
        yield ends


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Ends]:
    with Ends("pipe", tmp_path) as ends:
        yield ends


def fill(writer: Any) -> bytes:
    """Writes until the kernel takes no more; what it took."""
    os.set_blocking(writer.fileno(), False)
    written = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            piece = os.urandom(4096)
            written += piece[: os.write(writer.fileno(), piece)]
    return written


def read_all(reader: Any) -> bytes:
    """What waits in a pipe, without waiting for more."""
    os.set_blocking(reader.fileno(), False)
    return reader.read(1 << 20) or b""


# Reading.


def test_reading(loop: asyncio.AbstractEventLoop, ends: Ends) -> None:
    async def main() -> None:
        transport, protocol = await loop.connect_read_pipe(Recorder, ends.reader)
        assert isinstance(transport, asyncio.ReadTransport)
        assert os.get_blocking(ends.reader.fileno()) is False
        assert transport.get_extra_info("pipe") is ends.reader
        for data in [b"one", b"another", bytes(range(256)) * 4]:
            ends.writer.write(data)
            await until(lambda: protocol.data)
            while len(protocol.data) < len(data):
                await asyncio.sleep(0)
            assert protocol.data == data
            protocol.events.clear()
        ends.writer.close()
        await until(lambda: protocol.is_lost)
        if ends.kind == "terminal":  # Linux reports a terminal that nobody has open any more as an error
            assert protocol.names == ["lost"]
            assert protocol.loss.errno == errno.EIO
        else:
            assert protocol.events == [("eof", None), ("lost", None)]
        assert ends.reader.closed

    run(loop, main())


def test_much_data(loop: asyncio.AbstractEventLoop, ends: Ends) -> None:
    """Both ends are transports; the pipe holds far less than what goes through it."""

    async def main() -> None:
        _, reading = await loop.connect_read_pipe(Recorder, ends.reader)
        transport, writing = await loop.connect_write_pipe(Recorder, ends.writer)
        sent = b""
        for _ in range(20):
            piece = os.urandom(30_011)
            transport.write(piece)
            sent += piece
        await until(lambda: len(reading.data) == len(sent))
        assert reading.data == sent
        transport.close()
        await until(lambda: reading.is_lost and writing.is_lost)
        assert writing.loss is None

    run(loop, main())


def test_streams_over_a_pipe(loop: asyncio.AbstractEventLoop, pipe: Ends) -> None:
    async def main() -> None:
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe.reader)
        factory = asyncio.streams.FlowControlMixin
        transport, protocol = await loop.connect_write_pipe(factory, pipe.writer)
        writer = asyncio.StreamWriter(transport, protocol, None, loop)

        async def send() -> None:
            for number in range(20_000):
                writer.write(b"line %d\n" % number)
                await writer.drain()
            writer.close()

        sending = asyncio.create_task(send())
        assert [line async for line in reader] == [b"line %d\n" % number for number in range(20_000)]
        await sending

    run(loop, main())


def test_pause_and_resume_reading(loop: asyncio.AbstractEventLoop, pipe: Ends) -> None:
    async def main() -> None:
        transport, protocol = await loop.connect_read_pipe(Recorder, pipe.reader)
        transport.pause_reading()
        transport.pause_reading()
        pipe.writer.write(b"patience")
        await settle()
        assert protocol.data == b""
        transport.resume_reading()
        transport.resume_reading()
        await until(lambda: protocol.data == b"patience")
        transport.pause_reading()
        transport.close()
        transport.resume_reading()
        await until(lambda: protocol.is_lost)
        assert protocol.names == ["made", "data", "lost"]

    run(loop, main())


def test_the_end_comes_while_reading_is_paused(loop: asyncio.AbstractEventLoop, pipe: Ends) -> None:
    async def main() -> None:
        transport, protocol = await loop.connect_read_pipe(Recorder, pipe.reader)
        transport.pause_reading()
        pipe.writer.write(b"last words")
        pipe.writer.close()
        await settle()
        assert protocol.names == ["made"]
        transport.resume_reading()
        await until(lambda: protocol.is_lost)
        assert protocol.events[1:] == [("data", b"last words"), ("eof", None), ("lost", None)]

    run(loop, main())


def test_paused_by_connection_made(loop: asyncio.AbstractEventLoop, pipe: Ends) -> None:
    class Paused(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    async def main() -> None:
        pipe.writer.write(b"data")
        transport, protocol = await loop.connect_read_pipe(Paused, pipe.reader)
        await settle()
        assert protocol.names == ["made"]
        transport.resume_reading()
        await until(lambda: protocol.data == b"data")
        transport.close()
        await until(lambda: protocol.is_lost)

    run(loop, main())


def test_closing_a_reader(loop: asyncio.AbstractEventLoop, ends: Ends) -> None:
    """What comes after `close` is not delivered, though it waits in the pipe already."""

    class OneIsEnough(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.close()
            self.transport.close()

    async def main() -> None:
        transport, protocol = await loop.connect_read_pipe(OneIsEnough, ends.reader)
        ends.writer.write(b"one")
        await until(lambda: protocol.is_lost)
        assert transport.is_closing()
        assert protocol.events[1:] == [("data", b"one"), ("lost", None)]
        assert ends.reader.closed

    run(loop, main())


def test_data_received_raises(loop: asyncio.AbstractEventLoop, caught: Caught, pipe: Ends) -> None:
    """It is reported, and the pipe is read on."""

    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if data == b"bad":
                raise LookupError("bad data")

    async def main() -> None:
        transport, protocol = await loop.connect_read_pipe(Failing, pipe.reader)
        pipe.writer.write(b"bad")
        await until(lambda: caught)
        assert isinstance(caught.take()["exception"], LookupError)
        pipe.writer.write(b"good")
        await until(lambda: protocol.data == b"badgood")
        transport.close()
        await until(lambda: protocol.is_lost)

    run(loop, main())


# Writing.


def test_writing(loop: asyncio.AbstractEventLoop, ends: Ends) -> None:
    async def main() -> None:
        transport, protocol = await loop.connect_write_pipe(Recorder, ends.writer)
        assert isinstance(transport, asyncio.WriteTransport)
        assert os.get_blocking(ends.writer.fileno()) is False
        assert transport.get_extra_info("pipe") is ends.writer
        assert transport.can_write_eof() is True
        for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview"), b""):
            transport.write(data)
        transport.writelines([b"li", b"nes"])
        assert transport.get_write_buffer_size() == 0
        wanted = b"bytesbytearraymemoryviewlines"
        received = b""
        while len(received) < len(wanted):  # a terminal passes it on in its own time
            received += read_all(ends.reader)
            await asyncio.sleep(0)
        assert received == wanted
        transport.close()
        await until(lambda: protocol.is_lost)
        assert protocol.events[1:] == [("lost", None)]
        assert ends.writer.closed

    run(loop, main())


def test_backpressure(loop: asyncio.AbstractEventLoop, ends: Ends) -> None:
    async def main() -> None:
        transport, protocol = await loop.connect_write_pipe(Recorder, ends.writer)
        transport.set_write_buffer_limits(high=50_000, low=10_000)
        assert transport.get_write_buffer_limits() == (10_000, 50_000)
        for turn in range(1, 4):
            sent = b""
            while protocol.names.count("pause") < turn:
                piece = os.urandom(7001)
                transport.write(piece)
                sent += piece
            assert 50_000 < transport.get_write_buffer_size() < 58_000
            received = b""
            while len(received) < len(sent):
                received += read_all(ends.reader)
                await asyncio.sleep(0)
            assert received == sent
            await until(lambda turn=turn: protocol.names.count("resume") == turn)
        assert protocol.names == ["made"] + ["pause", "resume"] * 3
        transport.close()
        await until(lambda: protocol.is_lost)

    run(loop, main())


def test_resume_writing_writes_more(loop: asyncio.AbstractEventLoop, pipe: Ends) -> None:
    sent = bytearray()

    class Generous(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.write()

        def write(self) -> None:
            while self.names[-1] != "pause" and len(self.events) < 20:
                sent.extend(b"%08d" % len(sent) * 1000)
                self.transport.write(sent[-8000:])

    async def main() -> None:
        transport, protocol = await loop.connect_write_pipe(Generous, pipe.writer)
        protocol.write()
        received = b""
        while len(protocol.events) < 20 or len(received) < len(sent):
            received += read_all(pipe.reader)
            await asyncio.sleep(0)
        assert received == sent
        transport.close()
        await until(lambda: protocol.is_lost)

    run(loop, main())


@pytest.mark.parametrize("method", ["close", "write_eof"])
def test_what_is_buffered_is_sent_before_the_end(
    loop: asyncio.AbstractEventLoop, pipe: Ends, method: str
) -> None:
    async def main() -> None:
        transport, protocol = await loop.connect_write_pipe(Recorder, pipe.writer)
        sent = os.urandom(300_000)
        transport.write(sent)
        getattr(transport, method)()
        getattr(transport, method)()
        assert transport.is_closing()
        transport.write(b"too late")
        received = b""
        await settle()
        assert not protocol.is_lost
        while len(received) < len(sent):
            received += read_all(pipe.reader)
            await asyncio.sleep(0)
        await until(lambda: protocol.is_lost)
        assert received + read_all(pipe.reader) == sent
        assert protocol.loss is None

    run(loop, main())


def test_abort_drops_what_is_buffered(loop: asyncio.AbstractEventLoop, pipe: Ends) -> None:
    async def main() -> None:
        transport, protocol = await loop.connect_write_pipe(Recorder, pipe.writer)
        already = fill(pipe.writer)
        transport.write(bytes(100_000))
        transport.abort()
        await until(lambda: protocol.is_lost)
        assert protocol.loss is None
        assert read_all(pipe.reader) == already

    run(loop, main())


def test_the_reader_goes_away(loop: asyncio.AbstractEventLoop, ends: Ends) -> None:
    """A writer that has nothing to write notices too. (Not at a terminal, writable to the end.)"""

    async def main() -> None:
        _, protocol = await loop.connect_write_pipe(Recorder, ends.writer)
        await settle()
        assert not protocol.is_lost
        ends.reader.close()
        if ends.kind == "terminal":
            protocol.transport.write(b"into the void")
        await until(lambda: protocol.is_lost)
        if ends.kind == "terminal":
            assert protocol.loss.errno == errno.EIO
        else:
            assert protocol.loss is None
        assert ends.writer.closed

    run(loop, main())


@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket"])
def test_the_reader_goes_away_while_we_write(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, kind: str
) -> None:
    async def main() -> None:
        with Ends(kind, tmp_path) as ends:
            transport, protocol = await loop.connect_write_pipe(Recorder, ends.writer)
            transport.write(bytes(1_000_000))
            assert transport.get_write_buffer_size() > 0
            await settle()
            ends.reader.close()
            await until(lambda: protocol.is_lost)
            assert isinstance(protocol.loss, BrokenPipeError | ConnectionResetError)
            for _ in range(10):
                transport.write(b"too late")

    run(loop, main())


def test_writing_to_a_pipe_that_nobody_reads(
    loop: asyncio.AbstractEventLoop, pipe: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        transport, protocol = await loop.connect_write_pipe(Recorder, pipe.writer)
        pipe.reader.close()
        for _ in range(10):
            transport.write(b"x")
        assert transport.is_closing()
        await until(lambda: protocol.is_lost)
        assert isinstance(protocol.loss, BrokenPipeError)

    run(loop, main())
    assert "pipe closed by peer or os.write(pipe, data) raised exception." in caplog.messages


def test_a_fifo_has_readers_again(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """Open for reading and writing it never ends, whoever comes and goes."""

    async def main() -> None:
        path = tmp_path / "fifo"
        os.mkfifo(path)
        transport, protocol = await loop.connect_read_pipe(
            Recorder, open(os.open(path, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0)
        )
        for number in range(5):
            with open(path, "wb", buffering=0) as writer:
                writer.write(b"%d" % number)
            await until(lambda number=number: len(protocol.data) == number + 1)
        assert protocol.data == b"01234"
        assert not protocol.is_lost
        transport.close()
        await until(lambda: protocol.is_lost)

    run(loop, main())


def test_both_ways_at_a_terminal(loop: asyncio.AbstractEventLoop) -> None:
    """Two transports for one terminal, on descriptors of their own."""

    async def main() -> None:
        ours, theirs = pty.openpty()
        settings = termios.tcgetattr(theirs)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        reading, reader = await loop.connect_read_pipe(Recorder, open(os.dup(ours), "rb", buffering=0))
        writing, writer = await loop.connect_write_pipe(Recorder, open(ours, "wb", buffering=0))
        writing.write(b"typed\n")
        assert await loop.run_in_executor(None, os.read, theirs, 100) == b"typed\n"
        os.write(theirs, b"shown\n")
        await until(lambda: reader.data == b"shown\r\n")
        writing.close()
        reading.close()
        await until(lambda: reader.is_lost and writer.is_lost)
        os.close(theirs)

    run(loop, main())


# What can't be a pipe, and what goes wrong.


@pytest.mark.parametrize("what", ["file", "folder"])
def test_no_pipe(loop: asyncio.AbstractEventLoop, tmp_path: Path, what: str) -> None:
    async def main() -> None:
        path = tmp_path
        if what == "file":
            path = tmp_path / "file"
            path.touch()
        fd = os.open(path, os.O_RDONLY)
        # Descriptors in a file object of their own: asyncio's transports close neither.
        thing: Any = type("Thing", (), {"fileno": lambda self: fd, "close": lambda self: None})()
        with pytest.raises(ValueError, match="^Pipe transport is for pipes/sockets only.$"):
            await loop.connect_read_pipe(Recorder, thing)
        message = "Pipe transport is only for pipes, sockets and character devices"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            await loop.connect_write_pipe(Recorder, thing)
        os.close(fd)

    run(loop, main())


def test_a_character_device(loop: asyncio.AbstractEventLoop) -> None:
    """Not every one of them can be watched; the null device can't, but takes all at once."""

    async def main() -> None:
        transport, protocol = await loop.connect_write_pipe(Recorder, open(os.devnull, "wb", buffering=0))
        transport.write(bytes(1_000_000))
        assert transport.get_write_buffer_size() == 0
        transport.close()
        await until(lambda: protocol.is_lost)

    run(loop, main())


def test_watched_by_a_transport(loop: asyncio.AbstractEventLoop, pipe: Ends) -> None:
    """Two transports on the same end are the program's business, and closing one leaves the other usable."""

    async def main() -> None:
        twin = open(os.dup(pipe.reader.fileno()), "rb", buffering=0)
        one, first = await loop.connect_read_pipe(Recorder, pipe.reader)
        other, second = await loop.connect_read_pipe(Recorder, twin)
        one.close()
        await until(lambda: first.is_lost)
        pipe.writer.write(b"still here")
        await until(lambda: second.data == b"still here")
        other.close()
        await until(lambda: second.is_lost)

    run(loop, main())


def test_set_protocol_and_repr(loop: asyncio.AbstractEventLoop, pipe: Ends) -> None:
    async def main() -> None:
        reading, first = await loop.connect_read_pipe(Recorder, pipe.reader)
        writing, writer = await loop.connect_write_pipe(Recorder, pipe.writer)
        assert f"fd={pipe.reader.fileno()}" in repr(reading)
        assert f"fd={pipe.writer.fileno()}" in repr(writing)
        second = Recorder()
        reading.set_protocol(second)
        assert reading.get_protocol() is second
        writing.write(b"x")
        await until(lambda: second.data == b"x")
        writing.close()
        await until(lambda: second.is_lost and writer.is_lost)
        assert first.names == ["made"]
        assert "closed" in repr(reading)
        assert "closed" in repr(writing)

    run(loop, main())


@pytest.mark.parametrize("direction", ["read", "write"])
def test_a_factory_that_raises(loop: asyncio.AbstractEventLoop, pipe: Ends, direction: str) -> None:
    def factory() -> Recorder:
        raise LookupError("no protocol today")

    async def main() -> None:
        with pytest.raises(LookupError):
            if direction == "read":
                await loop.connect_read_pipe(factory, pipe.reader)
            else:
                await loop.connect_write_pipe(factory, pipe.writer)

    run(loop, main())


@pytest.mark.parametrize("direction", ["read", "write"])
def test_never_closed(loop: asyncio.AbstractEventLoop, pipe: Ends, direction: str) -> None:
    """A forgotten transport closes its descriptor, with a warning, when the loop has gone."""

    async def main() -> None:
        if direction == "read":
            await loop.connect_read_pipe(Recorder, pipe.reader)
        else:
            await loop.connect_write_pipe(Recorder, pipe.writer)

    run(loop, main())
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        loop.close()
        gc.collect()
    assert (pipe.reader if direction == "read" else pipe.writer).closed


def test_pipes_of_any_size(loop: asyncio.AbstractEventLoop, pipe: Ends) -> None:
    """A tiny pipe means many partial writes; the order survives."""
    if sys.platform == "linux":
        fcntl.fcntl(pipe.writer.fileno(), fcntl.F_SETPIPE_SZ, 4096)

    async def main() -> None:
        _, reading = await loop.connect_read_pipe(Recorder, pipe.reader)
        transport, _ = await loop.connect_write_pipe(Recorder, pipe.writer)
        sent = b"".join(b"%d," % number for number in range(100_000))
        for start in range(0, len(sent), 10_007):
            transport.write(sent[start : start + 10_007])
        transport.close()
        await until(lambda: reading.is_lost)
        assert reading.data == sent

    run(loop, main())
