"""Looking into a program that runs: `capture_call_graph` from inside, `python -m asyncio ps` from outside.

Both follow tasks and futures, not loops; what they show of a program on mioloop must be what they show
of it on asyncio's loop.
"""

from __future__ import annotations

import asyncio
import functools
import io
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from .support import SAFETY, import_line, run, until

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs are new in 3.14")

api: Any = asyncio  # for the type checker, which may be told of an older Python


# From inside.


async def innermost(event: asyncio.Event) -> None:
    await event.wait()


async def middle(event: asyncio.Event) -> None:
    await innermost(event)


async def outer(event: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(middle(event), name="first")
        group.create_task(middle(event), name="second")


def test_the_graph_of_a_task(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        event = asyncio.Event()
        task = asyncio.create_task(outer(event), name="outer")
        await until(lambda: len(asyncio.all_tasks()) >= 4)
        await until(lambda: len(event._waiters) == 2)
        [first] = [task for task in asyncio.all_tasks() if task.get_name() == "first"]
        graph = api.capture_call_graph(first)
        assert graph.future is first
        names = [entry.frame.f_code.co_name for entry in graph.call_stack]
        assert names == ["wait", "innermost", "middle"]
        [awaiting] = graph.awaited_by
        assert awaiting.future is task
        assert awaiting.call_stack[-1].frame.f_code.co_name == "outer"
        text = api.format_call_graph(first)
        printed = io.StringIO()
        api.print_call_graph(first, file=printed)
        assert printed.getvalue() == text + "\n"
        for name in ("name='first'", "innermost()", "middle()", "name='outer'", "outer()"):
            assert name in text
        event.set()
        await task

    run(loop, main())


def test_the_graph_of_the_current_task(loop: asyncio.AbstractEventLoop) -> None:
    async def asks() -> Any:
        return api.capture_call_graph()

    async def main() -> None:
        graph = await asyncio.create_task(asks())
        assert [entry.frame.f_code.co_name for entry in graph.call_stack] == ["asks"]
        assert graph.awaited_by[0].future is asyncio.current_task()
        # A callback is nobody's task.
        seen: list[Any] = []
        loop.call_soon(lambda: seen.append(api.capture_call_graph()))
        await until(lambda: seen)
        assert seen == [None]

    run(loop, main())


# From outside.

PROGRAM = """
import asyncio

async def innermost():
    await asyncio.Event().wait()

async def middle():
    await innermost()

async def outer():
    async with asyncio.TaskGroup() as group:
        for name in ("first", "second"):
            group.create_task(middle(), name=name)

async def main():
    task = asyncio.create_task(outer(), name="outer")
    while len(asyncio.all_tasks()) < 4:
        await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.01, lambda: print("ready", flush=True))
    await task

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


def look_into(
    factory: Callable[[], asyncio.AbstractEventLoop], command: str
) -> subprocess.CompletedProcess[str]:
    """Runs the program on that loop and `python -m asyncio COMMAND` on the program."""
    script = import_line(factory) + PROGRAM
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout
            assert program.stdout.readline() == "ready\n"
            arguments = [sys.executable, "-m", "asyncio", command, str(program.pid)]
            return subprocess.run(arguments, capture_output=True, text=True, timeout=SAFETY)
        finally:
            program.kill()


@functools.cache
def reference(command: str) -> str:
    """What the command shows of the program on asyncio's loop."""
    shown = look_into(asyncio.SelectorEventLoop, command)
    if shown.returncode != 0:
        pytest.skip(f"one process may not look into another here: {shown.stderr.strip().splitlines()[-1]}")
    return without_numbers(shown.stdout)


def without_numbers(shown: str) -> str:
    """Without what differs from run to run: identifiers, and the width of the columns that hold them."""
    return re.sub(r"\s{2,}|-{5,}", "  ", re.sub(r"0x[0-9a-f]+|\d{3,}", "N", shown))


@pytest.mark.parametrize("command", ["ps", "pstree"])
def test_from_another_process(loop_factory: Callable[[], asyncio.AbstractEventLoop], command: str) -> None:
    wanted = reference(command)
    for name in ("first", "second", "outer", "innermost", "middle"):
        assert name in wanted
    shown = look_into(loop_factory, command)
    assert shown.returncode == 0, shown.stderr
    assert sorted(without_numbers(shown.stdout).splitlines()) == sorted(wanted.splitlines())
