"""Unix sockets: what a path may be, what happens to its file, and a stream that is like any other."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from .protocols import BufferedRecorder, Recorder, receive_all
from .support import Caught, run, settle, until

HAS_CLEANUP = sys.version_info >= (3, 13)
needs_cleanup = pytest.mark.skipif(not HAS_CLEANUP, reason="from 3.13 on a server removes its socket file")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Echo(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def finish(server: asyncio.Server) -> None:
    server.close()
    await server.wait_closed()


async def ask(path: Any, data: bytes) -> bytes:
    """Sends data over a new connection and returns all that comes back."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


# Paths.


@pytest.mark.parametrize("kind", ["str", "bytes", "Path", "abstract str", "abstract bytes"])
def test_what_a_path_may_be(loop: asyncio.AbstractEventLoop, tmp_path: Path, kind: str) -> None:
    abstract = f"\0mioloop-unix-{os.getpid()}"
    path: Any = {
        "str": str(tmp_path / "socket"),
        "bytes": os.fsencode(tmp_path / "socket"),
        "Path": tmp_path / "socket",
        "abstract str": abstract,
        "abstract bytes": abstract.encode(),
    }[kind]
    # A name in the abstract namespace always comes back as bytes, a path as text.
    name = abstract.encode() if "abstract" in kind else os.fsdecode(path)

    async def main() -> None:
        server = await loop.create_unix_server(Echo, path)
        assert [sock.getsockname() for sock in server.sockets] == [name]
        transport, client = await loop.create_unix_connection(Recorder, path)
        assert transport.get_extra_info("peername") == name
        assert transport.get_extra_info("sockname") == ""
        transport.write(b"hello")
        await until(lambda: client.data == b"hello")
        transport.close()
        await until(lambda: client.is_lost)
        await finish(server)

    run(loop, main())


