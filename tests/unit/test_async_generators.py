"""Asynchronous generators: the loop closes those that nobody finished."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator

import pytest

from .support import Caught, run, until


async def numbers(log: list[str]) -> AsyncGenerator[int, None]:
    try:
        number = 0
        while True:
            yield number
            number += 1
    finally:
        await asyncio.sleep(0)
        log.append("closed")


def test_an_abandoned_generator_is_closed_by_the_loop(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []

    async def main() -> None:
        async for number in numbers(log):
            if number == 3:
                break
        gc.collect()
        await until(lambda: log)

    run(loop, main())
    assert log == ["closed"]


def test_shutdown_closes_those_that_are_left(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    kept: list[AsyncGenerator[int, None]] = []

    async def main() -> None:
        for _ in range(3):
            kept.append(numbers(log))
            assert await kept[-1].__anext__() == 0

    run(loop, main())
    assert log == []
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert log == ["closed"] * 3


def test_shutdown_without_generators(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_asyncgens())


def test_an_error_while_closing_is_reported(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    async def fails() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            raise LookupError("while closing")

    generator = fails()

    async def main() -> None:
        assert await generator.__anext__() == 1

    run(loop, main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    context = caught.take()
    assert context["message"].startswith("an error occurred during closing of asynchronous generator ")
    assert isinstance(context["exception"], LookupError)
    assert context["asyncgen"] is generator


def test_one_started_after_the_shutdown_warns(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    loop.run_until_complete(loop.shutdown_asyncgens())

    async def main() -> None:
        generator = numbers(log)
        message = r"asynchronous generator .* was scheduled after loop\.shutdown_asyncgens\(\) call"
        with pytest.warns(ResourceWarning, match=message):
            await generator.__anext__()
        await generator.aclose()

    run(loop, main())
    assert log == ["closed"]


def test_hooks_of_the_program_are_restored(loop: asyncio.AbstractEventLoop) -> None:
    def firstiter(_generator: object) -> None: ...

    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=firstiter)
    try:
        loop.run_until_complete(asyncio.sleep(0))
        assert sys.get_asyncgen_hooks().firstiter is firstiter
    finally:
        sys.set_asyncgen_hooks(*before)
