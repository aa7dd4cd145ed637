"""How TLS connections end: in order, at once, by mistake, and from within any callback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import ssl
from typing import Any

import pytest

from .protocols import BufferedRecorder, Recorder
from .support import Caught, reset, run, settle, tcp_pair, until
from .tls_peer import Contexts, CutOff, Peer, is_asyncio, make_contexts, secured

LARGE = 2_000_000


@pytest.fixture(scope="module")
def tls() -> Contexts:
    return make_contexts()


class Acting(Recorder):
    """Does something in one of its callbacks."""

    def __init__(self, when: str, act: Any) -> None:
        super().__init__()
        self.when, self.act = when, act

    def note(self, name: str, argument: Any = None) -> None:
        super().note(name, argument)
        if name == self.when:
            self.act(self.transport)


def write_until_paused(transport: Any, protocol: Recorder) -> int:
    """Returns how much was written."""
    size = 0
    while "pause" not in protocol.names:
        transport.write(b"x" * 100_000)
        size += 100_000
    return size


def tunnelled(outer: Peer, tls: Contexts) -> Peer:
    """A peer within another one's connection."""
    inner = Peer(outer.sock, tls, server_side=False)

    async def send() -> None:
        await outer.write(inner.outgoing.read())

    async def receive() -> None:
        data = await outer.do(outer.tls.read, 100_000)
        if not data:
            raise CutOff
        inner.incoming.write(data)

    inner.send, inner.receive = send, receive  # type: ignore[method-assign]
    return inner


@pytest.mark.parametrize("server_side", [True, False])
def test_close(loop: asyncio.AbstractEventLoop, tls: Contexts, server_side: bool) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls, server_side) as (transport, protocol, peer):
            transport.write(b"last words")
            transport.close()
            assert transport.is_closing()
            assert await peer.read(100) == b"last words"
            assert protocol.names == ["made"]
            await peer.do(peer.tls.unwrap)
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "eof", "lost"]
            assert protocol.loss is None

    run(loop, main())


@pytest.mark.parametrize("server_side", [True, False])
def test_the_peer_closes(loop: asyncio.AbstractEventLoop, tls: Contexts, server_side: bool) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls, server_side) as (_transport, protocol, peer):
            await peer.write(b"bye")
            await peer.do(peer.tls.unwrap)
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "data", "eof", "lost"]
            assert protocol.data == b"bye"
            assert protocol.loss is None

    run(loop, main())


def test_an_end_without_close_notify(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (_transport, protocol, peer):
            await peer.write(b"bye")
            peer.sock.shutdown(socket.SHUT_WR)
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "data", "eof", "lost"]
            assert protocol.loss is None

    run(loop, main())


@pytest.mark.parametrize("resume", [True, False])
def test_an_end_while_the_program_does_not_read(
    loop: asyncio.AbstractEventLoop, tls: Contexts, resume: bool
) -> None:
    """The data before it is still delivered; unless the program ends it without."""

    if is_asyncio(loop) and not resume:
        return  # asyncio never closes such a connection

    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            transport.pause_reading()
            await peer.write(b"bye")
            peer.sock.shutdown(socket.SHUT_WR)
            await settle()
            assert protocol.names == ["made"]
            if resume:
                transport.resume_reading()
            else:
                assert transport.is_closing()
                transport.close()
            await until(lambda: protocol.is_lost)
            assert protocol.names == (["made", "data", "eof", "lost"] if resume else ["made", "eof", "lost"])

    run(loop, main())


@pytest.mark.parametrize("act", ["close", "abort"])
@pytest.mark.parametrize("when", ["made", "data", "eof", "pause", "resume"])
def test_an_end_within_a_callback(
    loop: asyncio.AbstractEventLoop, tls: Contexts, caught: Caught, when: str, act: str
) -> None:
    if is_asyncio(loop) and (when, act) == ("resume", "abort"):
        return  # asyncio's own transport raises AttributeError then

    async def main() -> None:
        protocol = Acting(when, lambda transport: getattr(transport, act)())
        async with secured(protocol, tls) as (transport, _, peer):
            if when == "data":
                await peer.write(b"x")
            elif when == "eof":
                await peer.close_notify()
            elif when in ("pause", "resume"):
                size = write_until_paused(transport, protocol)
                if when == "resume":
                    with contextlib.suppress(CutOff, ConnectionError):
                        assert await peer.read(size) == b"x" * size
            with contextlib.suppress(CutOff, ConnectionError):
                while await peer.read(100_000):
                    pass
                await peer.do(peer.tls.unwrap)
            peer.sock.close()
            await until(lambda: protocol.is_lost)
            assert protocol.names[-1] == "lost" and protocol.names.count("lost") == 1
            assert protocol.loss is None or act == "close"

    run(loop, main())


