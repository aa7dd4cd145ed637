"""Streams served by the core behave as asyncio's own methods do: the same programs on asyncio's loop, on
mioloop, and on mioloop with its methods switched off.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import socket
import subprocess
import sys
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mioloop
from mioloop import _core

from .support import SAFETY, import_line, run, settle, socketpair, unread, until

Outcome = Any
Step = tuple[Any, ...]


@contextlib.contextmanager
def methods(core: bool) -> Iterator[None]:
    before = _core._enable_streams(core)
    try:
        yield
    finally:
        _core._enable_streams(before)


@pytest.fixture(params=["asyncio's methods", "the core's methods"])
def either(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test runs with the core's methods and without."""
    with methods(request.param == "the core's methods"):
        yield


@contextlib.asynccontextmanager
async def stream(
    limit: int = 2**16,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]]:
    """A stream, and the bare socket at the other end."""
    ours, peer = socketpair()
    reader, writer = await asyncio.open_connection(sock=ours, limit=limit)
    try:
        yield reader, writer, peer
    finally:
        peer.close()
        writer.transport.abort()
        await until(lambda: ours.fileno() == -1)


def in_core(reader: asyncio.StreamReader) -> bool:
    return type(reader) is not asyncio.StreamReader


# Random programs.

chunks = st.text("ab\n", min_size=1, max_size=40).map(str.encode)
reads = st.one_of(
    st.just(("readline",)),
    st.builds(lambda separator: ("readuntil", separator), st.sampled_from([b"\n", b"ab", b"ba\n", b""])),
    st.builds(lambda size: ("read", size), st.sampled_from([-1, 0, 1, 3, 10, 1000])),
    st.builds(lambda size: ("readexactly", size), st.sampled_from([-1, 0, 1, 4, 30])),
    st.just(("__anext__",)),
)
steps = st.one_of(
    st.builds(lambda data: ("send", data), chunks),
    st.builds(lambda data: ("send", data), chunks),
    st.builds(lambda read: ("start", *read), reads),
    st.builds(lambda read: ("start", *read), reads),
    st.builds(lambda data: ("feed", data), chunks),
    st.sampled_from(
        [
            ("cancel",),
            ("end",),
            ("feed_eof",),
            ("set_exception", ValueError("set")),
            ("set_exception", asyncio.IncompleteReadError(b"part", 9)),
            ("set_exception", asyncio.LimitOverrunError("too much", 2)),
            ("drain",),
            ("view",),
        ]
    ),
    st.builds(lambda limit: ("limit", limit), st.sampled_from([1, 5, 20, 2**16])),
)


async def outcome(awaitable: Any) -> Outcome:
    try:
        return await awaitable
    except asyncio.CancelledError:
        return "cancelled"
    except Exception as error:
        partial = getattr(error, "partial", None), getattr(error, "consumed", None)
        context = type(error.__context__).__name__
        return type(error).__name__, str(error), partial, context


def has_read(reader: Any, writer: Any, ended: bool) -> bool:
    """Whether all that the peer has sent has been read, or will not be for now."""
    if writer.is_closing() or not writer.transport.is_reading():
        return True
    return unread(writer.get_extra_info("socket")) == 0 and (reader._eof or not ended)


async def play(program: list[Step], limit: int, writes: bytes) -> list[Outcome]:
    """Runs a program step by step; returns what came of each and what the reader looked like then."""
    seen: list[Outcome] = []
    tasks: list[asyncio.Task[Outcome]] = []
    ended = False
    async with stream(limit) as (reader, writer, peer):
        for name, *args in program:
            if name == "send":
                with contextlib.suppress(OSError):
                    peer.send(args[0])
            elif name == "end":
                ended = True
                peer.shutdown(socket.SHUT_WR)
            elif name == "start":
                method = getattr(reader, args[0])
                tasks.append(asyncio.ensure_future(outcome(method(*args[1:]))))
            elif name == "cancel" and tasks:
                tasks[-1].cancel()
            elif name == "drain":
                writer.write(writes)
                seen.append(await outcome(writer.drain()))
            elif name == "limit":
                reader._limit = args[0]  # type: ignore[attr-defined]
            elif name == "set_exception":
                reader.set_exception(args[0])
            elif name == "feed":
                with contextlib.suppress(AssertionError):
                    reader.feed_data(args[0])
            elif name == "feed_eof":
                reader.feed_eof()
            elif name == "view":
                with memoryview(reader._buffer):  # type: ignore[attr-defined]
                    seen.append(await outcome(reader.read(2) if reader._buffer else asyncio.sleep(0)))  # type: ignore[attr-defined]
            # What a reader takes may let the transport go on.
            for _ in range(2):
                await until(partial(has_read, reader, writer, ended))
                for _ in range(4):
                    await asyncio.sleep(0)
            seen.append(
                (
                    [task.result() if task.done() else "waits" for task in tasks],
                    bytes(reader._buffer),  # type: ignore[attr-defined]
                    reader._paused,  # type: ignore[attr-defined]
                    reader._waiter is None,  # type: ignore[attr-defined]
                    reader.at_eof() or reader._eof,  # type: ignore[attr-defined]
                    repr(reader.exception()),
                )
            )
        peer.close()
        await settle(3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return seen


def result_of(factory: Callable[[], asyncio.AbstractEventLoop], *args: Any) -> list[Outcome]:
    loop = factory()
    contexts: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: contexts.append(str(context["exception"])))
    try:
        return [run(loop, play(*args)), contexts]
    finally:
        loop.close()


