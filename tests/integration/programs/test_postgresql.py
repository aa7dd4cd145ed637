"""asyncpg, psycopg and SQLAlchemy against a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import io
import os
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from ..conftest import Run
from ..serving import Certificate
from .processes import HOST, until
from .servers import Address

# Really executing: one that the server is still preparing is "active" as well, and a cancel request that
# comes between the two has no effect, on any loop.
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


@pytest.fixture(params=["TCP", "Unix", "TLS"])
def where(request: pytest.FixtureRequest, postgres: Address, certificate: Certificate) -> dict[str, Any]:
    """asyncpg's arguments for each way to the server."""
    to: dict[str, Any] = {"user": "postgres", "database": "postgres", "port": postgres.port}
    match request.param:
        case "Unix":
            return {**to, "host": str(postgres.unix)}
        case "TLS":
            return {**to, "host": HOST, "ssl": certificate.client_context()}
    return {**to, "host": HOST, "ssl": False}


async def asleep(connection: asyncpg.Connection) -> None:
    """Returns when a query of the test sleeps in the server."""
    while not await connection.fetchval(WAITING):
        await asyncio.sleep(0.01)


def test_asyncpg_queries(run: Run, where: dict[str, Any]) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(**where)
        try:
            encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            assert await connection.fetchval(encrypted) == bool(where.get("ssl"))
            blob = os.urandom(2_000_000)
            assert await connection.fetchval("SELECT $1::bytea", blob) == blob
            async with connection.transaction():
                numbers = [
                    r[0] async for r in connection.cursor("SELECT generate_series(1, 1000)", prefetch=50)
                ]
            assert numbers == list(range(1, 1001))
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetch("SELECT 1/0")
        finally:
            await connection.close()

    run(main())


def test_asyncpg_pool(run: Run, where: dict[str, Any]) -> None:
    async def main() -> None:
        async with asyncpg.create_pool(**where, min_size=2, max_size=5) as pool:

            async def ask(n: int) -> int:
                async with pool.acquire() as connection:
                    answer: int = await connection.fetchval("SELECT $1::int + 1", n)
                    return answer

            assert await asyncio.gather(*map(ask, range(200))) == list(range(1, 201))
            assert pool.get_size() <= 5

    run(main())


def test_asyncpg_copy(run: Run, where: dict[str, Any]) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(**where)
        try:
            await connection.execute("CREATE TEMPORARY TABLE copied (n int, text text)")
            rows = [(n, "é" * (n % 50)) for n in range(10_000)]
            assert await connection.copy_records_to_table("copied", records=rows) == "COPY 10000"
            out = io.BytesIO()
            await connection.copy_from_table("copied", output=out, format="csv")
            lines = out.getvalue().decode().splitlines()
            assert lines[49] == "49," + "é" * 49
            assert len(lines) == 10_000
            out.seek(0)
            await connection.copy_to_table("copied", source=out, format="csv")
            assert await connection.fetchval("SELECT count(*) FROM copied") == 20_000
        finally:
            await connection.close()

    run(main())


def test_asyncpg_listen_and_notify(run: Run, where: dict[str, Any]) -> None:
    async def main() -> None:
        listener, speaker = await asyncpg.connect(**where), await asyncpg.connect(**where)
        try:
            heard: list[str] = []
            await listener.add_listener("news", lambda _connection, _pid, _channel, text: heard.append(text))
            for n in range(50):
                await speaker.execute(f"NOTIFY news, '{n}'")
            await until(lambda: len(heard) == 50)
            assert heard == [str(n) for n in range(50)]
        finally:
            await listener.close()
            await speaker.close()

    run(main())


def test_asyncpg_cancelled_in_mid_query(run: Run, where: dict[str, Any]) -> None:
    """The server stops working on it, and the connection is usable again."""

    async def main() -> None:
        connection, other = await asyncpg.connect(**where), await asyncpg.connect(**where)
        try:
            for _ in range(3):
                query = asyncio.create_task(connection.fetch("SELECT pg_sleep(600)"))
                await asleep(other)
                query.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await query
                assert await connection.fetchval("SELECT 7") == 7
                assert await other.fetchval(WAITING) == 0
        finally:
            await connection.close()
            await other.close()

    run(main())


