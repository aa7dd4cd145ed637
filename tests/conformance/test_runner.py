"""Tests of the conformance runner itself, on tiny test modules that crash, hang and fail on purpose."""

import json
import os
import select
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from . import exclusions
from .baseline import Baseline
from .exclusions import Exclusion
from .report import Comparison, Summary
from .supervisor import ROOT, Limits, Mode, Outcome, Result, run_module

Write = Callable[..., str]

HEADER = "import asyncio, atexit, gc, os, selectors, signal, socket, subprocess, sys, time, unittest\n"
PATIENT = Limits()
HASTY = Limits(test=2.0)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module that the children can import, and returns its name."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def write(source: str, name: str = "synthetic") -> str:
        (tmp_path / f"{name}.py").write_text(HEADER + textwrap.dedent(source))
        return name

    return write


@pytest.fixture
def ours(write: Write) -> str:
    """A factory of loops that are not the standard ones, though they work as these do."""
    write("class Ours(asyncio.SelectorEventLoop): pass", "ours")
    return "ours:Ours"


def statuses(result: Result) -> dict[str, str]:
    return {test.partition(".")[2] or test: outcome.status for test, outcome in result.outcomes.items()}


def run(module: str, loop: str | None = None, limits: Limits = PATIENT, mode: Mode = Mode()) -> Result:  # noqa: B008
    return run_module(module, loop, mode, limits)


def test_outcomes(write: Write) -> None:
    result = run(
        write(
            """
            class T(unittest.TestCase):
                def setUp(self):
                    if "error" in self._testMethodName: raise ZeroDivisionError("in setUp")
                def tearDown(self):
                    if "teardown" in self._testMethodName: raise ZeroDivisionError("in tearDown")
                def test_pass(self): pass
                def test_fail(self): self.assertEqual(1, 2)
                def test_error(self): pass
                def test_teardown(self): pass
                def test_skip(self): self.skipTest("no reason")
                def test_subtests(self):
                    for number in range(3):
                        with self.subTest(number=number): self.assertNotEqual(number, 1)
                @unittest.expectedFailure
                def test_expected(self): self.fail()
                @unittest.expectedFailure
                def test_unexpected(self): pass
            """
        )
    )
    assert statuses(result) == {
        "T.test_pass": "passed",
        "T.test_fail": "failed",
        "T.test_error": "failed",
        "T.test_teardown": "failed",
        "T.test_skip": "skipped",
        "T.test_subtests": "failed",
        "T.test_expected": "passed",
        "T.test_unexpected": "failed",
    }
    assert result.outcomes["synthetic.T.test_fail"].detail == "AssertionError: 1 != 2"
    assert result.outcomes["synthetic.T.test_subtests"].detail.startswith("(number=1) AssertionError")
    assert "in setUp" in result.outcomes["synthetic.T.test_error"].traceback


def test_run_resumes_after_a_crash(write: Write) -> None:
    result = run(
        write(
            """
            class T(unittest.TestCase):
                def test_a(self): pass
                def test_b(self): os.kill(os.getpid(), signal.SIGSEGV)
                def test_c(self): os._exit(0)
                def test_d(self): pass
            """
        )
    )
    assert statuses(result) == {
        "T.test_a": "passed",
        "T.test_b": "failed",
        "T.test_c": "failed",
        "T.test_d": "passed",
    }
    assert result.outcomes["synthetic.T.test_b"].detail.startswith("crashed: Segmentation fault in test_b (")
    assert result.outcomes["synthetic.T.test_c"].detail == "exited with status 0"


