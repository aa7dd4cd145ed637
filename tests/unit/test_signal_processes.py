"""Ctrl-C as a user sends it: a child process sits in an idle loop and gets a SIGINT from outside."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .support import SAFETY, import_line

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

RUN_FOREVER = """
import signal
loop = new_event_loop()
loop.call_later(0.01, lambda: print("idle", flush=True))
try:
    loop.run_forever()
except KeyboardInterrupt:
    print("KeyboardInterrupt", loop.is_running())
loop.close()
"""

RUNNER = """
import asyncio

async def main():
    print("idle", flush=True)
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        print("cancelled")
        raise
    finally:
        await asyncio.sleep(0)
        print("cleaned up")

try:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""

TERMINATED = """
import asyncio, signal

async def main():
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    print("idle", flush=True)
    await stop.wait()
    print("stopped")

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""

TWICE = """
import asyncio

async def main():
    try:
        print("idle", flush=True)
        await asyncio.sleep(3600)
    finally:
        print("idle", flush=True)
        await asyncio.sleep(3600)

try:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""

DIES = """
loop = new_event_loop()
loop.call_later(0.01, lambda: print("idle", flush=True))
loop.run_forever()
"""

SECOND_THREAD = """
import signal, threading
loop = new_event_loop()
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(loop.stop))
loop.call_later(0.01, lambda: print("idle", flush=True))
loop.run_forever()
print("stopped")
stop.set()
thread.join()
loop.close()
"""


def wait_until_asleep(pid: int) -> None:
    """asyncio's own loop has no wakeup descriptor for these signals: one that comes between its last look at
    them and the system call does not end its sleep. Ours is signalled at any time."""
    stat = Path(f"/proc/{pid}/stat")
    while sys.platform == "linux" and stat.read_text().rpartition(")")[2].split()[0] not in "SZ":
        time.sleep(0.001)


def talk(loop_factory: LoopFactory, script: str, *signals: signal.Signals) -> tuple[list[str], int, str]:
    """Sends the script the next signal each time it says that it is idle; its words, status and errors."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", import_line(loop_factory) + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        waiting = list(signals)
        while waiting:
            line = process.stdout.readline()
            assert line, f"the child ended early: {process.stderr.read() if process.stderr else ''}"
            if line.strip() == "idle":
                if loop_factory is asyncio.SelectorEventLoop:
                    wait_until_asleep(process.pid)
                process.send_signal(waiting.pop(0))
        out, errors = process.communicate(timeout=SAFETY)
        return out.splitlines(), process.returncode, errors
    finally:
        process.kill()
        process.communicate()


def test_keyboard_interrupt_leaves_run_forever(loop_factory: LoopFactory) -> None:
    assert talk(loop_factory, RUN_FOREVER, signal.SIGINT) == (["KeyboardInterrupt False"], 0, "")


def test_a_runner_cancels_the_main_task(loop_factory: LoopFactory) -> None:
    words, status, errors = talk(loop_factory, RUNNER, signal.SIGINT)
    assert (words, status, errors) == (["cancelled", "cleaned up", "KeyboardInterrupt"], 0, "")


def test_a_second_sigint_interrupts_the_clean_up(loop_factory: LoopFactory) -> None:
    words, status, errors = talk(loop_factory, TWICE, signal.SIGINT, signal.SIGINT)
    assert (words, status, errors) == (["KeyboardInterrupt"], 0, "")


def test_sigterm_by_add_signal_handler(loop_factory: LoopFactory) -> None:
    assert talk(loop_factory, TERMINATED, signal.SIGTERM) == (["stopped"], 0, "")


def test_a_python_handler_with_a_second_thread(loop_factory: LoopFactory) -> None:
    assert talk(loop_factory, SECOND_THREAD, signal.SIGUSR1) == (["stopped"], 0, "")


def test_sigint_without_a_handler_ends_the_process(loop_factory: LoopFactory) -> None:
    _, status, errors = talk(loop_factory, DIES, signal.SIGINT)
    assert status == -signal.SIGINT
    assert "\nKeyboardInterrupt\n" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_without_a_handler_end_the_process(loop_factory: LoopFactory, number: signal.Signals) -> None:
    _, status, errors = talk(loop_factory, DIES, number)
    assert (status, errors) == (-number, "")
