"""Whatever is done with a file of `mioloop.fs`, it is what the built-in `open` would have made of it.

hypothesis invents what is in a file, how it is opened and what is done then; two copies go through it, and
every result, every exception and what is in the files at the end must be the same.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mioloop import fs

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Operation = tuple[str, tuple[Any, ...]]

MODES = [action + plus for action in "rwax" for plus in ("", "+")]
SIZES = st.one_of(st.none(), st.integers(-1, 40), st.sampled_from([5000, 9000, 200_000]))

# Small pieces, large ones, and many: the boundaries of buffers and chunks are where things go wrong.
BYTES = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"a", b"\n", b"bc\n", b"\r\n"]), max_size=30).map(b"".join),
    st.builds(lambda data, times: data * times, st.binary(min_size=1, max_size=20), st.integers(1, 800)),
)

READING = st.one_of(
    st.tuples(st.sampled_from(["read", "readline", "readlines"]), st.tuples(SIZES)),
    st.tuples(st.just("tell"), st.just(())),
    st.tuples(st.just("readinto"), st.tuples(st.integers(0, 9000))),
)
MOVING = st.one_of(
    st.tuples(st.just("seek"), st.tuples(st.integers(0, 60), st.just(0))),
    st.tuples(st.just("seek"), st.tuples(st.integers(-20, 20), st.sampled_from([0, 1, 2, 7]))),
    st.tuples(st.just("seek"), st.tuples(st.sampled_from([4095, 8192, 20_000]), st.just(0))),
    st.tuples(st.sampled_from(["flush", "writable"]), st.just(())),
)
WRITING = st.one_of(
    st.tuples(st.just("write"), st.tuples(BYTES)),
    st.tuples(st.just("write"), st.tuples(BYTES.map(bytearray))),
    st.tuples(st.just("writelines"), st.tuples(st.lists(BYTES, max_size=3))),
    st.tuples(st.just("truncate"), st.tuples(st.one_of(st.none(), st.integers(-1, 50)))),
)
BINARY_PROGRAMS = st.lists(st.one_of(READING, MOVING, WRITING), max_size=14)


def outcome(error: Exception) -> tuple[object, ...]:
    # From 3.12 on a file that can't be read looks at the argument of `read` first.
    kind = TypeError if isinstance(error, io.UnsupportedOperation) else type(error)
    return (kind.__name__, getattr(error, "errno", None))


def comparable(name: str, args: tuple[Any, ...], result: object) -> object:
    return (result, bytes(args[0])) if name == "readinto" else result


def arguments(name: str, args: tuple[Any, ...], cookies: list[int]) -> tuple[Any, ...]:
    """The arguments, which may be a buffer to fill or a position that `tell` gave."""
    if name == "readinto":
        return (bytearray(args[0]),)
    if name == "seek" and args[0] is None:
        return (cookies[args[1] % len(cookies)] if cookies else 0,)
    return args


def by_the_standard_library(path: Path, options: dict[str, Any], program: list[Operation]) -> list[object]:
    log: list[object] = []
    cookies: list[int] = []
    try:
        file = open(path, **options)
    except (OSError, ValueError) as error:
        return [outcome(error)]
    with file:
        log.append((file.mode, file.name == str(path)))
        for name, args in program:
            try:
                args = arguments(name, args, cookies)
                result = getattr(file, name)(*args)
                log.append(comparable(name, args, result))
                if name == "tell":
                    cookies.append(result)
            except (OSError, ValueError, TypeError, AttributeError) as error:
                log.append(outcome(error))
    return log


async def by_mioloop(path: Path, options: dict[str, Any], program: list[Operation]) -> list[object]:
    log: list[object] = []
    cookies: list[int] = []
    try:
        file: Any = await fs.open(path, **options)
    except (OSError, ValueError) as error:
        return [outcome(error)]
    async with file:
        log.append((file.mode, file.name == str(path)))
        for name, args in program:
            try:
                args = arguments(name, args, cookies)
                result = await getattr(file, name)(*args)
                log.append(comparable(name, args, result))
                if name == "tell":
                    cookies.append(result)
            except (OSError, ValueError, TypeError, AttributeError) as error:
                log.append(outcome(error))
    return log


def compare(
    factory: LoopFactory, content: bytes | None, options: dict[str, Any], program: list[Operation]
) -> None:
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=factory) as runner:
        theirs, ours = Path(folder, "theirs"), Path(folder, "ours")
        if content is not None:
            theirs.write_bytes(content)
            ours.write_bytes(content)
        expected = by_the_standard_library(theirs, options, program)
        assert runner.run(by_mioloop(ours, options, program)) == expected
        assert ours.exists() == theirs.exists()
        if theirs.exists():
            assert ours.read_bytes() == theirs.read_bytes()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.none(), BYTES, BYTES),
    mode=st.sampled_from(MODES),
    buffering=st.sampled_from([-1, -1, 0, 2, 7, 64]),
    program=BINARY_PROGRAMS,
)
def test_bytes(
    loop_factory: LoopFactory, content: bytes | None, mode: str, buffering: int, program: list[Operation]
) -> None:
    if mode in ("w", "a", "x"):
        # The built-in reads nothing even where it can't read.
        program = [operation for operation in program if operation != ("readline", (0,))]
    compare(loop_factory, content, {"mode": mode + "b", "buffering": buffering}, program)


ENCODINGS = [
    "utf-8",
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-32",
    "latin-1",
    "shift_jis",
    "iso2022_jp",
]
TEXT = st.one_of(
    st.lists(st.sampled_from(["a", "\n", "\r", "\r\n", "é", "か", "𝄞", "line\n"]), max_size=30).map("".join),
    st.builds(
        lambda text, times: text * times,
        st.text("ab\n\ré€か𝄞", min_size=1, max_size=12),
        st.integers(1, 3000),
    ),
)
# Not `readlines`, which in the built-in has effects of its own on `tell`.
TEXT_READING = st.one_of(
    st.tuples(st.sampled_from(["read", "readline"]), st.tuples(SIZES)),
    st.tuples(st.sampled_from(["tell", "tell", "flush", "seekable", "readable"]), st.just(())),
    st.tuples(st.just("seek"), st.tuples(st.none(), st.integers(0, 50))),
    st.tuples(st.just("seek"), st.sampled_from([(0, 0), (0, 1), (0, 2), (1, 1), (-1, 2), (-1, 0), (0, 3)])),
)
TEXT_WRITING = st.one_of(
    st.tuples(st.just("write"), st.tuples(TEXT)),
    st.tuples(st.just("writelines"), st.tuples(st.lists(TEXT, max_size=3))),
    st.tuples(st.just("truncate"), st.tuples(st.one_of(st.none(), st.integers(0, 50)))),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.none(), TEXT, TEXT),
    mode=st.sampled_from(MODES),
    buffering=st.sampled_from([-1, -1, 1, 7]),
    encoding=st.sampled_from(ENCODINGS),
    errors=st.sampled_from(["replace", "ignore", "backslashreplace"]),
    newline=st.sampled_from([None, None, "", "\n", "\r", "\r\n"]),
    program=st.lists(st.one_of(TEXT_READING, TEXT_READING, TEXT_WRITING), max_size=12),
)
def test_text(
    loop_factory: LoopFactory,
    content: str | None,
    mode: str,
    buffering: int,
    encoding: str,
    errors: str,
    newline: str | None,
    program: list[Operation],
) -> None:
    options = {
        "mode": mode,
        "buffering": buffering,
        "encoding": encoding,
        "errors": errors,
        "newline": newline,
    }
    # Without the flush the built-in reads, in a chunk, what was there before it was written over.
    flush: Operation = ("flush", ())
    writes = ("write", "writelines", "truncate")
    program = [
        step
        for operation in program
        for step in ([operation, flush] if operation[0] in writes else [operation])
    ]
    encoded = None if content is None else content.encode(encoding, "replace")
    compare(loop_factory, encoded, options, program)
