"""What the loop's thread does itself, as the kernel has it all in memory: see `src/fs/at_once.rs`.

Each function gives None where it can't. If it was only not its turn, `again` does it; else a blocking thread.
"""

from __future__ import annotations

from asyncio import get_running_loop, sleep
from collections.abc import Callable
from os import environ, stat_result
from typing import TypeVar, TypeVarTuple

from .. import _core

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# A library that is loaded before all others may have functions of its own in the place of those of the C
# library, which the threads call.
enabled = environ.get("MIOLOOP_FS") != "threads" and not environ.get("LD_PRELOAD")
"""What the threads do must not differ."""


async def again(attempt: Callable[[*Ts], T | None], *args: *Ts) -> T | None:
    """The same once more, when it was the others' turn and they have had it."""
    refusal = _core._refusal()
    if not refusal:
        return None
    await sleep(0)
    _core._others_had_turn(refusal)
    return attempt(*args)


def open(path: bytes, name: str | bytes, buffering: int) -> _core.File | None:
    """Opens a file for reading."""
    # As with a thread: an error outside of a loop.
    get_running_loop()
    return _core._open_at_once(path, name, buffering) if enabled else None


def read(path: bytes, name: str | bytes) -> bytes | _core.File | None:
    """Reads a whole file; the result is the file, opened, if there is more to be done."""
    get_running_loop()
    return _core._read_at_once(path, name) if enabled else None


def stat(path: bytes, name: str | bytes, follow_symlinks: bool) -> stat_result | None:
    """The status of a file."""
    get_running_loop()
    return _core._stat_at_once(path, name, follow_symlinks) if enabled else None
