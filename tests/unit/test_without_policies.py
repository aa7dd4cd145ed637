"""A Python without event loop policies, as 3.16 will be: everything but the policy works.

In a child process, with all that asyncio calls a policy taken out of it.
"""

import subprocess
import sys
from pathlib import Path

TAKE_OUT_POLICIES = """
import asyncio, sys
from asyncio import events, unix_events
for module in (asyncio, events, unix_events):
    for name in [name for name in vars(module) if "olicy" in name and name != "get_event_loop_policy"]:
        delattr(module, name)
    vars(module).pop("__getattr__", None)
events.set_event_loop = lambda loop: None
import mioloop

async def loop_class():
    return type(asyncio.get_running_loop())

"""


def child(program: str) -> None:
    command = [sys.executable, "-W", "error", "-c", TAKE_OUT_POLICIES + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_ways_that_need_no_policy() -> None:
    child(
        """
assert mioloop.run(loop_class()) is mioloop.Loop
with asyncio.Runner(loop_factory=mioloop.new_event_loop) as runner:
    assert runner.run(loop_class()) is mioloop.Loop
"""
    )


def test_the_policy_is_missing_with_a_plain_error() -> None:
    child(
        """
assert not hasattr(mioloop, "EventLoopPolicy")
try:
    mioloop.install()
except ImportError:
    pass
else:
    sys.exit("install() did nothing, and said nothing")
"""
    )


def test_the_command_line_needs_no_policy(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import asyncio, sys

async def loop_class():
    return type(asyncio.get_running_loop())

assert sys.argv[1:] == ["argument"]
assert asyncio.run(loop_class()).__module__ == "mioloop.loop"
loop = asyncio.new_event_loop()
assert type(loop).__module__ == "mioloop.loop"
loop.close()
"""
    )
    child(
        f"""
from mioloop.__main__ import main
sys.argv = ["mioloop", {str(script)!r}, "argument"]
main()
"""
    )
