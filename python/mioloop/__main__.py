"""Run a program, unchanged, on mioloop: ``python -m mioloop script.py args...`` or ``-m module args...``.

``python -m mioloop bench`` and ``python -m mioloop doctor`` are commands of mioloop's own. They are that in
every folder: a script of such a name is run as ``./bench``.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import runpy
import sys

from . import Loop, install, new_event_loop

COMMANDS = {
    "bench": "compare mioloop with asyncio and the other loops installed, in two minutes",
    "doctor": "say what mioloop finds on this machine, and whether it works",
}


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
        prog="python -m mioloop",
        description="Run a Python program with mioloop as asyncio's event loop.",
        epilog="\n".join(["commands:", *(f"  {name:9} {text}" for name, text in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # All that follows the program's name is the program's own.
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE", help="run a module")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="script.py args...", help="run a file")
    options = parser.parse_args()
    if options.module is None and options.program and options.program[0] in COMMANDS:
        name, *arguments = options.program
        if os.path.isfile(name):
            print(
                f"(this is mioloop's own command; the file is run by: python -m mioloop ./{name})",
                file=sys.stderr,
            )
        # Imported here, as no program that is run on mioloop needs them.
        sys.exit(importlib.import_module(f"mioloop.{name}").main(arguments))
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
