"""Whose TLS a loop uses, its own or the standard library's: so a user can tell whose fault a problem is."""

from __future__ import annotations

import asyncio
from asyncio import sslproto
from collections.abc import Iterator
from typing import Any

import pytest

import mioloop
from mioloop import _core

from .support import run
from .tls_peer import HOST, Contexts, make_contexts

OWN: type = _core._SSLProtocolTransport
STANDARD: type = sslproto._SSLProtocolTransport


@pytest.fixture(scope="module")
def tls() -> Contexts:
    return make_contexts()


async def kinds(contexts: Contexts) -> set[type]:
    """The classes of the transports of a server, a client, and a connection that is upgraded at both ends."""
    seen: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() == b"STARTTLS\n":
            writer.write(b"go\n")
            await writer.start_tls(contexts.server)
            assert await reader.readline() == b"hello\n"
        seen.append(writer.transport)
        writer.write(b"bye\n")
        writer.close()
        await writer.wait_closed()
        done.set()

    for upgrade in (False, True):
        done = asyncio.Event()
        server = await asyncio.start_server(serve, HOST, 0, ssl=None if upgrade else contexts.server)
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=None if upgrade else contexts.client
        )
        if upgrade:
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go\n"
            await writer.start_tls(contexts.client, server_hostname="localhost")
        writer.write(b"hello\n")
        assert await reader.read() == b"bye\n"
        seen.append(writer.transport)
        writer.close()
        await writer.wait_closed()
        await done.wait()
        server.close()
        await server.wait_closed()
    assert len(seen) == 4
    return {type(transport) for transport in seen}


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Iterator[list[mioloop.Loop]]:
    loops: list[mioloop.Loop] = []
    yield loops
    for loop in loops:
        loop.close()


def test_the_default(made: list[mioloop.Loop], monkeypatch: pytest.MonkeyPatch, tls: Contexts) -> None:
    monkeypatch.delenv("MIOLOOP_TLS", raising=False)
    made.append(mioloop.new_event_loop())
    assert made[0].tls == "mioloop"
    assert run(made[0], kinds(tls)) == {OWN}


def test_by_the_environment(made: list[mioloop.Loop], monkeypatch: pytest.MonkeyPatch, tls: Contexts) -> None:
    monkeypatch.setenv("MIOLOOP_TLS", "stdlib")
    made.append(mioloop.new_event_loop())
    monkeypatch.delenv("MIOLOOP_TLS")
    assert made[0].tls == "stdlib"
    assert run(made[0], kinds(tls)) == {STANDARD}


def test_by_an_argument_which_goes_before(
    made: list[mioloop.Loop], monkeypatch: pytest.MonkeyPatch, tls: Contexts
) -> None:
    monkeypatch.setenv("MIOLOOP_TLS", "mioloop")
    made.append(mioloop.Loop(tls="stdlib"))
    assert run(made[0], kinds(tls)) == {STANDARD}


def test_by_the_attribute(made: list[mioloop.Loop], tls: Contexts) -> None:
    made.append(mioloop.Loop(tls="mioloop"))
    made[0].tls = "stdlib"
    assert run(made[0], kinds(tls)) == {STANDARD}
    made[0].tls = "mioloop"
    assert run(made[0], kinds(tls)) == {OWN}


def test_a_wrong_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='"mioloop" or "stdlib", not \'openssl\'$'):
        mioloop.Loop(tls="openssl")
    monkeypatch.setenv("MIOLOOP_TLS", "uvloop")
    with pytest.raises(ValueError, match="^MIOLOOP_TLS"):
        mioloop.new_event_loop()


def test_the_class_is_known_by_asyncios_name() -> None:
    # aiosmtplib, for one, tells by it whether a connection is secure.
    assert OWN is not STANDARD
    assert OWN.__name__ == STANDARD.__name__
