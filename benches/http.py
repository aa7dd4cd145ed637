"""HTTP servers, under load from wrk: aiohttp's, uvicorn's. (The one over TLS stands in `tls.py`.)"""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import ssl
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .load_program import LoadFailed, run_on_core
from .network import BACKLOG, Announce, announce_socket, forever
from .row import Sample, Served, Target

BODY = b"0123456789abcdef" * 64
CONNECTIONS = 50
SCRIPT = Path(__file__).with_name("wrk.lua")


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


def load_http(
    scheme: str = "http", body: bytes = BODY, connections: int = CONNECTIONS
) -> Callable[[Target], Sample]:
    def load(target: Target) -> Sample:
        url = f"{scheme}://{target.address}/"
        trusting = ssl._create_unverified_context() if scheme == "https" else None
        with urllib.request.urlopen(url, timeout=10, context=trusting) as response:
            if response.read() != body:
                raise LoadFailed("the body is not what the server was to send")
        wrk(url, target, 1, connections)
        # wrk's own start may lie between the readings: an idle server's clock stands still.
        cpu = process_cpu(target.pid)
        result = wrk(url, target, max(1, round(target.seconds)), connections)
        cpu = process_cpu(target.pid) - cpu
        if result["errors"] or result["bytes"] < result["requests"] * len(body):
            raise LoadFailed(f"wrk saw {result['errors']} errors, {result['bytes']} bytes")
        requests = result["requests"]
        if requests == 0:
            raise LoadFailed("wrk got no answer in its time")
        return Sample(cpu / requests, requests / result["seconds"], result["p50_us"], result["p99_us"])

    return load


def wrk(url: str, target: Target, seconds: int, connections: int) -> dict[str, Any]:
    program = shutil.which("wrk")
    assert program is not None, "rows that need wrk are left out where it is missing"
    command = [program, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), url]
    result: dict[str, Any] = json.loads(run_on_core(command, target.core, timeout=60).splitlines()[-1])
    return result


ROWS = (
    Served(
        "aiohttp server, 1 KiB × 50",
        0.90,
        serve_aiohttp,
        load_http(),
        programs=("wrk",),
        modules=("aiohttp",),
    ),
    Served(
        "uvicorn + httptools, 1 KiB × 50",
        0.88,
        serve_uvicorn,
        load_http(),
        programs=("wrk",),
        modules=("uvicorn", "httptools"),
    ),
)
