"""The collector may run inside any allocation and sees objects that are only half made.

In a child process: what goes wrong here does not raise, it crashes. With a threshold of one, the collector
runs at nearly every allocation of a container.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

from .support import SAFETY, import_line

SCRIPT = """
import asyncio, gc, os, signal, socket, threading

gc.set_threshold(1)

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

class EchoDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data, address)

async def by_stream(address):
    reader, writer = await asyncio.open_connection(*address)
    writer.writelines([b"a", b"line", b"\\n"])
    assert await reader.readline() == b"aline\\n"
    writer.close()
    await writer.wait_closed()

async def by_socket(loop, address):
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, b"x")
        assert await loop.sock_recv(sock, 10) == b"x"
        waiting = loop.create_task(loop.sock_recv(sock, 10))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])

async def by_datagram(loop):
    transport, _ = await loop.create_datagram_endpoint(EchoDatagrams, local_addr=("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        await loop.sock_sendto(sock, b"x", transport.get_extra_info("sockname"))
        assert (await loop.sock_recvfrom(sock, 10))[0] == b"x"
    transport.close()

async def by_pipe(loop):
    reader, writer = os.pipe()
    stream = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(stream)
    reading, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(reader, "rb"))
    writing, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(writer, "wb"))
    writing.write(b"piped\\n")
    assert await stream.readline() == b"piped\\n"
    writing.close()
    reading.close()

async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, int)
    server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=200)
    address = server.sockets[0].getsockname()
    await asyncio.gather(*(by_stream(address) for _ in range(20)))
    await asyncio.gather(*(by_socket(loop, address) for _ in range(100)))
    await asyncio.gather(*(by_datagram(loop) for _ in range(10)))
    await asyncio.gather(*(by_pipe(loop) for _ in range(10)))
    for number in range(100):
        loop.call_soon(int, "5")
        loop.call_later(number * 1e-5, int).cancel()
        loop.call_soon_threadsafe(int)
        left, right = os.pipe()
        loop.add_reader(left, int)
        loop.add_writer(right, int)
        await asyncio.sleep(0)
        loop.remove_reader(left)
        loop.remove_writer(right)
        os.close(left)
        os.close(right)
    assert await asyncio.gather(*(loop.run_in_executor(None, int) for _ in range(20))) == [0] * 20
    server.close()
    await asyncio.sleep(0.01)

for _ in range(3):
    loop = new_event_loop()
    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
for _ in range(50):
    new_event_loop().close()
print("whole")
"""


def test_nothing_half_made_is_seen(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", import_line(loop_factory) + SCRIPT],
        capture_output=True,
        text=True,
        timeout=SAFETY,
    )
    assert (result.stdout, result.stderr, result.returncode) == ("whole\n", "", 0)
