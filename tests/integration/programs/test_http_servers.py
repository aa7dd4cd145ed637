"""uvicorn, gunicorn, hypercorn and granian serving a FastAPI application to httpx and websockets.

One server process for all tests here with the same parameters; the last test shuts it down.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import websockets

from ..conftest import Run
from ..serving import Certificate
from .processes import Program, free_port, program, until
from .serving_asgi import SERVERS, command

BODY = os.urandom(1_000_000)


@dataclass(frozen=True)
class Served:
    name: str
    port: int
    place: Path
    process: Program
    certificate: Certificate | None

    @property
    def tls(self) -> ssl.SSLContext | None:
        """A new one: httpx puts the protocols that it speaks into the one it gets."""
        return self.certificate.client_context() if self.certificate else None

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def client(self, *, http2: bool = False) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url, verify=self.tls or False, http2=http2, timeout=60, trust_env=False
        )


@pytest.fixture(scope="module", params=[*SERVERS, "uvicorn-tls", "hypercorn-tls"])
def served(
    request: pytest.FixtureRequest,
    loop_name: str,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    name: str = request.param.removesuffix("-tls")
    tls = certificate if request.param.endswith("-tls") else None
    place, port = tmp_path_factory.mktemp(request.param), free_port()
    (place / "file").write_bytes(BODY)
    line = command(name, loop_name, port, str(tls.file) if tls else None)
    with program(line, environment={"PLACE": str(place), "LOOP": loop_name}) as process:
        process.ready_on(port)
        yield Served(name, port, place, process, tls)


def test_it_runs_on_the_loop(run: Run, served: Served, loop_name: str) -> None:
    async def main() -> None:
        async with served.client() as client:
            about = (await client.get("/about")).json()
            assert about["loop"].split(".")[0] == loop_name.split(":")[0]

    run(main())


def test_keep_alive(run: Run, served: Served) -> None:
    async def main() -> None:
        async with served.client() as client:
            ports = {(await client.get("/about")).json()["port"] for _ in range(20)}
            assert len(ports) == 1

    run(main())


def test_many_at_once(run: Run, served: Served) -> None:
    async def main() -> None:
        async with served.client() as client:
            bodies = [os.urandom(2000) for _ in range(50)]
            answers = await asyncio.gather(*(client.post("/echo", content=body) for body in bodies))
            assert [answer.content for answer in answers] == bodies

    run(main())


def test_streaming_both_ways(run: Run, served: Served) -> None:
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(BODY), 50_000):
            yield BODY[start : start + 50_000]

    async def main() -> None:
        async with served.client() as client:
            async with client.stream("POST", "/echo", content=body()) as answer:
                assert b"".join([chunk async for chunk in answer.aiter_bytes()]) == BODY

    run(main())


def test_file(run: Run, served: Served) -> None:
    async def main() -> None:
        async with served.client() as client:
            assert (await client.get("/file")).content == BODY

    run(main())


def test_http2(run: Run, served: Served) -> None:
    if not served.certificate or served.name != "hypercorn":
        return  # the others speak HTTP/1.1 alone

    async def main() -> None:
        async with served.client(http2=True) as client:
            answers = await asyncio.gather(*(client.post("/echo", content=BODY[:70_000]) for _ in range(10)))
            for answer in answers:
                assert answer.http_version == "HTTP/2"
                assert answer.content == BODY[:70_000]

    run(main())


def test_websocket(run: Run, served: Served) -> None:
    async def main() -> None:
        url = served.url.replace("http", "ws", 1) + "/websocket"
        async with websockets.connect(url, ssl=served.tls, proxy=None) as ws:
            for size in (0, 1, 1000, 100_000):
                await ws.send("é" * size)
                assert await ws.recv() == "é" * size
            await ws.close(4001)
        await until((served.place / "websocket-closed").exists)
        # hypercorn does not pass the client's code on, on any loop.
        code = "1006" if served.name == "hypercorn" else "4001"
        await until(lambda: (served.place / "websocket-closed").read_text() == code)

    run(main())


def test_clients_that_vanish(run: Run, served: Served) -> None:
    async def main() -> None:
        for sent in (b"", b"GET /about HT", b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"):
            sock = socket.create_connection(("127.0.0.1", served.port))
            sock.sendall(sent)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        async with served.client() as client:
            async with client.stream("GET", "/endless") as answer:
                received = 0
                async for chunk in answer.aiter_bytes():
                    received += len(chunk)
                    if received > 1_000_000:
                        break
            await until((served.place / "gone").exists)
            assert (await client.get("/about")).status_code == 200

    run(main())


def test_sigterm_with_a_request_in_flight(run: Run, served: Served) -> None:
    """The last: it is answered, and then the server is gone."""

    async def main() -> None:
        async with served.client() as client:
            asking = asyncio.create_task(client.get("/gate"))
            await until((served.place / "waiting").exists)
            served.process.terminate()
            await asyncio.sleep(0.1)
            (served.place / "open").touch()
            answer = await asking
            assert answer.json() == "answered"
        await asyncio.to_thread(served.process.wait)

    run(main())
