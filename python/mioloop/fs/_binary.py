"""Files of bytes: the methods of `io.BufferedReader`, `BufferedWriter`, `BufferedRandom` and `FileIO`,
awaited.

A method of the core answers at once or gives a future (see `src/fs/file.rs`); here it is asked until it
answers.
"""

from __future__ import annotations

import errno
import io
import os
import warnings
from asyncio import Future, Lock
from collections.abc import Callable, Iterable
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .. import _core
from ._mailbox import context, process

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_WHENCES = {
    os.SEEK_SET,
    os.SEEK_CUR,
    os.SEEK_END,
    *(getattr(os, name) for name in ("SEEK_DATA", "SEEK_HOLE") if hasattr(os, name)),
}


class Turns:
    """One operation on a file after the other, in the order in which they came: `async with turns`."""

    # Made by whoever comes first, which nobody does as long as the buffer answers.
    _lock: Lock
    _process: int

    taken = 0
    """How many operations there are: under way, or waiting. While there are any, none may jump the queue."""

    async def __aenter__(self) -> None:
        if self.taken == 0 or self._process != process():
            # A lock belongs to one loop, and this may be another one than last time. Whoever waits in the
            # parent of a forked process waits there.
            self._lock, self._process, self.taken = Lock(), process(), 0
        self.taken += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self.taken -= 1
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.taken -= 1
        self._lock.release()


def as_size(size: int | None) -> int:
    return -1 if size is None else index(size)


