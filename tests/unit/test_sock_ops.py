"""loop.sock_*: the coroutines that work on a plain non-blocking socket."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from .support import fill, run, socketpair, tcp_pair

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Any:
    left, right = socketpair() if request.param == "unix" else tcp_pair()
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def udp() -> Any:
    sockets = []
    for _ in range(2):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        sockets.append(sock)
    yield tuple(sockets)
    for sock in sockets:
        sock.close()


@asynccontextmanager
async def later(operation: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Starts the operation, lets it wait for the poller, and awaits it at the end of the block."""
    task = asyncio.ensure_future(operation)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    yield task
    await task


# recv


def test_recv_what_is_there(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    pair[1].send(b"there")
    assert run(loop, loop.sock_recv(pair[0], 100)) == b"there"


def test_recv_what_comes_later(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    async def main() -> None:
        async with later(loop.sock_recv(pair[0], 100)) as task:
            pair[1].send(b"later")
        assert task.result() == b"later"

    run(loop, main())


def test_recv_takes_no_more_than_asked(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    async def main() -> None:
        pair[1].send(b"abcdef")
        assert await loop.sock_recv(pair[0], 2) == b"ab"
        assert await loop.sock_recv(pair[0], 1) == b"c"
        assert await loop.sock_recv(pair[0], 100) == b"def"

    run(loop, main())


def test_recv_of_a_closed_connection(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    async def main() -> None:
        async with later(loop.sock_recv(pair[0], 100)) as task:
            pair[1].close()
        assert task.result() == b""
        assert await loop.sock_recv(pair[0], 100) == b""

    run(loop, main())


@pytest.mark.parametrize(
    "make", [bytearray, lambda size: memoryview(bytearray(size)), lambda size: array.array("B", bytes(size))]
)
def test_recv_into(loop: asyncio.AbstractEventLoop, pair: Pair, make: Callable[[int], Any]) -> None:
    async def main() -> None:
        buffer = make(8)
        pair[1].send(b"now")
        assert await loop.sock_recv_into(pair[0], buffer) == 3
        assert bytes(buffer)[:3] == b"now"
        async with later(loop.sock_recv_into(pair[0], buffer)) as task:
            pair[1].send(b"later, and more than fits")
        assert task.result() == 8
        assert bytes(buffer) == b"later, a"

    run(loop, main())


def test_recv_into_a_read_only_buffer(loop: Any, pair: Pair) -> None:
    pair[1].send(b"x")
    with pytest.raises(TypeError, match="read-write bytes-like object"):
        run(loop, loop.sock_recv_into(pair[0], b"read-only"))
    assert pair[0].recv(10) == b"x"


def test_recv_of_a_negative_size(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    with pytest.raises(ValueError, match="^negative buffersize in recv$"):
        run(loop, loop.sock_recv(pair[0], -1))


# sendall


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"])
def test_sendall(loop: asyncio.AbstractEventLoop, pair: Pair, make: Callable[[bytes], Any]) -> None:
    run(loop, loop.sock_sendall(pair[0], make(b"all of it")))
    assert pair[1].recv(100) == b"all of it"


@pytest.mark.mioloop_only(reason="asyncio takes the number of items for the number of bytes")
def test_sendall_of_wide_items(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    async def main() -> None:
        numbers = array.array("I", range(500_000))
        received = bytearray()
        sending = asyncio.ensure_future(loop.sock_sendall(pair[0], memoryview(numbers)))
        while len(received) < len(numbers) * 4:
            received += await loop.sock_recv(pair[1], 1 << 20)
        await sending
        assert received == numbers.tobytes()

    run(loop, main())


@pytest.mark.parametrize("size", [0, 1, 65_536, 1_000_000])
def test_sendall_through_small_buffers(loop: asyncio.AbstractEventLoop, pair: Pair, size: int) -> None:
    async def main() -> None:
        pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        data = os.urandom(size)
        received = bytearray()
        sending = asyncio.ensure_future(loop.sock_sendall(pair[0], data))
        while len(received) < size:
            received += await loop.sock_recv(pair[1], 65_536)
        await sending
        assert received == data

    run(loop, main())


def test_sendall_to_nobody(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    async def main() -> None:
        fill(pair[0])
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            async with later(loop.sock_sendall(pair[0], b"x" * 1000)):
                pair[1].close()

    run(loop, main())


def test_sendall_of_text(loop: Any, pair: Pair) -> None:
    with pytest.raises(TypeError, match="^a bytes-like object is required, not 'str'$"):
        run(loop, loop.sock_sendall(pair[0], "text"))


def test_both_ways_at_once(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    """A socket may be received from and sent to at the same time."""
    size = 2_000_000

    async def receive(sock: socket.socket) -> int:
        total = 0
        while total < size:
            total += len(await loop.sock_recv(sock, 65_536))
        return total

    async def main() -> None:
        results = await asyncio.gather(
            receive(pair[0]),
            receive(pair[1]),
            loop.sock_sendall(pair[0], b"x" * size),
            loop.sock_sendall(pair[1], b"y" * size),
        )
        assert list(results) == [size, size, None, None]

    run(loop, main())


# datagrams


def test_sendto_and_recvfrom(loop: asyncio.AbstractEventLoop, udp: Pair) -> None:
    one, other = udp

    async def main() -> None:
        assert await loop.sock_sendto(one, b"now", other.getsockname()) == 3
        assert await loop.sock_recvfrom(other, 100) == (b"now", one.getsockname())
        async with later(loop.sock_recvfrom(other, 100)) as task:
            await loop.sock_sendto(one, b"later", other.getsockname())
        assert task.result() == (b"later", one.getsockname())

    run(loop, main())


def test_recvfrom_into(loop: asyncio.AbstractEventLoop, udp: Pair) -> None:
    one, other = udp

    async def main() -> None:
        buffer = bytearray(8)
        one.sendto(b"now", other.getsockname())
        assert await loop.sock_recvfrom_into(other, buffer) == (3, one.getsockname())
        async with later(loop.sock_recvfrom_into(other, buffer, 2)) as task:
            one.sendto(b"later", other.getsockname())
        assert task.result() == (2, one.getsockname())
        assert buffer == b"law\0\0\0\0\0"

    run(loop, main())


def test_an_empty_datagram(loop: asyncio.AbstractEventLoop, udp: Pair) -> None:
    one, other = udp

    async def main() -> None:
        async with later(loop.sock_recvfrom(other, 100)) as task:
            assert await loop.sock_sendto(one, b"", other.getsockname()) == 0
        assert task.result() == (b"", one.getsockname())

    run(loop, main())


def test_sendto_too_much(loop: asyncio.AbstractEventLoop, udp: Pair) -> None:
    with pytest.raises(OSError) as raised:
        run(loop, loop.sock_sendto(udp[0], b"x" * 100_000, udp[1].getsockname()))
    assert raised.value.errno == errno.EMSGSIZE


def test_a_connected_datagram_socket(loop: asyncio.AbstractEventLoop, udp: Pair) -> None:
    one, other = udp

    async def main() -> None:
        await loop.sock_connect(one, other.getsockname())
        await loop.sock_sendall(one, b"connected")
        assert await loop.sock_recv(other, 100) == b"connected"

    run(loop, main())


# connect and accept


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_connect_and_accept(loop: asyncio.AbstractEventLoop, host: str) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            listener.setblocking(False)
            client.setblocking(False)
            async with later(loop.sock_accept(listener)) as accepting:
                await loop.sock_connect(client, (host, listener.getsockname()[1]))
            server, address = accepting.result()
            with server:
                assert address == client.getsockname()
                assert server.gettimeout() == 0
                await loop.sock_sendall(client, b"hello")
                assert await loop.sock_recv(server, 100) == b"hello"

    run(loop, main())


def test_accept_what_is_there(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            with socket.create_connection(listener.getsockname()) as client:
                server, address = await loop.sock_accept(listener)
                server.close()
                assert address == client.getsockname()
                assert server.family == socket.AF_INET

    run(loop, main())


@pytest.mark.skipif(not socket.has_ipv6, reason="Python was built without IPv6")
def test_connect_by_ipv6(loop: asyncio.AbstractEventLoop) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("the machine has no IPv6 loopback")

    async def main() -> None:
        with listener, socket.socket(socket.AF_INET6) as client:
            listener.setblocking(False)
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname()[:2])
            server, address = await loop.sock_accept(listener)
            server.close()
            assert address == client.getsockname()

    run(loop, main())


def test_connect_by_unix_socket(loop: asyncio.AbstractEventLoop) -> None:
    async def main(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.setblocking(False)
            client.setblocking(False)
            listener.bind(path)
            listener.listen()
            await loop.sock_connect(client, path)
            server, address = await loop.sock_accept(listener)
            server.close()
            assert address == ""

    with tempfile.TemporaryDirectory() as folder:
        run(loop, main(os.path.join(folder, "socket")))


def test_connect_to_nobody(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with socket.socket() as reserved, socket.socket() as client:
            reserved.bind(("127.0.0.1", 0))
            client.setblocking(False)
            address = reserved.getsockname()
            with pytest.raises(ConnectionRefusedError) as raised:
                await loop.sock_connect(client, address)
            assert raised.value.errno == errno.ECONNREFUSED
            assert raised.value.strerror == f"Connect call failed {address}"
            assert loop.remove_writer(client) is False

    run(loop, main())


def test_connect_to_a_missing_unix_socket(loop: asyncio.AbstractEventLoop) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        with pytest.raises(FileNotFoundError):
            run(loop, loop.sock_connect(client, "/no/such/socket"))


def test_connect_to_an_address_of_the_wrong_shape(loop: Any) -> None:
    with socket.socket() as client:
        client.setblocking(False)
        for wrong in (5, None):
            with pytest.raises(TypeError):
                run(loop, loop.sock_connect(client, wrong))


def test_accept_by_a_socket_that_does_not_listen(loop: asyncio.AbstractEventLoop) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(OSError) as raised:
            run(loop, loop.sock_accept(sock))
        assert raised.value.errno == errno.EINVAL


# Wrong sockets

OPERATIONS: dict[str, Callable[[Any, Any], Coroutine[Any, Any, Any]]] = {
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 1),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(1)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 1),
    "sock_recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(1)),
    "sock_sendall": lambda loop, sock: loop.sock_sendall(sock, b"x"),
    "sock_sendto": lambda loop, sock: loop.sock_sendto(sock, b"x", ("127.0.0.1", 1)),
    "sock_connect": lambda loop, sock: loop.sock_connect(sock, ("127.0.0.1", 1)),
    "sock_accept": lambda loop, sock: loop.sock_accept(sock),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_debug_mode_refuses_a_blocking_socket(loop: asyncio.AbstractEventLoop, operation: str) -> None:
    loop.set_debug(True)
    with socket.socket() as sock:
        for timeout in (None, 5):
            sock.settimeout(timeout)
            with pytest.raises(ValueError, match="^the socket must be non-blocking$"):
                run(loop, OPERATIONS[operation](loop, sock))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_tls_socket_is_refused(loop: asyncio.AbstractEventLoop, operation: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with socket.socket() as plain, context.wrap_socket(plain, server_hostname="any") as sock:
        with pytest.raises(TypeError, match="^Socket cannot be of type SSLSocket$"):
            run(loop, OPERATIONS[operation](loop, sock))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_closed_socket(loop: asyncio.AbstractEventLoop, operation: str) -> None:
    sock = socket.socket()
    sock.setblocking(False)
    sock.close()
    with pytest.raises(OSError) as raised:
        run(loop, OPERATIONS[operation](loop, sock))
    assert raised.value.errno == errno.EBADF


@pytest.mark.parametrize("operation", ["sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into"])
def test_a_transports_socket_is_the_transports(
    loop: asyncio.AbstractEventLoop, pair: Pair, operation: str
) -> None:
    async def main() -> None:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=pair[0])
        with pytest.raises(RuntimeError, match=r"^File descriptor \d+ is used by transport <.*>$"):
            await OPERATIONS[operation](loop, pair[0])
        transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(loop, main())


@pytest.mark.parametrize("state", ["quiet", "not connected", "closed"])
def test_receiving_nothing_asks_nobody(loop: asyncio.AbstractEventLoop, state: str) -> None:
    async def main() -> None:
        left, right = socketpair()
        if state == "not connected":
            left.close()
            left = socket.socket()
            left.setblocking(False)
        elif state == "closed":
            left.close()
        assert await asyncio.wait_for(loop.sock_recv(left, 0), 10) == b""
        left.close()
        right.close()

    run(loop, main())


def test_an_operation_that_nobody_awaits_says_so(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()
    for forget in (
        lambda: loop.sock_recv(left, 1),
        lambda: loop.sock_sendall(left, b"x"),
        lambda: loop.sock_accept(left),
    ):
        with pytest.warns(RuntimeWarning, match=r"coroutine '.*sock_\w+' was never awaited"):
            forget()
    left.close()
    right.close()


def test_an_operation_that_is_closed_says_nothing(
    loop: asyncio.AbstractEventLoop, recwarn: pytest.WarningsRecorder
) -> None:
    left, right = socketpair()
    loop.sock_recv(left, 1).close()
    assert not recwarn.list
    left.close()
    right.close()
