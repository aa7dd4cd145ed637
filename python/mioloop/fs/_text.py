"""Files of text: `io.TextIOWrapper`, awaited.

The bytes come from a `BufferedFile`, the standard library's incremental codecs make text of them, chunk by
chunk:

    bytes read before │ chunk                                  │ what the buffer reads next
                      │ _decoded[:_used] │ _decoded[_used:]    │
                      └ _snapshot

What was decoded and not read yet waits in `_decoded`. `_snapshot` is the decoder's state before it, and its
bytes: enough for `tell` to find the byte that belongs to a character. A read that needs several chunks adds
one to the other, and takes its part when it has them all; whenever it is cancelled, it has taken nothing.
"""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterable
from operator import index
from types import TracebackType
from typing import Any, NamedTuple, Self

from ._binary import BufferedFile, Turns, as_size

CHUNK = 8192
"""The bytes that `io.TextIOWrapper` reads at once.

Where a file is written too, how far it has read ahead shows.
"""

READ_ONLY_CHUNK = 65536

LONG_LINE = 1024 * 1024
"""From this length on a line is read in ever larger chunks, so that one of a gigabyte is not copied chunk by
chunk."""

WORD = (1 << 32) - 1

STEPS_BACK = 32
"""No decoder holds back more bytes than this; of one that does, `tell` decodes from the chunk's beginning."""


class TextFormat(NamedTuple):
    """How bytes become text, checked and completed."""

    encoding: str
    errors: str
    newline: str | None

    @classmethod
    def check(cls, encoding: str | None, errors: str | None, newline: str | None) -> Self:
        """Asks the standard library: its defaults and its exceptions."""
        with io.TextIOWrapper(io.BytesIO(), encoding, errors, newline) as model:
            return cls(model.encoding, model.errors or "strict", newline)

    def decoder(self) -> Any:
        """A `codecs.IncrementalDecoder`, or the like."""
        decoder = codecs.getincrementaldecoder(self.encoding)(self.errors)
        if self.newline:
            return decoder
        return io.IncrementalNewlineDecoder(decoder, translate=self.newline is None)

    def translate(self, text: str) -> str:
        """The text as it is written."""
        newline = os.linesep if self.newline is None else self.newline
        return text.replace("\n", newline) if newline not in ("", "\n") else text


class Cookie(NamedTuple):
    """A position in a text as `tell` gives it: packed into one number, as `io.TextIOWrapper` does it.

    (That has 32 bits for the state, and fails where they are too few.)
    """

    position: int
    """Of a byte where the decoder can be put into a known state."""
    flags: int = 0
    """That state."""
    feed: int = 0
    """How many bytes the decoder then needs to be given,"""
    needs_end: bool = False
    """whether they are the last ones,"""
    skip: int = 0
    """and how many of their characters to leave out."""

    def pack(self) -> int:
        low, high = self.flags & WORD, self.flags >> 32
        return (
            self.position
            | low << 64
            | self.feed << 96
            | self.skip << 128
            | self.needs_end << 160
            | high << 168
        )

    @classmethod
    def unpack(cls, number: int) -> Self:
        flags = number >> 64 & WORD | number >> 168 << 32
        needs_end = bool(number >> 160 & 0xFF)
        return cls(number & (1 << 64) - 1, flags, number >> 96 & WORD, needs_end, number >> 128 & WORD)


