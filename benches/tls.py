"""Servers over TLS, each with a key made for the run.

HTTPS is loaded by wrk, the others by a client of their own (`tls_client.py`), whose own cost is in none of
the figures.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

from .http import CONNECTIONS, load_http, process_cpu
from .load_program import run_on_core
from .memory import load_idle_connections
from .network import BACKLOG, KIB, Announce, Bulk, Echo, announce_socket, echo_lines, forever
from .row import Sample, Served, Target


def certificate(folder: Path) -> ssl.SSLContext:
    """A context with a key of its own, made for this run."""
    key, chain = folder / "key.pem", folder / "chain.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command = ["openssl", *options.split(), "-keyout", str(key), "-out", str(chain)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


def http_body(size: int) -> bytes:
    return b"0123456789abcdef" * (size // 16)


def http_response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Http(asyncio.Protocol):
    """As little HTTP as keep-alive needs, so that the row shows TLS and the transport."""

    received = b""

    def __init__(self, body: bytes) -> None:
        self.response = http_response(body)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.received.endswith(b"\r\n\r\n"):
            self.received = b""
            self.transport.write(self.response)


async def serve_protocol(
    protocol: Callable[[], asyncio.BaseProtocol], folder: Path, announce: Announce
) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=certificate(folder), backlog=BACKLOG)
    announce_socket(server.sockets[0], announce)
    await forever()


async def serve_streams(folder: Path, announce: Announce) -> None:
    server = await asyncio.start_server(echo_lines, "127.0.0.1", 0, ssl=certificate(folder), backlog=BACKLOG)
    announce_socket(server.sockets[0], announce)
    await forever()


def load_with_client(
    mode: str, connections: int = CONNECTIONS, amount: int = 0
) -> Callable[[Target], Sample]:
    def load(target: Target) -> Sample:
        command = [sys.executable, "-m", "benches.tls_client", mode, target.address]
        command += ["--connections", str(connections), "--amount", str(amount)]
        run_on_core([*command, "--seconds", str(target.warmup)], target.core, timeout=60)
        cpu = process_cpu(target.pid)
        done = run_on_core([*command, "--seconds", str(target.seconds)], target.core, timeout=120)
        cpu = process_cpu(target.pid) - cpu
        result = json.loads(done)
        return Sample(cpu / result["operations"], result["operations"] / result["seconds"])

    return load


def https(size: int, connections: int, goal: float) -> Served:
    body = http_body(size)
    return Served(
        f"HTTPS keep-alive, {size // KIB} KiB × {connections}",
        goal,
        partial(serve_protocol, partial(Http, body)),
        load_http("https", body, connections),
        programs=("wrk", "openssl"),
    )


ROWS = (
    https(KIB, 50, 0.80),
    https(KIB, 1, 0.85),
    https(KIB, 200, 0.85),
    https(100 * KIB, 1, 0.85),
    https(100 * KIB, 50, 0.85),
    https(100 * KIB, 200, 0.85),
    Served(
        "TLS echo, streams (readline), 1 KiB × 50",
        0.85,
        serve_streams,
        load_with_client("lines"),
        programs=("openssl",),
    ),
    Served(
        "TLS handshake",
        0.85,
        partial(serve_protocol, asyncio.Protocol),
        load_with_client("handshakes"),
        programs=("openssl",),
    ),
    Served(
        "TLS bulk write, 512 MiB",
        0.85,
        partial(serve_protocol, Bulk),
        load_with_client("download", amount=Bulk.AMOUNT),
        programs=("openssl",),
    ),
    Served(
        "TLS bulk read, 512 MiB",
        0.85,
        partial(serve_protocol, asyncio.Protocol),
        load_with_client("upload", amount=512 * KIB * KIB),
        programs=("openssl",),
    ),
    Served(
        "memory per idle TLS connection",
        1.0,
        partial(serve_protocol, Echo),
        partial(load_idle_connections, secure=True),
        measure="bytes",
        programs=("openssl",),
    ),
)
