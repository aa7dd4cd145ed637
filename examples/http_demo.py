"""An unmodified aiohttp server and client, on asyncio's own loop and on mioloop (and uvloop's if installed).

Each loop gets a server process of its own, which stays up from the first round to the last. The client is
this process. A pass is the same work for every loop: so many POST requests, up to thousands of them in flight
at a time, whose bodies the server reads whole and sends back; each answer is compared with what was sent,
byte by byte, and no two requests of a pass send the same. Client and server run on the same kind of loop. The
loops take turns, in another order in every round, so that a machine that slows down or speeds up does so for
all of them; the table at the end shows medians over the rounds.

    python examples/http_demo.py [--loops asyncio,mioloop,uvloop] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import itertools
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field

import aiohttp
from aiohttp import web

FACTORIES = {
    "asyncio": "asyncio:SelectorEventLoop",
    "mioloop": "mioloop:new_event_loop",
    "uvloop": "uvloop:new_event_loop",
}
KEEP_ALIVE = 300  # seconds; longer than a connection idles while the other loops have their turns
FILES = 8192  # open files: the client has its connections to all servers open
TIME_LIMIT = 40  # seconds; no round begins that would not end by then


@dataclass(frozen=True)
class Load:
    """One kind of pass."""

    name: str
    size: int
    requests: int
    in_flight: int


@dataclass(frozen=True)
class Result:
    """What one pass on one loop measured."""

    rate: float  # requests a second
    p50: float  # seconds
    p99: float  # seconds
    cpu: float  # the server's, seconds a request


LOADS = [
    Load("1 KiB", 1024, requests=8000, in_flight=50),
    Load("1 KiB", 1024, requests=8000, in_flight=2000),
    Load("100 KiB", 100 * 1024, requests=3000, in_flight=200),
]
CONNECTIONS = max(load.in_flight for load in LOADS)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    module, attribute = FACTORIES[name].split(":")
    factory: Callable[[], asyncio.AbstractEventLoop] = getattr(importlib.import_module(module), attribute)
    return factory


def allow_many_files() -> None:
    """Each connection is a file at both ends; the usual soft limit of 1024 is too low for thousands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        raise SystemExit(f"the limit of open files (ulimit -Hn) is {hard}; {FILES} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


# The server's process


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def cpu_time(_request: web.Request) -> web.Response:
    return web.json_response(time.process_time())


async def serve() -> None:
    app = web.Application()
    app.router.add_post("/echo", echo)
    app.router.add_get("/cpu", cpu_time)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=KEEP_ALIVE)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=CONNECTIONS).start()
    print(runner.addresses[0][1], flush=True)
    # Our standard input is a pipe from the client's process. However that ends, the pipe closes: then we end.
    client_gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, client_gone.set)
    await client_gone.wait()
    asyncio.get_running_loop().remove_reader(sys.stdin)
    await runner.cleanup()


@contextlib.contextmanager
def server_process(name: str) -> Iterator[int]:
    """A server on the loop of that name; its port."""
    # In a session of its own, Ctrl-C at the terminal does not reach it: it is for us to end it.
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdin and server.stdout
    with server:
        try:
            port = server.stdout.readline()
            if not port:
                raise SystemExit(f"the server on {name} did not start")
            yield int(port)
        finally:
            server.stdin.close()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


# The client's process


