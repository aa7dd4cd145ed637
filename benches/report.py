"""Results as tables: costs as shares of the baseline's, then throughput."""

from __future__ import annotations

import datetime
import os
import platform
import tomllib
from collections.abc import Sequence
from pathlib import Path

import mioloop
from mioloop.bench import quantity as time_quantity

from .loops import BASELINE, OURS, version
from .results import Result, Run, together
from .rows import ROWS

Table = list[list[str]]

NOTES = Path(__file__).with_name("notes.toml")
# The table that `make pyperformance` has written last, if it has.
PYPERFORMANCE = Path(__file__).with_name("results") / "pyperformance.md"
# And that of `make bench-floor`.
FLOOR = PYPERFORMANCE.with_name("floor.md")


def ratio(result: Result, loop: str) -> float | None:
    cost, base = result.cost(loop), result.cost(BASELINE)
    return cost / base if cost is not None and base else None


def best_peer(result: Result) -> str | None:
    peers = {
        loop: cost for loop in result.samples if (cost := result.cost(loop)) is not None and loop != OURS
    }
    return min(peers, key=peers.__getitem__) if peers else None


def quantity(result: Result, cost: float) -> str:
    if result.row.measure == "bytes":
        return f"{cost / 1024:.2f} KiB"
    return time_quantity(cost)


def title(result: Result) -> str:
    return result.row.name + (" (wall)" if result.row.measure == "wall" else "")


def cost_cell(result: Result, loop: str) -> str:
    cost, share = result.cost(loop), ratio(result, loop)
    if cost is None:
        return "failed" if loop in result.failures else "–"
    if loop == BASELINE or share is None:
        return quantity(result, cost)
    return f"{share:.2f}"


def costs(results: Sequence[Result], loops: Sequence[str], bold: bool = False) -> Table:
    """Costs as shares of the baseline's, whose own cell holds the cost itself."""
    table = [["work", *loops, "best peer", f"{OURS} to best", "first goal"]]
    for result in results:
        best = best_peer(result)
        ours, theirs = result.cost(OURS), result.cost(best) if best else None
        to_best = f"{ours / theirs:.2f}" if ours is not None and theirs else "–"
        goal = "–" if result.row.goal is None else f"{result.row.goal:.2f}"
        cells = [cost_cell(result, loop) for loop in loops]
        if bold and OURS in loops and meets_goal(result):
            place = loops.index(OURS)
            cells[place] = f"**{cells[place]}**"
        table.append([title(result), *cells, best or "–", to_best, goal])
    return table


def meets_goal(result: Result) -> bool:
    share = ratio(result, OURS)
    # As printed: what the table shows as equal is equal.
    return share is not None and result.row.goal is not None and round(share, 2) <= result.row.goal


def rates(results: Sequence[Result], loops: Sequence[str]) -> Table:
    table = [["operations per second", *loops]]
    for result in results:
        cells = [f"{rate:,.0f}" if (rate := result.rate(loop)) is not None else "–" for loop in loops]
        if result.row.measure != "bytes":
            table.append([title(result), *cells])
    return table


def failures(results: Sequence[Result]) -> list[str]:
    return [
        f"{title(result)}: {loop}: {reason}" for result in results for loop, reason in result.failures.items()
    ]


def standing(results: Sequence[Result]) -> str | None:
    """Where ours stands, in one sentence."""
    pairs = [
        (ours, theirs)
        for result in results
        if (ours := result.cost(OURS)) is not None
        and (best := best_peer(result)) is not None
        and (theirs := result.cost(best)) is not None
    ]
    if not pairs:
        return None
    goals = [result for result in results if result.row.goal is not None and ratio(result, OURS) is not None]
    cheaper = sum(a < b for a, b in pairs)
    met = sum(map(meets_goal, goals))
    return (
        f"{OURS} costs less than the best of the others in {cheaper} of {len(pairs)} rows, "
        f"and meets its first goal in {met} of {len(goals)}."
    )


