"""Forked children: a poller is one object in the kernel, which parent and child would share; so the child
must part from it before it can do any harm.

What the child finds wrong makes its exit code non-zero, and its traceback is in the captured output.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from .protocols import Recorder, receive
from .support import SAFETY, import_line, pipe, run, run_until, settle, socketpair, tcp_pair, until
from .tls_peer import CutOff, make_contexts, secured

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

shares_its_poller = pytest.mark.mioloop_only(reason="asyncio's child changes its parent's poller")


def fork(child: Callable[[], object]) -> int:
    """Calls a function in a forked child, which ends after it; returns the child's pid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, if there are threads
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SAFETY)
        child()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def ended(pid: int) -> None:
    """Waits for a child; it must have found nothing wrong."""
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


async def has_ended(pid: int) -> None:
    """The same, while the loop goes on."""
    found: list[int] = []

    def look() -> bool:
        waited, status = os.waitpid(pid, os.WNOHANG)
        if waited:
            found.append(os.waitstatus_to_exitcode(status))
        return bool(found)

    await until(look)
    assert found == [0]


class Echo(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


async def exchange(loop: asyncio.AbstractEventLoop) -> None:
    """A bit of everything: timers, connections, threads, subprocesses, signals."""
    await asyncio.sleep(0.001)
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    assert await loop.run_in_executor(None, os.getpid) == os.getpid()
    process = await asyncio.create_subprocess_exec("/bin/echo", "hello", stdout=subprocess.PIPE)
    assert (await process.communicate())[0] == b"hello\n"
    heard: list[int] = []
    loop.add_signal_handler(signal.SIGUSR2, heard.append, 1)
    os.kill(os.getpid(), signal.SIGUSR2)
    await until(lambda: heard)
    loop.remove_signal_handler(signal.SIGUSR2)


def run_anew(loop_factory: LoopFactory) -> None:
    """Runs a new loop, as programs do."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(exchange(runner.get_loop()))


# What a child does with its copy of the loop is its own business.


@shares_its_poller
@pytest.mark.parametrize("running", [True, False])
def test_the_child_removes_readers_and_writers(loop: asyncio.AbstractEventLoop, running: bool) -> None:
    left, right = socketpair()
    heard: list[bytes] = []
    writable: list[int] = []
    loop.add_reader(left, lambda: heard.append(left.recv(100)))
    loop.add_writer(left, writable.append, 1)

    def child() -> None:
        assert loop.remove_reader(left) is True
        assert loop.remove_writer(left) is True

    if running:

        async def main() -> None:
            await has_ended(fork(child))

        run(loop, main())
    else:
        ended(fork(child))
    writable.clear()
    run_until(loop, lambda: writable)
    right.send(b"still there")
    run_until(loop, lambda: heard)
    assert heard == [b"still there"]
    assert loop.remove_reader(left) is True
    assert loop.remove_writer(left) is True
    left.close()
    right.close()


@shares_its_poller
def test_the_child_watches_the_same_descriptors(loop: asyncio.AbstractEventLoop) -> None:
    """Each hears of them, in its own callback, through a poller of its own."""
    left, right = socketpair()
    heard: list[str] = []
    loop.add_reader(left, heard.append, "parent")

    def child() -> None:
        loop.add_reader(left, heard.append, "child")
        loop.add_writer(left, heard.append, "child writes")
        run_until(loop, lambda: {"child", "child writes"} <= set(heard))
        assert set(heard) == {"child", "child writes"}

    right.send(b"x")
    ended(fork(child))
    run_until(loop, lambda: heard)
    assert set(heard) == {"parent"}
    loop.remove_reader(left)
    left.close()
    right.close()


@shares_its_poller
def test_the_child_watches_what_its_parent_closes(loop: asyncio.AbstractEventLoop) -> None:
    """The kernel's registration lives as long as the file does, and the child has it open: the parent
    must not hear of a descriptor that it has closed, nor of the new one that has its number."""
    heard: list[str] = []
    reader, writer = pipe()
    go, started = os.pipe()
    loop.add_reader(reader, heard.append, "stale")
    pid = fork(lambda: (os.close(started), os.read(go, 1)))  # type: ignore[func-returns-value]
    loop.remove_reader(reader)
    os.close(reader)
    other_reader, other_writer = pipe()
    assert other_reader == reader
    loop.add_reader(other_reader, heard.append, "new")
    os.write(writer, b"for the old pipe")
    run(loop, settle())
    assert heard == []
    os.write(other_writer, b"x")
    run_until(loop, lambda: heard)
    assert set(heard) == {"new"}
    os.close(started)
    ended(pid)
    loop.remove_reader(other_reader)
    for fd in (go, writer, other_reader, other_writer):
        os.close(fd)


@shares_its_poller
@pytest.mark.parametrize("method", ["close", "abort"])
def test_the_child_closes_transports(loop: asyncio.AbstractEventLoop, method: str) -> None:
    """A connection lasts as long as somebody has it open: that is the parent."""

    async def make() -> tuple[Any, Any, Any, socket.socket, int, int]:
        left, right = socketpair()
        transport, _ = await loop.create_connection(Echo, sock=left)
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        endpoint, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        reader, writer = pipe()
        pipe_transport, _ = await loop.connect_read_pipe(Recorder, open(reader, "rb", buffering=0))
        return transport, server, (endpoint, pipe_transport), right, reader, writer

    transport, server, others, right, _, pipe_writer = run(loop, make())

    def child() -> None:
        getattr(transport, method)()
        for other in others:
            other.close()
        server.close()
        run_until(loop, lambda: transport.get_protocol() is None)
        loop.close()

    ended(fork(child))

    async def go_on() -> None:
        right.send(b"to the parent")
        assert await receive(right, 13) == b"to the parent"
        os.write(pipe_writer, b"x")
        await until(lambda: others[1].get_protocol().data == b"x")
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()
        transport.close()
        for other in others:
            other.close()
        server.close()
        await server.wait_closed()
        await settle()

    run(loop, go_on())
    os.close(pipe_writer)
    right.close()


@contextlib.asynccontextmanager
async def heard(
    loop: asyncio.AbstractEventLoop, secure: bool, size: int
) -> AsyncIterator[tuple[Any, Callable[[], Awaitable[bytes]]]]:
    """A connection's transport, and a function that waits for so many bytes at the other end."""
    if secure:
        async with secured(Recorder(), make_contexts(), server_side=False) as (transport, _, peer):
            yield transport, functools.partial(peer.read, size)
    else:
        ours, theirs = tcp_pair()
        with theirs:
            transport, _ = await loop.create_connection(Recorder, sock=ours)
            try:
                yield transport, functools.partial(receive, theirs, size)
            finally:
                transport.abort()


@pytest.mark.parametrize("secure", [False, True])
def test_what_is_written_before_a_fork_is_sent_once(loop: asyncio.AbstractEventLoop, secure: bool) -> None:
    """Although the child leaves the loop by the same way as its parent."""
    if sys.version_info >= (3, 14) and not secure:
        pytest.skip("from 3.14 on the test hangs, on asyncio's loop too")

    async def main() -> None:
        async with heard(loop, secure, 15) as (transport, hear):
            transport.write(b"one, ")
            transport.write(b"two, ")
            child.append(os.fork())
            if child == [0]:
                raise SystemExit
            await has_ended(child[0])
            transport.write(b"three")
            assert await hear() == b"one, two, three"

    child: list[int] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            run(loop, main())
    finally:
        if child == [0]:
            os._exit(0)


@pytest.mark.parametrize("ending", [False, True])
@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("when", ["made", "data", "eof"])
def test_what_is_written_in_a_callback_that_forks_is_sent_once(
    loop: asyncio.AbstractEventLoop, when: str, goes_on: bool, ending: bool
) -> None:
    """By a secure connection, which comes back to what it did; in the child too."""

    class Forking(Recorder):
        def note(self, name: str, argument: Any = None) -> None:
            super().note(name, argument)
            if name == when:
                self.transport.write(b"one, ")
                self.transport.write(b"two")
                if ending:
                    self.transport.close()
                child.append(os.fork())
                if child == [0] and not goes_on:
                    raise SystemExit
                if child == [0]:
                    loop.stop()

    async def main() -> None:
        protocol, contexts = Forking(), make_contexts()
        # As a client: a server's session tickets would be on their way too.
        async with secured(protocol, contexts, server_side=False) as (_, _, peer):
            if when == "data":
                await peer.write(b"x")
            elif when == "eof":
                await peer.close_notify()
            assert await peer.read(8) == b"one, two"
            await has_ended(child[0])
            await settle()
            # What else has come by now makes whole records, each of them once.
            peer.sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(CutOff, ConnectionError):
                assert await peer.read(1) == b""

    child: list[int] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            if not goes_on:
                run(loop, main())
            else:
                task = loop.create_task(main())
                task.add_done_callback(lambda _: loop.stop())
                loop.run_forever()
                if child != [0]:
                    task.result()
    finally:
        if child == [0]:
            os._exit(0)


def test_what_is_written_as_a_fork_has_others_sent_is_sent_once(loop: asyncio.AbstractEventLoop) -> None:
    """To send what was held back pauses a protocol, which writes to another transport."""
    answering: Any = None

    class Paused(Recorder):
        def pause_writing(self) -> None:
            answering.write(b"paused")

    async def main() -> None:
        nonlocal answering
        pairs = [socketpair() for _ in range(3)]
        pairs[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        full, _ = await loop.create_connection(Paused, sock=pairs[0][0])
        answering, _ = await loop.create_connection(Recorder, sock=pairs[1][0])
        first, _ = await loop.create_connection(Recorder, sock=pairs[2][0])
        full.set_write_buffer_limits(high=0)
        await asyncio.sleep(0)
        first.write(b"first")
        full.write(b"x" * 30_000)
        # Whoever looks at the buffer has what is held back sent.
        await has_ended(fork(answering.get_write_buffer_size))
        assert await receive(pairs[1][1], 6) == b"paused"
        await settle()
        with pytest.raises(BlockingIOError):
            pairs[1][1].recv(1)
        for transport in (full, answering, first):
            transport.abort()
        await until(lambda: all(ours.fileno() == -1 for ours, _ in pairs))
        for _, peer in pairs:
            peer.close()

    run(loop, main())


def test_a_fork_at_the_end_of_an_iteration(loop: asyncio.AbstractEventLoop) -> None:
    """In the callback of one secure connection, while another still waits for its turn."""

    class Forking(Recorder):
        def data_received(self, data: bytes) -> None:
            child.append(os.fork())
            if child == [0]:
                raise SystemExit

    async def main() -> None:
        contexts = make_contexts()
        async with (
            secured(Forking(), contexts, server_side=False) as (forking, _, provoking),
            secured(Recorder(), contexts, server_side=False) as (transport, _, peer),
        ):
            forking.pause_reading()
            await provoking.write(b"x")
            await until(lambda: forking.get_read_buffer_size() > 0)
            forking.resume_reading()
            transport.write(b"one")
            await until(lambda: child)
            await has_ended(child[0])
            transport.write(b", two")
            assert await peer.read(8) == b"one, two"

    child: list[int] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            run(loop, main())
    finally:
        if child == [0]:
            os._exit(0)


@shares_its_poller
def test_the_child_closes_the_loop(loop: asyncio.AbstractEventLoop) -> None:
    heard: list[str] = []
    reader, writer = pipe()
    loop.add_reader(reader, heard.append, "reader")
    loop.add_signal_handler(signal.SIGUSR1, heard.append, "signal")
    ended(fork(loop.close))
    os.write(writer, b"x")
    run_until(loop, lambda: heard)
    loop.remove_reader(reader)
    heard.clear()
    os.kill(os.getpid(), signal.SIGUSR1)
    run_until(loop, lambda: heard)
    assert heard == ["signal"]
    loop.remove_signal_handler(signal.SIGUSR1)
    os.close(reader)
    os.close(writer)


@shares_its_poller
def test_parent_and_child_both_run_on(loop: asyncio.AbstractEventLoop) -> None:
    """A program that sets all up and forks then: both have a working loop, each with its own ends."""
    pairs = [socketpair() for _ in range(10)]

    async def make() -> list[Recorder]:
        return [(await loop.create_connection(Echo, sock=left))[1] for left, _ in pairs]

    protocols = run(loop, make())

    async def use(ours: range) -> None:
        for turn in range(10):
            for number in ours:
                message = b"%d-%d" % (turn, number)
                pairs[number][1].send(message)
                assert await receive(pairs[number][1], len(message)) == message
        await exchange(loop)

    def child() -> None:
        # The parent's transports of the other half are open here too: they may not take what is the parent's.
        for protocol in protocols[:5]:
            protocol.transport.abort()
        run(loop, use(range(5, 10)))

    pid = fork(child)
    for protocol in protocols[5:]:
        protocol.transport.abort()
    run(loop, use(range(5)))
    ended(pid)

    async def end() -> None:
        for protocol in protocols:
            protocol.transport.abort()
        await until(lambda: all(protocol.is_lost for protocol in protocols))

    run(loop, end())
    for _, right in pairs:
        right.close()


# Signals.


@pytest.mark.mioloop_only(
    sys.version_info < (3, 12), reason="asyncio's child wrote to its parent's wakeup descriptor"
)
@pytest.mark.parametrize("running", [True, False])
def test_signals_of_the_child(loop: asyncio.AbstractEventLoop, running: bool) -> None:
    heard: list[int] = []
    loop.add_signal_handler(signal.SIGUSR1, heard.append, os.getpid())
    ready, set_ready = os.pipe()

    def child() -> None:
        os.write(set_ready, b"x")
        signal.pause()

    async def main(pid: int) -> None:
        await loop.run_in_executor(None, os.read, ready, 1)
        for _ in range(3):
            os.kill(pid, signal.SIGUSR1)
            await settle()
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -signal.SIGKILL)
        await settle()
        assert heard == []
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(lambda: heard)
        assert heard == [os.getpid()]

    async def fork_within() -> None:
        await main(fork(child))

    if running:
        run(loop, fork_within())
    else:
        run(loop, main(fork(child)))
    loop.remove_signal_handler(signal.SIGUSR1)
    os.close(ready)
    os.close(set_ready)


@shares_its_poller
def test_the_child_handles_its_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Its copy of the loop has the handlers still, and they run for its own signals."""
    heard: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, heard.append, "inherited")

    def child() -> None:
        loop.add_signal_handler(signal.SIGUSR2, heard.append, "new")
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        run_until(loop, lambda: len(heard) == 2)
        assert set(heard) == {"inherited", "new"}

    async def main() -> None:
        await has_ended(fork(child))
        await settle()
        assert heard == []

    # Forked between two runs: who forks within one can't go on with that.
    ended(fork(child))
    run(loop, settle())
    assert heard == []
    loop.remove_signal_handler(signal.SIGUSR1)


# A child with a loop of its own.


@pytest.mark.parametrize("where", ["in a callback", "in a task", "outside", "in a thread"])
def test_a_new_loop_in_the_child(
    loop: asyncio.AbstractEventLoop, loop_factory: LoopFactory, where: str
) -> None:
    child = functools.partial(run_anew, loop_factory)

    async def main() -> None:
        if where == "in a callback":
            pids: list[int] = []
            loop.call_soon(lambda: pids.append(fork(child)))
            await until(lambda: pids)
            await has_ended(pids[0])
        elif where == "in a task":
            await has_ended(fork(child))
        elif where == "in a thread":
            # The loop sleeps in its poll meanwhile.
            pid = await loop.run_in_executor(None, fork, child)
            await has_ended(pid)
        await exchange(loop)

    if where == "outside":
        ended(fork(child))
    run(loop, main())


@shares_its_poller
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_in_a_thread_while_a_callback_runs(
    loop: asyncio.AbstractEventLoop, loop_factory: LoopFactory, secure: bool
) -> None:
    """The thread that runs the loop is the parent's, and so is what it has not done yet."""

    def child(transport: Any) -> None:
        assert loop.is_running()
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_forever()
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop.close()
        assert gc.is_tracked(loop.call_soon_threadsafe(print))
        loop._thread_id = None  # type: ignore[attr-defined]
        assert gc.is_tracked(loop.call_soon(print))
        assert gc.is_tracked(loop.call_later(60, print))
        # Secure connections know how many records there were, so only one process can use one.
        if not secure:
            transport.write(b"child, ")
            transport.write(b"again, ")
        transport.abort()
        run_anew(loop_factory)

    async def main() -> None:
        async with heard(loop, secure, 15 if secure else 29) as (transport, hear):
            transport.write(b"one, ")
            transport.write(b"two, ")
            pids: list[int] = []
            thread = threading.Thread(target=lambda: pids.append(fork(lambda: child(transport))))
            thread.start()
            thread.join()
            await has_ended(pids[0])
            transport.write(b"three")
            # The parent's thread may be slower than the child.
            theirs_too = [] if secure else [b"child,", b"again,"]
            assert sorted((await hear()).split()) == sorted([b"one,", b"two,", b"three", *theirs_too])

    run(loop, main())


@shares_its_poller
@pytest.mark.parametrize("act", ["write", "close"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_in_a_thread_while_a_connection_calls_its_protocol(
    loop: asyncio.AbstractEventLoop, act: str
) -> None:
    class Forking(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.write(b"one, ")
            self.transport.write(b"two")
            if act == "close":
                self.transport.close()
            thread = threading.Thread(target=lambda: pids.append(fork(self.transport.abort)))
            thread.start()
            thread.join()

    async def main() -> None:
        async with secured(Forking(), make_contexts(), server_side=False) as (_, _, peer):
            await peer.write(b"x")
            assert await peer.read(8) == b"one, two"
            await has_ended(pids[0])
            peer.sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(CutOff, ConnectionError):
                assert await peer.read(1) == b""

    pids: list[int] = []
    run(loop, main())


def test_the_loop_may_be_closed_before(loop_factory: LoopFactory) -> None:
    run_anew(loop_factory)
    ended(fork(lambda: run_anew(loop_factory)))
    run_anew(loop_factory)


def test_a_child_of_a_child(loop_factory: LoopFactory) -> None:
    def child() -> None:
        run_anew(loop_factory)
        ended(fork(lambda: run_anew(loop_factory)))
        run_anew(loop_factory)

    ended(fork(child))
    run_anew(loop_factory)


def test_many_children(loop: asyncio.AbstractEventLoop, loop_factory: LoopFactory) -> None:
    """While timers and connections go on; the children end in whatever order."""

    async def main() -> None:
        left, right = socketpair()
        transport, _ = await loop.create_connection(Echo, sock=left)
        before = len(os.listdir("/proc/self/fd"))
        pids = []
        for number in range(20):
            pids.append(fork(lambda: loop_factory().close()))
            right.send(b"%02d" % number)
            assert await receive(right, 2) == b"%02d" % number
        for pid in pids:
            await has_ended(pid)
        assert len(os.listdir("/proc/self/fd")) == before
        transport.close()
        await settle()
        right.close()

    run(loop, main())


FORKING_SERVER = """
import asyncio, os, sys, warnings

async def main():
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    await ask(address)
    for way in ("exit", "_exit", "raise"):
        pids = []
        # Not from within a task: from 3.12 on a child finds that its parent's task is nobody's.
        loop.call_soon(lambda: pids.append(fork(way)))
        while not pids:
            await asyncio.sleep(0)
        _, status = await loop.run_in_executor(None, os.waitpid, pids[0], 0)
        print(way, os.waitstatus_to_exitcode(status))
        await ask(address)
        await asyncio.gather(*(ask(address) for _ in range(20)))
    server.close()
    await server.wait_closed()
    print("done")

def fork(way):
    warnings.simplefilter("ignore")
    pid = os.fork()
    if pid == 0:
        if way == "exit":
            sys.exit(7)
        if way == "raise":
            raise KeyboardInterrupt
        os._exit(7)
    return pid

async def handle(reader, writer):
    writer.write(await reader.readline())
    writer.close()
    await writer.wait_closed()

async def ask(address):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"hello\\n")
    assert await reader.read() == b"hello\\n"
    writer.close()
    await writer.wait_closed()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@shares_its_poller
def test_a_child_that_ends_as_programs_do(loop_factory: LoopFactory) -> None:
    """It leaves the loop by an exception, closes its copy of it, and its interpreter clears everything
    away."""
    script = import_line(loop_factory) + FORKING_SERVER
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SAFETY)
    assert result.stdout.split("\n")[:-1] == ["exit 7", "_exit 7", f"raise {-signal.SIGINT}", "done"], (
        result.stderr
    )
    assert result.returncode == 0


# The standard library's own ways to have children.


@pytest.fixture
def _no_helper_left() -> Iterator[None]:
    """multiprocessing keeps two processes of its own until the interpreter ends; other tests count
    children."""
    yield
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
    multiprocessing.resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def work(loop_factory: LoopFactory, number: int) -> tuple[int, int]:
    run_anew(loop_factory)
    return number * number, os.getpid()


def report(loop_factory: LoopFactory, connection: Any) -> None:
    connection.send(work(loop_factory, 7))
    connection.close()


@pytest.mark.usefixtures("_no_helper_left")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_multiprocessing(loop: asyncio.AbstractEventLoop, loop_factory: LoopFactory, method: str) -> None:
    async def main() -> None:
        context: Any = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=report, args=(loop_factory, theirs))
        process.start()
        theirs.close()
        arrived = asyncio.Event()
        loop.add_reader(ours.fileno(), arrived.set)
        await arrived.wait()
        loop.remove_reader(ours.fileno())
        result, pid = ours.recv()
        assert (result, pid) == (49, process.pid)
        await loop.run_in_executor(None, process.join)
        assert process.exitcode == 0
        process.close()
        ours.close()
        await exchange(loop)

    run(loop, main())


@pytest.mark.usefixtures("_no_helper_left")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_process_pools(loop: asyncio.AbstractEventLoop, loop_factory: LoopFactory, method: str) -> None:
    async def main() -> None:
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            calls = [loop.run_in_executor(pool, work, loop_factory, number) for number in range(8)]
            results = await asyncio.gather(*calls)
            await exchange(loop)
        assert [result for result, _ in results] == [number * number for number in range(8)]
        assert os.getpid() not in {pid for _, pid in results}

    run(loop, main())
