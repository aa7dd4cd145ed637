"""TLS in bulk: a gibibyte each way with its checksum, and twenty thousand short connections.

The peer is a process of its own, on blocking sockets and the standard library alone, so that an error of
ours is not made good by the same error at the other end.
"""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import importlib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

GIB = 1 << 30
BLOCK = bytes(range(256)) * 1024
LOOPS = {"asyncio": "asyncio:SelectorEventLoop", "mioloop": "mioloop:new_event_loop"}
ROOT = Path(__file__).parents[2]
SHORT_CONNECTIONS = 20_000

# A blocking peer: receives a gibibyte and says its sum, or sends one.
PEER = """
import hashlib, socket, ssl, sys
mode, port, certificate = sys.argv[1:]
context = ssl.create_default_context(cafile=certificate)
context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
connection = socket.create_connection(("127.0.0.1", int(port)))
connection = context.wrap_socket(connection, server_hostname="localhost")
connection.sendall(mode.encode() + b"\\n")
digest = hashlib.blake2b()
if mode == "download":
    while data := connection.recv(1 << 18):
        digest.update(data)
    print(digest.hexdigest())
else:
    block = bytes(range(256)) * 1024
    for number in range((1 << 30) // len(block)):
        data = number.to_bytes(8, "big") + block[8:]
        digest.update(data)
        connection.sendall(data)
    connection.unwrap()
    print(digest.hexdigest())
"""


@pytest.fixture(params=LOOPS)
def loop_name(request: pytest.FixtureRequest) -> str:
    return LOOPS[request.param]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("certificate") / "own.pem"
    trustme.CA().issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))
    yield file


def blocks() -> Iterator[bytes]:
    for number in range(GIB // len(BLOCK)):
        yield number.to_bytes(8, "big") + BLOCK[8:]


@pytest.mark.parametrize("mode", ["download", "upload"])
def test_a_gibibyte(loop_name: str, certificate: Path, mode: str) -> None:
    async def main() -> str:
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            digest = hashlib.blake2b()
            try:
                asked = (await reader.readline()).decode().strip()
                if asked == "download":
                    for block in blocks():
                        digest.update(block)
                        writer.write(block)
                        await writer.drain()
                else:
                    while data := await reader.read(1 << 18):
                        digest.update(data)
                writer.close()
                await writer.wait_closed()
            except ConnectionError as error:
                result.set_exception(error)
            else:
                result.set_result(digest.hexdigest())

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        command = [sys.executable, "-c", PEER, mode, str(port), str(certificate)]
        peer = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        output, _ = await peer.communicate()
        ours = await result
        server.close()
        await server.wait_closed()
        assert output.decode().strip() == ours
        return ours

    module, attribute = loop_name.split(":")
    with asyncio.Runner(loop_factory=getattr(importlib.import_module(module), attribute)) as runner:
        digest = runner.run(main())
    expected: Any = hashlib.blake2b()
    for block in blocks():
        expected.update(block)
    assert digest == expected.hexdigest()


def test_short_connections_leave_memory_flat(certificate: Path) -> None:
    """Two megabytes are less than 200 bytes for each connection of the second half: nothing of it is left."""
    # pytest's own limit for one test is too short for it on a busy machine.
    faulthandler.cancel_dump_traceback_later()
    command = [sys.executable, "-m", "tests.stress.short_connections", LOOPS["mioloop"], str(certificate)]
    command.append(str(SHORT_CONNECTIONS))
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=900)
    growth = int(done.stdout)
    assert growth < 2_000_000, f"{growth} bytes in {SHORT_CONNECTIONS // 2} connections"
