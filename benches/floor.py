"""What TLS costs without an event loop: `python -m benches.floor` beside the loops, in the same run.

A server of blocking sockets, a thread for each connection, the interpreter's `ssl`, and nothing else. There
are two of them. With `SSLSocket` OpenSSL reads and writes the socket itself. With `SSLObject` the bytes go
through two memory BIOs, which is the only way that `ssl` has for an event loop, and costs two more copies
of everything. What OpenSSL takes in the second no loop can save; the first shows what the detour costs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Protocol, TypeVar

from mioloop.bench import quantity

from . import tls
from .loops import BASELINE, OURS
from .network import BACKLOG, KIB, Announce, Bulk, announce_socket
from .report import as_markdown, as_text, describe_machine, describe_versions, today
from .row import Served
from .runner import Effort, SampleFailed, missing, take_sample

Answer = TypeVar("Answer")
RECEIVE = 256 * KIB
UNIT = 32 * KIB
"""As much is encrypted before it is sent: of 32, 64 and 256 KiB the cheapest."""


class Connection(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def write(self, data: bytes, /) -> object: ...

    def close(self) -> None: ...


class Direct:
    """OpenSSL has the socket."""

    def __init__(self, context: ssl.SSLContext, connection: socket.socket) -> None:
        self.socket = context.wrap_socket(connection, server_side=True)
        self.read = self.socket.recv
        self.write = self.socket.sendall

    def close(self) -> None:
        self.socket.unwrap()


class InMemory:
    """OpenSSL has memory, and we the socket."""

    def __init__(self, context: ssl.SSLContext, connection: socket.socket) -> None:
        self.socket = connection
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.repeat(self.object.do_handshake)

    def repeat(self, step: Callable[[], Answer]) -> Answer:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.flush()
                if received := self.socket.recv(RECEIVE):
                    self.incoming.write(received)
                else:
                    self.incoming.write_eof()
            finally:
                self.flush()

    def flush(self) -> None:
        if self.outgoing.pending:
            self.socket.sendall(self.outgoing.read())

    def read(self, size: int) -> bytes:
        return self.repeat(partial(self.object.read, size))

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(data), UNIT):
            self.object.write(view[start : start + UNIT])
            self.flush()

    def close(self) -> None:
        self.repeat(self.object.unwrap)


def answer_requests(body: bytes, connection: Connection) -> None:
    response, received = tls.http_response(body), b""
    while data := connection.read(RECEIVE):
        received += data
        if received.endswith(b"\r\n\r\n"):
            received = b""
            connection.write(response)


def write_much(connection: Connection) -> None:
    for _ in range(Bulk.AMOUNT // len(Bulk.CHUNK)):
        connection.write(Bulk.CHUNK)
    read_all(connection)


def read_all(connection: Connection) -> None:
    while connection.read(RECEIVE):
        pass
    connection.close()


async def serve(
    kind: Callable[[ssl.SSLContext, socket.socket], Connection],
    work: Callable[[Connection], None],
    folder: Path,
    announce: Announce,
) -> None:
    """Never lets the loop have a turn."""
    context = tls.certificate(folder)

    def converse(client: socket.socket) -> None:
        # A client that has enough hangs up.
        with client, contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            work(kind(context, client))

    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as server:
        announce_socket(server, announce)
        while True:
            client, _ = server.accept()
            threading.Thread(target=converse, args=(client,), daemon=True).start()


WORKS: dict[str, Callable[[Connection], None]] = {
    **{
        f"HTTPS keep-alive, {size} KiB × {count}": partial(answer_requests, tls.http_body(size * KIB))
        for size in (1, 100)
        for count in (1, 50, 200)
    },
    "TLS handshake": read_all,
    "TLS bulk write, 512 MiB": write_much,
    "TLS bulk read, 512 MiB": read_all,
}
KINDS: dict[str, Callable[[ssl.SSLContext, socket.socket], Connection]] = {
    "SSLObject": InMemory,
    "SSLSocket": Direct,
}
WITH_LOOP: dict[str, Served] = {row.name: row for row in tls.ROWS}
ROWS = {
    f"{name}, {kind}": dataclasses.replace(
        WITH_LOOP[name], name=f"{name}, {kind}", serve=partial(serve, KINDS[kind], work)
    )
    for name, work in WORKS.items()
    for kind in KINDS
}
"""The same rows, without a loop."""


def measure(row: Served, rounds: int) -> dict[str, float | None]:
    """The median cost of a row on the two loops and without one; none of what failed."""
    contenders = [(BASELINE, row, BASELINE), (OURS, row, OURS)]
    contenders += [(kind, ROWS[f"{row.name}, {kind}"], "asyncio") for kind in KINDS]
    costs: dict[str, list[float]] = {name: [] for name, _, _ in contenders}
    failed = set()
    for turn in range(rounds):
        # Whoever comes first in one round comes last in the next.
        first = turn % len(contenders)
        for name, work, loop in (*contenders[first:], *contenders[:first]):
            try:
                costs[name].append(take_sample(work, loop, Effort()).cost)
            except SampleFailed as reason:
                print(f"{row.name}, {name}: {reason}", file=sys.stderr)
                failed.add(name)
    return {name: None if name in failed else median(taken) for name, taken in costs.items()}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benches.floor")
    parser.add_argument("--rows", default="", metavar="PATTERN", help="only rows that match this expression")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table there (markdown)")
    arguments = parser.parse_args()
    table = [["work", BASELINE, OURS, *(f"{kind}, no loop" for kind in KINDS)]]
    for name in WORKS:
        row = WITH_LOOP[name]
        if not re.search(arguments.rows, name, re.IGNORECASE):
            continue
        if absent := missing(row):
            print(f"{name} is left out: {', '.join(absent)} missing", file=sys.stderr)
            continue
        costs = measure(row, arguments.rounds)
        base = costs.pop(BASELINE)
        shares = [f"{cost / base:.2f}" if cost and base else "failed" for cost in costs.values()]
        table.append([name, quantity(base) if base else "failed", *shares])
        print("  ".join(table[-1]), file=sys.stderr, flush=True)
    print(as_text(table))
    if arguments.table:
        versions = describe_versions([BASELINE, OURS])
        about = f"{today()}, {describe_machine()}; {versions}: medians of {arguments.rounds} samples."
        arguments.table.write_text(f"{as_markdown(table)}\n\n{about}\n")


if __name__ == "__main__":
    main()