class TextFile:
    """An open file of text.

    Operations of several tasks on one file are done one after the other. Cancelled, a read has taken nothing
    and a write has written everything or nothing.
    """

    def __init__(
        self, buffer: BufferedFile, mode: str, text_format: TextFormat, line_buffering: bool, seekable: bool
    ) -> None:
        self._buffer = buffer
        self._mode = mode
        self._format = text_format
        self._line_buffering = line_buffering
        self._seekable = seekable
        self._chunk = CHUNK if buffer._writable else READ_ONLY_CHUNK
        self._turns = Turns()
        self._decoder = text_format.decoder() if buffer._readable else None
        self._decoded = ""
        self._used = 0
        self._snapshot: tuple[int, bytes] | None = None
        # Where in `_decoded` the last chunk begins, and the snapshot for it.
        self._last_chunk: tuple[int, tuple[int, bytes] | None] = (0, None)
        self._bytes_per_character = 0.0
        self._encoder: codecs.IncrementalEncoder | None = None
        if buffer._writable:
            self._encoder = codecs.getincrementalencoder(text_format.encoding)(text_format.errors)

    async def _start(self) -> None:
        """A text that is continued does not get another byte order mark."""
        if self._encoder is not None and self._seekable and await self._buffer.tell() != 0:
            self._encoder.setstate(0)

    # What it is.

    @property
    def buffer(self) -> BufferedFile:
        """The file of bytes below."""
        return self._buffer

    @property
    def name(self) -> str | bytes | int:
        """The path or the descriptor that `open` was given."""
        return self._buffer.name

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def closed(self) -> bool:
        return self._buffer.closed

    @property
    def encoding(self) -> str:
        return self._format.encoding

    @property
    def errors(self) -> str:
        return self._format.errors

    @property
    def line_buffering(self) -> bool:
        return self._line_buffering

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The kinds of newline that were read so far."""
        return getattr(self._decoder, "newlines", None)

    def fileno(self) -> int:
        """Return the descriptor. Raises ValueError once the file is closed."""
        return self._buffer.fileno()

    async def readable(self) -> bool:
        return self._buffer.readable()

    async def writable(self) -> bool:
        return await self._buffer.writable()

    async def seekable(self) -> bool:
        self._buffer.fileno()
        return self._seekable

    async def isatty(self) -> bool:
        return await self._buffer.isatty()

    # Reading.

    async def read(self, size: int | None = -1) -> str:
        """Read `size` characters, fewer only at the end of the file; everything if it is negative or None."""
        decoder = self._check_readable()
        size = as_size(size)
        async with self._turns:
            if size < 0:
                data = await self._buffer.read()
                text: str = decoder.decode(data, True)
                text = self._take(len(self._decoded)) + text
                self._forget()
                return text
            while (missing := size - (len(self._decoded) - self._used)) > 0:
                if not await self._read_chunk(missing):
                    break
            return self._take(size)

    async def readline(self, size: int = -1) -> str:
        """Read up to and with the next newline, but at most `size` characters; empty at the end of the
        file."""
        size = index(size)
        self._check_readable()
        if not self._turns.taken:
            end = self._line_end(self._used)
            if end >= 0:
                return self._take(end - self._used if size < 0 else min(end - self._used, size))
        async with self._turns:
            scanned = self._used
            while True:
                end, length = self._line_end(scanned), len(self._decoded) - self._used
                if end >= 0 or 0 <= size <= length:
                    break
                # A newline may have its first half there.
                scanned = max(self._used, len(self._decoded) - 1)
                used = self._used
                if not await self._read_chunk(length if length > LONG_LINE else 0):
                    # From here on the position is the buffer's: so it is with `io.TextIOWrapper`.
                    rest = self._take(length)
                    self._forget()
                    return rest
                # A chunk that nothing was left before replaces what was there.
                scanned -= used - self._used
            length = len(self._decoded) - self._used if end < 0 else end - self._used
            return self._take(length if size < 0 else min(length, size))

    def _line_end(self, start: int) -> int:
        """Where the first line from `start` on ends, newline included; -1 if that is not there yet."""
        text, newline = self._decoded, self._format.newline
        if newline is None or newline == "\n":
            return text.find("\n", start) + 1 or -1
        if newline:
            at = text.find(newline, start)
            return at + len(newline) if at >= 0 else -1
        # Any of three; the decoder never leaves a "\r" at the end that may belong to a "\n".
        line_feed, carriage_return = text.find("\n", start), text.find("\r", start)
        if carriage_return < 0 or 0 <= line_feed < carriage_return:
            return line_feed + 1 or -1
        return carriage_return + (2 if line_feed == carriage_return + 1 else 1)

    async def readlines(self, hint: int | None = -1) -> list[str]:
        """Read lines to the end of the file, or until they have more than `hint` characters."""
        hint = as_size(hint)
        lines: list[str] = []
        total = 0
        while line := await self.readline():
            lines.append(line)
            total += len(line)
            if 0 < hint < total:
                break
        return lines

    def _check_readable(self) -> Any:
        self._buffer.fileno()
        if self._decoder is None:
            raise io.UnsupportedOperation("not readable")
        return self._decoder

    def _take(self, size: int) -> str:
        text = self._decoded[self._used : self._used + size]
        self._used += len(text)
        start, snapshot = self._last_chunk
        if 0 < start <= self._used:
            self._decoded, self._used = self._decoded[start:], self._used - start
            self._snapshot, self._last_chunk = snapshot, (0, snapshot)
        return text

    def _forget(self) -> None:
        self._decoded, self._used, self._snapshot, self._last_chunk = "", 0, None, (0, None)

    async def _read_chunk(self, wanted: int) -> bool:
        """Decodes another chunk, of about `wanted` characters at least; false at the end of the file."""
        assert self._decoder is not None
        size = max(self._chunk, int(max(self._bytes_per_character, 1.0) * wanted))
        data = await self._buffer.read1(size)
        # The bytes that the decoder has had already, and made nothing of, count with those that it gets now.
        held, flags = self._decoder.getstate() if self._seekable else (b"", 0)
        text = self._decoder.decode(data, not data)
        self._bytes_per_character = len(data) / len(text) if text else 0.0
        snapshot = (flags, held + data) if self._seekable else None
        if self._used == len(self._decoded):
            self._decoded, self._used, self._snapshot, self._last_chunk = text, 0, snapshot, (0, snapshot)
        else:
            self._last_chunk = (len(self._decoded), snapshot)
            self._decoded += text
            if self._snapshot is not None:
                self._snapshot = (self._snapshot[0], self._snapshot[1] + data)
        return bool(data or text)

    # Writing.

    async def write(self, text: str, /) -> int:
        """Write text; return how many characters."""
        self._buffer.fileno()
        if self._encoder is None:
            raise io.UnsupportedOperation("not writable")
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        async with self._turns:
            if self._buffer._file.busy:
                await self._buffer._finish(self._buffer._file.turn)
            # From here on it is done, whoever is cancelled: the file is free, so the write starts at once.
            data = self._encoder.encode(self._format.translate(text))
            self._forget()
            if self._decoder is not None:
                self._decoder.reset()
            await self._buffer.write(data)
            if self._line_buffering and ("\n" in text or "\r" in text):
                await self._buffer.flush()
        return len(text)

    async def writelines(self, lines: Iterable[str], /) -> None:
        """Write each of the lines; no newlines are added."""
        for line in lines:
            await self.write(line)

    async def flush(self) -> None:
        """Give the kernel what was written."""
        await self._buffer.flush()

    async def truncate(self, size: int | None = None, /) -> int:
        """Make the file `size` bytes long, by default up to where the buffer is; return the size.

        As with `io.TextIOWrapper`, the buffer is ahead of a text that is being read.
        """
        async with self._turns:
            await self._buffer.flush()
            return await self._buffer.truncate(size)

    # Moving.

    async def tell(self) -> int:
        """Return the position: an opaque number for `seek`."""
        async with self._turns:
            return await self._tell()

    async def _tell(self) -> int:
        self._check_seekable()
        await self._buffer.flush()
        position = await self._buffer.tell()
        if self._decoder is None or self._snapshot is None:
            return position
        flags, data = self._snapshot
        state = self._decoder.getstate()
        try:
            return locate(self._decoder, position - len(data), flags, data, self._used).pack()
        finally:
            self._decoder.setstate(state)

    async def seek(self, cookie: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to where `tell` gave `cookie`, or with `whence` to the end; return the new position."""
        cookie = index(cookie)
        async with self._turns:
            self._check_seekable()
            if whence == os.SEEK_CUR:
                if cookie != 0:
                    raise io.UnsupportedOperation("can't do nonzero cur-relative seeks")
                cookie = await self._tell()
            elif whence == os.SEEK_END:
                if cookie != 0:
                    raise io.UnsupportedOperation("can't do nonzero end-relative seeks")
                await self._buffer.flush()
                try:
                    cookie = await self._buffer.seek(0, os.SEEK_END)
                finally:
                    # Cancelled, it is done all the same.
                    self._forget()
                    if self._decoder is not None:
                        self._decoder.reset()
                self._restart_encoder(cookie)
                return cookie
            elif whence != os.SEEK_SET:
                raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
            if cookie < 0:
                raise ValueError(f"negative seek position {cookie!r}")
            await self._buffer.flush()
            await self._go_to(Cookie.unpack(cookie))
            self._restart_encoder(cookie)
            return cookie

    async def _go_to(self, cookie: Cookie) -> None:
        await self._buffer.seek(cookie.position)
        self._forget()
        if self._decoder is None:
            return
        if cookie == Cookie(0):
            self._decoder.reset()
        else:
            self._decoder.setstate((b"", cookie.flags))
            self._snapshot = (cookie.flags, b"")
            self._last_chunk = (0, self._snapshot)
        if cookie.skip:
            data = await self._buffer.read(cookie.feed)
            self._decoded = self._decoder.decode(data, cookie.needs_end)
            self._snapshot = (cookie.flags, data)
            self._last_chunk = (0, self._snapshot)
            if len(self._decoded) < cookie.skip:
                raise OSError("can't restore logical file position")
            self._used = cookie.skip

    def _restart_encoder(self, position: int) -> None:
        if self._encoder is not None:
            if position == 0:
                self._encoder.reset()
            else:
                self._encoder.setstate(0)

    def _check_seekable(self) -> None:
        self._buffer.fileno()
        if not self._seekable:
            raise io.UnsupportedOperation("underlying stream is not seekable")

    # Ending, and iteration.

    async def close(self) -> None:
        """Write what is left and close the file; a second time does nothing.

        Cancelled, it is done all the same.
        """
        await self._buffer.close()

    async def __aenter__(self) -> Self:
        self._buffer.fileno()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._buffer.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def __repr__(self) -> str:
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return f"<{kind} name={self.name!r} mode={self._mode!r} encoding={self.encoding!r}>"


