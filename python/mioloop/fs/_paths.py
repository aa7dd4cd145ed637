"""What is done with paths: `os`, `os.path` and `pathlib`, awaited.

The frequent ones are jobs of the core, without the interpreter, or done at once. The others are the standard
library's own functions on the loop's default executor.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import stat as _stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, AnyStr, Generic, ParamSpec, Self, TypeVar

from .._core import File, Mailbox
from . import _at_once
from ._binary import BufferedFile
from ._mailbox import ask
from ._text import TextFormat

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, StrOrBytesPath

P = ParamSpec("P")
T = TypeVar("T")


def encode(path: StrOrBytesPath) -> bytes:
    """The path as the kernel knows it."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def in_executor(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The function, to be awaited, called on a thread of the loop's default executor."""

    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))

    return call


# Whole files.


async def read_bytes(path: StrOrBytesPath) -> bytes:
    """Return what is in a file. Raises OSError as `open` does."""
    name = os.fspath(path)
    sys.audit("open", name, "r", os.O_RDONLY | os.O_CLOEXEC)
    encoded = encode(name)
    result = _at_once.read(encoded, name)
    if result is None:
        result = await _at_once.again(_at_once.read, encoded, name)
    if result is None:
        result = await ask(Mailbox.read_bytes, encoded, name)
    if isinstance(result, File):
        # It is large, or not in memory: into its final place at once.
        async with BufferedFile(result, name, "rb", True, False) as file:
            return await file.read()
    return result


