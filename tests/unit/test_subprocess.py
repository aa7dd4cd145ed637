"""Subprocesses: every form of standard stream, signals, exit codes, any thread, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from .support import Caught, run, settle, until

PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT

# Tells that it is ready, so that a signal cannot come before its handler, and waits.
READY_THEN_WAIT = "sleep 60 >/dev/null 2>&1 & echo ready; wait $!"


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    """No zombie, and no process that runs on."""
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


class Recorder(asyncio.SubprocessProtocol):
    """Notes each call."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.events.append(("data", fd, data))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.events.append(("pipe lost", fd, exc))

    def process_exited(self) -> None:
        self.events.append(("exited",))

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(("lost", exc))

    def data(self, fd: int) -> bytes:
        return b"".join(event[2] for event in self.events if event[:2] == ("data", fd))

    @property
    def is_lost(self) -> bool:
        return bool(self.events) and self.events[-1][0] == "lost"


async def shell(command: str, **arguments: Any) -> tuple[int | None, bytes | None, bytes | None]:
    """Runs a command to its end; its exit code, its output and its errors."""
    given = arguments.pop("input", None)
    process = await asyncio.create_subprocess_shell(command, **arguments)
    out, err = await process.communicate(given)
    return process.returncode, out, err


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# The protocol.


@pytest.mark.parametrize("method", ["exec", "shell"])
def test_the_protocol(loop: asyncio.AbstractEventLoop, method: str) -> None:
    script = "cat; echo error >&2; exit 3"

    async def main() -> None:
        spawned: Any
        if method == "exec":
            spawned = await loop.subprocess_exec(Recorder, "/bin/sh", "-c", script)
        else:
            spawned = await loop.subprocess_shell(Recorder, script)
        transport, protocol = spawned
        assert isinstance(transport, asyncio.SubprocessTransport)
        assert protocol.transport is transport
        assert transport.get_pid() > 0
        assert transport.get_returncode() is None
        assert transport.get_extra_info("subprocess").pid == transport.get_pid()
        assert f"pid={transport.get_pid()} running" in repr(transport)
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        assert isinstance(transport.get_pipe_transport(1), asyncio.ReadTransport)
        assert isinstance(transport.get_pipe_transport(2), asyncio.ReadTransport)
        stdin.write(b"hello")
        stdin.close()
        await until(lambda: protocol.is_lost)
        assert (protocol.data(1), protocol.data(2)) == (b"hello", b"error\n")
        names = [event[0] for event in protocol.events]
        assert names.count("exited") == names.count("lost") == 1
        assert {event[1:] for event in protocol.events if event[0] == "pipe lost"} == {
            (0, None),
            (1, None),
            (2, None),
        }
        assert protocol.events[-1] == ("lost", None)
        assert transport.get_returncode() == 3
        assert "returncode=3" in repr(transport)
        transport.close()

    run(loop, main())


