"""loop.getaddrinfo and loop.getnameinfo against the functions of the socket module, which are their
specification: results, errors and the arguments that are refused.

No name leaves the machine: names are `localhost`, names that no resolver asks anybody about, and names that
are looked up by a function of the test's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from .support import import_line, run, settle, until

FAMILIES: list[Any] = [None, 0, socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, -1, 999]
KINDS: list[Any] = [
    1.5,
    0,
    socket.SOCK_STREAM,
    socket.SOCK_DGRAM,
    socket.SOCK_RAW,
    socket.SOCK_SEQPACKET,
    77,
    -1,
]
PROTOCOLS: list[Any] = [2**40, 0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP, 132, 255, -1]
FLAGS = [
    socket.AI_PASSIVE,
    socket.AI_CANONNAME,
    socket.AI_NUMERICHOST,
    socket.AI_NUMERICSERV,
    socket.AI_V4MAPPED,
    socket.AI_ALL,
    socket.AI_ADDRCONFIG,
    1 << 30,
]

ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.one_of(
    st.ip_addresses(v=6).map(str),
    st.ip_addresses(v=6).map(lambda address: address.exploded),
    # Runs of zeros, in all places, and IPv4 addresses at the end.
    st.lists(st.sampled_from(["0", "1", "ffff", "00ab", "FE80"]), min_size=8, max_size=8).map(":".join),
    st.builds("{}{}".format, st.sampled_from(["::", "::ffff:", "64:ff9b::", "1::2:"]), ipv4),
)
ODD_ADDRESSES = [
    *("127.1", "0x7f.1", "0177.0.0.1", "1", "1.2.3.4.", "1.2.3", "256.1.1.1", " 1.2.3.4", "1.2.3.4 "),
    *("01.2.3.4", "::1%lo", "fe80::1%1", "fe80::1%lo", "fe80::1%nowhere", "::1%", "1::2::3", ":::"),
    *("::00001", "1:2:3:4:5:6:7::", "::1.2.3.04", "[::1]", "::ffff:1.2.3", "", "\0", "1.2.3.4\0"),
    *("::1\0x", "\uff11.2.3.4", "1\u30022\u30023\u30024", "\ud800", "."),
]
odd_addresses = st.sampled_from(ODD_ADDRESSES) | st.text("0123456789.:xabcf%", max_size=12)

# None of these is looked up in the network, with AI_NUMERICHOST or without.
hosts = st.one_of(
    ipv4,
    ipv6,
    ipv4.map(str.encode),
    ipv6.map(str.encode),
    st.sampled_from(["localhost", "LOCALHOST", b"localhost", None, bytearray(b"127.0.0.1"), 5, 1.5]),
)
ports = st.one_of(
    st.none(),
    st.integers(-2, 70_000),
    st.integers(0, 65_535).map(str),
    st.integers(0, 65_535).map(lambda port: str(port).encode()),
    st.sampled_from(["http", "domain", b"https", "nonesuch", "", b"", "80x", " 80", "080", "0x50", "\u0663"])
    | st.sampled_from(["80\0", b"80\0", "\ud800", 2**40, -(2**70), True, socket.AF_INET, 1.5, object, "-1"]),
)


def outcome(call: Callable[[], Any]) -> Any:
    """What came out, so that it can be compared, with the types of what is in it."""
    try:
        result = call()
    except Exception as error:
        return type(error), error.args if not isinstance(error, UnicodeError) else str(error)
    if isinstance(result, list):
        types = [tuple(type(item) for item in entry) for entry in result]
        return result, types, [tuple(type(item) for item in entry[4]) for entry in result]
    return result, [type(item) for item in result]


@pytest.fixture(scope="module")
def shared_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One loop for all examples of a property; the collector of a fresh one for each would take minutes."""
    import mioloop

    loop = mioloop.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def compare(loop: asyncio.AbstractEventLoop, host: Any, port: Any, **options: Any) -> None:
    expected = outcome(lambda: socket.getaddrinfo(host, port, **options))
    ours = outcome(lambda: run(loop, loop.getaddrinfo(host, port, **options)))
    assert ours == expected


flags = st.lists(st.sampled_from(FLAGS), max_size=3).map(lambda given: sum(set(given)))
often_zero = st.booleans().flatmap(lambda zero: st.just(0) if zero else flags)


