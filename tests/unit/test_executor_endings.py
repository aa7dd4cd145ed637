"""The default executor when its process forks, or its interpreter ends; and that without it there are no
threads.

In child processes, whose exit status and output tell.
"""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from .support import SAFETY, import_line, run
from .test_fork import ended, fork, has_ended

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

the_child_s_threads = pytest.mark.mioloop_only(reason="asyncio's child waits for threads that it hasn't got")


def child(factory: LoopFactory, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    program = "import asyncio, atexit, os, signal, sys, threading, time\n" + import_line(factory) + script
    command = [sys.executable, *options, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=SAFETY)


def succeeds(factory: LoopFactory, script: str, output: str, *options: str) -> None:
    result = child(factory, script, *options)
    assert (result.stdout, result.stderr, result.returncode) == (output, "", 0)


# Forks.


def use(loop: asyncio.AbstractEventLoop) -> None:
    """In a child: the loop's executor works there as if it were new."""

    async def main() -> None:
        barrier = threading.Barrier(3, timeout=SAFETY)
        calls = [loop.run_in_executor(None, barrier.wait) for _ in range(3)]
        assert sorted(await asyncio.gather(*calls)) == [0, 1, 2]
        assert await asyncio.to_thread(os.getpid) == os.getpid()

    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert threading.active_count() == 1


@the_child_s_threads
@pytest.mark.parametrize("state", ["idle", "busy", "overfull"])
def test_the_child_has_a_fresh_pool(loop: Any, state: str) -> None:
    release = threading.Event()

    async def main() -> list[asyncio.Future[bool]]:
        await asyncio.gather(*(loop.run_in_executor(None, int) for _ in range(50)))
        count = {"idle": 0, "busy": 2, "overfull": 100}[state]
        return [loop.run_in_executor(None, release.wait, SAFETY) for _ in range(count)]

    try:
        jobs = run(loop, main())
        ended(fork(functools.partial(use, loop)))
    finally:
        release.set()

    async def rest() -> None:
        assert await asyncio.gather(*jobs) == [True] * len(jobs)
        assert await loop.run_in_executor(None, os.getpid) == os.getpid()

    run(loop, rest())


@the_child_s_threads
def test_forks_in_the_middle_of_short_jobs(loop: Any, loop_factory: LoopFactory) -> None:
    """Whatever the threads are at, the child finds nothing locked and nothing half done."""
    other: Any = loop_factory()
    other.run_until_complete(other.run_in_executor(None, int))

    async def main() -> None:
        forking = True

        async def work() -> int:
            done = 0
            while forking:
                calls = [loop.run_in_executor(other._default_executor, int, number) for number in range(9)]
                assert await asyncio.gather(*calls) == list(range(9))
                done += 1
            return done

        workers = [asyncio.create_task(work()) for _ in range(3)]
        for _ in range(20):
            await asyncio.sleep(0)
            await has_ended(fork(functools.partial(use, other)))
        forking = False
        assert all(await asyncio.gather(*workers))

    run(loop, main())
    other.run_until_complete(other.shutdown_default_executor())
    other.close()


def test_a_job_forks_and_returns_in_the_child(loop_factory: LoopFactory) -> None:
    """The child's only thread is the executor's then. It leaves its jobs to the parent."""
    script = """
def job():
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # asyncio's would wait here for a job that never comes.
    if new_event_loop is asyncio.SelectorEventLoop:
        os._exit(0)

loop = new_event_loop()
print(loop.run_until_complete(loop.run_in_executor(None, job)))
print(loop.run_until_complete(loop.run_in_executor(None, int)))
loop.close()
"""
    succeeds(loop_factory, script, "0\n0\n", "-W", "ignore")


# The end of the interpreter.


def test_what_is_queued_is_run_at_exit(loop_factory: LoopFactory) -> None:
    succeeds(
        loop_factory,
        """
count = 0
def job():
    global count
    time.sleep(0.001)
    count += 1

def check():
    print(count)

atexit.register(check)
loop = new_event_loop()
for _ in range(100):
    loop.run_in_executor(None, job)
loop.close()
""",
        "100\n",
    )


def test_a_loop_that_nobody_closed_at_exit(loop_factory: LoopFactory) -> None:
    succeeds(
        loop_factory,
        """
async def main():
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.001) for _ in range(40)))

loop = new_event_loop()
loop.run_until_complete(main())
loop.run_in_executor(None, time.sleep, 0.01)
print("end")
""",
        "end\n",
        "-W",
        "ignore::ResourceWarning",
    )


def test_no_jobs_are_taken_after_the_threads_have_ended(loop_factory: LoopFactory) -> None:
    succeeds(
        loop_factory,
        """
loop = new_event_loop()
loop.run_until_complete(loop.run_in_executor(None, int))

def late():
    try:
        loop.run_in_executor(None, int)
    except RuntimeError as error:
        print(error)
    other = new_event_loop()
    try:
        other.run_in_executor(None, int)
    except RuntimeError as error:
        print(error)
    other.close()
    loop.close()

atexit.register(late)
""",
        "cannot schedule new futures after shutdown\n"
        "cannot schedule new futures after interpreter shutdown\n",
    )


def test_a_loop_in_a_daemon_thread_with_jobs(loop_factory: LoopFactory) -> None:
    succeeds(
        loop_factory,
        """
started = threading.Event()

async def main():
    while True:
        await asyncio.gather(*(asyncio.to_thread(int) for _ in range(5)))
        started.set()

def serve():
    loop = new_event_loop()
    try:
        loop.run_until_complete(main())
    except RuntimeError:
        # It takes no more jobs.
        pass

threading.Thread(target=serve, daemon=True).start()
assert started.wait(10)
print("end")
""",
        "end\n",
        "-W",
        "ignore",
    )


def test_interrupted_again_and_again(loop_factory: LoopFactory) -> None:
    """Ctrl-C while jobs are on: the program ends, with its threads, as always."""
    result = child(
        loop_factory,
        """
async def main():
    ready = threading.Event()
    jobs = [asyncio.ensure_future(asyncio.to_thread(ready.wait, 0.05)) for _ in range(50)]
    await asyncio.to_thread(signal.pthread_kill, threading.main_thread().ident, signal.SIGINT)
    await asyncio.gather(*jobs)

for _ in range(3):
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
    except KeyboardInterrupt:
        print("interrupted", threading.active_count())
""",
    )
    assert (result.stdout, result.returncode) == ("interrupted 1\n" * 3, 0), result.stderr


# Threads.

THREADS = """
def threads():
    return len(os.listdir("/proc/self/task")), threading.active_count()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_server_starts_no_thread(loop_factory: LoopFactory) -> None:
    succeeds(
        loop_factory,
        THREADS
        + """
async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
    writer.close()

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    for _ in range(20):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()
    server.close()
    await asyncio.sleep(0.01)
    print(threads())

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
print(threads())
""",
        "(1, 1)\n" * 2,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_threads_end_with_their_loop(loop_factory: LoopFactory) -> None:
    succeeds(
        loop_factory,
        THREADS
        + """
async def main():
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.001) for _ in range(40)))

for _ in range(5):
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
    # The kernel takes its time to forget a thread that has been joined.
    while threads() != (1, 1):
        time.sleep(0.001)
print(threads())
""",
        "(1, 1)\n",
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not let us")
def test_on_a_single_processor(loop_factory: LoopFactory) -> None:
    """Where it is no use to watch for what another thread does."""
    succeeds(
        loop_factory,
        """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

async def main():
    for number in range(2000):
        assert await asyncio.to_thread(int, number) == number
    for _ in range(20):
        numbers = await asyncio.gather(*(asyncio.to_thread(int, number) for number in range(100)))
        assert numbers == list(range(100))
    barrier = threading.Barrier(4, timeout=20)
    for _ in range(20):
        await asyncio.gather(*(asyncio.to_thread(barrier.wait) for _ in range(4)))
    print("end")

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
""",
        "end\n",
    )
