"""Child processes: how long until one has been started, has done nothing much, and has been reaped."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE

from .row import Body, InProcess, Loop


def spawn_true(loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec("/bin/true")
            if await process.wait() != 0:
                raise RuntimeError("/bin/true failed")

    return run


def spawn_cat(loop: Loop) -> Body:
    message = b"x" * 1024

    async def run(count: int) -> None:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec("/bin/cat", stdin=PIPE, stdout=PIPE)
            output, _ = await process.communicate(message)
            if output != message:
                raise RuntimeError("cat's output is not its input")

    return run


ROWS = (
    InProcess("spawn /bin/true and wait", 0.20, spawn_true, measure="wall", pinned=False),
    InProcess("spawn cat with two pipes", 0.25, spawn_cat, measure="wall", pinned=False),
)
