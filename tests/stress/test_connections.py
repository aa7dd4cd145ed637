"""5,000 connections at once to a server that has descriptors for a fifth of them.

The idea: every client is connected before the first does anything, so the server has accepted as many as it
can, the rest wait in its accept queue, and it has to run out of descriptors. Then each client, in its own
time, echoes, half-closes, resets, leaves or goes idle, and the server accepts the others bit by bit. In the
end both sides' accounts have to agree.

The clients run on asyncio's own loop, and so does, for reference, the server: a fault of the test, or of
asyncio, is told from one of mioloop.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import pytest

from .server import ECHO, GREETING, IDLE_UNTIL_ABORTED, IDLE_UNTIL_CLOSED

CONNECTIONS = 5_000
DESCRIPTORS = 6_000  # what this process needs, generously
SAFETY = 100  # seconds; ends a test that would otherwise hang
ROOT = Path(__file__).parents[2]
LOOPS = {"asyncio": "asyncio:SelectorEventLoop", "mioloop": "mioloop:new_event_loop"}

NOISE = random.Random(1).randbytes(1 << 20)


class Kind(Enum):
    """How a client ends."""

    ECHO = auto()  # has everything echoed, then closes
    HALF_CLOSE = auto()  # says at once that it has sent everything, and reads until the end
    RESET_EARLY = auto()  # resets what the server may not have accepted yet
    RESET_LATE = auto()  # resets in the middle of the echo
    LEAVE = auto()  # closes without a word
    IDLE_UNTIL_CLOSED = auto()  # waits until the server has had enough of it
    IDLE_UNTIL_ABORTED = auto()


IDLE = {Kind.IDLE_UNTIL_CLOSED: IDLE_UNTIL_CLOSED, Kind.IDLE_UNTIL_ABORTED: IDLE_UNTIL_ABORTED}
# The kinds whose connections end in order; a reset may reach the server as the end of the stream as well.
ORDERLY = {Kind.ECHO, Kind.HALF_CLOSE, *IDLE}


@dataclass(frozen=True)
class Plan:
    """What one client is going to do; drawn beforehand, so that it is the same in every run."""

    kind: Kind
    pause: float
    payload: memoryview

    @classmethod
    def drawn(cls, rng: random.Random) -> Plan:
        # Most fit in the sockets' buffers; of the others the server has to keep a part.
        size = rng.randrange(0, 600_000) if rng.random() < 0.03 else rng.randrange(0, 4_000)
        start = rng.randrange(len(NOISE) - size)
        kind = rng.choice(list(Kind))
        return cls(kind, rng.random(), memoryview(NOISE)[start : start + size])


async def receive(client: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer if the stream ends before."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < size:
        data = await loop.sock_recv(client, size - len(received))
        if not data:
            break
        received += data
    return bytes(received)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


async def act(plan: Plan, client: socket.socket, greeting: bytes) -> None:
    """What `plan` says; of the server's greeting, `greeting` is what still has to come."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(plan.pause)
    if plan.kind is Kind.LEAVE:
        return
    if plan.kind is Kind.RESET_EARLY:
        await loop.sock_sendall(client, ECHO)
        reset(client)
        return
    if plan.kind in IDLE:
        await loop.sock_sendall(client, IDLE[plan.kind])
        assert await receive(client, 10) == greeting
        return

    message = ECHO + plan.payload

    async def send() -> None:
        await loop.sock_sendall(client, message)
        if plan.kind is Kind.HALF_CLOSE:
            client.shutdown(socket.SHUT_WR)

    expected = greeting + message
    if plan.kind is Kind.RESET_LATE:
        expected = expected[: len(greeting) + 1 + len(plan.payload) // 2]
    async with asyncio.TaskGroup() as tasks:
        # The server stops reading while its echo is not read: both have to go on at once.
        sending = tasks.create_task(send())
        received = await receive(client, len(expected))
        if plan.kind is Kind.RESET_LATE:
            sending.cancel()
    assert received == expected
    if plan.kind is Kind.HALF_CLOSE:
        assert await loop.sock_recv(client, 1) == b""
    elif plan.kind is Kind.RESET_LATE:
        reset(client)


async def run_clients(port: int, plans: list[Plan], at_once: int) -> None:
    """Connects them all, then lets them act."""
    loop = asyncio.get_running_loop()
    clients: list[socket.socket] = []

    async def connect(client: socket.socket) -> None:
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))

    try:
        clients += [socket.socket() for _ in plans]
        # First those that the server has descriptors for: together with the others they might be too many for
        # its accept queue, and the system would drop some of them for a second.
        async with asyncio.TaskGroup() as tasks:
            for client in clients[:at_once]:
                tasks.create_task(connect(client))
        for client in clients[:at_once]:
            assert await receive(client, len(GREETING)) == GREETING
        async with asyncio.TaskGroup() as tasks:
            for client in clients[at_once:]:
                tasks.create_task(connect(client))
        async with asyncio.TaskGroup() as tasks:
            for number, (plan, client) in enumerate(zip(plans, clients, strict=True)):
                tasks.create_task(act_and_close(plan, client, b"" if number < at_once else GREETING))
    finally:
        for client in clients:
            client.close()


