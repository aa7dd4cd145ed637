"""Writes docs/conformance.md from the results of several runs: ``python -m tests.conformance.page FILE...``.

Each file is what ``python -m tests.conformance --json FILE`` has written, on one Python in one mode.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

from . import exclusions

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"

HEAD = """\
# asyncio's own tests on mioloop

The interpreter's own `test.test_asyncio`, every test that the standard loop passes and that is not about the
standard loop's insides, run with each loop it makes replaced by mioloop's. A cell says how many of the
standard loop's tests pass: `59` means all of the 59, `58 of 59` that one is missing. This page is made by
`python -m tests.conformance.page`, from the results of `python -m tests.conformance --json FILE`.
"""


def column(run: dict[str, Any]) -> str:
    mode = [name for name, on in run["mode"].items() if on]
    return " ".join([run["python"], *mode])


def cell(passed: int, standard: int) -> str:
    return str(passed) if passed == standard else f"{passed} of {standard}"


def counts(module: dict[str, Any]) -> tuple[int, int]:
    standard = sum(outcome["status"] == "passed" for outcome in module["standard"]["outcomes"].values())
    return standard - len(module["missing"]), standard


def table(runs: list[dict[str, Any]]) -> list[str]:
    names = sorted({name for run in runs for name in run["modules"]})
    lines = [
        "| module | " + " | ".join(column(run) for run in runs) + " |",
        "|---|" + "---:|" * len(runs),
    ]
    for name in names:
        modules = [run["modules"].get(name) for run in runs]
        cells = [cell(*counts(module)) if module else "" for module in modules]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    totals = [cell(run["total"]["passed"], run["total"]["standard"]) for run in runs]
    return [*lines, "| **all** | " + " | ".join(f"**{total}**" for total in totals) + " |"]


def missing(runs: list[dict[str, Any]]) -> list[str]:
    return [
        f"- {column(run)}: `{test}`"
        for run in runs
        for module in run["modules"].values()
        for test in module["missing"]
    ]


def versions(entry: exclusions.Exclusion) -> str:
    if (entry.first, entry.last) == ((3, 11), (3, 99)):
        return "all"
    first, last = (f"{major}.{minor}" for major, minor in (entry.first, entry.last))
    return f"{first} to {last}" if entry.last < (3, 99) else f"{first} and later"


def page(runs: list[dict[str, Any]]) -> str:
    lost = missing(runs)
    lines = [
        HEAD,
        f"{platform.system()}, {platform.machine()}. `debug` is asyncio's debug mode "
        "(`PYTHONASYNCIODEBUG=1`), `strict` is `-X dev -W error::ResourceWarning`.\n",
        *table(runs),
        "",
        "## Missing\n",
        *(lost or ["None."]),
        "",
        "## Left out\n",
        "Tests of the standard loop's private parts, each by name:\n",
        "| test | Pythons | reason |",
        "|---|---|---|",
        *(f"| `{entry.test}` | {versions(entry)} | {entry.reason} |" for entry in exclusions.TESTS),
        "",
        "Whole modules about the standard loops' insides: "
        + "; ".join(f"`{name}` ({reason})" for name, reason in exclusions.INSIDES.items())
        + f". Of the classes that run one mixin once for each selector, `{exclusions.DEFAULT_VARIANT}` stands"
        " for all: mioloop has no selector to choose.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    runs = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    if not runs:
        raise SystemExit(__doc__)
    PAGE.write_text(page(runs))


if __name__ == "__main__":
    main()