@settings(max_examples=150)
@given(st.lists(steps, max_size=12), st.sampled_from([3, 16, 2**16]), st.binary(max_size=5))
def test_random_programs(program: list[Step], limit: int, writes: bytes) -> None:
    expected = result_of(asyncio.SelectorEventLoop, program, limit, writes)
    for core in False, True:
        with methods(core):
            assert result_of(mioloop.new_event_loop, program, limit, writes) == expected


# Whatever a program changes is noticed.


async def readline_with(reader: Any, peer: socket.socket) -> tuple[bytes, bytes]:
    """One that finds its line in the buffer, and one that waits for it."""
    peer.send(b"one\n")
    await until(lambda: reader._buffer)
    first = await reader.readline()
    second = asyncio.ensure_future(reader.readline())
    await settle(2)
    peer.send(b"two\n")
    return first, await second


READER_METHODS = ["readline", "readuntil", "feed_data", "_wait_for_data", "_maybe_resume_transport"]


@pytest.mark.parametrize("name", [*READER_METHODS, "_wakeup_waiter"])
@pytest.mark.parametrize("where", ["class", "instance"])
def test_a_patched_method_of_the_reader_is_called(
    loop: asyncio.AbstractEventLoop, either: None, name: str, where: str
) -> None:
    async def main() -> None:
        async with stream() as (reader, _writer, peer):
            original = getattr(asyncio.StreamReader, name)
            calls = []

            def patched(self: Any, *args: Any) -> Any:
                calls.append(args)
                return original(self, *args)

            if where == "class":
                patch = mock.patch.object(asyncio.StreamReader, name, patched)
            else:
                patch = mock.patch.object(reader, name, patched.__get__(reader), create=True)
            with patch:
                assert await readline_with(reader, peer) == (b"one\n", b"two\n")
            assert calls
            calls.clear()
            assert await readline_with(reader, peer) == (b"one\n", b"two\n")
            assert not calls

    run(loop, main())


def fresh_names(attributes: dict[str, Any]) -> dict[str, Any]:
    """The same with names that are not the interpreter's own strings."""
    return {"".join(list(name)): value for name, value in attributes.items()}


LAYOUTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "backwards": lambda attributes: dict(reversed(attributes.items())),
    "sorted": lambda attributes: dict(sorted(attributes.items())),
    "fresh names": fresh_names,
    "with gaps": lambda attributes: {"other": 1, **attributes},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attributes_in_another_order(loop: asyncio.AbstractEventLoop, either: None, layout: str) -> None:
    """Attributes are looked for first where they were in the last object; here they are somewhere else."""

    async def main() -> None:
        async with stream() as (plain, _plain_writer, plain_peer), stream() as (reader, writer, peer):
            for changed in (reader, writer, writer.transport.get_protocol()):
                attributes = LAYOUTS[layout](vars(changed))
                changed.__dict__ = attributes
                attributes.pop("other", None)
            for _ in range(20):
                assert await readline_with(plain, plain_peer) == (b"one\n", b"two\n")
                assert await readline_with(reader, peer) == (b"one\n", b"two\n")
                writer.write(b"answer")
                await writer.drain()
                assert peer.recv(100) == b"answer"

    run(loop, main())


