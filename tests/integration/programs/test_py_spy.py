"""py-spy, which reads the stack out of a running program's memory."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from ..conftest import SAFETY
from ..test_tools import running, script
from .conftest import CI

PY_SPY = Path(sysconfig.get_path("scripts"), "py-spy")


def test_dump(loop_name: str) -> None:
    if not PY_SPY.exists() and not CI:
        pytest.skip("not installed (group `programs`): py-spy")
    waits = (
        "def here():\n    print('ready', flush=True)\n    sys.stdin.read()\n"
        "loop.call_soon(here)\nawait asyncio.sleep(1)"
    )
    with running(script(waits), loop_name) as process:
        done = subprocess.run(
            [PY_SPY, "dump", "--pid", str(process.pid)], capture_output=True, text=True, timeout=SAFETY
        )
    if done.returncode and os.geteuid() != 0 and not CI and "ermission" in done.stderr:
        pytest.skip("py-spy may not read other processes here")
    assert done.returncode == 0, done.stderr
    assert "here (" in done.stdout
    assert "run_forever" in done.stdout