def test_run_resumes_after_a_hang_and_ends_what_the_test_started(write: Write, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    reader = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    result = run(
        write(
            f"""
            class T(unittest.TestCase):
                def test_a(self):
                    held = os.open({str(tmp_path / "held")!r}, os.O_WRONLY)
                    subprocess.Popen(["sleep", "600"], stdout=held)
                    os.write(held, b"up")
                    time.sleep(600)
                def test_b(self): pass
            """
        ),
        limits=HASTY,
    )
    assert statuses(result) == {"T.test_a": "failed", "T.test_b": "passed"}
    assert result.outcomes["synthetic.T.test_a"].detail.startswith("hung: no progress in 2 s in test_a (")
    assert os.read(reader, 2) == b"up"
    # The end of file comes only when the child and its `sleep` are both gone.
    assert select.select([reader], [], [], 60)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_process_that_holds_the_pipe_does_not_hold_up_the_run(write: Write) -> None:
    result = run(
        write(
            """
            class T(unittest.TestCase):
                def test_fork(self):
                    if not os.fork():
                        time.sleep(600)
            """
        )
    )
    assert statuses(result) == {"T.test_fork": "passed"}


def test_fixtures(write: Write) -> None:
    result = run(
        write(
            """
            class Broken(unittest.TestCase):
                @classmethod
                def setUpClass(cls): raise ZeroDivisionError("broken")
                def test(self): pass
            class Crashing(unittest.TestCase):
                @classmethod
                def setUpClass(cls): os._exit(7)
                def test(self): pass
            class Skipped(unittest.TestCase):
                @classmethod
                def setUpClass(cls): raise unittest.SkipTest("not here")
                def test(self): pass
            class Whole(unittest.TestCase):
                def test(self): pass
                @classmethod
                def tearDownClass(cls): raise ZeroDivisionError("late")
            """
        )
    )
    found = statuses(result)
    assert found["Broken.test"] == "failed"
    assert found["Crashing.test"] == "failed"
    assert found["Skipped.test"] == "skipped"
    assert found["Whole.test"] == "passed"
    assert result.outcomes["tearDownClass (synthetic.Whole)"].detail == "ZeroDivisionError: late"
    assert "broken" in result.outcomes["synthetic.Broken.test"].detail


def test_a_module_that_cannot_be_imported(write: Write) -> None:
    assert statuses(run(write("os._exit(3)"))) == {"synthetic <start>": "failed"}
    assert statuses(run(write("raise unittest.SkipTest('elsewhere')"))) == {"synthetic": "skipped"}
    (failure,) = run(write("import no_such_module")).outcomes.values()
    assert failure.status == "failed"


def test_a_failing_exit(write: Write) -> None:
    result = run(
        write(
            """
            class T(unittest.TestCase):
                def test(self): atexit.register(os._exit, 9)
            """
        )
    )
    assert statuses(result) == {"T.test": "passed", "synthetic <exit>": "failed"}
    assert result.outcomes["synthetic <exit>"].detail == "exited with status 9"


def test_every_standard_loop_is_replaced(write: Write, ours: str) -> None:
    module = write(
        """
        from asyncio import SelectorEventLoop as early

        def policy():
            return getattr(asyncio.events, "_get_event_loop_policy", asyncio.get_event_loop_policy)()

        class T(unittest.TestCase):
            def check(self, loop):
                self.addCleanup(loop.close)
                self.assertEqual(type(loop).__name__, "Ours")
                self.assertIsInstance(loop, asyncio.SelectorEventLoop)
            def test_new_event_loop(self): self.check(asyncio.new_event_loop())
            def test_early(self): self.check(early())
            def test_unix_events(self): self.check(asyncio.unix_events._UnixSelectorEventLoop())
            def test_policy(self): self.check(policy().new_event_loop())
            def test_selector(self):
                selector = selectors.SelectSelector()
                self.check(asyncio.SelectorEventLoop(selector))
                self.assertIsNone(selector.get_map())
            def test_runner(self):
                with asyncio.Runner() as runner: self.check(runner.get_loop())
            def test_run(self):
                async def main(): return asyncio.get_running_loop()
                self.check(asyncio.run(main()))

        class I(unittest.IsolatedAsyncioTestCase):
            async def test(self):
                self.assertEqual(type(asyncio.get_running_loop()).__name__, "Ours")

        class Left(unittest.TestCase):
            def test_subclass(self):
                class Special(asyncio.SelectorEventLoop): pass
                with asyncio.Runner(loop_factory=Special) as runner:
                    self.assertIs(type(runner.get_loop()), Special)
        """
    )
    result = run(module, ours)
    assert {test: outcome.detail for test, outcome in result.outcomes.items() if outcome.detail} == {}
    assert result.loops() == {"ours.Ours": 8}
    assert result.outcomes["synthetic.I.test"].loops == {"ours.Ours": 1}


def test_modes(write: Write) -> None:
    module = write(
        """
        class T(unittest.TestCase):
            def test_debug(self):
                loop = asyncio.new_event_loop()
                self.addCleanup(loop.close)
                self.assertTrue(loop.get_debug())
            def test_leak(self): socket.socket()
            def test_leak_in_a_cycle(self):
                cycle = [socket.socket()]
                cycle.append(cycle)
        """
    )
    passing = {"T.test_leak": "passed", "T.test_leak_in_a_cycle": "passed"}
    assert statuses(run(module)) == {"T.test_debug": "failed", **passing}
    assert statuses(run(module, mode=Mode(debug=True))) == {"T.test_debug": "passed", **passing}
    strict = run(module, mode=Mode(strict=True))
    assert statuses(strict) == {
        "T.test_debug": "passed",
        "T.test_leak": "failed",
        "T.test_leak_in_a_cycle": "failed",
    }
    assert strict.outcomes["synthetic.T.test_leak"].detail.startswith("ResourceWarning: unclosed <socket")


def result_of(loop: str, **outcomes: str) -> Result:
    loops = {loop: 1}
    return Result({f"m.T.{test}": Outcome(status, loops=loops) for test, status in outcomes.items()})


def test_comparison() -> None:
    standard = result_of("std", a="passed", b="passed", c="passed", d="passed", e="failed", f="skipped")
    ours = result_of("new", a="passed", b="failed", c="skipped", e="failed", f="failed")
    comparison = Comparison("m", standard, ours)
    assert sorted(comparison.missing) == ["m.T.b", "m.T.c", "m.T.d"]
    assert comparison.passed == 1
    assert comparison.unproven == []
    assert not Summary("new:Loop", [comparison], everything=False).succeeded
    assert Summary("new:Loop", [comparison], everything=False).lines() == [
        "total: standard loop 4, new 1, missing 3; 5 loops of new"
    ]


def test_what_fails_outside_of_a_test_is_missing() -> None:
    standard, ours = result_of("std", a="passed"), result_of("new", a="passed")
    assert Summary("new:Loop", [Comparison("m", standard, ours)], everything=False).succeeded
    ours.outcomes["m <exit>"] = Outcome("failed", "crashed")
    assert list(Comparison("m", standard, ours).missing) == ["m <exit>"]
    standard.outcomes["m <exit>"] = Outcome("failed", "crashed")
    assert list(Comparison("m", standard, ours).missing) == []


def test_a_pass_without_a_loop_of_ours_is_no_proof() -> None:
    standard, ours = result_of("std", a="passed"), result_of("std", a="passed")
    comparison = Comparison("m", standard, ours)
    assert comparison.unproven == ["m.T.a"]
    assert not Summary("new:Loop", [comparison], everything=False).succeeded
    ours.outcomes["m.T.a"].loops = {}
    assert comparison.unproven == ["m.T.a"]


def test_exclusions(monkeypatch: pytest.MonkeyPatch) -> None:
    here = sys.version_info[:2]
    entry = Exclusion("test_events.*.test_x", "a reason", first=here, last=here)
    later = Exclusion("test_events.*.test_y", "a reason", first=(here[0], here[1] + 1))
    monkeypatch.setattr(exclusions, "TESTS", (entry, later))
    assert exclusions.match("test_events.T.test_x") == "test_events.*.test_x"
    assert exclusions.match("test_tasks.T.test_x") is None
    assert exclusions.match("test_events.T.test_y") is None
    assert exclusions.match("test_events.PollEventLoopTests.test_z") == "PollEventLoopTests"
    assert exclusions.match(f"test_events.{exclusions.DEFAULT_VARIANT}.test_z") is None
    unused = Comparison("m", result_of("std", a="passed"), result_of("new", a="passed"))
    assert Summary("new:Loop", [unused], everything=True).stale == ["test_events.*.test_x"]
    assert not Summary("new:Loop", [unused], everything=True).succeeded
    assert Summary("new:Loop", [unused], everything=False).stale == []


def test_baseline_keeps_only_what_did_not_fail(tmp_path: Path) -> None:
    good, bad = result_of("std", a="passed", b="skipped"), result_of("std", a="failed")
    Baseline(tmp_path, Mode()).add([("good", good), ("bad", bad)])
    Baseline(tmp_path, Mode()).add([("another", good)])
    read = Baseline(tmp_path, Mode())
    assert read.get("good") == good == read.get("another")
    assert read.get("bad") is None
    assert Baseline(tmp_path, Mode(debug=True)).get("good") is None


@pytest.mark.parametrize("works", [True, False])
def test_command_line(write: Write, tmp_path: Path, works: bool) -> None:
    # "Broken" is right until a test asks something of it.
    write(
        """
        class Fine(asyncio.SelectorEventLoop): pass
        class Broken(asyncio.SelectorEventLoop):
            def run_in_executor(self, *args): raise RuntimeError("broken on purpose")
        """,
        "ours",
    )
    command = [sys.executable, "-m", "tests.conformance", "--modules", "test_threads,test_protocols"]
    command += ["--loop", "ours:Fine" if works else "ours:Broken"]
    command += ["--baseline-cache", str(tmp_path / "cache"), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == (0 if works else 1)
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["total"]["standard"] == found["total"]["passed"]) is works
    missing = found["modules"]["test_threads"]["missing"]
    assert bool(missing) is not works
    assert ("RuntimeError: broken on purpose" in done.stdout) is not works
    assert f"standard loop {found['total']['standard']}, ours {found['total']['passed']}" in done.stdout
    (cache,) = (tmp_path / "cache").iterdir()
    assert "test.test_asyncio.test_threads" in json.loads(cache.read_text())


def test_the_baseline_runs_on_the_standard_loop(write: Write) -> None:
    module = write(
        """
        class T(unittest.TestCase):
            def test(self): asyncio.new_event_loop().close()
        """
    )
    assert run(module).loops() == {"asyncio.unix_events._UnixSelectorEventLoop": 1}
