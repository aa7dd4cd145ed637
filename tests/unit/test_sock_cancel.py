"""Cancelling loop.sock_*: nothing stays registered, and no byte and no connection is lost.

asyncio reads when the poller reports and hands the bytes over in the next iteration: a cancel in between
throws them away. mioloop promises that what a cancelled operation did not hand over can still be had.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from .support import fill, run, settle, socketpair

OPERATIONS: dict[str, Callable[[Any, Any], Coroutine[Any, Any, Any]]] = {
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 10),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 10),
    "sock_recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(10)),
}

ROUNDS = range(9)  # more iterations than any operation takes from the event to its result


async def cancel_after(task: asyncio.Task[Any], rounds: int) -> bool:
    """Cancels a task after so many iterations; whether it was in time."""
    for _ in range(rounds):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("rounds", range(4))
def test_a_cancelled_recv_leaves_no_reader(
    loop: asyncio.AbstractEventLoop, operation: str, rounds: int
) -> None:
    left, right = socketpair()

    async def main() -> None:
        task = asyncio.ensure_future(OPERATIONS[operation](loop, left))
        assert await cancel_after(task, rounds)
        assert loop.remove_reader(left) is False
        log: list[bytes] = []
        loop.add_reader(left, lambda: log.append(left.recv(10)))
        right.send(b"for the reader")
        while not log:
            await asyncio.sleep(0)
        loop.remove_reader(left)
        right.send(b"x")
        while not await loop.sock_recv(left, 10):
            pass

    run(loop, main())
    left.close()
    right.close()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_data_after_the_cancel_is_kept(loop: asyncio.AbstractEventLoop, operation: str) -> None:
    left, right = socketpair()

    async def main() -> None:
        task = asyncio.ensure_future(OPERATIONS[operation](loop, left))
        assert await cancel_after(task, 3)
        right.send(b"kept")
        await settle()
        assert left.recv(10) == b"kept"

    run(loop, main())
    left.close()
    right.close()


def test_data_in_the_iteration_of_the_cancel_is_kept(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()

    async def main() -> None:
        task = asyncio.ensure_future(loop.sock_recv(left, 10))
        await settle()
        right.send(b"kept")
        assert await cancel_after(task, 0)
        assert left.recv(10) == b"kept"

    run(loop, main())
    left.close()
    right.close()


@pytest.mark.mioloop_only(reason="asyncio loses what it read when the cancel comes before the task wakes up")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("rounds", ROUNDS)
def test_no_byte_is_lost_whenever_the_cancel_comes(
    loop: asyncio.AbstractEventLoop, operation: str, rounds: int
) -> None:
    left, right = socketpair()

    async def main() -> None:
        task = asyncio.ensure_future(OPERATIONS[operation](loop, left))
        await settle()
        right.send(b"precious")
        if await cancel_after(task, rounds):
            assert left.recv(10) == b"precious"
        else:
            assert task.result() in (b"precious", 8, (b"precious", None), (8, None))

    run(loop, main())
    left.close()
    right.close()


@pytest.mark.mioloop_only(reason="asyncio loses what it read when the cancel comes before the task wakes up")
def test_no_byte_is_lost_when_reader_and_canceller_run_in_one_iteration(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The cancel comes from the reader of another socket that became ready in the same poll."""
    for first in (True, False):
        left, right = socketpair()
        other_left, other_right = socketpair()

        async def main(left: Any, right: Any, other_left: Any, other_right: Any, first: bool) -> None:
            task: asyncio.Task[bytes]

            def cancel() -> None:
                other_left.recv(10)
                task.cancel()

            if first:
                loop.add_reader(other_left, cancel)
            task = asyncio.ensure_future(loop.sock_recv(left, 10))
            await settle()
            if not first:
                loop.add_reader(other_left, cancel)
            right.send(b"precious")
            other_right.send(b"x")
            await asyncio.wait([task])
            await settle()
            loop.remove_reader(other_left)
            received = left.recv(10) if task.cancelled() else task.result()
            assert received == b"precious"

        run(loop, main(left, right, other_left, other_right, first))
        for sock in (left, right, other_left, other_right):
            sock.close()


