"""aiohttp's server and client: keep-alive, bodies large and small, streaming, files, names, WebSocket."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from .application import chunks, make_application
from .conftest import Run, Serve
from .serving import Certificate, in_this_loop, progress

KIB = 1024
MIB = 1024 * KIB


def test_keep_alive(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as server, server.client() as session:
            ports = set()
            for _ in range(50):
                async with session.get("/peer") as response:
                    ports.add(await response.json())
            assert len(ports) == 1, "each request should have used the same connection"

    run(main())


def test_connection_close(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as server, server.client() as session:
            for _ in range(20):
                async with session.get("/peer", headers={"Connection": "close"}) as response:
                    assert response.status == 200

    run(main())


@pytest.mark.parametrize("size", [0, 1, KIB, 100 * KIB, MIB])
def test_echo(run: Run, serve: Serve, size: int) -> None:
    async def main() -> None:
        async with serve() as server, server.client() as session:
            for _ in range(3):
                body = os.urandom(size)
                async with session.post("/echo", data=body) as response:
                    assert await response.read() == body

    run(main())


def test_many_at_once(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async def ask(number: int) -> None:
            body = b"%08d" % number * (KIB if number % 5 == 0 else 100 * KIB // 8)
            async with session.post("/echo", data=body) as response:
                assert await response.read() == body

        async with serve() as server, server.client(limit=40) as session:
            await asyncio.gather(*(ask(number) for number in range(200)))

    run(main())


def test_pipelined_requests(run: Run, serve: Serve) -> None:
    """A client need not wait for an answer before it sends its next request; the answers come in order."""

    async def main() -> None:
        async with serve() as server:
            reader, writer = await server.open_connection()
            for number in range(100):
                writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n%08d" % number)
            for number in range(100):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert await reader.readexactly(8) == b"%08d" % number
            writer.close()
            await writer.wait_closed()

    run(main())


def test_streamed_upload(run: Run, serve: Serve) -> None:
    async def upload() -> AsyncIterator[bytes]:
        for chunk in chunks(8 * MIB):
            yield chunk

    async def main() -> None:
        async with serve() as server, server.client() as session:
            async with session.post("/digest", data=upload(), expect100=True) as response:
                assert await response.text() == hashlib.sha256(b"".join(chunks(8 * MIB))).hexdigest()

    run(main())


def test_streamed_download(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as server, server.client() as session:
            received = hashlib.sha256()
            async with session.get("/download", params={"size": 8 * MIB + 5}) as response:
                async for chunk in response.content.iter_chunked(10_000):
                    received.update(chunk)
            assert received.digest() == hashlib.sha256(b"".join(chunks(8 * MIB + 5))).digest()

    run(main())


def test_streams_both_ways_at_once(run: Run, serve: Serve) -> None:
    """The client sends its next chunk when the server has sent the last one back."""

    async def main() -> None:
        echoed = asyncio.Semaphore(1)
        received = bytearray()

        async def upload() -> AsyncIterator[bytes]:
            for number in range(50):
                await echoed.acquire()
                yield b"%04d" % number * 256

        async with serve() as server, server.client() as session:
            async with session.post("/stream-echo", data=upload()) as response:
                async for chunk in response.content.iter_any():
                    received += chunk
                    if len(received) % KIB == 0:
                        echoed.release()
        assert received == b"".join(b"%04d" % number * 256 for number in range(50))

    run(main())


def test_backpressure(run: Run, serve: Serve) -> None:
    """A client that does not read stops the server's writing; when it reads on, it gets every byte."""
    size = 64 * MIB

    async def main() -> None:
        async with serve() as server, server.client() as session:
            async with session.get("/download", params={"size": size}) as response:
                before, now = -1, 0
                while before != now:
                    before = now
                    await asyncio.sleep(0.2)
                    now = (await progress(session)).sent
                assert 0 < now < size, "the server wrote on into a connection that nobody reads"
                received = hashlib.sha256()
                async for chunk in response.content.iter_any():
                    received.update(chunk)
            expected = hashlib.sha256()
            for chunk in chunks(size):
                expected.update(chunk)
            assert received.digest() == expected.digest()

    run(main())


def test_file(run: Run, serve: Serve, tmp_path: Path) -> None:
    """Files go out by `loop.sendfile`."""
    path = tmp_path / "file"
    content = os.urandom(3 * MIB + 7)
    path.write_bytes(content)

    async def main() -> None:
        async with serve() as server, server.client() as session:
            async with session.get("/file", params={"path": str(path)}) as response:
                assert await response.read() == content
            part = {"Range": f"bytes={MIB}-{2 * MIB}"}
            async with session.get("/file", params={"path": str(path)}, headers=part) as response:
                assert response.status == 206
                assert await response.read() == content[MIB : 2 * MIB + 1]

    run(main())


def test_websocket(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as server, server.client() as session:
            async with session.ws_connect("/websocket", max_msg_size=0) as ws:
                for number in range(100):
                    await ws.send_str(f"message {number}")
                    assert await ws.receive_str() == f"message {number}"
                for size in (0, 125, 126, 65535, 65536, 2 * MIB):
                    body = os.urandom(size)
                    await ws.send_bytes(body)
                    assert await ws.receive_bytes() == body
                # A ping is answered by the library; what follows it still comes.
                await ws.ping(b"are you there")
                await ws.send_str("close")
                message = await ws.receive()
                assert message.type is aiohttp.WSMsgType.CLOSE
                assert (message.data, message.extra) == (4000, "as you wish")

    run(main())


def test_many_websockets(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async def talk(number: int) -> None:
            async with session.ws_connect("/websocket") as ws:
                for turn in range(20):
                    await ws.send_str(f"{number} {turn}")
                for turn in range(20):
                    assert await ws.receive_str() == f"{number} {turn}"

        async with serve() as server, server.client() as session:
            await asyncio.gather(*(talk(number) for number in range(30)))

    run(main())


def test_a_host_name(run: Run) -> None:
    """A name is looked up, and each of its addresses is tried: the server listens on one of them only."""

    async def main() -> None:
        async with in_this_loop(None) as server, aiohttp.ClientSession() as session:
            async with session.get(f"http://localhost:{server.port}/peer") as response:
                assert response.status == 200

    run(main())


def test_unix_socket(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def main() -> None:
        runner = web.AppRunner(make_application(), access_log=None)
        await runner.setup()
        await web.UnixSite(runner, path).start()
        body = os.urandom(100 * KIB)
        async with aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(path)) as session:
            async with session.post("/echo", data=body) as response:
                assert await response.read() == body
        await runner.cleanup()

    run(main())


def test_nobody_listens(run: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

        async def main() -> None:
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.ClientConnectorError) as refused:
                    await session.get(f"http://127.0.0.1:{port}/")
                assert refused.value.errno == errno.ECONNREFUSED

        run(main())


def test_certificate_that_nobody_vouches_for(run: Run, certificate: Certificate) -> None:
    """The client refuses the server, and the server goes on serving others."""

    async def main() -> None:
        async with in_this_loop(certificate) as server:
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await session.get(server.url + "/peer")
            async with server.client() as session, session.get("/peer") as response:
                assert response.status == 200

    run(main())
