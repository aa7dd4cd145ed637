"""A chat server: everybody hears everybody, over plain TCP (`nc localhost 4000`) or WebSocket.

    python examples/chat_server.py --port 4000 --websocket-port 4001

The first line is one's name, each one after it a message. What is worth a look:

* a member has a queue, and a task that empties it: one who reads slowly delays nobody, and is shown the door
  when the queue is full;
* both kinds of members are the same to the room, which knows no sockets;
* graceful shutdown: SIGTERM or Ctrl-C stops the listeners, says good-bye, and waits until every member has
  been sent what was said before.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import websockets

import mioloop

BACKLOG = 1000  # messages that a member may be behind


@dataclass(eq=False)
class Member:
    name: str
    queue: asyncio.Queue[str | None] = field(default_factory=lambda: asyncio.Queue(BACKLOG))
    gone: bool = False

    def tell(self, text: str | None) -> None:
        """Puts a message into the queue, None for the end."""
        try:
            self.queue.put_nowait(text)
        except asyncio.QueueFull:
            self.gone = True

    async def send_all(self, send: Callable[[str], Awaitable[object]]) -> None:
        while not self.gone and (text := await self.queue.get()) is not None:
            await send(text)


class Room:
    def __init__(self) -> None:
        self.members: set[Member] = set()
        self.sessions: set[asyncio.Task[None]] = set()

    def say(self, text: str) -> None:
        for member in self.members:
            member.tell(text)

    async def session(self, lines: AsyncIterator[str], send: Callable[[str], Awaitable[object]]) -> None:
        """A member from the first line to the last."""
        task = asyncio.current_task()
        assert task
        self.sessions.add(task)
        try:
            await send("What is your name?")
            name = await anext(lines, "")
            if not name:
                return
            member = Member(name)
            self.members.add(member)
            self.say(f"* {name} has come")
            speaking = asyncio.create_task(self.listen_to(member, lines))
            try:
                await member.send_all(send)
            finally:
                speaking.cancel()
                self.members.discard(member)
                self.say(f"* {name} has gone")
        finally:
            self.sessions.discard(task)

    async def listen_to(self, member: Member, lines: AsyncIterator[str]) -> None:
        try:
            async for line in lines:
                self.say(f"{member.name}: {line}")
        finally:
            member.tell(None)

    async def close(self) -> None:
        """Lets everybody hear the end. Those without a name yet hear nothing."""
        self.say("* the server shuts down")
        for member in self.members:
            member.tell(None)
        while waiting := self.sessions - {asyncio.current_task()}:
            _, late = await asyncio.wait(waiting, timeout=5)
            for task in late:
                task.cancel()


class Server:
    def __init__(self) -> None:
        self.room = Room()

    async def over_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def lines() -> AsyncIterator[str]:
            while line := await reader.readline():
                yield line.decode(errors="replace").rstrip()

        async def send(text: str) -> None:
            writer.write(f"{text}\n".encode())
            await writer.drain()

        # A client may go at any time; a line longer than 64 KiB is a ValueError.
        with contextlib.suppress(ConnectionError, ValueError):
            await self.room.session(lines(), send)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def over_websocket(self, ws: websockets.ServerConnection) -> None:
        async def lines() -> AsyncIterator[str]:
            async for message in ws:
                yield message if isinstance(message, str) else message.decode(errors="replace")

        with contextlib.suppress(websockets.ConnectionClosed):
            await self.room.session(lines(), ws.send)

    async def run(self, host: str, port: int, websocket_port: int) -> None:
        loop = asyncio.get_running_loop()
        end = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end.set)
        tcp = await asyncio.start_server(self.over_tcp, host, port)
        ws = await websockets.serve(self.over_websocket, host, websocket_port)
        ports = [tcp.sockets[0].getsockname()[1], next(iter(ws.sockets)).getsockname()[1]]
        print(f"TCP on port {ports[0]}, WebSocket on port {ports[1]}", flush=True)
        await end.wait()
        tcp.close()
        ws.close(close_connections=False)
        await self.room.close()
        await tcp.wait_closed()
        await ws.wait_closed()
        print("Good-bye.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4000)
    parser.add_argument("--websocket-port", type=int, default=4001)
    options = parser.parse_args()
    mioloop.run(Server().run(options.host, options.port, options.websocket_port))


if __name__ == "__main__":
    main()