def locate(decoder: Any, position: int, flags: int, data: bytes, characters: int) -> Cookie:
    """Where the first so many characters of `data`, which begins at `position`, end.

    Decodes beginnings of the data. The more bytes, the more characters, so the longest beginning with no more
    characters than wanted is found by halving; few steps back from there the decoder holds no bytes back, and
    can be put into that state again.
    """

    def decode(size: int) -> tuple[int, bytes, int]:
        decoder.setstate((b"", flags))
        count = len(decoder.decode(data[:size]))
        return (count, *decoder.getstate())

    if characters == 0:
        return Cookie(position, flags)
    low, high = 0, len(data)
    while low < high:
        middle = (low + high + 1) // 2
        if decode(middle)[0] <= characters:
            low = middle
        else:
            high = middle - 1
    start = low
    before, held, state = decode(start)
    while held:
        start = start - 1 if start > max(low - STEPS_BACK, 0) else 0
        before, held, state = decode(start) if start else (0, b"", flags)
    skip = characters - before
    if skip == 0:
        return Cookie(position + start, state)
    end = next((end for end in range(low, len(data) + 1) if decode(end)[0] >= characters), None)
    if end is None:
        return Cookie(position + start, state, len(data) - start, True, skip)
    return Cookie(position + start, state, end - start, False, skip)
