"""Out of descriptors: a server reports it, pauses accepting and goes on when descriptors are free again.

In a child process, because the limit is the process's.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

from .support import SAFETY, import_line

SCRIPT = """
import asyncio, errno, os, resource, socket, time
from asyncio import constants

constants.ACCEPT_RETRY_DELAY = 0.05
reports = []
made = []

class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        made.append(self)

async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    server = await loop.create_server(Server, "127.0.0.1", 0)
    clients = [socket.socket() for _ in range(10)]
    highest = max(client.fileno() for client in clients)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    fillers = []
    while True:
        try:
            fillers.append(os.dup(0))
        except OSError:
            break
    since = time.monotonic()
    for client in clients:
        client.setblocking(False)
        await loop.sock_connect(client, server.sockets[0].getsockname())
    await until(lambda: reports)
    context = reports[0]
    assert context["message"] == "socket.accept() out of system resource", context
    assert isinstance(context["exception"], OSError), context
    assert context["exception"].errno == errno.EMFILE, context
    assert isinstance(context["socket"], asyncio.trsock.TransportSocket), context
    assert set(context) == {"message", "exception", "socket"}, context
    assert not made
    count = len(reports)
    for _ in range(100):
        await asyncio.sleep(0)
    if time.monotonic() - since < constants.ACCEPT_RETRY_DELAY / 2:
        assert len(reports) - count <= 1, "accepting was not paused"
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    await until(lambda: len(made) == 10)
    for protocol in made:
        protocol.transport.abort()
    for client in clients:
        client.close()
    server.close()
    await asyncio.sleep(0.01)
    print("served", len(made))

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


def test_out_of_descriptors(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", import_line(loop_factory) + SCRIPT],
        capture_output=True,
        text=True,
        timeout=SAFETY,
    )
    assert (result.stdout, result.stderr) == ("served 10\n", "")