@pytest.mark.parametrize("again", [False, True], ids=["replaced", "deleted and set"])
def test_attributes_that_were_replaced(loop: asyncio.AbstractEventLoop, either: None, again: bool) -> None:
    def replace(thing: Any, name: str, value: Any) -> None:
        if again:
            delattr(thing, name)
        setattr(thing, name, value)

    async def main() -> None:
        async with stream() as (reader, writer, peer), stream() as (_, other, other_peer):
            protocol: Any = writer.transport.get_protocol()
            waiting = asyncio.ensure_future(reader.readline())
            await settle(1)
            buffer = bytearray(b"in the new ")
            replace(reader, "_buffer", buffer)
            peer.send(b"buffer\nrest")
            assert await waiting == b"in the new buffer\n"
            assert buffer == b"rest"

            replace(reader, "_limit", 3)
            peer.send(b"long\n")
            await until(lambda: buffer == b"restlong\n")
            with pytest.raises(ValueError, match="Separator is"):
                await reader.readline()
            replace(reader, "_limit", 2**16)
            replace(reader, "_exception", LookupError("set"))
            for read in (reader.readline, reader.read, writer.drain):
                with pytest.raises(LookupError, match="set"):
                    await read()
            replace(reader, "_exception", None)
            replace(reader, "_eof", True)
            assert await reader.read() == b""
            replace(reader, "_eof", False)
            assert await readline_with(reader, peer) == (b"one\n", b"two\n")

            replace(protocol, "_connection_lost", True)
            with pytest.raises(ConnectionResetError):
                await writer.drain()
            replace(protocol, "_connection_lost", False)
            replace(protocol, "_paused", True)
            draining = asyncio.ensure_future(writer.drain())
            await settle(2)
            assert not draining.done()
            protocol.resume_writing()
            await draining

            replace(writer, "_transport", other.transport)
            writer.write(b"elsewhere")
            await writer.drain()
            assert other_peer.recv(100) == b"elsewhere"
            replace(writer, "_transport", reader._transport)  # type: ignore[attr-defined]

    run(loop, main())


@pytest.mark.parametrize("where", ["class", "base", "instance"])
def test_a_patched_data_received_is_called(loop: asyncio.AbstractEventLoop, either: None, where: str) -> None:
    async def main() -> None:
        async with stream() as (reader, writer, peer):
            protocol: Any = writer.transport.get_protocol()
            original = asyncio.StreamReaderProtocol.data_received
            received = []

            def patched(self: Any, data: bytes) -> None:
                received.append(data)
                original(self, data)

            target = asyncio.StreamReaderProtocol if where != "instance" else protocol
            function = patched if where != "instance" else patched.__get__(protocol)
            with mock.patch.object(target, "data_received", function):
                assert await readline_with(reader, peer) == (b"one\n", b"two\n")
            assert received == [b"one\n", b"two\n"]
            assert await readline_with(reader, peer) == (b"one\n", b"two\n")
            assert received == [b"one\n", b"two\n"]

    run(loop, main())


@pytest.mark.parametrize("name", ["write", "drain"])
@pytest.mark.parametrize("where", ["class", "instance"])
def test_a_patched_method_of_the_writer_is_called(
    loop: asyncio.AbstractEventLoop, either: None, name: str, where: str
) -> None:
    async def main() -> None:
        calls: list[Any] = []
        done = asyncio.get_running_loop().create_future()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            original = getattr(asyncio.StreamWriter, name)

            def patched(self: Any, *args: Any) -> Any:
                calls.append(args)
                return original(self, *args)

            bound = patched.__get__(writer) if where == "instance" else patched
            target = writer if where == "instance" else asyncio.StreamWriter
            writer.write(b"before")
            await writer.drain()
            with mock.patch.object(target, name, bound):
                writer.write(b"patched")
                await writer.drain()
            writer.write(b"after")
            await writer.drain()
            writer.close()
            done.set_result(None)

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b"beforepatchedafter"
        await done
        assert calls == ([(b"patched",)] if name == "write" else [()])
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_drain_asks_the_protocol_and_the_reader(loop: asyncio.AbstractEventLoop, either: None) -> None:
    async def main() -> None:
        accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda *streams: accepted.set_result(streams), "127.0.0.1", 0)
        _, client = await asyncio.open_connection(*server.sockets[0].getsockname())
        reader, writer = await accepted
        protocol = writer.transport.get_protocol()
        await writer.drain()
        protocol.pause_writing()
        draining = asyncio.ensure_future(writer.drain())
        await settle(2)
        assert not draining.done()
        protocol.resume_writing()
        await draining
        reader.set_exception(KeyError("told"))
        with pytest.raises(KeyError, match="told"):
            await writer.drain()
        reader._exception = None
        client.transport.abort()
        await until(lambda: protocol._connection_lost or reader.at_eof())
        writer.transport.abort()
        await until(lambda: protocol._connection_lost)
        with pytest.raises(ConnectionResetError, match="Connection lost"):
            await writer.drain()
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_derived_classes_are_left_alone(loop: asyncio.AbstractEventLoop, either: None) -> None:
    class Reader(asyncio.StreamReader):
        async def readline(self) -> bytes:
            return b"<" + await super().readline() + b">"

    class Protocol(asyncio.StreamReaderProtocol):
        def data_received(self, data: bytes) -> None:
            super().data_received(data.upper())

    async def main() -> None:
        running = asyncio.get_running_loop()
        for reader_class, protocol_class, line in [
            (Reader, asyncio.StreamReaderProtocol, b"<line\n>"),
            (asyncio.StreamReader, Protocol, b"LINE\n"),
        ]:
            ours, peer = socketpair()
            reader = reader_class(loop=running)
            protocol = protocol_class(reader, loop=running)
            transport, _ = await running.create_connection(lambda p=protocol: p, sock=ours)  # type: ignore[misc]
            peer.send(b"line\n")
            assert await reader.readline() == line
            assert type(reader) is reader_class or isinstance(reader, reader_class)
            peer.close()
            transport.abort()
            await until(lambda s=ours: s.fileno() == -1)

    run(loop, main())


