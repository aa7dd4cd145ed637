"""`python -m mioloop bench`: mioloop beside asyncio's own loop and whichever peers are installed here.

It needs the standard library alone. A sample is one loop doing one piece of work in a process of its own. The
loops take turns, round by round, as many rounds as the time allows, and a figure is the median over the
rounds: the process's CPU time (user and system) per operation, which other programs on the machine disturb
less than the clock. Work that happens in child processes is timed by the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import math
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import cast

Loop = asyncio.AbstractEventLoop
Body = Callable[[int], Awaitable[None]]
"""Does a piece of work so many times."""

FACTORIES = {
    "asyncio": "asyncio:SelectorEventLoop",
    "uvloop": "uvloop:new_event_loop",
    "rloop": "rloop:new_event_loop",
    "rsloop": "rsloop:new_event_loop",
    "veloxloop": "veloxloop:new_event_loop",
    "mioloop": "mioloop:new_event_loop",
}
REFERENCE = "asyncio"


def call_soon_chain(loop: Loop) -> Body:
    """Each callback schedules the next: one handle and one iteration an operation."""

    async def run(count: int) -> None:
        done = loop.create_future()
        call_soon = loop.call_soon

        def step() -> None:
            nonlocal count
            count -= 1
            if count > 0:
                call_soon(step)
            else:
                done.set_result(None)

        call_soon(step)
        await done

    return run


def sleep_zero(loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    return run


async def nothing() -> None:
    pass


def create_task(loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            await loop.create_task(nothing())

    return run


def call_later_cancel(loop: Loop) -> Body:
    """A timer that never fires, as most never do, and an iteration, so that the loop gets to tidy up."""

    async def run(count: int) -> None:
        for _ in range(count):
            loop.call_later(10, print).cancel()
            await asyncio.sleep(0)

    return run


def call_soon_threadsafe(loop: Loop) -> Body:
    """Another thread calls as fast as it can while the loop runs what it gets."""

    async def run(count: int) -> None:
        done = loop.create_future()
        left = count

        def arrive() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set_result(None)

        def flood() -> None:
            for _ in range(count):
                loop.call_soon_threadsafe(arrive)

        thread = threading.Thread(target=flood)
        thread.start()
        await done
        thread.join()

    return run


def job() -> None:
    pass


def executor_serial(loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            await loop.run_in_executor(None, job)

    return run


def queue_ping(loop: Loop) -> Body:
    async def run(count: int) -> None:
        there: asyncio.Queue[int] = asyncio.Queue()
        back: asyncio.Queue[int] = asyncio.Queue()

        async def pong() -> None:
            for _ in range(count):
                back.put_nowait(await there.get())

        task = loop.create_task(pong())
        for number in range(count):
            there.put_nowait(number)
            await back.get()
        await task

    return run


CONNECTIONS = 10
MESSAGE = b"x" * 1023 + b"\n"


class Client:
    """Sends messages from a process of its own, started before anything is timed and ended with this one."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "mioloop.bench", "--client"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        atexit.register(self.end)

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def talk(self, port: int, count: int) -> None:
        """Returns when `count` messages are back."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(port, count, file=self._process.stdin)
        if not self._process.stdout.readline():
            raise RuntimeError("the client failed")


def serve_client(loop: Loop, start_server: Callable[[], Awaitable[asyncio.Server]]) -> Body:
    client = Client()

    async def run(count: int) -> None:
        async with await start_server() as server:
            port = server.sockets[0].getsockname()[1]
            # The thread sleeps in a read meanwhile, which costs nothing, and every loop can do it.
            await loop.run_in_executor(None, client.talk, port, count)

    return run


def echo_protocol(loop: Loop) -> Body:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    return serve_client(loop, lambda: loop.create_server(Echo, "127.0.0.1", 0))


def echo_streams(loop: Loop) -> Body:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()

    return serve_client(loop, lambda: asyncio.start_server(serve, "127.0.0.1", 0))


def be_client() -> None:
    for line in sys.stdin:
        port, count = map(int, line.split())
        exchange(port, count)
        print("done", flush=True)


def exchange(port: int, count: int) -> None:
    """A message on each connection, and when all are back, the next."""
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(min(CONNECTIONS, count))
        ]
        for _ in range(math.ceil(count / CONNECTIONS)):
            for connection in connections:
                connection.sendall(MESSAGE)
            for connection in connections:
                if connection.recv(len(MESSAGE), socket.MSG_WAITALL) != MESSAGE:
                    raise RuntimeError("the server's echo is wrong")


def spawn(loop: Loop) -> Body:
    async def run(count: int) -> None:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 0")
            if await process.wait() != 0:
                raise RuntimeError("the process failed")

    return run


WORKS: dict[str, Callable[[Loop], Body]] = {
    "call_soon": call_soon_chain,
    "asyncio.sleep(0)": sleep_zero,
    "create_task + await": create_task,
    "call_later + cancel": call_later_cancel,
    "call_soon_threadsafe": call_soon_threadsafe,
    "run_in_executor": executor_serial,
    "asyncio.Queue ping": queue_ping,
    "TCP echo, Protocol": echo_protocol,
    "TCP echo, streams": echo_streams,
    "start a process": spawn,
}
BY_THE_CLOCK = {"start a process"}


def load_factory(specification: str) -> Callable[[], Loop]:
    module, _, name = specification.partition(":")
    factory: Callable[[], Loop] = getattr(importlib.import_module(module), name)
    return factory


def sample(work: str, loop_name: str, seconds: float) -> float:
    """The cost of one operation in seconds, from as many as take about `seconds`."""
    clock = time.perf_counter if work in BY_THE_CLOCK else time.process_time
    with asyncio.Runner(loop_factory=load_factory(FACTORIES[loop_name])) as runner:
        body = WORKS[work](runner.get_loop())

        async def timed(count: int) -> tuple[float, float]:
            wall, cost = time.perf_counter(), clock()
            await body(count)
            return time.perf_counter() - wall, clock() - cost

        # The first time, much is done that is not done again.
        runner.run(timed(1))
        count = CONNECTIONS
        wall, cost = runner.run(timed(count))
        while wall < seconds / 2:
            # From a too short time little can be told, so the count grows tenfold at most.
            count *= max(2, min(10, int(seconds / max(wall, 1e-9))))
            wall, cost = runner.run(timed(count))
    # Some systems' CPU clocks are coarse.
    return max(cost, 1e-9) / count


def take_sample(work: str, loop: str, seconds: float) -> float | str:
    """The same in a fresh process: a cost, or what went wrong."""
    command = [sys.executable, "-m", "mioloop.bench", "--sample", work, loop, str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "hung"
    if done.returncode != 0:
        return done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
    cost: float = json.loads(done.stdout)
    return cost


def quantity(cost: float) -> str:
    for unit, size in (("ms", 1e-3), ("µs", 1e-6)):
        if cost >= size:
            return f"{cost / size:.3g} {unit}"
    return f"{cost * 1e9:.3g} ns"


def table(costs: dict[str, dict[str, list[float]]], loops: Sequence[str]) -> list[str]:
    """Each loop's cost as a share of asyncio's, whose own column has the cost itself."""
    lines = [["", *loops]]
    shares: dict[str, list[float]] = {loop: [] for loop in loops}
    for work, taken in costs.items():
        if not taken.get(REFERENCE):
            continue
        base = median(taken[REFERENCE])
        cells = []
        for loop in loops:
            if not taken.get(loop):
                cells.append("–")
            elif loop == REFERENCE:
                cells.append(quantity(base))
            else:
                share = median(taken[loop]) / base
                shares[loop].append(share)
                cells.append(f"{share:.2f}")
        lines.append([work + (" (by the clock)" if work in BY_THE_CLOCK else ""), *cells])
    means = [
        f"{math.exp(sum(map(math.log, s)) / len(s)):.2f}" if (s := shares[loop]) else "" for loop in loops
    ]
    lines.append(["geometric mean", *means])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        ).rstrip()
        for first, *rest in lines
    ]


class Progress:
    """One line that is written over on a terminal; elsewhere a line for each round."""

    def __init__(self, seconds: float) -> None:
        self.began = time.monotonic()
        self.seconds = seconds
        self.terminal = sys.stderr.isatty()
        self.round = 0

    def left(self) -> float:
        return self.began + self.seconds - time.monotonic()

    def show(self, turn: int, what: str) -> None:
        text = f"round {turn}, {max(0, self.left()):.0f} s to go"
        if self.terminal:
            print(f"\r\x1b[K{text}: {what}", end="", file=sys.stderr, flush=True)
        elif turn != self.round:
            print(text, file=sys.stderr, flush=True)
        self.round = turn

    def end(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def versions(loops: Sequence[str]) -> str:
    named = [f"{name} {importlib.metadata.version(name)}" for name in loops if name != "asyncio"]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([python, *named, f"{platform.system()} {platform.release()} {platform.machine()}"])


def main(arguments: Sequence[str]) -> int:
    """Measure and print the table; the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mioloop bench", description="mioloop beside asyncio and its peers, on this machine."
    )
    parser.add_argument("--seconds", type=float, default=120, help="about how long; default: %(default)s")
    parser.add_argument(
        "--loops",
        default=",".join(name for name in FACTORIES if importlib.util.find_spec(name)),
        help="separated by commas; default: those installed (%(default)s)",
    )
    parser.add_argument("--only", default="", metavar="WORD", help="only work with WORD in its name")
    options = parser.parse_args(arguments)
    works = [work for work in WORKS if options.only in work]
    if not works:
        parser.error(f"no work has that in its name: {', '.join(WORKS)}")
    # Ratios are to asyncio's loop, so that takes part in any case.
    wanted = {REFERENCE, *options.loops.split(",")}
    if unknown := wanted - FACTORIES.keys():
        parser.error(f"no such loop: {', '.join(sorted(unknown))}")
    if absent := [name for name in sorted(wanted) if not importlib.util.find_spec(name)]:
        parser.error(f"not installed: {', '.join(absent)}")
    loops = [name for name in FACTORIES if name in wanted]

    progress = Progress(options.seconds)
    # The first round is always whole; most of what a sample takes besides is the start of Python.
    each = min(0.2, options.seconds / (len(works) * len(loops) * 4))
    costs: dict[str, dict[str, list[float]]] = {work: {loop: [] for loop in loops} for work in works}
    failures: dict[tuple[str, str], str] = {}
    turn = 0
    interrupted = False
    try:
        while turn == 0 or progress.left() > 0:
            for work in works:
                if turn and progress.left() <= 0:
                    break
                first = turn % len(loops)
                for loop in (*loops[first:], *loops[:first]):
                    if (work, loop) in failures:
                        continue
                    progress.show(turn + 1, f"{work} on {loop}")
                    taken = take_sample(work, loop, each)
                    if isinstance(taken, str):
                        failures[work, loop] = taken
                        costs[work][loop].clear()
                    else:
                        costs[work][loop].append(taken)
            turn += 1
    except KeyboardInterrupt:
        interrupted = True
    progress.end()
    print(versions(loops))
    print(
        f"CPU time per operation, as a share of {REFERENCE}'s, whose column has the cost itself: "
        "lower is better.\n"
    )
    print("\n".join(table(costs, loops)))
    for (work, loop), reason in failures.items():
        print(f"{work} failed on {loop}: {reason}")
    if interrupted:
        return 130
    return 1 if any(loop in (REFERENCE, "mioloop") for _, loop in failures) else 0


def in_child(arguments: Sequence[str]) -> None:
    """What a sample's process, or its client's, is to do."""
    task, *rest = arguments
    if task == "--client":
        be_client()
    else:
        work, loop, seconds = rest
        print(json.dumps(sample(work, loop, float(seconds))))


if __name__ == "__main__":
    in_child(sys.argv[1:])
