"""create_connection to a host in digits and a port, which the core does without the standard library's
socket: the same as with it, and not done where somebody has put something of his own in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
from asyncio import base_events
from typing import Any

import pytest

from .protocols import Recorder
from .support import Caught, reset, run, until

HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.fixture(params=["plain", "hidden"])
def client(request: pytest.FixtureRequest, loop: Any) -> Any:
    """The loop, with the short way open and shut: an attribute of the loop's own stands in it."""
    if request.param == "hidden":
        loop.sock_connect = loop.sock_connect
    return loop


def listener(family: socket.AddressFamily) -> socket.socket:
    try:
        return socket.create_server((HOSTS[family], 0), family=family)
    except OSError:
        pytest.skip("no such addresses here")


def open_descriptors() -> set[str]:
    return set(os.listdir("/dev/fd"))


@pytest.mark.parametrize("family", HOSTS)
def test_what_is_told_of_the_socket(client: Any, family: socket.AddressFamily) -> None:
    async def main(address: Any) -> None:
        transport, protocol = await client.create_connection(Recorder, *address[:2])
        assert protocol.names == ["made"]
        sock = transport.get_extra_info("socket")
        assert (sock.family, sock.type, sock.proto) == (family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        assert sock.gettimeout() == 0
        assert not os.get_inheritable(sock.fileno())
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        assert transport.get_extra_info("peername") == address
        assert transport.get_extra_info("sockname") == sock.getsockname()
        transport.abort()
        await until(lambda: protocol.is_lost)
        assert transport.get_extra_info("peername") == address

    with listener(family) as server:
        run(client, main(server.getsockname()))


@pytest.mark.parametrize("family", HOSTS)
def test_refused(client: Any, family: socket.AddressFamily) -> None:
    with listener(family) as reserved:
        address = reserved.getsockname()
    # The loop's own, once it has run.
    run(client, asyncio.sleep(0))
    before = open_descriptors()
    with pytest.raises(ConnectionRefusedError) as raised:
        run(client, client.create_connection(Recorder, *address[:2]))
    assert raised.value.strerror == f"Connect call failed {address}"
    assert raised.value.__context__ is None
    assert open_descriptors() == before


def test_the_order_of_what_happens(client: Any) -> None:
    """A server in the same loop has its connection before the client can close it."""
    seen: list[str] = []

    class Ordered(asyncio.Protocol):
        def __init__(self, name: str) -> None:
            self.name = name

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            seen.append(f"{self.name} made")

        def connection_lost(self, exc: Exception | None) -> None:
            seen.append(f"{self.name} lost")

    async def main() -> None:
        server = await client.create_server(lambda: Ordered("server"), HOSTS[socket.AF_INET], 0)
        address = server.sockets[0].getsockname()
        transport, _ = await client.create_connection(lambda: Ordered("client"), *address)
        seen.append("connected")
        transport.close()
        await until(lambda: len(seen) == 5)
        server.close()

    run(client, main())
    assert seen.index("server made") < seen.index("server lost")
    assert [event for event in seen if "server" not in event] == ["client made", "connected", "client lost"]
    assert seen.index("server made") <= seen.index("connected") + 1


@pytest.mark.mioloop_only(reason="asyncio leaves its socket open, which the collector finds and warns of")
@pytest.mark.normal_mode
def test_a_factory_that_raises_leaves_nothing_open(loop: Any) -> None:
    def factory() -> Recorder:
        raise LookupError("no protocol")

    with listener(socket.AF_INET) as server:
        run(loop, asyncio.sleep(0))
        before = open_descriptors()
        with contextlib.suppress(LookupError):
            run(loop, loop.create_connection(factory, *server.getsockname()))
        gc.collect()
        assert open_descriptors() == before


@pytest.mark.parametrize("steps", range(6))
def test_cancelled_nothing_stays_open_or_watched(client: Any, caught: Caught, steps: int) -> None:
    async def main(address: Any) -> None:
        task = asyncio.ensure_future(client.create_connection(Recorder, *address))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel("enough")
        try:
            transport, protocol = await task
        except asyncio.CancelledError:
            return
        transport.abort()
        await until(lambda: protocol.is_lost)

    with listener(socket.AF_INET) as server:
        run(client, asyncio.sleep(0))
        before = open_descriptors()
        run(client, main(server.getsockname()))
        run(client, until(lambda: open_descriptors() == before))
        # Its number is another's now, who can be waited for.
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.send(b"x")
            assert run(client, client.sock_recv(ours, 1)) == b"x"


def test_a_peer_that_is_gone_at_once(client: Any) -> None:
    async def main(server: socket.socket) -> None:
        server.setblocking(False)
        for _ in range(20):
            connecting = asyncio.ensure_future(client.create_connection(Recorder, *server.getsockname()))
            accepted, _ = await client.sock_accept(server)
            # Its end is a reset.
            reset(accepted)
            try:
                _, protocol = await connecting
            except ConnectionError:
                continue
            await until(lambda lost=protocol: lost.is_lost)

    with listener(socket.AF_INET) as server:
        run(client, main(server))


@pytest.mark.mioloop_only(reason="says which way is taken")
@pytest.mark.normal_mode
def test_the_way_is_ours_only_while_everything_is_as_it_was(
    loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener(socket.AF_INET) as server:
        address = server.getsockname()

        def is_taken(*target: Any) -> bool:
            connection = loop._begin_connection(*(target or address))
            if connection is not None:
                connection.close()
            return connection is not None

        assert is_taken()
        host, port = address
        for other in ["localhost", host.encode(), None, "0.0.0.0", "::", "::1%lo"]:
            assert not is_taken(other, port)
        for other in [str(port), None, 0, -1, 1 << 16]:
            assert not is_taken(host, other)

        def replacement(*args: Any, **options: Any) -> Any:
            raise AssertionError("not to be called")

        patches: list[tuple[Any, str]] = [
            (socket, "socket"),
            (socket.socket, "connect"),
            (base_events, "socket"),
            (base_events, "_ipaddr_info"),
            (asyncio.BaseEventLoop, "_connect_sock"),
            (type(loop), "sock_connect"),
            (loop, "sock_connect"),
            (loop, "_make_socket_transport"),
        ]
        for owner, name in patches:
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, replacement, raising=False)
                assert not is_taken(), name
        assert is_taken()
        loop.set_debug(True)
        assert not is_taken()
        loop.set_debug(False)


@pytest.mark.mioloop_only(reason="asyncio has no other way")
def test_a_subclass_has_its_hooks_called(loop: Any) -> None:
    seen: list[Any] = []

    class Curious(type(loop)):  # type: ignore[misc]
        async def sock_connect(self, sock: socket.socket, address: Any) -> None:
            seen.append(address)
            await super().sock_connect(sock, address)

    async def main(address: Any) -> None:
        transport, protocol = await asyncio.get_running_loop().create_connection(Recorder, *address)
        transport.close()
        await until(lambda: protocol.is_lost)

    other = Curious()
    with listener(socket.AF_INET) as server:
        run(other, main(server.getsockname()))
        assert seen == [server.getsockname()]
    other.close()


AUDITED = """
import asyncio, socket, sys
heard = []
def hook(event, arguments):
    if event == "socket.connect":
        heard.append(arguments[1])
with socket.create_server(("127.0.0.1", 0)) as server:
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(2):
            transport, _ = await loop.create_connection(asyncio.Protocol, *server.getsockname())
            transport.close()
            sys.addaudithook(hook)
        await asyncio.sleep(0)
    {run}
    assert heard == [server.getsockname()], heard
"""


@pytest.mark.parametrize("run", ["asyncio.run(main())", "import mioloop; mioloop.run(main())"])
def test_an_audit_hook_hears_of_it(run: str) -> None:
    subprocess.run([sys.executable, "-c", AUDITED.format(run=run)], check=True)
