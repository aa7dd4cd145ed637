"""A thousand rounds of anything leave the process as it was: its objects, its blocks of memory, its
descriptors and its resident memory.

The idea: a round does one kind of work from its beginning to its end, and waits until the loop is done with
it. The first rounds fill caches and free lists; what the others add is a leak. A leak of one object in each
round is far above the bounds, which only allow for a cache that grows once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
import trustme

import mioloop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

SAFETY = 100  # seconds; ends a test that would otherwise hang
HOST = "127.0.0.1"
WARM_UP = 100  # rounds
ROUNDS = 1000
ROUNDS_OF_PROCESSES = 100

# What caches may still take after the warm-up, far less than one object or block for each round.
BLOCKS_BOUND = 400  # in the second half of the rounds, as
RESIDENT_BOUND = 2 << 20  # bytes

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
LOOPS: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop, "mioloop": mioloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    return LOOPS[request.param]


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The TLS contexts of a server, and of a client that trusts it."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", HOST).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


class Peer(asyncio.Protocol, asyncio.DatagramProtocol):
    """Either end of a connection, a pipe or a datagram socket."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: Any = None
        self.received: asyncio.Future[None] = self.loop.create_future()
        self.lost: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, _data: bytes) -> None:
        self.received.set_result(None)

    def datagram_received(self, _data: bytes, _address: Any) -> None:
        self.received.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None
        self.lost.set_result(None)


class BufferedPeer(Peer, asyncio.BufferedProtocol):
    def get_buffer(self, _sizehint: int) -> bytearray:
        return bytearray(1024)

    def buffer_updated(self, _nbytes: int) -> None:
        self.received.set_result(None)


def nonblocking_pair() -> tuple[socket.socket, socket.socket]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    return left, right


async def cancelled(operation: Coroutine[Any, Any, Any]) -> None:
    """Starts an operation that cannot end, and cancels it."""
    task = asyncio.ensure_future(operation)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


# Transports


async def protocols(kind: type[Peer]) -> None:
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[Peer] = loop.create_future()

    def accept() -> Peer:
        peer = kind()
        accepted.set_result(peer)
        return peer

    server = await loop.create_server(accept, HOST, 0)
    _, client = await loop.create_connection(kind, *server.sockets[0].getsockname())
    serving = await accepted
    client.transport.write(b"ask")
    await serving.received
    serving.transport.writelines([b"ans", b"wer"])
    await client.received
    client.transport.close()
    await asyncio.gather(client.lost, serving.lost)
    server.close()
    await server.wait_closed()


async def tcp_protocols() -> None:
    await protocols(Peer)


async def tcp_buffered_protocols() -> None:
    await protocols(BufferedPeer)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def streams(
    listen: Callable[[Callable[..., Awaitable[None]]], Awaitable[asyncio.Server]],
    connect: Callable[[asyncio.Server], Awaitable[Streams]],
) -> None:
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        served.set()

    server = await listen(serve)
    reader, writer = await connect(server)
    writer.write(b"line\n")
    await writer.drain()
    assert await reader.readline() == b"line\n"
    writer.close()
    await writer.wait_closed()
    await served.wait()
    server.close()
    await server.wait_closed()


async def tcp_streams() -> None:
    await streams(
        lambda serve: asyncio.start_server(serve, HOST, 0),
        lambda server: asyncio.open_connection(*server.sockets[0].getsockname()),
    )


async def tls_streams() -> None:
    ours, theirs = contexts()
    await streams(
        lambda serve: asyncio.start_server(serve, HOST, 0, ssl=ours),
        lambda server: asyncio.open_connection(*server.sockets[0].getsockname(), ssl=theirs),
    )


async def unix_streams() -> None:
    name = f"\0mioloop-stress-{os.getpid()}"  # in the abstract namespace: no file to remove
    await streams(
        lambda serve: asyncio.start_unix_server(serve, name),
        lambda _server: asyncio.open_unix_connection(name),
    )


