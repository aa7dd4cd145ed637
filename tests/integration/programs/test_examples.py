"""The programs in examples/, each as a process of its own, with real clients, servers and signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import asyncpg  # noqa: F401  (the API needs it)
import pytest
import redis  # noqa: F401  (the API needs it)
import websockets
from aiohttp import web

from ..conftest import Run
from .processes import HOST, Program, free_port, program, until
from .servers import Address

EXAMPLES = Path(__file__).parents[3] / "examples"
BODY = os.urandom(700_000)


def example(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *map(str, arguments)]


async def ended(running: Program) -> int:
    return await asyncio.to_thread(running.wait)


class Files:
    """A server whose files come at the second attempt, never, or not to their end."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.at_once = self.most = 0
        self.hanging = asyncio.Event()

    async def file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked[name] = self.asked.get(name, 0) + 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(0.01)
            if name.startswith("flaky") and self.asked[name] == 1:
                raise web.HTTPServiceUnavailable
            if name.startswith("missing"):
                raise web.HTTPNotFound
            if name.startswith("cut") and self.asked[name] == 1:
                response = web.StreamResponse()
                response.content_length = len(BODY)
                await response.prepare(request)
                await response.write(BODY[:300_000])
                assert request.transport
                request.transport.abort()
                return response
            if name.startswith("endless"):
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(BODY)
                self.hanging.set()
                await asyncio.Event().wait()
            return web.Response(body=BODY)
        finally:
            self.at_once -= 1


def with_files(main: Callable[[Files, str], object]) -> object:
    async def serve() -> None:
        files = Files()
        app = web.Application()
        app.router.add_get("/{name}", files.file)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, 0).start()
            coroutine = main(files, f"http://{HOST}:{runner.addresses[0][1]}")
            assert asyncio.iscoroutine(coroutine)
            await coroutine
        finally:
            await runner.cleanup()

    return serve()


@pytest.fixture
def loop_name() -> str:
    """The programs choose their own loop: once is enough."""
    return "mioloop:new_event_loop"


def test_downloader(run: Run, tmp_path: Path) -> None:
    names = [f"plain-{n}" for n in range(6)] + ["flaky", "cut", "missing"]

    async def main(files: Files, url: str) -> None:
        urls = [f"{url}/{name}" for name in names]
        with program(
            example("downloader.py", "--at-once", 3, "--pause", 0.01, "--into", tmp_path / "in", *urls)
        ) as downloader:
            assert await ended(downloader) == 1, "one file is missing"
            said = downloader.output()
        assert "missing: 404" in said
        assert "8/9 files" in said
        assert "2 retries" in said
        assert files.most <= 3
        assert (files.asked["flaky"], files.asked["cut"], files.asked["missing"]) == (2, 2, 1)
        assert {path.name for path in (tmp_path / "in").iterdir()} == set(names) - {"missing"}
        assert all(path.read_bytes() == BODY for path in (tmp_path / "in").iterdir())

    run(with_files(main))  # type: ignore[arg-type]


def test_downloader_interrupted(run: Run, tmp_path: Path) -> None:
    async def main(files: Files, url: str) -> None:
        folder = tmp_path / "in"
        urls = [f"{url}/plain", f"{url}/endless"]
        with program(example("downloader.py", "--into", folder, *urls)) as downloader:
            await files.hanging.wait()
            await until((folder / "plain").exists)
            await until(lambda: (folder / "endless.part").exists())
            downloader.process.send_signal(signal.SIGINT)
            assert await ended(downloader) == 130
            assert "Traceback" not in downloader.output()
        assert [path.name for path in folder.iterdir()] == ["plain"]

    run(with_files(main))  # type: ignore[arg-type]


def test_downloader_and_its_limits(run: Run, tmp_path: Path) -> None:
    async def main(files: Files, url: str) -> None:
        options = ["--into", tmp_path, "--attempts", 2, "--pause", 0.01]
        with program(example("downloader.py", *options, "--silence", 0.3, f"{url}/endless")) as downloader:
            assert await ended(downloader) == 1
            assert "1 failed" in downloader.output()
        with program(example("downloader.py", *options, "--limit", 1, f"{url}/endless")) as downloader:
            assert await ended(downloader) == 1
            assert "It took too long." in downloader.output()
        assert not list(tmp_path.glob("endless*"))

    run(with_files(main))  # type: ignore[arg-type]


