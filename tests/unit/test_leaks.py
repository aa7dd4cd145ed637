"""Nothing is left behind: no descriptor after any round of work, no object that a cycle or a closed loop
keeps alive.
"""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from .protocols import BufferedRecorder, Recorder, connected
from .support import SAFETY, Caught, pipe, run, run_once, settle, socketpair, tcp_pair, until

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/fd is Linux's")


def descriptors() -> dict[str, str]:
    """The open descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that lists the folder
            continue
    return found


def new_descriptors(work: Callable[[], object], rounds: int = 3) -> dict[str, str]:
    """The descriptors that the work leaves behind, beyond what its first round allocates once for all."""
    work()
    gc.collect()
    before = descriptors()
    for _ in range(rounds):
        work()
    gc.collect()
    return {name: target for name, target in descriptors().items() if name not in before}


@needs_proc
def test_loops_that_never_ran(loop_factory: LoopFactory) -> None:
    assert new_descriptors(lambda: loop_factory().close(), rounds=20) == {}


@needs_proc
def test_loops_that_ran(loop_factory: LoopFactory) -> None:
    def work() -> None:
        loop = loop_factory()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.run_in_executor(None, int))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    assert new_descriptors(work, rounds=20) == {}


@needs_proc
@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
def test_loops_that_nobody_closed(loop_factory: LoopFactory) -> None:
    def work() -> None:
        loop = loop_factory()
        loop.call_soon(print)
        loop.call_later(60, print)
        del loop
        gc.collect()

    assert new_descriptors(work) == {}


@needs_proc
def test_loops_closed_with_everything_open(loop_factory: LoopFactory) -> None:
    def work() -> None:
        loop = loop_factory()
        left, right = socketpair()
        loop.add_reader(left, print)
        loop.add_writer(right, print)
        loop.add_signal_handler(signal.SIGUSR1, print)
        loop.call_later(60, print)
        loop.close()
        left.close()
        right.close()

    assert new_descriptors(work) == {}


async def echo_once() -> None:
    loop = asyncio.get_running_loop()
    served: list[Recorder] = []

    def factory() -> Recorder:
        served.append(Recorder())
        return served[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0)
    transport: Any
    transport, protocol = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
    transport.write(b"x")
    await until(lambda: served and served[0].data)
    transport.close()
    await until(lambda: protocol.is_lost and served[0].is_lost)
    server.close()
    await server.wait_closed()


async def aborted() -> None:
    async with connected(Recorder()) as (transport, _, __):
        transport.write(b"x" * 10_000_000)
        transport.abort()


async def refused() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().create_connection(Recorder, *reserved.getsockname())


async def cancelled_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for rounds in range(6):
            task = asyncio.ensure_future(
                asyncio.get_running_loop().create_connection(Recorder, *listener.getsockname())
            )
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                transport, protocol = task.result()
                transport.abort()
                await until(lambda protocol=protocol: protocol.is_lost)


async def cancelled_sock_operations() -> None:
    loop = asyncio.get_running_loop()
    left, right = socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        operations: list[Coroutine[Any, Any, Any]] = [loop.sock_recv(left, 1), loop.sock_accept(listener)]
        for operation in operations:
            task = asyncio.ensure_future(operation)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
    left.close()
    right.close()


async def accepted_by_sock_accept() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        listener.setblocking(False)
        client.setblocking(False)
        await loop.sock_connect(client, listener.getsockname())
        server, _ = await loop.sock_accept(listener)
        server.close()


async def watched() -> None:
    loop = asyncio.get_running_loop()
    reader, writer = pipe()
    loop.add_reader(reader, print)
    loop.add_writer(writer, int)
    await settle(2)
    loop.remove_reader(reader)
    loop.remove_writer(writer)
    os.close(reader)
    os.close(writer)


async def unix_pair() -> None:
    async with connected(Recorder(), socketpair()) as (_, protocol, peer):
        peer.close()
        await until(lambda: protocol.is_lost)


async def pipes() -> None:
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe()
    protocol = Recorder()
    reading, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(reader, "rb"))
    writing, _ = await loop.connect_write_pipe(Recorder, os.fdopen(writer, "wb"))
    writing.write(b"x")
    await until(lambda: protocol.data)
    writing.close()
    await until(lambda: protocol.is_lost)
    await settle()
    reading.close()


async def datagrams() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    transport.sendto(b"x", transport.get_extra_info("sockname"))
    await settle()
    transport.close()
    await settle()


async def subprocess_exec() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", "", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    await process.communicate()


WORK: list[Callable[[], Coroutine[Any, Any, None]]] = [
    echo_once,
    aborted,
    refused,
    cancelled_connect,
    cancelled_sock_operations,
    accepted_by_sock_accept,
    watched,
    unix_pair,
    pipes,
    datagrams,
]


@needs_proc
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_descriptors(loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    assert new_descriptors(lambda: run(loop, work())) == {}


@needs_proc
@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="the child watcher of earlier Pythons wants to be attached"
)
def test_descriptors_of_subprocesses(loop: asyncio.AbstractEventLoop) -> None:
    assert new_descriptors(lambda: run(loop, subprocess_exec()), rounds=2) == {}


# Objects


class Token:
    """Something that a weak reference can watch."""


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_protocol_and_transport_die_after_the_connection(
    loop: asyncio.AbstractEventLoop, kind: type[Recorder]
) -> None:
    async def main() -> list[weakref.ref[Any]]:
        async with connected(kind()) as (transport, protocol, peer):
            peer.send(b"x")
            await until(lambda: protocol.data)
            transport.write(b"x" * 10_000_000)
            return [weakref.ref(transport), weakref.ref(protocol)]

    watched = run(loop, main())
    run_once(loop)
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_a_closed_transport_lets_go_of_its_protocol(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, _):
            transport.close()
            await until(lambda: protocol.is_lost)
            await settle(2)
            protocol.transport = None
            kept.append(weakref.ref(protocol))

    kept: list[weakref.ref[Any]] = []
    run(loop, main())
    gc.collect()
    assert kept[0]() is None


def test_protocols_of_a_server_die(loop: asyncio.AbstractEventLoop) -> None:
    watched: list[weakref.ref[Any]] = []

    def factory() -> Recorder:
        protocol = Recorder()
        watched.append(weakref.ref(protocol))
        return protocol

    async def main() -> None:
        server = await loop.create_server(factory, "127.0.0.1", 0)
        for _ in range(5):
            with socket.create_connection(server.sockets[0].getsockname()):
                await settle(2)
        await settle()
        server.close()
        await server.wait_closed()
        watched.append(weakref.ref(server))

    run(loop, main())
    run_once(loop)
    gc.collect()
    assert len(watched) == 6
    assert [reference() for reference in watched] == [None] * 6


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_cycle_through_an_open_transport_is_collected(loop_factory: LoopFactory) -> None:
    """protocol -> transport -> loop -> poller -> transport -> protocol, all of it dropped at once."""
    loop = loop_factory()
    ours, peer = tcp_pair()

    async def main(sock: socket.socket) -> list[weakref.ref[Any]]:
        protocol: Any = Recorder()
        protocol.loop = asyncio.get_running_loop()
        transport, _ = await protocol.loop.create_connection(lambda: protocol, sock=sock)
        return [weakref.ref(protocol), weakref.ref(transport), weakref.ref(protocol.loop)]

    watched = run(loop, main(ours))
    loop.close()
    del loop, ours
    gc.collect()
    gc.collect()
    assert [reference() for reference in watched] == [None, None, None]
    peer.close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_cycle_through_an_unclosed_loop_is_collected(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    token = Token()
    token.loop = loop  # type: ignore[attr-defined]
    reader, writer = pipe()
    loop.call_soon(lambda token: None, token)
    loop.call_later(60, lambda token: None, token)
    loop.call_soon_threadsafe(lambda token: None, token)
    loop.add_reader(reader, lambda token: None, token)
    watched: list[weakref.ref[Any]] = [weakref.ref(loop), weakref.ref(token)]
    del loop, token
    gc.collect()
    gc.collect()
    assert [reference() for reference in watched] == [None, None]
    os.close(reader)
    os.close(writer)


def test_a_closed_loop_lets_go_of_its_callbacks(loop: asyncio.AbstractEventLoop) -> None:
    tokens = [Token() for _ in range(7)]
    watched = [weakref.ref(token) for token in tokens]
    left, right = socketpair()

    def use(_token: Token) -> None: ...

    loop.call_soon(use, tokens.pop())
    loop.call_later(60, use, tokens.pop())
    loop.call_at(0, use, tokens.pop())
    loop.call_soon_threadsafe(use, tokens.pop())
    loop.add_reader(left, use, tokens.pop())
    loop.add_writer(right, use, tokens.pop())
    loop.add_signal_handler(signal.SIGUSR1, use, tokens.pop())
    loop.close()
    gc.collect()
    assert [reference() for reference in watched] == [None] * 7
    left.close()
    right.close()


def test_removed_readers_and_signal_handlers_are_let_go(loop: asyncio.AbstractEventLoop) -> None:
    tokens = [Token() for _ in range(4)]
    watched = [weakref.ref(token) for token in tokens]
    left, right = socketpair()

    def use(_token: Token) -> None: ...

    loop.add_reader(left, use, tokens.pop())
    loop.add_reader(left, use, tokens.pop())  # replaces the first
    loop.add_writer(right, use, tokens.pop())
    loop.add_signal_handler(signal.SIGUSR1, use, tokens.pop())
    run_once(loop)
    loop.remove_reader(left)
    loop.remove_writer(right)
    loop.remove_signal_handler(signal.SIGUSR1)
    run_once(loop)
    run_once(loop)
    gc.collect()
    assert [reference() for reference in watched] == [None] * 4
    left.close()
    right.close()


def test_a_failed_callback_is_let_go(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    token = Token()
    watched = weakref.ref(token)

    def fails(_token: Token) -> None:
        raise ValueError

    loop.call_soon(fails, token)
    del token
    run_once(loop)
    caught.clear()
    gc.collect()
    assert watched() is None


def test_cancelled_sock_operations_let_go(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()
    watched: list[weakref.ref[Any]] = []

    async def main() -> None:
        task = asyncio.ensure_future(loop.sock_recv(left, 10))
        watched.append(weakref.ref(task))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    run(loop, main())
    run_once(loop)
    gc.collect()
    assert [reference() for reference in watched] == [None]
    left.close()
    right.close()


def test_written_buffers_are_let_go(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            data = b"x" * 10_000_000
            before = sys.getrefcount(data)
            transport.write(data)
            transport.writelines([data, b"tail"])
            while transport.get_write_buffer_size():
                await loop.sock_recv(peer, 1 << 20)
            await settle(2)
            assert sys.getrefcount(data) == before

    run(loop, main())


def test_results_of_many_tasks_are_let_go(loop: asyncio.AbstractEventLoop) -> None:
    watched: list[weakref.ref[Token]] = []

    async def work() -> Token:
        token = Token()
        watched.append(weakref.ref(token))
        await asyncio.sleep(0)
        return token

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(100)))

    run(loop, main())
    gc.collect()
    assert [reference() for reference in watched] == [None] * 100


@pytest.mark.mioloop_only(reason="asyncio leaves that to malloc")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what the GNU C library does")
def test_the_memory_of_large_messages_is_not_got_page_by_page() -> None:
    """Three objects of 200 KiB at a time: by default malloc would give some of that back each time."""
    script = """
import ctypes, resource, mioloop

# What a program may have behind it: a hole in the heap, into which a block of a MiB fits.
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
blocks = [bytearray(100_000) for _ in range(100)]
malloc(ctypes.c_size_t(100_000))
del blocks

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

mioloop.new_event_loop().close()
blocks = [bytearray(100_000) for _ in range(100)]
bytearray(200_000), bytearray(200_000), bytearray(200_000)
before = faults()
for _ in range(100):
    objects = [bytearray(200_000) for _ in range(3)]
    del objects
print(faults() - before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SAFETY, env=environment)
    assert result.returncode == 0, result.stderr
    # A round is 146 pages.
    assert int(result.stdout) < 1000
