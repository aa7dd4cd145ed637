"""What waits of loop.sock_* leave behind: a registration, kept for the next wait. It must not be noticed.

It is told of by nobody, stands in nobody's way and never fires for another file.
"""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import os
import socket
import weakref
from typing import Any

import pytest

from .support import BIG, fill, run, run_once, settle, socketpair, tcp_pair, until

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Any:
    left, right = socketpair()
    yield left, right
    left.close()
    right.close()


async def wait_once(loop: asyncio.AbstractEventLoop, left: socket.socket, right: socket.socket) -> None:
    """One sock_recv that has to wait."""
    task = asyncio.ensure_future(loop.sock_recv(left, 10))
    await asyncio.sleep(0)
    right.send(b"x")
    assert await task == b"x"


def read_into(sock: socket.socket, log: list[bytes], size: int) -> None:
    log.append(sock.recv(size))


def test_many_waits_on_one_socket(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    async def main() -> None:
        for _ in range(100):
            await wait_once(loop, *pair)

    run(loop, main())


def test_nobody_is_told_of_data_that_nobody_waits_for(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair

    async def main() -> None:
        await wait_once(loop, left, right)
        for _ in range(3):
            right.send(b"y")
            await settle()
        assert await loop.sock_recv(left, 10) == b"yyy"
        await wait_once(loop, left, right)

    run(loop, main())


@pytest.mark.parametrize("added", ["reader", "writer"])
def test_a_callback_after_a_wait(loop: asyncio.AbstractEventLoop, pair: Pair, added: str) -> None:
    left, right = pair

    async def main() -> None:
        for _ in range(3):
            await wait_once(loop, left, right)
            assert loop.remove_reader(left) is False
            log: list[bytes] = []
            if added == "reader":
                loop.add_reader(left, read_into, left, log, 1)
                right.send(b"ab")
                await until(lambda log=log: log == [b"a", b"b"])
                assert loop.remove_reader(left) is True
            else:
                loop.add_writer(left, log.append, b"writable")
                await until(lambda log=log: len(log) > 2)
                assert loop.remove_writer(left) is True

    run(loop, main())


def test_a_wait_beside_a_callback(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    """The callback stays level-triggered, and the wait is over once."""
    left, right = pair

    async def main() -> None:
        written = 0

        def write() -> None:
            nonlocal written
            written += 1

        loop.add_writer(left, write)
        for _ in range(3):
            await wait_once(loop, left, right)
            before = written
            await until(lambda before=before: written > before + 2)
        loop.remove_writer(left)
        await settle()
        before = written
        await wait_once(loop, left, right)
        assert written == before

    run(loop, main())


@pytest.mark.parametrize("first", ["sending", "receiving"])
def test_waits_on_both_sides(loop: asyncio.AbstractEventLoop, first: str) -> None:
    left, right = tcp_pair()

    async def main() -> None:
        fill(left)
        sending = asyncio.ensure_future(loop.sock_sendall(left, b"y" * BIG))
        receiving = asyncio.ensure_future(loop.sock_recv(left, 10))
        await settle()
        if first == "receiving":
            right.send(b"x")
            assert await receiving == b"x"
        drained = 0
        while not sending.done() or drained % 7:
            drained += len(await loop.sock_recv(right, 1 << 20))
            await asyncio.sleep(0)
            if sending.done():
                break
        await sending
        if first == "sending":
            assert not receiving.done()
            right.send(b"x")
            assert await receiving == b"x"

    run(loop, main())
    left.close()
    right.close()


def test_a_cancelled_wait_beside_another(loop: asyncio.AbstractEventLoop) -> None:
    left, right = tcp_pair()

    async def main() -> None:
        fill(left)
        sending = asyncio.ensure_future(loop.sock_sendall(left, b"y" * BIG))
        receiving = asyncio.ensure_future(loop.sock_recv(left, 10))
        await settle()
        receiving.cancel()
        await asyncio.wait([receiving])
        right.send(b"kept")
        await settle()
        assert not sending.done()
        while not sending.done():
            await loop.sock_recv(right, 1 << 20)
            await asyncio.sleep(0)
        await sending
        assert left.recv(10) == b"kept"

    run(loop, main())
    left.close()
    right.close()


@pytest.mark.parametrize("then", ["sock_recv", "add_reader", "transport"])
def test_another_file_gets_the_number(loop: asyncio.AbstractEventLoop, pair: Pair, then: str) -> None:
    """Closed between two operations, also while a copy keeps the old file open."""

    async def main() -> None:
        for copied in (False, True):
            left, right = socketpair()
            await wait_once(loop, left, right)
            copy = left.dup() if copied else None
            # Armed, when it is closed.
            task = asyncio.ensure_future(loop.sock_recv(left, 10))
            await settle()
            task.cancel()
            await asyncio.wait([task])
            number = left.fileno()
            left.close()
            new, far = socketpair()
            if new.fileno() != number:
                os.dup2(new.fileno(), number)
                new.close()
                new = socket.socket(fileno=number)
            if copied:
                right.send(b"for the old file")
            await settle()
            if then == "sock_recv":
                await wait_once(loop, new, far)
            elif then == "add_reader":
                log: list[bytes] = []
                loop.add_reader(new, read_into, new, log, 10)
                await settle()
                assert log == []
                far.send(b"new")
                await until(lambda log=log: log)
                assert loop.remove_reader(new)
                assert log == [b"new"]
            else:
                reader, writer = await asyncio.open_connection(sock=new)
                far.send(b"new")
                assert await reader.readexactly(3) == b"new"
                writer.close()
                await writer.wait_closed()
            for sock in (right, far, new, copy):
                if sock is not None:
                    sock.close()

    run(loop, main())


@pytest.mark.mioloop_only(reason="asyncio's selector takes the number for the file")
def test_another_file_is_put_behind_the_number_without_closing_it(
    loop: asyncio.AbstractEventLoop, pair: Pair
) -> None:
    left, right = pair

    async def main() -> None:
        await wait_once(loop, left, right)
        new, far = socketpair()
        os.dup2(new.fileno(), left.fileno())
        new.close()
        await wait_once(loop, left, far)
        far.close()

    run(loop, main())


def test_a_connection_of_a_waited_for_socket_becomes_a_stream(
    loop: asyncio.AbstractEventLoop, pair: Pair
) -> None:
    left, right = pair

    async def main() -> None:
        await wait_once(loop, left, right)
        reader, writer = await asyncio.open_connection(sock=left)
        right.send(b"line\n")
        assert await reader.readline() == b"line\n"
        writer.close()
        await writer.wait_closed()

    run(loop, main())


def test_a_second_operation_takes_the_place(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = pair

    async def main() -> None:
        first = asyncio.ensure_future(loop.sock_recv(left, 10))
        await settle()
        second = asyncio.ensure_future(loop.sock_recv(left, 10))
        await settle()
        right.send(b"x")
        assert await second == b"x"
        await settle()
        assert not first.done()
        first.cancel()
        await asyncio.wait([first])
        await wait_once(loop, left, right)

    run(loop, main())


def test_a_waited_for_socket_is_nobodys_but_the_programs(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, right = socketpair()
    known = weakref.ref(left)

    async def main(left: socket.socket) -> None:
        await wait_once(loop, left, right)
        left.close()

    run(loop, main(left))
    del left
    gc.collect()
    assert known() is None
    right.close()


def test_a_loop_that_is_closed_with_a_wait(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    operation: Any = loop.sock_recv(pair[0], 10)
    operation.send(None)
    loop.close()
    operation.close()


def test_what_an_operation_is(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    left, _ = pair

    async def main() -> None:
        operation: Any = loop.sock_recv(left, 10)
        assert isinstance(operation, collections.abc.Coroutine)
        assert asyncio.iscoroutine(operation)
        assert not asyncio.isfuture(operation)
        waiter = operation.send(None)
        assert asyncio.isfuture(waiter)
        assert waiter.get_loop() is loop
        assert not waiter.done()
        with pytest.raises((TypeError, RuntimeError)):
            operation.send(1)
        operation.close()
        with pytest.raises(RuntimeError):
            operation.send(None)
        operation.close()

    run(loop, main())


@pytest.mark.parametrize("cancel", [False, True])
def test_what_a_task_waits_for_is_a_future(loop: asyncio.AbstractEventLoop, pair: Pair, cancel: bool) -> None:
    left, right = pair

    async def main() -> None:
        operation: Any = loop.sock_recv(left, 10)
        waiter = operation.send(None)
        log: list[object] = []
        unwanted = log.append
        waiter.add_done_callback(log.append)
        waiter.add_done_callback(unwanted)
        assert waiter.remove_done_callback(unwanted) == 2
        assert waiter.remove_done_callback(unwanted) == 0
        waiter.add_done_callback(log.append)
        assert (waiter.done(), waiter.cancelled()) == (False, False)
        with pytest.raises(asyncio.InvalidStateError):
            waiter.result()
        if cancel:
            assert waiter.cancel("enough")
            with pytest.raises(asyncio.CancelledError, match="^enough$"):
                waiter.result()
        else:
            right.send(b"x")
        await until(lambda: log == [waiter])
        assert (waiter.done(), waiter.cancelled()) == (True, cancel)
        assert not waiter.cancel()
        waiter.add_done_callback(log.append)
        await until(lambda: log == [waiter, waiter])
        operation.close()

    run(loop, main())


def test_the_future_of_another_loop(loop: asyncio.AbstractEventLoop, pair: Pair) -> None:
    other = asyncio.SelectorEventLoop()

    async def main() -> object:
        return await loop.sock_recv(pair[0], 10)

    with pytest.raises(RuntimeError, match="attached to a different loop$"):
        run(other, main())
    other.close()
    run_once(loop)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_recv_into_leaves_the_buffer_to_its_owner(
    loop: asyncio.AbstractEventLoop, pair: Pair, kind: Any
) -> None:
    left, right = pair

    async def main() -> None:
        owner = bytearray(4)
        buffer = owner if kind is bytearray else memoryview(owner)[1:3]
        task = asyncio.ensure_future(loop.sock_recv_into(left, buffer))
        await asyncio.sleep(0)
        right.send(b"abcd")
        assert await task == len(buffer)
        assert bytes(buffer) == b"abcd"[: len(buffer)]
        if kind is bytearray:
            owner.append(1)  # Nobody holds it any more.

    run(loop, main())


def test_accept_waits_again_and_again(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            for _ in range(5):
                task = asyncio.ensure_future(loop.sock_accept(listener))
                await asyncio.sleep(0)
                with socket.create_connection(listener.getsockname()) as client:
                    connection, address = await task
                    assert address == client.getsockname()
                    assert connection.gettimeout() == 0
                    connection.close()

    run(loop, main())


def test_a_comparison_of_callbacks_that_fails_takes_none_away(
    loop: asyncio.AbstractEventLoop, pair: Pair
) -> None:
    """Nor does one in which the wait comes to its end."""
    left, right = pair
    log: list[object] = []
    future: Any = None

    class Other:
        cancels = False

        def __eq__(self, other: object) -> bool:
            if not self.cancels:
                raise ZeroDivisionError
            future.cancel()
            return False

    async def main() -> None:
        nonlocal future
        for cancels in (True, False):
            operation: Any = loop.sock_recv(left, 10)
            future = operation.send(None)
            future.add_done_callback(log.append)
            other: Any = Other()
            if cancels:
                other.cancels = True
                assert future.remove_done_callback(other) == 0
            else:
                with pytest.raises(ZeroDivisionError):
                    future.remove_done_callback(other)
                right.send(b"x")
            await until(lambda: log)
            assert future.cancelled() is cancels
            assert log.pop() is future
            operation.close()

    run(loop, main())
