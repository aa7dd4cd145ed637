"""Small tools of the unit tests: run a loop one step at a time, wait for a condition, record what a
protocol saw.

Nothing here measures time: SAFETY only ends a test that would otherwise hang.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import inspect
import logging
import os
import socket
import struct
import termios
import time
from asyncio import format_helpers
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

SAFETY = 30  # seconds; a test never takes that long unless it hangs

BIG = 3_000_000  # bytes; more than the kernel takes at once from a `tcp_pair`

# Newer Pythons show the arguments of callbacks in debug mode alone.
ARGUMENTS_ARE_SHOWN = "debug" not in inspect.signature(format_helpers._format_callback_source).parameters

T = TypeVar("T")


class Caught(list[dict[str, Any]]):
    """The contexts that a loop's exception handler was called with; an error in the log counts as one."""

    def __init__(self) -> None:
        super().__init__()
        self.log_handler = logging.Handler(logging.ERROR)
        self.log_handler.emit = self._logged  # type: ignore[method-assign]

    def _logged(self, record: logging.LogRecord) -> None:
        self.append(
            {
                "message": record.getMessage(),
                "exception": (record.exc_info or (None, None))[1],
                "logged": True,
            }
        )

    def handler(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.append(context)

    def take(self) -> dict[str, Any]:
        """The only context so far; the test expected it."""
        assert len(self) == 1, f"one call of the exception handler expected, got {list(self)}"
        return self.pop()


def run(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end."""
    return loop.run_until_complete(asyncio.wait_for(main, SAFETY))


def run_once(loop: asyncio.AbstractEventLoop) -> None:
    """Runs one iteration: what is ready now, and not what that makes ready."""
    loop.call_soon(loop.stop)
    loop.run_forever()


def run_until(loop: asyncio.AbstractEventLoop, condition: Callable[..., object]) -> None:
    """Runs iterations until the condition holds."""
    deadline = time.monotonic() + SAFETY
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        loop.call_later(0.001, loop.stop)
        loop.run_forever()


async def until(condition: Callable[..., object]) -> None:
    """Lets the running loop work until the condition holds."""
    deadline = time.monotonic() + SAFETY
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(0.001)


async def settle(rounds: int = 10) -> None:
    """Lets the loop go round a few times, for checks that something did *not* happen."""
    for _ in range(rounds):
        await asyncio.sleep(0)
    await asyncio.sleep(0.005)
    for _ in range(rounds):
        await asyncio.sleep(0)


def socketpair() -> tuple[socket.socket, socket.socket]:
    """Two connected non-blocking sockets."""
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    return left, right


def pipe() -> tuple[int, int]:
    """A non-blocking pipe: a callback that comes without data raises, instead of hanging the test."""
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two non-blocking ends of a TCP connection, whose kernel buffers hold far less than BIG."""
    left = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for sock in (left, listener):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 131_072)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072)
        left.connect(listener.getsockname())
        right, _ = listener.accept()
    left.setblocking(False)
    right.setblocking(False)
    return left, right


def reset(peer: socket.socket) -> None:
    """Closes a TCP connection with a reset instead of an orderly end."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def unread(sock: Any) -> int:
    """How many bytes the kernel has for a socket."""
    size = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, size)
    return size[0]


def fill(sock: socket.socket) -> int:
    """Writes until the socket takes no more; the number of bytes it took."""
    total = 0
    try:
        while True:
            total += sock.send(b"x" * 65536)
    except BlockingIOError:
        return total


def import_line(factory: Callable[[], asyncio.AbstractEventLoop]) -> str:
    """The line that makes the loop under test known as `new_event_loop` in a script of a child process."""
    return f"from {factory.__module__} import {factory.__qualname__} as new_event_loop\n"


def seen(path: Path, *, read: bool = True) -> None:
    """Says when the file was read last. If that was before the last change, a read would have the file system
    take it down, which may take its time."""
    now = path.stat().st_ctime_ns
    os.utime(path, ns=(now + 3_600_000_000_000 if read else now - 3_600_000_000_000, now))


def at_once(work: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    work.close()
    pytest.fail("it has waited")
