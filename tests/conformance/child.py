"""The child process: loads one test module, runs its tests and streams the results.

The supervisor names a JSON file with the job; everything that happens goes back at once as a JSON line on a
pipe of its own, so that a crash loses nothing but the test that crashed. Time limits are the supervisor's:
a watchdog thread or an alarm in here would disturb tests that count threads, fork or use SIGALRM
themselves, and could not run while a test holds the GIL.
"""

import faulthandler
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
import unittest
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from . import exclusions, replace

Error = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class Stream:
    """JSON lines on the supervisor's pipe."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # programs that the tests start must not hold the pipe open
        self._fd = fd

    def send(self, event: str, **fields: Any) -> None:
        line = (json.dumps({"event": event, **fields}) + "\n").encode()
        while line:
            line = line[os.write(self._fd, line) :]


class Recorder(unittest.TestResult):
    """Streams each test's start and end. Its subtests, setUp and cleanups count as the test itself."""

    def __init__(self, stream: Stream, strict: bool) -> None:
        super().__init__()
        self._stream = stream
        self._strict = strict
        self._status = ""
        self._detail = ""
        self._traceback = ""
        self._running = False
        self._began = 0.0
        self._loops: Counter[type] = Counter()
        if strict:
            sys.unraisablehook = self._unraisable

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._status, self._detail, self._traceback = "passed", "", ""
        self._running = True
        self._began = time.monotonic()
        self._loops = replace.made.copy()
        self._stream.send("start", test=test.id())

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        if self._strict:
            gc.collect()  # what this test left unclosed is reported now, not in a later test
        self._running = False
        loops = replace.made - self._loops
        self._stream.send(
            "end",
            test=test.id(),
            status=self._status,
            detail=self._detail,
            traceback=self._traceback,
            seconds=round(time.monotonic() - self._began, 3),
            loops={f"{kind.__module__}.{kind.__qualname__}": n for kind, n in loops.items()},
        )

    def _note(self, status: str, detail: str, trace: str = "") -> None:
        # The first failure is the one that tells most; a skip after a failure is no skip.
        if self._status != "failed":
            self._status, self._detail, self._traceback = status, detail, trace

    def _failed(self, err: Error, prefix: str = "") -> None:
        lines = traceback.format_exception_only(err[0], err[1])
        self._note("failed", prefix + lines[0].strip(), "".join(traceback.format_exception(*err)))

    def addError(self, test: Any, err: Error) -> None:
        if isinstance(test, unittest.TestCase):
            self._failed(err)
        else:  # unittest's stand-in for a failed setUpClass, tearDownModule, …
            detail = traceback.format_exception_only(err[0], err[1])[0].strip()
            trace = "".join(traceback.format_exception(*err))
            self._stream.send("fixture", name=test.id(), status="failed", detail=detail, traceback=trace)

    def addFailure(self, test: unittest.TestCase, err: Error) -> None:
        self._failed(err)

    def addSkip(self, test: Any, reason: str) -> None:
        if isinstance(test, unittest.TestCase):
            self._note("skipped", reason)
        else:
            self._stream.send("fixture", name=test.id(), status="skipped", detail=reason, traceback="")

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Error | None) -> None:
        if err is not None:
            self._failed(err, f"{subtest.id().removeprefix(test.id()).strip()} ")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._note("failed", "unexpected success of a test marked as an expected failure")

    def _unraisable(self, unraisable: Any) -> None:
        if self._running and issubclass(unraisable.exc_type, ResourceWarning):
            self._note("failed", f"ResourceWarning: {unraisable.exc_value}")
        else:
            sys.__unraisablehook__(unraisable)


def flatten(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def run(job: dict[str, Any], stream: Stream) -> None:
    factory = replace.load_factory(job["loop"]) if job["loop"] else None
    replace.install(factory)
    try:
        suite = unittest.defaultTestLoader.loadTestsFromName(job["module"])
    except unittest.SkipTest as skip:
        stream.send("plan", tests=[], excluded={})
        stream.send("fixture", name=job["module"], status="skipped", detail=str(skip), traceback="")
        suite = unittest.TestSuite()
    excluded: dict[str, str] = {}
    tests: list[unittest.TestCase] = []
    for test in flatten(suite):
        entry = exclusions.match(test.id().removeprefix(exclusions.PREFIX))
        if entry is None:
            tests.append(test)
        else:
            excluded[test.id()] = entry
    stream.send("plan", tests=[test.id() for test in tests], excluded=excluded)
    done = set(job["done"])
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("default")  # as unittest's own runner does
        recorder = Recorder(stream, strict=job["strict"])
        unittest.TestSuite(test for test in tests if test.id() not in done).run(recorder)
    stream.send("done")


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    del sys.argv[1:]  # some tests read it
    stream = Stream(job["fd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in a shell's background has it ignored
    faulthandler.enable(all_threads=True)  # a crash, and the supervisor's SIGABRT, print every thread's stack
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    support: Any = importlib.import_module("test.support")
    support.use_resources = {}  # as regrtest's default: no network, nothing outside this machine
    support.verbose = 0
    run(job, stream)


if __name__ == "__main__":
    main()