def test_attributes_that_are_reassigned(loop: asyncio.AbstractEventLoop, either: None) -> None:
    async def main() -> None:
        async with stream() as (reader, _writer, peer):
            shared: Any = reader
            shared._buffer = bytearray(b"put there\nrest")
            assert await reader.readline() == b"put there\n"
            shared._limit = 2
            with pytest.raises(ValueError, match="limit"):
                await reader.readline()
            shared._limit = 2.5
            peer.send(b"a\n")
            assert await reader.readline() == b"a\n"
            shared._limit = 2**16

            class Buffer(bytearray):
                pass

            shared._buffer = Buffer(b"mine\n")
            assert await reader.readline() == b"mine\n"
            peer.send(b"x\n")
            assert await reader.readline() == b"x\n"
            shared._eof = 1
            assert await reader.readline() == b""

    run(loop, main())


def test_a_view_of_the_buffer_ends_the_connection(
    loop: asyncio.AbstractEventLoop, either: None, caught: Any
) -> None:
    async def main() -> None:
        async with stream() as (reader, writer, peer):
            shared: Any = reader
            peer.send(b"first")
            await until(lambda: shared._buffer)
            with memoryview(shared._buffer):
                with pytest.raises(BufferError):
                    await reader.read(3)
                assert shared._buffer == b"first"
                peer.send(b"second")
                await until(writer.is_closing)
            assert isinstance(caught.take()["exception"], BufferError)

    run(loop, main())


# What the methods return is to await what a coroutine is.


def test_nothing_happens_before_it_is_awaited(loop: asyncio.AbstractEventLoop, either: None) -> None:
    async def main() -> None:
        async with stream() as (reader, _writer, peer):
            early: Any = reader.readline()
            dropped: Any = reader.readexactly(2)
            wrong: Any = reader.readexactly(-1)
            peer.send(b"ab\n")
            await until(lambda: reader._buffer)  # type: ignore[attr-defined]
            dropped.close()
            assert await early == b"ab\n"
            with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
                await early
            with pytest.raises(ValueError, match="less than zero"):
                await wrong
            for twice in range(3):
                peer.send(b"%d\n" % twice)
                assert await reader.readline() == b"%d\n" % twice

    run(loop, main())


def test_one_that_is_never_awaited_says_so(loop: asyncio.AbstractEventLoop, either: None) -> None:
    async def main() -> None:
        async with stream() as (reader, _writer, _peer):
            for _ in range(2):
                with pytest.warns(RuntimeWarning, match=r"'StreamReader.readline' was never awaited"):
                    reader.readline()  # type: ignore[unused-coroutine]
                    gc.collect()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                reader.readline().close()

    run(loop, main())


def test_the_ways_to_await(loop: asyncio.AbstractEventLoop, either: None) -> None:
    async def main() -> None:
        async with stream() as (reader, writer, peer):

            async def answer(awaitable: Any) -> Any:
                peer.send(b"line\n")
                return await awaitable

            assert await answer(asyncio.create_task(reader.readline())) == b"line\n"
            assert await answer(asyncio.wait_for(reader.readline(), SAFETY)) == b"line\n"
            assert (await answer(asyncio.gather(reader.readline(), writer.drain(), writer.drain())))[
                0
            ] == b"line\n"
            assert await answer(asyncio.shield(reader.readline())) == b"line\n"
            done, _ = await answer(asyncio.wait([asyncio.ensure_future(reader.readline())]))
            assert done.pop().result() == b"line\n"
            for made in reader.readline(), reader.read(1), writer.drain():
                assert inspect.isawaitable(made)
                assert asyncio.iscoroutine(made)
                made.close()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(reader.readline(), 0.01)
            assert reader._waiter is None  # type: ignore[attr-defined]
            with pytest.raises(ValueError, match="thrown"):
                reader.readline().throw(ValueError("thrown"))
            assert isinstance(reader, asyncio.StreamReader)
            assert isinstance(writer, asyncio.StreamWriter)
            names = [type(thing).__name__ for thing in (reader, writer)]
            assert names == ["StreamReader", "StreamWriter"]
            assert asyncio.StreamReader.__subclasscheck__(type(reader))

    run(loop, main())


