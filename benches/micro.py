"""What the loop does without a network: callbacks, tasks, timers, threads, name look-ups.

Each function sets a piece of work up and returns the body that does it `count` times. The work is as a
program would do it, and the Python around it as small as it can be, since it costs every loop the same and
blurs the ratio. What `python -m mioloop bench` measures as well is the package's.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from functools import partial

from mioloop.bench import (
    call_later_cancel,
    call_soon_chain,
    call_soon_threadsafe,
    create_task,
    executor_serial,
    job,
    nothing,
    queue_ping,
    sleep_zero,
)

from .row import Body, InProcess, Loop


def call_soon_arguments(loop: Loop) -> Body:
    async def run(count: int) -> None:
        done = loop.create_future()
        call_soon = loop.call_soon

        def step(left: int, first: object, second: object) -> None:
            if left > 1:
                call_soon(step, left - 1, first, second)
            else:
                done.set_result(None)

        call_soon(step, count, None, None)
        await done

    return run


def gather(loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*[nothing() for _ in range(1000)])

    return run


def future(loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            waiter = loop.create_future()
            loop.call_soon(waiter.set_result, None)
            await waiter

    return run


FIRING = 100_000


def timers_fire(loop: Loop) -> Body:
    delays = [random.Random(1).uniform(0, 0.05) for _ in range(FIRING)]
    left = 0
    done = loop.create_future()

    def fire() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set_result(None)

    async def run(count: int) -> None:
        nonlocal left, done
        for _ in range(count):
            left, done = FIRING, loop.create_future()
            for delay in delays:
                loop.call_later(delay, fire)
            await done

    return run


HELD = 500_000


def timer_churn(loop: Loop) -> Body:
    """A server with half a million idle timeouts: each operation puts one of them off."""
    held = [loop.call_later(600, print) for _ in range(HELD)]
    place = 0

    async def run(count: int) -> None:
        nonlocal place
        for _ in range(count):
            for _ in range(1000):
                held[place].cancel()
                held[place] = loop.call_later(600, print)
                place = (place + 1) % HELD
            await asyncio.sleep(0)

    return run


def wait_for(loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            waiter = loop.create_future()
            loop.call_soon(waiter.set_result, None)
            await asyncio.wait_for(waiter, 10)

    return run


def executor_many(loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*[loop.run_in_executor(None, job) for _ in range(500)])

    return run


def executor_waiting(loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            await loop.run_in_executor(None, time.sleep, 0.0001)

    return run


def add_reader(loop: Loop) -> Body:
    """One byte through a pipe whose end is watched: the system calls are two, read and write."""

    async def run(count: int) -> None:
        reader, writer = os.pipe()
        waiter = loop.create_future()

        def ready() -> None:
            os.read(reader, 1)
            waiter.set_result(None)

        loop.add_reader(reader, ready)
        for _ in range(count):
            waiter = loop.create_future()
            os.write(writer, b"x")
            await waiter
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)

    return run


def getaddrinfo(host: str, loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            await loop.getaddrinfo(host, 80, type=socket.SOCK_STREAM)

    return run


ROWS = (
    InProcess("call_soon chain", 0.20, call_soon_chain),
    InProcess("call_soon, 3 args", 0.22, call_soon_arguments),
    InProcess("asyncio.sleep(0)", 0.36, sleep_zero),
    InProcess("create_task + await", 0.48, create_task),
    InProcess("gather of 1000", 0.70, gather),
    InProcess("future set + await", 0.38, future),
    InProcess("call_later + cancel", 0.45, call_later_cancel),
    InProcess("100k timers fire", 0.45, timers_fire, batch=FIRING),
    InProcess("timer churn over 500k held", 0.14, timer_churn, batch=1000),
    InProcess("wait_for", 0.52, wait_for),
    InProcess("call_soon_threadsafe", 0.45, call_soon_threadsafe, pinned=False),
    InProcess("run_in_executor, one at a time", 0.40, executor_serial, pinned=False),
    InProcess("run_in_executor, 500 at once", 0.40, executor_many, batch=500, pinned=False),
    InProcess("run_in_executor, 100 µs of waiting", None, executor_waiting, pinned=False),
    InProcess("asyncio.Queue ping", 0.85, queue_ping),
    InProcess("add_reader on a pipe", 0.60, add_reader),
    InProcess("getaddrinfo, numeric", 0.60, partial(getaddrinfo, "127.0.0.1")),
    InProcess("getaddrinfo, a name", 0.70, partial(getaddrinfo, "localhost"), pinned=False),
)