class BinaryFile:
    """An open file of bytes. Not for `isinstance`: see its heirs."""

    def __init__(
        self, file: _core.File, name: str | bytes | int, mode: str, readable: bool, writable: bool
    ) -> None:
        self._file = file
        self._name = name
        self._mode = mode
        self._readable = readable
        self._writable = writable
        self._turns = Turns()

    @property
    def name(self) -> str | bytes | int:
        """The path or the descriptor that `open` was given."""
        return self._name

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def closed(self) -> bool:
        return self._file.closed

    def fileno(self) -> int:
        """Return the descriptor. Raises ValueError once the file is closed."""
        return self._file.fileno()

    def readable(self) -> bool:
        self._file.fileno()
        return self._readable

    async def writable(self) -> bool:
        self._file.fileno()
        return self._writable

    async def seekable(self) -> bool:
        self._file.fileno()
        try:
            await self._finish(self._file.tell)
        except OSError:
            return False
        return True

    async def isatty(self) -> bool:
        return os.isatty(self._file.fileno())

    def _check_readable(self, what: str) -> None:
        if not self._readable:
            raise io.UnsupportedOperation(what)

    async def _finish(self, method: Callable[..., Any], *args: Any) -> Any:
        """Asks the core until it answers."""
        result = None
        if not self._turns.taken:
            result = method(*args, context)
            if not isinstance(result, Future):
                return result
        async with self._turns:
            while True:
                if result is not None and (result := await result) is not None:
                    return result
                result = method(*args, context)
                if not isinstance(result, Future):
                    return result

    async def _read(self, method: Callable[..., bytes | Future[int]], *args: int) -> bytes:
        """Has the core read. Its future comes with a number that tells it that it has read for this."""
        result: Any = None
        if not self._turns.taken:
            result = method(*args, 0, context)
            if type(result) is bytes:
                return result
        async with self._turns:
            while True:
                fill = 0 if result is None else await result or 0
                result = method(*args, fill, context)
                if type(result) is bytes:
                    return result

    async def read(self, size: int | None = -1) -> bytes:
        raise NotImplementedError

    async def readline(self, size: int | None = -1) -> bytes:
        """Read up to and with the next newline, but at most `size` bytes; empty at the end of the file."""
        self._check_readable("readline")
        return await self._read(self._file.readline, as_size(size))

    async def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Read lines to the end of the file, or until they have more than `hint` bytes."""
        hint = as_size(hint)
        lines: list[bytes] = []
        total = 0
        while line := await self.readline():
            lines.append(line)
            total += len(line)
            if 0 < hint < total:
                break
        return lines

    async def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into a writable buffer; return how many bytes."""
        with memoryview(buffer) as view, view.cast("B") as target:
            if target.readonly:
                raise TypeError("readinto() argument must be read-write bytes-like object")
            data = await self._read_for(len(target))
            target[: len(data)] = data
            return len(data)

    async def _read_for(self, size: int) -> bytes:
        raise NotImplementedError

    async def write(self, data: ReadableBuffer, /) -> int:
        """Write bytes; return how many.

        Cancelled, it has written everything or nothing; what is under way is finished before anything else is
        done with the file.
        """
        if not self._writable:
            raise io.UnsupportedOperation("write")
        if type(data) is not bytes:
            if isinstance(data, str):
                raise TypeError("a bytes-like object is required, not 'str'")
            with memoryview(data) as view:
                data = view.tobytes()
        count: int = await self._finish(self._file.write, data)
        return count

    async def writelines(self, lines: Iterable[ReadableBuffer], /) -> None:
        """Write each of the lines; no newlines are added."""
        for line in lines:
            await self.write(line)

    async def flush(self) -> None:
        """Give the kernel what was written."""
        if self._writable:
            await self._finish(self._file.flush)
        else:
            self._file.fileno()

    async def tell(self) -> int:
        position: int = await self._finish(self._file.tell)
        return position

    async def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position; return the new one."""
        position: int = await self._finish(self._file.seek, index(offset), whence)
        return position

    async def truncate(self, size: int | None = None, /) -> int:
        """Make the file `size` bytes long, by default up to the position; return the size."""
        self._file.fileno()
        if not self._writable:
            raise io.UnsupportedOperation("truncate")
        if size is not None and (size := index(size)) < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        result: int = await self._finish(self._file.truncate, size)
        return result

    async def close(self) -> None:
        """Write what is left and close the file, even if the former fails; a second time does nothing.

        Cancelled, it closes the file all the same.
        """
        # Out of turn: once asked, the core closes the file as soon as it has it back, whoever waits for it.
        while isinstance(result := self._file.close(context), Future):
            await result

    async def __aenter__(self) -> Self:
        self._file.fileno()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} name={self._name!r} mode={self._mode!r}>"

    def __del__(self) -> None:
        if hasattr(self, "_file") and not self._file.closed:
            warnings.warn(f"unclosed file {self!r}", ResourceWarning, stacklevel=1, source=self)


class BufferedFile(BinaryFile):
    """A file of bytes that reads ahead and writes in large pieces."""

    async def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, fewer only at the end of the file; everything if it is negative or None.

        Cancelled, it has taken nothing.
        """
        self._check_readable("read")
        size = as_size(size)
        if size < -1:
            raise ValueError("read length must be non-negative or -1")
        return await self._read(self._file.read, size)

    async def read1(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, with one system call at most."""
        self._check_readable("read1")
        size = index(size)
        return await self._read(self._file.read1, io.DEFAULT_BUFFER_SIZE if size < 0 else size)

    async def _read_for(self, size: int) -> bytes:
        return await self.read(size)

    async def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position; return the new one."""
        if whence not in _WHENCES:
            raise ValueError(f"whence value {whence} unsupported")
        return await super().seek(offset, whence)

    async def peek(self, size: int = 0, /) -> bytes:
        """Return bytes that come next without taking them; how many does not depend on `size`."""
        self._check_readable("peek")
        return await self._read(self._file.peek)


class RawFile(BinaryFile):
    """A file of bytes without a buffer: every call is a system call."""

    async def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes with one system call; everything if it is negative or None."""
        self._check_readable("read")
        size = as_size(size)
        if size < 0:
            return await self.readall()
        return await self._read_for(size)

    async def readall(self) -> bytes:
        """Read everything up to the end of the file."""
        self._check_readable("readall")
        return await self._read(self._file.read, -1)

    async def _read_for(self, size: int) -> bytes:
        self._check_readable("readinto")
        return await self._read(self._file.read1, size)
