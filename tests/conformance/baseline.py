"""Remembers what the standard loop came to, for as long as nothing that could change it has changed.

The file's name is a digest of the interpreter, the machine, the way it is run, the tests, asyncio's own
source and this runner. Only a module of which nothing failed is kept: a failure of the standard loop may be
a passing trouble of the machine, and to remember it would excuse ours for ever.
"""

import asyncio
import hashlib
import importlib.util
import json
import os
import platform
import ssl
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from .supervisor import ROOT, Mode, Outcome, Result

FOLDER = ROOT / "target" / "conformance"


def test_folder() -> Path:
    """Where the interpreter's own asyncio tests are; found without importing them."""
    spec = importlib.util.find_spec("test.test_asyncio")
    if spec is None or spec.origin is None:
        raise SystemExit(f"{sys.executable} has no test.test_asyncio: its test package is not installed")
    return Path(spec.origin).parent


def digest(mode: Mode) -> str:
    tests = test_folder()
    folders = [Path(__file__).parent, tests, tests.parent / "support", Path(asyncio.__file__).parent]
    place = (sys.version, platform.platform(), ssl.OPENSSL_VERSION, os.geteuid(), mode)
    whole = hashlib.sha256(repr(place).encode())
    for source in sorted(source for folder in folders for source in folder.glob("*.py")):
        whole.update(f"\0{source}\0".encode() + source.read_bytes())
    return whole.hexdigest()[:16]


class Baseline:
    """The remembered results, by module."""

    def __init__(self, folder: Path, mode: Mode) -> None:
        version = "{}.{}.{}".format(*sys.version_info)
        self._file = folder / f"baseline-{version}-{digest(mode)}.json"
        self._modules: dict[str, Result] = {}
        if self._file.exists():
            for name, stored in json.loads(self._file.read_text()).items():
                outcomes = {test: Outcome(**outcome) for test, outcome in stored.pop("outcomes").items()}
                self._modules[name] = Result(outcomes=outcomes, **stored)

    def get(self, module: str) -> Result | None:
        return self._modules.get(module)

    def add(self, results: Iterable[tuple[str, Result]]) -> None:
        self._modules |= {name: result for name, result in results if not result.named("failed")}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # In one step, so that a run that is broken off, or another one beside it, leaves no half of a file.
        with tempfile.NamedTemporaryFile("w", dir=self._file.parent, delete=False) as new:
            json.dump({name: asdict(result) for name, result in self._modules.items()}, new)
        os.replace(new.name, self._file)
