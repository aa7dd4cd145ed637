"""Datagram endpoints: what is sent arrives whole and in order, errors end nothing, and a full socket
is the protocol's to know about.

A Unix socket is what really blocks here: the kernel drops UDP datagrams that find no room, but lets the
sender of Unix ones wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import itertools
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from .support import Caught, run, settle, until

LOCALHOST = "127.0.0.1"
# asyncio counted a header for each datagram that it queued, and forgot to take it off again.
needs_exact_sizes = pytest.mark.mioloop_only(
    (3, 13) <= sys.version_info < (3, 14), reason="asyncio's buffer never was empty again"
)
COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("COLOUR", default="none")


class Recorder(asyncio.DatagramProtocol):
    """Keeps what it was told."""

    transport: Any  # A DatagramTransport with the water marks that asyncio's has too.

    def __init__(self) -> None:
        self.received: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.flow: list[str] = []
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def pause_writing(self) -> None:
        self.flow.append("pause")

    def resume_writing(self) -> None:
        self.flow.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    @property
    def data(self) -> list[bytes]:
        return [data for data, _ in self.received]

    @property
    def name(self) -> Any:
        return self.transport.get_extra_info("sockname")

    async def close(self) -> None:
        self.transport.close()
        await until(lambda: self.lost)
        assert self.lost == [None]


class Echo(Recorder):
    def datagram_received(self, data: bytes, addr: Any) -> None:
        super().datagram_received(data, addr)
        self.transport.sendto(data.upper(), addr)


async def endpoint(factory: Callable[[], Recorder] = Recorder, **arguments: Any) -> Recorder:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(factory, **arguments)
    assert protocol.transport is transport
    return protocol


def udp_socket(address: tuple[str, int] = (LOCALHOST, 0)) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(20)
    return sock


def unix_pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets connected to each other, with names: asyncio takes a peer without one for none at all."""
    left, right = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (left, right):
        sock.bind("")  # an abstract name that the kernel picks
        sock.setblocking(False)
    left.connect(right.getsockname())
    right.connect(left.getsockname())
    return left, right


def drain(sock: socket.socket) -> list[bytes]:
    """Everything that waits in a socket."""
    datagrams = []
    try:
        while True:
            datagrams.append(sock.recv(65536))
    except BlockingIOError:
        return datagrams


def needs_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


# Where datagrams go and come from.


@pytest.mark.parametrize("host", [LOCALHOST, "::1"])
@pytest.mark.parametrize("connected", [True, False])
def test_there_and_back(loop: asyncio.AbstractEventLoop, host: str, connected: bool) -> None:
    if ":" in host:
        needs_ipv6()

    async def main() -> None:
        server = await endpoint(Echo, local_addr=(host, 0))
        arguments: dict[str, Any] = (
            {"remote_addr": server.name[:2]} if connected else {"local_addr": (host, 0)}
        )
        client = await endpoint(**arguments)
        for number in range(5):
            client.transport.sendto(b"ping %d" % number, None if connected else server.name)
        await until(lambda: len(client.received) == 5)
        assert client.received == [(b"PING %d" % number, server.name) for number in range(5)]
        assert server.received == [(b"ping %d" % number, client.name) for number in range(5)]
        assert client.transport.get_extra_info("peername") == (server.name if connected else None)
        await client.close()
        await server.close()

    run(loop, main())


