"""The other end of a TLS connection, by hand: an SSLObject, two BIOs and a bare socket, so that a test
decides what goes over the wire, when, and in which pieces.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, TypeVar

import trustme

from .protocols import Recorder
from .support import tcp_pair, until

HOST = "127.0.0.1"


class Contexts(NamedTuple):
    server: ssl.SSLContext
    client: ssl.SSLContext


def make_contexts(
    authority: trustme.CA | None = None, version: ssl.TLSVersion | None = None, both: bool = False
) -> Contexts:
    """Contexts that trust each other; `both` has the client show a certificate too."""
    authority = authority or trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", HOST).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    if both:
        server.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(server)
        authority.issue_cert("client@example.org").configure_cert(client)
    for context in (server, client) if version is not None else ():
        context.minimum_version = context.maximum_version = version  # type: ignore[assignment]
    return Contexts(server, client)


def is_asyncio(loop: asyncio.AbstractEventLoop) -> bool:
    """For what asyncio's own transport does not do well."""
    return type(loop).__module__.startswith("asyncio.")


class CutOff(Exception):
    """The connection has ended without a close_notify."""


class Peer:
    def __init__(self, sock: socket.socket, contexts: Contexts, server_side: bool) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = contexts.server if server_side else contexts.client
        name = None if server_side else "localhost"
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=name
        )
        self.ciphertext = b""  # all that has been received
        self.piece = 1 << 18  # how much is sent at once

    async def send(self) -> None:
        """Sends what OpenSSL has to send, in pieces."""
        loop = asyncio.get_running_loop()
        data = self.outgoing.read()
        for start in range(0, len(data), self.piece):
            await loop.sock_sendall(self.sock, data[start : start + self.piece])
            if self.piece < 100:
                await asyncio.sleep(0)

    async def receive(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18)
        if not data:
            raise CutOff
        self.ciphertext += data
        self.incoming.write(data)

    async def do(self, method: Any, *args: Any) -> Any:
        while True:
            try:
                result = method(*args)
            except ssl.SSLWantReadError:
                await self.send()
                await self.receive()
            else:
                await self.send()
                return result

    async def handshake(self) -> None:
        await self.do(self.tls.do_handshake)

    async def write(self, data: bytes) -> None:
        await self.do(self.tls.write, data)

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes, or fewer if the peer closes in order."""
        received = b""
        while len(received) < size:
            try:
                data = await self.do(self.tls.read, size - len(received))
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                break
            received += data
        return received

    async def close_notify(self) -> None:
        """Sends ours, and does not wait for the other."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self.send()

    def records(self, since: int = 0) -> list[int]:
        """The kinds of the records in what was received, by their first bytes."""
        kinds, data = [], self.ciphertext[since:]
        while data:
            kinds.append(data[0])
            data = data[5 + int.from_bytes(data[3:5], "big") :]
        return kinds


R = TypeVar("R", bound=Recorder)


@asynccontextmanager
async def secured(
    protocol: R,
    contexts: Contexts,
    server_side: bool = True,
    pair: tuple[socket.socket, socket.socket] | None = None,
    **kwargs: Any,
) -> AsyncIterator[tuple[Any, R, Peer]]:
    """A TLS transport for the protocol, and the peer; both are gone at the end."""
    loop: Any = asyncio.get_running_loop()
    ours, theirs = pair or tcp_pair()
    peer = Peer(theirs, contexts, not server_side)
    if server_side:
        making = loop.connect_accepted_socket(lambda: protocol, ours, ssl=contexts.server, **kwargs)
    else:
        making = loop.create_connection(
            lambda: protocol, sock=ours, ssl=contexts.client, server_hostname="localhost", **kwargs
        )
    try:
        (transport, _), _ = await asyncio.gather(making, peer.handshake())
    except BaseException:
        theirs.close()
        raise
    try:
        yield transport, protocol, peer
    finally:
        theirs.close()
        if ours.fileno() != -1:
            transport.abort()
            await until(lambda: ours.fileno() == -1)
        await asyncio.sleep(0)