def test_asyncpg_when_the_server_ends_the_connection(run: Run, where: dict[str, Any]) -> None:
    async def main() -> None:
        connection, other = await asyncpg.connect(**where), await asyncpg.connect(**where)
        try:
            query = asyncio.create_task(connection.fetch("SELECT pg_sleep(600)"))
            await asleep(other)
            await other.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
            # The one with the other as its cause, depending on what asyncpg sees first.
            with pytest.raises((asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError)):
                await query
            await until(connection.is_closed)
        finally:
            await connection.close()
            await other.close()

    run(main())


@pytest.fixture(params=["TCP", "Unix", "TLS"])
def dsn(request: pytest.FixtureRequest, postgres: Address) -> str:
    """libpq's words for each way to the server."""
    host = str(postgres.unix) if request.param == "Unix" else HOST
    tls = "require" if request.param == "TLS" else "disable"
    return f"host={host} port={postgres.port} user=postgres dbname=postgres sslmode={tls}"


def test_psycopg(run: Run, dsn: str) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            blob = os.urandom(1_000_000)
            cursor = await connection.execute("SELECT %b::bytea", [blob], binary=True)
            assert await cursor.fetchone() == (blob,)
            async with connection.pipeline():
                cursors = [await connection.execute("SELECT %s::int", [n]) for n in range(50)]
            assert [await cursor.fetchone() for cursor in cursors] == [(n,) for n in range(50)]
            await connection.execute("CREATE TEMPORARY TABLE copied (n int, text text)")
            async with connection.cursor() as into:
                async with into.copy("COPY copied FROM STDIN") as copy:
                    for n in range(2000):
                        await copy.write_row((n, "x" * (n % 50)))
                async with into.copy("COPY copied TO STDOUT") as copy:
                    lines = b"".join([bytes(block) async for block in copy]).splitlines()
            assert len(lines) == 2000
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("SELECT 1/0")

    run(main())


def test_psycopg_listens(run: Run, dsn: str) -> None:
    async def main() -> None:
        connect = psycopg.AsyncConnection.connect
        async with (
            await connect(dsn, autocommit=True) as listener,
            await connect(dsn, autocommit=True) as other,
        ):
            await listener.execute("LISTEN gossip")
            for n in range(10):
                await other.execute(f"NOTIFY gossip, '{n}'")
            heard = [note.payload async for note in listener.notifies(stop_after=10)]
            assert sorted(heard, key=int)[:10] == [str(n) for n in range(10)]

    run(main())


def test_psycopg_cancelled_in_mid_query(run: Run, dsn: str) -> None:
    async def main() -> None:
        connect = psycopg.AsyncConnection.connect
        async with (
            await connect(dsn, autocommit=True) as connection,
            await connect(dsn, autocommit=True) as other,
        ):
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(600)"))
            while await (await other.execute(WAITING)).fetchone() != (1,):
                await asyncio.sleep(0.01)
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
            assert await (await connection.execute("SELECT 7")).fetchone() == (7,)

    run(main())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_sqlalchemy(run: Run, postgres: Address, driver: str) -> None:
    table = sa.Table(f"numbers_{driver}", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))

    async def main() -> None:
        engine = create_async_engine(
            f"postgresql+{driver}://postgres@{HOST}:{postgres.port}/postgres", pool_size=3, max_overflow=0
        )
        try:
            async with engine.begin() as connection:
                await connection.run_sync(table.metadata.drop_all)
                await connection.run_sync(table.metadata.create_all)

            async def insert(n: int) -> None:
                async with engine.begin() as connection:
                    await connection.execute(table.insert().values(n=n))

            await asyncio.gather(*map(insert, range(30)))
            async with engine.connect() as connection:
                assert await connection.scalar(sa.select(sa.func.count()).select_from(table)) == 30
                result = await connection.stream(sa.select(table.c.n).order_by(table.c.n))
                assert [row.n async for row in result] == list(range(30))
            with pytest.raises(sa.exc.IntegrityError):
                await insert(3)
        finally:
            await engine.dispose()

    run(main())
