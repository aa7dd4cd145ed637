"""What mioloop.fs does with paths is what os, os.path, shutil and pathlib do."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mioloop import fs

from .support import run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One of each kind."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_text("inner")
    (tmp_path / "file").write_text("file")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folderlink").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


NAMES = [
    "folder",
    "file",
    "link",
    "folderlink",
    "dangling",
    "fifo",
    "missing",
    "file/below",
    "\0",
    "folder/..",
]
KINDS: list[Any] = [str, os.fsencode, Path]


def outcome(attempt: Any) -> object:
    try:
        return attempt()
    except (OSError, ValueError, TypeError) as error:
        names = getattr(error, "filename", None), getattr(error, "filename2", None)
        return (type(error), getattr(error, "errno", None), getattr(error, "strerror", None), *names)


def same(loop: asyncio.AbstractEventLoop, ours: Any, theirs: Any, *args: Any, **options: Any) -> object:
    async def main() -> Any:
        return await ours(*args, **options)

    result, expected = outcome(lambda: run(loop, main())), outcome(lambda: theirs(*args, **options))
    assert result == expected
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_there(loop: asyncio.AbstractEventLoop, tree: Path, name: str, kind: Any) -> None:
    path = kind(os.path.join(tree, name))
    for function in ("stat", "lstat", "readlink"):
        same(loop, getattr(fs, function), getattr(os, function), path)
    for function in ("exists", "isfile", "isdir", "islink", "lexists", "getsize", "getmtime", "getctime"):
        same(loop, getattr(fs, function), getattr(os.path, function), path)
    same(loop, fs.access, os.access, path, os.R_OK)


def test_every_field_of_a_status(loop: asyncio.AbstractEventLoop, tree: Path) -> None:
    os.utime(tree / "file", ns=(-1_500_000_001, 4_000_000_000_123_456_789))
    for path in (tree / "file", tree, Path("/dev/null")):
        result, expected = run(loop, fs.stat(path)), os.stat(path)
        for field in dir(expected):
            if field.startswith("st_"):
                assert getattr(result, field) == getattr(expected, field), field
        assert type(result) is os.stat_result


def test_descriptors_and_folders_given_as_such(loop: asyncio.AbstractEventLoop, tree: Path) -> None:
    fd = os.open(tree, os.O_RDONLY)
    try:
        same(loop, fs.stat, os.stat, fd)
        same(loop, fs.stat, os.stat, "file", dir_fd=fd)
        same(loop, fs.stat, os.stat, "link", dir_fd=fd, follow_symlinks=False)
        assert sorted(run(loop, fs.listdir(fd))) == sorted(os.listdir(fd))
        run(loop, fs.mkdir("made", dir_fd=fd))
        run(loop, fs.rename("made", "moved", src_dir_fd=fd, dst_dir_fd=fd))
        run(loop, fs.rmdir("moved", dir_fd=fd))
        run(loop, fs.unlink("file", dir_fd=fd))
        assert not (tree / "moved").exists() and not (tree / "file").exists()
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", KINDS)
def test_folders(loop: asyncio.AbstractEventLoop, tree: Path, kind: Any) -> None:
    (tree / os.fsdecode(b"not \xff utf-8")).touch()
    path = kind(str(tree))
    assert sorted(run(loop, fs.listdir(path))) == sorted(os.listdir(path))
    assert run(loop, fs.listdir()) == os.listdir()
    for name in ("missing", "file"):
        same(loop, fs.listdir, os.listdir, kind(str(tree / name)))

    async def main() -> None:
        entries = {entry.name: entry async for entry in fs.scandir(path)}
        with os.scandir(path) as iterator:
            models = {entry.name: entry for entry in iterator}
        assert entries.keys() == models.keys()
        for name, model in models.items():
            entry = entries[name]
            assert os.fspath(entry) == entry.path == model.path
            assert entry.inode() == model.inode()
            assert repr(entry) == repr(model)
            for follow in (True, False):
                assert await entry.is_dir(follow_symlinks=follow) == model.is_dir(follow_symlinks=follow)
                assert await entry.is_file(follow_symlinks=follow) == model.is_file(follow_symlinks=follow)
            assert await entry.is_symlink() == model.is_symlink()
            assert await entry.stat(follow_symlinks=False) == model.stat(follow_symlinks=False)
        async with fs.scandir(path) as opened:
            async for entry in opened:
                assert entry.name in models
                break
        assert len([entry async for entry in await fs.scandir(path)]) == len(models)
        with pytest.raises(FileNotFoundError) as caught:
            await fs.scandir(kind(str(tree / "missing")))
        assert caught.value.filename == os.fspath(kind(str(tree / "missing")))

    run(loop, main())


def test_changes(loop: asyncio.AbstractEventLoop, tree: Path) -> None:
    async def main() -> None:
        previous = os.umask(0o022)
        try:
            await fs.mkdir(tree / "new")
            await fs.mkdir(tree / "private", 0o700)
        finally:
            os.umask(previous)
        assert stat.S_IMODE((tree / "new").stat().st_mode) == 0o755
        assert stat.S_IMODE((tree / "private").stat().st_mode) == 0o700
        await fs.makedirs(tree / "a" / "b" / "c")
        await fs.makedirs(tree / "a" / "b" / "c", exist_ok=True)
        await fs.rename(tree / "file", tree / "renamed")
        await fs.replace(tree / "renamed", tree / "folder" / "inner")
        assert (tree / "folder" / "inner").read_text() == "file"
        await fs.remove(tree / "link")
        await fs.unlink(tree / "dangling")
        await fs.rmdir(tree / "new")
        await fs.symlink("folder", tree / "again")
        assert await fs.readlink(tree / "again") == "folder"
        await fs.copy(tree / "folder" / "inner", tree / "copy")
        assert await fs.samefile(tree / "copy", tree / "copy")
        assert not await fs.samefile(tree / "copy", tree / "folder")
        await fs.truncate(tree / "copy", 2)
        assert await fs.read_text(tree / "copy") == "fi"
        await fs.rmtree(tree / "a")
        assert not await fs.exists(tree / "a")

    run(loop, main())
    assert sorted(os.listdir(tree)) == ["again", "copy", "fifo", "folder", "folderlink", "private"]


def test_the_errors_of_changes(loop: asyncio.AbstractEventLoop, tree: Path) -> None:
    for path in (tree / "file", tree / "missing" / "below", str(tree / "folder"), os.fsencode(tree / "link")):
        same(loop, fs.mkdir, os.mkdir, path)
    for path in (tree / "file", tree / "missing", tree / "folder"):
        same(loop, fs.rmdir, os.rmdir, path)
    for path in (tree / "missing", tree / "folder", "\0"):
        same(loop, fs.remove, os.remove, path)
    for source, target in (("missing", "there"), ("folder", "file"), ("file", "folder"), ("file", "no/way")):
        result = same(loop, fs.rename, os.rename, tree / source, tree / target)
        assert isinstance(result, tuple) and result[-1] == str(tree / target)
    for wrong in (None, 1.5, object()):
        assert outcome(lambda wrong=wrong: run(loop, fs.mkdir(wrong)))[0] is TypeError  # type: ignore[index]


def test_whole_files(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    text = "one\ntwo\r\nthree\rünf"
    for options in ({}, {"encoding": "utf-16"}, {"encoding": "latin-1", "newline": "\r\n"}, {"newline": ""}):
        assert run(loop, fs.write_text(ours, text, **options)) == len(text)
        with open(theirs, "w", **options) as file:  # type: ignore[call-overload]
            file.write(text)
        assert ours.read_bytes() == theirs.read_bytes()
        with open(theirs, **options) as file:  # type: ignore[call-overload]
            assert run(loop, fs.read_text(ours, **options)) == file.read()
    for data in (b"", b"bytes", bytearray(b"array"), memoryview(b"view")[1:]):
        assert run(loop, fs.write_bytes(ours, data)) == len(data)
        assert run(loop, fs.read_bytes(ours)) == bytes(data)
    for wrong in ("text", 5):
        with pytest.raises(TypeError):
            run(loop, fs.write_bytes(ours, wrong))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^data must be str, not bytes$"):
        run(loop, fs.write_text(ours, b"bytes"))  # type: ignore[arg-type]
    for name in ("missing/file", "."):
        path = tmp_path / name
        same(loop, fs.read_bytes, Path.read_bytes, path)
        same(loop, fs.write_bytes, Path.write_bytes, path, b"")


def test_files_that_say_nothing_of_their_size(loop: asyncio.AbstractEventLoop) -> None:
    if not os.path.exists("/proc/self/status"):
        pytest.skip("this platform has no /proc")
    text = run(loop, fs.read_text("/proc/self/status"))
    assert text.startswith("Name:")
    assert len(text) > 500