async def one_pass(session: aiohttp.ClientSession, load: Load) -> Result:
    filler = os.urandom(load.size - 16)
    numbers = iter(range(load.requests))
    latencies: list[float] = []

    async def send_one_after_another() -> None:
        for number in numbers:
            body = b"%016d" % number + filler
            begin = time.perf_counter()
            async with session.post("/echo", data=body) as response:
                answer = await response.read()
            latencies.append(time.perf_counter() - begin)
            if response.status != 200 or answer != body:
                raise RuntimeError(f"request {number}: status {response.status}, not the body that was sent")

    async def server_cpu() -> float:
        async with session.get("/cpu") as response:
            return float(await response.json())

    cpu_before = await server_cpu()
    begin = time.perf_counter()
    await asyncio.gather(*(send_one_after_another() for _ in range(load.in_flight)))
    elapsed = time.perf_counter() - begin
    cpu = await server_cpu() - cpu_before
    latencies.sort()
    return Result(
        rate=load.requests / elapsed,
        p50=latencies[len(latencies) // 2],
        p99=latencies[len(latencies) * 99 // 100],
        cpu=cpu / load.requests,
    )


@dataclass
class Contender:
    """A loop under test: the client's side of it, and what was measured."""

    name: str
    runner: asyncio.Runner
    session: aiohttp.ClientSession
    results: dict[Load, list[Result]] = field(default_factory=lambda: {load: [] for load in LOADS})

    def run(self, load: Load) -> Result:
        return self.runner.run(one_pass(self.session, load))


@contextlib.contextmanager
def contender(name: str) -> Iterator[Contender]:
    async def open_session(port: int) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE)
        return aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector)

    with server_process(name) as port, asyncio.Runner(loop_factory=loop_factory(name)) as runner:
        session = runner.run(open_session(port))
        try:
            yield Contender(name, runner, session)
        finally:
            runner.run(session.close())


def compare(names: list[str], rounds: int) -> None:
    with contextlib.ExitStack() as stack:
        contenders = []
        for name in names:
            print(f"starting a server on {name}, opening {CONNECTIONS} connections", flush=True)
            contenders.append(stack.enter_context(contender(name)))
            for load in LOADS:
                contenders[-1].run(load)
        begin = time.monotonic()
        done = 0
        while done < rounds and (time.monotonic() - begin) * (done + 1) <= TIME_LIMIT * max(done, 1):
            done += 1
            for load, one in itertools.product(LOADS, contenders):
                result = one.run(load)
                one.results[load].append(result)
                what = f"{load.requests} requests of {load.name:>7}, {load.in_flight:4} in flight"
                print(f"round {done} of {rounds}  {one.name:8} {what}: {result.rate:5.0f}/s", flush=True)
            contenders.append(contenders.pop(0))
        contenders.sort(key=lambda one: names.index(one.name))
        print_table(contenders, done)


def median(results: list[Result]) -> Result:
    columns = zip(*(astuple(result) for result in results), strict=True)
    return Result(*(statistics.median(column) for column in columns))


def print_table(contenders: list[Contender], rounds: int) -> None:
    sent = rounds * len(contenders) * sum(load.requests for load in LOADS)
    print(f"\nEach of {sent} answers was what it should be. Medians of {rounds} rounds:\n")
    print("body     in flight  loop     requests/s        p50        p99   server CPU/request")
    for load in LOADS:
        first = median(contenders[0].results[load])
        for one in contenders:
            row = median(one.results[load])
            latency = f"{row.p50 * 1e3:7.1f} ms {row.p99 * 1e3:7.1f} ms"
            cpu = f"{row.cpu * 1e6:6.0f} µs ({row.cpu / first.cpu:.2f} of {contenders[0].name}'s)"
            print(f"{load.name:8} {load.in_flight:9,}  {one.name:8} {row.rate:10,.0f} {latency} {cpu}")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description="aiohttp on asyncio's loop and on mioloop, side by side")
    parser.add_argument("--loops", help="comma-separated; all there are of asyncio, mioloop and uvloop")
    parser.add_argument("--rounds", type=int, default=5, help="at the most; fewer on a slow machine")
    parser.add_argument("--serve", choices=FACTORIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    allow_many_files()
    if options.serve:
        with asyncio.Runner(loop_factory=loop_factory(options.serve)) as runner:
            runner.run(serve())
        return
    if options.loops:
        names = options.loops.split(",")
    else:
        names = ["asyncio", "mioloop"] + ["uvloop"] * bool(importlib.util.find_spec("uvloop"))
    for name in names:
        if name not in FACTORIES or not importlib.util.find_spec(name):
            parser.error(f"no loop {name} here")
    try:
        compare(names, options.rounds)
    except KeyboardInterrupt:
        print("interrupted")
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    main()
