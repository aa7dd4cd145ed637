"""The tools that look at a running program: they have to see on our loop what they see on asyncio's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .conftest import SAFETY

PROGRAM = """
import asyncio, sys, time
from tests.integration.application import loop_factory

async def inner_work(started):
    started.set()
    await asyncio.Event().wait()

async def outer_work(started):
    await inner_work(started)

def compute_something():
    return sum(n * n for n in range(20_000))

async def main():
    loop = asyncio.get_running_loop()
    started = asyncio.Event()
    task = asyncio.create_task(outer_work(started), name="the-work")
    await started.wait()
    for _ in range(20):
        compute_something()
        await asyncio.sleep(0)
    await loop.run_in_executor(None, compute_something)
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    EXTRA
    task.cancel()
    print("done")

with asyncio.Runner(loop_factory=loop_factory(sys.argv[1]), debug=DEBUG) as runner:
    runner.run(main())
"""


def script(extra: str = "", *, debug: bool | None = None) -> str:
    return PROGRAM.replace("EXTRA", extra.replace("\n", "\n    ")).replace("DEBUG", str(debug))


def output(*command: str) -> str:
    """What a command prints, errors and all; it must end well."""
    done = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SAFETY,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def running(code: str, loop_name: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has said "ready" and stays."""
    with subprocess.Popen(
        [sys.executable, "-c", code, loop_name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_debug_mode(loop_name: str) -> None:
    said = output("-c", script("time.sleep(0.2)", debug=True), loop_name)
    assert "done" in said
    assert "Executing <Task" in said
    assert " seconds" in said


def test_cprofile(loop_name: str) -> None:
    profiled = (
        "import cProfile, pstats, sys\nprofile = cProfile.Profile()\nprofile.enable()\n"
        f"exec(compile({script()!r}, 'program', 'exec'))\n"
        "profile.disable()\npstats.Stats(profile).sort_stats('tottime').print_stats(15)"
    )
    said = output("-c", profiled, loop_name)
    assert "done" in said
    assert "compute_something" in said or "genexpr" in said


def test_tracemalloc(loop_name: str) -> None:
    """It knows where memory was taken, in what the loop calls."""
    holds = (
        "import tracemalloc\n"
        "tracemalloc.start(10)\n"
        "held = []\n"
        "loop.call_soon(lambda: held.extend(bytes(1000) for _ in range(1000)))\n"
        "await asyncio.sleep(0.01)\n"
        "here = tracemalloc.Filter(True, '<string>')\n"
        "most = tracemalloc.take_snapshot().filter_traces([here]).statistics('lineno')[0]\n"
        "assert most.size > 1_000_000 and most.count >= 1000, most"
    )
    assert "done" in output("-c", script(holds), loop_name)


def test_faulthandler(loop_name: str) -> None:
    """It shows where a program hangs, from within the loop's own run."""
    hangs = (
        "import faulthandler, signal\nfaulthandler.register(signal.SIGUSR1)\n"
        "def hang_here():\n    print('ready', flush=True)\n    sys.stdin.read()\n"
        "loop.call_soon(hang_here)\nawait asyncio.Event().wait()"
    )
    with running(script(hangs), loop_name) as process:
        assert process.stderr
        process.send_signal(signal.SIGUSR1)
        seen = ""
        for line in process.stderr:
            seen += line
            if "run_forever" in seen and "<module>" in line:
                break
    assert "in hang_here" in seen
    assert "in run_forever" in seen


@pytest.mark.skipif(sys.version_info < (3, 14), reason="`python -m asyncio ps` came with 3.14")
@pytest.mark.parametrize("command", ["ps", "pstree"])
def test_asyncio_ps(loop_name: str, command: str) -> None:
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("it reads another process's memory, which takes root or CAP_SYS_PTRACE")
    waits = "print('ready', flush=True)\nawait asyncio.Event().wait()"
    with running(script(waits), loop_name) as process:
        said = output("-m", "asyncio", command, str(process.pid))
    assert "the-work" in said
    assert "inner_work" in said
    assert "outer_work" in said