def test_chat_server(run: Run) -> None:
    async def main() -> None:
        port, websocket_port = free_port(), free_port()
        ports = ("--port", port, "--websocket-port", websocket_port)
        with program(example("chat_server.py", *ports)) as server:
            await until(lambda: "WebSocket on port" in server.output())
            reader, writer = await asyncio.open_connection(HOST, port)
            ws = await websockets.connect(f"ws://{HOST}:{websocket_port}", proxy=None)
            assert await reader.readline() == b"What is your name?\n"
            assert await ws.recv() == "What is your name?"
            writer.write(b"Ada\n")
            assert await reader.readline() == b"* Ada has come\n"
            await ws.send("Grace")
            assert await ws.recv() == "* Grace has come"
            assert await reader.readline() == b"* Grace has come\n"
            for n in range(100):
                writer.write(b"number %d\n" % n)
            for n in range(100):
                assert await ws.recv() == f"Ada: number {n}"
                assert await reader.readline() == b"Ada: number %d\n" % n
            await ws.send("hello")
            assert await reader.readline() == b"Grace: hello\n"

            # One that goes without a word.
            third = await websockets.connect(f"ws://{HOST}:{websocket_port}", proxy=None)
            await third.send("Mallory")
            assert await reader.readline() == b"* Mallory has come\n"
            third.transport.abort()
            assert await reader.readline() == b"* Mallory has gone\n"

            # The last words are heard, though they are many.
            for n in range(200):
                writer.write(b"last %d\n" % n)
            while b"Ada: last 199" not in await reader.readline():
                pass
            server.terminate()
            assert await reader.readline() == b"* the server shuts down\n"
            assert await reader.read() in (b"", b"* Grace has gone\n")
            heard = []
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    heard.append(await ws.recv())
            assert "Ada: last 199" in heard
            assert "* the server shuts down" in heard
            writer.close()
            await writer.wait_closed()
            await third.close()
            assert await ended(server) == 0
            assert "Good-bye." in server.output()
            assert "Traceback" not in server.output()

    run(main())


def test_http_api(run: Run, postgres: Address, redis_server: Address) -> None:
    async def main() -> None:
        port = free_port()
        to = [
            *("--postgres", f"postgresql://postgres@{HOST}:{postgres.port}/postgres"),
            *("--redis", f"redis://{HOST}:{redis_server.port}/3"),
        ]
        with program(example("http_api.py", "--port", port, *to)) as server:
            await asyncio.to_thread(server.ready_on, port)
            async with aiohttp.ClientSession(f"http://{HOST}:{port}") as session:

                async def create(n: int) -> int:
                    async with session.post("/notes", json={"text": "word " * n}) as answer:
                        assert answer.status == 201
                        number: int = (await answer.json())["id"]
                        return number

                async def read(number: int) -> dict[str, object]:
                    async with session.get(f"/notes/{number}") as answer:
                        note: dict[str, object] = await answer.json()
                        return note

                numbers = await asyncio.gather(*map(create, range(50)))
                assert len(set(numbers)) == 50
                for n, number in enumerate(numbers):
                    while (note := await read(number))["words"] is None:
                        await asyncio.sleep(0.01)
                    assert note == {"id": number, "text": "word " * n, "words": n}
                while True:  # a job's end empties the cache
                    async with session.get("/summary") as answer:
                        summary = await answer.json()
                    if answer.headers["X-Cache"] == "hit":
                        break
                assert summary == {"notes": 50, "longest": 5 * 49, "waiting": 0}
                async with session.get("/notes/999999") as answer:
                    assert answer.status == 404
                async with session.post("/notes", data=b"no JSON") as answer:
                    assert answer.status == 400
            server.terminate()
            assert await ended(server) == 0
            assert "Traceback" not in server.output()

    run(main())
