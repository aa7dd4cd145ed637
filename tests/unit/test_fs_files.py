"""The files of mioloop.fs beyond what test_fs_property.py compares: opening, errors, pipes, lines, ends."""

from __future__ import annotations

import asyncio
import gc
import inspect
import io
import itertools
import os
import pty
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mioloop import fs

from .support import run

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def both(loop: asyncio.AbstractEventLoop, file: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
    """What opening a file raises, here and with the built-in."""

    async def main() -> None:
        f = await fs.open(file, *args, **options)
        await f.close()

    errors: list[Any] = []
    for attempt in (lambda: run(loop, main()), lambda: open(file, *args, **options).close()):
        try:
            attempt()
            errors.append(None)
        except Exception as error:
            details = (getattr(error, name, None) for name in ("errno", "strerror", "filename"))
            errors.append((type(error), *details, str(error)))
    return errors[0], errors[1]


def test_open_and_its_three_forms(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")

    async def main() -> None:
        async with fs.open(path) as file:
            assert await file.read() == "text"
        assert file.closed
        file = await fs.open(path)
        async with file as same:
            assert same is file
        task = asyncio.get_running_loop().create_task(fs.open(path))
        await (await task).close()

    run(loop, main())


def test_an_open_that_is_never_awaited_is_told_of(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    opening = fs.open(tmp_path / "file", "w")
    with pytest.warns(RuntimeWarning, match="never awaited"):
        del opening
        gc.collect()
    assert not (tmp_path / "file").exists()


def test_the_signature_is_the_built_in_one() -> None:
    assert list(inspect.signature(fs.open).parameters) == list(inspect.signature(open).parameters)


@pytest.mark.parametrize(
    "mode", ["", "r", "rb", "rt", "rw", "U", "r++", "rbt", "b", "+", "xa", "rbb", "tr", "b+r"]
)
def test_modes_right_and_wrong(loop: asyncio.AbstractEventLoop, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    ours, theirs = both(loop, path, mode)
    if theirs is None:
        assert ours is None
    else:
        # The built-in finds some faults one after the other, and then in another order.
        assert ours[0] is theirs[0]


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (("rb",), {"encoding": "utf-8"}),
        (("rb",), {"errors": "strict"}),
        (("rb",), {"newline": "\n"}),
        (("r", 0), {}),
        (("r",), {"newline": "x"}),
        (("r",), {"encoding": "no such encoding"}),
        (("r",), {"encoding": "rot13"}),
        (("r",), {"closefd": False}),
    ],
)
def test_arguments_that_contradict_each_other(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    ours, theirs = both(loop, path, *args, **options)
    assert theirs is not None
    assert ours == theirs


@pytest.mark.parametrize("mode", ["r", "rb", "r+", "w", "a", "x", "xb"])
@pytest.mark.parametrize("name", ["missing/file", "folder", "file/below", "\0", "there"])
@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_errors_are_the_built_in_ones(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, mode: str, name: str, kind: Any
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "there").touch()
    ours, theirs = both(loop, kind(os.path.join(tmp_path, name)), mode)
    if theirs is not None and theirs[0] is ValueError:
        ours, theirs = ours[0], theirs[0]  # its text has changed from version to version
    assert ours == theirs


def test_lines_and_how_they_end(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\r\nthree\rfour" + b"x" * 200_000 + b"\nend")

    async def main() -> None:
        for newline in (None, "", "\n", "\r", "\r\n"):
            with open(path, newline=newline) as model:
                expected = list(model)
                newlines = model.newlines
            async with fs.open(path, newline=newline) as file:
                assert [line async for line in file] == expected
                assert file.newlines == newlines
                assert [line async for line in file] == []
        async with fs.open(path, "rb") as file:
            assert [line async for line in file] == path.read_bytes().splitlines(True)[0:0] + list(
                open(path, "rb")
            )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        run(loop, main())


def test_readlines_up_to_a_hint(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\nthree\nfour")

    async def main() -> None:
        for hint in (-1, 0, 1, 4, 5, 8, 100, None):
            for mode in ("r", "rb"):
                with open(path, mode) as model:
                    expected = model.readlines(-1 if hint is None else hint)
                async with fs.open(path, mode) as file:
                    assert await file.readlines(hint) == expected

    run(loop, main())


def test_a_line_of_many_megabytes(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 20_000_000 + b"\nend")

    async def main() -> None:
        async with fs.open(path) as text, fs.open(path, "rb") as binary:
            assert len(await text.readline()) == len(await binary.readline()) == 20_000_001
            assert await text.tell() == await binary.tell() == 20_000_001
            assert (await text.readline(), await binary.readline()) == ("end", b"end")

    run(loop, main())


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 131_072, 131_073, 3_000_000])
def test_whole_files_of_every_size(loop: asyncio.AbstractEventLoop, tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    data = os.urandom(size)

    async def main() -> None:
        assert await fs.write_bytes(path, data) == size
        assert path.read_bytes() == data
        assert await fs.read_bytes(path) == data
        for buffering in (-1, 0, 1000):
            async with fs.open(path, "rb", buffering) as file:
                assert await file.read() == data
                assert await file.read() == b""
                await file.seek(1)
                assert await file.read(size * 2) == data[1:]
                assert await file.read(10) == b""

    run(loop, main())


def test_a_file_that_grows_while_it_is_read(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100_000)

    async def main() -> None:
        async with fs.open(path, "rb") as file:
            with path.open("ab") as writer:
                writer.write(b"b" * 300_000)
            assert await file.read() == b"a" * 100_000 + b"b" * 300_000
            with path.open("ab") as writer:
                writer.write(b"c")
            # The end was the end then.
            assert await file.read() == b"c"

    run(loop, main())


def test_a_result_may_not_be_had_before_it_is_whole(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """A large read goes into its result at once; the size it asked for is not the size it gets."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 10_000)

    async def main() -> None:
        async with fs.open(path, "rb") as file:
            result = await file.read(10_000_000)
            assert (len(result), result[-10:], hash(result)) == (
                100_000,
                b"0123456789",
                hash(path.read_bytes()),
            )

    run(loop, main())


def test_reading_ahead_and_looking_ahead(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    async def main() -> None:
        async with fs.open(path, "rb") as file:
            assert (await file.peek(1))[:2] == b"01"
            assert await file.tell() == 0
            assert await file.read1(3) == b"012"
            assert await file.read1() == b"3456789"
            assert await file.peek() == await file.read1() == b""

    run(loop, main())


def test_operations_that_a_mode_does_not_have(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def main() -> None:
        async with fs.open(path, "wb") as writer, fs.open(path, "rb") as reader:
            for refused in (
                writer.read(),
                writer.readline(),
                writer.peek(),
                reader.write(b""),
                reader.truncate(0),
            ):
                with pytest.raises(io.UnsupportedOperation):
                    await refused
            with pytest.raises(TypeError, match="not 'str'"):
                await writer.write("text")  # type: ignore[arg-type]
        async with fs.open(path, "w") as text:
            with pytest.raises(io.UnsupportedOperation, match="not readable"):
                await text.read()
            with pytest.raises(TypeError, match="^write.. argument must be str, not bytes$"):
                await text.write(b"bytes")  # type: ignore[arg-type]

    run(loop, main())


@pytest.mark.parametrize("mode", ["r+", "r+b"])
def test_a_closed_file(loop: asyncio.AbstractEventLoop, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123")

    async def main() -> None:
        file: Any = await fs.open(path, mode)
        await file.close()
        await file.close()
        assert file.closed
        empty: Any = "" if mode == "r+" else b""
        operations: list[Callable[[], Any]] = [
            lambda: file.read(),
            lambda: file.read(1),
            lambda: file.readline(),
            lambda: file.write(empty),
            lambda: file.tell(),
            lambda: file.seek(0),
            lambda: file.truncate(),
            lambda: file.flush(),
            lambda: file.seekable(),
            lambda: file.__aenter__(),
            lambda: file.__anext__(),
        ]
        for operation in operations:
            with pytest.raises(ValueError, match="closed file"):
                await operation()
        with pytest.raises(ValueError, match="closed file"):
            file.fileno()

    run(loop, main())


def test_descriptors_of_others(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def main() -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        async with fs.open(fd, "w", closefd=False) as text:
            await text.write("kept")
            assert (text.name, text.fileno()) == (fd, fd)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 4
        async with fs.open(fd, "r+b") as binary:
            assert await binary.tell() == 4
            await binary.seek(0)
            assert await binary.read() == b"kept"
        with pytest.raises(OSError):
            os.fstat(fd)

    run(loop, main())
    assert both(loop, 123456)[0][:2] == both(loop, 123456)[1][:2]
    assert both(loop, -1)[0][0] is ValueError


def test_the_descriptor_is_where_the_file_is_after_a_flush(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    async def main() -> None:
        async with fs.open(path, "r+b") as file:
            assert await file.read(3) == b"012"
            await file.flush()
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 3
            await file.write(b"xy")
            await file.flush()
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 5
        assert path.read_bytes() == b"012xy56789"

    run(loop, main())


def test_an_opener(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    calls: list[tuple[Any, int]] = []

    def opener(name: str, flags: int) -> int:
        calls.append((name, flags))
        return os.open(name, flags, 0o600)

    async def main() -> None:
        async with fs.open(path, "w", opener=opener) as file:
            await file.write("text")
            assert file.name == str(path)

    run(loop, main())
    with open(path, "a", opener=opener):
        pass
    assert path.read_text() == "text"
    assert path.stat().st_mode & 0o777 == 0o600
    assert calls[0] == (str(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    assert both(loop, path, opener=lambda *_: -1)[0][0] is ValueError


def test_pipes(loop: asyncio.AbstractEventLoop) -> None:
    """They have no position, and no more to give than there is."""
    read_end, write_end = os.pipe()

    async def main() -> None:
        async with fs.open(read_end, "rb") as reader, fs.open(write_end, "wb") as writer:
            assert not await reader.seekable()
            with pytest.raises(OSError):
                await reader.tell()
            reading = asyncio.ensure_future(reader.read(6))
            await writer.write(b"one")
            await writer.flush()
            await asyncio.sleep(0.01)
            assert not reading.done()
            await writer.write(b"two\nthree")
            await writer.flush()
            assert await reading == b"onetwo"
            assert await reader.readline() == b"\n"
            assert await reader.read1(100) == b"three"
            await writer.close()
            assert await reader.read() == b""

    run(loop, main())


def test_text_through_a_pipe(loop: asyncio.AbstractEventLoop) -> None:
    read_end, write_end = os.pipe()

    async def main() -> None:
        async with fs.open(read_end) as reader, fs.open(write_end, "w", 1) as writer:
            assert writer.line_buffering
            await writer.write("first\nsecond")
            assert await reader.readline() == "first\n"
            for refused in (reader.tell(), reader.seek(0)):
                with pytest.raises(io.UnsupportedOperation, match="not seekable"):
                    await refused
            await writer.close()
            assert await reader.read() == "second"

    run(loop, main())
    read_end, write_end = os.pipe()
    os.close(write_end)
    ours = both(loop, read_end, "r+b")[0]
    assert ours[0] is io.UnsupportedOperation


def test_a_terminal_is_line_buffered(loop: asyncio.AbstractEventLoop) -> None:
    parent, child = pty.openpty()

    async def main() -> None:
        async with fs.open(child, "w") as file:
            assert await file.isatty()
            assert file.line_buffering
            await file.write("line\n")
            said = b""
            while len(said) < 6:
                said += os.read(parent, 100)
            assert said == b"line\r\n"

    run(loop, main())
    os.close(parent)


def test_a_full_disk(loop: asyncio.AbstractEventLoop) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this platform has no /dev/full")

    async def main() -> None:
        file = await fs.open("/dev/full", "wb")
        await file.write(b"small")
        with pytest.raises(OSError, match="No space left"):
            await file.flush()
        with pytest.raises(OSError, match="No space left"):
            await file.close()
        assert file.closed
        await file.close()
        with pytest.raises(OSError, match="No space left") as caught:
            await fs.write_bytes("/dev/full", b"x")
        assert caught.value.filename == "/dev/full"

    run(loop, main())


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_file_that_nobody_closes(loop: asyncio.AbstractEventLoop, tmp_path: Path, mode: str) -> None:
    """It is told of, and what was written is not lost: as with the built-in."""
    path = tmp_path / "file"

    async def main() -> int:
        file: Any = await fs.open(path, mode)
        await file.write("text" if mode == "w" else b"text")
        return int(file.fileno())

    with pytest.warns(ResourceWarning, match="unclosed file"):
        fd = run(loop, main())
        gc.collect()
    assert path.read_text() == "text"
    with pytest.raises(OSError):
        os.fstat(fd)


def test_many_tasks_with_one_file(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """Each gets whole lines and writes whole pieces, in the order in which they came."""
    path = tmp_path / "file"
    lines = [f"line {number}\n" * 50 for number in range(200)]
    path.write_text("".join(lines))

    async def main() -> None:
        async with fs.open(path) as text, fs.open(path, "rb", 16) as binary:
            texts = await asyncio.gather(*(text.readline() for _ in range(10_000)))
            assert texts == "".join(lines).splitlines(True)
            binaries = await asyncio.gather(*(binary.readline() for _ in range(1000)))
            assert sorted(binaries) == sorted(line.encode() for line in texts[:1000])
        async with fs.open(path, "wb", 100) as file:
            await asyncio.gather(*(file.write(line.encode()) for line in lines))
        assert path.read_text() == "".join(lines)

    run(loop, main())


def test_a_file_goes_from_loop_to_loop(loop_factory: LoopFactory, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one\ntwo\nthree\n")
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        file = runner.run(asyncio.wait_for(fs.open(path), 30))
        assert runner.run(file.readline()) == "one\n"
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(file.readline()) == "two\n"
        runner.run(file.close())


def test_two_loops_in_two_threads(loop_factory: LoopFactory, tmp_path: Path) -> None:
    path = tmp_path / "file"
    errors: list[BaseException] = []

    async def main(name: str) -> None:
        for number in range(100):
            await fs.write_bytes(path.with_name(name), f"{name} {number}".encode())
            assert await fs.read_text(path.with_name(name)) == f"{name} {number}"

    def work(name: str) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(main(name))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_positions_in_texts_that_are_hard_to_find(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """`tell` after every character, in encodings with state, and back."""
    path = tmp_path / "file"
    text = "aé\n\r\nかな𝄞b\r" * 3

    async def main() -> None:
        encodings = ["utf-8", "utf-8-sig", "utf-16", "utf-32-be", "iso2022_jp", "shift_jis", "hz", "utf-7"]
        for encoding, newline in itertools.product(encodings, (None, "", "\n")):
            path.write_bytes(text.encode(encoding, "ignore"))
            async with fs.open(path, encoding=encoding, newline=newline) as file:
                whole = await file.read()
                await file.seek(0)
                cookies = [await file.tell()]
                while await file.read(1):
                    cookies.append(await file.tell())
                for at, cookie in reversed(list(enumerate(cookies[:-1]))):
                    assert await file.seek(cookie) == cookie
                    assert await file.read() == whole[at:], (encoding, newline, at)

    run(loop, main())


def test_what_cannot_be_decoded(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"good\n\xff\nmore")

    async def main() -> None:
        async with fs.open(path, encoding="utf-8") as file:
            with pytest.raises(UnicodeDecodeError):
                await file.read()
        with pytest.raises(UnicodeDecodeError):
            await fs.read_text(path, "utf-8")
        assert await fs.read_text(path, "utf-8", "replace") == "good\n\ufffd\nmore"
        async with fs.open(path, "w", encoding="ascii") as file:
            with pytest.raises(UnicodeEncodeError):
                await file.write("é")
            await file.write("e")
        assert path.read_bytes() == b"e"

    run(loop, main())
