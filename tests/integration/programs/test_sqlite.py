"""aiosqlite: a thread for each connection, which calls back into the loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiosqlite
import pytest

from ..conftest import Run


def test_aiosqlite(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with aiosqlite.connect(tmp_path / "database") as connection:
            await connection.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
            await asyncio.gather(
                *(connection.execute("INSERT INTO numbers VALUES (?)", (n,)) for n in range(200))
            )
            await connection.commit()
            async with connection.execute("SELECT n FROM numbers ORDER BY n") as cursor:
                assert [row[0] async for row in cursor] == list(range(200))
            with pytest.raises(aiosqlite.IntegrityError):
                await connection.execute("INSERT INTO numbers VALUES (7)")

    run(main())


def test_aiosqlite_interrupted(run: Run) -> None:
    async def main() -> None:
        async with aiosqlite.connect(":memory:") as connection:
            endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
            query = asyncio.ensure_future(connection.execute_fetchall(endless))
            while not query.done():
                await connection.interrupt()
                await asyncio.sleep(0.01)
            with pytest.raises(aiosqlite.OperationalError, match="interrupted"):
                await query

    run(main())
