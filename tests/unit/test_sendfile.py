"""sendfile and sock_sendfile: by the kernel where it can be, else by reading and writing; always in order."""

from __future__ import annotations

import asyncio
import io
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from .protocols import Recorder, connected, receive, receive_all
from .support import run, settle, socketpair, tcp_pair, until

CONTENT = os.urandom(2_000_003)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sendfile") / "content"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def file(path: Path) -> Iterator[io.BufferedReader]:
    with open(path, "rb") as file:
        yield file


@pytest.fixture
def no_native_sendfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that show that the kernel did it."""

    def sendfile(*_args: object) -> int:
        raise AssertionError("os.sendfile was called")

    monkeypatch.setattr(os, "sendfile", sendfile)


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the calls of os.sendfile returned."""
    calls: list[int] = []
    native = os.sendfile

    def sendfile(*args: Any) -> int:
        calls.append(native(*args))
        return calls[-1]

    monkeypatch.setattr(os, "sendfile", sendfile)
    return calls


PAIRS = {"tcp": tcp_pair, "unix": socketpair}


@asynccontextmanager
async def accepted() -> AsyncIterator[tuple[Recorder, socket.socket]]:
    """A server's side of a connection, and the client's bare socket."""
    loop = asyncio.get_running_loop()
    protocols: list[Recorder] = []

    def factory() -> Recorder:
        protocols.append(Recorder())
        return protocols[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0)
    with socket.socket() as peer:
        peer.setblocking(False)
        await loop.sock_connect(peer, server.sockets[0].getsockname())
        await until(lambda: protocols and protocols[0].transport)
        yield protocols[0], peer
    await until(lambda: protocols[0].is_lost)
    server.close()
    await server.wait_closed()


# loop.sendfile


@pytest.mark.parametrize("kind", PAIRS)
def test_a_whole_file(
    loop: asyncio.AbstractEventLoop, file: io.BufferedReader, native_calls: list[int], kind: str
) -> None:
    async def main() -> None:
        async with connected(Recorder(), PAIRS[kind]()) as (transport, protocol, peer):
            receiving = asyncio.create_task(receive_all(peer))
            assert await loop.sendfile(transport, file) == len(CONTENT)
            assert file.tell() == len(CONTENT)
            transport.close()
            assert await receiving == CONTENT
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None
        assert sum(native_calls) == len(CONTENT)

    run(loop, main())


def test_the_order_of_all_that_is_sent(loop: asyncio.AbstractEventLoop, file: io.BufferedReader) -> None:
    """Written before, far more than the socket takes; two files; written between and after; the end."""

    async def main() -> None:
        before = os.urandom(1_000_000)
        async with connected(Recorder()) as (transport, protocol, peer):
            receiving = asyncio.create_task(receive_all(peer))
            transport.write(before)
            assert transport.get_write_buffer_size() > 0
            await loop.sendfile(transport, file)
            transport.write(b"between")
            await loop.sendfile(transport, file, 10, 100)
            transport.writelines([b"af", b"ter"])
            transport.write_eof()
            assert await receiving == before + CONTENT + b"between" + CONTENT[10:110] + b"after"
            transport.close()
            await until(lambda: protocol.is_lost)

    run(loop, main())


def test_from_the_servers_side(loop: asyncio.AbstractEventLoop, file: io.BufferedReader) -> None:
    async def main() -> None:
        async with accepted() as (protocol, peer):
            transport = protocol.transport
            receiving = asyncio.create_task(receive_all(peer))
            transport.write(b"before")
            assert await loop.sendfile(transport, file) == len(CONTENT)
            transport.write(b"after")
            transport.close()
            assert await receiving == b"before" + CONTENT + b"after"

    run(loop, main())


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, None), (0, 1), (1000, None), (1000, 2000), (len(CONTENT) - 10, 100), (0, 10**10)],
)
def test_offset_and_count(
    loop: asyncio.AbstractEventLoop, file: io.BufferedReader, offset: int, count: int | None, fallback: bool
) -> None:
    source: Any = io.BytesIO(CONTENT) if fallback else file
    wanted = CONTENT[offset:] if count is None else CONTENT[offset : offset + count]

    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            receiving = asyncio.create_task(receive(peer, len(wanted)))
            sent = await loop.sendfile(transport, source, offset, count, fallback=fallback)
            assert sent == len(wanted)
            assert source.tell() == offset + sent
            assert await receiving == wanted

    run(loop, main())


def test_nothing_to_send(loop: asyncio.AbstractEventLoop, file: io.BufferedReader, tmp_path: Path) -> None:
    async def main() -> None:
        empty = tmp_path / "empty"
        empty.touch()
        async with connected(Recorder()) as (transport, _, peer):
            with open(empty, "rb") as nothing:
                assert await loop.sendfile(transport, nothing) == 0
            assert await loop.sendfile(transport, file, len(CONTENT) + 10) == 0
            assert await loop.sendfile(transport, io.BytesIO()) == 0
            transport.write(b"alive")
            assert await receive(peer, 5) == b"alive"

    run(loop, main())


