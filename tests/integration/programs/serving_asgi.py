"""The servers that run ASGI applications, each told in its own way which loop to use.

For gunicorn and granian that is this module: a worker class of the one, a registered loop of the other.

    python -m tests.integration.programs.serving_asgi granian LOOP ARGUMENTS...
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from uvicorn_worker import UvicornWorker

from ..application import loop_factory

APPLICATION = "tests.integration.programs.asgi:app"
SERVERS = ["uvicorn", "uvicorn-httptools", "gunicorn-uvicorn", "gunicorn", "hypercorn", "granian"]


class Worker(UvicornWorker):  # type: ignore[misc]
    """gunicorn's worker that runs uvicorn, on the loop that $LOOP names."""

    CONFIG_KWARGS: dict[str, Any] = {"loop": os.environ.get("LOOP", "auto")}  # noqa: RUF012


def command(server: str, loop: str, port: int, certificate: str | None) -> list[str]:
    """The command line that serves APPLICATION."""
    python = [sys.executable, "-m"]
    # Runs what follows, whose own choice of a loop is asyncio's default, on the loop under test.
    on_loop = ["mioloop", "-m"] if loop.startswith("mioloop") else []
    address = f"127.0.0.1:{port}"
    match server:
        case "uvicorn" | "uvicorn-httptools":
            http = "httptools" if server == "uvicorn-httptools" else "h11"
            tls = ["--ssl-certfile", certificate] if certificate else []
            return [
                *python,
                "uvicorn",
                "--loop",
                loop,
                "--http",
                http,
                "--port",
                str(port),
                *tls,
                APPLICATION,
            ]
        case "gunicorn-uvicorn":
            worker = f"{__name__}.Worker"
            patience = ["--graceful-timeout", "60"]
            return [*python, "gunicorn", "-b", address, "-w", "2", "-k", worker, *patience, APPLICATION]
        case "gunicorn":
            # Not `auto`, which takes uvloop where that is installed, as it is beside the benchmark.
            options = ["-k", "asgi", "--asgi-loop", "asyncio", "--graceful-timeout", "60"]
            return [*python, *on_loop, "gunicorn", "-b", address, *options, APPLICATION]
        case "hypercorn":
            tls = ["--certfile", certificate, "--keyfile", certificate] if certificate else []
            options = ["--workers", "0", "--graceful-timeout", "60", *tls]
            return [*python, *on_loop, "hypercorn", "-b", address, *options, APPLICATION]
        case "granian":
            options = ["--interface", "asgi", "--port", str(port)]
            return [*python, __name__, "granian", loop, *options, APPLICATION]
    raise ValueError(server)


def granian(name: str, arguments: list[str]) -> None:
    """granian's command line, with a loop of its registry replaced: `auto` is the default."""
    from granian import loops
    from granian.cli import entrypoint

    @loops.register("auto")
    def build() -> asyncio.AbstractEventLoop:
        loop = loop_factory(name)()
        asyncio.set_event_loop(loop)
        return loop

    sys.argv[:] = ["granian", *arguments]
    entrypoint()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    assert sys.argv[1] == "granian"
    granian(sys.argv[2], sys.argv[3:])
