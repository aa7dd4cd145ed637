"""The interpreter ends while loops are alive, running, full of work. It has to end as if they were not.

In child processes, whose exit status tells. A loop in a daemon thread must not crash the interpreter that
unwinds such threads; a loop that nobody closed must survive its modules.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from .support import SAFETY, import_line

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def child(factory: LoopFactory, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", import_line(factory) + script], capture_output=True, text=True, timeout=SAFETY
    )


IN_A_DAEMON_THREAD = """
import asyncio, builtins, threading, time

loop = new_event_loop()
busy = threading.Event()

def burn():
    for _ in range(100):
        pass
    busy.set()

async def coroutine():
    while True:
        burn()
        await asyncio.sleep(0)

def callback():
    burn()
    loop.call_soon(callback)

def timer():
    burn()
    loop.call_later(0.001, timer)

def nothing():
    busy.set()

class Slow:
    '''The interpreter is finalizing for a while, and lets go of its lock.'''
    def __del__(self, sleep=time.sleep):
        sleep(0.05)

builtins.slow = Slow()
threading.Thread(target=loop.run_forever, daemon=True).start()
"""


@pytest.mark.parametrize("work", ["coroutine()", "callback", "timer", "nothing"])
def test_a_loop_in_a_daemon_thread(loop_factory: LoopFactory, work: str) -> None:
    start = (
        f"asyncio.run_coroutine_threadsafe({work}, loop)\n"
        if work.endswith(")")
        else f"loop.call_soon_threadsafe({work})\n"
    )
    result = child(loop_factory, IN_A_DAEMON_THREAD + start + "busy.wait()\nprint('end')\n")
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr


def test_several_loops_in_daemon_threads(loop_factory: LoopFactory) -> None:
    script = """
import threading
for _ in range(3):
    loop = new_event_loop()
    busy = threading.Event()
    def callback(loop=loop, busy=busy):
        busy.set()
        loop.call_soon(callback, loop, busy)
    loop.call_soon(callback)
    threading.Thread(target=loop.run_forever, daemon=True).start()
    busy.wait()
print("end")
"""
    result = child(loop_factory, script)
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr


CALLED_BY_DAEMON_THREADS = """
import builtins, threading, time

loop = new_event_loop()
loop.set_debug(True)
started = threading.Event()

def call():
    while True:
        loop.call_soon_threadsafe(print)
        started.set()

class Slow:
    '''The interpreter is finalizing for a while, and lets go of its lock.'''
    def __del__(self, sleep=time.sleep):
        sleep(0.02)

builtins.slow = Slow()
for _ in range(3):
    threading.Thread(target=call, daemon=True).start()
started.wait()
print("end")
"""


def test_a_loop_that_daemon_threads_call_in_debug_mode(loop_factory: LoopFactory) -> None:
    """Each call runs Python code of the loop's, with Rust frames beneath it."""
    for _ in range(5):  # most of the interpreter's ends find a thread in it
        result = child(loop_factory, CALLED_BY_DAEMON_THREADS)
        assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr


EVERYTHING_ALIVE = """
import asyncio, builtins, signal, socket, sys, warnings
warnings.simplefilter("ignore")

loop = new_event_loop()

class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        transport.write(b"x" * 4_000_000)
    def __del__(self):
        try:
            self.transport.close()
        except RuntimeError:
            pass

async def wait_for_data():
    await loop.sock_recv(left, 1)

async def main():
    global transport, server, client, endpoint, task, left, right
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport, _ = await loop.create_connection(Protocol, sock=ours)
    builtins.theirs = theirs
    server = await loop.create_server(Protocol, "127.0.0.1", 0)
    client = socket.create_connection(server.sockets[0].getsockname())
    endpoint, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    left, right = socket.socketpair()
    left.setblocking(False)
    task = loop.create_task(wait_for_data())
    loop.add_signal_handler(signal.SIGUSR1, print)
    await asyncio.sleep(0.01)
    loop.call_later(100, int)
    loop.call_soon_threadsafe(int)

loop.run_until_complete(main())
print("end")
"""

ENDS = {
    "globals": ("", 0),
    "kept": ("builtins.kept = loop, transport, server, endpoint, task\n", 0),
    "cycle": (
        "loop.me = loop; loop.server = server; loop.task = task; transport.get_protocol().loop = loop\n",
        0,
    ),
    "raises": ("loop.call_soon(sys.exit, 3)\nloop.run_forever()\n", 3),
    "closed": ("loop.remove_signal_handler(signal.SIGUSR1)\nloop.close()\n", 0),
}


