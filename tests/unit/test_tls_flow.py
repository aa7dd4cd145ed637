"""What a TLS transport holds, when it stops the program or the peer, and what it puts on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
import time
from typing import Any

import pytest

from .protocols import BufferedRecorder, Recorder
from .support import SAFETY, run, settle, unread, until
from .tls_peer import Contexts, is_asyncio, make_contexts, secured

APPLICATION_DATA = 23  # a record's first byte


@pytest.fixture(scope="module")
def tls() -> Contexts:
    return make_contexts()


def fill(transport: Any, protocol: Recorder, chunk: int = 50_000) -> int:
    """Writes until the protocol is told to pause; returns how much."""
    size, before = 0, protocol.names.count("pause")
    while protocol.names.count("pause") == before:
        transport.write(b"x" * chunk)
        size += chunk
    return size


def test_the_program_pauses_and_resumes(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            for _ in range(3):
                size = fill(transport, protocol)
                assert await peer.read(size) == b"x" * size
                await until(lambda: protocol.names.count("resume") == protocol.names.count("pause"))
                await until(lambda: transport.get_write_buffer_size() == 0)

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio does not count what the transport beneath holds")
def test_the_size_of_the_write_buffer_is_what_is_held(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            transport.write(b"x" * 10)
            assert transport.get_write_buffer_size() == 10
            assert await peer.read(10) == b"x" * 10
            assert transport.get_write_buffer_size() == 0
            size = fill(transport, protocol)
            held = transport.get_write_buffer_size()
            assert held >= transport.get_write_buffer_limits()[1]
            transport.write(b"x" * 1000)
            assert transport.get_write_buffer_size() >= held + 1000
            await peer.read(size + 1000)
            await until(lambda: transport.get_write_buffer_size() == 0)

    run(loop, main())


@pytest.mark.parametrize("size", [64, 84, 100, 148, 180])
def test_a_large_write_leaves_at_once(loop: asyncio.AbstractEventLoop, tls: Contexts, size: int) -> None:
    """All of it, within the callback that writes, if there is room: what is not held is with the kernel."""

    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, _protocol, peer):
            transport.write(b"x" * (size * 1024))
            ends = time.monotonic() + SAFETY
            while unread(peer.sock) < size * 1024 and time.monotonic() < ends:
                time.sleep(0.001)
            assert unread(peer.sock) >= size * 1024
            # Not before: to ask for it is to have everything sent.
            assert transport.get_write_buffer_size() == 0

    run(loop, main())


# Marks around those of the transport beneath (16 and 64 KiB), between which nothing of it may get stuck.
@pytest.mark.mioloop_only(reason="asyncio pauses at a mark of 0 what holds nothing, and does not resume")
@pytest.mark.parametrize(
    "limits",
    [(0, 0), (1, 0), (1, 1), (1000, 10), (40_000, 20_000), (70_000, 1000), (500_000, 100), (10**9, 0)],
)
def test_any_water_marks(loop: asyncio.AbstractEventLoop, tls: Contexts, limits: tuple[int, int]) -> None:
    high, low = limits

    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            transport.set_write_buffer_limits(high=high, low=low)
            assert transport.get_write_buffer_limits() == (low, high)
            assert protocol.names == ["made"]
            written, paused = 0, 0
            reading = asyncio.ensure_future(peer.read(20 * 100_000))
            for _ in range(20):
                transport.write(b"x" * 100_000)
                written += 100_000
                if protocol.names.count("pause") > paused:
                    paused += 1
                    await until(lambda: protocol.names.count("resume") == paused)  # noqa: B023
                    assert transport.get_write_buffer_size() <= low
            assert await reading == b"x" * written
            await until(lambda: transport.get_write_buffer_size() == 0)
            assert protocol.names.count("pause") == protocol.names.count("resume")

    run(loop, main())


def test_wrong_water_marks(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, _protocol, _peer):
            assert transport.get_write_buffer_limits() == (131_072, 524_288)
            assert transport.get_read_buffer_limits() == (65_536, 262_144)
            for set_limits in (transport.set_write_buffer_limits, transport.set_read_buffer_limits):
                with pytest.raises(ValueError, match=r"^high \(1\) must be >= low \(2\) must be >= 0$"):
                    set_limits(high=1, low=2)
                with pytest.raises(ValueError, match=r"must be >= 0$"):
                    set_limits(high=1, low=-1)
            transport.set_write_buffer_limits(low=100)
            assert transport.get_write_buffer_limits() == (100, 400)
            transport.set_read_buffer_limits(high=400)
            assert transport.get_read_buffer_limits() == (100, 400)

    run(loop, main())


def test_a_pause_stops_the_peer(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        data = os.urandom(4_000_000)
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            transport.pause_reading()
            assert not transport.is_reading()
            writing = asyncio.ensure_future(peer.write(data))
            await until(lambda: transport.get_read_buffer_size() >= 262_144)
            await settle()
            held = transport.get_read_buffer_size()
            assert held < 2_000_000 and not writing.done()
            await settle()
            assert transport.get_read_buffer_size() == held
            transport.resume_reading()
            assert transport.is_reading()
            await until(lambda: len(protocol.data) == len(data))
            assert protocol.data == data
            assert transport.get_read_buffer_size() == 0
            await writing

    run(loop, main())


def test_pauses_within_data_received(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            if len(self.events) % 2:
                self.transport.resume_reading()
            else:
                asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    async def main() -> None:
        data = os.urandom(2_000_000)
        async with secured(Pausing(), tls) as (_transport, protocol, peer):
            await peer.write(data)
            await until(lambda: len(protocol.data) == len(data))
            assert protocol.data == data

    run(loop, main())


@pytest.mark.parametrize("then", ["write", "set_write_buffer_limits", "close"])
def test_a_resume_delivers_nothing_from_within_another_call(
    loop: asyncio.AbstractEventLoop, tls: Contexts, then: str
) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            transport.pause_reading()
            await peer.write(b"not yet")
            await until(lambda: transport.get_read_buffer_size() > 0)
            transport.resume_reading()
            if then == "close":
                if is_asyncio(loop):
                    return  # It delivers the rest from within.
                transport.close()
            else:
                args = (b"x" * 100_000,) if then == "write" else (100,)
                getattr(transport, then)(*args)
            assert protocol.data == b""
            if then != "close":
                await until(lambda: protocol.data == b"not yet")

    run(loop, main())


def test_a_resume_that_is_taken_back(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            transport.pause_reading()
            await peer.write(b"x")
            await until(transport.get_read_buffer_size)
            transport.resume_reading()
            transport.pause_reading()
            await settle()
            assert protocol.names == ["made"]
            transport.resume_reading()
            await until(lambda: protocol.data == b"x")

    run(loop, main())


@pytest.mark.parametrize("size", [7, 1000, 16_384, 100_000])
@pytest.mark.parametrize("view", [True, False])
def test_buffered_protocols(loop: asyncio.AbstractEventLoop, tls: Contexts, size: int, view: bool) -> None:
    class Lending(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> Any:
            buffer = super().get_buffer(sizehint)
            return memoryview(buffer) if view else buffer

    if is_asyncio(loop) and not view:
        return  # it reads into copies of its parts

    async def main() -> None:
        data = os.urandom(20_000 if size < 1000 else 500_000)
        async with secured(Lending(size), tls) as (_transport, protocol, peer):
            await peer.write(data)
            await until(lambda: len(protocol.data) == len(data))
            assert protocol.data == data
            await peer.write(b"and more")
            await until(lambda: protocol.data == data + b"and more")

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio takes it for the end")
def test_an_empty_buffer(loop: asyncio.AbstractEventLoop, tls: Contexts, caught: Any) -> None:
    async def main() -> None:
        async with secured(BufferedRecorder(0), tls) as (_transport, protocol, peer):
            await peer.write(b"x")
            await until(lambda: protocol.is_lost)
            assert str(protocol.loss) == "get_buffer() returned an empty buffer"
            assert caught.take()["exception"] is protocol.loss

    run(loop, main())


class OwnSSLObject(ssl.SSLObject):
    """A program's own class is called by its public methods."""


