"""The loops side by side: where each comes from, and which of them are here."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys

from mioloop.bench import FACTORIES

from .load_program import last_line

OURS = "mioloop"
BASELINE = "uvloop"
"""The loop that costs are given as a share of."""


def why_absent(name: str) -> str | None:
    """Tries a loop in a process of its own; returns why it can't be used, if it can't."""
    command = [sys.executable, "-m", "benches.worker", FACTORIES[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode == 0:
        return None
    return last_line(done.stderr) or f"exit code {done.returncode}"


def version(name: str) -> str:
    return platform.python_version() if name == "asyncio" else importlib.metadata.version(name)