def test_driven_by_hand(loop: asyncio.AbstractEventLoop, either: None) -> None:
    async def main() -> None:
        async with stream() as (reader, writer, peer):
            waiting: Any = reader.readline()
            future = waiting.send(None)
            assert future is reader._waiter  # type: ignore[attr-defined]
            assert waiting.cr_await is not None
            with pytest.raises(RuntimeError, match="already waiting for incoming data"):
                await reader.read(1)
            peer.send(b"x\n")
            await until(future.done)
            with pytest.raises(StopIteration) as stopped:
                waiting.send(None)
            assert stopped.value.value == b"x\n"
            drained: Any = writer.drain()
            with pytest.raises(StopIteration) as stopped:
                drained.send(None)
            assert stopped.value.value is None
            given_up: Any = reader.readline()
            given_up.send(None)
            given_up.close()
            assert reader._waiter is None  # type: ignore[attr-defined]
            dropped: Any = reader.readline()
            dropped.send(None)
            del dropped
            assert reader._waiter is None  # type: ignore[attr-defined]
            thrown: Any = reader.readline()
            thrown.send(None)
            with pytest.raises(KeyError):
                thrown.throw(KeyError("k"))
            assert reader._waiter is None  # type: ignore[attr-defined]

    run(loop, main())


def test_a_dropped_reader_dies_at_once(loop: asyncio.AbstractEventLoop, either: None) -> None:
    async def main() -> None:
        gc.disable()
        try:
            ours, peer = socketpair()
            reader, writer = await asyncio.open_connection(sock=ours)
            reference = weakref.ref(reader)
            peer.send(b"ab")
            assert await reader.read(2) == b"ab"
            writer._reader = None  # type: ignore[attr-defined]
            del reader
            assert reference() is None
            peer.send(b"for nobody")
            await until(lambda: unread(ours) == 0)
            peer.close()
            writer.transport.abort()
            await until(lambda: ours.fileno() == -1)
        finally:
            gc.enable()

    run(loop, main())


def test_the_callback_sees_its_own_protocol(loop: asyncio.AbstractEventLoop, either: None) -> None:
    async def main() -> None:
        seen: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            protocol: Any = writer.transport.get_protocol()
            seen.set_result(protocol._client_connected_cb is accept)
            writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await seen
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(loop, main())


@pytest.mark.normal_mode
@pytest.mark.mioloop_only(reason="asyncio has no methods of the core's")
def test_the_core_serves_what_is_plain(loop: asyncio.AbstractEventLoop) -> None:
    """Without this the tests above could compare asyncio's methods with themselves."""

    async def main() -> None:
        for core in True, False:
            with methods(core):
                async with stream() as (reader, _writer, peer):
                    assert in_core(reader) is core
                    assert await readline_with(reader, peer) == (b"one\n", b"two\n")
                    made: Any = reader.readline()
                    assert isinstance(made, _core.StreamOperation) is core
                    made.close()

    run(loop, main())


@pytest.mark.mioloop_only(reason="a switch of ours")
@pytest.mark.parametrize("value", ["", "asyncio"])
def test_the_switch(loop_factory: Callable[[], asyncio.AbstractEventLoop], value: str) -> None:
    program = import_line(loop_factory) + (
        "import asyncio, socket\n"
        "async def main():\n"
        "    ours, peer = socket.socketpair()\n"
        "    ours.setblocking(False)\n"
        "    reader, writer = await asyncio.open_connection(sock=ours)\n"
        "    print(type(reader) is asyncio.StreamReader)\n"
        "    writer.close(); peer.close()\n"
        "loop = new_event_loop()\n"
        "loop.set_debug(False)\n"
        "loop.run_until_complete(main())\n"
        "loop.close()\n"
    )
    environment = {**os.environ, "MIOLOOP_STREAMS": value}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SAFETY)
    assert done.stdout.strip() == str(value == "asyncio"), done.stderr
