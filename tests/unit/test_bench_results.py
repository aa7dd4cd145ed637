"""The benchmark's results in files: kept as they are taken, taken up again, put together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benches import report
from benches.results import Result, Run, load, together
from benches.row import Sample
from benches.rows import ROWS

from .support import SAFETY

ROOT = Path(__file__).parents[2]


def run_of(costs: dict[int, float], loops: list[str]) -> Run:
    """The rows at these places, with the same cost on each loop."""
    results = {
        ROWS[place].name: Result(ROWS[place], {loop: [Sample(cost, 1 / cost)] for loop in loops}, 1)
        for place, cost in costs.items()
    }
    return Run("a machine", "some versions", "2030-01-01", loops, results)


def measure(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benches", "--quick", "--rows", "call_soon chain", *options]
    return subprocess.run(
        [*command, "--loops", "asyncio,mioloop"], cwd=ROOT, capture_output=True, text=True, timeout=SAFETY
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    run = run_of({0: 1e-6, 20: 2e-6}, ["asyncio", "mioloop"])
    run.results[ROWS[0].name].failures["rloop"] = "NotImplementedError"
    run.quick = True
    run.save(tmp_path / "folder" / "run.json")
    assert load(tmp_path / "folder" / "run.json") == run


def test_a_row_that_is_no_longer_measured(tmp_path: Path) -> None:
    run_of({0: 1e-6, 1: 1e-6}, ["mioloop"]).save(tmp_path / "run.json")
    stored = json.loads((tmp_path / "run.json").read_text())
    stored["rows"][0]["work"] = "what nobody does any more"
    (tmp_path / "run.json").write_text(json.dumps(stored))
    assert list(load(tmp_path / "run.json").results) == [ROWS[1].name]


def test_the_last_file_counts() -> None:
    results, loops = together([run_of({0: 1, 5: 1}, ["mioloop", "asyncio"]), run_of({5: 2, 3: 2}, ["rloop"])])
    assert [result.row for result in results] == [ROWS[0], ROWS[3], ROWS[5]]
    assert loops == ["asyncio", "rloop", "mioloop"]
    assert [list(result.samples) for result in results] == [["mioloop", "asyncio"], ["rloop"], ["rloop"]]


def test_a_run_is_taken_up_again(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    first = measure("--json", str(file))
    assert first.returncode == 0, first.stderr
    before = load(file).results["call_soon chain"]
    assert (before.rounds, before.failures) == (1, {})
    again = measure("--json", str(file), "--resume", "--rounds", "2")
    assert again.returncode == 0, again.stderr
    after = load(file).results["call_soon chain"]
    assert after.rounds == 2
    for loop in ("asyncio", "mioloop"):
        assert len(after.samples[loop]) == 2
        assert after.samples[loop][:1] == before.samples[loop]
    assert "1/2" not in again.stderr  # that round was there


def test_a_run_of_other_versions_is_not_taken_up(tmp_path: Path) -> None:
    run_of({0: 1e-6}, ["mioloop"]).save(tmp_path / "run.json")
    result = measure("--json", str(tmp_path / "run.json"), "--resume")
    assert result.returncode == 1
    assert "is of another machine or of other versions: some versions" in result.stderr


def test_no_time_no_rows(tmp_path: Path) -> None:
    result = measure("--minutes", "-1")
    assert result.returncode == 0, result.stderr
    assert "call_soon chain is left at 0 of 1 rounds: the time is over" in result.stderr


def test_notes_on_rows(tmp_path: Path) -> None:
    file = tmp_path / "notes.toml"
    file.write_text(f'"{ROWS[3].name}" = """\nThe floor.\n"""\n"{ROWS[1].name}" = "The other."\n')
    assert report.notes(file) == [f"**{ROWS[1].name}.** The other.", f"**{ROWS[3].name}.** The floor."]
    file.write_text('"no such row" = "?"\n')
    with pytest.raises(ValueError, match="no such row"):
        report.notes(file)


def test_the_notes_that_there_are() -> None:
    report.notes()
