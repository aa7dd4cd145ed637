"""aiomysql against a real MariaDB server."""

from __future__ import annotations

import asyncio
from typing import Any

import aiomysql
import pytest

from ..conftest import Run
from .processes import HOST
from .servers import Address


@pytest.fixture(params=["TCP", "Unix"])
def where(request: pytest.FixtureRequest, mariadb: Address) -> dict[str, Any]:
    to: dict[str, Any] = {"user": "root", "db": "test", "autocommit": True, "charset": "utf8mb4"}
    if request.param == "Unix":
        return {**to, "unix_socket": str(mariadb.unix)}
    return {**to, "host": HOST, "port": mariadb.port}


def test_queries(run: Run, where: dict[str, Any]) -> None:
    async def main() -> None:
        connection = await aiomysql.connect(**where)
        try:
            async with connection.cursor() as cursor:
                await cursor.execute("CREATE TEMPORARY TABLE words (n int, word varchar(100))")
                rows = [(n, "é" * (n % 90)) for n in range(500)]
                await cursor.executemany("INSERT INTO words VALUES (%s, %s)", rows)
                await cursor.execute("SELECT n, word FROM words ORDER BY n")
                assert await cursor.fetchall() == tuple(rows)
                with pytest.raises(aiomysql.ProgrammingError):
                    await cursor.execute("SELECT nothing FROM nowhere")
            async with connection.cursor(aiomysql.SSCursor) as cursor:
                await cursor.execute("SELECT seq FROM seq_1_to_5000")
                count = 0
                while await cursor.fetchone():
                    count += 1
                assert count == 5000
        finally:
            await connection.ensure_closed()

    run(main())


def test_pool(run: Run, where: dict[str, Any]) -> None:
    async def main() -> None:
        pool = await aiomysql.create_pool(**where, minsize=1, maxsize=4)

        async def ask(n: int) -> int:
            async with pool.acquire() as connection, connection.cursor() as cursor:
                await cursor.execute("SELECT %s + 1", (n,))
                (answer,) = await cursor.fetchone()
                return int(answer)

        try:
            assert await asyncio.gather(*map(ask, range(60))) == list(range(1, 61))
            assert pool.size <= 4
        finally:
            pool.close()
            await pool.wait_closed()

    run(main())


def test_cancelled_in_mid_query(run: Run, where: dict[str, Any]) -> None:
    """aiomysql gives the connection up: the answer to the next question would be that of this one."""

    async def main() -> None:
        connection, other = await aiomysql.connect(**where), await aiomysql.connect(**where)
        try:
            cursor, watcher = await connection.cursor(), await other.cursor()
            query = asyncio.create_task(cursor.execute("SELECT SLEEP(600)"))
            sleeping = "SELECT count(*) FROM information_schema.processlist WHERE info = 'SELECT SLEEP(600)'"
            while True:
                await watcher.execute(sleeping)
                if (await watcher.fetchone())[0]:
                    break
                await asyncio.sleep(0.01)
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
            assert connection.closed
            # The server does not notice by itself while it sleeps.
            await watcher.execute(f"KILL {connection.thread_id()}")
        finally:
            connection.close()
            await other.ensure_closed()

    run(main())
