"""Writing by a stream transport: what goes in comes out, in order, whatever the kernel takes at a time."""

from __future__ import annotations

import array
import asyncio
import contextvars
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from .protocols import Recorder, connected, receive, receive_all
from .support import BIG, run, settle, until


def drops(size: int) -> Callable[[bytes], Any]:
    return lambda data: memoryview(b"#" * size + data + b"#" * size)[size : size + len(data)]


SORTS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "memoryview of a bytearray": lambda data: memoryview(bytearray(data)),
    "sliced memoryview": drops(3),
}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("size", [1, 1000, BIG])
def test_bytes_like_objects(loop: asyncio.AbstractEventLoop, sort: str, size: int) -> None:
    async def main() -> None:
        data = os.urandom(size)
        async with connected(Recorder()) as (transport, _, peer):
            assert transport.write(SORTS[sort](data)) is None
            assert await receive(peer, size) == data
            await until(lambda: transport.get_write_buffer_size() == 0)

    run(loop, main())


def test_wide_items_count_in_bytes(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        numbers = memoryview(b"abcdefgh").cast("I")
        async with connected(Recorder()) as (transport, _, peer):
            transport.write(numbers)
            assert await receive(peer, 8) == b"abcdefgh"

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio takes the number of items for the number of bytes")
def test_many_wide_items_count_in_bytes(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        numbers = array.array("I", range(BIG // 4))
        async with connected(Recorder()) as (transport, _, peer):
            transport.write(memoryview(numbers))
            assert await receive(peer, BIG) == numbers.tobytes()

    run(loop, main())


def test_an_exact_copy_of_many_small_writes(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            parts = [os.urandom(number % 300) for number in range(5000)]
            for part in parts:
                transport.write(part)
            expected = b"".join(parts)
            assert await receive(peer, len(expected)) == expected

    run(loop, main())


def test_small_writes_behind_a_big_one(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            big = os.urandom(BIG)
            transport.write(big)
            for number in range(9000):
                transport.write(b"%d," % number)
            tail = b"".join(b"%d," % number for number in range(9000))
            assert await receive(peer, BIG + len(tail)) == big + tail

    run(loop, main())


def test_a_bytearray_may_change_after_the_write(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            data = bytearray(b"original")
            transport.write(data)
            data[:] = b"changed!"
            data += b"resized"
            assert await receive(peer, 8) == b"original"

    run(loop, main())


@pytest.mark.mioloop_only(
    sys.version_info >= (3, 12), reason="asyncio sends what the buffer holds later, from 3.12 on"
)
@pytest.mark.parametrize("method", ["write", "writelines"])
def test_a_bytearray_may_change_while_it_waits(loop: asyncio.AbstractEventLoop, method: str) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            data = bytearray(b"original" * (BIG // 8))
            expected = bytes(data)
            if method == "write":
                transport.write(data)
            else:
                transport.writelines([data])
            data[:] = b"changed!" * (BIG // 8)
            data += b"resized"
            transport.write(memoryview(data)[:8])
            data[:8] = b"again..."
            assert await receive(peer, BIG + 8) == expected + b"changed!"

    run(loop, main())


@pytest.mark.parametrize("wrong", ["text", 5, None, [b"x"], object()])
def test_what_is_not_bytes_like(loop: asyncio.AbstractEventLoop, wrong: object) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            name = type(wrong).__name__
            # Newer Pythons name the three types.
            message = f"^data argument must be a bytes.* not '{name}'$"
            with pytest.raises(TypeError, match=message):
                transport.write(wrong)
            assert not transport.is_closing()
            assert protocol.names == ["made"]

    run(loop, main())


def test_an_empty_write_does_nothing(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.write(b"")
            transport.write(bytearray())
            transport.write(memoryview(b""))
            transport.write(b"after")
            assert await receive(peer, 5) == b"after"
            assert protocol.names == ["made"]

    run(loop, main())


# writelines


@pytest.mark.parametrize("count", [1, 3, 2000])
@pytest.mark.parametrize("size", [1, 3000])
def test_writelines(loop: asyncio.AbstractEventLoop, count: int, size: int) -> None:
    async def main() -> None:
        parts = [os.urandom(size) for _ in range(count)]
        async with connected(Recorder()) as (transport, _, peer):
            transport.writelines(parts)
            assert await receive(peer, count * size) == b"".join(parts)

    run(loop, main())


def test_writelines_of_mixed_sorts(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            transport.writelines([b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], b"", b"d"])
            transport.writelines((b"e", b"f"))
            transport.writelines(part for part in (b"g", b"h"))
            transport.writelines([])
            transport.write(b"i")
            assert await receive(peer, 9) == b"abcdefghi"

    run(loop, main())


@pytest.mark.mioloop_only(
    (3, 12) <= sys.version_info < (3, 14, 10),
    reason="asyncio of these versions tries for ever to send an empty piece",
)
def test_writelines_of_empty_pieces(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.writelines([b"", b""])
            transport.writelines([b"a", b""])
            transport.writelines(iter(()))
            assert transport.get_write_buffer_size() == 0
            transport.close()
            assert await receive_all(peer) == b"a"
            await until(lambda: protocol.is_lost)

    run(loop, main())


def test_writelines_behind_a_big_write(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            big = os.urandom(BIG)
            transport.write(big)
            transport.writelines([b"x", big, b"y"])
            transport.write(b"z")
            assert await receive(peer, 2 * BIG + 3) == big + b"x" + big + b"yz"

    run(loop, main())


def test_writelines_of_text(loop: Any) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            with pytest.raises(TypeError, match="bytes"):
                transport.writelines(["text"])
            with pytest.raises(TypeError):
                transport.writelines(5)
            transport.write(b"unharmed")
            assert await receive(peer, 8) == b"unharmed"

    run(loop, main())


# The buffer and its watermarks


def test_the_buffer_size(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            assert transport.get_write_buffer_size() == 0
            transport.write(b"x" * BIG)
            size = transport.get_write_buffer_size()
            assert 0 < size < BIG
            transport.write(b"y" * 100)
            assert transport.get_write_buffer_size() == size + 100
            assert len(await receive(peer, BIG + 100)) == BIG + 100
            await until(lambda: transport.get_write_buffer_size() == 0)

    run(loop, main())


def test_the_protocol_is_paused_and_resumed(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.write(b"small")
            assert protocol.names == ["made"]
            transport.write(b"x" * BIG)
            assert protocol.names == ["made", "pause"]  # called before write returns
            transport.write(b"y" * BIG)
            assert protocol.names == ["made", "pause"]
            received = 0
            while received < 2 * BIG + 5:
                assert ("resume" in protocol.names) is (transport.get_write_buffer_size() <= 16 * 1024)
                received += len(await loop.sock_recv(peer, 1 << 18))
            await until(lambda: "resume" in protocol.names)
            await settle()
            assert protocol.names == ["made", "pause", "resume"]
            transport.write(b"x" * BIG)
            assert protocol.names == ["made", "pause", "resume", "pause"]
            await receive(peer, BIG)
            await until(lambda: len(protocol.names) == 5)

    run(loop, main())


def test_watermarks(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
            transport.set_write_buffer_limits(high=1000)
            assert transport.get_write_buffer_limits() == (250, 1000)
            transport.set_write_buffer_limits(low=10)
            assert transport.get_write_buffer_limits() == (10, 40)
            transport.set_write_buffer_limits(high=0)
            assert transport.get_write_buffer_limits() == (0, 0)
            transport.set_write_buffer_limits(high=2 * BIG, low=BIG)
            assert transport.get_write_buffer_limits() == (BIG, 2 * BIG)
            transport.write(b"x" * BIG)
            assert protocol.names == ["made"]
            transport.set_write_buffer_limits(high=10)
            assert protocol.names == ["made", "pause"]
            transport.set_write_buffer_limits()
            assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
            await receive(peer, BIG)
            await until(lambda: protocol.names == ["made", "pause", "resume"])

    run(loop, main())


@pytest.mark.parametrize(("high", "low"), [(1, 2), (-1, None), (-1, -1), (5, -1)])
def test_wrong_watermarks(loop: asyncio.AbstractEventLoop, high: int, low: int | None) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, __):
            with pytest.raises(ValueError, match=r"^high \(-?\d+\) must be >= low \(-?\d+\) must be >= 0$"):
                transport.set_write_buffer_limits(high=high, low=low)
            assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)

    run(loop, main())


def test_a_high_watermark_of_zero_pauses_at_once(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.set_write_buffer_limits(high=0)
            transport.write(b"goes straight out")
            assert protocol.names == ["made"]
            transport.write(b"x" * BIG)
            assert protocol.names == ["made", "pause"]
            await receive(peer, BIG + 17)
            await until(lambda: protocol.names == ["made", "pause", "resume"])

    run(loop, main())


@pytest.mark.mioloop_only(
    (3, 12) <= sys.version_info < (3, 13, 2), reason="asyncio of these versions forgot to pause"
)
def test_writelines_pauses_the_protocol(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.writelines([b"x" * BIG, b"y"])
            assert protocol.names == ["made", "pause"]
            await receive(peer, BIG + 1)
            await until(lambda: protocol.names == ["made", "pause", "resume"])

    run(loop, main())


def test_writing_in_pause_and_resume(loop: asyncio.AbstractEventLoop) -> None:
    class Writing(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.write(b"in pause;")

        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.write(b"in resume;")

    async def main() -> None:
        async with connected(Writing()) as (transport, _, peer):
            transport.write(b"x" * BIG)
            assert await receive(peer, BIG + 19) == b"x" * BIG + b"in pause;in resume;"

    run(loop, main())


# The writing end closed


def test_resuming_runs_in_the_connections_context(loop: asyncio.AbstractEventLoop) -> None:
    colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")
    seen: list[str] = []

    class Colourful(Recorder):
        def resume_writing(self) -> None:
            seen.append(colour.get())
            colour.set("red")
            super().resume_writing()

    async def main() -> None:
        colour.set("green")
        async with connected(Colourful()) as (transport, protocol, peer):
            transport.write(bytes(BIG))
            assert await receive(peer, BIG) == bytes(BIG)
            await until(lambda: "resume" in protocol.names)
        assert colour.get() == "green"

    run(loop, main())
    assert seen == ["green"]
    assert colour.get() == "none"


def test_write_eof(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            assert transport.can_write_eof() is True
            transport.write(b"request")
            transport.write_eof()
            transport.write_eof()
            assert await receive_all(peer) == b"request"
            assert not transport.is_closing()
            peer.send(b"answer")
            await until(lambda: protocol.data)
            assert protocol.data == b"answer"

    run(loop, main())


def test_write_eof_waits_for_the_buffer(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            transport.write(b"x" * BIG)
            transport.write_eof()
            assert transport.get_write_buffer_size() > 0
            assert len(await receive_all(peer)) == BIG

    run(loop, main())


def test_write_after_write_eof(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            transport.write_eof()
            with pytest.raises(RuntimeError, match=r"^Cannot call write\(\) after write_eof\(\)$"):
                transport.write(b"x")
            with pytest.raises(RuntimeError, match=r"^Cannot call write(lines)?\(\) after write_eof\(\)$"):
                transport.writelines([b"x"])
            assert await receive_all(peer) == b""

    run(loop, main())


def test_write_eof_then_close(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.write(b"x" * BIG)
            transport.write_eof()
            transport.close()
            transport.write_eof()
            assert len(await receive_all(peer)) == BIG
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None

    run(loop, main())


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_writes_after_close_are_ignored_then_warned_of(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.write(b"before")
            transport.close()
            for _ in range(4):
                transport.write(b"after")
            assert warnings_of(caplog) == []
            transport.write(b"after")
            assert warnings_of(caplog) == ["socket.send() raised exception."]
            transport.write(b"after")
            assert len(warnings_of(caplog)) == 2
            await until(lambda: protocol.is_lost)
            transport.write(b"after")
            assert len(warnings_of(caplog)) == 3
            assert await receive_all(peer) == b"before"

    run(loop, main())
