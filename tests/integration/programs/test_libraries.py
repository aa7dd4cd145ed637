"""Libraries of asyncio's world, through their usual interfaces."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, MutableMapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiofiles
import aiofiles.os
import aiofiles.tempfile
import aiometer
import anyio
import anyio.from_thread
import async_timeout
import grpc.aio
import janus
import pytest
import structlog
import zmq
import zmq.asyncio

from ..application import loop_factory
from ..conftest import Run
from .processes import HOST, PATIENCE


def python(script: str, *arguments: str, folder: Path | None = None, **environment: str) -> str:
    """What a script of its own process prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE + 30,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# anyio.


def test_anyio_cancellation(loop_name: str) -> None:
    """trio's kind: a scope is left at its end, cancelled as often as its content awaits."""

    async def main() -> None:
        log: list[str] = []

        async def stubborn(started: anyio.abc.TaskStatus[None]) -> None:
            started.started()
            try:
                await anyio.sleep_forever()
            finally:
                log.append("cancelled")
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                    log.append("cleaned up")
                try:
                    await anyio.sleep(0)  # level-triggered: cancelled again
                finally:
                    log.append("again")

        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status: stubborn(task_status))
            group.cancel_scope.cancel()
        assert log == ["cancelled", "cleaned up", "again"]

        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.01):
                await anyio.sleep_forever()
        with pytest.raises(ExceptionGroup) as failed:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                raise ValueError("one fails, all go")
        assert isinstance(failed.value.exceptions[0], ValueError)

    anyio.run(main, backend_options={"loop_factory": loop_factory(loop_name)})


