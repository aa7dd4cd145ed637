"""Prints a table of the programs that the tests here run, with the versions that are installed.

python -m tests.integration.programs
"""

from __future__ import annotations

import importlib.metadata

from . import servers

# A name is that of a Python distribution, or of a command.
PROGRAMS = {
    "HTTP": {
        "aiohttp": "server and client: streaming, sendfile, WebSocket, TLS, vanishing clients, shutdown",
        "httpx": "client, HTTP/1.1 and HTTP/2, time limits",
        "fastapi": "under every server below",
        "starlette": "under every server below",
        "uvicorn": "`--loop mioloop:new_event_loop`; h11, httptools, TLS, WebSocket, SIGTERM",
        "gunicorn": "uvicorn's workers (two of them) and its own `asgi` worker",
        "uvicorn-worker": "a subclass with `CONFIG_KWARGS = {'loop': 'mioloop:new_event_loop'}`",
        "hypercorn": "`python -m mioloop -m hypercorn --workers 0`; TLS, HTTP/2, WebSocket, SIGTERM",
        "granian": "a loop registered as `auto`; WebSocket, streaming, SIGTERM",
        "websockets": "server and client, TLS, broadcast, close codes",
        "tornado": "server and client, TLS, WebSocket",
        "nginx": "before aiohttp (proxy, WebSocket) and as a server of files",
    },
    "Data": {
        "asyncpg": "pool, COPY, LISTEN/NOTIFY, cancelled queries; TCP, Unix socket, TLS",
        "psycopg": "queries, pipeline, COPY, notifications, cancelled queries; TCP, Unix socket, TLS",
        "sqlalchemy": "the async engine on asyncpg and psycopg",
        "postgres": "the server",
        "redis": "pipelines, pub/sub, blocking pops, cancellation; TCP, Unix socket",
        "redis-server": "the server",
        "aiomysql": "queries, cursors, pool, cancelled queries; TCP, Unix socket",
        "mariadbd": "the server",
        "aiosqlite": "queries, interruption",
    },
    "Libraries": {
        "anyio": "cancel scopes, sockets, threads, processes, signals; its pytest plugin",
        "aiofiles": "files, folders",
        "aiometer": "limits",
        "async-timeout": "deadlines",
        "nest-asyncio": "cannot work: see below",
        "aiomonitor": "`ps` over telnet, the web page",
        "janus": "a queue between a thread and tasks",
        "structlog": "context variables in tasks and threads",
        "ipython": "`await` at the top level",
        "ipykernel": "`await` at the top level, tasks across cells, interrupts",
        "jupyter-client": "the kernel's client on the same kind of loop",
        "pytest-asyncio": "the loop factory hook, the policy fixture, loop scopes",
        "pyzmq": "ROUTER/DEALER, PUB/SUB, poll",
        "grpcio": "`grpc.aio` server and client, unary and streams",
    },
    "Tools": {
        "py-spy": "`dump` of a running program",
    },
    "More than one machine": {
        "distributed": "Dask: scheduler, workers and client in processes of their own; one worker is lost",
    },
}


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return servers.version(name) or "not installed"


def main() -> None:
    for section, programs in PROGRAMS.items():
        print(f"### {section}\n\n| Program | Version | What is tested |\n| --- | --- | --- |")
        for name, what in programs.items():
            print(f"| {name} | {version(name)} | {what} |")
        print()


if __name__ == "__main__":
    main()