async def read_text(
    path: StrOrBytesPath,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> str:
    """Return the text in a file, decoded as `open` with these arguments does it."""
    text_format = TextFormat.check(encoding, errors, newline)
    text: str = text_format.decoder().decode(await read_bytes(path), True)
    return text


async def write_bytes(path: StrOrBytesPath, data: ReadableBuffer) -> int:
    """Make a file of these bytes, in the place of one that is there; return how many they are.

    Cancelled, the file is written all the same, or not touched at all.
    """
    if type(data) is not bytes:
        with memoryview(data) as view:
            data = view.tobytes()
    name = os.fspath(path)
    sys.audit("open", name, "w", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    count: int = await ask(Mailbox.write_bytes, encode(name), name, data)
    return count


async def write_text(
    path: StrOrBytesPath,
    data: str,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> int:
    """Make a file of this text, encoded as `open` with these arguments does it; return how many
    characters."""
    if not isinstance(data, str):
        raise TypeError(f"data must be str, not {type(data).__name__}")
    buffer = io.BytesIO()
    with io.TextIOWrapper(buffer, encoding, errors, newline) as model:
        model.write(data)
        model.flush()
        await write_bytes(path, buffer.getvalue())
    return len(data)


# What is there.


async def stat(
    path: StrOrBytesPath | int, *, dir_fd: int | None = None, follow_symlinks: bool = True
) -> os.stat_result:
    """As `os.stat`."""
    if dir_fd is not None or isinstance(path, int):
        return await _stat_elsewhere(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    name = os.fspath(path)
    encoded = encode(name)
    result = _at_once.stat(encoded, name, follow_symlinks)
    if result is None:
        result = await _at_once.again(_at_once.stat, encoded, name, follow_symlinks)
    if result is None:
        result = await ask(Mailbox.stat, encoded, name, follow_symlinks)
    return result


_stat_elsewhere = in_executor(os.stat)


async def lstat(path: StrOrBytesPath, *, dir_fd: int | None = None) -> os.stat_result:
    """As `os.lstat`."""
    return await stat(path, dir_fd=dir_fd, follow_symlinks=False)


async def _mode(path: StrOrBytesPath | int, follow_symlinks: bool = True) -> int:
    """The file's mode; 0 if there is none."""
    try:
        return (await stat(path, follow_symlinks=follow_symlinks)).st_mode
    except (OSError, ValueError):
        return 0


async def exists(path: StrOrBytesPath | int) -> bool:
    """As `os.path.exists`."""
    return await _mode(path) != 0


async def lexists(path: StrOrBytesPath) -> bool:
    """As `os.path.lexists`."""
    return await _mode(path, False) != 0


async def isfile(path: StrOrBytesPath | int) -> bool:
    """As `os.path.isfile`."""
    return _stat.S_ISREG(await _mode(path))


async def isdir(path: StrOrBytesPath | int) -> bool:
    """As `os.path.isdir`."""
    return _stat.S_ISDIR(await _mode(path))


async def islink(path: StrOrBytesPath) -> bool:
    """As `os.path.islink`."""
    return _stat.S_ISLNK(await _mode(path, False))


async def getsize(path: StrOrBytesPath | int) -> int:
    """As `os.path.getsize`."""
    return (await stat(path)).st_size


async def getmtime(path: StrOrBytesPath | int) -> float:
    """As `os.path.getmtime`."""
    return (await stat(path)).st_mtime


async def getatime(path: StrOrBytesPath | int) -> float:
    """As `os.path.getatime`."""
    return (await stat(path)).st_atime


async def getctime(path: StrOrBytesPath | int) -> float:
    """As `os.path.getctime`."""
    return (await stat(path)).st_ctime


async def samefile(first: StrOrBytesPath | int, second: StrOrBytesPath | int) -> bool:
    """As `os.path.samefile`."""
    return os.path.samestat(await stat(first), await stat(second))


async def listdir(path: Any = ".") -> list[Any]:
    """As `os.listdir`."""
    if path is None:
        path = "."
    if isinstance(path, int):
        return await _listdir_elsewhere(path)
    name = os.fspath(path)
    sys.audit("os.listdir", name)
    names: list[bytes] = await ask(Mailbox.listdir, encode(name), name)
    return names if isinstance(name, bytes) else [os.fsdecode(name) for name in names]


_listdir_elsewhere = in_executor(os.listdir)


class DirEntry(Generic[AnyStr]):
    """A file in a folder: as `os.DirEntry`, but what may need a system call is awaited."""

    __slots__ = ("_inode", "_kind", "name", "path")

    name: AnyStr
    path: AnyStr

    def __init__(self, name: AnyStr, path: AnyStr, inode: int, kind: int) -> None:
        self.name = name
        self.path = path
        self._inode = inode
        self._kind = kind

    def inode(self) -> int:
        """The inode number."""
        return self._inode

    async def _is(self, kind: int, follow_symlinks: bool) -> bool:
        known = self._kind and not (follow_symlinks and self._kind == _stat.S_IFLNK)
        if known:
            return self._kind == kind
        try:
            mode = (await stat(self.path, follow_symlinks=follow_symlinks)).st_mode
        except FileNotFoundError:
            return False
        return _stat.S_IFMT(mode) == kind

    async def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a folder, or a symbolic link to one unless `follow_symlinks` is false."""
        return await self._is(_stat.S_IFDIR, follow_symlinks)

    async def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a regular file, or a symbolic link to one unless `follow_symlinks` is false."""
        return await self._is(_stat.S_IFREG, follow_symlinks)

    async def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return await self._is(_stat.S_IFLNK, False)

    async def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """What `os.stat` says of it now."""
        return await stat(self.path, follow_symlinks=follow_symlinks)

    def __fspath__(self) -> AnyStr:
        return self.path

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"


class ScandirIterator(AsyncIterator[DirEntry[AnyStr]]):
    """The entries of a folder: for `async for`, and before that perhaps `await` or `async with`."""

    def __init__(self, path: Any) -> None:
        self._path = path
        self._entries: Iterator[DirEntry[AnyStr]] | None = None

    async def _read(self) -> Self:
        if self._entries is None:
            name = os.fspath(self._path)
            sys.audit("os.scandir", name)
            found: list[tuple[bytes, int, int]] = await ask(Mailbox.scandir, encode(name), name)
            # A path that is given as bytes has its entries in bytes.
            decode: Callable[[bytes], Any] = bytes if isinstance(name, bytes) else os.fsdecode
            join: Callable[..., Any] = os.path.join
            self._entries = iter(
                [DirEntry(decode(entry), join(name, decode(entry)), *rest) for entry, *rest in found]
            )
        return self

    def __await__(self) -> Any:
        return self._read().__await__()

    async def __aenter__(self) -> Self:
        return await self._read()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the iteration."""
        self._entries = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DirEntry[AnyStr]:
        if self._entries is None:
            await self._read()
        assert self._entries is not None
        for entry in self._entries:
            return entry
        raise StopAsyncIteration


def scandir(path: Any = ".") -> ScandirIterator[Any]:
    """As `os.scandir`: `async for entry in fs.scandir(path)`.

    The folder is read at once, at the first use.
    """
    return ScandirIterator("." if path is None else path)


# Changes.


async def mkdir(path: StrOrBytesPath, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
    """As `os.mkdir`."""
    if dir_fd is not None:
        return await _mkdir_elsewhere(path, mode, dir_fd=dir_fd)
    name = os.fspath(path)
    sys.audit("os.mkdir", name, mode, -1)
    await ask(Mailbox.mkdir, encode(name), name, mode)


_mkdir_elsewhere = in_executor(os.mkdir)


async def rmdir(path: StrOrBytesPath, *, dir_fd: int | None = None) -> None:
    """As `os.rmdir`."""
    if dir_fd is not None:
        return await _rmdir_elsewhere(path, dir_fd=dir_fd)
    name = os.fspath(path)
    sys.audit("os.rmdir", name, -1)
    await ask(Mailbox.rmdir, encode(name), name)


_rmdir_elsewhere = in_executor(os.rmdir)


async def remove(path: StrOrBytesPath, *, dir_fd: int | None = None) -> None:
    """As `os.remove`."""
    if dir_fd is not None:
        return await _remove_elsewhere(path, dir_fd=dir_fd)
    name = os.fspath(path)
    sys.audit("os.remove", name, -1)
    await ask(Mailbox.unlink, encode(name), name)


_remove_elsewhere = in_executor(os.remove)
unlink = remove


async def rename(
    src: StrOrBytesPath, dst: StrOrBytesPath, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
) -> None:
    """As `os.rename`."""
    if src_dir_fd is not None or dst_dir_fd is not None:
        return await _rename_elsewhere(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    names = os.fspath(src), os.fspath(dst)
    sys.audit("os.rename", *names, -1, -1)
    await ask(Mailbox.rename, (encode(names[0]), encode(names[1])), names)


_rename_elsewhere = in_executor(os.rename)
# On POSIX the two are one.
replace = rename

# The rest, as it is.

access = in_executor(os.access)
chmod = in_executor(os.chmod)
copy = in_executor(shutil.copy)
copy2 = in_executor(shutil.copy2)
copyfile = in_executor(shutil.copyfile)
copytree = in_executor(shutil.copytree)
getcwd = in_executor(os.getcwd)
link = in_executor(os.link)
makedirs = in_executor(os.makedirs)
readlink = in_executor(os.readlink)
removedirs = in_executor(os.removedirs)
renames = in_executor(os.renames)
rmtree = in_executor(shutil.rmtree)
sendfile = in_executor(os.sendfile)
statvfs = in_executor(os.statvfs)
symlink = in_executor(os.symlink)
truncate = in_executor(os.truncate)
utime = in_executor(os.utime)