def test_anyio_streams_threads_and_processes(loop_name: str) -> None:
    async def main() -> None:
        async def echo(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                async for data in stream:
                    await stream.send(data)

        async with anyio.create_task_group() as group:
            listener = await anyio.create_tcp_listener(local_host=HOST)
            group.start_soon(listener.serve, echo)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with await anyio.connect_tcp(HOST, port) as stream:
                await stream.send(bytes(1_000_000))
                received = 0
                while received < 1_000_000:
                    received += len(await stream.receive())
            group.cancel_scope.cancel()
        await listener.aclose()

        def in_a_thread() -> int:
            return anyio.from_thread.run(plus_one, 41)

        async def plus_one(n: int) -> int:
            await anyio.sleep(0)
            return n + 1

        assert await anyio.to_thread.run_sync(in_a_thread) == 42
        done = await anyio.run_process(["tr", "a-z", "A-Z"], input=b"hello")
        assert done.stdout == b"HELLO"
        with anyio.open_signal_receiver(anyio_signal()) as signals:
            os.kill(os.getpid(), anyio_signal())
            async for number in signals:
                assert number == anyio_signal()
                break

    def anyio_signal() -> Any:
        import signal

        return signal.SIGUSR1

    anyio.run(main, backend_options={"loop_factory": loop_factory(loop_name)})


# pytest's plug-ins, each in a pytest of its own: they are kept out of this one.

ANYIO_TESTS = """
import asyncio, os
import anyio, pytest
from tests.integration.application import loop_factory

@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio", {"loop_factory": loop_factory(os.environ["LOOP"])}

@pytest.fixture
async def number(anyio_backend):
    await anyio.sleep(0)
    yield 7
    await anyio.sleep(0)

@pytest.mark.anyio
async def test_loop(number):
    assert number == 7
    assert type(asyncio.get_running_loop()).__module__.split(".")[0] == os.environ["LOOP"].split(":")[0]

@pytest.mark.anyio
async def test_cancelled():
    with anyio.move_on_after(0.01):
        await anyio.sleep_forever()
"""

PYTEST_ASYNCIO_TESTS = """
import asyncio, os
import pytest, pytest_asyncio
from tests.integration.application import loop_factory

@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def server():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield server

@pytest.mark.asyncio(loop_scope="session")
async def test_loop(server):
    assert type(asyncio.get_running_loop()).__module__.split(".")[0] == os.environ["LOOP"].split(":")[0]
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()

@pytest.mark.asyncio
async def test_a_loop_of_its_own():
    assert type(asyncio.get_running_loop()).__module__.split(".")[0] == os.environ["LOOP"].split(":")[0]
"""

# pytest-asyncio is told of the loop by its hook, and was by a fixture that it now warns of.
LOOP_HOOK = """
import os
from tests.integration.application import loop_factory

def pytest_asyncio_loop_factories(config, item):
    return {"it": loop_factory(os.environ["LOOP"])}
"""

POLICY_FIXTURE = """
import asyncio, os
import mioloop, pytest

@pytest.fixture(scope="session")
def event_loop_policy():
    mine = os.environ["LOOP"].startswith("mioloop")
    return mioloop.EventLoopPolicy() if mine else asyncio.DefaultEventLoopPolicy()
"""

PLUGIN_PYTEST = """
import sys, pytest
sys.path.insert(0, sys.argv[1])
options = ["-c", "pytest.ini", "--rootdir", ".", "-W", "error", *sys.argv[2:]]
sys.exit(pytest.main(["-q", *options, "test_it.py"]))
"""


@pytest.mark.parametrize("plugin", ["anyio", "pytest-asyncio", "pytest-asyncio-policy"])
def test_pytest_plugins(loop_name: str, tmp_path: Path, plugin: str) -> None:
    options = []
    (tmp_path / "test_it.py").write_text(ANYIO_TESTS if plugin == "anyio" else PYTEST_ASYNCIO_TESTS)
    if plugin == "pytest-asyncio":
        (tmp_path / "conftest.py").write_text(LOOP_HOOK)
    elif plugin == "pytest-asyncio-policy":
        (tmp_path / "conftest.py").write_text(POLICY_FIXTURE)
        options = ["-W", 'ignore:Overriding the "event_loop_policy"']
    scope = "asyncio_default_fixture_loop_scope = function\n"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{scope}asyncio_mode = strict\n")
    assert "2 passed" in python(PLUGIN_PYTEST, os.getcwd(), *options, folder=tmp_path, LOOP=loop_name)


# Files, limits, queues, logs.


def test_aiofiles(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async def copy(n: int) -> None:
            path = tmp_path / str(n)
            async with aiofiles.open(path, "w") as out:
                for line in range(200):
                    await out.write(f"{n} {line}\n")
            async with aiofiles.open(path) as into:
                assert [line.strip() async for line in into] == [f"{n} {line}" for line in range(200)]
            assert (await aiofiles.os.stat(path)).st_size > 0
            await aiofiles.os.remove(path)

        await asyncio.gather(*map(copy, range(8)))
        async with aiofiles.tempfile.TemporaryDirectory() as folder:
            assert await aiofiles.os.path.isdir(folder)
        with pytest.raises(FileNotFoundError):
            async with aiofiles.open(tmp_path / "nothing"):
                pass

    run(main())


def test_aiometer(run: Run) -> None:
    async def main() -> None:
        running = most = 0

        async def work(n: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1
            return n * n

        await aiometer.run_on_each(work, list(range(5)), max_at_once=2)
        async with aiometer.amap(work, list(range(50)), max_at_once=5) as results:
            assert sorted([result async for result in results]) == [n * n for n in range(50)]
        assert 2 <= most <= 5

    run(main())


def test_async_timeout(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with async_timeout.timeout(0.01):
                await asyncio.Event().wait()
        limit: Any
        async with async_timeout.timeout(0.01) as limit:
            limit.reject()
            await asyncio.sleep(0.02)
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with async_timeout.timeout_at(loop.time() + 100) as limit:
                limit.update(loop.time())
                await asyncio.Event().wait()

    run(main())


def test_janus(run: Run) -> None:
    async def main() -> None:
        queue: janus.Queue[int] = janus.Queue(maxsize=10)
        back: janus.Queue[int] = janus.Queue()

        def thread() -> None:
            while (n := queue.sync_q.get()) >= 0:
                back.sync_q.put(n * 2)

        worker = threading.Thread(target=thread)
        worker.start()
        for n in range(1000):
            await queue.async_q.put(n)
        assert [await back.async_q.get() for _ in range(1000)] == [2 * n for n in range(1000)]
        await queue.async_q.put(-1)
        await asyncio.to_thread(worker.join)
        await queue.aclose()
        await back.aclose()

    run(main())


def test_structlog(run: Run) -> None:
    """What a task binds to its context is its own, in its log lines from threads as well."""

    async def main() -> None:
        lines: list[dict[str, Any]] = []

        def collect(_logger: object, _name: str, event: MutableMapping[str, Any]) -> str:
            lines.append(dict(event))
            raise structlog.DropEvent

        log = structlog.wrap_logger(
            None,
            processors=[structlog.contextvars.merge_contextvars, collect],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )

        async def request(n: int) -> None:
            structlog.contextvars.bind_contextvars(request=n)
            await asyncio.sleep(0)
            await log.ainfo("in a thread", check=n)
            log.info("here", check=n)

        await asyncio.gather(*map(request, range(20)))
        assert len(lines) == 40
        assert all(line["request"] == line["check"] for line in lines)

    contextvars.copy_context().run(run, main())


def square(n: int) -> int:
    return n * n


def fail(_n: int) -> int:
    raise LookupError("in the other process")


def test_process_pool(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            results = await asyncio.gather(*(loop.run_in_executor(pool, square, n) for n in range(100)))
            assert results == [n * n for n in range(100)]
            with pytest.raises(LookupError, match="in the other process"):
                await loop.run_in_executor(pool, fail, 1)

    run(main())


# Messages.


def test_zmq(run: Run) -> None:
    async def main() -> None:
        with zmq.asyncio.Context() as context:
            with context.socket(zmq.ROUTER) as router, context.socket(zmq.PUB) as publisher:
                port = router.bind_to_random_port(f"tcp://{HOST}")
                publisher_port = publisher.bind_to_random_port(f"tcp://{HOST}")

                async def serve() -> None:
                    while True:
                        sender, number = await router.recv_multipart()
                        await router.send_multipart([sender, b"%d" % (int(number) + 1)])

                async def ask(start: int) -> None:
                    with context.socket(zmq.DEALER) as dealer:
                        dealer.connect(f"tcp://{HOST}:{port}")
                        for n in range(start, start + 50):
                            await dealer.send(b"%d" % n)
                        answers = [int(await dealer.recv()) for _ in range(50)]
                        assert answers == list(range(start + 1, start + 51))

                serving = asyncio.create_task(serve())
                await asyncio.gather(*(ask(100 * n) for n in range(5)))
                serving.cancel()
                with context.socket(zmq.SUB) as subscriber:
                    subscriber.subscribe("")
                    subscriber.connect(f"tcp://{HOST}:{publisher_port}")
                    while not await subscriber.poll(10):
                        await publisher.send(b"news")
                    assert await subscriber.recv() == b"news"
                await asyncio.gather(serving, return_exceptions=True)

    run(main())


def test_grpc(run: Run) -> None:
    async def double(request: bytes, _context: object) -> bytes:
        await asyncio.sleep(0)
        return request * 2

    async def count(request: bytes, _context: object) -> AsyncIterator[bytes]:
        for n in range(int(request)):
            yield b"%d" % n

    async def main() -> None:
        server = grpc.aio.server()
        handlers = {
            "Double": grpc.unary_unary_rpc_method_handler(double),
            "Count": grpc.unary_stream_rpc_method_handler(count),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
        port = server.add_insecure_port(f"{HOST}:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
            call = channel.unary_unary("/test.Test/Double")
            answers = await asyncio.gather(*(call(b"%d" % n) for n in range(100)))
            assert answers == [b"%d" % n * 2 for n in range(100)]
            stream = channel.unary_stream("/test.Test/Count")(b"500")
            assert [int(n) async for n in stream] == list(range(500))
            with pytest.raises(grpc.aio.AioRpcError) as missing:
                await channel.unary_unary("/test.Test/Nothing")(b"")
            assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await server.stop(None)

    run(main())


# nest_asyncio.

NEST = """
import asyncio, json, os, sys
import nest_asyncio
from tests.integration.application import loop_factory

async def inner():
    await asyncio.sleep(0)
    return 7

async def main():
    return asyncio.get_running_loop().run_until_complete(inner())

loop = loop_factory(sys.argv[1])()
try:
    nest_asyncio.apply(loop)
    print(json.dumps(loop.run_until_complete(main())))
except Exception as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def test_nest_asyncio(loop_name: str) -> None:
    """It puts an iteration of its own into asyncio's loop, made of the selector inside; others have none.

    It takes ours for asyncio's, as it is a `BaseEventLoop`, and fails when the loop is to run. (uvloop's it
    refuses in `apply`.)
    """
    said = json.loads(python(NEST, loop_name))
    works = loop_name.startswith("asyncio")
    assert said == (7 if works else "AttributeError: 'Loop' object has no attribute '_selector'")


# aiomonitor.

MONITOR = """
import asyncio, sys
import aiomonitor
from tests.integration.application import loop_factory

async def main():
    loop = asyncio.get_running_loop()
    work = asyncio.create_task(asyncio.Event().wait(), name="the-work")
    ports = dict(port=int(sys.argv[2]), webui_port=int(sys.argv[3]), console_port=int(sys.argv[4]))
    with aiomonitor.start_monitor(loop, hook_task_factory=True, **ports):
        asyncio.create_task(asyncio.Event().wait(), name="more-work")
        await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection("127.0.0.1", ports["webui_port"])
        writer.write(b"GET /api/task-count HTTP/1.0\\r\\n\\r\\n")
        writer.write_eof()
        await reader.read()
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", ports["port"])
        # A telnet client says how large its screen is (80 by 24) and of what kind.
        writer.write(b"\\xff\\xfb\\x1f\\xff\\xfa\\x1f\\x00\\x50\\x00\\x18\\xff\\xf0")
        writer.write(b"\\xff\\xfb\\x18\\xff\\xfa\\x18\\x00vt100\\xff\\xf0ps\\r\\n")
        seen = b""
        while b"the-work" not in seen:
            seen += (data := await reader.read(10_000))
            assert data, seen
        writer.close()
    work.cancel()
    print("seen")

with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
    runner.run(asyncio.wait_for(main(), 60))
"""


def test_aiomonitor(loop_name: str) -> None:
    from .processes import free_port

    assert "seen" in python(MONITOR, loop_name, *(str(free_port()) for _ in range(3)))