@pytest.mark.parametrize("end", ENDS)
def test_with_everything_alive(loop_factory: LoopFactory, end: str) -> None:
    script, status = ENDS[end]
    result = child(loop_factory, EVERYTHING_ALIVE + script)
    assert (result.returncode, result.stdout) == (status, "end\n"), result.stderr
    # asyncio writes of the pending task, no more.
    assert "panic" not in result.stderr
    assert "Exception ignored" not in result.stderr


# The loops of one process share the interpreter's wakeup descriptor.


def test_another_loop_with_a_signal_handler_is_closed(loop_factory: LoopFactory) -> None:
    first, second = loop_factory(), loop_factory()
    first.add_signal_handler(signal.SIGUSR1, int)
    log: list[str] = []

    async def main() -> None:
        first.close()
        second.add_signal_handler(signal.SIGUSR2, log.append, "signal")
        os.kill(os.getpid(), signal.SIGUSR2)
        while not log:
            await asyncio.sleep(0)

    second.run_until_complete(main())
    second.run_until_complete(asyncio.sleep(0))
    second.close()
    assert log == ["signal"]
    assert signal.set_wakeup_fd(-1) == -1


def test_a_loop_with_a_signal_handler_is_closed_elsewhere(loop_factory: LoopFactory) -> None:
    """It cannot give its signals back there; it says so, and it is closed."""
    script = """
import signal, threading
loop = new_event_loop()
loop.add_signal_handler(signal.SIGUSR1, print)
def close():
    try:
        loop.close()
    except ValueError as error:
        print("main thread" in str(error), loop.is_closed())
thread = threading.Thread(target=close)
thread.start()
thread.join()
loop.close()
"""
    result = child(loop_factory, script)
    assert (result.returncode, result.stdout) == (0, "True True\n"), result.stderr


A_COROUTINE_IS_LEFT = """
import asyncio, builtins, socket, warnings
warnings.simplefilter("ignore")

loop = new_event_loop()
near, far = socket.socketpair()
near.setblocking(False)

async def main(operation):
    reader, writer = await asyncio.open_connection(sock=far)
    reader.feed_data(b"line\\n")
    begun.append(True)
    try:
        await asyncio.sleep(100)
    finally:
        await operation(reader, writer)

OPERATIONS = {
    "send": lambda reader, writer: loop.sock_sendall(near, b"bye"),
    "receive": lambda reader, writer: loop.sock_recv(near, 1),
    "look up": lambda reader, writer: loop.getaddrinfo("127.0.0.1", 80),
    "read": lambda reader, writer: reader.readline(),
    "drain": lambda reader, writer: writer.drain(),
}
begun = []
"""


@pytest.mark.parametrize("operation", ["send", "receive", "look up", "read", "drain"])
def test_a_coroutine_that_is_closed_at_the_very_end(loop_factory: LoopFactory, operation: str) -> None:
    """What it awaits in its `finally` may not succeed any more, but the interpreter has to end."""
    script = f"""
task = loop.create_task(main(OPERATIONS[{operation!r}]))
while not begun:
    loop.call_soon(loop.stop)
    loop.run_forever()
builtins.kept = loop, task
print("end")
"""
    result = child(loop_factory, A_COROUTINE_IS_LEFT + script)
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr
    assert "panicked" not in result.stderr


A_FAILING_WRITE = """
import asyncio, builtins, socket, warnings
warnings.simplefilter("ignore")

loop = new_event_loop()
near, far = socket.socketpair()
near.setblocking(False)

class Last:
    def __init__(self, transport):
        self.transport = transport
    def __del__(self):
        self.transport.write(b"bye")

async def main():
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
    far.close()
    builtins.kept = Last(transport)

loop.run_until_complete(main())
print("end")
"""


def test_a_write_that_fails_at_the_very_end(loop_factory: LoopFactory) -> None:
    """As at any time, it is the transport that hears of it, not the caller."""
    result = child(loop_factory, A_FAILING_WRITE)
    assert (result.returncode, result.stdout) == (0, "end\n"), result.stderr
    assert "panic" not in result.stderr.lower()
    assert "Exception ignored" not in result.stderr