@given(
    host=hosts,
    port=ports,
    family=st.sampled_from(FAMILIES),
    type=st.sampled_from(KINDS),
    proto=st.sampled_from(PROTOCOLS),
    flags=often_zero,
)
@example(host="127.0.0.1", port=80, family=0, type=socket.SOCK_STREAM, proto=0, flags=0)
@example(host="::1.2.3.4", port=80, family=0, type=0, proto=0, flags=0)
@example(host="127.0.0.1", port=80, family=0, type=0, proto=0, flags=socket.AI_CANONNAME)
def test_any_argument(
    shared_loop: asyncio.AbstractEventLoop,
    host: Any,
    port: Any,
    family: int,
    type: int,
    proto: int,
    flags: int,
) -> None:
    if host in ("localhost", "LOCALHOST", b"localhost") and family == socket.AF_INET6:
        # A file has it, but perhaps not for this family; and a name server is not to be asked.
        flags |= socket.AI_NUMERICHOST
    compare(shared_loop, host, port, family=family, type=type, proto=proto, flags=flags)


@given(host=ipv4 | ipv6, port=st.integers(0, 65_535), type=st.sampled_from([0, 1, 2, 3]))
def test_addresses_in_digits(shared_loop: asyncio.AbstractEventLoop, host: str, port: int, type: int) -> None:
    compare(shared_loop, host, port, type=type)


PLAIN_FLAGS = [
    passive | host | service
    for passive in (0, socket.AI_PASSIVE)
    for host in (0, socket.AI_NUMERICHOST)
    for service in (0, socket.AI_NUMERICSERV)
]


@pytest.mark.parametrize("port", [None, 0, 80])
@pytest.mark.parametrize("flags", PLAIN_FLAGS)
def test_digits_once_their_answer_is_known(
    shared_loop: asyncio.AbstractEventLoop, flags: int, port: Any
) -> None:
    """The first answer to such hints is the C library's, and the next ones are made after it."""
    for family, type, proto in itertools.product(
        [0, socket.AF_INET, socket.AF_INET6], [0, 1, 2, 3], [0, 6, 17, 255]
    ):
        for host in ["192.0.2.1", "0.0.0.0", "2001:DB8::00:1", "::ffff:1.2.3.4", "::1.2.3.4", "::"]:
            for _ in range(2):
                compare(shared_loop, host, port, family=family, type=type, proto=proto, flags=flags)


@pytest.mark.parametrize("port", [65_535, 65_536, -1, True, "80", b"80", "http", 1.5])
@pytest.mark.parametrize("host", ["192.0.2.1", b"192.0.2.1", "192.0.2.01", "192.0.2", "fe80::1", "fe80::1%1"])
def test_odd_shapes_of_what_is_known(
    shared_loop: asyncio.AbstractEventLoop, host: str | bytes, port: Any
) -> None:
    for flags in (0, socket.AI_CANONNAME, socket.AI_V4MAPPED, socket.AI_ADDRCONFIG):
        compare(shared_loop, "192.0.2.2", 80, type=socket.SOCK_STREAM, flags=flags)
        compare(shared_loop, "2001:db8::1", 80, type=socket.SOCK_STREAM, flags=flags)
        compare(shared_loop, host, port, type=socket.SOCK_STREAM, flags=flags)


