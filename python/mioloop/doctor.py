"""`python -m mioloop doctor`: what mioloop finds on this machine, and whether it works there.

Who does the work of a loop's method is asked of the class itself, so that this can't say what is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import os
import platform
import resource
import ssl
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import Loop, __version__, _core, new_event_loop

PEERS = ("uvloop", "rloop", "rsloop", "veloxloop")
FEW_FILES = 4096


def versions() -> Iterator[tuple[str, str]]:
    yield "mioloop", f"{__version__}, {_core.__file__}"
    build = f"{platform.python_implementation()} {platform.python_version()}"
    flags = [name for name in ("Py_DEBUG", "Py_GIL_DISABLED") if sysconfig.get_config_var(name)]
    yield "Python", " ".join([build, *flags, f"({sys.executable})"])
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    if libc := " ".join(platform.libc_ver()).strip():
        yield "C library", libc
    yield "TLS", ssl.OPENSSL_VERSION
    others = [
        f"{name} {importlib.metadata.version(name)}" for name in PEERS if importlib.util.find_spec(name)
    ]
    yield "other loops here", ", ".join(others) or "none"


def platform_features() -> Iterator[tuple[str, str]]:
    linux = sys.platform == "linux"
    yield "reactor", f"mio on {'epoll' if linux else 'kqueue'}"
    yield "end of a child process", "pidfd" if has_pidfd() else "a thread waits for each"
    yield "sendfile", "the system's" if hasattr(os, "sendfile") else "by reading and writing"


def has_pidfd() -> bool:
    """Whether the kernel gives process descriptors, and nothing like a sandbox forbids them."""
    if not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def limits() -> Iterator[tuple[str, str]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hint = ""
    if soft < FEW_FILES:
        hint = f": a connection takes one; `ulimit -n {min(hard, 65536) if hard > 0 else 65536}` allows more"
    yield "open files (ulimit -n)", f"{limit(soft)}, at most {limit(hard)}{hint}"
    for name, path in (
        ("listen backlog, at most", "/proc/sys/net/core/somaxconn"),
        ("watched files, at most", "/proc/sys/fs/epoll/max_user_watches"),
    ):
        try:
            with open(path) as file:
                yield name, file.read().strip()
        except OSError:
            pass


def limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def default_loop() -> str:
    """What asyncio makes in this process when it isn't told."""
    loop = asyncio.new_event_loop()
    loop.close()
    return "mioloop" if isinstance(loop, Loop) else f"{type(loop).__module__}.{type(loop).__qualname__}"


def workers() -> dict[str, list[str]]:
    """Each public method of a loop, by who does its work."""
    found: dict[str, list[str]] = {"in Rust": [], "in mioloop's Python": [], "the standard library's": []}
    for name in sorted(vars(asyncio.AbstractEventLoop)):
        if name.startswith("_"):
            continue
        method = next(vars(base)[name] for base in Loop.__mro__ if name in vars(base))
        module = getattr(method, "__module__", None)
        if module is None or not isinstance(module, str):
            who = "in Rust"
        elif module.startswith("mioloop"):
            who = "in mioloop's Python"
        else:
            who = "the standard library's"
        found[who].append(name)
    return found


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    writer.close()


async def try_connection() -> None:
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        if await reader.read() != b"hello\n":
            raise RuntimeError("the echo is wrong")
        writer.close()


async def try_process() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print('hello')", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if (output, process.returncode) != (b"hello\n", 0):
        raise RuntimeError(f"the process wrote {output!r} and ended with {process.returncode}")


async def try_thread() -> None:
    if await asyncio.to_thread(int, "5") != 5:
        raise RuntimeError("the thread's result is wrong")


async def try_names() -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)


TRIALS: dict[str, Callable[[], Any]] = {
    "a connection": try_connection,
    "a child process": try_process,
    "a thread": try_thread,
    "the name localhost": try_names,
}


def attempt(trial: Callable[[], Any]) -> str:
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(asyncio.wait_for(trial(), 30))
    except Exception as error:
        return f"fails: {type(error).__name__}: {error}"
    return "works"


def main(arguments: Sequence[str]) -> int:
    """Print the report; the process's exit status, 1 if something does not work."""
    parser = argparse.ArgumentParser(
        prog="python -m mioloop doctor",
        description="What mioloop finds on this machine, and whether it works.",
    )
    parser.parse_args(arguments)
    trials = {name: attempt(trial) for name, trial in TRIALS.items()}
    lines = [*versions(), *platform_features(), *limits(), ("asyncio makes, untold", default_loop())]
    lines += trials.items()
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:{width}}  {text}")
    print("\nWho does the work of a loop's methods (handles, and the transports of sockets, are in Rust):")
    for who, names in workers().items():
        print(textwrap.fill(", ".join(names), 100, initial_indent=f"  {who}: ", subsequent_indent="    "))
    return 0 if all(text == "works" for text in trials.values()) else 1
