"""A fork while threads that know nothing of Python are at their first job.

The child must not inherit a lock that one of them holds, nor something half done.
"""

from __future__ import annotations

import subprocess
import sys

CHILDREN = 40

PROGRAM = """
import asyncio, os, signal, sys, time
import mioloop
from mioloop import fs

async def main(delay):
    loop = asyncio.get_running_loop()
    job = asyncio.ensure_future(fs.listdir("/"))
    await asyncio.sleep(0)
    end = time.perf_counter() + delay
    while time.perf_counter() < end:
        pass
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        asyncio._set_running_loop(loop)
        await fs.listdir("/")
        os._exit(0)
    await job
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

sys.exit(mioloop.run(main(float(sys.argv[1]))))
"""


def test_a_fork_beside_the_first_job() -> None:
    for child in range(CHILDREN):
        delay = child % 20 * 15e-6
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(delay)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
