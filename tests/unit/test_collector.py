"""The collector runs whenever it likes, also while an object of ours is being made and is not whole yet."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import LoopFactory


@pytest.fixture(autouse=True)
def restless_collector() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)


def test_making_loops(loop_factory: LoopFactory) -> None:
    for _ in range(100):
        loop_factory().close()


def test_making_handles(loop: asyncio.AbstractEventLoop) -> None:
    seen: list[int] = []
    for number in range(200):
        loop.call_soon(seen.append, number)
        loop.call_soon_threadsafe(seen.append, number)
        loop.call_later(3600, seen.append, number).cancel()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == [number for number in range(200) for _ in range(2)]


def test_making_connections(loop: asyncio.AbstractEventLoop) -> None:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    async def main() -> None:
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        for number in range(30):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"%d\n" % number)
            assert await reader.readline() == b"%d\n" % number
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    loop.run_until_complete(main())


def test_making_datagram_endpoints(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        for _ in range(30):
            transport, _protocol = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
            )
            transport.sendto(b"x", transport.get_extra_info("sockname"))
            await asyncio.sleep(0)
            transport.close()
            await asyncio.sleep(0)

    loop.run_until_complete(main())