def test_unix_paths(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        path, answers = str(tmp_path / "server"), str(tmp_path / "client")
        server = await endpoint(Echo, local_addr=path, family=socket.AF_UNIX)
        client = await endpoint(local_addr=answers, remote_addr=path, family=socket.AF_UNIX)
        client.transport.sendto(b"by path")
        await until(lambda: client.received)
        assert client.received == [(b"BY PATH", path)]
        assert server.received == [(b"by path", answers)]
        await client.close()
        await server.close()

    run(loop, main())


def test_unix_names_of_other_kinds(loop: asyncio.AbstractEventLoop) -> None:
    """Abstract names come as bytes; who has no name comes as None."""

    async def main() -> None:
        name = f"\0mioloop-test-{os.getpid()}"
        server = await endpoint(local_addr=name, family=socket.AF_UNIX)
        for sender_name in (None, f"{name}-sender"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                if sender_name:
                    sender.bind(sender_name)
                sender.sendto(b"x", name)
        await until(lambda: len(server.received) == 2)
        assert server.received == [(b"x", None), (b"x", f"{name}-sender".encode())]
        assert server.name == name.encode()
        await server.close()

    run(loop, main())


def test_a_stale_unix_socket_is_replaced(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "stale"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as old:
            old.bind(str(path))
        assert path.is_socket()
        server = await endpoint(local_addr=str(path), family=socket.AF_UNIX)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"new", str(path))
        await until(lambda: server.received)
        await server.close()

    run(loop, main())


def test_a_name_is_resolved_for_each_datagram(loop: asyncio.AbstractEventLoop) -> None:
    """An endpoint without a peer takes the address as the socket module does: names too."""

    async def main() -> None:
        with udp_socket() as receiver:
            sender = await endpoint(family=socket.AF_INET)
            sender.transport.sendto(b"by name", ("localhost", receiver.getsockname()[1]))
            assert receiver.recv(100) == b"by name"
            await sender.close()

    run(loop, main())


def test_ipv6_addresses_in_full(loop: asyncio.AbstractEventLoop) -> None:
    needs_ipv6()

    async def main() -> None:
        receiver = await endpoint(local_addr=("::1", 0))
        sender = await endpoint(family=socket.AF_INET6)
        port = receiver.name[1]
        for address in [("::1", port), ("::1", port, 0), ("::1", port, 0, 0)]:
            sender.transport.sendto(b"x", address)
        await until(lambda: len(receiver.received) == 3)
        assert [len(address) for _, address in receiver.received] == [4, 4, 4]
        await sender.close()
        await receiver.close()

    run(loop, main())


def test_an_answer_has_the_kernels_address(loop: asyncio.AbstractEventLoop) -> None:
    """Not what the program calls the same address, however often it has been heard from and written to."""
    needs_ipv6()

    async def main() -> None:
        peers = [await endpoint(local_addr=("::1", 0)) for _ in range(2)]
        asks = await endpoint(family=socket.AF_INET6)
        order = [*peers, peers[1], peers[0], peers[0]]
        for count, peer in enumerate(order, 1):
            asks.transport.sendto(b"?", ("::1", peer.name[1]))
            await until(lambda peer=peer: bool(peer.received))
            _, sender = peer.received.pop()
            peer.transport.sendto(b"!", sender)
            await until(lambda count=count: len(asks.received) == count)
        assert [address for _, address in asks.received] == [peer.name for peer in order]
        for each in (asks, *peers):
            await each.close()

    run(loop, main())


# The arguments of create_datagram_endpoint.


def test_allow_broadcast(loop: asyncio.AbstractEventLoop) -> None:
    """The option is set, and the socket stays unconnected, as asyncio leaves it."""

    async def main() -> None:
        with udp_socket() as receiver:
            address = receiver.getsockname()
            sender = await endpoint(remote_addr=address, allow_broadcast=True)
            sock = sender.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
            assert sender.transport.get_extra_info("peername") is None
            sender.transport.sendto(b"no address")
            sender.transport.sendto(b"the address", address)
            assert receiver.recv(100) == b"no address"
            assert receiver.recv(100) == b"the address"
            with pytest.raises(ValueError, match="Invalid address: must be None or "):
                sender.transport.sendto(b"elsewhere", (LOCALHOST, 1))
            await sender.close()

    run(loop, main())


def test_reuse_port(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        one = await endpoint(local_addr=(LOCALHOST, 0), reuse_port=True)
        other = await endpoint(local_addr=one.name, reuse_port=True)
        assert one.name == other.name
        with pytest.raises(OSError) as caught:
            await endpoint(local_addr=one.name)
        assert caught.value.errno == errno.EADDRINUSE
        await one.close()
        await other.close()

    run(loop, main())


def test_local_and_remote_address(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with udp_socket() as peer:
            arguments: dict[str, Any] = {
                "family": socket.AF_INET,
                "proto": socket.IPPROTO_UDP,
                "flags": socket.AI_NUMERICHOST,
            }
            both = await endpoint(local_addr=(LOCALHOST, 0), remote_addr=peer.getsockname(), **arguments)
            both.transport.sendto(b"x")
            assert peer.recvfrom(10) == (b"x", both.name)
            await both.close()
        with pytest.raises(socket.gaierror):
            await endpoint(local_addr=("localhost", 0), flags=socket.AI_NUMERICHOST)

    run(loop, main())


def test_a_socket_of_ones_own(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        sock = udp_socket()
        own = await endpoint(sock=sock)
        assert sock.gettimeout() == 0
        assert own.name == sock.getsockname()
        own.transport.sendto(b"to myself", own.name)
        await until(lambda: own.received)
        assert own.received == [(b"to myself", own.name)]
        await own.close()
        assert sock.fileno() == -1

    run(loop, main())


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing": ({}, ValueError, "unexpected address family"),
    "host alone": ({"local_addr": LOCALHOST}, TypeError, "2-tuple is expected"),
    "two families": (
        {"local_addr": (LOCALHOST, 0), "remote_addr": ("::1", 1)},
        ValueError,
        "can not get address information",
    ),
    "unix tuple": ({"local_addr": ("x", 0), "family": socket.AF_UNIX}, TypeError, "string is expected"),
    "no such file": (
        {"remote_addr": "/no/such/file", "family": socket.AF_UNIX},
        FileNotFoundError,
        "No such file",
    ),
    "not ours": ({"local_addr": ("192.0.2.1", 0)}, OSError, "Cannot assign requested address"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(loop: asyncio.AbstractEventLoop, case: str) -> None:
    arguments, kind, message = WRONG[case]

    async def main() -> None:
        with pytest.raises(kind, match=re.escape(message)):
            await endpoint(**arguments)

    run(loop, main())


def test_a_socket_and_what_does_not_go_with_it(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with udp_socket() as sock, socket.socket() as stream:
            for name, value in {
                "local_addr": ("a", 1),
                "remote_addr": ("a", 1),
                "family": 1,
                "proto": 1,
                "flags": 1,
                "reuse_port": True,
                "allow_broadcast": True,
            }.items():
                with pytest.raises(
                    ValueError, match="socket modifier keyword arguments can not be used when sock is"
                ):
                    await endpoint(sock=sock, **{name: value})  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=r"A (UDP|datagram) [sS]ocket was expected, got "):
                await endpoint(sock=stream)

    run(loop, main())


def test_a_factory_that_raises(loop: asyncio.AbstractEventLoop) -> None:
    def factory() -> Recorder:
        raise LookupError("no protocol today")

    async def main() -> None:
        with udp_socket() as sock, pytest.raises(LookupError):
            await endpoint(factory, sock=sock)

    run(loop, main())


# What may be sent.


@pytest.mark.parametrize(
    "data",
    [b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview"), memoryview(b"a-b-c-")[::2]],
    ids=repr,
)
def test_bytes_like(loop: asyncio.AbstractEventLoop, data: Any) -> None:
    wanted = bytes(data)
    contiguous = not isinstance(data, memoryview) or data.contiguous

    async def main() -> None:
        with udp_socket() as receiver:
            sender = await endpoint(remote_addr=receiver.getsockname())
            sender.transport.sendto(data)
            assert receiver.recv(100) == wanted
            await sender.close()

    if (
        contiguous or "mioloop" in type(loop).__module__
    ):  # asyncio hands it to the socket module, which takes no such view
        run(loop, main())


def test_the_buffer_may_be_reused(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        left, right = unix_pair()
        sender = await endpoint(sock=left)
        data = bytearray(8)
        count = 0
        while sender.transport.get_write_buffer_size() < 100:
            data[:] = b"%08d" % count
            sender.transport.sendto(data)
            count += 1
        data[:] = b"********"
        received: list[bytes] = []
        while len(received) < count:
            received += drain(right)
            await asyncio.sleep(0)
        assert received == [b"%08d" % number for number in range(count)]
        await sender.close()
        right.close()

    run(loop, main())


@pytest.mark.parametrize("data", ["text", 1, None, [b"list"]], ids=repr)
def test_not_bytes_like(loop: asyncio.AbstractEventLoop, data: Any) -> None:
    async def main() -> None:
        sender = await endpoint(local_addr=(LOCALHOST, 0))
        message = f"data argument must be a bytes-like object, not {type(data).__name__!r}"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            sender.transport.sendto(data, sender.name)
        await settle()
        await sender.close()

    run(loop, main())


@pytest.mark.mioloop_only(sys.version_info < (3, 13), reason="asyncio did not send empty datagrams")
def test_empty_datagrams(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        server = await endpoint(Echo, local_addr=(LOCALHOST, 0))
        client = await endpoint(remote_addr=server.name)
        for data in [b"", b"between", b"", memoryview(b"")]:
            client.transport.sendto(data)
        await until(lambda: len(client.received) == 4)
        assert client.data == [b"", b"BETWEEN", b"", b""]
        await client.close()
        await server.close()

    run(loop, main())


def test_sizes(loop: asyncio.AbstractEventLoop) -> None:
    """A datagram arrives whole or not at all; one that is too large is the network's error."""

    async def main() -> None:
        server = await endpoint(local_addr=(LOCALHOST, 0))
        client = await endpoint(remote_addr=server.name)
        for size in (1, 1500, 65507):
            client.transport.sendto(b"x" * size)
            await until(lambda: server.received)
            assert server.data == [b"x" * size]
            server.received.clear()
        client.transport.sendto(b"x" * 65508)
        [error] = client.errors
        assert isinstance(error, OSError)
        assert error.errno == errno.EMSGSIZE
        client.transport.sendto(b"smaller")
        await until(lambda: server.received)
        await client.close()
        await server.close()

    run(loop, main())


def test_the_peer_is_settled(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with udp_socket() as peer, udp_socket() as other:
            sender = await endpoint(remote_addr=peer.getsockname())
            sender.transport.sendto(b"x", peer.getsockname())
            assert peer.recv(10) == b"x"
            message = f"Invalid address: must be None or {peer.getsockname()}"
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                sender.transport.sendto(b"x", other.getsockname())
            await sender.close()

    run(loop, main())


# Addresses that can't be sent to: the network's errors, and the program's.


@pytest.mark.parametrize(
    "address", [("no-such-host.invalid", 1), ("::1", 1), ("255.255.255.255", 1)], ids=repr
)
def test_an_address_that_leads_nowhere(loop: asyncio.AbstractEventLoop, address: Any) -> None:
    async def main() -> None:
        sender = await endpoint(local_addr=(LOCALHOST, 0))
        sender.transport.sendto(b"x", address)
        [error] = sender.errors
        assert isinstance(error, OSError)
        sender.transport.sendto(b"x", sender.name)
        await until(lambda: sender.received)
        await sender.close()

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio takes it for a wrong type of data")
def test_no_address_at_all(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        sender = await endpoint(local_addr=(LOCALHOST, 0))
        sender.transport.sendto(b"x")
        [error] = sender.errors
        assert isinstance(error, OSError)
        assert error.errno == errno.EDESTADDRREQ
        await sender.close()

    run(loop, main())


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ((LOCALHOST,), TypeError),
        ((LOCALHOST, "1"), TypeError),
        ([LOCALHOST, 1], TypeError),
        ("/a/path", TypeError),
        ((LOCALHOST, 65536), OverflowError),
        ((LOCALHOST, -1), OverflowError),
    ],
    ids=repr,
)
def test_an_address_that_is_none(
    loop: asyncio.AbstractEventLoop, caught: Caught, address: Any, kind: type[Exception]
) -> None:
    """The program's mistake ends the endpoint, with a report."""

    async def main() -> None:
        sender = await endpoint(local_addr=(LOCALHOST, 0))
        sender.transport.sendto(b"x", address)
        await until(lambda: sender.lost)
        assert [type(error) for error in sender.lost] == [kind]
        context = caught.take()
        assert context["message"] == "Fatal write error on datagram transport"
        assert context["transport"] is sender.transport
        assert context["protocol"] is sender
        assert context["exception"] is sender.lost[0]
        assert sender.errors == []

    run(loop, main())


def test_nobody_listens(loop: asyncio.AbstractEventLoop) -> None:
    """The peer's machine says so (ICMP), a connected socket hears it, and nothing ends."""

    async def main() -> None:
        with udp_socket() as sock:
            address = sock.getsockname()
        client = await endpoint(remote_addr=address)
        client.transport.sendto(b"anybody?")
        await until(lambda: client.errors)
        assert [type(error) for error in client.errors] == [ConnectionRefusedError]
        with udp_socket(address) as sock:
            client.transport.sendto(b"anybody now?")
            data, sender = sock.recvfrom(100)
            assert (data, sender) == (b"anybody now?", client.name)
            sock.sendto(b"yes", sender)
            await until(lambda: client.received)
        assert client.received == [(b"yes", address)]
        await client.close()

    run(loop, main())


def test_an_error_between_datagrams(loop: asyncio.AbstractEventLoop) -> None:
    """What was received before and after a refusal is delivered."""

    async def main() -> None:
        with udp_socket() as sock:
            address = sock.getsockname()
            client = await endpoint(remote_addr=address)
            sock.sendto(b"before", client.name)
        client.transport.sendto(b"refused")
        await until(lambda: client.errors and client.received)
        with udp_socket(address) as sock:
            sock.sendto(b"after", client.name)
            await until(lambda: len(client.received) == 2)
        assert client.data == [b"before", b"after"]
        await client.close()

    run(loop, main())


def test_an_error_is_told_in_the_endpoints_context(loop: asyncio.AbstractEventLoop) -> None:
    seen: list[str] = []

    class Colourful(Recorder):
        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            seen.append(COLOUR.get())
            COLOUR.set("red")

    async def main() -> None:
        with udp_socket() as sock:
            address = sock.getsockname()
        COLOUR.set("green")
        client = await endpoint(Colourful, remote_addr=address)
        client.transport.sendto(b"refused")
        await until(lambda: client.errors)
        await client.close()

    run(loop, main())
    assert seen == ["green"]
    assert COLOUR.get() == "none"


# Protocols that fail.


def test_what_error_received_raises_is_the_senders(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Failing(Recorder):
        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            raise LookupError("told by the sender's call")

    async def main() -> None:
        sender = await endpoint(Failing, local_addr=(LOCALHOST, 0))
        with pytest.raises(LookupError):
            sender.transport.sendto(bytes(100_000), sender.name)
        [error] = sender.errors
        assert isinstance(error, OSError)
        assert error.errno == errno.EMSGSIZE
        assert not caught
        await sender.close()

    run(loop, main())


@pytest.mark.parametrize("method", ["datagram_received", "error_received"])
def test_a_callback_that_raises_ends_nothing(
    loop: asyncio.AbstractEventLoop, caught: Caught, method: str
) -> None:
    class Failing(Recorder):
        failed = 0

        def fail(self) -> None:
            self.failed += 1
            raise LookupError(f"failure {self.failed}")

        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if method == "datagram_received" and data != b"last":
                self.fail()

        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            if method == "error_received":
                self.fail()

    async def main() -> None:
        with udp_socket() as sock:
            address = sock.getsockname()
        client = await endpoint(Failing, remote_addr=address)
        assert isinstance(client, Failing)
        if method == "error_received":
            client.transport.sendto(b"refused")
            await until(lambda: client.errors)
        with udp_socket(address) as sock:
            for data in [b"1", b"2", b"last"]:
                sock.sendto(data, client.name)
            await until(lambda: b"last" in client.data)
        assert client.data == [b"1", b"2", b"last"]
        await client.close()
        assert [str(context["exception"]) for context in caught] == [
            f"failure {number}" for number in range(1, client.failed + 1)
        ]
        assert client.failed == (2 if method == "datagram_received" else 1)
        caught.clear()

    run(loop, main())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_these_leave_the_loop(loop: asyncio.AbstractEventLoop, kind: type[BaseException]) -> None:
    class Leaving(Recorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"leave":
                raise kind

    server = run(loop, endpoint(Leaving, local_addr=(LOCALHOST, 0)))
    with udp_socket() as sock:
        sock.sendto(b"leave", server.name)
        with pytest.raises(kind):
            loop.run_forever()
        sock.sendto(b"stay", server.name)

        async def main() -> None:
            await until(lambda: len(server.received) == 2)
            await server.close()

        run(loop, main())
    assert server.data == [b"leave", b"stay"]


# Many at once.


def test_many_datagrams_in_one_wake_up(loop: asyncio.AbstractEventLoop) -> None:
    """More than a batch wait in the socket before the loop looks at it; an edge tells of them only once."""
    count = 200

    async def main() -> None:
        server = await endpoint(local_addr=(LOCALHOST, 0))
        with udp_socket() as sock:
            for _ in range(3):
                for number in range(count):
                    sock.sendto(b"%d" % number, server.name)
                await until(lambda: len(server.received) == count)
                assert server.data == [b"%d" % number for number in range(count)]
                server.received.clear()
        await server.close()

    run(loop, main())


def test_a_flood_starves_nobody(loop: asyncio.AbstractEventLoop) -> None:
    """The socket never runs dry, because each datagram sends another; all the others get on."""
    limit = 100_000

    class Flooded(Recorder):
        count = 0

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.count += 1
            if not quiet and self.count < limit:
                self.transport.sendto(data, self.name)

    quiet: list[str] = []

    async def main() -> None:
        flooded = await endpoint(Flooded, local_addr=(LOCALHOST, 0))
        other = await endpoint(local_addr=(LOCALHOST, 0))
        assert isinstance(flooded, Flooded)
        for _ in range(10):
            flooded.transport.sendto(b"flood", flooded.name)
        await until(lambda: flooded.count > 1000)
        turns: list[int] = []
        for _ in range(20):
            await asyncio.sleep(0)
            turns.append(flooded.count)
        with udp_socket() as sock:
            sock.sendto(b"me too", other.name)
        await until(lambda: other.received)
        assert flooded.count < limit, "the flood went on alone"
        assert max(later - sooner for sooner, later in itertools.pairwise(turns)) < 1000
        quiet.append("enough")
        await flooded.close()
        await other.close()

    run(loop, main())


# Backpressure.


@needs_exact_sizes
def test_backpressure(loop: asyncio.AbstractEventLoop) -> None:
    """A receiver that does not read fills the socket, then our buffer, then pauses the protocol; and back."""

    async def main() -> None:
        left, right = unix_pair()
        sender = await endpoint(sock=left)
        sender.transport.set_write_buffer_limits(high=10_000, low=2_000)
        assert sender.transport.get_write_buffer_size() == 0
        sent: list[bytes] = []
        for _turn in range(3):
            while not sender.flow:
                sent.append(b"%04d" % len(sent) * 100)
                sender.transport.sendto(sent[-1])
            assert sender.flow == ["pause"]
            assert 10_000 < sender.transport.get_write_buffer_size() < 11_000
            await settle()
            assert sender.flow == ["pause"]
            received: list[bytes] = []
            while len(received) < len(sent):
                received += drain(right)
                await asyncio.sleep(0)
                if sender.transport.get_write_buffer_size() > 2_500:
                    assert sender.flow == ["pause"]
            await until(lambda: sender.flow == ["pause", "resume"])
            assert received == sent
            sent.clear()
            sender.flow.clear()
        await sender.close()
        right.close()

    run(loop, main())


def test_another_fills_the_receiver(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    """An unconnected socket is writable for the poller, full as its receiver may be: there is no edge to
    wait for when others' datagrams are in the way."""

    async def main() -> None:
        path = str(tmp_path / "receiver")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(path)
            receiver.setblocking(False)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.setblocking(False)
                with pytest.raises(BlockingIOError):
                    while True:
                        other.sendto(b"other", path)
                sender = await endpoint(family=socket.AF_UNIX)
                sender.transport.sendto(b"ours", path)
                assert sender.transport.get_write_buffer_size() > 0
                await settle()
                received = drain(receiver)
                while b"ours" not in received:
                    received += drain(receiver)
                    await asyncio.sleep(0.001)
            await sender.close()

    run(loop, main())


@pytest.mark.mioloop_only(sys.version_info < (3, 14), reason="asyncio did not count the datagrams themselves")
def test_empty_datagrams_count_as_well(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        left, right = unix_pair()
        sender = await endpoint(sock=left)
        sender.transport.set_write_buffer_limits(high=80)
        for _ in range(2000):
            if sender.flow:
                break
            sender.transport.sendto(b"")
        assert sender.flow == ["pause"]
        while sender.flow == ["pause"]:
            drain(right)
            await asyncio.sleep(0)
        assert sender.flow == ["pause", "resume"]
        await sender.close()
        right.close()

    run(loop, main())


@needs_exact_sizes
def test_resume_writing_writes_more(loop: asyncio.AbstractEventLoop) -> None:
    class Generous(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            if len(self.flow) < 20:
                while self.flow[-1] == "resume":
                    self.send()

        count = 0

        def send(self) -> None:
            self.transport.sendto(b"%d" % self.count)
            self.count += 1

    async def main() -> None:
        left, right = unix_pair()
        sender = await endpoint(Generous, sock=left)
        assert isinstance(sender, Generous)
        sender.transport.set_write_buffer_limits(high=200, low=50)
        while not sender.flow:
            sender.send()
        received: list[bytes] = []
        while len(sender.flow) < 20 or len(received) < sender.count:
            received += drain(right)
            await asyncio.sleep(0)
        assert received == [b"%d" % number for number in range(sender.count)]
        assert sender.flow == ["pause", "resume"] * 10
        await sender.close()
        right.close()

    run(loop, main())


# The end.


def test_close_sends_what_is_buffered(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        left, right = unix_pair()
        sender = await endpoint(sock=left)
        count = 0
        while sender.transport.get_write_buffer_size() < 1000:
            sender.transport.sendto(b"%d" % count)
            count += 1
        sender.transport.close()
        sender.transport.close()
        assert sender.transport.is_closing()
        await settle()
        assert sender.lost == []
        received: list[bytes] = []
        while not sender.lost:
            received += drain(right)
            await asyncio.sleep(0)
        received += drain(right)
        assert received == [b"%d" % number for number in range(count)]
        assert sender.lost == [None]
        assert left.fileno() == -1
        right.close()

    run(loop, main())


def test_abort_drops_what_is_buffered(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        left, right = unix_pair()
        sender = await endpoint(sock=left)
        while sender.transport.get_write_buffer_size() < 1000:
            sender.transport.sendto(b"x")
        sender.transport.abort()
        sender.transport.abort()
        assert sender.transport.is_closing()
        assert sender.lost == []
        await until(lambda: sender.lost)
        await settle()
        assert sender.lost == [None]
        assert left.fileno() == -1
        right.close()

    run(loop, main())


def test_closed_it_receives_no_more(loop: asyncio.AbstractEventLoop) -> None:
    class OneIsEnough(Recorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.close()

    async def main() -> None:
        server = await endpoint(OneIsEnough, local_addr=(LOCALHOST, 0))
        with udp_socket() as sock:
            for _ in range(10):
                sock.sendto(b"x", server.name)
        await until(lambda: server.lost)
        assert server.data == [b"x"]
        assert server.lost == [None]

    run(loop, main())


def test_too_late_to_send_to_a_peer(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with udp_socket() as peer:
            sender = await endpoint(remote_addr=peer.getsockname())
            await sender.close()
            for _ in range(10):
                sender.transport.sendto(b"too late")
            peer.setblocking(False)
            assert drain(peer) == []
        assert "socket.send() raised exception." in caplog.messages

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio raises an AttributeError, as it has no socket any more")
def test_too_late_to_send_anywhere(loop: asyncio.AbstractEventLoop) -> None:
    """The descriptor's number may belong to another socket by then: nothing may leave through that one."""

    async def main() -> None:
        sender = await endpoint(local_addr=(LOCALHOST, 0))
        number = sender.transport.get_extra_info("socket").fileno()
        await sender.close()
        with udp_socket() as receiver, udp_socket() as one, udp_socket() as other:
            assert number in (receiver.fileno(), one.fileno(), other.fileno())
            sender.transport.sendto(b"too late", receiver.getsockname())
            await settle()
            receiver.setblocking(False)
            assert drain(receiver) == []

    run(loop, main())


def test_a_descriptor_for_each_endpoint(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            one = await endpoint(local_addr=(LOCALHOST, 0))
            await one.close()
        assert len(os.listdir("/proc/self/fd")) == before

    run(loop, main())


def test_never_closed(loop: asyncio.AbstractEventLoop) -> None:
    """A program that forgets an endpoint is told of it when the loop goes."""
    server = run(loop, endpoint(local_addr=(LOCALHOST, 0)))
    loop.close()
    with pytest.warns(ResourceWarning, match="unclosed"):
        server.__dict__.clear()
        del server
        import gc

        gc.collect()


# The rest of the transport.


@pytest.mark.mioloop_only(sys.version_info < (3, 12), reason="asyncio's was only a Transport")
def test_its_class(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        server = await endpoint(local_addr=(LOCALHOST, 0))
        assert isinstance(server.transport, asyncio.DatagramTransport)
        await server.close()

    run(loop, main())


def test_extra_info(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with udp_socket() as peer:
            both = await endpoint(remote_addr=peer.getsockname())
            sock = both.transport.get_extra_info("socket")
            assert isinstance(sock, asyncio.trsock.TransportSocket)  # type: ignore[attr-defined]
            assert both.transport.get_extra_info("sockname") == sock.getsockname()
            assert both.transport.get_extra_info("peername") == peer.getsockname()
            assert both.transport.get_extra_info("sslcontext") is None
            assert both.transport.get_extra_info("nothing", "default") == "default"
            assert both.transport.get_protocol() is both
            await both.close()
            assert both.transport.get_extra_info("peername") == peer.getsockname()

    run(loop, main())


def test_repr(loop: asyncio.AbstractEventLoop) -> None:
    def words(transport: asyncio.BaseTransport) -> str:
        return re.sub(r"^<\w+|fd=\d+", "", repr(transport)).strip("> ")

    async def main() -> None:
        left, right = unix_pair()
        sender = await endpoint(sock=left)
        assert f"fd={left.fileno()}" in repr(sender.transport)
        await settle(1)
        assert words(sender.transport) == "read=polling write=<idle, bufsize=0"
        while sender.transport.get_write_buffer_size() < 100:
            sender.transport.sendto(b"x")
        size = sender.transport.get_write_buffer_size()
        assert words(sender.transport) == f"read=polling write=<polling, bufsize={size}"
        sender.transport.close()
        assert words(sender.transport) == f"closing  read=idle write=<polling, bufsize={size}"
        sender.transport.abort()
        await until(lambda: sender.lost)
        assert words(sender.transport).startswith("closed")
        right.close()

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio has no such methods on datagram transports, or undocumented ones")
def test_pause_and_resume_reading(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        server = await endpoint(local_addr=(LOCALHOST, 0))
        transport: Any = server.transport
        assert transport.is_reading()
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        with udp_socket() as sock:
            for number in range(100):
                sock.sendto(b"%d" % number, server.name)
            await settle()
            assert server.received == []
            transport.resume_reading()
            transport.resume_reading()
            await until(lambda: len(server.received) == 100)
            assert server.data == [b"%d" % number for number in range(100)]
        transport.pause_reading()
        await server.close()
        transport.resume_reading()
        assert not transport.is_reading()

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio has no pause_reading on datagram transports")
def test_pausing_within_a_batch(loop: asyncio.AbstractEventLoop) -> None:
    class Pausing(Recorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            transport: Any = self.transport
            transport.pause_reading()

    async def main() -> None:
        server = await endpoint(Pausing, local_addr=(LOCALHOST, 0))
        transport: Any = server.transport
        with udp_socket() as sock:
            for number in range(5):
                sock.sendto(b"%d" % number, server.name)
        for count in range(1, 6):
            await until(lambda count=count: len(server.received) == count)
            await settle()
            assert len(server.received) == count
            transport.resume_reading()
        await server.close()

    run(loop, main())


def test_set_protocol(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        first = await endpoint(local_addr=(LOCALHOST, 0))
        second = Recorder()
        first.transport.set_protocol(second)
        assert first.transport.get_protocol() is second
        first.transport.sendto(b"x", first.name)
        await until(lambda: second.received)
        first.transport.close()
        await until(lambda: second.lost)
        assert (first.received, first.lost) == ([], [])

    run(loop, main())


def test_the_context_of_callbacks(loop: asyncio.AbstractEventLoop) -> None:
    """They run in the context in which the endpoint was made."""
    seen: list[str] = []

    class Seeing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            seen.append(COLOUR.get())

        def datagram_received(self, data: bytes, addr: Any) -> None:
            seen.append(COLOUR.get())

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            seen.append(COLOUR.get())

    async def main() -> None:
        COLOUR.set("green")
        server = await endpoint(Seeing, local_addr=(LOCALHOST, 0))
        with udp_socket() as sock:
            sock.sendto(b"x", server.name)
            await until(lambda: len(seen) == 2)
        await server.close()

    run(loop, main())
    assert seen == ["green"] * 3


def test_nothing_is_left_to_warn_of(loop: asyncio.AbstractEventLoop) -> None:
    """`close` from within every callback."""

    def closing_in(method: str) -> Callable[[], Recorder]:
        class Closing(Recorder):
            pass

        def close(self: Recorder, *args: Any) -> None:
            getattr(Recorder, method)(self, *args)
            self.transport.close()

        setattr(Closing, method, close)
        return Closing

    async def main() -> None:
        for method in ("connection_made", "datagram_received", "error_received", "connection_lost"):
            with udp_socket() as sock:
                address = sock.getsockname()
            protocol = await endpoint(closing_in(method), remote_addr=address)
            if method == "datagram_received":
                with udp_socket(address) as sock:
                    sock.sendto(b"x", protocol.name)
                    await until(lambda: protocol.lost)  # noqa: B023
            elif method == "error_received":
                protocol.transport.sendto(b"refused")
            elif method == "connection_lost":
                protocol.transport.close()
            await until(lambda: protocol.lost)  # noqa: B023
            await settle(2)
            assert protocol.lost == [None]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(loop, main())


def test_many_endpoints(loop: asyncio.AbstractEventLoop) -> None:
    """Each hears its own datagrams, whoever else is busy."""

    async def talk(server: Recorder, name: int) -> None:
        client = await endpoint(remote_addr=server.name)
        for number in range(20):
            client.transport.sendto(b"%d-%d" % (name, number))
            await until(lambda number=number: len(client.received) == number + 1)
        assert client.data == [b"%d-%d" % (name, number) for number in range(20)]
        await client.close()

    async def main() -> None:
        server = await endpoint(Echo, local_addr=(LOCALHOST, 0))
        talks: list[Coroutine[Any, Any, None]] = [talk(server, name) for name in range(20)]
        await asyncio.gather(*talks)
        assert len(server.received) == 400
        await server.close()

    run(loop, main())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_each_of_many_peers_is_answered(loop: asyncio.AbstractEventLoop, family: int) -> None:
    """More of them than addresses are remembered, in turns; each with the address that is its own."""
    host = LOCALHOST if family == socket.AF_INET else "::1"

    class Echo(Recorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            # By the object itself and by an equal one.
            self.transport.sendto(data, addr if data[0] % 2 else (*addr[:2],))

    async def main() -> None:
        transport, protocol = await loop.create_datagram_endpoint(Echo, local_addr=(host, 0))
        server = transport.get_extra_info("sockname")
        clients = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(200)]
        for client in clients:
            client.setblocking(False)
            client.bind((host, 0))
        for turn in range(3):
            for number, client in enumerate(clients):
                message = bytes([number, turn])
                client.sendto(message, server)
                data, address = await loop.sock_recvfrom(client, 10)
                assert (data, address) == (message, server)
                assert protocol.received.pop() == (message, client.getsockname())
        for client in clients:
            client.close()
        transport.close()
        await until(lambda: protocol.lost)

    run(loop, main())
