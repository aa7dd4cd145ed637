"""The other end of the TLS rows: `python -m benches.tls_client MODE HOST:PORT ...` prints what it has done.

Plain blocking sockets: it is one of many clients to the server, and how fast it is does not matter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable

MESSAGE = b"x" * 1023 + b"\n"


def connect(address: tuple[str, int], context: ssl.SSLContext) -> ssl.SSLSocket:
    connection = context.wrap_socket(socket.create_connection(address, timeout=30))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def repeat(seconds: float, step: Callable[[], int]) -> int:
    end = time.monotonic() + seconds
    total = step()
    while time.monotonic() < end:
        total += step()
    return total


def main() -> None:
    parser = argparse.ArgumentParser("benches.tls_client")
    parser.add_argument("mode", choices=["lines", "handshakes", "download", "upload"])
    parser.add_argument("address")
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--amount", type=int, default=0, help="bytes, of a download or an upload")
    parser.add_argument("--seconds", type=float, default=1)
    arguments = parser.parse_args()
    host, port = arguments.address.split(":")
    address = host, int(port)
    context = ssl._create_unverified_context()

    def handshake() -> int:
        # Closed without a word, as most clients do.
        connect(address, context).close()
        return 1

    def download() -> int:
        with connect(address, context) as connection:
            buffer, left = bytearray(256 * 1024), arguments.amount
            while left:
                received = connection.recv_into(buffer, min(len(buffer), left))
                if not received:
                    raise SystemExit("the server has closed early")
                left -= received
        return 1

    def upload() -> int:
        with connect(address, context) as connection:
            chunk = bytes(256 * 1024)
            for _ in range(arguments.amount // len(chunk)):
                connection.sendall(chunk)
            connection.unwrap()  # The server answers it when it has read all.
        return 1

    with contextlib.ExitStack() as stack:
        if arguments.mode == "lines":
            count: int = arguments.connections
            connections = [stack.enter_context(connect(address, context)) for _ in range(count)]

            def echo() -> int:
                for connection in connections:
                    connection.sendall(MESSAGE)
                for connection in connections:
                    received = b""
                    while len(received) < len(MESSAGE):
                        received += connection.recv(4096)
                    if received != MESSAGE:
                        raise SystemExit("the server's echo is wrong")
                return count

            step: Callable[[], int] = echo
        else:
            steps = {"handshakes": handshake, "download": download, "upload": upload}
            step = steps[arguments.mode]

        start = time.monotonic()
        operations = repeat(arguments.seconds, step)
        print(json.dumps({"operations": operations, "seconds": time.monotonic() - start}))


if __name__ == "__main__":
    main()
