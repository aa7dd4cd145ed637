"""Runs one module's tests in child processes, and goes on where a child was lost.

A child that crashes, or that is killed because a test took too long or nothing moved any more, costs the
test that was running: it counts as failed, and a new child runs the tests after it. What goes wrong outside
of any test (a class fixture, the interpreter's exit) is a failure under a name of its own, such as
`test_tasks <exit>`.
"""

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
POLL = 0.2  # seconds between two looks at a silent child
# Settings of the caller's that would make this run another run than the one asked for.
UNWANTED = ("PYTHONASYNCIODEBUG", "PYTHONDEVMODE", "PYTHONWARNINGS", "PYTHONOPTIMIZE")

Event = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """Seconds that a child may take without a word."""

    test: float = 30.0  # from a test's start to its end
    silence: float = 45.0  # outside of a test: an import, a class fixture, the exit
    dump: float = 5.0  # to print its stacks, when told to die


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Mode:
    """How the interpreter is run; the same for the standard loop and for ours."""

    debug: bool = False  # asyncio's debug mode
    strict: bool = False  # Python's development mode, and a ResourceWarning fails the test that it came in

    def flags(self) -> list[str]:
        return ["-X", "dev", "-W", "error::ResourceWarning"] if self.strict else []

    def environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name not in UNWANTED}
        # Absolute, because the child has a working folder of its own.
        inherited = [os.path.abspath(path) for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *inherited])
        if self.debug:
            env["PYTHONASYNCIODEBUG"] = "1"
        return env


@dataclass
class Outcome:
    """What one test came to."""

    status: str  # passed, failed or skipped
    detail: str = ""  # the error in one line, or the reason of the skip
    traceback: str = ""
    seconds: float = 0.0
    loops: dict[str, int] = field(default_factory=dict)  # class of loop: how many were made


@dataclass
class Result:
    """What the tests of a module came to."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)  # test: the entry that leaves it out
    seconds: float = 0.0

    def named(self, status: str) -> list[str]:
        return [test for test, outcome in self.outcomes.items() if outcome.status == status]

    def loops(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for outcome in self.outcomes.values():
            total.update(outcome.loops)
        return total


class Stopped(Exception):
    """The whole run is being given up."""


class Child:
    """One child process, with its pipe and its output. The end of its `with` block leaves nothing running."""

    def __init__(self, job: Event, mode: Mode, folder: Path) -> None:
        scratch = folder / "tmp"  # tests write into their working folder and into $TMPDIR
        scratch.mkdir()
        self._log = folder / "output"
        self._reader, writer = os.pipe()
        job_file = folder / "job.json"
        job_file.write_text(json.dumps(job | {"fd": writer, "strict": mode.strict}))
        try:
            with self._log.open("wb") as output:
                self._process = subprocess.Popen(
                    [sys.executable, *mode.flags(), "-m", "tests.conformance.child", str(job_file)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=scratch,
                    env=mode.environment() | {"TMPDIR": str(scratch)},
                    pass_fds=[writer],
                    start_new_session=True,
                )
        finally:
            os.close(writer)
        self._killed = ""

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *error: object) -> None:
        # The child, if it lives, and what its tests left behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._reader)

    def events(self, limits: Limits, stop: threading.Event) -> Iterator[Event]:
        """What the child reports, until it is dead; a process that a test forked may hold the pipe longer."""
        pending = b""
        limit, moved = limits.silence, time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._reader, selectors.EVENT_READ)
            while True:
                if stop.is_set():
                    raise Stopped
                dead = self._process.poll() is not None  # asked first: then the read sees all that it wrote
                readable = selector.select(0 if dead else POLL) if selector.get_map() else []
                data = os.read(self._reader, 1 << 16) if readable else b""
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    limit = limits.test if event["event"] == "start" else limits.silence
                    moved = time.monotonic()
                    yield event
                if data:
                    continue
                if dead:
                    return
                if readable:  # end of file: it is about to exit
                    selector.unregister(self._reader)
                if not selector.get_map():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(POLL)
                if time.monotonic() - moved > limit:
                    self._kill(f"hung: no progress in {limit:g} s", limits.dump)

    def _kill(self, reason: str, grace: float) -> None:
        self._killed = reason
        self._process.send_signal(signal.SIGABRT)  # faulthandler prints every thread's stack, needing no GIL
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def death(self) -> Outcome:
        """How the child ended, as a failed outcome: for when it should not have."""
        status = self._process.returncode
        if self._killed:
            reason = self._killed
        elif status < 0:
            reason = f"crashed: {signal.strsignal(-status) or f'signal {-status}'}"
        else:
            reason = f"exited with status {status}"
        words = self._log.read_text(errors="replace")[-20_000:]
        frame = re.search(r'Current thread .*\n  File "(?:.*/)?(.*)", line (\d+) in (\S+)', words)
        if frame:
            reason += " in {2} ({0}:{1})".format(*frame.groups())
        elif words.strip() and not self._killed:
            reason += f": {words.strip().splitlines()[-1]}"
        return Outcome("failed", reason, words)

    @property
    def failed(self) -> bool:
        return self._process.returncode != 0


def run_module(
    module: str,
    loop: str | None,
    mode: Mode,
    limits: Limits = DEFAULT_LIMITS,
    stop: threading.Event | None = None,
) -> Result:
    """Runs a module's tests on the loops of `loop` ("module:factory"), or with None on the standard loop."""
    stop = stop or threading.Event()
    began = time.monotonic()
    result = Result()
    plan: list[str] = []
    complete = False
    while not complete:
        job = {"module": module, "loop": loop, "done": list(result.outcomes)}
        running = previous = ""
        with (
            tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True) as folder,
            Child(job, mode, Path(folder)) as child,
        ):
            for event in child.events(limits, stop):
                match event.pop("event"):
                    case "plan":
                        plan, result.excluded = event["tests"], event["excluded"]
                    case "start":
                        running = event["test"]
                    case "end":
                        running, previous = "", event.pop("test")
                        result.outcomes[previous] = Outcome(**event)
                    case "fixture":
                        _record_fixture(event.pop("name"), Outcome(**event), plan, result)
                    case "done":
                        complete = True
            left = [test for test in plan if test not in result.outcomes]
            if running:
                result.outcomes[running] = child.death()
            elif not complete and not previous and left:
                # The fixture of the next class is what kills it: that class is lost, the others are not.
                lost = left[0].rpartition(".")[0] + "."
                result.outcomes |= {test: child.death() for test in left if test.startswith(lost)}
            elif not complete:
                where = f"after {previous.removeprefix(module + '.')}" if previous else "start"
                result.outcomes[f"{module} <{where}>"] = child.death()
            elif child.failed:
                result.outcomes[f"{module} <exit>"] = child.death()
        complete = complete or all(test in result.outcomes for test in plan)
    result.seconds = time.monotonic() - began
    return result


def _record_fixture(name: str, outcome: Outcome, plan: list[str], result: Result) -> None:
    """A failed or skipped "setUpClass (module.Class)" decides for the tests that it keeps from running."""
    if outcome.status == "failed" or not plan:
        result.outcomes[name] = outcome
    scope = name.partition("(")[2].rstrip(")") + "."
    detail = f"{name}: {outcome.detail}"
    for test in plan:
        if test.startswith(scope) and test not in result.outcomes:
            result.outcomes[test] = Outcome(outcome.status, detail, outcome.traceback)
