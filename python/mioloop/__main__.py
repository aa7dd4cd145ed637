"""Run a program, unchanged, on mioloop: ``python -m mioloop script.py args...`` or ``-m module args...``."""

from __future__ import annotations

import argparse
import asyncio
import os
import runpy
import sys

from . import Loop, install, new_event_loop


def make_default() -> None:
    """Have `asyncio.run` and everything else that makes a loop make ours."""
    try:
        install()
    except ImportError:
        # Without policies there is one function that all of asyncio calls.
        asyncio.events.new_event_loop = asyncio.new_event_loop = new_event_loop
        vars(asyncio)["EventLoop"] = Loop


def main() -> None:
    """Run the program that the command line names, as ``python`` would, with mioloop as asyncio's loop."""
    parser = argparse.ArgumentParser(
        prog="python -m mioloop", description="Run a Python program with mioloop as asyncio's event loop."
    )
    # All that follows the program's name is the program's own.
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE", help="run a module")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="script.py args...", help="run a file")
    options = parser.parse_args()
    if options.module:
        make_default()
        sys.argv[:] = options.module
        runpy.run_module(options.module[0], run_name="__main__", alter_sys=True)
    elif options.program and options.module is None:
        make_default()
        script = options.program[0]
        sys.argv[:] = options.program
        sys.path[0] = os.path.dirname(os.path.abspath(script))
        runpy.run_path(script, run_name="__main__")
    else:
        parser.error("a script, or -m and a module, is required")


if __name__ == "__main__":
    main()