@pytest.mark.usefixtures("no_native_sendfile")
def test_what_the_kernel_cannot_send(loop: asyncio.AbstractEventLoop) -> None:
    """No descriptor behind the file: it is read and written."""

    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            receiving = asyncio.create_task(receive(peer, len(CONTENT) + 11))
            transport.write(b"before")
            assert await loop.sendfile(transport, io.BytesIO(CONTENT)) == len(CONTENT)
            transport.write(b"after")
            assert await receiving == b"before" + CONTENT + b"after"
            with pytest.raises(asyncio.SendfileNotAvailableError, match="^not a regular file$"):
                await loop.sendfile(transport, io.BytesIO(b"x"), fallback=False)

    run(loop, main())


def test_writing_meanwhile(loop: asyncio.AbstractEventLoop, file: io.BufferedReader) -> None:
    """Nobody else may write, and nothing is read, until the file is out."""

    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            sending = asyncio.create_task(loop.sendfile(transport, file))
            peer.send(b"for later")
            await settle()
            with pytest.raises(RuntimeError, match="^unable to write; sendfile is in progress$"):
                transport.write(b"x")
            with pytest.raises(RuntimeError, match=r"^unable to write(lines)?; sendfile is in progress$"):
                transport.writelines([b"x"])
            assert not transport.is_reading()
            assert protocol.data == b""
            assert not sending.done()
            assert await receive(peer, len(CONTENT)) == CONTENT
            assert await sending == len(CONTENT)
            assert transport.is_reading()
            await until(lambda: protocol.data == b"for later")
            transport.write(b"now")
            assert await receive(peer, 3) == b"now"

    run(loop, main())


def test_reading_stays_paused(loop: asyncio.AbstractEventLoop, file: io.BufferedReader) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            transport.pause_reading()
            peer.send(b"for later")
            await loop.sendfile(transport, file, count=1000)
            assert not transport.is_reading()
            await settle()
            assert protocol.data == b""
            transport.resume_reading()
            await until(lambda: protocol.data == b"for later")

    run(loop, main())


def test_cancelled(loop: asyncio.AbstractEventLoop, file: io.BufferedReader) -> None:
    """The transport can be used again, behind as much of the file as had been sent."""

    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):
            sending = asyncio.create_task(loop.sendfile(transport, file))
            await settle()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            receiving = asyncio.create_task(receive_all(peer))
            transport.write(b"after")
            peer.send(b"reading again")
            await until(lambda: protocol.data == b"reading again")
            transport.write_eof()
            received = await receiving
            assert received.endswith(b"after")
            assert CONTENT.startswith(received[:-5])
            assert len(received) < len(CONTENT)

    run(loop, main())


def test_aborted_before_it_could_begin(loop: asyncio.AbstractEventLoop, file: io.BufferedReader) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            transport.write(bytes(1_000_000))
            sending = asyncio.create_task(loop.sendfile(transport, file))
            await settle()
            assert not sending.done()
            transport.abort()
            await until(lambda: protocol.is_lost)
            with pytest.raises(ConnectionError):
                await sending

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio's connection_lost stumbles over it")
def test_aborted_in_the_middle(loop: asyncio.AbstractEventLoop, file: io.BufferedReader) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            sending = asyncio.create_task(loop.sendfile(transport, file))
            await settle()
            assert not sending.done()
            transport.abort()
            await until(lambda: protocol.is_lost)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        before = len(os.listdir("/proc/self/fd"))
        async with connected(Recorder()) as (transport, protocol, peer):  # perhaps of the same number
            await loop.sendfile(transport, file, count=10)
            assert await receive(peer, 10) == CONTENT[:10]
        assert len(os.listdir("/proc/self/fd")) == before

    run(loop, main())


@pytest.mark.parametrize("source", ["file", "BytesIO"])
def test_the_peer_goes_away(loop: asyncio.AbstractEventLoop, file: io.BufferedReader, source: str) -> None:
    async def main() -> None:
        content: Any = file if source == "file" else io.BytesIO(CONTENT)
        async with connected(Recorder()) as (transport, protocol, peer):
            sending = asyncio.create_task(loop.sendfile(transport, content))
            await settle()
            peer.close()
            with pytest.raises(ConnectionError):
                await sending
            transport.abort()
            await until(lambda: protocol.is_lost)

    run(loop, main())


# TLS, where the kernel can't.


@pytest.mark.usefixtures("no_native_sendfile")
@pytest.mark.parametrize(("offset", "count"), [(0, None), (1000, 70_000)])
def test_tls(
    loop: asyncio.AbstractEventLoop, file: io.BufferedReader, offset: int, count: int | None
) -> None:
    wanted = CONTENT[offset:][:count]
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    sent: list[int] = []

    async def send(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with pytest.raises(
            RuntimeError, match="^fallback is disabled and native sendfile is not supported for "
        ):
            await loop.sendfile(writer.transport, file, fallback=False)
        writer.write(b"before")
        sent.append(await loop.sendfile(writer.transport, file, offset, count))
        writer.write(b"after")
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(send, "127.0.0.1", 0, ssl=server_context)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context, server_hostname="localhost"
        )
        assert await reader.read() == b"before" + wanted + b"after"
        assert sent == [len(wanted)]
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        await settle()  # The server's task has a last step to make.

    run(loop, main())


