"""The command line: chooses rows and loops, measures, shows."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import time
from pathlib import Path

from mioloop.bench import FACTORIES

from . import report
from .loops import why_absent
from .results import Result, Run, load, together
from .row import InProcess, Served
from .rows import ROWS
from .runner import QUICK, Effort, measure, missing


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benches", description="mioloop beside the other event loops.")
    parser.add_argument("--rows", default="", metavar="PATTERN", help="only rows that match this expression")
    parser.add_argument(
        "--loops", default=",".join(FACTORIES), help="separated by commas; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, help="samples of each row on each loop; default: 5")
    parser.add_argument("--minutes", type=float, help="begin nothing that would not be done by then")
    parser.add_argument("--quick", action="store_true", help="one short round: does everything work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every sample in FILE, row by row")
    parser.add_argument("--resume", action="store_true", help="go on with what the --json file holds")
    parser.add_argument(
        "--from",
        dest="files",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="measure nothing, show what --json wrote; of a row in several files the last counts",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write FILE (markdown), a plot beside it")
    arguments = parser.parse_args()
    arguments.rows = [row for row in ROWS if re.search(arguments.rows, row.name, re.IGNORECASE)]
    if not arguments.rows:
        parser.error("no row has such a name")
    if unknown := set(arguments.loops.split(",")) - FACTORIES.keys():
        parser.error(f"no such loop: {', '.join(sorted(unknown))}")
    if arguments.report and importlib.util.find_spec("matplotlib") is None:
        parser.error("--report needs matplotlib for the plot")
    if arguments.resume and not arguments.json:
        parser.error("--resume needs the --json file to go on with")
    if absent := [str(path) for path in arguments.files if not path.exists()]:
        parser.error(f"no such file: {', '.join(absent)}")
    return arguments


def take(arguments: argparse.Namespace) -> Run:
    """Measures, round by round: what an interruption or the time limit cuts off is rounds, not rows."""
    loops = []
    for name in arguments.loops.split(","):
        if reason := why_absent(name):
            say(f"{name} is left out: {reason}")
        else:
            loops.append(name)
    rows: list[InProcess | Served] = []
    for row in arguments.rows:
        if absent := missing(row):
            say(f"{row.name} is left out: {', '.join(absent)} missing")
        else:
            rows.append(row)
    versions = report.describe_versions(loops)
    run = Run(report.describe_machine(), versions, report.today(), loops, {}, arguments.quick)
    if arguments.resume and arguments.json.exists():
        earlier = load(arguments.json)
        if (earlier.machine, earlier.versions) != (run.machine, run.versions):
            sys.exit(f"{arguments.json} is of another machine or of other versions: {earlier.versions}")
        run.results, run.quick = earlier.results, earlier.quick or run.quick

    effort = QUICK if arguments.quick else Effort()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    ends = time.monotonic() + 60 * arguments.minutes if arguments.minutes else None
    took: dict[str, float] = {}
    for turn in range(rounds):
        for row in rows:
            result = run.results.setdefault(row.name, Result(row, {}))
            if result.rounds > turn:
                continue
            began = time.monotonic()
            if ends is not None and began + took.get(row.name, 0) > ends:
                say(f"{row.name} is left at {result.rounds} of {rounds} rounds: the time is over")
                continue
            measure(result, loops, effort)
            took[row.name] = time.monotonic() - began
            cells = [f"{loop} {report.cost_cell(result, loop)}" for loop in loops]
            say(f"{turn + 1}/{rounds} {report.title(result)}: {', '.join(cells)}")
            if arguments.json:
                run.save(arguments.json)
    run.results = {work: result for work, result in run.results.items() if result.rounds}
    return run


def main() -> None:
    arguments = parse()
    runs = [load(path) for path in arguments.files] or [take(arguments)]
    results, loops = together(runs)
    print(report.as_text(report.costs(results, loops)), end="\n\n")
    print(report.as_text(report.rates(results, loops)), end="\n\n")
    print("\n".join([*filter(None, [report.standing(results)]), *report.failures(results)]))
    if arguments.report:
        report.write_markdown(arguments.report, runs)


if __name__ == "__main__":
    main()
