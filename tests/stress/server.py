"""An echo server that runs out of descriptors and keeps account of every connection.

    python -m tests.stress.server MODULE:ATTRIBUTE CONNECTIONS OPEN

`MODULE:ATTRIBUTE` makes the loop; the process can accept OPEN connections at once and expects CONNECTIONS in
all. It prints its port. Told to end (anything on stdin, or its end) it waits until it has lost them all and
prints its account as JSON.

Each connection is greeted. The first byte that it sends says what it wants: everything is echoed, except to
those that ask for the idle timer. They have to ask: were every connection timed, a client that merely is slow
would be taken for an idle one.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import json
import os
import resource
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

GREETING = b"+"
ECHO = b"E"
IDLE_UNTIL_CLOSED = b"C"
IDLE_UNTIL_ABORTED = b"A"

IDLE_TIME = 0.2  # seconds
SAFETY = 30  # seconds; ends a wait that would otherwise hang: the account then tells what is missing
BACKLOG = 4096  # the system may allow fewer


@dataclass
class Account:
    """What happened to the server, and what is left of it at the end."""

    made: int = 0
    lost: int = 0
    timed_out: int = 0
    lost_with: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    descriptors_at_start: int = 0
    descriptors_at_end: int = 0
    tasks_at_end: int = 0
    connections_alive_at_end: int = 0


class Connection(asyncio.Protocol):
    """One connection; a callback that comes at the wrong time is a violation."""

    def __init__(self, account: Account, everyone_lost: Callable[[], None]) -> None:
        self._account = account
        self._everyone_lost = everyone_lost
        self._state = "new"
        self._idle: asyncio.TimerHandle | None = None
        self._asked = False

    def _expect(self, callback: str, *states: str) -> None:
        if self._state not in states:
            self._account.violations[f"{callback} when {self._state}"] += 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._expect("connection_made", "new")
        self._state = "open"
        self._account.made += 1
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(GREETING)

    def data_received(self, data: bytes) -> None:
        self._expect("data_received", "open")
        if not self._asked:
            self._asked = True
            if data == IDLE_UNTIL_CLOSED:
                self._time_out(self._transport.close)
                return
            if data == IDLE_UNTIL_ABORTED:
                self._time_out(self._transport.abort)
                return
        self._transport.write(data)

    def _time_out(self, end: Callable[[], None]) -> None:
        def timed_out() -> None:
            self._account.timed_out += 1
            end()

        self._idle = asyncio.get_running_loop().call_later(IDLE_TIME, timed_out)

    def pause_writing(self) -> None:
        self._expect("pause_writing", "open", "half-closed")
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._expect("resume_writing", "open", "half-closed")
        self._transport.resume_reading()

    def eof_received(self) -> None:
        self._expect("eof_received", "open")
        self._state = "half-closed"

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect("connection_lost", "open", "half-closed")
        self._state = "lost"
        self._account.lost += 1
        self._account.lost_with[type(exc).__name__] += 1
        if self._idle is not None:
            self._idle.cancel()
        self._everyone_lost()


def descriptors() -> int:
    """How many descriptors are open."""
    return len(os.listdir("/proc/self/fd")) - 1  # one of them was for listing them


async def serve(connections: int, at_once: int) -> Account:
    """Serves until it is told to end and has lost all `connections`."""
    loop = asyncio.get_running_loop()
    account = Account(descriptors_at_start=descriptors())
    alive: weakref.WeakSet[Connection] = weakref.WeakSet()
    told_to_end, everyone_lost = asyncio.Event(), asyncio.Event()

    def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exception = context.get("exception")
        number = exception.errno if isinstance(exception, OSError) else None
        account.reported[f"{context['message']}: {errno.errorcode.get(number or 0, repr(exception))}"] += 1

    def check() -> None:
        if account.lost == connections:
            everyone_lost.set()

    def connection() -> Connection:
        made = Connection(account, check)
        alive.add(made)
        return made

    loop.set_exception_handler(report)
    loop.add_reader(sys.stdin.fileno(), told_to_end.set)
    server = await loop.create_server(connection, "127.0.0.1", 0, backlog=BACKLOG)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + at_once, hard))
    print(server.sockets[0].getsockname()[1], flush=True)

    await told_to_end.wait()
    # Readable still: its end, or what it was told.
    loop.remove_reader(sys.stdin.fileno())
    await asyncio.wait([asyncio.ensure_future(everyone_lost.wait())], timeout=SAFETY)
    server.close()
    await asyncio.wait_for(server.wait_closed(), SAFETY)
    # The loop closes the listening socket, and lets go of what it called last, in its own time.
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()
    account.connections_alive_at_end = len(alive)
    account.descriptors_at_end = descriptors()
    account.tasks_at_end = len(asyncio.all_tasks()) - 1
    return account


def main() -> None:
    name, connections, at_once = sys.argv[1:]
    module, attribute = name.split(":")
    with asyncio.Runner(loop_factory=getattr(importlib.import_module(module), attribute)) as runner:
        account = runner.run(serve(int(connections), int(at_once)))
    print(json.dumps(vars(account)))


if __name__ == "__main__":
    main()