class GivesMore(ssl.SSLObject):
    """Whatever was asked for."""

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        data = super().read(len)
        with contextlib.suppress(ssl.SSLWantReadError):
            while data:
                more = super().read(len)
                if not more:
                    break
                data += more
        return data


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("own", [None, OwnSSLObject, GivesMore])
@pytest.mark.parametrize("pauses", [False, True])
def test_a_flood(
    loop: asyncio.AbstractEventLoop,
    tls: Contexts,
    version: ssl.TLSVersion,
    own: type[ssl.SSLObject] | None,
    pauses: bool,
) -> None:
    """More at once than a record, a socket's buffer and what OpenSSL is given hold, and then little again."""
    chosen = random.Random(7)
    sent = [
        chosen.randbytes(size) for size in [10, 3_000_000, 16384, 1, 70_000, *range(1, 2000, 97), 900_000]
    ]
    contexts = make_contexts()
    contexts.server.minimum_version = contexts.server.maximum_version = version
    if own:
        contexts.server.sslobject_class = own

    class Slow(Recorder):
        largest = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.largest = max(self.largest, len(data))
            if pauses and chosen.random() < 0.3:
                self.transport.pause_reading()
                loop.call_later(chosen.random() / 1000, self.transport.resume_reading)

    def flood(address: tuple[str, int]) -> None:
        with (
            socket.create_connection(address) as plain,
            contexts.client.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            for data in sent:
                secure.sendall(data)
            secure.unwrap()

    async def main() -> None:
        protocol = Slow()
        server = await loop.create_server(lambda: protocol, "127.0.0.1", 0, ssl=contexts.server)
        flooding = loop.run_in_executor(None, flood, server.sockets[0].getsockname())
        await until(lambda: protocol.events)
        time.sleep(0.05)  # let it fill what there is
        await flooding
        await until(lambda: protocol.is_lost)
        assert protocol.data == b"".join(sent)
        assert protocol.largest > 16384
        server.close()
        await server.wait_closed()

    run(loop, main())


def test_memory_in_the_making_is_shown_to_nobody(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """A context may put an object of its own in the place of the C object, which keeps what it is given."""
    kept: list[Any] = []

    class Standin:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def read(self, *args: Any) -> Any:
            kept.extend(args[1:])
            return self.inner.read(*args)

    contexts = make_contexts()
    wrap: Any = contexts.server._wrap_bio  # type: ignore[attr-defined]
    contexts.server._wrap_bio = lambda *args, **options: Standin(wrap(*args, **options))  # type: ignore[attr-defined]

    async def main() -> None:
        async with secured(Recorder(), contexts, server_side=True) as (_, protocol, peer):
            await peer.write(b"x" * 500_000)
            await until(lambda: len(protocol.data) == 500_000)

    run(loop, main())
    assert kept == [] or is_asyncio(loop)


def test_another_protocol_in_the_middle(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, first, peer):
            await peer.write(b"one")
            await until(lambda: first.data == b"one")
            second = BufferedRecorder()
            transport.set_protocol(second)
            assert transport.get_protocol() is second
            await peer.write(b"two")
            await until(lambda: second.data == b"two")
            await peer.close_notify()
            await until(lambda: second.is_lost)
            assert first.names == ["made", "data"]

    run(loop, main())


def test_what_may_be_written(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, _protocol, peer):
            data = bytearray(b"changed later")
            transport.write(data)
            view = memoryview(data)[:7]
            transport.writelines([view, b"", b" twice"])
            view.release()
            data[:7] = b"CHANGED"
            transport.write(b"")
            transport.writelines([])
            assert await peer.read(26) == b"changed laterchanged twice"
            with pytest.raises(TypeError, match=r"^data: expecting a bytes-like instance, got str$"):
                transport.write("text")
            if not is_asyncio(loop):  # whose connection is at its end then
                with pytest.raises(TypeError):
                    transport.writelines([b"good", 1])
            with pytest.raises(NotImplementedError):
                transport.write_eof()
            transport.write(b"end")
            assert await peer.read(3) == b"end"

    run(loop, main())


class Answering(Recorder):
    def __init__(self, *answer: bytes) -> None:
        super().__init__()
        self.answer = answer

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        for piece in self.answer:
            self.transport.write(piece)


@pytest.mark.mioloop_only(reason="asyncio makes a record of each write")
@pytest.mark.parametrize(
    "sizes, records",
    [
        ([100, 1000], 1),
        ([10] * 1000, 1),
        ([100, 16_284], 1),
        ([100, 16_285], 2),
        ([100, 100_000], 7),
        ([20_000, 20_000, 20_000], 4),
        ([16_384, 16_384], 2),
        ([100_000, 5, 5, 100_000, 5], 13),
        ([300_000], 19),
        ([9_000] * 10, 6),
    ],
)
@pytest.mark.parametrize("within", [True, False])
def test_writes_of_one_iteration_share_records(
    loop: asyncio.AbstractEventLoop, tls: Contexts, sizes: list[int], records: int, within: bool
) -> None:
    async def main() -> None:
        data = [os.urandom(size) for size in sizes]
        async with secured(Answering(*data) if within else Recorder(), tls) as (transport, _, peer):
            transport.write(b"first")
            assert await peer.read(5) == b"first"  # and the session tickets
            before = len(peer.ciphertext)
            if within:
                await peer.write(b"x")
            else:
                for piece in data:
                    transport.write(piece)
            assert await peer.read(sum(sizes)) == b"".join(data)
            kinds = peer.records(before)
            # A large amount does not wait for more, so a cut may be made there.
            extra = sum(sizes) // 65_536
            assert records <= kinds.count(APPLICATION_DATA) <= records + extra

    run(loop, main())


def test_a_lone_write_does_not_wait(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """It leaves in the iteration in which it is made, and from outside of the loop at once."""

    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, _protocol, peer):
            transport.write(b"x")
            await asyncio.sleep(0)
            before = len(peer.ciphertext)
            peer.ciphertext += peer.sock.recv(100_000)
            assert peer.records(before)[-1] == APPLICATION_DATA

    run(loop, main())


def test_a_write_while_the_loop_does_not_run(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def begin() -> Any:
        context = secured(Recorder(), tls)
        return context, await context.__aenter__()

    context, (transport, _protocol, peer) = loop.run_until_complete(begin())
    transport.write(b"hello")
    assert loop.run_until_complete(peer.read(5)) == b"hello"
    loop.run_until_complete(context.__aexit__(None, None, None))


def test_resume_writing_that_writes(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """Each time it may, it writes more than it should; nothing recurses and nothing is lost."""

    class Eager(Recorder):
        left = 100

        def resume_writing(self) -> None:
            super().resume_writing()
            before = len(self.events)
            while self.left and len(self.events) == before:
                self.left -= 1
                self.transport.write(bytes([self.left % 256]) * 30_000)

    async def main() -> None:
        async with secured(Eager(), tls) as (transport, protocol, peer):
            transport.set_write_buffer_limits(high=10_000)
            protocol.resume_writing()
            received = await peer.read(100 * 30_000)
            assert received == b"".join(bytes([left % 256]) * 30_000 for left in range(99, -1, -1))

    run(loop, main())
