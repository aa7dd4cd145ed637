"""HTTP servers, under load from wrk: our own over TLS, aiohttp's, uvicorn's."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from .load_program import LoadFailed, run_on_core
from .network import BACKLOG, Announce, announce_socket, forever
from .row import Sample, Served, Target

BODY = b"0123456789abcdef" * 64
CONNECTIONS = 50
SCRIPT = Path(__file__).with_name("wrk.lua")


def certificate(folder: Path) -> ssl.SSLContext:
    """A context with a key of its own, made for this run."""
    key, chain = folder / "key.pem", folder / "chain.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command = ["openssl", *options.split(), "-keyout", str(key), "-out", str(chain)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


class Http(asyncio.Protocol):
    """As little HTTP as keep-alive needs, so that the row shows TLS and the transport."""

    RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.received.endswith(b"\r\n\r\n"):
            self.received = b""
            self.transport.write(self.RESPONSE)


async def serve_https(folder: Path, announce: Announce) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Http, "127.0.0.1", 0, ssl=certificate(folder), backlog=BACKLOG)
    announce_socket(server.sockets[0], announce)
    await forever()


async def serve_aiohttp(folder: Path, announce: Announce) -> None:
    web: Any = importlib.import_module("aiohttp.web")

    async def handle(request: object) -> object:
        return web.Response(body=BODY)

    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=BACKLOG).start()
    host, port = runner.addresses[0]
    announce(f"{host}:{port}")
    await forever()


async def asgi(scope: object, receive: object, send: Callable[[dict[str, object]], Any]) -> None:
    headers = [(b"content-length", str(len(BODY)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


async def serve_uvicorn(folder: Path, announce: Announce) -> None:
    uvicorn: Any = importlib.import_module("uvicorn")
    config = uvicorn.Config(
        asgi, port=0, http="httptools", lifespan="off", log_level="error", access_log=False, backlog=BACKLOG
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    announce_socket(server.servers[0].sockets[0], announce)
    await serving


def process_cpu(pid: int) -> float:
    """Another process's CPU time, from the clock that Linux numbers after it."""
    return time.clock_gettime(~pid << 3 | 2)


def load_http(scheme: str) -> Callable[[Target], Sample]:
    def load(target: Target) -> Sample:
        url = f"{scheme}://{target.address}/"
        trusting = ssl._create_unverified_context() if scheme == "https" else None
        with urllib.request.urlopen(url, timeout=10, context=trusting) as response:
            if response.read() != BODY:
                raise LoadFailed("the body is not what the server was to send")
        wrk(url, target, 1)
        # wrk's own start may lie between the readings: an idle server's clock stands still.
        cpu = process_cpu(target.pid)
        result = wrk(url, target, max(1, round(target.seconds)))
        cpu = process_cpu(target.pid) - cpu
        if result["errors"] or result["bytes"] < result["requests"] * len(BODY):
            raise LoadFailed(f"wrk saw {result['errors']} errors, {result['bytes']} bytes")
        requests = result["requests"]
        return Sample(cpu / requests, requests / result["seconds"], result["p50_us"], result["p99_us"])

    return load


def wrk(url: str, target: Target, seconds: int) -> dict[str, Any]:
    program = shutil.which("wrk")
    assert program is not None, "rows that need wrk are left out where it is missing"
    command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(SCRIPT), url]
    result: dict[str, Any] = json.loads(run_on_core(command, target.core, timeout=60).splitlines()[-1])
    return result


ROWS = (
    Served(
        "HTTPS keep-alive, 1 KiB × 50", 0.80, serve_https, load_http("https"), programs=("wrk", "openssl")
    ),
    Served(
        "aiohttp server, 1 KiB × 50",
        0.90,
        serve_aiohttp,
        load_http("http"),
        programs=("wrk",),
        modules=("aiohttp",),
    ),
    Served(
        "uvicorn + httptools, 1 KiB × 50",
        0.88,
        serve_uvicorn,
        load_http("http"),
        programs=("wrk",),
        modules=("uvicorn", "httptools"),
    ),
)