def as_text(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    header, *body = table
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body))


def describe_machine() -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    libc = " ".join(platform.libc_ver())
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, {libc}"


def describe_versions(loops: Sequence[str]) -> str:
    def describe(loop: str) -> str:
        # It was optimised by profile, which an editable build is not.
        wheel = loop == OURS and "site-packages" in (mioloop.__file__ or "")
        return f"{loop} {version(loop)}{' (its wheel)' if wheel else ''}"

    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([python, *(describe(loop) for loop in loops if loop != "asyncio")])


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def notes(path: Path = NOTES) -> list[str]:
    """The hand-written notes, in the order of the rows."""
    written: dict[str, str] = tomllib.loads(path.read_text())
    names = [row.name for row in ROWS]
    if strangers := written.keys() - set(names):
        raise ValueError(f"{path.name} has notes on rows that are not there: {', '.join(sorted(strangers))}")
    return [f"**{name}.** {written[name].strip()}" for name in names if name in written]


def describe(run: Run) -> str:
    rounds = sorted({result.rounds for result in run.results.values()})
    samples = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"{rounds[0]}"
    quick = " **A quick look, not a measurement.**" if run.quick else ""
    rows = f"{len(run.results)} rows, medians of {samples} samples"
    return f"{run.date}, {run.machine}; {run.versions}: {rows}.{quick}"


def write_markdown(path: Path, runs: Sequence[Run]) -> None:
    """The report for the documentation, with its plot beside it."""
    from .plot import draw

    results, loops = together(runs)
    picture = path.with_suffix(".svg")
    draw(picture, results, loops)
    measured = [describe(run) for run in runs if run.results]
    parts = [
        "# Benchmarks",
        "<!-- Made by `make bench` and `make bench-report`; notes on rows belong in benches/notes.toml. -->",
        *(["**Some of this is a quick look, not a measurement.**"] if any(run.quick for run in runs) else []),
        standing(results),
        f"![Cost of each piece of work on each loop as a share of {BASELINE}'s]({picture.name})",
        f"Process CPU (user and system) per operation, as a share of {BASELINE}'s, whose own column has the "
        "cost itself; lower is better. Rows marked (wall) are elapsed time, the memory row is private "
        "memory. In rows with a network the figure is the server process's alone. *Best peer* is the "
        f"cheapest loop but {OURS}, *first goal* the share of {BASELINE}'s cost that the project aims at; "
        f"in bold where {OURS} is at or below it.",
        as_markdown(costs(results, loops, bold=True)),
        *(["## Notes on single rows", *written] if (written := notes()) else []),
    ]
    if FLOOR.exists():
        parts += [
            "## TLS without a loop",
            "What OpenSSL takes by itself: a server of blocking sockets and the interpreter's `ssl`, a "
            "thread for each connection, beside the two loops in the same run. `SSLObject` works between "
            "two memory BIOs, which is the only way that `ssl` has for an event loop; `SSLSocket` has the "
            "socket itself. Threads that take turns cost something too, so the rows with one connection "
            "say most. `make bench-floor` repeats it.",
            FLOOR.read_text().strip(),
        ]
    parts += ["## Throughput", as_markdown(rates(results, loops))]
    if PYPERFORMANCE.exists():
        parts += [
            "## pyperformance",
            "pyperformance's asyncio benchmarks on asyncio's own loop and on mioloop, compared by pyperf: "
            "wall time, client and server in one process. `make pyperformance` repeats it.",
            PYPERFORMANCE.read_text().strip(),
        ]
    parts += [
        "## How this was measured",
        "\n".join(f"- {line}" for line in measured),
        "Each sample was taken in a process of its own, the loops taking turns, round by round. Servers were "
        "kept on one core and their load on another; every echoed byte was checked. The load is a Rust "
        "program of the repository, `benches/load`, and wrk for HTTP. `make bench` repeats it.",
    ]
    if failed := failures(results):
        parts += ["## What failed", "\n".join(f"- {line}" for line in failed)]
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
