"""The child watcher for CPython 3.11, where the standard library's default spends a thread on every process.

From 3.12 on the default is a process descriptor (pidfd_open(2)) which the loop watches like any other. This
is the same for 3.11, where the standard library's own watcher of that kind serves one loop only, and that in
the main thread.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from asyncio import unix_events
from collections.abc import Callable
from typing import Any, TypeVarTuple

_logger: Any = unix_events.logger  # type: ignore[attr-defined]


_Ts = TypeVarTuple("_Ts")


class ChildWatcher(unix_events.ThreadedChildWatcher):
    """Learns of a process's end from its descriptor, or from a waiting thread where the kernel has none to
    give."""

    def add_child_handler(self, pid: int, callback: Callable[[int, int, *_Ts], object], *args: *_Ts) -> None:
        """Call `callback(pid, returncode, *args)` when the process has ended; in the running loop."""
        loop: Any = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            super().add_child_handler(pid, callback, *args)
        else:
            loop._add_reader(pidfd, _exited, loop, pidfd, pid, callback, args)


def _exited(loop: Any, pidfd: int, pid: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
    loop._remove_reader(pidfd)
    os.close(pidfd)
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        # Somebody else has waited for it, and has the status: `Popen.send_signal`, most likely.
        returncode = _returncode_of_popen(args)
    else:
        returncode = os.waitstatus_to_exitcode(status)
    if returncode is None:
        returncode = 255
        _logger.warning("Unknown child process pid %d, will report returncode 255", pid)
    callback(pid, returncode, *args)


def _returncode_of_popen(args: tuple[Any, ...]) -> int | None:
    """What the process's own object knows, if the handler is a subprocess transport's.

    (0 where it found nobody to wait for either, as `subprocess` has it.)
    """
    processes = (getattr(arg, "_proc", None) for arg in args)
    return next((process.returncode for process in processes if isinstance(process, subprocess.Popen)), None)


def set_default() -> None:
    """Make it the policy's watcher, unless the program has set one or used the policy's own."""
    policy: Any = asyncio.get_event_loop_policy()
    if getattr(policy, "_watcher", policy) is None:
        policy.set_child_watcher(ChildWatcher())
