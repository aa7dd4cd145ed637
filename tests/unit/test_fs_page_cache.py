"""What the page cache holds is read without leaving the loop's thread; otherwise nobody can tell."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from mioloop import fs

from .support import at_once, run, seen


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A file that can be read without waiting, where the platform can do that."""
    if sys.platform != "linux":
        pytest.skip("Linux alone can say what its page cache holds")
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\n")
    with path.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(8)], 0, os.RWF_NOWAIT)
        except OSError as error:
            pytest.skip(f"not on this file system: {error}")
    seen(path)
    return path


def test_a_small_file_is_read_without_waiting(loop: asyncio.AbstractEventLoop, cached: Path) -> None:
    async def main() -> None:
        async with fs.open(cached, "rb") as file:
            assert at_once(file.read()) == b"one\ntwo\n"
            # The second time is for the others: whoever reads on and on must not keep them from their turn.
            assert await file.read() == b""
            assert at_once(file.read()) == b""
        async with fs.open(cached, "rb") as file:
            assert at_once(file.readline()) == b"one\n"
            assert at_once(file.tell()) == 4
            assert at_once(file.read1()) == b"two\n"
        # It is what there is that counts.
        async with fs.open(cached, "rb") as file:
            assert at_once(file.read(1 << 20)) == b"one\ntwo\n"
        async with fs.open(cached) as text:
            assert at_once(text.readline()) == "one\n"
        async with fs.open(cached, "rb") as file:
            assert at_once(file.readline()) == b"one\n"
            assert await file.seek(1) == 1
            assert at_once(file.read(2)) == b"ne"

    run(loop, main())


def test_what_changes_between_open_and_read_is_seen(loop: asyncio.AbstractEventLoop, cached: Path) -> None:
    async def main() -> None:
        async with fs.open(cached, "rb") as file:
            with cached.open("ab") as other:
                other.write(b"three\n")
            assert await file.read() == b"one\ntwo\nthree\n"
            with cached.open("ab") as other:
                other.write(b"four\n")
            assert await file.read() == b"four\n"
        seen(cached)
        async with fs.open(cached, "rb") as file:
            os.truncate(cached, 4)
            seen(cached)
            assert await file.read() == b"one\n"
            assert await file.read() == b""

    run(loop, main())


@pytest.mark.parametrize("method", ["read", "readline", "read1", "peek"])
def test_who_waits_for_more_lets_others_write_it(
    loop: asyncio.AbstractEventLoop, cached: Path, method: str
) -> None:
    async def write() -> None:
        with cached.open("ab") as other:
            other.write(b"three\n")
        seen(cached)

    async def main() -> None:
        async with fs.open(cached, "rb") as file:
            assert await file.read() == b"one\ntwo\n"
            writer = asyncio.get_running_loop().create_task(write())
            attempts = 0
            while not (data := await getattr(file, method)()):
                attempts += 1
                assert attempts < 1000
            assert data == b"three\n"
            await writer

    run(loop, main())


def test_a_read_that_is_taken_down_is_not_the_loops(loop: asyncio.AbstractEventLoop, cached: Path) -> None:
    if os.statvfs(cached).f_flag & os.ST_NOATIME:
        pytest.skip("this file system takes nothing down")
    seen(cached, read=False)

    async def main() -> None:
        file = await fs.open(cached, "rb")
        reading = file.read()
        future = reading.send(None)
        assert asyncio.isfuture(future)
        reading.close()
        assert await file.read() == b"one\ntwo\n"
        await file.close()

    run(loop, main())


def test_a_large_file_is_not_the_loops(loop: asyncio.AbstractEventLoop, cached: Path) -> None:
    data = bytes(range(256)) * 1024
    cached.write_bytes(data)
    seen(cached)

    async def main() -> None:
        for size in (-1, len(data), 65536):
            async with fs.open(cached, "rb") as file:
                reading = file.read(size)
                assert asyncio.isfuture(reading.send(None))
                reading.close()
                assert await file.read(size) == data[:size] if size >= 0 else data
        # A piece of it is another matter.
        async with fs.open(cached, "rb") as file:
            assert at_once(file.read(100)) == data[:100]
            assert await file.read() == data[100:]

    run(loop, main())


def test_files_without_a_buffer_and_files_to_write_to(loop: asyncio.AbstractEventLoop, cached: Path) -> None:
    async def main() -> None:
        for options in ({"buffering": 0}, {"mode": "r+b"}):
            file = await fs.open(cached, **{"mode": "rb", **options})  # type: ignore[call-overload]
            reading = file.read(3)
            assert asyncio.isfuture(reading.send(None))
            reading.close()
            assert await file.read(3) == b"one"
            await file.close()

    run(loop, main())


@pytest.mark.parametrize("method", ["readline", "peek", "read"])
def test_the_loop_reads_little_whatever_the_buffer(
    loop: asyncio.AbstractEventLoop, cached: Path, method: str
) -> None:
    cached.write_bytes(b"one\n" + bytes(4 << 20))
    seen(cached)

    async def main() -> None:
        async with fs.open(cached, "rb", buffering=4 << 20) as file:
            arguments = (4,) if method == "read" else ()
            data = at_once(getattr(file, method)(*arguments))
            assert data.startswith(b"one\n")
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) <= 65536
            assert await file.seek(0) == 0
            assert await file.read() == b"one\n" + bytes(4 << 20)

    run(loop, main())
