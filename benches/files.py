"""Files: what a program does with many small ones, a large one, and lines, beside aiofiles and anyio.

Each row is done in each loop's process. `read_bytes` and `fs.open` are mioloop's; the same work with aiofiles
and anyio stands in rows of its own, to be compared within one column.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from .row import Body, InProcess, Loop

SMALL_FILES = 10_000
SMALL = 1024
AT_ONCE = 100
LARGE = 1024 * 1024 * 1024
PIECE = 1024 * 1024
LINES = 100_000

_folders: list[tempfile.TemporaryDirectory[str]] = []


def folder() -> Path:
    """A folder that goes with the process."""
    _folders.append(tempfile.TemporaryDirectory(prefix="benches-"))
    return Path(_folders[-1].name)


def small_files() -> list[Path]:
    where = folder()
    paths = [where / str(number) for number in range(SMALL_FILES)]
    for path in paths:
        path.write_bytes(b"x" * SMALL)
    # The first read after a change has the file system take it down, and would be another row's.
    for path in paths:
        path.read_bytes()
    return paths


Reader = Callable[[Path], Awaitable[bytes]]


def reader(how: str) -> Reader:
    if how == "fs.read_bytes":
        from mioloop import fs

        return fs.read_bytes
    if how == "fs.open":
        from mioloop import fs

        async def read_ours(path: Path) -> bytes:
            async with fs.open(path, "rb") as file:
                return await file.read()

        return read_ours
    if how == "aiofiles":
        import aiofiles  # type: ignore[import-untyped, unused-ignore]

        async def read_theirs(path: Path) -> bytes:
            async with aiofiles.open(path, "rb") as file:
                data: bytes = await file.read()
                return data

        return read_theirs
    import anyio

    async def read_anyio(path: Path) -> bytes:
        return await anyio.Path(path).read_bytes()

    return read_anyio


def one_by_one(how: str) -> Callable[[Loop], Body]:
    def prepare(loop: Loop) -> Body:
        paths, read = small_files(), reader(how)

        async def run(count: int) -> None:
            for number in range(count):
                if len(await read(paths[number % SMALL_FILES])) != SMALL:
                    raise RuntimeError("it has not read the file")

        return run

    return prepare


def at_once(how: str) -> Callable[[Loop], Body]:
    def prepare(loop: Loop) -> Body:
        paths, read = small_files(), reader(how)

        async def run(count: int) -> None:
            for number in range(count):
                start = number * AT_ONCE % SMALL_FILES
                await asyncio.gather(*map(read, paths[start : start + AT_ONCE]))

        return run

    return prepare


def written(how: str) -> Callable[[Loop], Body]:
    """Needs a thread, on any loop."""

    def prepare(loop: Loop) -> Body:
        where, data = folder(), b"x" * SMALL
        paths = [where / str(number) for number in range(AT_ONCE)]
        if how == "fs.write_bytes":
            from mioloop import fs

            write: Callable[[Path, bytes], Awaitable[int]] = fs.write_bytes
        elif how == "aiofiles":
            import aiofiles

            async def write(path: Path, data: bytes) -> int:
                async with aiofiles.open(path, "wb") as file:
                    count: int = await file.write(data)
                    return count
        else:
            import anyio

            async def write(path: Path, data: bytes) -> int:
                return await anyio.Path(path).write_bytes(data)

        async def run(count: int) -> None:
            for number in range(count):
                if await write(paths[number % AT_ONCE], data) != SMALL:
                    raise RuntimeError("it has not written the file")

        return run

    return prepare


def opener(how: str) -> Callable[..., contextlib.AbstractAsyncContextManager[Any]]:
    if how == "fs.open":
        from mioloop import fs

        return fs.open
    if how == "aiofiles":
        import aiofiles

        theirs: Callable[..., contextlib.AbstractAsyncContextManager[Any]] = aiofiles.open
        return theirs
    import anyio

    @contextlib.asynccontextmanager
    async def open_anyio(path: Path, mode: Any) -> AsyncIterator[Any]:
        async with await anyio.open_file(path, mode) as file:
            yield file

    return open_anyio


def large_file(how: str) -> Callable[[Loop], Body]:
    def prepare(loop: Loop) -> Body:
        path, open_file = folder() / "large", opener(how)
        with path.open("wb") as sparse:
            sparse.truncate(LARGE)

        async def run(count: int) -> None:
            """`count` pieces, from the beginning again where the file ends."""
            while count > 0:
                async with open_file(path, "rb") as file:
                    while count > 0 and await file.read(PIECE):
                        count -= 1

        return run

    return prepare


def lines(how: str) -> Callable[[Loop], Body]:
    def prepare(loop: Loop) -> Body:
        path, open_file = folder() / "lines", opener(how)
        path.write_text("".join(f"this is line {number}\n" for number in range(LINES)))

        async def run(count: int) -> None:
            while count > 0:
                async with open_file(path, "r") as file:
                    async for _line in file:
                        count -= 1
                        if count <= 0:
                            break

        return run

    return prepare


def rows(
    name: str, make: Callable[[str], Callable[[Loop], Body]], ways: list[str], batch: int = 1
) -> list[InProcess]:
    modules = {"aiofiles": ("aiofiles",), "anyio": ("anyio",)}
    return [
        InProcess(f"{name}, {how}", None, make(how), batch=batch, pinned=False, modules=modules.get(how, ()))
        for how in ways
    ]


def rust_future(loop: Loop) -> Body:
    """What a future of tokio costs until a task has its result; the extension is examples/rust_futures."""
    import rust_futures

    async def run(count: int) -> None:
        for _ in range(count):
            await rust_futures.ready(None)

    return run


ROWS = (
    *rows("small files, one by one", one_by_one, ["fs.read_bytes", "fs.open", "aiofiles", "anyio"]),
    *rows("small files, 100 at once", at_once, ["fs.read_bytes", "fs.open", "aiofiles", "anyio"], AT_ONCE),
    *rows("small files written, one by one", written, ["fs.write_bytes", "aiofiles", "anyio"]),
    *rows("1 GiB file, a MiB at a time", large_file, ["fs.open", "aiofiles", "anyio"]),
    *rows("lines of a file", lines, ["fs.open", "aiofiles", "anyio"]),
    InProcess("await a Rust future", None, rust_future, pinned=False, modules=("rust_futures",)),
)
