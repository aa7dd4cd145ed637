"""Random conversations through a splitter: whatever two programs do at their ends, and in whatever pieces the
ciphertext travels, each gets the bytes that the other has written, on asyncio's loop and on ours.
"""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .protocols import BufferedRecorder, Recorder
from .support import run, tcp_pair, until
from .tls_peer import Contexts, make_contexts

SIZES = st.one_of(
    st.integers(1, 20), st.sampled_from([16_383, 16_384, 16_385, 65_536, 100_000]), st.integers(1, 40_000)
)
ACTION = st.one_of(
    st.tuples(st.just("write"), SIZES),
    st.tuples(st.just("writelines"), st.lists(SIZES, max_size=4)),
    st.tuples(st.just("pause"), st.none()),
    st.tuples(st.just("resume"), st.none()),
    st.tuples(st.just("answer"), SIZES),
    st.tuples(st.just("turns"), st.integers(1, 5)),
)
CONVERSATION = st.lists(st.tuples(st.sampled_from([0, 1]), ACTION), max_size=25)
END = st.sampled_from(["close", "abort", "close and abort", "cut off"])


@pytest.fixture(scope="module")
def tls() -> Contexts:
    return make_contexts()


class Talker(Recorder):
    """Writes parts of a stream of its own, so that what arrives can be compared with what was sent."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.noise = random.Random(seed)
        self.sent = bytearray()
        self.answers: list[int] = []

    def more(self, size: int) -> bytes:
        data = self.noise.randbytes(size)
        self.sent += data
        return data

    def note(self, name: str, argument: Any = None) -> None:
        super().note(name, argument)
        if name == "data":
            while self.answers:  # from within the callback
                self.transport.write(self.more(self.answers.pop()))

    def do(self, name: str, argument: Any) -> None:
        if name == "write":
            self.transport.write(self.more(argument))
        elif name == "writelines":
            self.transport.writelines([self.more(size) for size in argument])
        elif name == "pause":
            self.transport.pause_reading()
        elif name == "resume":
            self.transport.resume_reading()
        elif name == "answer":
            self.answers.append(argument)


class BufferedTalker(Talker, BufferedRecorder):
    def get_buffer(self, sizehint: int) -> Any:
        return memoryview(super().get_buffer(sizehint))


async def split(source: socket.socket, target: socket.socket, seed: int) -> None:
    """Carries bytes over, in pieces of any size and at any pace."""
    loop, chance = asyncio.get_running_loop(), random.Random(seed)
    try:
        while data := await loop.sock_recv(source, chance.choice([1, 100, 20_000, 300_000])):
            while data:
                size = chance.choice([1, 5, 1000, 16_000, 300_000])
                await loop.sock_sendall(target, data[:size])
                data = data[size:]
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        target.close()


async def converse(
    contexts: Contexts, conversation: list[Any], closer: int, end: str, buffered: bool, seed: int
) -> list[bytes]:
    loop: Any = asyncio.get_running_loop()
    (server_end, near), (client_end, far) = tcp_pair(), tcp_pair()
    carrying = [
        asyncio.ensure_future(split(near, far, seed)),
        asyncio.ensure_future(split(far, near, seed + 1)),
    ]
    talkers = [BufferedTalker(1) if buffered else Talker(1), Talker(2)]
    await asyncio.gather(
        loop.connect_accepted_socket(lambda: talkers[0], server_end, ssl=contexts.server),
        loop.create_connection(
            lambda: talkers[1], sock=client_end, ssl=contexts.client, server_hostname="localhost"
        ),
    )
    for who, (name, argument) in conversation:
        if name == "turns":
            for _ in range(argument):
                await asyncio.sleep(0)
        else:
            talkers[who].do(name, argument)
    # Whatever is under way arrives.
    for talker in talkers:
        talker.transport.resume_reading()
        talker.answers.clear()
    here, there = talkers[closer], talkers[1 - closer]
    await until(lambda: len(here.data) == len(there.sent) and len(there.data) == len(here.sent))
    here.transport.write(here.more(50_000))
    if end == "cut off":
        await until(lambda: len(there.data) == len(here.sent))
        near.close()
        far.close()
    elif end == "abort":
        await until(lambda: len(there.data) == len(here.sent))
        here.transport.abort()
    else:
        here.transport.close()
        if end == "close and abort":
            await until(lambda: len(there.data) == len(here.sent))
            here.transport.abort()
    await until(lambda: here.is_lost and there.is_lost)
    for task in carrying:
        task.cancel()
    await asyncio.gather(*carrying, return_exceptions=True)
    near.close()
    far.close()
    assert here.names.count("lost") == there.names.count("lost") == 1
    for one, other in ((here, there), (there, here)):
        assert one.data == bytes(other.sent)
        assert one.names.count("made") == 1 and one.names.index("lost") == len(one.names) - 1
    return [here.data, there.data]


@given(
    conversation=CONVERSATION,
    closer=st.sampled_from([0, 1]),
    end=END,
    buffered=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_conversations(
    loop: asyncio.AbstractEventLoop,
    tls: Contexts,
    conversation: list[Any],
    closer: int,
    end: str,
    buffered: bool,
    seed: int,
) -> None:
    run(loop, converse(tls, conversation, closer, end, buffered, seed))