async def unix_pair() -> None:
    left, right = nonblocking_pair()
    _, peer = await asyncio.get_running_loop().create_unix_connection(Peer, sock=left)
    right.send(b"x")
    await peer.received
    right.close()
    await peer.lost


async def aborted_with_a_full_buffer() -> None:
    left, right = nonblocking_pair()
    transport, peer = await asyncio.get_running_loop().create_connection(Peer, sock=left)
    transport.write(bytes(1_000_000))
    assert transport.get_write_buffer_size()
    transport.abort()
    await peer.lost
    right.close()


async def datagrams() -> None:
    loop = asyncio.get_running_loop()
    transport, peer = await loop.create_datagram_endpoint(Peer, local_addr=(HOST, 0))
    transport.sendto(b"x", transport.get_extra_info("sockname"))
    await peer.received
    transport.close()
    await peer.lost


async def read_pipe() -> None:
    reader, writer = os.pipe()
    _, peer = await asyncio.get_running_loop().connect_read_pipe(Peer, os.fdopen(reader, "rb"))
    os.write(writer, b"x")
    await peer.received
    os.close(writer)
    await peer.lost


async def write_pipe() -> None:
    reader, writer = os.pipe()
    transport, peer = await asyncio.get_running_loop().connect_write_pipe(Peer, os.fdopen(writer, "wb"))
    transport.write(b"x")
    assert os.read(reader, 1) == b"x"
    transport.close()
    await peer.lost
    os.close(reader)


# Servers and connections that come to nothing


async def server() -> None:
    server = await asyncio.get_running_loop().create_server(Peer, HOST, 0)
    server.close()
    await server.wait_closed()


async def refused_connection() -> None:
    with socket.socket() as reserved:
        reserved.bind((HOST, 0))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().create_connection(Peer, *reserved.getsockname())


async def cancelled_connection() -> None:
    with socket.create_server((HOST, 0)) as listener:
        connect = asyncio.get_running_loop().create_connection(Peer, *listener.getsockname())
        await cancelled(connect)


async def process() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe, stderr=pipe)
    assert await process.communicate(b"x") == (b"x", b"")


# Callbacks


async def timers() -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.call_later(0.0001, done.set)
    loop.call_at(loop.time(), int)
    loop.call_later(3600, int).cancel()
    await done.wait()
    await asyncio.wait_for(asyncio.sleep(0), 3600)


async def ready_callbacks() -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.call_soon(int, "1")
    loop.call_soon(int).cancel()
    loop.call_soon_threadsafe(done.set)
    await done.wait()


async def executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, int, "1")


async def signal_handler() -> None:
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, came.set)
    signal.raise_signal(signal.SIGUSR1)
    await came.wait()
    assert loop.remove_signal_handler(signal.SIGUSR1)


async def reader_and_writer() -> None:
    loop = asyncio.get_running_loop()
    left, right = nonblocking_pair()
    readable, writable = asyncio.Event(), asyncio.Event()
    loop.add_reader(left, int)
    loop.add_reader(left, readable.set)  # replaces the other
    loop.add_writer(left, writable.set)
    right.send(b"x")
    await readable.wait()
    await writable.wait()
    assert loop.remove_reader(left)
    assert loop.remove_writer(left)
    left.close()
    right.close()


async def another_loop() -> None:
    loop = type(asyncio.get_running_loop())()
    loop.call_soon(int)
    loop.call_later(3600, int)
    loop.close()


# Operations on sockets


async def sock_stream_operations() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((HOST, 0)) as listener, socket.socket() as client:
        listener.setblocking(False)
        client.setblocking(False)
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        await loop.sock_connect(client, listener.getsockname())
        served, _ = await accepting
        with served:
            receiving = asyncio.ensure_future(loop.sock_recv(served, 10))
            await asyncio.sleep(0)
            await loop.sock_sendall(client, b"x")
            assert await receiving == b"x"
            receiving_into = asyncio.ensure_future(loop.sock_recv_into(client, bytearray(10)))
            await asyncio.sleep(0)
            await loop.sock_sendall(served, b"yz")
            assert await receiving_into == 2


