"""`python -m mioloop doctor` and `python -m mioloop bench`."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mioloop import bench, doctor

from .support import SAFETY


def call(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "mioloop", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SAFETY,
    )


def facts(output: str) -> dict[str, str]:
    """The lines of the report before its last part, by what they are about."""
    lines = output.split("\n\n")[0].splitlines()
    return {name.strip(): text for name, _, text in (line.partition("  ") for line in lines)}


# doctor


def test_the_doctor_reports_what_is_so() -> None:
    result = call("doctor")
    assert (result.stderr, result.returncode) == ("", 0)
    told = facts(result.stdout)
    system = os.uname()
    assert told["system"].strip() == f"{system.sysname} {system.release}, {system.machine}"
    assert f"CPython {sys.version.split()[0]}" in told["Python"]
    assert told["asyncio makes, untold"].strip() == "asyncio.unix_events._UnixSelectorEventLoop"
    assert [told[name].strip() for name in doctor.TRIALS] == ["works"] * len(doctor.TRIALS)


def test_the_doctor_tells_who_does_the_work() -> None:
    by_whom = doctor.workers()
    named = [name for names in by_whom.values() for name in names]
    assert sorted(named) == sorted(
        name for name in vars(asyncio.AbstractEventLoop) if not name.startswith("_")
    )
    assert "call_soon" in by_whom["in Rust"]
    assert "add_signal_handler" in by_whom["in mioloop's Python"]
    assert "set_exception_handler" in by_whom["the standard library's"]


def test_the_doctor_on_few_files() -> None:
    script = (
        "import resource, sys; from mioloop import doctor;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300));"
        "sys.exit(doctor.main([]))"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SAFETY)
    assert result.returncode == 0, result.stderr
    told = facts(result.stdout)["open files (ulimit -n)"]
    assert told.strip().startswith("200, at most 300: ")
    assert "`ulimit -n 300`" in told


def test_the_doctor_without_process_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int) -> int:
        raise PermissionError(1, "a sandbox forbids it")

    monkeypatch.setattr(os, "pidfd_open", forbidden, raising=False)
    assert not doctor.has_pidfd()
    assert dict(doctor.platform_features())["end of a child process"] == "a thread waits for each"


def test_what_does_not_work_fails_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(doctor, "TRIALS", {"a connection": broken})
    assert doctor.main([]) == 1
    assert "fails: OSError: [Errno 24] Too many open files" in capsys.readouterr().out


def test_an_unlimited_limit() -> None:
    assert doctor.limit(resource.RLIM_INFINITY) == "unlimited"
    assert doctor.limit(20) == "20"


# bench


def test_the_bench_on_two_loops() -> None:
    result = call("bench", "--seconds", "0", "--loops", "mioloop", "--only", "call_soon")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr.splitlines() == ["round 1, 0 s to go"]
    lines = result.stdout.splitlines()
    assert lines[3].split() == ["asyncio", "mioloop"]
    named = ["call_soon", "call_soon_threadsafe", "geometric mean"]
    for work, line in zip(named, lines[4:], strict=True):
        assert line.startswith(work)
        assert float(line.split()[-1]) > 0


def test_the_shares_in_the_table() -> None:
    costs = {
        "call_soon": {"asyncio": [2e-6, 4e-6, 3e-6], "mioloop": [0.6e-6, 0.5e-6, 9e-6]},
        "start a process": {"asyncio": [4e-3], "mioloop": [3.2e-3]},
        "asyncio.sleep(0)": {"asyncio": [5e-8], "mioloop": []},
    }
    assert [line.split("  ") for line in bench.table(costs, ["asyncio", "mioloop"])] == [
        line.split("  ")
        for line in [
            "                                asyncio  mioloop",
            "call_soon                          3 µs     0.20",
            "start a process (by the clock)     4 ms     0.80",
            "asyncio.sleep(0)                  50 ns        –",
            "geometric mean                              0.40",
        ]
    ]


@pytest.mark.parametrize("loop", ["asyncio", "mioloop"])
@pytest.mark.parametrize("work", bench.WORKS)
def test_a_sample_of_each_work(work: str, loop: str) -> None:
    taken = bench.take_sample(work, loop, 0.01)
    assert isinstance(taken, float), taken
    assert taken > 0


def test_what_fails_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(work: str, loop: str, seconds: float) -> float | str:
        return "NotImplementedError" if loop == "mioloop" and work == "call_soon" else 1e-6

    monkeypatch.setattr(bench, "take_sample", broken)
    assert bench.main(["--seconds", "0", "--loops", "mioloop"]) == 1
    assert "call_soon failed on mioloop: NotImplementedError" in capsys.readouterr().out


def test_a_sample_that_fails_gives_its_reason() -> None:
    assert bench.take_sample("no such work", "mioloop", 0.01) == "KeyError: 'no such work'"


@pytest.mark.parametrize("wrong", ["--loops nonsense", "--only nonsense", "nonsense"])
def test_a_wrong_call(wrong: str) -> None:
    result = call("bench", *wrong.split())
    assert result.returncode == 2
    assert "nonsense" in result.stderr or "no work has that in its name" in result.stderr
    assert "Traceback" not in result.stderr


# Their names


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    (tmp_path / "doctor").write_text("print('the script')\n")
    (tmp_path / "doctor.py").write_text("print('the module')\n")
    return tmp_path


def test_a_command_is_one_in_every_folder(scripts: Path) -> None:
    result = call("doctor", "--help", folder=scripts)
    assert result.stdout.startswith("usage: python -m mioloop doctor")
    assert result.stderr == (
        "(this is mioloop's own command; the file is run by: python -m mioloop ./doctor)\n"
    )


def test_a_script_with_a_commands_name(scripts: Path) -> None:
    assert call("./doctor", folder=scripts).stdout == "the script\n"
    assert call("doctor.py", folder=scripts).stdout == "the module\n"
    assert call("-m", "doctor", folder=scripts).stdout == "the module\n"
