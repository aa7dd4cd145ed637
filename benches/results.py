"""Results in files: written as they are taken, so that an interrupted run loses nothing, and put together.

A file holds one run: on one machine, with one Python and one version of each loop, since only what was
measured side by side may be compared. Of a row that several files have, the last file's figures count, whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from mioloop.bench import FACTORIES

from .row import InProcess, Sample, Served
from .rows import ROWS


@dataclass
class Result:
    """A row's samples: of each loop that took part, as many as there were rounds."""

    row: InProcess | Served
    samples: dict[str, list[Sample]]
    rounds: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    def cost(self, loop: str) -> float | None:
        """The median over the rounds; none for a loop that failed in any of them."""
        samples = self.samples.get(loop)
        return median(sample.cost for sample in samples) if samples else None

    def rate(self, loop: str) -> float | None:
        rates = [sample.rate for sample in self.samples.get(loop, ()) if sample.rate is not None]
        return median(rates) if rates else None


@dataclass
class Run:
    """What was measured together."""

    machine: str
    versions: str
    date: str
    loops: list[str]
    results: dict[str, Result]
    quick: bool = False
    """Taken with too little effort to be more than a look."""

    def save(self, path: Path) -> None:
        """Writes the file anew; one that is interrupted leaves the earlier one whole."""
        about = {name: getattr(self, name) for name in ("machine", "versions", "date", "loops", "quick")}
        rows = [
            {
                "work": work,
                "measure": result.row.measure,
                "rounds": result.rounds,
                "samples": {
                    loop: [
                        {
                            name: value
                            for name, value in dataclasses.asdict(sample).items()
                            if value is not None
                        }
                        for sample in taken
                    ]
                    for loop, taken in result.samples.items()
                },
                "failures": result.failures,
            }
            for work, result in self.results.items()
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        # A line for each row: a row measured again is a line changed.
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        head = json.dumps(about, ensure_ascii=False)[:-1]
        partial.write_text(f'{head}, "rows": [\n{lines}\n]}}\n')
        partial.replace(path)


def load(path: Path) -> Run:
    """Reads a file; rows that are no longer measured are left out."""
    stored: dict[str, Any] = json.loads(path.read_text())
    rows = {row.name: row for row in ROWS}
    results = {
        entry["work"]: Result(
            rows[entry["work"]],
            {loop: [Sample(**sample) for sample in taken] for loop, taken in entry["samples"].items()},
            entry["rounds"],
            entry["failures"],
        )
        for entry in stored["rows"]
        if entry["work"] in rows
    }
    about = {name: stored[name] for name in ("machine", "versions", "date", "loops", "quick")}
    return Run(results=results, **about)


def together(runs: Sequence[Run]) -> tuple[list[Result], list[str]]:
    """The rows of several runs in the order of the report, and the loops that any of them has."""
    merged: dict[str, Result] = {}
    for run in runs:
        merged.update(run.results)
    results = [merged[row.name] for row in ROWS if row.name in merged]
    there = {loop for run in runs for loop in run.loops}
    return results, [loop for loop in FACTORIES if loop in there]