async def sock_datagram_operations() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((HOST, 0))
        address = sock.getsockname()
        receiving = asyncio.ensure_future(loop.sock_recvfrom(sock, 10))
        await asyncio.sleep(0)
        await loop.sock_sendto(sock, b"x", address)
        assert await receiving == (b"x", address)
        receiving_into = asyncio.ensure_future(loop.sock_recvfrom_into(sock, bytearray(10)))
        await asyncio.sleep(0)
        await loop.sock_sendto(sock, b"yz", address)
        assert await receiving_into == (2, address)


async def cancelled_sock_operations() -> None:
    loop = asyncio.get_running_loop()
    left, right = nonblocking_pair()
    with left, right, socket.create_server((HOST, 0)) as listener:
        listener.setblocking(False)
        await cancelled(loop.sock_accept(listener))
        await cancelled(loop.sock_recv(left, 10))
        await cancelled(loop.sock_recv_into(left, bytearray(10)))
        await cancelled(loop.sock_recvfrom(left, 10))
        await cancelled(loop.sock_recvfrom_into(left, bytearray(10)))
        await cancelled(loop.sock_sendall(left, bytes(1_000_000)))


async def failed_sock_operations() -> None:
    loop = asyncio.get_running_loop()
    left, right = nonblocking_pair()
    with left, socket.socket() as reserved, socket.socket() as client:
        right.close()
        with pytest.raises(BrokenPipeError):
            await loop.sock_sendall(left, b"x")
        reserved.bind((HOST, 0))
        client.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await loop.sock_connect(client, reserved.getsockname())


# The measurement

Round = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Footprint:
    """What the process holds."""

    objects: int  # that the collector knows
    blocks: int  # of Python's allocator: the other objects as well
    descriptors: dict[str, str]
    resident: int  # bytes


def footprint() -> Footprint:
    gc.collect()
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Footprint(len(gc.get_objects()), sys.getallocatedblocks(), descriptors, resident)


async def after(work: Round, rounds: int) -> Footprint:
    for _ in range(rounds):
        await work()
    for _ in range(10):  # tasks that have just ended
        await asyncio.sleep(0)
    return footprint()


async def footprints(work: Round, rounds: int) -> tuple[Footprint, Footprint, Footprint]:
    """Before the rounds, in their middle and at their end."""
    return await after(work, WARM_UP), await after(work, rounds // 2), await after(work, rounds // 2)


ROUNDS_OF: dict[Round, int] = {
    tcp_protocols: ROUNDS,
    tcp_buffered_protocols: ROUNDS,
    tcp_streams: ROUNDS,
    tls_streams: ROUNDS,
    unix_streams: ROUNDS,
    unix_pair: ROUNDS,
    aborted_with_a_full_buffer: ROUNDS,
    datagrams: ROUNDS,
    read_pipe: ROUNDS,
    write_pipe: ROUNDS,
    server: ROUNDS,
    refused_connection: ROUNDS,
    cancelled_connection: ROUNDS,
    process: ROUNDS_OF_PROCESSES,
    timers: ROUNDS,
    ready_callbacks: ROUNDS,
    executor: ROUNDS,
    signal_handler: ROUNDS,
    reader_and_writer: ROUNDS,
    another_loop: ROUNDS,
    sock_stream_operations: ROUNDS,
    sock_datagram_operations: ROUNDS,
    cancelled_sock_operations: ROUNDS,
    failed_sock_operations: ROUNDS,
}


@pytest.mark.parametrize("work", ROUNDS_OF, ids=lambda work: work.__name__)
def test_rounds_leave_nothing(loop_factory: LoopFactory, work: Round) -> None:
    rounds = ROUNDS_OF[work]
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        if sys.version_info < (3, 12):  # the child watcher of the earlier ones wants to be attached
            asyncio.get_child_watcher().attach_loop(runner.get_loop())
        before, middle, end = runner.run(asyncio.wait_for(footprints(work, rounds), SAFETY))
    assert end.descriptors == before.descriptors
    # asyncio keeps up to a hundred cancelled timers.
    assert end.objects - before.objects < rounds // 4
    assert end.blocks - middle.blocks < BLOCKS_BOUND
    assert end.resident - middle.resident < RESIDENT_BOUND


# Cycles


async def an_open_connection(options: dict[str, Any]) -> tuple[Any, ...]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Peer, HOST, 0, ssl=options.get("server"))
    _, peer = await loop.create_connection(Peer, *server.sockets[0].getsockname(), ssl=options.get("client"))
    return peer, server


