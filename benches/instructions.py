"""Instructions per operation, counted by callgrind: the same to within a percent, however busy the machine.

    python -m benches.instructions                       count, compare with what is stored; growth fails
    python -m benches.instructions --accept 'the reason' store these counts from now on
    python -m benches.instructions --loops mioloop,uvloop

Each work is run twice, for different numbers of operations, and the difference divided: start-up falls out.
Only instructions of the process itself count, not the kernel's, so this says nothing about system calls
saved. Counts hold for one version of Python and one kind of processor, and are stored by both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from mioloop.bench import FACTORIES, call_soon_chain, load_factory, sleep_zero

from .loops import OURS
from .network import Echo, echo_lines

STORE = Path(__file__).with_suffix(".json")
ALLOWED_GROWTH = 0.05
FEW, MANY = 1000, 5000
MESSAGE = b"x" * 1023 + b"\n"


async def call_soon(count: int) -> None:
    await call_soon_chain(asyncio.get_running_loop())(count)


async def sleep(count: int) -> None:
    await sleep_zero(asyncio.get_running_loop())(count)


async def echo_message(count: int) -> None:
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    class Last(Echo):
        def connection_lost(self, exc: Exception | None) -> None:
            over.set_result(None)

    server = await loop.create_server(Last, "127.0.0.1", 0)
    with client(server.sockets[0], count):
        await over
    server.close()


async def stream_line(count: int) -> None:
    over = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await echo_lines(reader, writer)
        over.set_result(None)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with client(server.sockets[0], count):
        await over
    server.close()


WORKS: dict[str, Callable[[int], Coroutine[Any, Any, None]]] = {
    "call_soon": call_soon,
    "asyncio.sleep(0)": sleep,
    "echo message, Protocol": echo_message,
    "echo line, streams": stream_line,
}


@contextlib.contextmanager
def client(listener: socket.socket, count: int) -> Iterator[None]:
    """Somebody to talk to, in a process that callgrind doesn't follow."""
    port = listener.getsockname()[1]
    command = [sys.executable, "-m", "benches.instructions", "--client", str(port), "--count", str(count)]
    with subprocess.Popen(command) as process:
        yield
    if process.returncode != 0:
        raise RuntimeError("the client failed")


def talk(port: int, count: int) -> None:
    """One message at a time, so that each costs the server the same: one poll, one read, one write."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(count):
            connection.sendall(MESSAGE)
            received = b""
            while len(received) < len(MESSAGE):
                received += connection.recv(len(MESSAGE))
            if received != MESSAGE:
                raise RuntimeError("the server's echo is wrong")


def under_callgrind(work: str, loop: str, count: int) -> int:
    """Instructions of a whole process that does `work` `count` times."""
    with tempfile.TemporaryDirectory(prefix="benches-") as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable]
        command += ["-m", "benches.instructions", "--work", work, "--loops", loop, "--count", str(count)]
        # Strings hash alike in every run, so dictionaries are laid out alike.
        done = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True
        )
        totals = re.search(r"^totals: (\d+)", out.read_text(), re.MULTILINE) if out.exists() else None
        if done.returncode != 0 or totals is None:
            sys.exit(f"{work} on {loop} failed:\n{done.stderr}")
        return int(totals[1])


def per_operation(work: str, loop: str) -> int:
    return round((under_callgrind(work, loop, MANY) - under_callgrind(work, loop, FEW)) / (MANY - FEW))


def compare(counts: dict[str, int], stored: dict[str, int]) -> bool:
    """Prints each count beside the stored one; true when none has grown by more than is allowed."""
    fine = True
    for work, count in counts.items():
        before = stored.get(work)
        change = f"{count / before - 1:+.1%} from {before:,}" if before else "nothing stored"
        print(f"{work:24}{count:>10,}  {change}")
        fine = fine and not (before and count > before * (1 + ALLOWED_GROWTH))
    return fine


def main() -> int:
    parser = argparse.ArgumentParser("python -m benches.instructions")
    parser.add_argument("--loops", default=OURS, help="separated by commas; default: %(default)s")
    parser.add_argument("--accept", metavar="NOTE", help="store the counts, and why they are what they are")
    # What the processes below this one are told.
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        talk(arguments.client, arguments.count)
        return 0
    if arguments.work:
        gc.disable()  # when it runs depends on more than the operation
        with asyncio.Runner(loop_factory=load_factory(FACTORIES[arguments.loops])) as runner:
            runner.run(WORKS[arguments.work](arguments.count))
        return 0

    if shutil.which("valgrind") is None:
        sys.exit("valgrind is missing")
    key = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
    store = json.loads(STORE.read_text()) if STORE.exists() else {}
    fine = True
    for loop in arguments.loops.split(","):
        print(f"{loop}, {key}:")
        counts = {work: per_operation(work, loop) for work in WORKS}
        fine = compare(counts, store.get(key, {}).get("counts", {}) if loop == OURS else {}) and fine
        if loop == OURS and arguments.accept:
            store[key] = {"note": arguments.accept, "counts": counts}
            STORE.write_text(json.dumps(store, indent=2, sort_keys=True) + "\n")
            fine = True
    if not fine:
        print(f"A count has grown by over {ALLOWED_GROWTH:.0%}. If that is meant: --accept 'the reason'.")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
