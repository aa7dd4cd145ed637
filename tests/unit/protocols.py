"""Protocols that write down what the transport told them, and connections between one of them and a bare
socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from .support import tcp_pair, until


class Recorder(asyncio.Protocol):
    """Notes each call with its argument."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.transport: Any = None

    def note(self, name: str, argument: Any = None) -> None:
        self.events.append((name, argument))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    @property
    def data(self) -> bytes:
        return b"".join(argument for name, argument in self.events if name == "data")

    @property
    def is_lost(self) -> bool:
        return "lost" in self.names

    @property
    def loss(self) -> Any:
        """What connection_lost was called with, once."""
        losses = [argument for name, argument in self.events if name == "lost"]
        assert len(losses) == 1, self.events
        return losses[0]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.note("made")

    def data_received(self, data: bytes) -> None:
        self.note("data", data)

    def eof_received(self) -> bool | None:
        self.note("eof")
        return None

    def pause_writing(self) -> None:
        self.note("pause")

    def resume_writing(self) -> None:
        self.note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.note("lost", exc)


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    """The same, fed through a buffer of its own."""

    def __init__(self, size: int = 1024) -> None:
        super().__init__()
        self.buffer = bytearray(size)
        self.hints: list[int] = []

    def get_buffer(self, sizehint: int) -> Any:
        self.hints.append(sizehint)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.note("data", bytes(self.buffer[:nbytes]))


R = TypeVar("R", bound=Recorder)


@asynccontextmanager
async def connected(
    protocol: R, pair: tuple[socket.socket, socket.socket] | None = None
) -> AsyncIterator[tuple[Any, R, socket.socket]]:
    """A transport for the protocol, and the bare socket at the other end; both are closed at the end."""
    ours, peer = pair or tcp_pair()
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, sock=ours)
    try:
        yield transport, protocol, peer
    finally:
        peer.close()
        if ours.fileno() != -1:
            transport.abort()
            await until(lambda: ours.fileno() == -1)


async def receive(peer: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, or fewer if the connection ends before."""
    received = bytearray()
    while len(received) < size:
        data = await asyncio.get_running_loop().sock_recv(peer, min(1 << 18, size - len(received)))
        if not data:
            break
        received += data
    return bytes(received)


async def receive_all(peer: socket.socket) -> bytes:
    """Everything up to the end of file."""
    return await receive(peer, 1 << 40)
