"""How connections end: clients and servers that vanish, requests given up, servers that shut down."""

from __future__ import annotations

import asyncio
import socket
import struct

import aiohttp
import pytest

from .conftest import Run, Serve
from .serving import Certificate, in_a_process, until

ENDLESS = 2**40  # bytes


def reset(sock: socket.socket) -> None:
    """Closes a connection as a machine does that lost power and came back: with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /peer HT", b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"]
)
@pytest.mark.parametrize("how", [socket.socket.close, reset])
def test_client_vanishes_before_it_has_asked(run: Run, serve: Serve, sent: bytes, how: object) -> None:
    async def main() -> None:
        async with serve() as server, server.client() as session:
            for _ in range(5):
                sock = socket.create_connection(("127.0.0.1", server.port))
                sock.sendall(sent)
                assert callable(how)
                how(sock)
            async with session.get("/peer") as response:
                assert response.status == 200

    run(main())


def test_client_gives_up(run: Run, serve: Serve) -> None:
    """The server notices at once, though it is neither reading nor writing."""

    async def main() -> None:
        async with serve() as server, server.client() as session, server.client() as other:
            asking = [asyncio.ensure_future(session.get("/hang")) for _ in range(10)]
            await until(other, lambda done: done.waiting == 10)
            for request in asking:
                request.cancel()
            await until(other, lambda done: done.gone == 10)
            await asyncio.gather(*asking, return_exceptions=True)

    run(main())


def test_client_runs_out_of_patience(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as server, server.client() as session:
            with pytest.raises(TimeoutError):
                await session.get("/hang", timeout=aiohttp.ClientTimeout(total=0.2))
            await until(session, lambda done: done.gone == done.waiting)

    run(main())


def test_client_has_seen_enough(run: Run, serve: Serve) -> None:
    """Closing a response ends its connection: the server does not go on sending it."""

    async def main() -> None:
        async with serve() as server, server.client() as session:
            response = await session.get("/download", params={"size": ENDLESS})
            await response.content.readexactly(1_000_000)
            response.close()
            await until(session, lambda done: done.gone == 1)

    run(main())


def test_client_vanishes_while_it_is_sent_to(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as server, server.client() as session:
            reader, writer = await server.open_connection()
            writer.write(b"GET /download?size=%d HTTP/1.1\r\nHost: x\r\n\r\n" % ENDLESS)
            await reader.readexactly(1_000_000)
            writer.transport.abort()
            await until(session, lambda done: done.gone == 1)

    run(main())


def test_client_closes_a_websocket_without_a_word(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as server, server.client() as session, server.client() as other:
            ws = await session.ws_connect("/websocket")
            await ws.send_str("hello")
            assert await ws.receive_str() == "hello"
            assert session.connector
            await session.connector.close()
            await until(other, lambda done: done.gone == 1)

    run(main())


def test_server_vanishes(run: Run, loop_name: str, certificate: Certificate) -> None:
    async def main(tls: Certificate | None) -> None:
        async with in_a_process(loop_name, tls) as server, server.client() as session:
            async with session.get("/download", params={"size": ENDLESS}) as response:
                await response.content.readexactly(1_000_000)
                assert server.process
                server.process.kill()
                with pytest.raises(aiohttp.ClientPayloadError):
                    while True:
                        await response.content.readany()
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get("/peer")

    run(main(None))
    run(main(certificate))


def test_graceful_shutdown(run: Run, serve: Serve) -> None:
    """What was asked before is answered; idle connections are closed, and there are no new ones."""

    async def main() -> None:
        async with serve() as server, server.client() as session, server.client() as other:
            asking = [asyncio.ensure_future(session.get("/at-shutdown")) for _ in range(10)]
            await until(other, lambda done: done.waiting == 10)
            await server.shut_down()
            for request in asking:
                async with await request as response:
                    assert await response.text() == "answered while shutting down"
            with pytest.raises(aiohttp.ClientConnectorError):
                await other.get("/peer")

    run(main())
