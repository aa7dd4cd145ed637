"""TLS with programs that have an implementation, or a use, of their own: openssl, curl, nginx, httpx; in both
roles. (aiohttp's client and server are what `test_aiohttp.py` is about.)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from .application import server_context
from .conftest import Run
from .serving import Certificate, in_this_loop

HOST = "127.0.0.1"
LARGE = 20_000_000


def program(name: str) -> str:
    """Its path; without it the test is skipped, except where everything has to be there."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if path is None:
        assert not os.environ.get("CI"), f"{name} is missing"
        pytest.skip(f"{name} is missing")
    return path


@contextlib.asynccontextmanager
async def running(*command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@contextlib.asynccontextmanager
async def echoing(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                writer.write(data)
                await writer.drain()
        writer.close()
        # A connection that was reset ends with the error here. If nobody asks for it, it can be reported as
        # never retrieved, on any loop: a garbage collection finalizes the future before the protocol that
        # would ask.
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(echo, HOST, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        while len(asyncio.all_tasks()) > 2:
            await asyncio.sleep(0.001)


VERSIONS = ["-tls1_2", "-tls1_3"]


@pytest.fixture
def show(tmp_path: Path, certificate: Certificate) -> list[str]:
    """Options by which openssl shows a certificate and trusts the authority."""
    own, authority = tmp_path / "own.pem", tmp_path / "authority.pem"
    certificate.authority.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(
        str(own)
    )
    certificate.authority.cert_pem.write_to_path(str(authority))
    return ["-cert", str(own), "-key", str(own), "-CAfile", str(authority)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shown", [True, False])
def test_openssl_as_client(
    run: Run, certificate: Certificate, show: list[str], version: str, shown: bool
) -> None:
    openssl = program("openssl")

    async def main() -> None:
        context = server_context(certificate.file)
        if shown:
            certificate.authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        data = os.urandom(1000).hex().encode() + b"\n"
        async with echoing(context) as port:
            command = [openssl, "s_client", "-connect", f"{HOST}:{port}", version, "-quiet"]
            command += ["-verify_return_error", "-servername", "localhost", *(show if shown else show[-2:])]
            async with running(*command, stderr=asyncio.subprocess.DEVNULL) as client:
                assert client.stdin and client.stdout
                for _ in range(100):
                    client.stdin.write(data)
                    assert await client.stdout.readline() == data

    run(main())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shown", [True, False])
def test_openssl_as_server(
    run: Run, certificate: Certificate, show: list[str], version: str, shown: bool
) -> None:
    openssl = program("openssl")

    async def main() -> None:
        context = certificate.client_context()
        command = [openssl, "s_server", "-accept", f"{HOST}:0", version, "-rev"]
        command += ["-cert", str(certificate.file), "-key", str(certificate.file), *show[-2:]]
        if shown:
            command += ["-Verify", "1", "-verify_return_error"]
            context.load_cert_chain(show[1])
        async with running(*command, stderr=asyncio.subprocess.DEVNULL) as server:
            assert server.stdout
            while not (line := await server.stdout.readline()).startswith(b"ACCEPT"):
                assert line
            port = int(line.decode().rpartition(":")[2])
            reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
            for number in range(100):
                writer.write(b"%04d" % number + b"x" * 1000 + b"\n")
                assert await reader.readline() == b"x" * 1000 + (b"%04d" % number)[::-1] + b"\n"
            writer.close()
            with contextlib.suppress(ssl.SSLError):
                await writer.wait_closed()

    run(main())


async def output_of(*command: str, given: bytes | None = None) -> bytes:
    async with running(*command) as process:
        output, _ = await process.communicate(given)
        assert process.returncode == 0
        return output


def test_curl(run: Run, certificate: Certificate, show: list[str]) -> None:
    curl = program("curl")

    async def main() -> None:
        data = os.urandom(LARGE)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Answers each request with the sum of its body, or with the data."""
            with contextlib.suppress(asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    lengths = [
                        line for line in head.lower().splitlines() if line.startswith("content-length")
                    ]
                    body = await reader.readexactly(int(lengths[0].split(":")[1]) if lengths else 0)
                    answer = hashlib.sha256(body).digest() if body else data
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer))
                    writer.write(answer)
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, HOST, 0, ssl=server_context(certificate.file))
        url = f"https://{HOST}:{server.sockets[0].getsockname()[1]}/"
        options = ["--silent", "--fail", "--cacert", show[-1], "--header", "Expect:"]
        assert await output_of(curl, *options, url) == data
        # Twice on one connection.
        assert await output_of(curl, *options, url, url) == data + data
        upload = ["--data-binary", "@-"]
        assert await output_of(curl, *options, *upload, url, given=data) == hashlib.sha256(data).digest()
        server.close()
        while len(asyncio.all_tasks()) > 2:
            await asyncio.sleep(0.001)

    run(main())


NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr crit; user {user};
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 100m;
  server {{
    listen unix:{folder}/nginx.sock ssl;
    ssl_certificate {certificate}; ssl_certificate_key {certificate};
    ssl_protocols {version};
    location /file {{ root {folder}; }}
    location / {{
      proxy_pass https://127.0.0.1:{port}; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_ssl_verify on; proxy_ssl_name localhost; proxy_ssl_trusted_certificate {authority};
      proxy_ssl_protocols {version};
    }}
  }}
}}
"""


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_nginx(run: Run, certificate: Certificate, show: list[str], tmp_path: Path, version: str) -> None:
    """As a server for our client, and as a proxy in front of our server."""
    nginx = program("nginx")
    data = os.urandom(LARGE)
    (tmp_path / "file").write_bytes(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length:")[2].split("\r\n")[0])
                body = await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + body)
                await writer.drain()
        writer.close()

    async def request(head: bytes, body: bytes = b"") -> bytes:
        reader, writer = await asyncio.open_unix_connection(
            tmp_path / "nginx.sock", ssl=certificate.client_context(), server_hostname="localhost"
        )
        writer.write(head + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        answer = await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):  # nginx does not wait for our close_notify
            await writer.wait_closed()
        status, _, rest = answer.partition(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 200 "), status
        return rest

    async def main() -> None:
        server = await asyncio.start_server(
            serve, HOST, 0, ssl=server_context(certificate.file), limit=1 << 20
        )
        configuration = tmp_path / "nginx.conf"
        configuration.write_text(
            NGINX.format(
                folder=tmp_path,
                user="root" if os.getuid() == 0 else "nobody",
                certificate=certificate.file,
                authority=show[-1],
                port=server.sockets[0].getsockname()[1],
                version=version,
            )
        )
        async with running(nginx, "-p", str(tmp_path), "-c", str(configuration), "-e", "stderr") as process:
            while not (tmp_path / "nginx.sock").exists():
                assert process.returncode is None
                await asyncio.sleep(0.005)
            assert await request(b"GET /file") == data
            assert await request(b"POST /echo", data) == data
            small = [b"message %d" % number for number in range(20)]
            assert await asyncio.gather(*(request(b"POST /echo", message) for message in small)) == small
            process.send_signal(signal.SIGTERM)
            await process.wait()
        server.close()
        while len(asyncio.all_tasks()) > 2:
            await asyncio.sleep(0.001)

    run(main())


def test_httpx(run: Run, certificate: Certificate) -> None:
    httpx: Any = pytest.importorskip("httpx")

    async def main() -> None:
        async with in_this_loop(certificate) as server:
            async with httpx.AsyncClient(base_url=server.url, verify=certificate.client_context()) as client:
                answers = await asyncio.gather(*(client.get("/progress") for _ in range(20)))
                assert all(answer.status_code == 200 for answer in answers)
                for _ in range(20):
                    assert (await client.get("/progress")).status_code == 200

    run(main())


def test_openssl_s_time(run: Run, certificate: Certificate) -> None:
    """Many short connections from a client that is not polite: it goes without a close_notify."""
    openssl = program("openssl")

    async def main() -> None:
        async with echoing(server_context(certificate.file)) as port:
            command = [openssl, "s_time", "-connect", f"{HOST}:{port}", "-time", "1", "-new"]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            output, _ = await process.communicate()
            assert b"connections in" in output

    run(main())