async def open_tcp() -> tuple[Any, ...]:
    return await an_open_connection({})


async def open_tls() -> tuple[Any, ...]:
    return await an_open_connection(dict(zip(("server", "client"), contexts(), strict=True)))


async def open_unix() -> tuple[Any, ...]:
    left, right = nonblocking_pair()
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_unix_connection(Peer, sock=left)
    _, other = await loop.create_unix_connection(BufferedPeer, sock=right)
    return peer, other


async def open_datagrams() -> tuple[Any, ...]:
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_datagram_endpoint(Peer, local_addr=(HOST, 0))
    return (peer,)


async def open_pipes() -> tuple[Any, ...]:
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe()
    _, reading = await loop.connect_read_pipe(Peer, os.fdopen(reader, "rb"))
    _, writing = await loop.connect_write_pipe(Peer, os.fdopen(writer, "wb"))
    return reading, writing


OPEN = [open_tcp, open_tls, open_unix, open_datagrams, open_pipes]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore:loop is closed:ResourceWarning")
@pytest.mark.parametrize("close", [True, False], ids=["closed-loop", "open-loop"])
@pytest.mark.parametrize("work", OPEN, ids=lambda work: work.__name__)
def test_cycles_through_open_transports_are_collected(
    loop_factory: LoopFactory, work: Callable[[], Coroutine[Any, Any, tuple[Any, ...]]], close: bool
) -> None:
    """A protocol has its loop and its transport; the loop has the transport, and that has the protocol."""
    loop = loop_factory()
    held = loop.run_until_complete(asyncio.wait_for(work(), SAFETY))
    watched = [weakref.ref(one) for one in (loop, *held)]
    watched += [weakref.ref(peer.transport) for peer in held if isinstance(peer, Peer)]
    if close:
        loop.close()
    del loop, held
    gc.collect()
    gc.collect()  # finalizers of the first may have resurrected something for a moment
    assert [reference() for reference in watched] == [None] * len(watched)


# Imports, each in a process of its own: a crash would end ours

USE = """
import asyncio, mioloop

async def main():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()

mioloop.run(main())
"""


def child(script: str) -> None:
    """Runs a script that has to end well and to say so."""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script], capture_output=True, text=True, timeout=SAFETY
    )
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)


def test_a_second_import() -> None:
    child(f"""
import gc, sys
use = {USE!r}
exec(use)
first = sys.modules["mioloop"]
for _ in range(5):
    for name in [name for name in sys.modules if name.partition(".")[0] == "mioloop"]:
        del sys.modules[name]
    exec(use)
    gc.collect()
    assert sys.modules["mioloop"] is not first
first.run(main())  # the old one still works
print("done")
""")


@pytest.mark.parametrize("gil", ["shared", "own"])
def test_an_import_in_a_subinterpreter(gil: str) -> None:
    """It works, or it is an ImportError: of the interpreter, or of the extension."""
    in_there = f"""
try:
    import mioloop
except ImportError:
    pass
else:
    exec({USE!r})
"""
    child(f"""
import sys
use, in_there, own_gil = {USE!r}, {in_there!r}, {gil == "own"}
exec(use)
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
for _ in range(3):
    if sys.version_info >= (3, 13):
        interpreter = interpreters.create("isolated" if own_gil else "legacy")
        error = interpreters.exec(interpreter, in_there)
        assert error is None, error
    else:
        interpreter = interpreters.create(isolated=own_gil)
        interpreters.run_string(interpreter, in_there)
    interpreters.destroy(interpreter)
exec(use)  # ours still works
print("done")
""")
