"""Descriptors are the user's: they close them, reuse the number, duplicate over them behind the loop's
back.

A registration that outlived its file must never fire for a new file of that number, and must not be in
the way of a new registration. asyncio's selectors take numbers for files, so most of this is mioloop's
own promise.
"""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from .support import pipe, run, run_once, run_until, settle, socketpair

takes_numbers_for_files = pytest.mark.mioloop_only(reason="asyncio's selector takes the number for the file")


def several(loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(5):
        run_once(loop)


def pipe_at(number: int) -> int:
    """A pipe whose reading end has that very number; the writing end."""
    reader, writer = pipe()
    if writer == number:
        writer, taken = os.dup(writer), writer
        os.close(taken)
    if reader != number:
        os.dup2(reader, number)
        os.close(reader)
    return writer


def put_behind(number: int) -> socket.socket:
    """Puts a new socket behind that number, which is never free in between; the peer of the socket."""
    left, right = socketpair()
    os.dup2(left.fileno(), number)
    left.close()
    return right


def test_a_removed_registration_leaves_the_number_free(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    for turn in range(5):
        reader, writer = pipe()
        os.write(writer, b"x")
        loop.add_reader(reader, log.append, f"turn {turn}")
        run_until(loop, lambda turn=turn: f"turn {turn}" in log)
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)
    assert set(log) == {f"turn {turn}" for turn in range(5)}


def test_closing_the_descriptor_in_its_callback(loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe()
    log: list[int] = []

    def close() -> None:
        log.append(1)
        loop.remove_reader(reader)
        os.close(reader)

    loop.add_reader(reader, close)
    os.write(writer, b"x")
    run_until(loop, lambda: log)
    several(loop)
    os.close(writer)
    assert log == [1]


def test_closed_without_removal_the_loop_goes_on(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()
    log: list[str] = []
    loop.add_reader(left, log.append, "dead")
    number = left.fileno()
    left.close()
    several(loop)
    assert log == []
    right.close()
    loop.call_later(0.001, log.append, "timer")
    run_until(loop, lambda: log)
    assert log == ["timer"]
    loop.remove_reader(number)


def test_closed_inside_its_callback_without_removal(loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe()
    log: list[int] = []

    def close() -> None:
        log.append(1)
        os.close(reader)

    loop.add_reader(reader, close)
    os.write(writer, b"x")
    run_until(loop, lambda: log)
    several(loop)
    os.close(writer)
    assert log == [1]
    loop.remove_reader(reader)


@takes_numbers_for_files
def test_the_number_can_be_registered_again(loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe()
    log: list[str] = []
    loop.add_reader(reader, log.append, "old")
    os.close(reader)
    os.close(writer)
    writer = pipe_at(reader)
    loop.add_reader(reader, lambda: log.append(os.read(reader, 10).decode()))
    os.write(writer, b"new")
    run_until(loop, lambda: log)
    several(loop)
    assert log == ["new"]
    assert loop.remove_reader(reader) is True
    os.close(reader)
    os.close(writer)


def test_the_old_callback_does_not_fire_for_the_new_file(loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe()
    log: list[str] = []
    loop.add_reader(reader, log.append, "old")
    os.close(reader)
    os.close(writer)
    writer = pipe_at(reader)
    os.write(writer, b"x")
    several(loop)
    assert log == []
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)


@takes_numbers_for_files
def test_the_old_file_lives_on_under_another_number(loop: asyncio.AbstractEventLoop) -> None:
    """The kernel goes on reporting the old file: its registration lives as long as the file does."""
    reader, writer = pipe()
    twin = os.dup(reader)
    log: list[str] = []
    loop.add_reader(reader, log.append, "old")
    os.close(reader)
    new_writer = pipe_at(reader)
    loop.add_reader(reader, lambda: log.append(os.read(reader, 10).decode()))
    os.write(writer, b"for the old file")
    several(loop)
    assert log == []
    os.write(new_writer, b"new")
    run_until(loop, lambda: log)
    several(loop)
    assert log == ["new"]
    loop.remove_reader(reader)
    for fd in (reader, twin, writer, new_writer):
        os.close(fd)


@takes_numbers_for_files
def test_dup2_over_a_watched_descriptor(loop: asyncio.AbstractEventLoop) -> None:
    old_reader, old_writer = pipe()
    new_reader, new_writer = pipe()
    log: list[str] = []
    loop.add_reader(old_reader, log.append, "old")
    os.dup2(new_reader, old_reader)
    os.write(new_writer, b"new")
    several(loop)
    assert log == []
    loop.add_reader(old_reader, lambda: log.append(os.read(old_reader, 10).decode()))
    run_until(loop, lambda: log)
    assert log == ["new"]
    loop.remove_reader(old_reader)
    for fd in (old_reader, old_writer, new_reader, new_writer):
        os.close(fd)


@takes_numbers_for_files
def test_a_writer_after_a_stale_reader(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()
    log: list[str] = []
    loop.add_reader(left, log.append, "old reader")
    peer = put_behind(left.fileno())
    peer.send(b"x")
    loop.add_writer(left, log.append, "new writer")
    run_until(loop, lambda: log)
    several(loop)
    assert set(log) == {"new writer"}
    loop.remove_writer(left)
    loop.remove_reader(left)
    for sock in (left, right, peer):
        sock.close()


@takes_numbers_for_files
def test_removing_a_stale_registration(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()
    number = left.fileno()
    loop.add_reader(number, print)
    loop.add_writer(number, print)
    left.close()
    right.close()
    assert loop.remove_reader(number) is True
    assert loop.remove_writer(number) is True
    assert loop.remove_reader(number) is False
    several(loop)


@takes_numbers_for_files
def test_a_transport_on_a_number_with_a_stale_registration(loop: asyncio.AbstractEventLoop) -> None:
    left, right = socketpair()
    log: list[str] = []
    loop.add_reader(left, log.append, "stale")
    loop.add_writer(left, log.append, "stale")
    peer = put_behind(left.fileno())

    class Receiver(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            log.append(data.decode())

    async def main() -> None:
        transport, _ = await loop.create_connection(Receiver, sock=left)
        peer.send(b"data")
        while not log:
            await asyncio.sleep(0)
        transport.close()
        await settle()

    run(loop, main())
    assert log == ["data"]
    right.close()
    peer.close()


def test_two_loops_watch_the_same_descriptor(
    loop: asyncio.AbstractEventLoop, loop_factory: type[asyncio.AbstractEventLoop]
) -> None:
    other = loop_factory()
    left, right = socketpair()
    log: list[str] = []
    loop.add_reader(left, log.append, "one")
    other.add_reader(left, log.append, "other")
    right.send(b"x")
    run_until(loop, lambda: log)
    assert set(log) == {"one"}
    log.clear()
    run_until(other, lambda: log)
    assert set(log) == {"other"}
    other.close()
    log.clear()
    run_until(loop, lambda: log)
    assert set(log) == {"one"}
    loop.remove_reader(left)
    left.close()
    right.close()
