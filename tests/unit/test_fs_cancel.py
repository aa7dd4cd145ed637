"""A cancelled operation of mioloop.fs: nothing taken, nothing half written, nothing left open.

FIFOs are what blocks for as long as the test wants.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from pathlib import Path
from typing import Any

import pytest

from mioloop import fs

from .support import run, until


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors in /proc")


async def cancelled(work: Any) -> None:
    """Begins it, lets it get stuck, and cancels it."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_read_that_is_cancelled_has_taken_nothing(loop: asyncio.AbstractEventLoop) -> None:
    read_end, write_end = os.pipe()

    async def main() -> None:
        async with fs.open(read_end, "rb") as file:
            os.write(write_end, b"one")
            await cancelled(file.read(6))
            await cancelled(file.read(5))
            os.write(write_end, b"two\nthree\n")
            assert await file.read(4) == b"onet"
            assert await file.readline() == b"wo\n"
            assert await file.readline() == b"three\n"
            await cancelled(file.readline())
            os.close(write_end)
            assert await file.read() == b""

    run(loop, main())


def test_a_text_read_that_is_cancelled_has_taken_nothing(loop: asyncio.AbstractEventLoop) -> None:
    read_end, write_end = os.pipe()

    async def main() -> None:
        async with fs.open(read_end, encoding="utf-8") as file:
            os.write(write_end, "begins é".encode()[:-1])
            await cancelled(file.readline())
            await cancelled(file.read(100))
            await cancelled(file.read())
            os.write(write_end, "é ends\nmore".encode()[1:])
            assert await file.readline() == "begins é ends\n"
            os.close(write_end)
            assert await file.read() == "more"

    run(loop, main())


def test_cancelled_between_the_result_and_the_task(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """The worst moment: what was read is there, and the task that waits for it has not run yet."""
    path = tmp_path / "file"

    async def main() -> None:
        chance = random.Random(1)
        for size in (10, 1000, 100_000):
            data = bytes(range(256)) * min(size, 2000)
            path.write_bytes(data)
            async with fs.open(path, "rb", 100) as file:
                got = b""
                while len(got) < len(data):
                    task = asyncio.ensure_future(file.read(size))
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    if chance.random() < 0.5:
                        task.cancel()
                    try:
                        piece = await task
                    except asyncio.CancelledError:
                        continue
                    assert piece
                    got += piece
                assert got == data

    run(loop, main())


def test_a_write_that_is_cancelled_is_whole(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """Done or not begun, in any mixture; the position is what the file says."""
    path = tmp_path / "file"

    async def main() -> None:
        chance = random.Random(2)
        done: list[bytes] = []
        maybe: set[bytes] = set()
        async with fs.open(path, "wb", 64) as file:
            for number in range(300):
                piece = f"<{number:04}{'x' * chance.randrange(200)}>".encode()
                task = asyncio.ensure_future(file.write(piece))
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                if chance.random() < 0.4:
                    task.cancel()
                try:
                    assert await task == len(piece)
                    done.append(piece)
                except asyncio.CancelledError:
                    maybe.add(piece)
            await file.flush()
            position = await file.tell()
        written = path.read_bytes()
        assert position == len(written)
        pieces = [b"<" + piece for piece in written.split(b"<")[1:]]
        assert [piece for piece in pieces if piece not in maybe] == done
        assert len(pieces) == len(set(pieces))

    run(loop, main())


def test_a_write_to_a_full_pipe(loop: asyncio.AbstractEventLoop) -> None:
    """It was begun, so it is finished, before whatever is written next."""
    read_end, write_end = os.pipe()
    data = os.urandom(300_000)

    async def main() -> None:
        file = await fs.open(write_end, "wb")
        await cancelled(file.write(data))
        following = asyncio.ensure_future(file.write(b"next"))
        closing = asyncio.ensure_future(file.close())
        await asyncio.sleep(0.01)
        assert not following.done() and not closing.done()
        received = b""
        while piece := await asyncio.to_thread(os.read, read_end, 65536):
            received += piece
        await closing
        # It stood behind the first and was not begun when the file was closed.
        with pytest.raises(ValueError, match="closed file"):
            await following
        assert received == data

    run(loop, main())
    os.close(read_end)


@pytest.mark.parametrize("size", [10, 500_000])
def test_a_file_that_is_written_whole(loop: asyncio.AbstractEventLoop, tmp_path: Path, size: int) -> None:
    async def main() -> None:
        for number in range(30):
            path = tmp_path / str(number)
            path.write_bytes(b"before")
            task = asyncio.ensure_future(fs.write_bytes(path, b"x" * size))
            for _ in range(number % 3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if number % 3 == 0:
                assert path.read_bytes() == b"before"
            else:
                await until(lambda path=path: path.stat().st_size == size)

    run(loop, main())


@needs_proc
def test_an_open_that_is_cancelled_leaves_nothing_open(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.touch()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def main() -> None:
        await fs.listdir(tmp_path)  # what is opened once is opened by now: it takes a thread
        before = descriptors()
        for mode in ("rb", "r", "r+", "wb"):
            for turns in range(4):
                task = asyncio.ensure_future(fs.open(path, mode))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if not task.cancelled():
                    await task.result().close()
                del task
        await until(lambda: descriptors() == before)
        # Nobody writes to it, so the open hangs, in its thread; when somebody does, nobody is there to get
        # the file.
        await cancelled(fs.open(fifo, "rb"))
        writer = os.open(fifo, os.O_WRONLY)
        os.close(writer)
        await until(lambda: descriptors() == before)

    run(loop, main())


@needs_proc
def test_a_close_that_is_cancelled_closes(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    read_end, write_end = os.pipe()

    async def main() -> None:
        await fs.listdir(tmp_path)
        before = descriptors()
        for turns in range(3):
            file = await fs.open(path, "wb")
            await file.write(b"written")
            task = asyncio.ensure_future(file.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns == 0:
                task.cancel()  # before it has begun: nobody has closed the file
                await asyncio.gather(task, return_exceptions=True)
                assert not file.closed
                task = asyncio.ensure_future(file.close())
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert file.closed
            await until(lambda: descriptors() == before)
            assert path.read_bytes() == b"written"
        # Behind a read that hangs.
        file = await fs.open(read_end, "rb")
        await cancelled(file.read(1))
        await cancelled(file.close())
        assert file.closed
        os.close(write_end)
        await until(lambda: descriptors() == before - 2)

    run(loop, main())


def test_a_task_that_is_cancelled_in_its_block(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    files: list[Any] = []

    async def work() -> None:
        async with fs.open(path, "w") as file:
            files.append(file)
            await file.write("written")
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.ensure_future(work())
        await until(lambda: files)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert files[0].closed
        assert path.read_text() == "written"

    run(loop, main())


def test_an_error_that_nobody_waits_for_any_more_is_not_logged(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        for turns in range(5):
            task = asyncio.ensure_future(fs.read_bytes(tmp_path / "missing"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            gc.collect()
        await asyncio.sleep(0.01)

    run(loop, main())
