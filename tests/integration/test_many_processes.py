"""Several processes serve one port: each with its own socket (`reuse_port`), or all with their parent's."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from .conftest import SAFETY, Run

COMMON = """
import asyncio, os, signal, socket, sys
from tests.integration.application import loop_factory

def say(line):
    os.write(1, f"{line}\\n".encode())  # at once: several write to one pipe

async def answer(reader, writer):
    line = await reader.readline()
    writer.write(b"%d %s" % (os.getpid(), line))
    await writer.drain()
    writer.close()
    await writer.wait_closed()

async def serve(**where):
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    server = await asyncio.start_server(answer, **where)
    say(f"ready {os.getpid()}")
    await end.wait()
    server.close()
    await server.wait_closed()

def run(**where):
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
        runner.run(serve(**where))
"""

SHARES_A_PORT = COMMON + "run(host='127.0.0.1', port=int(sys.argv[2]), reuse_port=True)\n"

# The parent listens, and has used a loop of its own before it forks.
PRE_FORK = (
    COMMON
    + """
async def before():
    await asyncio.get_running_loop().run_in_executor(None, int)

with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
    runner.run(before())
sock = socket.create_server(("127.0.0.1", 0), backlog=200)
say(f"port {sock.getsockname()[1]}")
workers = []
for _ in range(3):
    if not (pid := os.fork()):
        run(sock=sock)
        os._exit(0)
    workers.append(pid)
signal.signal(signal.SIGTERM, lambda *_: [os.kill(pid, signal.SIGTERM) for pid in workers])
say(f"parent {os.getpid()}")
statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
say(f"statuses {statuses}")
"""
)


@contextmanager
def started(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def says(process: subprocess.Popen[str], word: str) -> str:
    """The rest of its next line, which begins with that word."""
    assert process.stdout
    first, _, rest = process.stdout.readline().strip().partition(" ")
    assert first == word
    return rest


async def ask(port: int, n: int) -> int:
    """The process that answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%d\n" % n)
    process, number = (await reader.read()).split()
    assert int(number) == n
    writer.close()
    await writer.wait_closed()
    return int(process)


def test_processes_share_a_port(run: Run, loop_name: str) -> None:
    async def main(port: int, processes: set[int]) -> None:
        answered: set[int] = set()
        while answered != processes:  # the kernel chooses; the test's time limit ends the wait
            answered.update(await asyncio.gather(*(ask(port, n) for n in range(50))))
            assert answered <= processes

    with ExitStack() as stack, socket.socket() as placeholder:
        # Bound and not listening: the port is ours, and no connection comes here.
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
        servers = [stack.enter_context(started(SHARES_A_PORT, loop_name, str(port))) for _ in range(3)]
        run(main(port, {int(says(server, "ready")) for server in servers}))
        for server in servers:
            server.terminate()
        assert [server.wait(SAFETY) for server in servers] == [0, 0, 0]


def test_pre_fork(run: Run, loop_name: str) -> None:
    async def main(port: int, workers: set[int]) -> None:
        # Each takes its share of what waits in the queue, or not: whoever is first. All answers are right.
        answered = await asyncio.gather(*(ask(port, n) for n in range(150)))
        assert set(answered) <= workers

    with started(PRE_FORK, loop_name) as parent:
        port = int(says(parent, "port"))
        lines: list[list[str]] = []
        assert parent.stdout
        while len(lines) < 4:
            lines.append(parent.stdout.readline().split())
        workers = {int(pid) for word, pid in lines if word == "ready"}
        assert len(workers) == 3
        run(main(port, workers))
        parent.terminate()
        assert says(parent, "statuses") == "[0, 0, 0]"
        assert parent.wait(SAFETY) == 0
