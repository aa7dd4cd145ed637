"""The FastAPI application that uvicorn, gunicorn, hypercorn and granian serve in the tests.

What a test has to see or to open from outside is a file in the folder $PLACE.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

PLACE = Path(os.environ["PLACE"])
CHUNK = bytes(range(256)) * 256

app = FastAPI()


@app.get("/about")
async def about(request: Request) -> dict[str, str | int]:
    assert request.client
    loop = asyncio.get_running_loop()
    return {"loop": type(loop).__module__, "port": request.client.port, "process": os.getpid()}


class Echo:
    """Answers while the question comes in.

    Plain ASGI: Starlette's StreamingResponse receives as well, to hear of a lost client, and would
    take the body away.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})


app.router.routes.append(Route("/echo", Echo(), methods=["POST"]))


@app.get("/file")
async def file() -> FileResponse:
    return FileResponse(PLACE / "file")


class Endless(StreamingResponse):
    """Tells when the client's end has ended it.

    The body's own `finally` would tell it too late: nobody closes the generator, and where a cycle holds it
    (with granian one does) it waits for the garbage collector.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            (PLACE / "gone").touch()


@app.get("/endless")
async def endless() -> Endless:
    async def body() -> AsyncIterator[bytes]:
        while True:
            yield CHUNK
            await asyncio.sleep(0)

    return Endless(body())


@app.get("/gate")
async def gate() -> str:
    (PLACE / "waiting").touch()
    while not (PLACE / "open").exists():
        await asyncio.sleep(0.01)
    return "answered"


@app.websocket("/websocket")
async def websocket(ws: WebSocket) -> None:
    await ws.accept()
    try:
        while True:
            await ws.send_text(await ws.receive_text())
    except WebSocketDisconnect as end:
        (PLACE / "websocket-closed").write_text(str(end.code))
