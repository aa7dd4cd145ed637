"""Python code that runs where nobody expects any: finalizers, buffer exporters, `repr`, iterators.

Each may call the transport or the loop again, in the middle of one of their methods. That must find them
in order, and an exception that has to leave the loop must not be taken for a bad argument.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .protocols import BufferedRecorder, Recorder, connected, receive_all
from .support import BIG, run, run_until, settle, socketpair, until

exports_buffers = pytest.mark.skipif(sys.version_info < (3, 12), reason="3.12 brought __buffer__")


class Finalizer:
    """Calls a function when it dies, and notes what came of that."""

    def __init__(self, function: Callable[[], object], outcomes: list[BaseException | None]) -> None:
        self.function = function
        self.outcomes = outcomes

    def __del__(self) -> None:
        try:
            self.function()
        except BaseException as error:
            self.outcomes.append(error)
        else:
            self.outcomes.append(None)


class FinalizedBytes(bytes):
    finalizer: Finalizer


class Unrepresentable:
    def __call__(self) -> None:
        """Does nothing."""

    def __repr__(self) -> str:
        raise ValueError("no repr")


@pytest.mark.parametrize("method", ["write", "writelines"])
@pytest.mark.parametrize("end", ["abort", "close"])
def test_bytes_that_write_when_they_die(loop: asyncio.AbstractEventLoop, method: str, end: str) -> None:
    outcomes: list[BaseException | None] = []

    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):

            def call_again() -> None:
                transport.get_write_buffer_size()
                transport.is_closing()
                transport.write(b"last words")

            data = FinalizedBytes(b"x" * 1000)
            data.finalizer = Finalizer(call_again, outcomes)
            transport.write(b"x" * BIG)
            if method == "write":
                transport.write(data)
            else:
                transport.writelines([b"x", data, b"x"])
            del data
            if end == "abort":
                transport.abort()
            else:
                transport.close()
                await receive_all(peer)
            await until(lambda: protocol.is_lost)

    run(loop, main())
    gc.collect()
    assert outcomes == [None]


def test_a_sent_datagram_that_sends_when_it_dies(loop: asyncio.AbstractEventLoop) -> None:
    outcomes: list[BaseException | None] = []

    async def main() -> None:
        received: list[bytes] = []

        class Receiver(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                received.append(data)

        transport, _ = await loop.create_datagram_endpoint(Receiver, local_addr=("127.0.0.1", 0))
        address = transport.get_extra_info("sockname")
        data = FinalizedBytes(b"first")
        data.finalizer = Finalizer(lambda: transport.sendto(b"second", address), outcomes)
        transport.sendto(data, address)
        del data
        await until(lambda: len(received) == 2)
        transport.close()
        await settle()
        assert received == [b"first", b"second"]

    run(loop, main())
    assert outcomes == [None]


def test_a_protocol_that_calls_its_transport_when_it_is_replaced(loop: asyncio.AbstractEventLoop) -> None:
    outcomes: list[BaseException | None] = []

    class Finalized(asyncio.Protocol):
        finalizer: Finalizer

    async def main() -> None:
        ours, peer = socketpair()
        transport, protocol = await loop.create_connection(Finalized, sock=ours)

        def call_again() -> None:
            transport.get_protocol()
            transport.pause_reading()
            transport.write(b"from the finalizer")
            transport.resume_reading()

        protocol.finalizer = Finalizer(call_again, outcomes)
        del protocol
        successor = Recorder()
        transport.set_protocol(successor)
        # A handle that is done may keep the first protocol for an iteration or two.
        await until(lambda: outcomes)
        assert transport.get_protocol() is successor
        assert await loop.sock_recv(peer, 100) == b"from the finalizer"
        transport.close()
        await until(lambda: successor.is_lost)
        peer.close()

    run(loop, main())
    assert outcomes == [None]


@pytest.mark.parametrize("name", ["socket", "peername", "sockname", "nothing"])
def test_a_collection_within_get_extra_info(loop: asyncio.AbstractEventLoop, name: str) -> None:
    """Any new object can start the collector, and that runs finalizers."""
    outcomes: list[BaseException | None] = []
    threshold = gc.get_threshold()

    class Asking(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            cycle: list[object] = [Finalizer(transport.is_closing, outcomes)]
            cycle.append(cycle)
            containers = [[number] for number in range(300)]
            del cycle
            gc.set_threshold(1)
            try:
                transport.get_extra_info(name)
            finally:
                gc.set_threshold(*threshold)
            del containers

    async def main() -> None:
        made: list[Asking] = []

        def factory() -> Asking:
            made.append(Asking())
            return made[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            await until(lambda: made and hasattr(made[0], "transport"))
        made[0].transport.close()
        server.close()
        await server.wait_closed()
        await settle()

    run(loop, main())
    gc.collect()
    assert outcomes == [None]


def test_a_callback_without_repr_is_cancelled_all_the_same(loop: asyncio.AbstractEventLoop) -> None:
    loop.set_debug(True)
    for handle in (loop.call_soon(Unrepresentable()), loop.call_later(60, Unrepresentable())):
        with pytest.raises(ValueError, match="no repr"):
            handle.cancel()
        assert handle.cancelled()


@pytest.mark.parametrize("method", ["add_reader", "add_writer", "remove_reader", "remove_writer"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError, ZeroDivisionError])
def test_what_fileno_raises(loop: asyncio.AbstractEventLoop, method: str, error: type[BaseException]) -> None:
    class File:
        def fileno(self) -> int:
            raise error

    arguments = [print] if method.startswith("add") else []
    with pytest.raises(error):
        getattr(loop, method)(File(), *arguments)


# Objects whose buffer is made by Python code


class Exporter:
    """Gives out a buffer that a function makes."""

    def __init__(self, export: Callable[[], bytes | bytearray]) -> None:
        self.export = export

    def __len__(self) -> int:
        return 10

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self.export())


def interrupted() -> bytes:
    raise KeyboardInterrupt


@exports_buffers
@pytest.mark.mioloop_only(reason="asyncio takes no classes of the program's own")
def test_writing_what_interrupts(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, peer):
            with pytest.raises(KeyboardInterrupt):
                transport.write(Exporter(interrupted))
            with pytest.raises(KeyboardInterrupt):
                transport.writelines([Exporter(interrupted)])
            transport.write(b"x")
            assert await loop.sock_recv(peer, 10) == b"x"

    run(loop, main())


@exports_buffers
@pytest.mark.mioloop_only(reason="the socket module takes the interrupt for a wrong argument")
def test_a_buffer_to_read_into_that_interrupts(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()
    exporters = [Exporter(interrupted), Exporter(lambda: protocol.buffer)]

    class Interrupting(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> Any:
            return exporters.pop(0) if len(exporters) > 1 else exporters[0]

    protocol = Interrupting(10)
    transport, _ = run(loop, loop.create_connection(lambda: protocol, sock=left))
    right.send(b"data")
    with pytest.raises(KeyboardInterrupt):
        run_until(loop, lambda: protocol.data)
    run_until(loop, lambda: protocol.data)
    assert protocol.data == b"data"
    transport.abort()
    run_until(loop, lambda: protocol.is_lost)
    right.close()


@exports_buffers
@pytest.mark.mioloop_only(reason="asyncio takes no classes of the program's own")
def test_an_export_that_writes_and_aborts(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):

            def export() -> bytes:
                transport.write(b"before")
                transport.abort()
                return b"too late"

            transport.write(Exporter(export))
            assert await receive_all(peer) == b"before"
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None

    run(loop, main())


@exports_buffers
def test_a_buffer_released_by_aborting(loop: asyncio.AbstractEventLoop) -> None:
    class Aborting(Exporter):
        def __release_buffer__(self, view: memoryview) -> None:
            protocol.transport.abort()

    class Lending(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> Any:
            return Aborting(lambda: self.buffer)

    protocol = Lending(10)

    async def main() -> None:
        async with connected(protocol) as (_, __, peer):
            peer.send(b"data")
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "data", "lost"]
            assert protocol.data == b"data"
            assert protocol.loss is None

    run(loop, main())


@exports_buffers
@pytest.mark.mioloop_only(reason="asyncio would slice the object, which has no items")
def test_sending_a_buffer_that_shrinks(loop: asyncio.AbstractEventLoop) -> None:
    sizes: list[int] = []

    def shrinking() -> bytes:
        sizes.append(10 if sizes else BIG)
        return b"x" * sizes[-1]

    async def main() -> None:
        left, right = socketpair()
        sending = asyncio.ensure_future(loop.sock_sendall(left, Exporter(shrinking)))
        await asyncio.sleep(0)
        await loop.sock_recv(right, 1 << 20)
        await until(lambda: not sending.done() or sizes)
        while not sending.done():
            await asyncio.sleep(0)
            try:
                right.recv(1 << 20)
            except BlockingIOError:
                continue
        await sending
        left.close()
        right.close()

    run(loop, main())
    assert sizes[:2] == [BIG, 10]


@pytest.mark.mioloop_only(
    sys.version_info >= (3, 12), reason="asyncio's queues the data and watches the closed socket"
)
def test_lines_that_abort_while_they_are_listed(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, protocol, peer):

            def lines() -> Iterator[bytes]:
                yield b"one"
                transport.abort()
                yield b"two"

            transport.writelines(lines())
            assert await receive_all(peer) == b""
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None
            assert transport.get_write_buffer_size() == 0

    run(loop, main())
