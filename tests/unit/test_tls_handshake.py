"""Handshakes: contexts of all kinds, peers that give up, and what OpenSSL does later on its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import subprocess
from typing import Any

import pytest
import trustme

from .protocols import Recorder
from .support import Caught, run, settle, tcp_pair, until
from .tls_peer import HOST, Contexts, CutOff, Peer, make_contexts, secured

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def tls() -> Contexts:
    return make_contexts()


@pytest.mark.parametrize("server_side", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_versions(loop: asyncio.AbstractEventLoop, version: ssl.TLSVersion, server_side: bool) -> None:
    async def main() -> None:
        contexts = make_contexts(version=version)
        async with secured(Recorder(), contexts, server_side) as (transport, protocol, peer):
            assert transport.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
            transport.write(b"to you")
            assert await peer.read(6) == b"to you"
            await peer.write(b"to me")
            await until(lambda: protocol.data == b"to me")

    run(loop, main())


@pytest.mark.parametrize("server_side", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_certificates_of_both(
    loop: asyncio.AbstractEventLoop, version: ssl.TLSVersion, server_side: bool
) -> None:
    async def main() -> None:
        contexts = make_contexts(version=version, both=True)
        async with secured(Recorder(), contexts, server_side) as (transport, protocol, peer):
            await peer.write(b"x")
            await until(lambda: protocol.data == b"x")
            certificate = transport.get_extra_info("peercert")
            name = ("email", "client@example.org") if server_side else ("DNS", "localhost")
            assert name in certificate["subjectAltName"]
            assert transport.get_extra_info("peercert") is certificate
            assert transport.get_extra_info("cipher") == peer.tls.cipher()
            assert transport.get_extra_info("compression") is None
            assert transport.get_extra_info("nothing", 1) == 1

    run(loop, main())


@pytest.mark.normal_mode
@pytest.mark.parametrize("version", VERSIONS)
def test_no_certificate_where_one_is_wanted(loop: asyncio.AbstractEventLoop, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        authority = trustme.CA()
        contexts = make_contexts(authority, version)
        contexts.server.verify_mode = ssl.CERT_REQUIRED
        ours, theirs = tcp_pair()
        peer = Peer(theirs, contexts, server_side=False)
        protocol = Recorder()
        making = asyncio.ensure_future(
            loop.connect_accepted_socket(lambda: protocol, ours, ssl=contexts.server)
        )
        with contextlib.suppress(CutOff, ConnectionError, ssl.SSLError):
            await peer.handshake()
            await peer.read(1)
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            await making
        await settle()
        assert protocol.names == []
        theirs.close()

    run(loop, main())


@pytest.mark.parametrize("server_side", [True, False])
def test_alpn(loop: asyncio.AbstractEventLoop, server_side: bool) -> None:
    async def main() -> None:
        contexts = make_contexts()
        contexts.server.set_alpn_protocols(["h2", "http/1.1"])
        contexts.client.set_alpn_protocols(["http/1.1"])
        async with secured(Recorder(), contexts, server_side) as (transport, _, _):
            assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"

    run(loop, main())


def test_the_sni_callback(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """It is called within the handshake, and may give the connection another context."""

    async def main() -> None:
        contexts = make_contexts()
        other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme_authority = trustme.CA()
        trustme_authority.issue_cert("localhost").configure_cert(other)
        trustme_authority.configure_trust(contexts.client)
        names = []

        def choose(sslobject: ssl.SSLObject, name: str, context: ssl.SSLContext) -> None:
            names.append(name)
            assert context is contexts.server
            sslobject.context = other

        contexts.server.sni_callback = choose
        async with secured(Recorder(), contexts) as (transport, _, _):
            assert names == ["localhost"]
            assert transport.get_extra_info("sslcontext") is contexts.server

    run(loop, main())


@pytest.mark.parametrize("act", ["close", "abort", "write"])
def test_the_sni_callback_may_use_the_transport(loop: Any, act: str) -> None:
    """OpenSSL is in the midst of its work then."""

    async def main() -> None:
        contexts = make_contexts()
        protocol = Recorder()

        def callback(*_args: object) -> None:
            transport = ours_transport._ssl_protocol if hasattr(ours_transport, "_ssl_protocol") else None
            assert transport is not None
            if act == "write":
                ours_transport.write(b"early")
            else:
                getattr(ours_transport, act)()

        contexts.server.sni_callback = callback
        ours, theirs = tcp_pair()
        waiter = loop.create_future()
        ours_transport = loop._make_ssl_transport(ours, protocol, contexts.server, waiter, server_side=True)
        peer = Peer(theirs, contexts, server_side=False)
        received = b""
        with contextlib.suppress(CutOff, ConnectionError, ssl.SSLError):
            await peer.handshake()
            received = await peer.read(5)
        if act == "write":
            assert received == b"early"
        theirs.close()
        await until(lambda: ours.fileno() == -1)
        await settle()

    run(loop, main())


def test_a_class_of_ssl_objects_of_the_users(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        calls = []

        class Counting(ssl.SSLObject):
            def read(self, *args: Any) -> Any:
                calls.append("read")
                return super().read(*args)

            def write(self, data: Any) -> int:
                calls.append("write")
                # Not all of it: a legal answer.
                return super().write(memoryview(data)[:1000])

            def do_handshake(self) -> None:
                calls.append("do_handshake")
                super().do_handshake()

            def unwrap(self) -> None:
                calls.append("unwrap")
                super().unwrap()

        contexts = make_contexts()
        contexts.server.sslobject_class = Counting
        async with secured(Recorder(), contexts) as (transport, protocol, peer):
            assert isinstance(transport.get_extra_info("ssl_object"), Counting)
            transport.write(b"x" * 10_000)
            assert await peer.read(10_000) == b"x" * 10_000
            await peer.write(b"y" * 20_000)
            await until(lambda: protocol.data == b"y" * 20_000)
            transport.close()
            await peer.do(peer.tls.unwrap)
            await until(lambda: protocol.is_lost)
        assert {"read", "write", "do_handshake", "unwrap"} <= set(calls)

    run(loop, main())


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_are_resumed(loop: asyncio.AbstractEventLoop, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        contexts = make_contexts(version=version)
        session = None
        for again in (False, True):
            ours, theirs = tcp_pair()
            peer = Peer(theirs, contexts, server_side=False)
            if session is not None:
                peer.tls.session = session
            (transport, protocol), _ = await asyncio.gather(
                loop.connect_accepted_socket(Recorder, ours, ssl=contexts.server), peer.handshake()
            )
            transport.write(b"x")  # behind the tickets
            assert await peer.read(1) == b"x"
            assert peer.tls.session_reused is again
            session = peer.tls.session
            theirs.close()
            await until(lambda: protocol.is_lost)  # noqa: B023

    run(loop, main())


@pytest.mark.parametrize("server_side", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_byte_at_a_time(
    loop: asyncio.AbstractEventLoop, version: ssl.TLSVersion, server_side: bool
) -> None:
    async def main() -> None:
        contexts = make_contexts(version=version)
        ours, theirs = tcp_pair()
        peer = Peer(theirs, contexts, not server_side)
        peer.piece = 1
        protocol = Recorder()
        making = (
            loop.connect_accepted_socket(lambda: protocol, ours, ssl=contexts.server)
            if server_side
            else loop.create_connection(
                lambda: protocol, sock=ours, ssl=contexts.client, server_hostname="localhost"
            )
        )
        (transport, _), _ = await asyncio.gather(making, peer.handshake())
        for number in range(3):
            await peer.write(b"x" * 50 + b"%d" % number)
        transport.write(b"hello")  # type: ignore[attr-defined,unused-ignore]
        assert await peer.read(5) == b"hello"
        await peer.close_notify()
        await until(lambda: protocol.is_lost)
        assert protocol.data == b"".join(b"x" * 50 + b"%d" % number for number in range(3))
        theirs.close()

    run(loop, main())


@pytest.mark.normal_mode
@pytest.mark.parametrize("server_side", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("reset", [True, False])
def test_a_peer_that_disappears_in_the_handshake(
    loop: asyncio.AbstractEventLoop, version: ssl.TLSVersion, server_side: bool, reset: bool
) -> None:
    """After each number of bytes that it may have sent."""

    async def attempt(contexts: Contexts, cut: int) -> bool:
        """Whether the handshake was over before the cut."""
        ours, theirs = tcp_pair()
        peer = Peer(theirs, contexts, not server_side)
        protocol = Recorder()
        making = asyncio.ensure_future(
            loop.connect_accepted_socket(lambda: protocol, ours, ssl=contexts.server)
            if server_side
            else loop.create_connection(
                lambda: protocol, sock=ours, ssl=contexts.client, server_hostname="localhost"
            )
        )
        left, over = cut, False
        while left:
            try:
                peer.tls.do_handshake()
                over = True
            except ssl.SSLWantReadError:
                pass
            data = peer.outgoing.read()
            await loop.sock_sendall(theirs, data[:left])
            left -= len(data[:left])
            if over or not left:
                break
            await peer.receive()
        await settle(2)
        if reset:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        try:
            transport, _ = await making
        except (ConnectionError, ssl.SSLError):
            assert protocol.names == []
        else:
            assert over or version is ssl.TLSVersion.TLSv1_3 or left == 0
            await until(lambda: protocol.is_lost)
            del transport
        await until(lambda: ours.fileno() == -1)
        return over

    async def main() -> None:
        contexts = make_contexts(version=version)
        cut, step = 0, 1
        while not await attempt(contexts, cut):
            cut, step = cut + step, min(300, step * 3)

    run(loop, main())
    gc.collect()


def test_garbage_instead_of_a_handshake(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        making = asyncio.ensure_future(loop.connect_accepted_socket(Recorder, ours, ssl=tls.server))
        await loop.sock_sendall(theirs, b"GET / HTTP/1.0\r\n\r\n" * 1000)
        with pytest.raises(ssl.SSLError, match="HTTP_REQUEST"):
            await making
        theirs.close()
        await until(lambda: ours.fileno() == -1)

    run(loop, main())


def test_garbage_after_the_handshake(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """What came before it is delivered all the same."""

    async def main() -> None:
        async with secured(Recorder(), tls) as (_transport, protocol, peer):
            peer.tls.write(b"good")
            await loop.sock_sendall(peer.sock, peer.outgoing.read() + b"\x17\x03\x03\x00\x20" + bytes(32))
            await until(lambda: protocol.is_lost)
            assert isinstance(protocol.loss, ssl.SSLError)
            assert protocol.data == b"good" or type(loop).__module__.startswith("asyncio.")

    run(loop, main())


def test_a_cancelled_connect(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        making = asyncio.ensure_future(
            loop.create_connection(Recorder, sock=ours, ssl=tls.client, server_hostname="localhost")
        )
        await loop.sock_recv(theirs, 100_000)  # the hello
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        theirs.close()
        await until(lambda: ours.fileno() == -1)

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio goes through the handshake first, and then leaves it open")
def test_a_close_before_the_handshake(loop: Any, tls: Contexts) -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        protocol = Recorder()
        waiter = loop.create_future()
        transport = loop._make_ssl_transport(ours, protocol, tls.server, waiter, server_side=True)
        transport.close()
        await until(lambda: ours.fileno() == -1)
        assert protocol.names == []
        theirs.close()

    run(loop, main())


def test_tls_in_tls(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """A tunnel by way of start_tls on a TLS transport, from both ends."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"inner\n"
            writer.write(b"go\n")
            await writer.start_tls(inner.server)
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            writer.close()
            await writer.wait_closed()
            over.set()

        inner, over = make_contexts(), asyncio.Event()
        server = await asyncio.start_server(serve, HOST, 0, ssl=tls.server)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=tls.client)
        outer = writer.transport
        writer.write(b"inner\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(inner.client, server_hostname="localhost")
        assert writer.transport is not outer
        assert writer.get_extra_info("sslcontext") is inner.client
        assert writer.get_extra_info("peername") == server.sockets[0].getsockname()
        large = b"x" * 50_000 + b"\n"
        for line in (b"one\n", large, b"three\n"):
            writer.write(line)
            assert await reader.readline() == line.upper()
        writer.close()
        await writer.wait_closed()
        await over.wait()
        server.close()
        await settle()

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio does so from 3.14 on")
def test_a_hello_that_comes_with_the_request(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """A client does not wait for the answer to its STARTTLS, so its hello is in the reader's buffer."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"STARTTLS\n"
            await settle(2)
            await writer.start_tls(tls.server)
            writer.write(await reader.readexactly(5))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, HOST, 0)
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, server.sockets[0].getsockname())
        peer = Peer(sock, tls, server_side=False)
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        await loop.sock_sendall(sock, b"STARTTLS\n" + peer.outgoing.read())
        await peer.handshake()
        await peer.write(b"hello")
        assert await peer.read(5) == b"hello"
        sock.close()
        server.close()
        await until(lambda: len(asyncio.all_tasks()) <= 2)

    run(loop, main())


def openssl_client(port: int, *options: str) -> subprocess.Popen[bytes]:
    command = ["openssl", "s_client", "-connect", f"{HOST}:{port}", *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("letter, version", [("k", "-tls1_3"), ("K", "-tls1_3"), ("R", "-tls1_2")])
def test_new_keys(
    loop: asyncio.AbstractEventLoop, tls: Contexts, needs: Any, letter: str, version: str
) -> None:
    """KeyUpdate, with and without an answer wanted, and a renegotiation, in the middle of a conversation.

    `openssl s_client` does it at a line that is the letter alone.
    """
    needs("openssl")

    async def main() -> None:
        protocol = Recorder()

        def answer(data: bytes) -> None:
            Recorder.data_received(protocol, data)
            protocol.transport.write(data.upper())

        protocol.data_received = answer  # type: ignore[method-assign]
        contexts = make_contexts()
        contexts.server.options &= ~ssl.OP_NO_RENEGOTIATION
        contexts.server.options |= 0x100  # SSL_OP_ALLOW_CLIENT_RENEGOTIATION, which `ssl` has no name for
        server = await loop.create_server(lambda: protocol, HOST, 0, ssl=contexts.server)
        client = openssl_client(server.sockets[0].getsockname()[1], version)
        assert client.stdin is not None and client.stdout is not None

        def say(line: bytes) -> None:
            assert client.stdin is not None
            client.stdin.write(line + b"\n")
            client.stdin.flush()

        heard, output = b"", client.stdout.fileno()

        def listen() -> None:
            nonlocal heard
            heard += os.read(output, 65_536)

        loop.add_reader(output, listen)
        await until(lambda: protocol.transport)
        for number in range(3):
            say(b"before %d" % number)
            await until(lambda: b"BEFORE %d" % number in heard)  # noqa: B023
            say(letter.encode())
            await until(lambda: heard.count(b"KEYUPDATE") + heard.count(b"RENEGOTIATING") > number)  # noqa: B023
            say(b"after %d" % number)
            await until(lambda: b"AFTER %d" % number in heard)  # noqa: B023
        loop.remove_reader(output)
        with client:
            client.kill()
        await until(lambda: protocol.is_lost)
        server.close()

    run(loop, main())


@pytest.mark.normal_mode
def test_failed_handshakes_leave_nothing(
    loop: asyncio.AbstractEventLoop, tls: Contexts, caught: Caught
) -> None:
    async def main() -> None:
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[-1]

        server = await loop.create_server(factory, HOST, 0, ssl=tls.server)
        address = server.sockets[0].getsockname()
        for number in range(20):
            with socket.create_connection(address) as client:
                client.sendall(b"x" * number)
        await until(lambda: len(made) == 20)
        await settle()
        assert all(protocol.names == [] for protocol in made)
        server.close()
        await server.wait_closed()

    run(loop, main())
