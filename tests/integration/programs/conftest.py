"""Fixtures of the tests with real programs: the servers, and what is done where libraries miss."""

from __future__ import annotations

import ast
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..serving import Certificate
from . import servers
from .servers import Address

CI = bool(os.environ.get("CI"))


class Missing(pytest.Module):
    """A test file whose libraries are not installed."""

    names: list[str]

    def collect(self) -> list[pytest.Item]:
        pytest.skip(f"not installed (group `programs`): {', '.join(self.names)}", allow_module_level=True)


def imported(file: Path) -> set[str]:
    """The packages that a test file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    missing = sorted(name for name in imported(module_path) if importlib.util.find_spec(name) is None)
    if CI or not missing:
        return None  # as usual, and under CI with the ImportError
    module: Missing = Missing.from_parent(parent, path=module_path)
    module.names = missing
    return module


def need(*programs: str) -> None:
    """Skips the test if one of the machine's programs is missing; fails it under CI."""
    missing = [name for name in programs if servers.find(name) is None]
    if missing:
        (pytest.fail if CI else pytest.skip)(f"not installed on this machine: {', '.join(missing)}")


@pytest.fixture(scope="session", autouse=True)
def _clean_up_when_terminated() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, with the end of every fixture: no server is left behind."""

    def interrupt(_signum: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture(scope="session")
def postgres(certificate: Certificate) -> Iterator[Address]:
    need("postgres", "initdb")
    with servers.postgresql(certificate.file) as address:
        yield address


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Address]:
    need("redis-server")
    with servers.redis() as address:
        yield address


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Address]:
    need("mariadbd", "mariadb-install-db")
    with servers.mariadb() as address:
        yield address
