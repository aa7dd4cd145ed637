"""Small things that a program written for asyncio may rely on, and that a review found to differ."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from .protocols import Recorder, connected
from .support import SAFETY, import_line, run, run_once, settle, socketpair


@pytest.mark.skipif(sys.version_info < (3, 12), reason="until then asyncio's was no DatagramTransport either")
def test_the_class_of_an_endpoint(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        transport: Any
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        assert isinstance(transport, asyncio.DatagramTransport)
        assert isinstance(transport, asyncio.BaseTransport)
        transport.close()
        await settle()

    run(loop, main())


LIMITS: list[tuple[dict[str, float], tuple[float, float]]] = [
    ({"high": 1e6}, (250_000, 1_000_000)),
    ({"low": 1000.0}, (1000, 4000)),
    ({"high": 2000.0, "low": 1000}, (1000, 2000)),
    ({"high": 2**62}, (2**60, 2**62)),
    ({"high": 2**62, "low": 2**62}, (2**62, 2**62)),
    ({"high": True}, (0, 1)),
]


@pytest.mark.parametrize(("given", "expected"), LIMITS, ids=repr)
def test_limits_of_all_sorts(
    loop: asyncio.AbstractEventLoop, given: dict[str, Any], expected: tuple[int, int]
) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, __):
            transport.set_write_buffer_limits(**given)
            assert transport.get_write_buffer_limits() == expected

    run(loop, main())


@pytest.mark.parametrize("low", [2**61, 2**62, 2**63 - 1, 1e30])
def test_a_low_limit_too_large_to_multiply(loop: asyncio.AbstractEventLoop, low: float) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, __):
            transport.set_write_buffer_limits(low=low)
            lower, higher = transport.get_write_buffer_limits()
            assert higher >= lower >= 2**61

    run(loop, main())


@pytest.mark.parametrize("given", [{"high": "1"}, {"low": b"1"}, {"high": -1}, {"high": 1, "low": 2}])
def test_wrong_limits(loop: asyncio.AbstractEventLoop, given: dict[str, Any]) -> None:
    async def main() -> None:
        async with connected(Recorder()) as (transport, _, __):
            before = transport.get_write_buffer_limits()
            with pytest.raises((TypeError, ValueError)):
                transport.set_write_buffer_limits(**given)
            assert transport.get_write_buffer_limits() == before

    run(loop, main())


class Boom(Exception):
    """What is thrown."""


@pytest.mark.filterwarnings("ignore:the .type, exc, tb. signature:DeprecationWarning")
@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize(
    "thrown", [(Boom,), (Boom, "message"), (Boom, Boom("message")), (Boom("message"),)], ids=repr
)
def test_throwing_into_an_operation(loop: Any, thrown: Any, waiting: bool) -> None:
    """In every form that a coroutine takes."""
    left, right = socketpair()
    operation = loop.sock_recv(left, 1)
    future = operation.send(None) if waiting else loop.create_future()
    with pytest.raises(Boom) as raised:
        operation.throw(*thrown)
    assert raised.value.args == (() if thrown == (Boom,) else ("message",))
    future.cancel()
    run_once(loop)
    assert loop.remove_reader(left) is False
    left.close()
    right.close()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="cancel() waits for the callback since 3.14")
def test_a_callback_waits_for_a_thread_that_cancels_it(loop: asyncio.AbstractEventLoop) -> None:
    joined: list[bool] = []

    def callback() -> None:
        thread = threading.Thread(target=handle.cancel)
        thread.start()
        thread.join()
        joined.append(handle.cancelled())

    handle = loop.call_soon_threadsafe(callback)
    run_once(loop)
    assert joined == [True]


class Host(str):
    """An address that can refer to something."""

    transport: Any


def test_an_endpoint_remembers_no_address_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    """A cycle through the address last sent to is collected."""

    async def main() -> weakref.ref[Any]:
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        host = Host("127.0.0.1")
        host.transport = transport
        transport.sendto(b"x", (host, transport.get_extra_info("sockname")[1]))
        transport.close()
        await settle()
        return weakref.ref(transport)

    reference = run(loop, main())
    gc.collect()
    assert reference() is None


# The limit of descriptors is the process's, hence a child.
OUT_OF_DESCRIPTORS = """
import asyncio, os, resource, socket

reports = []

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    clients = [socket.socket() for _ in range(20)]
    highest = os.dup(0)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard_limit))
    for client in clients:
        client.connect(server.sockets[0].getsockname())
        for _ in range(5):
            await asyncio.sleep(0)
    while not reports:
        await asyncio.sleep(0)
    print(len(loop._scheduled), all("out of system resource" in report["message"] for report in reports))
    for client in clients:
        client.close()
    os.close(highest)
    server.close()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.mioloop_only(reason="asyncio plans a retry for each connection of the backlog")
def test_one_retry_however_many_connections_wait(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", import_line(loop_factory) + OUT_OF_DESCRIPTORS],
        capture_output=True,
        text=True,
        timeout=SAFETY,
    )
    assert (result.stdout, result.stderr) == ("1 True\n", "")
