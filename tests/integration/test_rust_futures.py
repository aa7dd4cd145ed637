"""The extension of examples/rust_futures: Python awaits tokio futures, and Rust awaits Python coroutines.

On asyncio's loop and on mioloop, as all of these tests. `make test-python` builds the extension.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from .conftest import SAFETY, Run

if TYPE_CHECKING:
    import rust_futures
else:
    rust_futures = pytest.importorskip("rust_futures", reason="`make test-python` builds it")


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SAFETY
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(0.001)


def test_a_rust_future_has_a_result(run: Run) -> None:
    async def main() -> None:
        assert await rust_futures.ready("value") == "value"
        futures = [rust_futures.ready(number) for number in range(300)]
        assert await asyncio.gather(*futures) == list(range(300))

    run(main())


def test_timers_of_tokio(run: Run) -> None:
    async def main() -> None:
        log: list[str] = []

        async def wait(name: str, seconds: float) -> None:
            await rust_futures.sleep(seconds)
            log.append(name)

        start = time.monotonic()
        await asyncio.gather(wait("late", 0.5), wait("soon", 0.01))
        assert log == ["soon", "late"]
        assert time.monotonic() - start >= 0.5
        with pytest.raises(ValueError, match="negative"):
            rust_futures.sleep(-1)

    run(main())


def test_channels(run: Run) -> None:
    async def main() -> None:
        channel = rust_futures.Channel(2)
        received = []

        async def produce() -> None:
            for number in range(50):
                await channel.send(number)

        async def consume() -> None:
            for _ in range(50):
                received.append(await channel.receive())

        await asyncio.gather(consume(), produce())
        assert received == list(range(50))

    run(main())


@asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        port: int = server.sockets[0].getsockname()[1]
        yield port


def test_a_tcp_client_of_tokio_and_a_server_of_the_loop(run: Run) -> None:
    async def main() -> None:
        async with echo_server() as port:
            client = await rust_futures.TcpClient.connect("127.0.0.1", port)
            await client.send(b"first")
            assert await client.receive(100) == b"first"
            sent = bytes(range(256)) * 4000

            async def receive_all() -> bytes:
                received = b""
                while data := await client.receive(65536):
                    received += data
                return received

            async def send_all() -> None:
                await client.send(sent)
                await client.finish()

            received, _ = await asyncio.gather(receive_all(), send_all())
            assert received == sent

    run(main())


def test_an_error_of_rust_is_an_exception(run: Run) -> None:
    async def main() -> None:
        async with echo_server() as port:
            pass
        with pytest.raises(ConnectionRefusedError):
            await rust_futures.TcpClient.connect("127.0.0.1", port)

    run(main())


def test_rust_awaits_a_coroutine(run: Run) -> None:
    async def work() -> str:
        await asyncio.sleep(0.001)
        result: str = await rust_futures.await_in_rust(inner())
        return result

    async def inner() -> str:
        await rust_futures.sleep(0.001)
        return "from within"

    async def failing() -> None:
        await asyncio.sleep(0)
        raise LookupError("in Python")

    async def main() -> None:
        assert await rust_futures.await_in_rust(work()) == "from within"
        with pytest.raises(LookupError, match="in Python"):
            await rust_futures.await_in_rust(failing())

    run(main())


def test_cancelling_the_python_future_drops_the_rust_one(run: Run) -> None:
    async def main() -> None:
        await until(lambda: rust_futures.alive() == 0)
        tasks = [asyncio.ensure_future(rust_futures.forever()) for _ in range(10)]
        await asyncio.sleep(0.001)
        assert rust_futures.alive() == 10
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await until(lambda: rust_futures.alive() == 0)

    run(main())


def test_a_timeout_drops_the_rust_future(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(rust_futures.forever(), 0.001)
        await until(lambda: rust_futures.alive() == 0)

    run(main())


def test_dropping_the_rust_future_cancels_the_python_task(run: Run) -> None:
    async def main() -> None:
        log: list[str] = []

        async def work() -> None:
            log.append("begins")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                log.append("cancelled")
                raise

        with pytest.raises(TimeoutError, match="long enough"):
            await rust_futures.await_with_timeout(work(), 0.05)
        await until(lambda: log == ["begins", "cancelled"])

    run(main())


def test_a_cancellation_goes_through_rust_and_back(run: Run) -> None:
    async def main() -> None:
        log: list[str] = []

        async def work() -> None:
            try:
                log.append("begins")
                await rust_futures.forever()
            finally:
                log.append("ends")

        task = asyncio.ensure_future(rust_futures.await_in_rust(work()))
        await until(lambda: log == ["begins"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: log == ["begins", "ends"])
        await until(lambda: rust_futures.alive() == 0)

    run(main())


def test_nothing_is_left_behind(run: Run) -> None:
    class Object:
        pass

    def objects() -> int:
        # What a thread of tokio lets go of is gone for Python when the extension is next called.
        rust_futures.alive()
        gc.collect()
        return sum(isinstance(item, Object) for item in gc.get_objects())

    async def main() -> None:
        for _ in range(100):
            await rust_futures.ready(Object())
            await asyncio.ensure_future(rust_futures.await_in_rust(rust_futures.ready(Object())))
        await until(lambda: objects() == 0)

    run(main())


CLOSED_FIRST = """
import asyncio, os, sys, time, rust_futures
{imports}
loop = {factory}()

async def work():
    await asyncio.Event().wait()

async def main():
    global futures
    futures = [rust_futures.sleep(0.02), rust_futures.sleep(0.02), rust_futures.forever()]
    task = asyncio.ensure_future(rust_futures.await_with_timeout(work(), 0.02))
    await asyncio.sleep(0)

loop.run_until_complete(main())
loop.close()
deadline = time.monotonic() + 30
while rust_futures.alive() > 1 and time.monotonic() < deadline:
    time.sleep(0.005)
print("alive", rust_futures.alive())
# The next loop has nothing of it.
with asyncio.Runner(loop_factory={factory}) as runner:
    async def again():
        return await rust_futures.ready("fine")
    print(runner.run(again()), flush=True)
# Before 3.14 a thread of tokio that just then wants the interpreter would take the process down, on any loop.
os._exit(0)
"""


def test_it_survives_the_loop_closing_first(loop_name: str) -> None:
    module, factory = loop_name.split(":")
    script = CLOSED_FIRST.format(imports=f"import {module}", factory=f"{module}.{factory}")
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SAFETY)
    assert (result.returncode, result.stdout) == (0, "alive 1\nfine\n"), result.stderr
    assert "panicked" not in result.stderr