def test_bytes_and_paths_as_arguments(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        for program in ("/bin/echo", b"/bin/echo", Path("/bin/echo")):
            process = await asyncio.create_subprocess_exec(program, "text", b"bytes", stdout=PIPE)
            assert (await process.communicate())[0] == b"text bytes\n"
        assert (await shell("echo $0", stdout=PIPE))[1] == b"/bin/sh\n"
        process = await asyncio.create_subprocess_shell(b"echo bytes", stdout=PIPE)
        assert (await process.communicate())[0] == b"bytes\n"

    run(loop, main())


# The standard streams.


def test_all_three_are_pipes(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        code, out, err = await shell("cat; echo err >&2", input=b"in", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert (code, out, err) == (0, b"in", b"err\n")

    run(loop, main())


def test_errors_into_the_output(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        result = await shell("echo out; echo err >&2; echo out again", stdout=PIPE, stderr=STDOUT)
        assert result == (0, b"out\nerr\nout again\n", None)

    run(loop, main())


def test_the_null_device(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        result = await shell("cat; echo lost; echo err >&2", stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
        assert result == (0, None, b"err\n")

    run(loop, main())


def test_inherited(loop: asyncio.AbstractEventLoop, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        assert await shell("echo out; echo err >&2") == (0, None, None)

    run(loop, main())
    assert capfd.readouterr() == ("out\n", "err\n")


def test_files_and_descriptors(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "in").write_bytes(b"from a file")
        fd = os.open(tmp_path / "err", os.O_CREAT | os.O_WRONLY)
        with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as target:
            command = "cat; echo err >&2"
            assert await shell(command, stdin=source, stdout=target, stderr=fd) == (0, None, None)
        os.close(fd)
        assert (tmp_path / "out").read_bytes() == b"from a file"
        assert (tmp_path / "err").read_bytes() == b"err\n"

    run(loop, main())


def test_a_socket_as_a_stream(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            "/bin/cat", stdin=theirs.fileno(), stdout=theirs.fileno()
        )
        theirs.close()
        await loop.sock_sendall(ours, b"there and back")
        assert await loop.sock_recv(ours, 100) == b"there and back"
        ours.close()
        assert await process.wait() == 0

    run(loop, main())


def test_one_process_into_another(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        read_fd, write_fd = os.pipe()
        one = await asyncio.create_subprocess_exec("/bin/echo", "through a pipe", stdout=write_fd)
        os.close(write_fd)
        other = await asyncio.create_subprocess_exec("tr", "a-z", "A-Z", stdin=read_fd, stdout=PIPE)
        os.close(read_fd)
        assert (await other.communicate())[0] == b"THROUGH A PIPE\n"
        assert await one.wait() == 0

    run(loop, main())


def test_much_data_both_ways(loop: asyncio.AbstractEventLoop) -> None:
    """Neither side can do without the other reading."""

    async def main() -> None:
        data = os.urandom(3_000_001)
        code, out, err = await shell("tee /dev/stderr", input=data, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert code == 0
        assert out == data
        assert err == data

    run(loop, main())


def test_streams_line_by_line(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("/bin/cat", stdin=PIPE, stdout=PIPE)
        assert process.stdin and process.stdout and process.stderr is None
        for number in range(20):
            process.stdin.write(b"line %d\n" % number)
            await process.stdin.drain()
            assert await process.stdout.readline() == b"line %d\n" % number
        process.stdin.close()
        await process.stdin.wait_closed()
        assert await process.stdout.read() == b""
        assert await process.wait() == 0

    run(loop, main())


def test_the_limit_of_streams(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_shell("echo 0123456789; echo next", stdout=PIPE, limit=5)
        assert process.stdout
        with pytest.raises(ValueError, match="chunk"):
            await process.stdout.readline()
        await process.communicate()

    run(loop, main())


def test_input_that_nobody_reads(loop: asyncio.AbstractEventLoop) -> None:
    """The child goes without reading: no error of ours."""

    async def main() -> None:
        assert await shell("exit 7", input=bytes(1_000_000), stdin=PIPE) == (7, None, None)

    run(loop, main())


def test_output_that_nobody_reads(loop: asyncio.AbstractEventLoop) -> None:
    """Reading is paused when the limit is reached; the process does not end, and memory does not grow."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("/bin/cat", "/dev/zero", stdout=PIPE, limit=10_000)
        assert process.stdout
        stream: Any = process.stdout
        await until(lambda: stream._paused)
        await settle()
        assert len(stream._buffer) < 1_000_000
        process.kill()
        await process.communicate()
        assert process.returncode == -signal.SIGKILL

    run(loop, main())


# Exit codes and signals.


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_codes(loop: asyncio.AbstractEventLoop, code: int) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_shell(f"exit {code}")
        assert await process.wait() == code
        assert await process.wait() == process.returncode == code

    run(loop, main())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT", "SIGHUP", "SIGUSR1", "SIGSEGV"])
def test_death_by_a_signal(loop: asyncio.AbstractEventLoop, name: str) -> None:
    number = getattr(signal, name)

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("/bin/sleep", "60")
        if name == "SIGTERM":
            process.terminate()
        elif name == "SIGKILL":
            process.kill()
        else:
            process.send_signal(number)
        assert await process.wait() == -number

    run(loop, main())


def test_a_signal_that_the_child_handles(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        script = f"trap 'echo caught; exit 5' TERM; {READY_THEN_WAIT}"
        process = await asyncio.create_subprocess_shell(script, stdout=PIPE, start_new_session=True)
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
        process.terminate()
        assert await process.communicate() == (b"caught\n", None)  # type: ignore[comparison-overlap]
        assert process.returncode == 5
        os.killpg(process.pid, signal.SIGKILL)  # the sleeper that it left behind

    run(loop, main())


def test_signals_to_a_process_that_has_gone(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("/bin/true")
        await process.wait()
        await settle()
        for send in (process.kill, process.terminate, lambda: process.send_signal(signal.SIGHUP)):
            with pytest.raises(ProcessLookupError):
                send()

    run(loop, main())


def test_signal_handlers_are_not_inherited(loop: asyncio.AbstractEventLoop) -> None:
    """Nor is the loop's wakeup descriptor; a child that is signalled does not wake us."""
    ours: list[str] = []

    async def main() -> None:
        loop.add_signal_handler(signal.SIGUSR1, ours.append, "ours")
        process = await asyncio.create_subprocess_exec("/bin/sleep", "60")
        process.send_signal(signal.SIGUSR1)
        assert await process.wait() == -signal.SIGUSR1
        await settle()
        assert ours == []
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(lambda: ours)
        loop.remove_signal_handler(signal.SIGUSR1)

    run(loop, main())


def test_many_wait_for_one(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("/bin/cat", stdin=PIPE)
        assert process.stdin
        waiting = [asyncio.create_task(process.wait()) for _ in range(5)]
        waiting[0].cancel()
        await settle()
        assert not any(task.done() for task in waiting[1:])
        process.stdin.close()
        assert await asyncio.gather(*waiting[1:]) == [0] * 4
        assert waiting[0].cancelled()

    run(loop, main())


def test_waiting_in_vain(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("/bin/cat", stdin=PIPE, stdout=PIPE)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), 0.01)
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    run(loop, main())


def test_closing_the_transport_kills(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        transport, protocol = await loop.subprocess_exec(Recorder, "/bin/sleep", "60")
        transport.close()
        transport.close()
        await until(lambda: protocol.is_lost)
        assert transport.is_closing()
        assert transport.get_returncode() == -signal.SIGKILL
        assert protocol.events[-2:] == [("exited",), ("lost", None)]

    run(loop, main())


def test_a_pipe_outlives_the_process(loop: asyncio.AbstractEventLoop) -> None:
    """A grandchild has it still: what that writes arrives, and only its end is the end."""

    async def main() -> None:
        hold, release = os.pipe()
        script = "exec 3<&0; (read line <&3; echo late) & exit 4"
        transport, protocol = await loop.subprocess_shell(Recorder, script, stdin=hold)
        os.close(hold)
        await until(lambda: ("exited",) in protocol.events)
        assert transport.get_returncode() == 4
        assert not protocol.is_lost
        os.write(release, b"now\n")
        os.close(release)
        await until(lambda: protocol.is_lost)
        assert protocol.data(1) == b"late\n"
        transport.close()

    run(loop, main())


# What goes wrong.


def test_no_such_program(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        before = descriptors()
        for _ in range(5):
            with pytest.raises(FileNotFoundError):
                await asyncio.create_subprocess_exec(
                    tmp_path / "missing", stdin=PIPE, stdout=PIPE, stderr=PIPE
                )
            with pytest.raises(PermissionError):
                await asyncio.create_subprocess_exec(tmp_path, stdin=PIPE, stdout=PIPE, stderr=PIPE)
            with pytest.raises(FileNotFoundError):
                await asyncio.create_subprocess_exec("/bin/true", cwd=tmp_path / "missing", stdout=PIPE)
        assert descriptors() == before

    run(loop, main())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"universal_newlines": True}, "universal_newlines must be False"),
    ({"shell": "other"}, "shell must be "),
    ({"bufsize": 1}, "bufsize must be 0"),
    ({"text": True}, "text must be False"),
    ({"encoding": "ascii"}, "encoding must be None"),
    ({"errors": "strict"}, "errors must be None"),
]


@pytest.mark.parametrize("method", ["exec", "shell"])
def test_wrong_arguments(loop: asyncio.AbstractEventLoop, method: str) -> None:
    spawn: Any = loop.subprocess_exec if method == "exec" else loop.subprocess_shell

    async def main() -> None:
        for arguments, message in WRONG:
            if "shell" in arguments:
                arguments = {"shell": method == "exec"}
            with pytest.raises(ValueError, match=f"^{message}"):
                await spawn(Recorder, "/bin/true", **arguments)
        if method == "shell":
            with pytest.raises(ValueError, match="^cmd must be a string$"):
                await spawn(Recorder, ["/bin/true"])
        else:
            with pytest.raises(TypeError):
                await spawn(Recorder, "/bin/echo", 42)

    run(loop, main())


def test_a_factory_that_raises(loop: asyncio.AbstractEventLoop) -> None:
    def factory() -> Recorder:
        raise LookupError("no protocol today")

    async def main() -> None:
        with pytest.raises(LookupError):
            await loop.subprocess_exec(factory, "/bin/true")

    run(loop, main())


def test_a_protocol_that_raises(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    class Failing(Recorder):
        def process_exited(self) -> None:
            super().process_exited()
            raise LookupError("exited")

    async def main() -> None:
        transport, protocol = await loop.subprocess_exec(Failing, "/bin/true")
        await until(lambda: protocol.is_lost)
        transport.close()
        assert isinstance(caught.take()["exception"], LookupError)

    run(loop, main())


def test_cancelled_while_spawning(loop: asyncio.AbstractEventLoop) -> None:
    """At whatever step: neither a process nor a descriptor is left."""

    async def main() -> None:
        before = descriptors()
        for steps in range(8):
            task = asyncio.create_task(shell("exec sleep 60", stdin=PIPE, stdout=PIPE))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # What had been spawned is the collector's to find, or killed already.
            await reap()
        await until(lambda: descriptors() == before)

    async def reap() -> None:
        def children() -> list[str]:
            return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()

        for child in children():
            os.kill(int(child), signal.SIGKILL)
        await until(lambda: not children())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        run(loop, main())


# What the child gets.


def test_folder_environment_and_session(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        command = "pwd; echo $COLOUR; ps -o sid= -p $$ | tr -d ' '; echo $$"
        environment = {"COLOUR": "green", "PATH": os.environ["PATH"]}
        _, out, _ = await shell(command, stdout=PIPE, cwd=tmp_path, env=environment, start_new_session=True)
        assert out
        folder, colour, session, pid = out.decode().split()
        assert (folder, colour) == (str(tmp_path.resolve()), "green")
        assert session == pid

    run(loop, main())


@pytest.mark.parametrize("close_fds", [True, False])
def test_no_descriptor_of_the_loop(loop: asyncio.AbstractEventLoop, close_fds: bool) -> None:
    """A child that went on polling with our poller, or woke us, would be a riddle."""

    async def main() -> None:
        # All that a loop may have: transports, a signal's wakeup descriptor, pipes of another process.
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        loop.add_signal_handler(signal.SIGUSR1, print)
        other, protocol = await loop.subprocess_exec(Recorder, "/bin/cat")
        pipes = [other.get_pipe_transport(number) for number in range(3)]
        ours = {
            os.readlink(f"/proc/self/fd/{pipe.get_extra_info('pipe').fileno()}") for pipe in pipes if pipe
        }
        assert len(ours) == 3
        _, out, _ = await shell("ls -l /proc/self/fd", stdin=DEVNULL, stdout=PIPE, close_fds=close_fds)
        assert out
        targets = re.findall(r" (\d+) -> (\S+)", out.decode())
        assert {number for number, _ in targets} >= {"0", "1", "2"}
        for _, target in targets:
            assert target not in ours
            assert not re.search("eventpoll|eventfd|socket|pidfd", target), targets
        loop.remove_signal_handler(signal.SIGUSR1)
        other.close()
        await until(lambda: protocol.is_lost)
        server.close()
        await server.wait_closed()

    run(loop, main())


# Threads, watchers and crowds.


def in_a_thread(work: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_from_another_thread(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The main thread runs no loop at all."""

    async def main() -> None:
        assert await shell("cat; exit 3", input=b"x", stdin=PIPE, stdout=PIPE) == (3, b"x", None)
        process = await asyncio.create_subprocess_exec("/bin/sleep", "60")
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    def work() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())

    for _ in range(3):
        in_a_thread(work)


def test_from_several_threads_at_once(
    loop: asyncio.AbstractEventLoop, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def many() -> None:
        results = await asyncio.gather(*(shell(f"exit {code}") for code in range(20)))
        assert [code for code, _, _ in results] == list(range(20))

    def work() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(many())

    async def main() -> None:
        await asyncio.gather(many(), *(asyncio.to_thread(work) for _ in range(3)))

    run(loop, main())


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="child watchers have gone in 3.14")
class TestWatcher:
    """Before 3.14 a program may choose who waits for its processes."""

    @pytest.fixture
    def use(self) -> Iterator[Callable[[Any], None]]:
        """Sets a watcher, and back at the end."""
        policy = asyncio.get_event_loop_policy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            before = policy.get_child_watcher()  # type: ignore[attr-defined, unused-ignore]

        def use(watcher: Any) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                policy.set_child_watcher(watcher)  # type: ignore[attr-defined, unused-ignore]

        yield use
        use(before)

    def test_a_watcher_of_ones_own(self, loop: asyncio.AbstractEventLoop, use: Callable[[Any], None]) -> None:
        watched: list[int] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)

            class Watcher(asyncio.ThreadedChildWatcher):  # type: ignore[name-defined, misc, unused-ignore]
                def add_child_handler(self, pid: int, *args: Any) -> None:  # type: ignore[override]
                    watched.append(pid)
                    super().add_child_handler(pid, *args)

        async def main() -> None:
            process = await asyncio.create_subprocess_shell("exit 3")
            assert await process.wait() == 3
            assert watched == [process.pid]

        use(Watcher())
        run(loop, main())

    @pytest.mark.parametrize(
        "name",
        [
            "ThreadedChildWatcher",
            "PidfdChildWatcher",
            "SafeChildWatcher",
            "FastChildWatcher",
            "MultiLoopChildWatcher",
        ],
    )
    def test_the_standard_ones(
        self, loop: asyncio.AbstractEventLoop, use: Callable[[Any], None], name: str
    ) -> None:
        async def main() -> None:
            if name == "MultiLoopChildWatcher":
                # It waits for children in the signal handler too, which may interrupt itself between the
                # wait and the note of it, and reports 255 then. So each ends alone, when it is watched.
                results = [
                    await shell(f"read line; exit {code}", input=b"\n", stdin=PIPE) for code in range(5)
                ]
            else:
                results = await asyncio.gather(*(shell(f"exit {code}") for code in range(5)))
            assert [code for code, _, _ in results] == list(range(5))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            watcher = getattr(asyncio, name)()
        watcher.attach_loop(loop)
        use(watcher)
        run(loop, main())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            watcher.attach_loop(None)
        watcher.close()


def test_somebody_else_reaps(loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture) -> None:
    """A program that ignores SIGCHLD lets the kernel reap its children: only their exit codes are lost."""

    async def main() -> None:
        code, out, _ = await shell("cat; exit 3", input=b"output\n", stdin=PIPE, stdout=PIPE)
        assert (code, out) == (255, b"output\n")

    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        run(loop, main())
    finally:
        signal.signal(signal.SIGCHLD, previous)
    assert "returncode 255" in caplog.text


def test_a_handler_for_sigchld(loop: asyncio.AbstractEventLoop) -> None:
    """A program's own one hears of each, and we do too."""
    heard: list[int] = []

    async def main() -> None:
        loop.add_signal_handler(signal.SIGCHLD, heard.append, 1)
        assert await shell("exit 3") == (3, None, None)
        await until(lambda: heard)
        loop.remove_signal_handler(signal.SIGCHLD)

    run(loop, main())


def test_a_crowd(loop: asyncio.AbstractEventLoop) -> None:
    """Each gets its own answer and its own exit code."""

    async def main() -> None:
        async def one(number: int) -> None:
            data = b"%d" % number * 1000
            result = await shell(f"cat; exit {number}", input=data, stdin=PIPE, stdout=PIPE)
            assert result == (number, data, None)

        before = descriptors()
        await asyncio.gather(*(one(number) for number in range(40)))
        await until(lambda: descriptors() == before)

    run(loop, main())


def test_five_hundred(loop: asyncio.AbstractEventLoop) -> None:
    """A few at a time; no descriptor stays, no thread and no zombie."""

    async def main() -> None:
        codes: list[int | None] = []

        async def some(count: int) -> None:
            for number in range(count):
                streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE} if number % 5 == 0 else {}
                process = await asyncio.create_subprocess_exec("/bin/true", **streams)  # type: ignore[arg-type]
                await process.communicate()
                codes.append(process.returncode)

        await some(1)
        before = descriptors()
        work: list[Coroutine[Any, Any, None]] = [some(125) for _ in range(4)]
        await asyncio.gather(*work)
        assert codes == [0] * 501
        await until(lambda: descriptors() == before)
        await until(lambda: threading.active_count() == 1)

    run(loop, main())


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the watcher is asyncio's own")
@pytest.mark.mioloop_only(reason="the watcher is ours")
def test_a_signal_for_a_process_that_has_just_ended(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds it ended has its exit code, which the loop needs."""
    from mioloop.child_watcher import ChildWatcher

    monkeypatch.setattr(asyncio.get_event_loop_policy(), "_watcher", ChildWatcher(), raising=False)

    async def main() -> None:
        for send in ("terminate", "kill"):
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(7)")
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            with contextlib.suppress(ProcessLookupError):
                getattr(process, send)()
            assert await process.wait() == 7

    run(loop, main())
