"""Serves the application to a test: in its loop or in a process of its own, with TLS or without."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import trustme
from aiohttp import web

from .application import Progress, make_application, server_context


@dataclass(frozen=True)
class Certificate:
    """A server's certificate, and the authority that a client trusts for it."""

    authority: trustme.CA
    file: Path

    def client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@dataclass(frozen=True)
class Server:
    """The application, being served."""

    port: int
    certificate: Certificate | None
    shut_down: Callable[[], Awaitable[None]]  # gracefully; returns when all is done
    process: subprocess.Popen[str] | None = None  # None if it shares our loop

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def client(self, *, limit: int = 100) -> aiohttp.ClientSession:
        """A client that trusts the server, with so many connections at the most."""
        tls = self.certificate.client_context() if self.certificate else True
        return aiohttp.ClientSession(self.url, connector=aiohttp.TCPConnector(ssl=tls, limit=limit))

    async def open_connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection below HTTP."""
        tls = self.certificate.client_context() if self.certificate else None
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=tls)


async def progress(session: aiohttp.ClientSession) -> Progress:
    async with session.get("/progress") as response:
        return Progress(**await response.json())


async def until(session: aiohttp.ClientSession, condition: Callable[[Progress], bool]) -> None:
    """Returns when the server's progress is such; the test's own time limit ends the wait if it never is."""
    while not condition(await progress(session)):
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def in_this_loop(certificate: Certificate | None) -> AsyncIterator[Server]:
    runner = web.AppRunner(make_application(), access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        tls = server_context(certificate.file) if certificate else None
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield Server(runner.addresses[0][1], certificate, runner.cleanup)
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def in_a_process(loop_name: str, certificate: Certificate | None) -> AsyncIterator[Server]:
    command: list[Any] = [sys.executable, "-m", "tests.integration.application", loop_name]
    if certificate:
        command.append(certificate.file)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        async def shut_down() -> None:
            process.terminate()
            assert await asyncio.to_thread(process.wait) == 0

        try:
            assert process.stdout
            yield Server(int(process.stdout.readline()), certificate, shut_down, process)
        finally:
            process.kill()