async def act_and_close(plan: Plan, client: socket.socket, greeting: bytes) -> None:
    with client:
        await act(plan, client, greeting)


async def run_all(loop_name: str, plans: list[Plan], at_once: int) -> dict[str, Any]:
    """The server's account, after all clients have come and gone."""
    server = await asyncio.create_subprocess_exec(
        *[sys.executable, "-W", "error", "-m", "tests.stress.server"],
        *[loop_name, str(len(plans)), str(at_once)],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert server.stdout is not None
    try:
        port = await server.stdout.readline()
        if port:
            await run_clients(int(port), plans, at_once)
        stdout, stderr = await server.communicate(b"end\n")
    except BaseException as error:
        if server.returncode is None:
            server.kill()
        _, stderr = await server.communicate()
        error.add_note(f"the server's stderr: {stderr.decode()}")
        raise
    assert (stderr.decode(), server.returncode) == ("", 0)
    account: dict[str, Any] = json.loads(stdout)
    return account


@pytest.fixture
def enough_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if hard != unlimited and hard < DESCRIPTORS:
        pytest.skip(f"needs {DESCRIPTORS} descriptors, the hard limit is {hard}")
    if soft != unlimited and soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("enough_descriptors")
@pytest.mark.parametrize("loop_name", LOOPS)
def test_connections_beyond_the_limit(loop_name: str) -> None:
    rng = random.Random(20_000)
    plans = [Plan.drawn(rng) for _ in range(CONNECTIONS)]
    kinds = Counter(plan.kind for plan in plans)
    # What the accept queue cannot hold (4,096 on most systems), the server has to; still too few for all.
    queue = int(Path("/proc/sys/net/core/somaxconn").read_text())
    at_once = max(1_000, CONNECTIONS - queue)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        account = runner.run(asyncio.wait_for(run_all(LOOPS[loop_name], plans, at_once), SAFETY))

    assert account["violations"] == {}
    assert (account["made"], account["lost"]) == (CONNECTIONS, CONNECTIONS)
    assert account["timed_out"] == sum(kinds[kind] for kind in IDLE)
    assert set(account["lost_with"]) <= {"NoneType", "ConnectionResetError", "BrokenPipeError"}
    assert account["lost_with"]["NoneType"] >= sum(kinds[kind] for kind in ORDERLY)
    reported = set(account["reported"])
    if loop_name == "asyncio":  # may try once more to accept after its server has been closed
        reported = {report for report in reported if "_start_serving" not in report}
    assert reported == {"socket.accept() out of system resource: EMFILE"}
    assert account["descriptors_at_end"] == account["descriptors_at_start"]
    assert account["tasks_at_end"] == 0
    assert account["connections_alive_at_end"] == 0