def test_the_server_side_names(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    seen: list[Any] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(writer.get_extra_info(name) for name in ("sockname", "peername"))
        sock = writer.get_extra_info("socket")
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        seen.append(struct.unpack("3i", credentials)[0])
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        path = str(tmp_path / "socket")
        server = await asyncio.start_unix_server(handler, path)
        assert await ask(path, b"") == b""
        await finish(server)
        assert seen == [path, "", os.getpid()]

    run(loop, main())


@pytest.mark.parametrize("lengths", [(108, 0), (80, 108), (108, 80), (108, 107)], ids=repr)
def test_names_of_every_length(loop: asyncio.AbstractEventLoop, lengths: tuple[int, int]) -> None:
    """The longest fill the kernel's address to its last byte; they are told when it is over, too."""
    begin = f"\0mioloop-{os.getpid()}-".encode()
    local: Any = begin.ljust(lengths[0], b"l")
    peer = begin.ljust(lengths[1], b"p") if lengths[1] else b""

    async def main() -> None:
        protocol = Recorder()
        server = await loop.create_unix_server(lambda: protocol, local)
        with socket.socket(socket.AF_UNIX) as sock:
            if peer:
                sock.bind(peer)
            sock.connect(local)
            await until(lambda: protocol.transport)
            protocol.transport.close()
            await until(lambda: protocol.is_lost)
        told = [protocol.transport.get_extra_info(name) for name in ("sockname", "peername")]
        assert told == [local, peer or ""]
        await finish(server)

    run(loop, main())


def test_the_socket_of_a_closed_connection(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        server = await loop.create_unix_server(Recorder, tmp_path / "socket")
        transport, protocol = await loop.create_unix_connection(Recorder, str(tmp_path / "socket"))
        transport.close()
        await until(lambda: protocol.is_lost)
        await settle()
        sock = transport.get_extra_info("socket")
        assert (sock.fileno(), sock.family, sock.type) == (-1, socket.AF_UNIX, socket.SOCK_STREAM)
        await finish(server)

    run(loop, main())


def test_a_path_that_is_too_long(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = str(tmp_path / ("x" * 110))

    async def main() -> None:
        with pytest.raises(OSError, match="AF_UNIX path too long"):
            await loop.create_unix_server(Echo, path)
        with pytest.raises(OSError, match="AF_UNIX path too long"):
            await loop.create_unix_connection(Echo, path)

    run(loop, main())


def test_connecting_to_what_is_no_server(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        missing, regular, stale = tmp_path / "missing", tmp_path / "regular", tmp_path / "stale"
        regular.touch()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(stale))
        with pytest.raises(FileNotFoundError):
            await loop.create_unix_connection(Echo, missing)  # type: ignore[arg-type]
        with pytest.raises(ConnectionRefusedError):
            await loop.create_unix_connection(Echo, regular)  # type: ignore[arg-type]
        with pytest.raises(ConnectionRefusedError):
            await loop.create_unix_connection(Echo, stale)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await loop.create_unix_connection(Echo, 42)  # type: ignore[arg-type]

    run(loop, main())


# The file.


def test_a_stale_file_is_replaced(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(path))
        server = await asyncio.start_unix_server(echo, path)
        assert await ask(path, b"hello") == b"hello"
        await finish(server)

    run(loop, main())


def test_a_server_takes_the_path_from_another(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """asyncio does not ask whether somebody listens there; the old server leaves the new one's file alone."""

    async def main() -> None:
        path = tmp_path / "socket"

        def answering(answer: bytes) -> Handler:
            async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(answer)
                writer.close()
                await writer.wait_closed()

            return handler

        old = await asyncio.start_unix_server(answering(b"old"), path)
        new = await asyncio.start_unix_server(answering(b"new"), path)
        await finish(old)
        assert path.is_socket()
        assert await ask(path, b"") == b"new"
        await finish(new)
        assert path.exists() is not HAS_CLEANUP

    run(loop, main())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_is_in_the_way(loop: asyncio.AbstractEventLoop, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "file":
        path.write_text("precious")
    else:
        path.mkdir()

    async def main() -> None:
        with pytest.raises(OSError, match=re.escape(f"Address {str(path)!r} is already in use")) as caught:
            await loop.create_unix_server(Echo, path)
        assert caught.value.errno == errno.EADDRINUSE

    run(loop, main())
    assert path.read_text() == "precious" if kind == "file" else path.is_dir()


def test_no_folder(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await loop.create_unix_server(Echo, tmp_path / "missing" / "socket")

    run(loop, main())


@needs_cleanup
@pytest.mark.parametrize("given", ["path", "sock"])
@pytest.mark.parametrize("cleanup", [True, False])
def test_cleanup(loop: asyncio.AbstractEventLoop, tmp_path: Path, given: str, cleanup: bool) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        arguments: dict[str, Any] = {"path": path}
        if given == "sock":
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(path))
            arguments = {"sock": sock}
        if not cleanup:
            arguments["cleanup_socket"] = False
        server = await loop.create_unix_server(Echo, **arguments)
        assert path.is_socket()
        await finish(server)
        assert path.exists() is not cleanup

    run(loop, main())


@needs_cleanup
def test_the_file_has_gone_before(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        server = await loop.create_unix_server(Echo, path)
        path.unlink()
        await finish(server)

    run(loop, main())


@needs_cleanup
def test_the_file_cannot_be_removed(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is for the log, and nobody's exception."""

    def refuse(path: Any, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EPERM, "not this one", path)

    async def main() -> None:
        path = str(tmp_path / "socket")
        server = await loop.create_unix_server(Echo, path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", refuse)
            await finish(server)
        message = caught.take()["message"]
        assert message.startswith(f"Unable to clean up listening UNIX socket {path!r}: PermissionError")

    run(loop, main())


# A socket of one's own.


def test_sockets_of_ones_own(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        server = await loop.create_unix_server(Echo, sock=listener)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        transport, client = await loop.create_unix_connection(Recorder, sock=sock)
        assert sock.gettimeout() == 0
        transport.write(b"hello")
        await until(lambda: client.data == b"hello")
        transport.close()
        await until(lambda: client.is_lost)
        assert sock.fileno() == -1
        await finish(server)
        assert listener.fileno() == -1

    run(loop, main())


def test_create_connection_and_create_server_take_them_too(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        server = await loop.create_server(Echo, sock=listener)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        transport, client = await loop.create_connection(Recorder, sock=sock)
        transport.write(b"hello")
        await until(lambda: client.data == b"hello")
        transport.close()
        await until(lambda: client.is_lost)
        await finish(server)

    run(loop, main())


def test_connect_accepted_socket(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        transport, protocol = await loop.connect_accepted_socket(Echo, left)
        right.sendall(b"hello")
        await until(lambda: protocol.data == b"hello")
        assert right.recv(10) == b"hello"
        right.close()
        await until(lambda: protocol.is_lost)
        assert protocol.loss is None
        assert transport.is_closing()

    run(loop, main())


# Arguments that don't go together.

CONNECTION_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({}, "no path and sock were specified"),
    ({"path": "x", "sock": "unix"}, "path and sock can not be specified at the same time"),
    ({"sock": "tcp"}, "A UNIX Domain Stream Socket was expected, got <socket.socket "),
    ({"sock": "datagram"}, "A UNIX Domain Stream Socket was expected, got <socket.socket "),
    ({"path": "x", "ssl": True}, "you have to pass server_hostname when using ssl"),
    ({"path": "x", "server_hostname": "x"}, "server_hostname is only meaningful with ssl"),
    ({"path": "x", "ssl_handshake_timeout": 1}, "ssl_handshake_timeout is only meaningful with ssl"),
    ({"path": "x", "ssl_shutdown_timeout": 1}, "ssl_shutdown_timeout is only meaningful with ssl"),
]
SERVER_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({}, "path was not specified, and no sock specified"),
    ({"path": "x", "sock": "unix"}, "path and sock can not be specified at the same time"),
    ({"sock": "tcp"}, "A UNIX Domain Stream Socket was expected, got <socket.socket "),
    ({"sock": "datagram"}, "A UNIX Domain Stream Socket was expected, got <socket.socket "),
    ({"path": "x", "ssl_handshake_timeout": 1}, "ssl_handshake_timeout is only meaningful with ssl"),
    ({"path": "x", "ssl_shutdown_timeout": 1}, "ssl_shutdown_timeout is only meaningful with ssl"),
]


@pytest.mark.parametrize("method", ["create_unix_connection", "create_unix_server"])
def test_arguments_that_do_not_go_together(loop: asyncio.AbstractEventLoop, method: str) -> None:
    cases = CONNECTION_ERRORS if method == "create_unix_connection" else SERVER_ERRORS

    async def main() -> None:
        with (
            socket.socket(socket.AF_UNIX) as unix,
            socket.socket() as tcp,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
        ):
            sockets = {"unix": unix, "tcp": tcp, "datagram": datagram}
            for arguments, message in cases:
                given = dict(arguments)
                if "sock" in given:
                    given["sock"] = sockets[given["sock"]]
                with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
                    await getattr(loop, method)(Recorder, **given)

    run(loop, main())


def test_ssl_is_no_bool_for_a_server(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="^ssl argument must be an SSLContext or None$"):
            await loop.create_unix_server(Echo, tmp_path / "socket", ssl=True)

    run(loop, main())


# The stream.


def test_much_data_both_ways(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        server = await asyncio.start_unix_server(echo, path)
        reader, writer = await asyncio.open_unix_connection(path)
        data = os.urandom(1_000_003) * 4

        async def send() -> None:
            for start in range(0, len(data), 99_991):
                writer.write(data[start : start + 99_991])
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        assert await reader.read() == data
        await sending
        writer.close()
        await writer.wait_closed()
        await finish(server)

    run(loop, main())


def test_many_connections(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        server = await asyncio.start_unix_server(echo, path, backlog=200)
        messages = [b"%d" % number for number in range(200)]
        assert await asyncio.gather(*(ask(path, message) for message in messages)) == messages
        await finish(server)

    run(loop, main())


def test_backpressure_and_closing(loop: asyncio.AbstractEventLoop) -> None:
    """What was written before `close` arrives, however long the peer takes."""

    async def main() -> None:
        left, right = socket.socketpair()
        right.setblocking(False)
        transport, protocol = await loop.create_unix_connection(Recorder, sock=left)
        sent = b""
        while "pause" not in protocol.names:
            piece = os.urandom(50_000)
            sent += piece
            transport.write(piece)
        transport.close()
        await settle()
        assert not protocol.is_lost
        assert await receive_all(right) == sent
        await until(lambda: protocol.is_lost)
        assert protocol.loss is None
        right.close()

    run(loop, main())


def test_half_closed(loop: asyncio.AbstractEventLoop) -> None:
    class KeepsOpen(Recorder):
        def eof_received(self) -> bool:
            super().eof_received()
            return True

    async def main() -> None:
        left, right = socket.socketpair()
        right.setblocking(False)
        transport, protocol = await loop.create_unix_connection(KeepsOpen, sock=left)
        right.sendall(b"request")
        right.shutdown(socket.SHUT_WR)
        await until(lambda: "eof" in protocol.names)
        assert protocol.data == b"request"
        transport.write(b"answer")
        transport.write_eof()
        assert await receive_all(right) == b"answer"
        transport.close()
        await until(lambda: protocol.is_lost)
        assert protocol.names == ["made", "data", "eof", "lost"]
        right.close()

    run(loop, main())


def test_the_peer_goes_while_we_write(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        transport, protocol = await loop.create_unix_connection(Recorder, sock=left)
        while "pause" not in protocol.names:
            transport.write(bytes(100_000))
        right.close()
        await until(lambda: protocol.is_lost)
        assert isinstance(protocol.loss, ConnectionError)

    run(loop, main())


def test_buffered_protocol(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        _, protocol = await loop.create_unix_connection(lambda: BufferedRecorder(7), sock=left)
        data = bytes(range(256)) * 4
        right.sendall(data)
        right.close()
        await until(lambda: protocol.is_lost)
        assert protocol.data == data

    run(loop, main())


# The server.


def test_the_life_of_a_server(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        server = await asyncio.start_unix_server(echo, path, start_serving=False)
        assert not server.is_serving()
        assert server.get_loop() is loop
        with pytest.raises(ConnectionRefusedError):
            await ask(path, b"too early")
        await server.start_serving()
        assert server.is_serving()
        assert await ask(path, b"hello") == b"hello"
        forever = asyncio.create_task(server.serve_forever())
        await until(lambda: forever in asyncio.all_tasks())
        assert await ask(path, b"again") == b"again"
        forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forever
        assert not server.is_serving()
        assert server.sockets == ()
        with pytest.raises(FileNotFoundError if HAS_CLEANUP else ConnectionRefusedError):
            await ask(path, b"too late")

    run(loop, main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="servers know their connections from 3.13 on")
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
def test_a_server_ends_its_connections(loop: asyncio.AbstractEventLoop, tmp_path: Path, method: str) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        protocols: list[Recorder] = []

        def factory() -> Recorder:
            protocols.append(Recorder())
            return protocols[-1]

        server = await loop.create_unix_server(factory, path)
        clients = [(await loop.create_unix_connection(Recorder, path))[1] for _ in range(5)]  # type: ignore[arg-type]
        await until(lambda: len(protocols) == 5)
        server.close()
        waiting = asyncio.create_task(server.wait_closed())
        await settle()
        assert not waiting.done()
        getattr(server, method)()
        await waiting
        await until(lambda: all(client.is_lost for client in clients))
        assert [protocol.loss for protocol in protocols] == [None] * 5

    run(loop, main())


def test_no_descriptor_is_left(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "socket"
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            server = await asyncio.start_unix_server(echo, path)
            assert await ask(path, b"hello") == b"hello"
            with pytest.raises(FileNotFoundError):
                await ask(tmp_path / "missing", b"")
            await finish(server)
        await until(lambda: len(os.listdir("/proc/self/fd")) == before)

    run(loop, main())
