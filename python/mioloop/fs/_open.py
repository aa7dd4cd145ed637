"""`open`: what the built-in does with a mode, a buffering and an encoding, for files that are awaited."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import warnings
from collections.abc import Callable, Coroutine, Generator
from functools import cache, lru_cache
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, overload

from .. import _core
from . import _at_once
from ._binary import BinaryFile, BufferedFile, RawFile
from ._mailbox import ask
from ._paths import encode
from ._text import TextFile, TextFormat

if TYPE_CHECKING:
    from _typeshed import (
        FileDescriptorOrPath,
        OpenBinaryMode,
        OpenTextMode,
    )

FileT_co = TypeVar("FileT_co", bound="BinaryFile | TextFile", covariant=True)

BUFFER = 128 * 1024
"""Bytes to read ahead, and to keep before they are written.

To leave the loop's thread costs more than reading them.
"""


_MORE_FLAGS = {
    "r": 0,
    "w": os.O_CREAT | os.O_TRUNC,
    "a": os.O_CREAT | os.O_APPEND,
    "x": os.O_CREAT | os.O_EXCL,
}


class Mode(NamedTuple):
    """A mode string, taken apart."""

    raw: str
    """One of r, w, a, x; and a plus sign for an update."""
    update: bool
    binary: bool
    readable: bool
    writable: bool
    flags: int
    """For open(2)."""

    @classmethod
    def parse(cls, mode: str) -> Mode:
        if not isinstance(mode, str):
            raise TypeError(f"open() argument 'mode' must be str, not {type(mode).__name__}")
        letters = set(mode)
        if letters - set("axrwb+t") or len(mode) > len(letters):
            raise ValueError(f"invalid mode: {mode!r}")
        if letters >= {"t", "b"}:
            raise ValueError("can't have text and binary mode at once")
        actions = letters & set("axrw")
        if len(actions) != 1:
            raise ValueError("must have exactly one of create/read/write/append mode")
        action, update = actions.pop(), "+" in letters
        access = os.O_RDWR if update else os.O_RDONLY if action == "r" else os.O_WRONLY
        return cls(
            raw=action + "+" * update,
            update=update,
            binary="b" in letters,
            readable=update or action == "r",
            writable=update or action != "r",
            flags=access | _MORE_FLAGS[action] | os.O_CLOEXEC,
        )


parse_mode = lru_cache(64)(Mode.parse)


@cache
def name_of_mode(raw: str) -> str:
    """The `mode` of a file of bytes, which is not the same on every Python."""
    if raw == "w+":
        with io.FileIO(os.devnull, raw) as model:
            return model.mode
    return raw[0] + "b" + raw[1:]


@lru_cache(64)
def known_format(encoding: str, errors: str | None, newline: str | None) -> TextFormat:
    return TextFormat.check(encoding, errors, newline)


class Opening(Coroutine[Any, Any, FileT_co], Generic[FileT_co]):
    """A file that is about to be opened: `await` it, or use it with `async with`, which closes it again."""

    def __init__(self, work: Coroutine[Any, Any, FileT_co]) -> None:
        self._work = work
        self._file: FileT_co | None = None

    def send(self, value: Any, /) -> Any:
        return self._work.send(value)

    def throw(self, *args: Any) -> Any:
        return self._work.throw(*args)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, FileT_co]:
        return self._work.__await__()

    async def __aenter__(self) -> FileT_co:
        self._file = file = await self._work
        return file

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._file is not None, "it was entered"
        await self._file.close()


# What type checkers see: the mode says what kind of file it is.


@overload
def open(
    file: FileDescriptorOrPath,
    mode: OpenTextMode = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[str, int], int] | None = None,
) -> Opening[TextFile]: ...
@overload
def open(
    file: FileDescriptorOrPath,
    mode: OpenBinaryMode,
    buffering: Literal[0],
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: Callable[[str, int], int] | None = None,
) -> Opening[RawFile]: ...
@overload
def open(
    file: FileDescriptorOrPath,
    mode: OpenBinaryMode,
    buffering: Literal[-1, 1] = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: Callable[[str, int], int] | None = None,
) -> Opening[BufferedFile]: ...
@overload
def open(
    file: FileDescriptorOrPath,
    mode: OpenBinaryMode,
    buffering: int,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: Callable[[str, int], int] | None = None,
) -> Opening[BinaryFile]: ...
@overload
def open(
    file: FileDescriptorOrPath,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[str, int], int] | None = None,
) -> Opening[Any]: ...
def open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[Any, int], int] | None = None,
) -> Opening[Any]:
    """Open a file, as the built-in `open`: `async with fs.open(path) as file`, or `file = await
    fs.open(path)`.

    The arguments and what they mean are the built-in's, and so are the exceptions. The result has the methods
    of the built-in's files, to be awaited. It can be used on any asyncio loop, also on another one than it
    was opened on. Cancelled, nothing is left open.
    """
    return Opening(_open(file, mode, buffering, encoding, errors, newline, closefd, opener))


async def _open(
    file: Any,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    closefd: bool,
    opener: Callable[[Any, int], int] | None,
) -> BinaryFile | TextFile:
    name: str | bytes | int = file if isinstance(file, int) else os.fspath(file)
    parsed = parse_mode(mode) if isinstance(mode, str) else Mode.parse(mode)
    buffering = max(index(buffering), -1)
    _check(parsed, buffering, encoding, errors, newline)
    text_format = None
    if not parsed.binary:
        text_format = (
            TextFormat.check(encoding, errors, newline)
            if encoding is None
            else known_format(encoding, errors, newline)
        )
    size = BUFFER if buffering in (-1, 1) else buffering
    if opener is None and closefd and not isinstance(name, int):
        sys.audit("open", name, parsed.raw, parsed.flags)
        path = encode(name)
        core = _at_once.open(path, name, size) if parsed.raw == "r" else None
        if core is None and parsed.raw == "r":
            core = await _at_once.again(_at_once.open, path, name, size)
        if core is None:
            core = await ask(_core.Mailbox.open, path, name, parsed.raw, size)
    else:
        core = await _open_otherwise(name, parsed, size, closefd, opener)
    kind = RawFile if buffering == 0 else BufferedFile
    binary = kind(core, name, name_of_mode(parsed.raw), parsed.readable, parsed.writable)
    try:
        if parsed.update and buffering != 0 and not await binary.seekable():
            raise io.UnsupportedOperation("File or stream is not seekable.")
        if text_format is None:
            return binary
        assert isinstance(binary, BufferedFile)
        line_buffering = buffering == 1 or (buffering == -1 and await binary.isatty())
        text = TextFile(binary, mode, text_format, line_buffering, await binary.seekable())
        await text._start()
        return text
    except BaseException:
        await binary.close()
        raise


def _check(mode: Mode, buffering: int, encoding: str | None, errors: str | None, newline: str | None) -> None:
    if mode.binary:
        if encoding is not None:
            raise ValueError("binary mode doesn't take an encoding argument")
        if errors is not None:
            raise ValueError("binary mode doesn't take an errors argument")
        if newline is not None:
            raise ValueError("binary mode doesn't take a newline argument")
        if buffering == 1:
            warnings.warn(
                "line buffering (buffering=1) isn't supported in binary mode, "
                "the default buffer size will be used",
                RuntimeWarning,
                stacklevel=3,
            )
    if buffering == 0 and not mode.binary:
        raise ValueError("can't have unbuffered text I/O")


async def _open_otherwise(
    name: str | bytes | int,
    mode: Mode,
    buffering: int,
    closefd: bool,
    opener: Callable[[Any, int], int] | None,
) -> _core.File:
    """Takes a descriptor that there is, or that an opener gives."""
    if isinstance(name, int):
        if name < 0:
            raise ValueError("negative file descriptor")
        return await _adopt(name, mode, buffering, closefd, name)
    if not closefd:
        raise ValueError("Cannot use closefd=False with file name")
    assert opener is not None
    fd = await asyncio.get_running_loop().run_in_executor(None, opener, name, mode.flags)
    if not isinstance(fd, int):
        raise TypeError("expected integer from opener")
    if fd < 0:
        raise ValueError(f"opener returned {fd}")
    os.set_inheritable(fd, False)
    return await _adopt(fd, mode, buffering, True, name)


async def _adopt(fd: int, mode: Mode, buffering: int, closefd: bool, name: str | bytes | int) -> _core.File:
    # The standard library looks at the descriptor too, and says what is wrong with it.
    with io.FileIO(fd, mode.raw, closefd=False):
        pass
    return _core.File.adopt(fd, closefd, buffering)
