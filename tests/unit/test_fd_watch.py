"""add_reader and add_writer: level-triggered callbacks for any pollable descriptor."""

from __future__ import annotations

import array
import asyncio
import contextvars
import gc
import io
import os
import pty
import resource
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from .support import BIG, Caught, fill, pipe, run, run_once, run_until, socketpair, tcp_pair, until


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socketpair()
    yield left, right
    left.close()
    right.close()


Pair = tuple[socket.socket, socket.socket]


def test_a_reader_is_called_when_there_is_data(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[bytes] = []
    loop.add_reader(left, lambda: log.append(left.recv(100)))
    run_once(loop)
    assert log == []
    right.send(b"one")
    run_until(loop, lambda: log)
    right.send(b"two")
    run_until(loop, lambda: len(log) == 2)
    run_once(loop)
    assert log == [b"one", b"two"]
    assert loop.remove_reader(left) is True


def test_a_writer_is_called_while_there_is_room(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[int] = []
    fill(left)
    loop.add_writer(left, log.append, 1)
    run_once(loop)
    run_once(loop)
    assert log == []
    while len(log) < 3:
        try:
            right.recv(1 << 20)
        except BlockingIOError:
            run_once(loop)
    assert loop.remove_writer(left) is True


def test_arguments_are_passed(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    log: list[tuple[object, ...]] = []
    loop.add_writer(pair[0], lambda *args: log.append(args), 1, "two", None)
    run_until(loop, lambda: log)
    loop.remove_writer(pair[0])
    assert log[0] == (1, "two", None)


def test_unread_data_calls_again(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[bytes] = []
    right.send(b"abcdef")
    loop.add_reader(left, lambda: log.append(left.recv(1)))
    run_until(loop, lambda: len(log) == 6)
    assert log == [b"a", b"b", b"c", b"d", b"e", b"f"]
    loop.remove_reader(left)


def test_a_callback_that_reads_nothing_is_called_for_ever(
    loop: asyncio.AbstractEventLoop, pair: Pair
) -> None:
    left, right = pair
    log: list[int] = []
    right.send(b"x")
    loop.add_reader(left, log.append, 1)
    loop.add_writer(right, log.append, 2)
    run_until(loop, lambda: log.count(1) >= 100 and log.count(2) >= 100)
    loop.remove_reader(left)
    loop.remove_writer(right)
    count = len(log)
    run_once(loop)
    run_once(loop)
    assert len(log) == count


def test_data_that_was_there_before(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    right.send(b"early")
    log: list[int] = []
    loop.add_reader(left, log.append, 1)
    run_until(loop, lambda: log)
    loop.remove_reader(left)
    log.clear()
    loop.add_reader(left, log.append, 2)
    run_until(loop, lambda: log)
    loop.remove_reader(left)
    assert set(log) == {2}


def test_end_of_file_is_readable(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[bytes] = []
    loop.add_reader(left, lambda: log.append(left.recv(100)))
    right.close()
    run_until(loop, lambda: len(log) >= 3)
    loop.remove_reader(left)
    assert set(log) == {b""}


def test_one_poll_serves_readers_once_each(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    right.send(b"x")
    left.send(b"x")
    log: list[str] = []
    loop.add_reader(left, log.append, "left")
    loop.add_reader(right, log.append, "right")
    loop.stop()
    loop.run_forever()
    assert sorted(log) == ["left", "right"]
    loop.remove_reader(left)
    loop.remove_reader(right)


def test_reader_and_writer_of_one_descriptor(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[str] = []
    right.send(b"x")
    loop.add_reader(left, log.append, "read")
    loop.add_writer(left, log.append, "write")
    run_until(loop, lambda: {"read", "write"} <= set(log))
    assert loop.remove_reader(left) is True
    log.clear()
    run_until(loop, lambda: log)
    assert set(log) == {"write"}
    assert loop.remove_writer(left) is True
    log.clear()
    loop.add_reader(left, log.append, "read")
    run_until(loop, lambda: log)
    assert set(log) == {"read"}
    assert loop.remove_writer(left) is False
    assert loop.remove_reader(left) is True


def test_the_reader_comes_before_the_writer(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    right.send(b"x")
    log: list[str] = []
    loop.add_writer(left, log.append, "write")
    loop.add_reader(left, log.append, "read")
    loop.stop()
    loop.run_forever()
    assert log == ["read", "write"]
    loop.remove_writer(left)
    loop.remove_reader(left)


def test_a_second_callback_replaces_the_first(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[str] = []
    right.send(b"x")
    loop.add_reader(left, log.append, "first")
    loop.add_reader(left, log.append, "second")
    loop.add_writer(left, log.append, "first")
    loop.add_writer(left, log.append, "second")
    run_until(loop, lambda: len(log) >= 4)
    assert set(log) == {"second"}
    assert loop.remove_reader(left) is True
    assert loop.remove_reader(left) is False
    assert loop.remove_writer(left) is True
    assert loop.remove_writer(left) is False


def test_replaced_between_the_event_and_its_callback(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[str] = []

    def replace() -> None:
        loop.remove_reader(right)
        loop.add_reader(left, log.append, "second")

    left.send(b"x")
    right.send(b"x")
    loop.add_reader(right, replace)
    loop.add_reader(left, log.append, "first")
    run_until(loop, lambda: "second" in log)
    assert log.count("first") <= 1  # one, where the event of `left` came before that of `right`
    loop.remove_reader(left)


def test_removing_itself(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[bool] = []
    right.send(b"x")
    loop.add_reader(left, lambda: log.append(loop.remove_reader(left)))
    loop.add_writer(right, lambda: log.append(loop.remove_writer(right)))
    run_until(loop, lambda: len(log) == 2)
    run_once(loop)
    assert log == [True, True]


def test_removing_the_other_one_of_the_descriptor(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[str] = []

    def read() -> None:
        log.append("read")
        loop.remove_writer(left)
        loop.remove_reader(left)

    right.send(b"x")
    loop.add_reader(left, read)
    loop.add_writer(left, log.append, "write")
    loop.stop()
    loop.run_forever()
    run_once(loop)
    assert log == ["read"]


def test_removing_another_descriptor_that_is_ready_too(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[str] = []

    def read(name: str, other: socket.socket) -> None:
        log.append(name)
        loop.remove_reader(other)

    left.send(b"x")
    right.send(b"x")
    loop.add_reader(left, read, "left", right)
    loop.add_reader(right, read, "right", left)
    loop.stop()
    loop.run_forever()
    assert len(log) == 1
    loop.remove_reader(left)
    loop.remove_reader(right)


def test_removing_after_the_event_by_a_ready_callback(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    """A callback that runs before the reader in the same iteration takes it away."""
    left, right = pair
    log: list[str] = []
    right.send(b"x")
    loop.add_reader(left, log.append, "read")
    loop.call_soon(loop.remove_reader, left)
    loop.stop()
    loop.run_forever()
    run_once(loop)
    assert log == []


def test_adding_from_inside_a_reader(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair
    log: list[str] = []

    def read() -> None:
        left.recv(10)
        loop.add_writer(left, write)

    def write() -> None:
        loop.remove_writer(left)
        left.send(b"answer")
        log.append("written")

    right.send(b"x")
    loop.add_reader(left, read)
    loop.add_reader(right, lambda: log.append(right.recv(10).decode()))
    run_until(loop, lambda: len(log) == 2)
    assert log == ["written", "answer"]
    loop.remove_reader(left)
    loop.remove_reader(right)


def test_the_context_of_the_caller(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    log: list[str] = []

    def write() -> None:
        log.append(variable.get())
        variable.set("changed")

    context = contextvars.copy_context()
    context.run(variable.set, "caller")
    context.run(loop.add_writer, pair[0], write)
    run_until(loop, lambda: len(log) >= 2)
    loop.remove_writer(pair[0])
    assert log[:2] == ["caller", "changed"]  # one context for the registration, not one each time


def test_an_exception_goes_to_the_handler(
    loop: asyncio.AbstractEventLoop, pair: Pair, caught: Caught
) -> None:
    def fails() -> None:
        raise ValueError("in the writer")

    loop.add_writer(pair[0], fails)
    loop.stop()
    loop.run_forever()
    loop.remove_writer(pair[0])
    context = caught.take()
    assert context["message"].startswith("Exception in callback ")
    assert "fails(" in context["message"]
    assert str(context["exception"]) == "in the writer"
    assert isinstance(context["handle"], asyncio.Handle)


def test_an_exception_keeps_the_registration(
    loop: asyncio.AbstractEventLoop, pair: Pair, caught: Caught
) -> None:
    def fails() -> None:
        raise ValueError

    loop.add_writer(pair[0], fails)
    run_until(loop, lambda: len(caught) >= 3)
    assert loop.remove_writer(pair[0]) is True
    caught.clear()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_these_leave_the_loop(loop: asyncio.AbstractEventLoop, pair: Pair, kind: type[BaseException]) -> None:
    def leave() -> None:
        raise kind

    loop.add_writer(pair[0], leave)
    with pytest.raises(kind):
        loop.run_forever()
    with pytest.raises(kind):
        loop.run_forever()
    assert loop.remove_writer(pair[0]) is True


# Sorts of descriptors


def test_a_pipe(loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe()
    log: list[bytes] = []
    loop.add_reader(reader, lambda: log.append(os.read(reader, 100)))
    loop.add_writer(writer, lambda: (os.write(writer, b"piped"), loop.remove_writer(writer)))
    run_until(loop, lambda: log)
    assert log == [b"piped"]
    os.close(writer)
    run_until(loop, lambda: log[-1] == b"")
    loop.remove_reader(reader)
    os.close(reader)


def test_a_pipe_nobody_reads_is_writable(loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe()
    os.close(reader)
    log: list[int] = []
    loop.add_writer(writer, log.append, 1)
    run_until(loop, lambda: log)  # the write itself tells of EPIPE
    loop.remove_writer(writer)
    os.close(writer)


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="eventfd is Linux's")
def test_an_eventfd(loop: asyncio.AbstractEventLoop) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    log: list[int] = []
    loop.add_reader(fd, lambda: log.append(os.eventfd_read(fd)))
    run_once(loop)
    os.eventfd_write(fd, 3)
    run_until(loop, lambda: log)
    assert log == [3]
    loop.remove_reader(fd)
    os.close(fd)


def test_a_pseudo_terminal(loop: asyncio.AbstractEventLoop) -> None:
    master, slave = pty.openpty()
    log: list[bytes] = []
    loop.add_reader(master, lambda: log.append(os.read(master, 100)))
    os.write(slave, b"typed")
    run_until(loop, lambda: log)
    assert b"".join(log) == b"typed"
    loop.remove_reader(master)
    os.close(slave)
    os.close(master)


def test_a_listening_socket(loop: asyncio.AbstractEventLoop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        log: list[int] = []
        loop.add_reader(listener, log.append, 1)
        run_once(loop)
        assert log == []
        with socket.create_connection(listener.getsockname()):
            run_until(loop, lambda: log)
        loop.remove_reader(listener)


def test_a_file_object_and_its_number_are_the_same(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    log: list[int] = []
    loop.add_writer(pair[0], log.append, 1)
    assert loop.remove_writer(pair[0].fileno()) is True
    loop.add_writer(pair[0].fileno(), log.append, 2)
    run_until(loop, lambda: log)
    assert loop.remove_writer(pair[0]) is True
    assert set(log) == {2}


class WithFileno:
    def __init__(self, fd: Any) -> None:
        self.fd = fd

    def fileno(self) -> Any:
        return self.fd

    def __repr__(self) -> str:
        return "the object"


def test_anything_with_fileno(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    log: list[int] = []
    loop.add_writer(WithFileno(pair[0].fileno()), log.append, 1)
    run_until(loop, lambda: log)
    assert loop.remove_writer(pair[0]) is True


REGISTER = ["add_reader", "add_writer"]
REMOVE = ["remove_reader", "remove_writer"]


def call(loop: Any, method: str, fd: object) -> object:
    return getattr(loop, method)(fd, print) if method in REGISTER else getattr(loop, method)(fd)


@pytest.mark.parametrize("method", REGISTER + REMOVE)
@pytest.mark.parametrize(
    "wrong", [None, "text", 1.5, object(), WithFileno("text"), WithFileno(None), io.StringIO()]
)
def test_objects_that_are_no_file(loop: asyncio.AbstractEventLoop, method: str, wrong: object) -> None:
    with pytest.raises(ValueError) as raised:
        call(loop, method, wrong)
    # A StringIO's own error is a ValueError, too (io.UnsupportedOperation)
    assert str(raised.value) == f"Invalid file object: {wrong!r}"


@pytest.mark.parametrize("method", REGISTER)
def test_a_negative_descriptor(loop: asyncio.AbstractEventLoop, method: str) -> None:
    with pytest.raises(ValueError, match="^Invalid file descriptor: -1$"):
        call(loop, method, -1)


@pytest.mark.parametrize("method", REGISTER)
def test_a_closed_socket(loop: asyncio.AbstractEventLoop, pair: Pair, method: str) -> None:
    pair[0].close()
    with pytest.raises(ValueError, match="^Invalid file descriptor: -1$"):
        call(loop, method, pair[0])


@pytest.mark.parametrize("method", REGISTER)
def test_a_closed_descriptor(loop: asyncio.AbstractEventLoop, method: str) -> None:
    reader, writer = pipe()
    os.close(writer)
    os.close(reader)
    with pytest.raises(OSError) as raised:
        call(loop, method, reader)
    assert str(raised.value) == "[Errno 9] Bad file descriptor"
    run_once(loop)


@pytest.mark.parametrize("method", REGISTER)
def test_a_regular_file_is_refused(loop: asyncio.AbstractEventLoop, method: str) -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(PermissionError) as raised:
            call(loop, method, file)
        assert str(raised.value) == "[Errno 1] Operation not permitted"
        # Nothing is left behind of it.
        assert loop.remove_reader(file) is False
        assert loop.remove_writer(file) is False


@pytest.mark.parametrize("side", ["reader", "writer"])
def test_a_closed_socket_is_removed_by_what_it_was_added_by(
    loop: asyncio.AbstractEventLoop, pair: Pair, side: str
) -> None:
    left, _ = pair
    log: list[str] = []
    getattr(loop, f"add_{side}")(left, log.append, "called")
    left.close()
    assert getattr(loop, f"remove_{side}")(left) is True
    with pytest.raises(ValueError, match="^Invalid file descriptor: -1$"):
        getattr(loop, f"remove_{side}")(left)
    run_once(loop)
    assert not log


@pytest.mark.parametrize("method", REMOVE)
def test_a_closed_socket_that_was_added_by_its_number_is_not_known(
    loop: asyncio.AbstractEventLoop, pair: Pair, method: str
) -> None:
    left, _ = pair
    fd = left.fileno()
    loop.add_reader(fd, print)
    loop.add_writer(left, print)
    left.close()
    with pytest.raises(ValueError, match="^Invalid file descriptor: -1$"):
        call(loop, method, left)
    loop.close()


@pytest.mark.parametrize("side", ["reader", "writer"])
def test_a_closed_descriptor_is_removed_by_its_number(
    loop: asyncio.AbstractEventLoop, pair: Pair, side: str
) -> None:
    left, _ = pair
    fd = left.fileno()
    getattr(loop, f"add_{side}")(fd, print)
    left.close()
    assert getattr(loop, f"remove_{side}")(fd) is True
    assert getattr(loop, f"remove_{side}")(fd) is False


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_watched_file_object_is_kept_open(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()
    fd = left.fileno()
    log: list[bytes] = []
    loop.add_reader(left, lambda: log.append(os.read(fd, 10)))
    loop.add_writer(fd, lambda: loop.remove_writer(fd))
    del left
    gc.collect()
    right.send(b"there")
    run_until(loop, lambda: log)
    assert log == [b"there"]
    loop.remove_reader(fd)
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(fd)
    right.close()


class Lost(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def test_a_closing_transports_number_can_be_watched_and_it_sends_what_is_left(
    loop: asyncio.AbstractEventLoop,
) -> None:
    left, right = tcp_pair()

    async def main() -> None:
        transport, protocol = await loop.create_connection(Lost, sock=left)
        transport.write(b"x" * BIG)
        assert transport.get_write_buffer_size() > 0
        transport.close()
        log: list[bytes] = []
        fd = left.fileno()

        def read() -> None:
            log.append(os.read(fd, 100))
            loop.remove_reader(fd)

        loop.add_reader(fd, read)
        right.send(b"for the reader")
        await until(lambda: log)
        assert loop.remove_reader(fd) is False
        received = 0
        while data := await loop.sock_recv(right, 1 << 20):
            received += len(data)
        assert received == BIG
        assert await protocol.lost is None

    run(loop, main())
    right.close()


@pytest.mark.parametrize("side", ["reader", "writer"])
def test_a_closing_transports_number_is_not_in_the_way(loop: asyncio.AbstractEventLoop, side: str) -> None:
    left, right = tcp_pair()

    async def main() -> None:
        transport, protocol = await loop.create_connection(Lost, sock=left)
        fd = left.fileno()
        transport.close()
        assert getattr(loop, f"remove_{side}")(fd) is False
        getattr(loop, f"add_{side}")(fd, lambda: None)
        assert getattr(loop, f"remove_{side}")(fd) is True
        assert await protocol.lost is None

    run(loop, main())
    right.close()


@pytest.mark.parametrize("method", REMOVE)
def test_removing_what_was_never_added(loop: asyncio.AbstractEventLoop, pair: Pair, method: str) -> None:
    assert call(loop, method, pair[0]) is False
    assert call(loop, method, 12345) is False


@pytest.mark.parametrize("method", REGISTER)
def test_a_callback_is_required(loop: Any, pair: Pair, method: str) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        getattr(loop, method)(pair[0])
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        getattr(loop, method)(pair[0], print, x=1)


@pytest.mark.parametrize("method", REGISTER + REMOVE)
def test_a_transports_descriptor_is_the_transports(
    loop: asyncio.AbstractEventLoop, pair: Pair, method: str
) -> None:
    async def main() -> None:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=pair[0])
        fd = pair[0].fileno()
        for wrong in (fd, transport.get_extra_info("socket")):
            with pytest.raises(RuntimeError) as raised:
                call(loop, method, wrong)
            assert str(raised.value) == f"File descriptor {wrong!r} is used by transport {transport!r}"
        transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(loop, main())


def test_a_thousand_descriptors(loop: asyncio.AbstractEventLoop) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2200:
        pytest.skip("the hard limit of open files is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2200), hard))
    pipes = [pipe() for _ in range(1000)]
    try:
        seen = array.array("i", [0] * 1000)

        def read(index: int) -> None:
            os.read(pipes[index][0], 1)
            seen[index] += 1

        for index, (reader, _) in enumerate(pipes):
            loop.add_reader(reader, read, index)
        for turn in range(1, 4):
            for _, writer in pipes:
                os.write(writer, b"x")
            run_until(loop, lambda turn=turn: sum(seen) == 1000 * turn)
            assert set(seen) == {turn}
        for reader, _ in pipes:
            assert loop.remove_reader(reader) is True
    finally:
        for reader, writer in pipes:
            os.close(reader)
            os.close(writer)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_close_forgets_the_registrations(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    log: list[int] = []
    loop.add_writer(pair[0], log.append, 1)
    loop.close()
    assert loop.remove_writer(pair[0]) is False
    assert log == []
    pair[0].send(b"the socket is still the user's")
    assert pair[1].recv(100) == b"the socket is still the user's"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_inherited_registrations_are_not_shared(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    """A duplicate of a watched descriptor can be watched on its own."""
    left, right = pair
    twin = os.dup(left.fileno())
    log: list[str] = []
    right.send(b"x")
    loop.add_reader(left, log.append, "left")
    loop.add_reader(twin, log.append, "twin")
    run_until(loop, lambda: {"left", "twin"} <= set(log))
    loop.remove_reader(left)
    log.clear()
    run_until(loop, lambda: log)
    assert set(log) == {"twin"}
    loop.remove_reader(twin)
    os.close(twin)


def test_a_busy_loop_looks_at_once_for_what_is_watched_from_now_on(
    loop: asyncio.AbstractEventLoop, pair: Pair
) -> None:
    left, right = pair
    right.send(b"there already")
    log: list[str] = []

    def called() -> None:
        log.append("called")
        loop.remove_reader(left)

    async def main() -> None:
        for _ in range(20):
            log.clear()
            loop.add_reader(left, called)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert log == ["called"]

    run(loop, main())
