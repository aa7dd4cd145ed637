"""The command line: chooses rows and loops, measures, shows."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

from . import report
from .loops import FACTORIES, why_absent
from .rows import ROWS
from .runner import QUICK, Effort, Result, measure, missing


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benches", description="mioloop beside the other event loops.")
    parser.add_argument("--rows", default="", metavar="PATTERN", help="only rows that match this expression")
    parser.add_argument(
        "--loops", default=",".join(FACTORIES), help="separated by commas; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, help="samples of each row on each loop; default: 5")
    parser.add_argument("--quick", action="store_true", help="one short round: does everything work?")
    parser.add_argument("--json", action="store_true", help="print every sample as JSON instead of tables")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write FILE (markdown), a plot beside it")
    arguments = parser.parse_args()
    arguments.rows = [row for row in ROWS if re.search(arguments.rows, row.name, re.IGNORECASE)]
    if not arguments.rows:
        parser.error("no row has such a name")
    if unknown := set(arguments.loops.split(",")) - FACTORIES.keys():
        parser.error(f"no such loop: {', '.join(sorted(unknown))}")
    if arguments.report and importlib.util.find_spec("matplotlib") is None:
        parser.error("--report needs matplotlib for the plot")
    return arguments


def as_json(results: list[Result], loops: list[str]) -> str:
    rows = [
        {
            "work": result.row.name,
            "measure": result.row.measure,
            "goal": result.row.goal,
            "samples": {
                loop: [dataclasses.asdict(s) for s in taken] for loop, taken in result.samples.items()
            },
            "failures": result.failures,
        }
        for result in results
    ]
    about = {
        "machine": report.describe_machine(),
        "versions": report.describe_versions(loops),
        "date": report.today(),
    }
    return json.dumps({**about, "rows": rows}, indent=1)


def main() -> None:
    arguments = parse()
    loops = []
    for name in arguments.loops.split(","):
        if reason := why_absent(name):
            say(f"{name} is left out: {reason}")
        else:
            loops.append(name)
    effort = QUICK if arguments.quick else Effort()
    rounds = arguments.rounds or (1 if arguments.quick else 5)

    results = []
    for row in arguments.rows:
        if absent := missing(row):
            say(f"{row.name} is left out: {', '.join(absent)} missing")
            continue
        result = measure(row, loops, rounds, effort)
        results.append(result)
        cells = [f"{loop} {report.cost_cell(result, loop)}" for loop in loops]
        say(f"{report.title(result)}: {', '.join(cells)}")

    if arguments.json:
        print(as_json(results, loops))
    else:
        print(report.as_text(report.costs(results, loops)), end="\n\n")
        print(report.as_text(report.rates(results, loops)), end="\n\n")
        print("\n".join([*filter(None, [report.standing(results)]), *report.failures(results)]))
    if arguments.report:
        report.write_markdown(arguments.report, results, loops, rounds)


if __name__ == "__main__":
    main()
