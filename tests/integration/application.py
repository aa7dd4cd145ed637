"""The aiohttp application that the tests talk to, in the test's own loop or in a process of its own.

    python -m tests.integration.application asyncio:SelectorEventLoop [CERTIFICATE]

The process prints its port, and shuts down gracefully on SIGTERM.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from aiohttp import WSMsgType, web

CHUNK = bytes(range(256)) * 256  # 64 KiB


@dataclass
class Progress:
    """What the handlers have done so far."""

    sent: int = 0  # bytes that /download handed to its transport
    waiting: int = 0  # handlers of /hang that have begun
    gone: int = 0  # handlers that noticed that their client had gone


PROGRESS = web.AppKey("progress", Progress)
SHUTTING_DOWN = web.AppKey("shutting_down", asyncio.Event)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """`module:attribute` as the callable that makes a loop."""
    module, attribute = name.split(":")
    factory: Callable[[], asyncio.AbstractEventLoop] = getattr(importlib.import_module(module), attribute)
    return factory


def chunks(size: int) -> Iterator[bytes]:
    """The bytes that /download sends."""
    while size > 0:
        yield CHUNK[:size]
        size -= len(CHUNK)


async def peer(request: web.Request) -> web.Response:
    assert request.transport is not None
    return web.json_response(request.transport.get_extra_info("peername")[1])


async def progress(request: web.Request) -> web.Response:
    return web.json_response(asdict(request.app[PROGRESS]))


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def stream_echo(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    async for chunk in request.content.iter_any():
        await response.write(chunk)
    return response


async def digest(request: web.Request) -> web.Response:
    sha = hashlib.sha256()
    async for chunk in request.content.iter_any():
        sha.update(chunk)
    return web.Response(text=sha.hexdigest())


async def download(request: web.Request) -> web.StreamResponse:
    size = int(request.query["size"])
    done = request.app[PROGRESS]
    response = web.StreamResponse()
    response.content_length = size
    await response.prepare(request)
    try:
        for chunk in chunks(size):
            await response.write(chunk)
            done.sent += len(chunk)
            # A transport that is never paused never suspends us, and a TLS transport hears of a lost
            # connection only when the loop has its turn.
            await asyncio.sleep(0)
    except (ConnectionError, asyncio.CancelledError):
        done.gone += 1
        raise
    return response


async def file(request: web.Request) -> web.FileResponse:
    return web.FileResponse(Path(request.query["path"]))


async def hang(request: web.Request) -> web.Response:
    done = request.app[PROGRESS]
    done.waiting += 1
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        done.gone += 1
        raise
    raise AssertionError("nobody sets that event")


async def at_shutdown(request: web.Request) -> web.Response:
    """Answers while the server shuts down, and not before."""
    request.app[PROGRESS].waiting += 1
    await request.app[SHUTTING_DOWN].wait()
    return web.Response(text="answered while shutting down")


async def websocket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(max_msg_size=0)
    await ws.prepare(request)
    try:
        async for message in ws:
            if message.type is WSMsgType.TEXT and message.data == "close":
                await ws.close(code=4000, message=b"as you wish")
            elif message.type is WSMsgType.TEXT:
                await ws.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await ws.send_bytes(message.data)
    finally:
        request.app[PROGRESS].gone += 1
    return ws


async def note_shutdown(app: web.Application) -> None:
    app[SHUTTING_DOWN].set()


def make_application() -> web.Application:
    app = web.Application(client_max_size=2**30)
    app[PROGRESS] = Progress()
    app[SHUTTING_DOWN] = asyncio.Event()
    app.on_shutdown.append(note_shutdown)
    app.router.add_get("/peer", peer)
    app.router.add_get("/progress", progress)
    app.router.add_post("/echo", echo)
    app.router.add_post("/stream-echo", stream_echo)
    app.router.add_post("/digest", digest)
    app.router.add_get("/download", download)
    app.router.add_get("/file", file)
    app.router.add_get("/hang", hang)
    app.router.add_get("/at-shutdown", at_shutdown)
    app.router.add_get("/websocket", websocket)
    return app


def server_context(certificate: str | Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def main(factory: str, certificate: str | None = None) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    print(sock.getsockname()[1], flush=True)
    web.run_app(
        make_application(),
        sock=sock,
        ssl_context=server_context(certificate) if certificate else None,
        access_log=None,
        print=None,
        handler_cancellation=True,
        loop=loop_factory(factory)(),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
