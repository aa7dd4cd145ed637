"""Signals, from the C handler to a callback in the loop.

CPython's C handler for a signal only takes a note; Python code runs when the main thread next executes some.
A loop that sleeps in its poll executes none, and the kernel may have interrupted another thread than the one
that sleeps, or have delivered the signal a moment before the sleep began. So while a loop runs in the main
thread it owns the *wakeup descriptor* (`signal.set_wakeup_fd`): the C handler writes the signal's number to a
socket which the loop reads, and that ends the sleep whatever the race. A program that had a descriptor of its
own in that place (Twisted's reactor does) gets the numbers passed on.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import inspect
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Loop

_Handler = tuple[Callable[..., object], tuple[Any, ...], contextvars.Context]

# The ends that the C handler writes to, of all loops; and those of them that another loop has put back.
_senders: set[int] = set()
_put_back: set[int] = set()


class Signals:
    """The signal handlers of one loop, and the wakeup descriptor while it is the loop's.

    It is told the loop each time and does not keep it: a closed loop goes with its last user, not when the
    collector finds a cycle.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, _Handler] = {}
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        # The descriptor that ours has taken the place of; None while ours is not in place.
        self._displaced: int | None = None
        # The same, if it is the program's own: two loops, each in the other's place at some time, would pass
        # a signal on to each other for ever.
        self._passes_on_to = -1
        self._runs = 0

    def begin_run(self, loop: Loop) -> None:
        """Take the wakeup descriptor, if this is the main thread."""
        with contextlib.suppress(ValueError):
            self._take_wakeup(loop)
        self._runs += 1

    def end_run(self) -> None:
        """Give the wakeup descriptor back, unless a signal between two runs would be lost for a handler."""
        self._runs -= 1
        self._give_wakeup_back()

    def close(self, loop: Loop) -> None:
        """Give every signal its default action back."""
        for sig in list(self._handlers):
            self.remove(sig)
        self._give_wakeup_back()
        if self._sockets is not None:
            receiver, sender = self._sockets
            self._sockets = None
            self._forget(sender.fileno())
            loop._remove_reader(receiver)
            receiver.close()
            sender.close()

    def after_fork(self, loop: Loop) -> None:
        """Part from the parent, whose handlers must not run for the signals of its child."""
        if self._sockets is None:
            return
        self._forget(self._sockets[1].fileno())
        for end in self._sockets:
            loop._remove_reader(end)
            end.close()
        self._sockets = None
        displaced, self._displaced = self._displaced, None
        if displaced is not None:
            passes_on_to = self._passes_on_to
            self._take_wakeup(loop)
            self._displaced, self._passes_on_to = displaced, passes_on_to

    def add(self, loop: Loop, sig: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        """See `Loop.add_signal_handler`."""
        candidate: object = callback
        if inspect.iscoroutine(candidate) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        _check_signal(sig)
        loop._check_closed()  # type: ignore[attr-defined]
        try:
            self._take_wakeup(loop)
        except (ValueError, OSError) as error:
            raise RuntimeError(str(error)) from error
        try:
            # Something must be installed for the C handler to be called at all.
            _set_action(sig, _ignore)
            # The system calls of other threads go on after it.
            signal.siginterrupt(sig, False)
        except BaseException:
            self._give_wakeup_back()
            raise
        self._handlers[sig] = (callback, args, contextvars.copy_context())

    def remove(self, sig: int) -> bool:
        """See `Loop.remove_signal_handler`."""
        _check_signal(sig)
        if self._handlers.pop(sig, None) is None:
            return False
        _set_action(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)
        self._give_wakeup_back()
        return True

    def _take_wakeup(self, loop: Loop) -> None:
        if self._displaced is not None:
            return
        if self._sockets is None:
            receiver, sender = socket.socketpair()
            receiver.setblocking(False)
            sender.setblocking(False)
            try:
                displaced = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            except ValueError:
                receiver.close()
                sender.close()
                raise
            self._sockets = (receiver, sender)
            _senders.add(sender.fileno())
            loop._add_reader(receiver, self._read, loop)
        else:
            displaced = signal.set_wakeup_fd(self._sockets[1].fileno(), warn_on_full_buffer=False)
        self._displaced = displaced
        self._passes_on_to = -1 if displaced in _senders else displaced

    def _give_wakeup_back(self) -> None:
        if self._displaced is None or self._handlers or self._runs:
            return
        assert self._sockets is not None
        before = self._displaced
        if before in _senders:
            _put_back.add(before)
        elif before != self._passes_on_to:
            # Another loop's, which has closed it.
            before = -1
        try:
            current = _put_wakeup(before)
        except ValueError:
            # A loop of the main thread, closed in another: that thread alone could do it.
            return
        if current != self._sockets[1].fileno():
            # Somebody has put theirs in the place of ours meanwhile; it is theirs to take away.
            _put_wakeup(current)
        self._displaced = None

    @staticmethod
    def _forget(sender: int) -> None:
        """A loop's sender is going to be closed, and its number may be another file's soon."""
        _senders.discard(sender)
        if sender in _put_back:
            _put_back.discard(sender)
            with contextlib.suppress(ValueError):
                if (current := signal.set_wakeup_fd(-1)) != sender:
                    _put_wakeup(current)

    def _read(self, loop: Loop) -> None:
        """The socket is readable: signals have come. (Handlers of `signal.signal` have run by now.)"""
        assert self._sockets is not None
        try:
            numbers = self._sockets[0].recv(4096)
        except (BlockingIOError, InterruptedError):
            return
        if self._displaced is not None and self._passes_on_to >= 0:
            # Full or closed: the C handler would have lost them, too.
            with contextlib.suppress(OSError):
                os.write(self._passes_on_to, numbers)
        for number in numbers:
            if (handler := self._handlers.get(number)) is not None:
                callback, args, context = handler
                loop.call_soon(callback, *args, context=context)


def _put_wakeup(fd: int) -> int:
    """Make `fd` the wakeup descriptor again, or none if it is closed by now; return the one before."""
    try:
        return signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    except OSError:
        return signal.set_wakeup_fd(-1)
    except ValueError:
        # What it says of a closed descriptor on some systems, and outside the main thread everywhere.
        if threading.current_thread() is not threading.main_thread():
            raise
        return signal.set_wakeup_fd(-1)


def _ignore(sig: int, frame: Any) -> None:
    """What CPython calls for a signal that a loop handles; the loop does the rest."""


def _set_action(sig: int, action: Any) -> None:
    try:
        signal.signal(sig, action)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise RuntimeError(f"sig {sig} cannot be caught") from error
        raise


def _check_signal(sig: int) -> None:
    if not isinstance(sig, int):
        raise TypeError(f"sig must be an int, not {sig!r}")
    if sig not in signal.valid_signals():
        raise ValueError(f"invalid signal number {sig}")
