"""What a connection that does nothing costs: the growth of the server's private memory for each of many.

Each has carried one message, since what a loop sets up on first use is part of what a real server's idle
connection holds.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from pathlib import Path

from .load_program import LoadFailed
from .row import Sample, Target

FIRST = 200
CONNECTIONS = 2000


def private_bytes(pid: int) -> int:
    """Memory that would come free if the process ended (USS): shared libraries don't count."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) * 1024 for kib in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.MULTILINE))


def load_idle_connections(target: Target, secure: bool = False) -> Sample:
    host, port = target.address.split(":")
    context = ssl._create_unverified_context() if secure else None
    with contextlib.ExitStack() as stack:

        def connect(count: int) -> None:
            for _ in range(count):
                connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
                if context is not None:
                    connection = stack.enter_context(context.wrap_socket(connection))
                connection.sendall(b"hello")
                if connection.recv(100) != b"hello":
                    raise LoadFailed("the server's echo is wrong")
            time.sleep(0.2)

        # Those that come first also fill the server's caches and free lists, which is not what is asked for.
        connect(FIRST)
        before = private_bytes(target.pid)
        connect(CONNECTIONS)
        return Sample(cost=(private_bytes(target.pid) - before) / CONNECTIONS)
