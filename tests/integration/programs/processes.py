"""Programs that a test starts: ready when the test goes on, and gone when it ends, however it ends.

Each has a process group of its own, which is killed at the end, and dies with us where the system has a way
to ask for that. Its output goes to a file (nobody has to read it for the program to go on) and is shown when
the test fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 60  # seconds; only ends what would otherwise hang
HOST = "127.0.0.1"


_given: set[int] = set()


def free_port() -> int:
    """A loopback port that nobody listens on, nor will: each is given once.

    Below those that the kernel hands out by itself: no connection can take it before its server does.
    """
    while True:
        port = random.randrange(10_240, 32_768)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind((HOST, port))
            return port


def listening(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=5).close()
    except OSError:
        return False
    return True


class Program:
    """A running program."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Returns when the condition holds. The program must not end before."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}"
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.02)

    def ready_on(self, port: int) -> None:
        self.wait_until(lambda: listening(port))

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def program(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    folder: Path | None = None,
    at_death: str = "TERM",
) -> Iterator[Program]:
    """Runs a command for as long as the block lasts. `at_death` is the signal it gets if we die first."""
    wrapper = ["setpriv", f"--pdeathsig={at_death}"] if shutil.which("setpriv") else []
    identity: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*wrapper, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                start_new_session=True,
                **identity,
            )
        running = Program(process, log)
        try:
            yield running
        except BaseException:
            print(f"--- {' '.join(map(str, command))}\n{running.output()}---", file=sys.stderr)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def until(condition: Callable[[], object]) -> None:
    """Returns when the condition holds; the test's own time limit ends the wait if it never does."""
    while not condition():
        await asyncio.sleep(0.01)