def test_close_and_then_abort_within_one_callback(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """The close_notify and what was written have left before the connection is cut."""

    def act(transport: Any) -> None:
        transport.write(b"answer")
        transport.close()
        transport.abort()
        assert transport.is_closing()

    async def main() -> None:
        async with secured(Acting("data", act), tls) as (_transport, protocol, peer):
            await peer.write(b"x")
            assert await peer.read(100) == b"answer"  # and then the end in order
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None

    run(loop, main())


@pytest.mark.parametrize("within", [True, False])
def test_what_is_written_before_an_abort_has_left(
    loop: asyncio.AbstractEventLoop, tls: Contexts, within: bool
) -> None:
    def act(transport: Any) -> None:
        transport.write(b"one, ")
        transport.writelines([b"two, ", b"three"])
        transport.abort()

    async def main() -> None:
        async with secured(Acting("data", act) if within else Recorder(), tls) as (transport, _, peer):
            if within:
                await peer.write(b"x")
            else:
                act(transport)
            assert await last_words(peer) == b"one, two, three"

    run(loop, main())


async def last_words(peer: Peer) -> bytes:
    """All that comes before the connection is cut off."""
    received = b""
    with pytest.raises((CutOff, ConnectionResetError)):
        while data := await peer.read(1):
            received += data
    return received


@pytest.mark.parametrize("when", ["made", "data", "eof"])
def test_what_is_written_before_an_exception_has_left(
    loop: asyncio.AbstractEventLoop, tls: Contexts, caught: Caught, when: str
) -> None:
    def act(transport: Any) -> None:
        transport.write(b"your fault")
        raise ZeroDivisionError

    async def main() -> None:
        ours, theirs = tcp_pair()
        peer = Peer(theirs, tls, server_side=False)

        async def provoke() -> bytes:
            await peer.handshake()
            if when == "data":
                await peer.write(b"x")
            elif when == "eof":
                await peer.close_notify()
            return await last_words(peer)

        making = loop.connect_accepted_socket(lambda: Acting(when, act), ours, ssl=tls.server)
        with contextlib.closing(theirs):
            _, received = await asyncio.gather(making, provoke(), return_exceptions=True)
            assert received == b"your fault"
        await until(lambda: ours.fileno() == -1)
        assert isinstance(caught.take()["exception"], ZeroDivisionError)

    run(loop, main())


@pytest.mark.parametrize("method", ["close", "abort"])
def test_what_is_written_before_the_transport_beneath_ends_has_left(
    loop: asyncio.AbstractEventLoop, tls: Contexts, method: str
) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            # As `Server.close_clients` and `abort_clients` do.
            beneath = transport._ssl_protocol._transport
            transport.write(b"good night")
            getattr(beneath, method)()
            assert await last_words(peer) == b"good night"
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None

    run(loop, main())


@pytest.mark.parametrize("ending", [False, True])
@pytest.mark.parametrize("method", ["close", "abort"])
@pytest.mark.parametrize("when", ["made", "data", "eof", "buffer", "updated"])
def test_the_transport_beneath_ends_within_a_callback(
    loop: asyncio.AbstractEventLoop, tls: Contexts, when: str, method: str, ending: bool
) -> None:
    """What was written has left, and the close_notify of a transport that was closed."""
    message = b"good night"

    def act(transport: Any) -> None:
        transport.write(message)
        if ending:
            transport.close()
        getattr(transport._ssl_protocol._transport, method)()

    class Lending(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> Any:
            if when == "buffer" and not self.transport.is_closing():
                act(self.transport)
            return super().get_buffer(sizehint)

    protocol: Any = Acting(when, act)
    if when in ("buffer", "updated"):
        protocol = Lending()
        if when == "updated":
            protocol.buffer_updated = lambda nbytes: act(protocol.transport)

    async def main() -> None:
        ours, theirs = tcp_pair()
        peer = Peer(theirs, tls, server_side=False)
        making = loop.connect_accepted_socket(lambda: protocol, ours, ssl=tls.server)
        with contextlib.closing(theirs):
            await asyncio.gather(making, peer.handshake(), return_exceptions=True)
            if when == "eof":
                await peer.close_notify()
            elif when != "made":
                await peer.write(b"x")
            assert await (peer.read(100) if ending else last_words(peer)) == message
            await until(lambda: ours.fileno() == -1 and protocol.is_lost)
            assert protocol.loss is None

    run(loop, main())


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("method", ["close", "abort"])
@pytest.mark.parametrize("lowest", [False, True])
def test_the_transport_beneath_is_a_secure_one(
    loop: Any, tls: Contexts, lowest: bool, method: str, within: bool
) -> None:
    """TLS in TLS, as through a proxy; it ends, or the stream beneath both."""

    def end(transport: Any, beneath: Any) -> None:
        transport.write(b"good night")
        getattr(beneath._ssl_protocol._transport if lowest else beneath, method)()

    async def main() -> None:
        async with secured(Recorder(), tls) as (beneath, _, outer):
            inner = tunnelled(outer, tls)
            transport: Any
            protocol = Acting("data", lambda _: end(transport, beneath)) if within else Recorder()
            starting = loop.start_tls(beneath, protocol, tls.server, server_side=True)
            transport, _ = await asyncio.gather(starting, inner.handshake())
            if within:
                await inner.write(b"x")
            else:
                end(transport, beneath)
            assert await last_words(inner) == b"good night"
            outer.sock.close()
            await until(lambda: protocol.is_lost)

    run(loop, main())


@pytest.mark.parametrize("method", ["close", "abort"])
def test_an_interrupt_does_not_keep_the_transport_beneath_open(
    loop: asyncio.AbstractEventLoop, tls: Contexts, method: str
) -> None:
    """`pause_writing` is called by the write on asyncio; here, where the write is carried out."""

    closing: list[bool] = []

    def act(transport: Any) -> None:
        beneath = transport._ssl_protocol._transport
        transport.set_write_buffer_limits(high=100)
        with contextlib.suppress(KeyboardInterrupt):
            transport.write(bytes(3_000_000))
        with contextlib.suppress(KeyboardInterrupt):
            getattr(beneath, method)()
        closing.append(beneath.is_closing())

    class Interrupted(Acting):
        def pause_writing(self) -> None:
            raise KeyboardInterrupt

    async def main() -> None:
        protocol = Interrupted("data", act)
        async with secured(protocol, tls) as (_, _, peer):
            await peer.write(b"x")
            await until(lambda: bool(closing))
            peer.sock.close()
            await until(lambda: protocol.is_lost)

    run(loop, main())
    assert closing == [True]


def test_what_is_forwarded_as_the_loop_stops_has_left(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """From one connection to another, by a callback after which the loop comes back no more."""
    stack = contextlib.AsyncExitStack()

    async def begin() -> tuple[Any, Peer]:
        source, protocol, sender = await stack.enter_async_context(secured(Recorder(), tls))
        # As a client: a server's session tickets would be on their way too.
        sink, _, receiver = await stack.enter_async_context(secured(Recorder(), tls, server_side=False))

        def forward(data: bytes) -> None:
            sink.write(data)
            loop.stop()

        protocol.data_received = forward  # type: ignore[method-assign]
        source.pause_reading()
        await sender.write(b"forward me")
        await until(lambda: source.get_read_buffer_size() > 0)
        return source, receiver

    source, receiver = run(loop, begin())
    source.resume_reading()
    loop.run_forever()
    assert select.select([receiver.sock], [], [], 5)[0]
    assert run(loop, receiver.read(10)) == b"forward me"
    run(loop, stack.aclose())


def test_writing_in_eof_received(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        protocol = Acting("eof", lambda transport: transport.write(b"so soon?"))
        async with secured(protocol, tls) as (_transport, _, peer):
            await peer.close_notify()
            assert await peer.read(100) == b"so soon?"
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "eof", "lost"]

    run(loop, main())


@pytest.mark.parametrize("paused", [True, False])
def test_a_peer_that_goes_on_after_its_close_notify(
    loop: asyncio.AbstractEventLoop, tls: Contexts, paused: bool
) -> None:
    """Records without end, each of which is a chance to recurse."""

    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            if paused:
                transport.pause_reading()
            await peer.close_notify()
            record = b"\x17\x03\x03\x00\x14" + bytes(20)
            with contextlib.suppress(ConnectionError):
                for _ in range(20):
                    await loop.sock_sendall(peer.sock, record * 500)
            if paused:
                transport.resume_reading()
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "eof", "lost"]

    run(loop, main())


def test_a_peer_that_goes_on_after_our_close_notify(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            transport.close()
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    peer.tls.write(b"x" * 1000)
                    await peer.send()
            await until(lambda: protocol.is_lost)
            assert protocol.names == ["made", "lost"]
            assert isinstance(protocol.loss, (ssl.SSLError, ConnectionError))

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio fails with what it has not read, and drops what was written")
def test_close_with_data_unread(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    """What the peer had sent before does not keep it from getting all that was written."""

    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            transport.pause_reading()
            await peer.write(b"x" * 10_000)
            await until(lambda: transport.get_read_buffer_size() >= 10_000)
            transport.write(b"y" * LARGE)
            transport.close()
            assert await peer.read(LARGE + 1) == b"y" * LARGE
            await peer.do(peer.tls.unwrap)
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None
            assert protocol.data == b""

    run(loop, main())


def test_all_that_was_written_arrives_before_the_close(
    loop: asyncio.AbstractEventLoop, tls: Contexts
) -> None:
    """Far more than the kernel takes, to a peer that begins to read when we have closed."""

    async def main() -> None:
        data = os.urandom(LARGE)
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            for start in range(0, LARGE, 70_001):
                transport.write(data[start : start + 70_001])
            transport.close()
            await settle()
            assert await peer.read(LARGE + 1) == data
            await peer.do(peer.tls.unwrap)
            await until(lambda: protocol.is_lost)
            assert protocol.loss is None

    run(loop, main())


def test_a_peer_that_does_not_answer_the_close(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls, ssl_shutdown_timeout=0.01) as (transport, protocol, _peer):
            transport.close()
            await until(lambda: protocol.is_lost)
            assert isinstance(protocol.loss, TimeoutError)
            assert str(protocol.loss) == "SSL shutdown timed out"

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio before 3.14 cancels the timer when the shutdown is complete")
def test_a_peer_that_closes_and_does_not_read(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls, ssl_shutdown_timeout=0.05) as (transport, protocol, peer):
            transport.write(b"x" * LARGE)
            await peer.close_notify()
            await until(lambda: protocol.is_lost)
            assert isinstance(protocol.loss, TimeoutError)

    run(loop, main())


@pytest.mark.parametrize("when", ["made", "data", "eof", "pause", "resume", "lost"])
def test_an_exception_in_a_callback(
    loop: asyncio.AbstractEventLoop, tls: Contexts, caught: Caught, when: str
) -> None:
    def act(_transport: object) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        protocol = Acting(when, act)
        if when == "made":
            with pytest.raises(ZeroDivisionError):
                async with secured(protocol, tls):
                    pass
            await settle()
            assert caught.take()["message"].startswith("Fatal error: protocol.")
            return
        async with secured(protocol, tls) as (transport, _, peer):
            if when == "data":
                await peer.write(b"x")
            elif when == "eof":
                await peer.close_notify()
            elif when in ("pause", "resume"):
                size = write_until_paused(transport, protocol)
                assert await peer.read(size) == b"x" * size
                await until(lambda: "resume" in protocol.names)
                transport.abort()
            else:
                transport.abort()
            await until(lambda: protocol.is_lost and caught)
            context = caught.take()
            assert isinstance(context["exception"], ZeroDivisionError)
            expected = {
                "data": "Fatal error on SSL protocol",
                "eof": "Error calling eof_received()",
                "pause": "protocol.pause_writing() failed",
                "resume": "protocol.resume_writing() failed",
            }.get(when)
            assert expected is None or context["message"] == expected
            if when in ("data", "eof"):
                assert isinstance(protocol.loss, ZeroDivisionError)

    run(loop, main())


@pytest.mark.parametrize("method", ["get_buffer", "buffer_updated"])
def test_an_exception_of_a_buffered_protocol(
    loop: asyncio.AbstractEventLoop, tls: Contexts, caught: Caught, method: str
) -> None:
    class Failing(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> Any:
            if method == "get_buffer":
                raise ZeroDivisionError
            return super().get_buffer(sizehint)

        def buffer_updated(self, nbytes: int) -> None:
            raise ZeroDivisionError

    async def main() -> None:
        async with secured(Failing(), tls) as (_transport, protocol, peer):
            await peer.write(b"x")
            await until(lambda: protocol.is_lost)
            assert caught.take()["message"] == "Fatal error on SSL protocol"
            assert isinstance(protocol.loss, ZeroDivisionError)

    run(loop, main())


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_a_callback_that_ends_the_loop(
    loop: asyncio.AbstractEventLoop, tls: Contexts, exception: type[BaseException]
) -> None:
    """The exception leaves the loop, and when it runs again the connection goes on."""

    def act(_transport: object) -> None:
        protocol.when = "never"
        raise exception

    protocol = Acting("data", act)

    async def begin() -> None:
        async with secured(protocol, tls) as (transport, _, peer):
            await peer.write(b"one")
            going_on.set()
            await until(lambda: protocol.data == b"one")
            await peer.write(b"two")
            await until(lambda: protocol.data == b"onetwo")
            transport.write(b"still here")
            assert await peer.read(10) == b"still here"

    async def wait() -> None:
        await task

    going_on = asyncio.Event()
    task = loop.create_task(begin())
    with pytest.raises(exception):
        loop.run_until_complete(wait())
    loop.run_until_complete(task)
    for left in asyncio.all_tasks(loop):
        loop.run_until_complete(left)


def test_writing_after_the_end(
    loop: asyncio.AbstractEventLoop, tls: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, _peer):
            transport.abort()
            await until(lambda: protocol.is_lost)
            for _ in range(5):
                transport.write(b"x")
            for _ in range(2):
                transport.writelines([b"x"])

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(loop, main())
    assert "SSL connection is closed" in caplog.messages


@pytest.mark.mioloop_only(reason="asyncio's goes on to the end of the file, and says that it was sent")
def test_sendfile_ends_with_its_peer(loop: Any, tls: Contexts, tmp_path: Any) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(40_000_000))

    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            with file.open("rb") as opened:
                sending = asyncio.ensure_future(loop.sendfile(transport, opened))
                await peer.read(100_000)
                peer.sock.close()
                with pytest.raises(ConnectionError):
                    await sending
            await until(lambda: protocol.is_lost)

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio's goes on to the end of the file, and says that it was sent")
def test_sendfile_after_its_peer_has_ended(loop: Any, tls: Contexts, tmp_path: Any) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4_000_000))

    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            transport.pause_reading()
            peer.sock.shutdown(socket.SHUT_WR)
            await until(transport.is_closing)
            with file.open("rb") as opened, pytest.raises((ConnectionError, RuntimeError)):
                await loop.sendfile(transport, opened)
            transport.close()
            await until(lambda: protocol.is_lost)

    run(loop, main())


def test_a_transport_that_nobody_closes(loop: asyncio.AbstractEventLoop, tls: Contexts) -> None:
    transport: Any = None

    async def main() -> None:
        nonlocal transport
        async with secured(Recorder(), tls) as (transport, _, _):
            pass

    run(loop, main())
    assert transport.is_closing()
    assert transport.get_extra_info("peername", "gone") == "gone"
    assert transport.get_extra_info("sslcontext") is tls.server


@pytest.mark.parametrize("layers", [1, 2])
def test_a_large_write_to_a_peer_that_is_gone(
    loop: asyncio.AbstractEventLoop, tls: Contexts, caplog: pytest.LogCaptureFixture, layers: int
) -> None:
    """It is one write, however many pieces it is sent in, and nobody has gone on in spite of a warning."""

    async def main() -> None:
        async with secured(Recorder(), tls) as (transport, protocol, peer):
            if layers == 2:
                protocol = Recorder()
                starting = asyncio.get_running_loop().start_tls(
                    transport, protocol, tls.server, server_side=True
                )
                transport, _ = await asyncio.gather(starting, tunnelled(peer, tls).handshake())
            reset(peer.sock)
            transport.write(b"x" * 5_000_000)
            assert transport.get_write_buffer_size() == 0
            await until(lambda: protocol.is_lost)
            # start_tls does not call connection_made.
            assert protocol.names == ["made", "lost"][layers - 1 :]
            assert isinstance(protocol.loss, ConnectionError)

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(loop, main())
    assert caplog.messages == []