@pytest.mark.mioloop_only(reason="asyncio loses what it read when the cancel comes before the task wakes up")
def test_no_byte_is_lost_by_timeouts(loop: asyncio.AbstractEventLoop) -> None:
    """A stream of numbered bytes through a reader that keeps timing out."""
    left, right = socketpair()

    async def send() -> None:
        for number in range(200):
            right.send(bytes([number]))
            await asyncio.sleep(0.0003)
        right.close()

    async def main() -> None:
        sending = asyncio.ensure_future(send())
        received = bytearray()
        while True:
            try:
                async with asyncio.timeout(0.0004):
                    data = await loop.sock_recv(left, 1)
            except TimeoutError:
                continue
            if not data:
                break
            received += data
        await sending
        assert received == bytes(range(200))

    run(loop, main())
    left.close()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_cancelled_accept_leaves_no_reader(loop: asyncio.AbstractEventLoop, rounds: int) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            task = asyncio.ensure_future(loop.sock_accept(listener))
            assert await cancel_after(task, rounds)
            assert loop.remove_reader(listener) is False
            with socket.create_connection(listener.getsockname()) as client:
                server, address = await loop.sock_accept(listener)
                server.close()
                assert address == client.getsockname()

    run(loop, main())


@pytest.mark.mioloop_only(
    reason="asyncio loses what it accepted when the cancel comes before the task wakes up"
)
@pytest.mark.parametrize("rounds", ROUNDS)
def test_no_connection_is_lost_whenever_the_cancel_comes(
    loop: asyncio.AbstractEventLoop, rounds: int
) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            task = asyncio.ensure_future(loop.sock_accept(listener))
            await settle()
            with socket.create_connection(listener.getsockname()) as client:
                cancelled = await cancel_after(task, rounds)
                server, address = listener.accept() if cancelled else task.result()
                server.close()
                assert address == client.getsockname()

    run(loop, main())


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_cancelled_sendall_leaves_no_writer(loop: asyncio.AbstractEventLoop, rounds: int) -> None:
    left, right = socketpair()

    async def main() -> None:
        fill(left)
        task = asyncio.ensure_future(loop.sock_sendall(left, b"x" * 1_000_000))
        assert await cancel_after(task, rounds)
        assert loop.remove_writer(left) is False
        log: list[int] = []
        loop.add_writer(left, log.append, 1)
        while not log:
            try:
                right.recv(1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0)
        loop.remove_writer(left)

    run(loop, main())
    left.close()
    right.close()


def test_a_cancelled_sendall_sent_a_beginning_of_the_data(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()
    data = bytes(range(256)) * 20_000

    async def main() -> None:
        task = asyncio.ensure_future(loop.sock_sendall(left, data))
        received = bytearray(await loop.sock_recv(right, 100_000))
        assert await cancel_after(task, 1)
        left.close()
        while chunk := await loop.sock_recv(right, 1 << 20):
            received += chunk
        assert received == data[: len(received)]
        assert 0 < len(received) < len(data)

    run(loop, main())
    right.close()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_cancelled_connect_leaves_no_writer(loop: asyncio.AbstractEventLoop, rounds: int) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            client.setblocking(False)
            task = asyncio.ensure_future(loop.sock_connect(client, listener.getsockname()))
            await cancel_after(task, rounds)
            assert loop.remove_writer(client) is False
            log: list[int] = []
            loop.add_writer(client, log.append, 1)
            while not log:
                await asyncio.sleep(0)
            loop.remove_writer(client)

    run(loop, main())


def test_a_wait_for_that_times_out_leaves_the_socket_usable(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()

    async def main() -> None:
        for number in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(left, 10), 0.0005)
            right.send(bytes([number]))
            assert await loop.sock_recv(left, 10) == bytes([number])

    run(loop, main())
    left.close()
    right.close()


def test_closing_the_socket_after_the_cancel(loop: asyncio.AbstractEventLoop) -> None:
    """The user cancels and closes at once; a new socket of that number is not disturbed."""

    async def main() -> None:
        for _ in range(20):
            left, right = socketpair()
            task = asyncio.ensure_future(loop.sock_recv(left, 10))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            left.close()
            right.close()

    run(loop, main())


@pytest.mark.mioloop_only(
    reason="asyncio's clean-up takes the number of a closed socket for an error or for a new socket"
)
def test_closing_the_socket_before_the_cancel_is_noticed(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        for _ in range(20):
            left, right = socketpair()
            task = asyncio.ensure_future(loop.sock_recv(left, 10))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            left.close()
            right.close()
            new_left, new_right = socketpair()
            receiving = asyncio.ensure_future(loop.sock_recv(new_left, 10))
            await asyncio.wait([task])
            await settle(2)
            new_right.send(b"new")
            assert await receiving == b"new"
            new_left.close()
            new_right.close()

    run(loop, main())
