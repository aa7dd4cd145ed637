"""Servers and clients that are libraries: websockets, tornado, and aiohttp with nginx on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import tornado.httpclient
import tornado.httpserver
import tornado.netutil
import tornado.web
import tornado.websocket
import websockets

from ..application import server_context
from ..conftest import Run
from ..serving import Certificate, in_this_loop
from .conftest import need
from .processes import HOST, until
from .servers import nginx

BODY = os.urandom(3_000_000)


def test_websockets(run: Run, certificate: Certificate) -> None:
    async def echo(ws: websockets.ServerConnection) -> None:
        async for message in ws:
            await ws.send(message)

    async def main(tls: Certificate | None) -> None:
        context = server_context(tls.file) if tls else None
        async with websockets.serve(echo, HOST, 0, ssl=context, max_size=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            url = f"{'wss' if tls else 'ws'}://{HOST}:{port}"
            trust = tls.client_context() if tls else None

            async def talk(n: int) -> None:
                async with websockets.connect(url, ssl=trust, proxy=None, max_size=None) as ws:
                    for message in (str(n), BODY[:n], BODY):
                        await ws.send(message)
                        assert await ws.recv() == message
                    await (await ws.ping())

            await asyncio.gather(*map(talk, range(5)))
            # The server closes, and the client hears why.
            ws = await websockets.connect(url, ssl=trust, proxy=None)
            server.close(code=1012)
            with contextlib.suppress(websockets.ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 1012

    run(main(None))
    run(main(certificate))


def test_tornado(run: Run, certificate: Certificate) -> None:
    class Echo(tornado.web.RequestHandler):
        async def post(self) -> None:
            for start in range(0, len(self.request.body), 100_000):
                self.write(self.request.body[start : start + 100_000])
                await self.flush()

    class Socket(tornado.websocket.WebSocketHandler):
        async def on_message(self, message: str | bytes) -> None:
            await self.write_message(message)

    async def main(tls: Certificate | None) -> None:
        app = tornado.web.Application([("/echo", Echo), ("/websocket", Socket)])
        context = server_context(tls.file) if tls else None
        server = tornado.httpserver.HTTPServer(app, ssl_options=context)
        sockets = tornado.netutil.bind_sockets(0, HOST)
        server.add_sockets(sockets)
        port = sockets[0].getsockname()[1]
        client = tornado.httpclient.AsyncHTTPClient(force_instance=True)
        binary = {"Content-Type": "application/octet-stream"}
        options: dict[str, Any] = {"ssl_options": tls.client_context()} if tls else {}
        try:
            request = tornado.httpclient.HTTPRequest(
                f"{'https' if tls else 'http'}://{HOST}:{port}/echo",
                method="POST",
                body=BODY,
                headers=binary,
                **options,
            )
            answers = await asyncio.gather(*(client.fetch(request) for _ in range(5)))
            assert all(answer.body == BODY for answer in answers)
            url = f"{'wss' if tls else 'ws'}://{HOST}:{port}/websocket"
            ws = await tornado.websocket.websocket_connect(tornado.httpclient.HTTPRequest(url, **options))
            await ws.write_message("hello")
            assert await ws.read_message() == "hello"
            ws.close()
            assert await ws.read_message() is None
        finally:
            client.close()
            server.stop()
            await server.close_all_connections()

    run(main(None))
    run(main(certificate))


def test_behind_nginx(run: Run) -> None:
    """nginx passes on what it is asked, over connections that it keeps, WebSockets as well."""
    need("nginx")

    async def main() -> None:
        async with in_this_loop(None) as server:
            upstream = f"""
                client_max_body_size 10m; proxy_request_buffering off; proxy_buffering off;
                location / {{
                  proxy_pass {server.url}; proxy_http_version 1.1;
                  proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
                }}
            """
            with nginx(upstream, root=Path("/nonexistent")) as port:
                async with aiohttp.ClientSession(f"http://{HOST}:{port}") as session:
                    for path in ("/echo", "/stream-echo"):
                        async with session.post(path, data=io.BytesIO(BODY)) as answer:
                            assert await answer.read() == BODY
                    async with session.ws_connect("/websocket") as ws:
                        await ws.send_bytes(BODY)
                        assert await ws.receive_bytes() == BODY
                    # A client that goes takes nginx's own connection, and so our handler, with it.
                    hanging = asyncio.ensure_future(session.get("/hang"))
                    await until_progress(session, "waiting", 1)
                    hanging.cancel()
                    await until_progress(session, "gone", 1)

    async def until_progress(session: aiohttp.ClientSession, what: str, count: int) -> None:
        while True:
            async with session.get("/progress") as answer:
                if (await answer.json())[what] >= count:
                    return
            await asyncio.sleep(0.01)

    run(main())


def test_clients_of_nginx(run: Run, tmp_path: Path) -> None:
    """Files that nginx sends with sendfile(2), to many clients at once, with keep-alive."""
    need("nginx")
    (tmp_path / "file").write_bytes(BODY)
    tmp_path.chmod(0o755)

    async def main(port: int) -> None:
        url = f"http://{HOST}:{port}/file"
        async with aiohttp.ClientSession() as session:

            async def fetch() -> None:
                async with session.get(url) as answer:
                    assert await answer.read() == BODY

            await asyncio.gather(*(fetch() for _ in range(10)))
        async with httpx.AsyncClient(trust_env=False) as client:
            answers = await asyncio.gather(*(client.get(url) for _ in range(5)))
            assert all(answer.content == BODY for answer in answers)
            part = await client.get(url, headers={"Range": "bytes=1000-1999"})
            assert part.status_code == 206
            assert part.content == BODY[1000:2000]

    with nginx("", root=tmp_path) as port:
        run(main(port))


def test_httpx_and_its_time_limits(run: Run) -> None:
    async def main() -> None:
        async with (
            in_this_loop(None) as server,
            httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
        ):
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/hang", timeout=httpx.Timeout(60, read=0.2))
            assert (await client.post("/echo", content=BODY)).content == BODY

    run(main())


def test_many_websockets_at_once(run: Run) -> None:
    """A broadcast reaches everyone, and the server forgets those that go."""

    async def main() -> None:
        everyone: set[websockets.ServerConnection] = set()

        async def member(ws: websockets.ServerConnection) -> None:
            everyone.add(ws)
            try:
                with contextlib.suppress(websockets.ConnectionClosedError):
                    async for message in ws:
                        websockets.broadcast(everyone, message)
            finally:
                everyone.discard(ws)

        async with websockets.serve(member, HOST, 0) as server:
            url = f"ws://{HOST}:{next(iter(server.sockets)).getsockname()[1]}"
            clients = [await websockets.connect(url, proxy=None) for _ in range(30)]
            await clients[0].send("hello")
            assert [await client.recv() for client in clients] == ["hello"] * 30
            for client in clients[:15]:
                client.transport.abort()
            await until(lambda: len(everyone) == 15)
            await clients[20].send("again")
            assert [await client.recv() for client in clients[15:]] == ["again"] * 15
            for client in clients:
                await client.close()

    run(main())