# What sendfile does not take.


def test_transports_that_it_does_not_take(loop: asyncio.AbstractEventLoop, file: io.BufferedReader) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            transport.close()
            with pytest.raises(RuntimeError, match="^Transport is closing$"):
                await loop.sendfile(transport, file)
            await until(lambda: protocol.is_lost)
        datagrams, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        with pytest.raises(RuntimeError, match="^sendfile is not supported for transport "):
            await loop.sendfile(datagrams, file)  # type: ignore[arg-type]
        datagrams.close()
        await settle()

    run(loop, main())


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"count": "1"}, TypeError, "count must be a positive integer (got '1')"),
    ({"count": 0}, ValueError, "count must be a positive integer (got 0)"),
    ({"count": -1}, ValueError, "count must be a positive integer (got -1)"),
    ({"offset": "1"}, TypeError, "offset must be a non-negative integer (got '1')"),
    ({"offset": -1}, ValueError, "offset must be a non-negative integer (got -1)"),
]


@pytest.mark.parametrize("method", ["sendfile", "sock_sendfile"])
def test_wrong_arguments(
    loop: asyncio.AbstractEventLoop, path: Path, file: io.BufferedReader, method: str
) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            target = transport if method == "sendfile" else peer
            send: Any = getattr(loop, method)
            for arguments, kind, message in WRONG:
                with pytest.raises(kind, match=f"^{re.escape(message)}$"):
                    await send(target, file, **arguments)
            with open(path, encoding="latin-1") as text:
                with pytest.raises(ValueError, match="^file should be opened in binary mode$"):
                    await send(target, text)
            transport.write(b"alive")
            assert await receive(peer, 5) == b"alive"

    run(loop, main())


# loop.sock_sendfile


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(("offset", "count"), [(0, None), (1000, 200_000), (len(CONTENT) - 10, 100)])
@pytest.mark.parametrize("source", ["file", "BytesIO"])
def test_sock_sendfile(
    loop: asyncio.AbstractEventLoop,
    file: io.BufferedReader,
    kind: str,
    offset: int,
    count: int | None,
    source: str,
) -> None:
    content: Any = file if source == "file" else io.BytesIO(CONTENT)
    wanted = CONTENT[offset:] if count is None else CONTENT[offset : offset + count]

    async def main() -> None:
        left, right = PAIRS[kind]()
        with left, right:
            receiving = asyncio.create_task(receive_all(right))
            await loop.sock_sendall(left, b"before")
            sent = await loop.sock_sendfile(left, content, offset, count, fallback=source == "BytesIO")
            assert sent == len(wanted)
            assert content.tell() == offset + len(wanted)
            await loop.sock_sendall(left, b"after")
            left.shutdown(socket.SHUT_WR)
            assert await receiving == b"before" + wanted + b"after"

    run(loop, main())


def test_sock_sendfile_without_a_fallback(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        left, right = tcp_pair()
        with left, right:
            with pytest.raises(asyncio.SendfileNotAvailableError, match="^not a regular file$"):
                await loop.sock_sendfile(left, io.BytesIO(b"x"), fallback=False)

    run(loop, main())


@pytest.mark.parametrize("source", ["file", "BytesIO"])
def test_sock_sendfile_cancelled(
    loop: asyncio.AbstractEventLoop, file: io.BufferedReader, source: str
) -> None:
    """Nothing watches the socket any more."""
    content: Any = file if source == "file" else io.BytesIO(CONTENT)

    async def main() -> None:
        left, right = tcp_pair()
        with left, right:
            sending = asyncio.create_task(loop.sock_sendfile(left, content))
            await settle()
            assert not sending.done()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert loop.remove_writer(left) is False
            left.shutdown(socket.SHUT_WR)
            received = await receive_all(right)
            assert CONTENT.startswith(received)
            assert len(received) < len(CONTENT)

    run(loop, main())


def test_sock_sendfile_to_a_peer_that_goes_away(
    loop: asyncio.AbstractEventLoop, file: io.BufferedReader
) -> None:
    async def main() -> None:
        left, right = tcp_pair()
        with left:
            sending = asyncio.create_task(loop.sock_sendfile(left, file))
            await settle()
            right.close()
            with pytest.raises(ConnectionError):
                await sending

    run(loop, main())


def test_sockets_that_it_does_not_take(loop: asyncio.AbstractEventLoop, file: io.BufferedReader) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.setblocking(False)
            with pytest.raises(ValueError, match="^only SOCK_STREAM type sockets are supported$"):
                await loop.sock_sendfile(datagrams, file)
        left, right = tcp_pair()
        with left, right:
            left.setblocking(True)
            loop.set_debug(True)
            with pytest.raises(ValueError, match="^the socket must be non-blocking$"):
                await loop.sock_sendfile(left, file)

    run(loop, main())
