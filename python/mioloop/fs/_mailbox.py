"""Each loop's mailbox, where the blocking threads leave their results."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
from asyncio import Future, get_running_loop
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

from .._core import File, Mailbox, _wait_for_writes
from ..loop import Loop

WRITES_AT_EXIT = 5.0
"""Seconds that the end of the program waits for writes that nobody has awaited."""

# Those of loops that are not ours. Weak at both ends: a mailbox knows futures, which know their loop, and
# would keep it alive from here. The loop holds its mailbox, as what it watches, until it is closed.
_mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[Mailbox]] = WeakKeyDictionary()


def context() -> tuple[Mailbox, Future[Any]]:
    """The running loop's mailbox, and a future for it to give a result to."""
    loop = get_running_loop()
    if isinstance(loop, Loop):
        return Mailbox.of(loop), Future(loop=loop)
    try:
        mailbox = _mailboxes[loop]()
    except KeyError:
        mailbox = None
    if mailbox is None:
        mailbox = Mailbox()
        # In a context of its own: that of whoever came first shall not live as long as the loop.
        contextvars.Context().run(loop.add_reader, mailbox.fileno(), mailbox.deliver)
        _mailboxes[loop] = ref(mailbox)
    return mailbox, Future(loop=loop)


async def ask(method: Callable[..., None], *args: Any) -> Any:
    """Has a mailbox do something with a path. (`method` is a method of the class.)"""
    mailbox, future = context()
    method(mailbox, future, *args)
    try:
        return await future
    except asyncio.CancelledError:
        # Cancelled when the result was there already: an open file is not left to the garbage collector.
        succeeded = future.done() and not future.cancelled() and future.exception() is None
        if succeeded and isinstance(file := future.result(), File):
            file.close(context)
        raise


_forks = 0


def process() -> int:
    """A number that is another one in a forked child."""
    return _forks


def _after_fork() -> None:
    """The child's loops share their signals with the parent's, and must not take those back."""
    global _forks
    _forks += 1
    # They share what they watch with the parent too; there is no taking anything out.
    _mailboxes.clear()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_wait_for_writes, WRITES_AT_EXIT)
