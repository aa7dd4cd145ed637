"""Writes into the README and docs/programs.md which version of each program mioloop was tested with.

    python tools/program_versions.py

Run it with the Python whose environment the integration tests use: what it writes is what is installed there.
The servers that are not Python's are asked themselves. Fails if the tests' dependency group names a program
that has no place here, or if one is not installed.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- versions: tools/program_versions.py -->", "<!-- end of versions -->"

PROGRAMS = {
    "HTTP": "aiohttp httpx fastapi starlette uvicorn uvicorn-worker gunicorn hypercorn granian websockets "
    "tornado",
    "Data": "asyncpg psycopg sqlalchemy redis aiomysql aiosqlite",
    "Libraries": "anyio aiofiles aiometer async-timeout aiomonitor janus structlog pyzmq grpcio",
    "Notebooks and tests": "ipython ipykernel jupyter-client pytest-asyncio",
    "Tools, several machines": "py-spy distributed",
}
# docs/programs.md says why.
NOT_RUNNING = ["nest-asyncio"]
# Part of another's test, not programs of their own.
PARTS = {"httptools"}
SERVERS = {
    "PostgreSQL": ["psql", "--version"],
    "Redis": ["redis-server", "--version"],
    "MariaDB": ["mariadbd", "--version"],
    "nginx": ["nginx", "-v"],
}


def server_version(command: list[str]) -> str | None:
    program = shutil.which(command[0], path="/usr/local/bin:/usr/bin:/usr/sbin:/sbin")
    if program is None:
        return None
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True)
    found = re.search(r"(\d+\.[\d.]*\d)", done.stdout + done.stderr)
    return found[1] if found else None


def tested_group() -> set[str]:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    named = (re.match(r"[\w-]+", entry) for entry in groups.get("programs", ()) if isinstance(entry, str))
    return {name[0] for name in named if name}


def main() -> None:
    known = {name for names in PROGRAMS.values() for name in names.split()} | PARTS | set(NOT_RUNNING)
    if strangers := tested_group() - known:
        sys.exit(f"no place for: {', '.join(sorted(strangers))}")
    missing = []

    def cell(names: list[str]) -> str:
        versions = []
        for name in names:
            try:
                versions.append(f"{name} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                missing.append(name)
        return ", ".join(versions)

    lines = ["| | on mioloop |", "|---|---|"]
    lines += [f"| {kind} | {cell(names.split())} |" for kind, names in PROGRAMS.items()]
    servers = {name: server_version(command) for name, command in SERVERS.items()}
    missing += [name for name, version in servers.items() if version is None]
    lines.append(
        f"| Servers spoken to | {', '.join(f'{name} {version}' for name, version in servers.items())} |"
    )
    lines.append(f"| Does not run | {cell(NOT_RUNNING)} |")
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}")
    for page in (ROOT / "README.md", ROOT / "docs" / "programs.md"):
        text = page.read_text()
        before, rest = text.split(BEGIN)
        _, after = rest.split(END)
        page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
