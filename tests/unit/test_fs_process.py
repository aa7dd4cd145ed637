"""The threads of mioloop.fs: none unless needed, gone at the end, none of the parent's after a fork."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .support import SAFETY, import_line

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads in /proc")

PRELUDE = """
import asyncio, os, sys, time
from mioloop import fs
folder = sys.argv[1]
path = os.path.join(folder, "file")

def threads():
    return len(os.listdir("/proc/self/task"))
"""


def child(
    factory: LoopFactory, script: str, folder: Path, before: str = PRELUDE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", import_line(factory) + before + script, str(folder)],
        capture_output=True,
        text=True,
        timeout=SAFETY,
    )


ECHO = """
import asyncio, os
def threads():
    return len(os.listdir("/proc/self/task"))
import mioloop
log = [threads()]

async def main():
    async def echo(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\\n")
        assert await reader.read() == b"hello\\n"
        writer.close()
        log.append(threads())

loop = new_event_loop()
loop.run_until_complete(main())
loop.close()
from mioloop import fs
log.append(threads())
print(log)
"""


@needs_proc
def test_a_server_starts_no_thread(loop_factory: LoopFactory, tmp_path: Path) -> None:
    result = child(loop_factory, ECHO, tmp_path, "")
    assert (result.returncode, result.stdout) == (0, "[1, 1, 1]\n"), result.stderr


def test_files_are_imported_when_they_are_used(loop_factory: LoopFactory, tmp_path: Path) -> None:
    script = """
import sys, mioloop
print("mioloop.fs" in sys.modules, mioloop.fs.open.__name__, "mioloop.fs" in sys.modules)
"""
    result = child(loop_factory, script, tmp_path, "")
    assert (result.returncode, result.stdout) == (0, "False open True\n"), result.stderr


@needs_proc
def test_threads_are_started_when_needed_and_are_few(loop_factory: LoopFactory, tmp_path: Path) -> None:
    script = """
async def main():
    before = threads()
    await fs.write_bytes(path, b"data")
    one = threads() - before
    assert await asyncio.gather(*(fs.read_bytes(path) for _ in range(500))) == [b"data"] * 500
    print(before, one, 1 <= threads() - before <= 32)

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""
    result = child(loop_factory, script, tmp_path)
    assert (result.returncode, result.stdout) == (0, "1 1 True\n"), result.stderr


def test_the_end_of_the_program_waits_for_no_reader(loop_factory: LoopFactory, tmp_path: Path) -> None:
    """A FIFO that nobody opens keeps its thread for ever, and nobody else."""
    os.mkfifo(tmp_path / "fifo")
    script = """
async def main():
    tasks = [asyncio.ensure_future(fs.open(os.path.join(folder, "fifo"), "rb")) for _ in range(3)]
    await asyncio.sleep(0.02)

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
print("end", flush=True)
"""
    start = time.monotonic()
    result = child(loop_factory, script, tmp_path)
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr
    assert time.monotonic() - start < SAFETY


def test_the_end_of_the_program_waits_for_writes(loop_factory: LoopFactory, tmp_path: Path) -> None:
    """Begun and cancelled; nobody waits for it but the end of the program."""
    script = """
async def main():
    task = asyncio.ensure_future(fs.write_bytes(path, b"x" * 100_000_000))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""
    result = child(loop_factory, script, tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "file").stat().st_size == 100_000_000


def test_a_loop_that_is_closed_first(loop_factory: LoopFactory, tmp_path: Path) -> None:
    """The job goes on and has nobody to tell; the next loop has nothing of it."""
    os.mkfifo(tmp_path / "fifo")
    script = """
fifo = os.path.join(folder, "fifo")
loop = new_event_loop()

async def begin():
    global task
    task = asyncio.ensure_future(fs.read_bytes(fifo))
    await asyncio.sleep(0.02)

async def again():
    with open(fifo, "wb") as writer:
        writer.write(b"to nobody")
    await fs.write_text(path, "text")
    return await fs.read_text(path)

loop.run_until_complete(begin())
loop.close()
task._log_destroy_pending = False
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    print(runner.run(again()))
"""
    result = child(loop_factory, script, tmp_path)
    assert (result.returncode, result.stdout) == (0, "text\n"), result.stderr


def test_a_closed_loop_is_not_kept_alive(loop_factory: LoopFactory, tmp_path: Path) -> None:
    """Nor is its mailbox, by a job that has not ended, or ends with nobody to tell."""
    os.mkfifo(tmp_path / "fifo")
    script = """
import gc, weakref
fifo = os.path.join(folder, "fifo")
loop = new_event_loop()

async def begin():
    asyncio.ensure_future(fs.read_bytes(fifo))
    await asyncio.sleep(0.02)
    for task in asyncio.all_tasks():
        task._log_destroy_pending = False

loop.run_until_complete(begin())
loop.close()
gone = weakref.ref(loop)
del loop
for _ in range(3):
    gc.collect()
print(gone())
"""
    result = child(loop_factory, script, tmp_path)
    assert (result.returncode, result.stdout) == (0, "None\n"), result.stderr


FORK = """
import signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn of forks with threads

async def use(name="file"):
    name = os.path.join(folder, name)
    await fs.write_text(name, "text")
    assert await fs.read_text(name) == "text"

async def in_child():
    before = threads()
    await asyncio.gather(*(use(str(number)) for number in range(20)))
    assert before < threads()

def fork(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # it shall not outlive a test that fails
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@needs_proc
def test_a_child_has_threads_of_its_own(loop_factory: LoopFactory, tmp_path: Path) -> None:
    script = """
def run_in_child():
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(in_child())

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(use())
    print(fork(run_in_child))
    runner.run(use())
    print(fork(run_in_child))
"""
    result = child(loop_factory, FORK + script, tmp_path, PRELUDE)
    assert (result.returncode, result.stdout) == (0, "0\n0\n"), result.stderr


@needs_proc
@pytest.mark.mioloop_only(reason="asyncio's loop shares its selector with the child")
def test_a_child_goes_on_with_the_loop(loop_factory: LoopFactory, tmp_path: Path) -> None:
    """Parent and child, each with its half of one loop, at the same time."""
    script = """
loop = new_event_loop()
loop.run_until_complete(use())

async def busy():
    for _ in range(200):
        await fs.listdir(folder)

pid = os.fork()
if pid == 0:
    signal.alarm(60)
    status = 1
    try:
        loop.run_until_complete(busy())
        loop.close()
        status = 0
    finally:
        os._exit(status)
loop.run_until_complete(busy())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
loop.close()
"""
    result = child(loop_factory, FORK + script, tmp_path)
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


@needs_proc
def test_a_file_that_was_in_use_when_the_process_forked(loop_factory: LoopFactory, tmp_path: Path) -> None:
    """The job is the parent's. In the child the file says so, instead of hanging."""
    script = """
read_end, write_end = os.pipe()

async def begin():
    global file, task
    file = await fs.open(read_end, "rb")
    task = asyncio.ensure_future(file.read(1))
    await asyncio.sleep(0.02)

async def in_child():
    try:
        await file.read(1)
    except RuntimeError as error:
        assert "forked" in str(error)
    else:
        raise AssertionError("it has read")
    await file.close()

def run_in_child():
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(in_child())

async def end():
    os.write(write_end, b"x")
    assert await task == b"x"
    await file.close()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(begin())
    print(fork(run_in_child))
    runner.run(end())
"""
    result = child(loop_factory, FORK + script, tmp_path)
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


def test_a_process_without_threads_to_spare(loop_factory: LoopFactory, tmp_path: Path) -> None:
    """It is an error, and not the end of anything."""
    script = """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_AS)

async def main():
    # A thread's stack does not fit any more.
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 1_000_000, hard))
    try:
        await fs.listdir(folder)
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    await fs.write_text(path, "text")
    print(await fs.read_text(path))

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("reads /proc")
    result = child(loop_factory, script, tmp_path)
    assert (result.returncode, result.stdout) == (0, "BlockingIOError\ntext\n"), result.stderr