@pytest.mark.normal_mode
@pytest.mark.mioloop_only(reason="asyncio asks the C library each time")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the C library is asked each time")
def test_the_c_library_is_asked_once(loop: asyncio.AbstractEventLoop) -> None:
    def is_made_of_the_question(host: str, **options: Any) -> bool:
        [*_, last] = run(loop, loop.getaddrinfo(host, 80, **options))
        return last[4][0] is host

    hints: list[dict[str, Any]] = [{}, {"type": socket.SOCK_DGRAM}, {"flags": socket.AI_PASSIVE}]
    for number, options in enumerate(hints):
        is_made_of_the_question("198.51.100.1", **options)
        assert is_made_of_the_question(f"198.51.100.{number}", **options)
    # More sets of hints than are remembered, and one that was forgotten.
    for proto in range(100):
        compare(loop, "198.51.100.1", None, type=socket.SOCK_RAW, proto=proto)
    assert not is_made_of_the_question("198.51.100.2")
    assert is_made_of_the_question("198.51.100.3")


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((), {}),
        (("127.0.0.1",), {}),
        (("127.0.0.1", 80, 2), {}),
        (("127.0.0.1", 80), {"host": "127.0.0.1"}),
        (("127.0.0.1", 80), {"nonesuch": 1}),
        ((), {"host": "127.0.0.1", "port": 80}),
        (("127.0.0.1",), {"type": 1, "port": 80}),
        (("127.0.0.1",), {"port": 80, "family": "2"}),
        (("127.0.0.1", 80), {"type": None}),
        (("127.0.0.1", 80), {"proto": 6.0}),
        # Not the interpreter's own string of that name.
        (("127.0.0.1", 80), {"".join(["ty", "pe"]): socket.SOCK_DGRAM}),
    ],
)
def test_arguments_as_asyncio_takes_them(
    loop: asyncio.AbstractEventLoop, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    plain = asyncio.SelectorEventLoop()

    async def look_up(of: Any) -> Any:
        return await of.getaddrinfo(*args, **options)

    expected = outcome(lambda: plain.run_until_complete(look_up(plain)))
    plain.run_until_complete(plain.shutdown_default_executor())
    plain.close()
    assert outcome(lambda: run(loop, look_up(loop))) == expected


def test_results_by_await_and_by_send(loop: asyncio.AbstractEventLoop) -> None:
    """A tuple is one result, not the arguments of a StopIteration."""
    address, flags = ("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV

    async def main() -> Any:
        return await loop.getnameinfo(address, flags), await loop.getaddrinfo(*address)

    assert run(loop, main()) == (("127.0.0.1", "80"), socket.getaddrinfo(*address))


@pytest.mark.normal_mode
@pytest.mark.mioloop_only(reason="asyncio's waits for a thread")
@pytest.mark.parametrize("step", [next, lambda lookup: lookup.send(None), lambda lookup: lookup.__next__()])
def test_the_end_of_a_look_up(loop: asyncio.AbstractEventLoop, step: Callable[[Any], Any]) -> None:
    name: Any = loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    assert iter(name) is name
    assert name.__await__() is name
    with pytest.raises(StopIteration) as stopped:
        step(name)
    assert stopped.value.value == ("127.0.0.1", "80")
    with pytest.raises(RuntimeError, match="^cannot reuse already awaited"):
        step(name)


def test_a_list_is_the_callers_own(loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(3):
        found = run(loop, loop.getaddrinfo("127.0.0.1", 80))
        assert len(found) == len(socket.getaddrinfo("127.0.0.1", 80))
        found.clear()


@pytest.mark.normal_mode
@pytest.mark.mioloop_only(reason="asyncio has a coroutine of its own for this")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_look_ups_whose_answer_is_known(loop: asyncio.AbstractEventLoop, host: str) -> None:
    def look_up() -> Any:
        return loop.getaddrinfo(host, 80)

    class Port(int):
        pass

    run(loop, look_up())
    closed, thrown, sent, dropped = look_up(), look_up(), look_up(), look_up()
    closed.close()
    with pytest.raises(RuntimeError, match="^cannot reuse already awaited"):
        closed.send(None)
    with pytest.raises(ZeroDivisionError):
        thrown.throw(ZeroDivisionError())
    with pytest.raises(StopIteration) as stopped:
        sent.send(None)
    assert stopped.value.value == socket.getaddrinfo(host, 80)
    with pytest.raises(RuntimeError, match="^cannot reuse already awaited"):
        sent.send(None)
    gone = weakref.ref(dropped)
    with pytest.warns(RuntimeWarning, match="never awaited"):
        del dropped
    assert gone() is None
    # What was dropped is used again, and does not know what it was.
    count = sys.getrefcount(host)
    again = [look_up() for _ in range(3)]
    assert sys.getrefcount(host) == count + 3
    for lookup in again[1:]:
        lookup.close()
    assert run(loop, again[0]) == socket.getaddrinfo(host, 80)
    del again, lookup
    assert sys.getrefcount(host) == count
    compare(loop, host, Port(80))


@given(host=odd_addresses, port=st.sampled_from([0, 80, "80", None]))
@example(host="1:2:3:4:5:6:7::", port=0)
def test_addresses_of_odd_shapes(shared_loop: asyncio.AbstractEventLoop, host: str, port: Any) -> None:
    compare(shared_loop, host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    with contextlib.suppress(OSError, ValueError):
        socket.inet_aton(host)  # The C library knows it for an address; nobody will be asked.
        compare(shared_loop, host, port)


@given(
    labels=st.lists(st.text("aéß中\u0130-", min_size=0, max_size=70), max_size=3),
)
@example(labels=["a" * 63, "a" * 64])
@example(labels=["a" * 64, "a"])
@example(labels=["a", ""])
@example(labels=["", "a"])
def test_names_that_idna_knows_or_refuses(shared_loop: asyncio.AbstractEventLoop, labels: list[str]) -> None:
    compare(shared_loop, ".".join(labels), 80, flags=socket.AI_NUMERICHOST)


socket_addresses = st.one_of(
    st.tuples(ipv4, st.integers(-1, 70_000)),
    st.tuples(ipv6, st.integers(0, 65_535)),
    st.tuples(ipv6, st.integers(0, 65_535), st.integers(-1, 2**21)),
    st.tuples(ipv6, st.integers(0, 65_535), st.integers(0, 0xFFFFF), st.integers(-1, 2**33)),
    st.tuples(ipv4, st.just(80), st.just(0)),
    st.tuples(odd_addresses, st.just(80)),
    st.sampled_from([(), ("::1",), ("::1", 1, 2, 3, 4), ["127.0.0.1", 80], "127.0.0.1", None, 5])
    | st.sampled_from([("127.0.0.1", "80"), (b"127.0.0.1", 80), ("127.0.0.1", 80.0), ("::1", True)]),
)


@given(
    address=socket_addresses,
    numeric=st.just(socket.NI_NUMERICHOST),
    more=st.lists(
        st.sampled_from(
            [socket.NI_NUMERICSERV, socket.NI_DGRAM, socket.NI_NAMEREQD, socket.NI_NOFQDN, 1 << 20]
        )
    ),
)
@example(address=("127.0.0.1", 80), numeric=0, more=[])
@example(address=("::1", 80, 0, 0), numeric=0, more=[])
def test_names_of_addresses(
    shared_loop: asyncio.AbstractEventLoop, address: Any, numeric: int, more: list[int]
) -> None:
    flags = numeric | sum(set(more))
    expected = outcome(lambda: socket.getnameinfo(address, flags))
    ours = outcome(lambda: run(shared_loop, shared_loop.getnameinfo(address, flags)))
    assert ours == expected


# How it behaves, beside what it answers.


def test_a_name(loop: asyncio.AbstractEventLoop) -> None:
    found = run(loop, loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM))
    assert found == socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)


def test_the_same_coroutine_twice(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        lookup: Any = loop.getaddrinfo("127.0.0.1", 80)
        await lookup
        with pytest.raises(RuntimeError, match="^cannot reuse already awaited"):
            await lookup

    run(loop, main())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_look_up_can_be_a_task(loop: asyncio.AbstractEventLoop, host: str) -> None:
    async def main() -> None:
        lookup: Any = loop.getaddrinfo(host, 80)
        assert asyncio.iscoroutine(lookup)
        assert await loop.create_task(lookup)
        assert await asyncio.wait_for(loop.getaddrinfo(host, 80), 30)
        assert len(await asyncio.gather(*[loop.getaddrinfo(host, 80) for _ in range(50)])) == 50

    run(loop, main())


@pytest.mark.normal_mode
@pytest.mark.mioloop_only(reason="asyncio asks a thread")
def test_digits_are_answered_at_once(loop: asyncio.AbstractEventLoop) -> None:
    lookup: Any = loop.getaddrinfo("127.0.0.1", 80)
    with pytest.raises(StopIteration):
        lookup.send(None)
    name: Any = loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    with pytest.raises(StopIteration):
        name.send(None)


@pytest.mark.parametrize("rounds", range(4))
def test_a_cancelled_look_up(loop: asyncio.AbstractEventLoop, rounds: int) -> None:
    async def main() -> None:
        for _ in range(20):
            task = asyncio.ensure_future(loop.getaddrinfo("localhost", 80))
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel("enough")
            await asyncio.wait([task])
        assert await loop.getaddrinfo("localhost", 80)

    run(loop, main())


def test_a_dropped_look_up(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        lookup: Any = loop.getaddrinfo("localhost", 80)
        lookup.close()
        with pytest.raises(RuntimeError):
            await lookup

    run(loop, main())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_look_up_that_nobody_awaits_says_so(loop: asyncio.AbstractEventLoop, host: str) -> None:
    forgotten: dict[str, Callable[[], object]] = {
        "getaddrinfo": lambda: loop.getaddrinfo(host, 80),
        "getnameinfo": lambda: loop.getnameinfo((host, 80)),
    }
    for name, forget in forgotten.items():
        with pytest.warns(RuntimeWarning, match=f"^coroutine 'BaseEventLoop.{name}' was never awaited$"):
            forget()


def test_a_look_up_in_a_cycle_that_nobody_awaits_says_so(loop: asyncio.AbstractEventLoop) -> None:
    cycle: list[Any] = [loop.getaddrinfo("localhost", 80)]
    cycle.append(cycle)
    del cycle
    with pytest.warns(RuntimeWarning, match="never awaited"):
        gc.collect()


def test_a_look_up_that_nobody_awaits_leaves_an_exception_alone(loop: asyncio.AbstractEventLoop) -> None:
    """`int` has failed when its argument is dropped."""
    convert: Any = int
    with (
        pytest.warns(RuntimeWarning, match="never awaited"),
        pytest.raises(TypeError, match=r"^int\(\) argument must be"),
    ):
        convert(loop.getaddrinfo("localhost", 80))


def test_a_look_up_that_has_begun_says_nothing(
    loop: asyncio.AbstractEventLoop, recwarn: pytest.WarningsRecorder
) -> None:
    async def main() -> None:
        for host in ("127.0.0.1", "localhost"):
            await loop.getaddrinfo(host, 80)
            lookup: Any = loop.getaddrinfo(host, 80)
            lookup.close()
            task = asyncio.ensure_future(loop.getaddrinfo(host, 80))
            task.cancel()
            await asyncio.wait([task])

    run(loop, main())
    assert not recwarn.list


def test_an_executor_of_the_programs_is_used(loop: asyncio.AbstractEventLoop) -> None:
    threads: list[str] = []

    class Executor(concurrent.futures.ThreadPoolExecutor):
        def submit(self, *args: Any, **options: Any) -> Any:
            threads.append(args[0].__name__)
            return super().submit(*args, **options)

    loop.set_default_executor(Executor(1))
    assert run(loop, loop.getaddrinfo("127.0.0.1", 80))
    assert run(loop, loop.getnameinfo(("127.0.0.1", 80), 3))
    assert len(threads) == 2


def test_after_the_executor_was_shut_down(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match="^Executor shutdown has been called$"):
            await loop.getaddrinfo("localhost", 80)

    run(loop, main())


@pytest.mark.parametrize("place", ["socket.getaddrinfo", "_socket.getaddrinfo", "asyncio.base_events.socket"])
def test_a_function_that_was_put_in_place_is_called(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))

    def getaddrinfo(*_args: object, **_options: object) -> list[Any]:
        return [address]

    class Module:
        pass

    substitute: Any = getaddrinfo
    if place.endswith("socket"):
        substitute = Module()
        vars(substitute).update(vars(socket), getaddrinfo=getaddrinfo)
    monkeypatch.setattr(place, substitute)
    assert run(loop, loop.getaddrinfo("127.0.0.1", 80)) == [address]
    assert run(loop, loop.getaddrinfo("example.com", 80)) == [address]
    monkeypatch.undo()
    assert run(loop, loop.getaddrinfo("127.0.0.1", 80)) != [address]


def test_a_getnameinfo_that_was_put_in_place_is_called(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getnameinfo", lambda *_args: ("host", "service"))
    assert run(loop, loop.getnameinfo(("127.0.0.1", 80), 3)) == ("host", "service")


def test_debug_mode_logs(loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    with caplog.at_level(logging.DEBUG, "asyncio"):
        run(loop, loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM))
    messages = [record.getMessage() for record in caplog.records]
    assert any(message.startswith("Get address info 127.0.0.1:80, type=") for message in messages)
    assert any(message.startswith("Getting address info 127.0.0.1:80, type=") for message in messages)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "\ud800"])
def test_audit_hooks_are_told(loop_factory: Callable[[], asyncio.AbstractEventLoop], host: str) -> None:
    script = import_line(loop_factory) + (
        "import sys\n"
        "seen = []\n"
        "def hook(event, args):\n"
        "    if event in ('socket.getaddrinfo', 'socket.getnameinfo'):\n"
        "        seen.append((event, args))\n"
        "        if args[1:2] == (666,):\n"
        "            raise PermissionError('not this one')\n"
        "sys.addaudithook(hook)\n"
        f"host = {host!r}\n"
        "loop = new_event_loop()\n"
        "async def main():\n"
        "    for port in (80, 666):\n"
        "        try:\n"
        "            await loop.getaddrinfo(host, port, family=2, type=1, proto=6)\n"
        "        except (UnicodeError, PermissionError) as error:\n"
        "            print(type(error))\n"
        "    await loop.getnameinfo(('127.0.0.1', 80), 3)\n"
        "loop.run_until_complete(main())\n"
        "loop.close()\n"
        "print(ascii(seen))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert not done.stderr
    lines = done.stdout.splitlines()
    if host == "\ud800":
        assert lines == ["<class 'UnicodeEncodeError'>"] * 2 + [lines[-1]] or "UnicodeError" in lines[0]
    else:
        calls = [("socket.getaddrinfo", (host, port, 2, 1, 6)) for port in (80, 666)]
        calls.append(("socket.getnameinfo", (("127.0.0.1", 80),)))  # type: ignore[arg-type]
        assert lines == ["<class 'PermissionError'>", ascii(calls)]


# The threads.


def threads_of_names() -> int:
    names = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as file:
            names.append(file.read().strip())
    return names.count("mioloop-names")


ours = pytest.mark.mioloop_only(reason="asyncio's executor has threads of Python's")


@ours
@pytest.mark.normal_mode
def test_there_is_no_thread_before_the_first_name_and_few_after_many(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    run_until_gone()
    loop = loop_factory()

    async def main() -> None:
        await loop.getaddrinfo("127.0.0.1", 80)
        assert threads_of_names() == 0
        await asyncio.gather(*[loop.getaddrinfo("localhost", 80) for _ in range(500)])
        assert 1 <= threads_of_names() <= 32
        assert threading.active_count() == before

    before = threading.active_count()
    run(loop, main())
    loop.close()
    run_until_gone()


def run_until_gone() -> None:
    loop = asyncio.SelectorEventLoop()
    run(loop, until(lambda: threads_of_names() == 0))
    loop.close()


@ours
@pytest.mark.normal_mode
def test_threads_that_have_nothing_to_do_end(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        await loop.getaddrinfo("localhost", 80)
        await until(lambda: threads_of_names() == 0)
        await loop.getaddrinfo("localhost", 80)

    run_until_gone()
    run(loop, main())


def test_closing_the_loop_with_look_ups_under_way(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    for _ in range(20):
        loop = loop_factory()
        tasks = [loop.create_task(look_up(loop)) for _ in range(20)]
        loop.call_soon(loop.stop)
        loop.run_forever()
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    gc.collect()


async def look_up(loop: asyncio.AbstractEventLoop) -> object:
    return await loop.getaddrinfo("localhost", 80)


@ours
@pytest.mark.normal_mode
def test_a_closed_loop_keeps_no_descriptor_of_its_look_ups(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    run_until_gone()
    before = open_files()
    for _ in range(10):
        loop = loop_factory()
        lookups: list[Any] = [loop.getaddrinfo("localhost", 80) for _ in range(10)]
        for lookup in lookups:
            lookup.send(None)  # It waits for a thread.
        loop.close()
        # A thread may have `/etc/hosts` open, still.
        assert open_files() <= before + len(lookups)
        for lookup in lookups:
            lookup.close()
    run_until_gone()
    assert open_files() == before


@pytest.mark.normal_mode
def test_a_forked_child_has_look_ups_of_its_own(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """In a process that has one thread of Python's at the time: the look-ups' are none."""
    script = import_line(loop_factory) + (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"  # asyncio's own threads
        "loop = new_event_loop()\n"
        "loop.run_until_complete(loop.getaddrinfo('localhost', 80))\n"
        "lookup = loop.getaddrinfo('localhost', 80)\n"
        "lookup.send(None)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    other = new_event_loop()\n"
        "    found = other.run_until_complete(other.getaddrinfo('localhost', 80))\n"
        "    other.close()\n"
        "    if 'mioloop' in sys.modules:\n"
        "        loop.run_until_complete(loop.getaddrinfo('localhost', 80))\n"
        "        loop.close()\n"
        "    os._exit(0 if found else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "lookup.close()\n"
        "assert loop.run_until_complete(loop.getaddrinfo('localhost', 80))\n"
        "print('fine')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


@ours
def test_the_interpreter_ends_while_a_look_up_is_under_way(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    script = import_line(loop_factory) + (
        "loop = new_event_loop()\n"
        "lookups = [loop.getaddrinfo('localhost', 80) for _ in range(100)]\n"
        "for lookup in lookups:\n"
        "    lookup.send(None)\n"
        "print('the end')\n"
    )
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
        assert (done.stdout, done.returncode) == ("the end\n", 0)


def test_waits_are_found_by_the_collector(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(loop.getaddrinfo("localhost", 80))
        await asyncio.sleep(0)
        gc.collect()
        assert await task
        await settle()

    run(loop, main())
