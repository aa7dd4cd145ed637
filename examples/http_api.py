"""An HTTP API for notes, on PostgreSQL and Redis.

    python examples/http_api.py --postgres postgresql://localhost/notes --redis redis://localhost

    POST /notes {"text": "..."}     201 {"id": 1}; words are counted in the background
    GET  /notes/1                   {"id": 1, "text": "...", "words": 3}; `words` is null until then
    GET  /summary                   three queries at once: how many notes, the longest, the jobs that wait

What is worth a look:

* a connection pool, and a `TaskGroup` that asks several questions at once, each on its own connection;
* a cache in Redis with an expiry, which a write empties;
* background jobs: a list in Redis is the queue, so that they outlive the process; a job moves to a second
  list while it is worked on, and back if the process dies with it;
* on SIGTERM aiohttp answers what was asked, and then the workers finish their jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import asyncpg
import redis.asyncio as redis
from aiohttp import web

import mioloop

POOL = web.AppKey("pool", asyncpg.Pool)
REDIS = web.AppKey("redis", redis.Redis)
QUEUE, AT_WORK = "notes:jobs", "notes:jobs:at-work"
EXPIRY = 60  # seconds
WORKERS = 2

routes = web.RouteTableDef()


@routes.post("/notes")
async def create(request: web.Request) -> web.Response:
    try:
        text = (await request.json())["text"]
    except (ValueError, KeyError, TypeError):
        raise web.HTTPBadRequest(text='expected {"text": "..."}') from None
    number = await request.app[POOL].fetchval("INSERT INTO notes (text) VALUES ($1) RETURNING id", str(text))
    async with request.app[REDIS].pipeline() as pipeline:
        pipeline.lpush(QUEUE, number)
        pipeline.delete("notes:summary")
        await pipeline.execute()
    return web.json_response({"id": number}, status=201)


@routes.get(r"/notes/{id:\d{1,9}}")
async def read(request: web.Request) -> web.Response:
    number = int(request.match_info["id"])
    note = await request.app[POOL].fetchrow("SELECT id, text, words FROM notes WHERE id = $1", number)
    if note is None:
        raise web.HTTPNotFound
    return web.json_response(dict(note))


@routes.get("/summary")
async def summary(request: web.Request) -> web.Response:
    pool, cache = request.app[POOL], request.app[REDIS]
    if cached := await cache.get("notes:summary"):
        return web.json_response(text=str(cached), headers={"X-Cache": "hit"})
    async with asyncio.TaskGroup() as group:
        count = group.create_task(pool.fetchval("SELECT count(*) FROM notes"))
        longest = group.create_task(pool.fetchval("SELECT max(length(text)) FROM notes"))
        waiting = group.create_task(pool.fetchval("SELECT count(*) FROM notes WHERE words IS NULL"))
    text = json.dumps({"notes": count.result(), "longest": longest.result(), "waiting": waiting.result()})
    await cache.set("notes:summary", text, ex=EXPIRY)
    return web.json_response(text=text, headers={"X-Cache": "miss"})


async def work(pool: asyncpg.Pool, queue: redis.Redis, end: asyncio.Event) -> None:
    """Counts the words of notes until the end."""
    while not end.is_set():
        # With a limit, to see the end. A job is never in neither list.
        job = await queue.blmove(QUEUE, AT_WORK, timeout=1, src="RIGHT", dest="LEFT")
        if job is not None:
            job = str(job)
            text = await pool.fetchval("SELECT text FROM notes WHERE id = $1", int(job))
            words = len((text or "").split())
            await pool.execute("UPDATE notes SET words = $2 WHERE id = $1", int(job), words)
            async with queue.pipeline() as pipeline:
                pipeline.lrem(AT_WORK, 1, job)
                pipeline.delete("notes:summary")
                await pipeline.execute()


def make_application(postgres: str, redis_url: str) -> web.Application:
    async def resources(app: web.Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            app[POOL] = pool = await stack.enter_async_context(asyncpg.create_pool(postgres, max_size=10))
            app[REDIS] = queue = await stack.enter_async_context(
                redis.from_url(redis_url, decode_responses=True)
            )
            await pool.execute(
                "CREATE TABLE IF NOT EXISTS notes (id serial PRIMARY KEY, text text NOT NULL, words int)"
            )
            # What an earlier process left unfinished.
            while await queue.lmove(AT_WORK, QUEUE, "LEFT", "RIGHT"):
                pass
            end = asyncio.Event()
            async with asyncio.TaskGroup() as workers:
                for _ in range(WORKERS):
                    workers.create_task(work(pool, queue, end))
                yield
                end.set()

    app = web.Application()
    app.add_routes(routes)
    app.cleanup_ctx.append(resources)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="An HTTP API on PostgreSQL and Redis.")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--postgres", required=True, metavar="URL")
    parser.add_argument("--redis", required=True, metavar="URL")
    options = parser.parse_args()
    app = make_application(options.postgres, options.redis)
    # aiohttp runs the loop itself, and takes it as an argument.
    web.run_app(app, host="127.0.0.1", port=options.port, loop=mioloop.new_event_loop())


if __name__ == "__main__":
    main()
