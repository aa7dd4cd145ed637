"""redis-py's asyncio client against a real Redis server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio as redis

from ..conftest import Run
from .processes import HOST
from .servers import Address


@pytest.fixture(params=["TCP", "Unix"])
def url(request: pytest.FixtureRequest, redis_server: Address) -> str:
    if request.param == "Unix":
        return f"unix://{redis_server.unix}"
    return f"redis://{HOST}:{redis_server.port}"


def test_commands_and_pipelines(run: Run, url: str) -> None:
    async def main() -> None:
        async with redis.from_url(url) as client:
            await client.flushdb()
            blob = bytes(range(256)) * 4000
            await client.set("blob", blob)
            assert await client.get("blob") == blob
            async with client.pipeline(transaction=True) as pipeline:
                for n in range(500):
                    pipeline.incrby("sum", n)
                results = await pipeline.execute()
            assert results[-1] == sum(range(500))
            answers = await asyncio.gather(*(client.incr("counter") for _ in range(100)))
            assert sorted(answers) == list(range(1, 101))

    run(main())


def test_publish_and_subscribe(run: Run, url: str) -> None:
    async def main() -> None:
        async with redis.from_url(url) as client, client.pubsub() as subscriber:
            await subscriber.subscribe("news")
            confirmation = await subscriber.get_message(timeout=None)
            assert confirmation and confirmation["type"] == "subscribe"
            heard: list[int] = []

            async def listen() -> None:
                async for message in subscriber.listen():
                    heard.append(int(message["data"]))
                    if len(heard) == 100:
                        return

            listening = asyncio.create_task(listen())
            for n in range(100):
                await client.publish("news", n)
            await listening
            assert heard == list(range(100))

    run(main())


async def pop_from(client: redis.Redis) -> tuple[bytes, ...]:
    answer: Any = await client.blpop(["queue"], timeout=0)
    return tuple(answer)


def test_blocking_pops(run: Run, url: str) -> None:
    async def main() -> None:
        async with redis.from_url(url) as client:
            await client.delete("queue")
            pops = [asyncio.create_task(pop_from(client)) for _ in range(5)]
            while (await client.info("clients"))["blocked_clients"] < 5:
                await asyncio.sleep(0.01)
            await client.rpush("queue", *range(5))
            assert sorted(await asyncio.gather(*pops)) == [(b"queue", b"%d" % n) for n in range(5)]

    run(main())


def test_cancelled_while_it_blocks(run: Run, url: str) -> None:
    """Nothing is lost: what comes later goes to whoever still waits."""

    async def main() -> None:
        async with redis.from_url(url) as client:
            await client.delete("queue")
            pop = asyncio.create_task(pop_from(client))
            while (await client.info("clients"))["blocked_clients"] < 1:
                await asyncio.sleep(0.01)
            pop.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pop
            while (await client.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0.01)
            await client.rpush("queue", "kept")
            assert await client.lpop("queue") == b"kept"

    run(main())
