"""Where a row's CPU time goes: `python -m benches.profile PATTERN`, by perf's samples of the process.

Each row that matches is run once on each loop given, and its cost split by what the processor was in: the
kernel, the interpreter, the C library, OpenSSL, or the loop's own library. What is left without the loop's
part is the floor that the notes of the page speak of: no loop of this kind could be below it.

Needs perf (Debian: linux-perf) and the right to use it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mioloop.bench import FACTORIES

from .loops import OURS
from .row import InProcess, Sample, Served, Target
from .rows import ROWS
from .runner import cores, read_line, worker

SECONDS = 4.0
PARTS = {
    "kernel": r"^\[",
    "interpreter": r"^(python|libpython)",
    "OpenSSL": r"^lib(ssl|crypto)|^_ssl",
    "C library": r"^(libc|ld-|libpthread|libm)",
    "the loop": r"^(_core|loop)\.",
}
"""By the object that the code stands in; what fits none is `other`: extension modules, the vdso."""


@contextmanager
def recorded(pid: int, counts: Counter[str]) -> Iterator[None]:
    """Adds up the samples of a process while the block runs, by the part they fell in."""
    with tempfile.NamedTemporaryFile(prefix="benches-") as file:
        command = [
            "perf",
            "record",
            "--quiet",
            "-e",
            "cpu-clock",
            "-F",
            "1999",
            "-o",
            file.name,
            "-p",
            str(pid),
        ]
        perf = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            yield
        finally:
            perf.terminate()
            _, errors = perf.communicate()
        report = subprocess.run(
            ["perf", "script", "-i", file.name, "-F", "ip,dso"], capture_output=True, text=True, check=False
        ).stdout
    if not report:
        sys.exit(f"perf recorded nothing: {errors}")
    for place in re.findall(r"\(([^()]+)\)\s*$", report, re.MULTILINE):
        name = Path(place).name if not place.startswith("[") else place
        counts[next((part for part, names in PARTS.items() if re.match(names, name)), "other")] += 1


def profile(row: InProcess | Served, loop: str) -> tuple[Sample | None, Counter[str]]:
    counts: Counter[str] = Counter()
    core, load_core = cores()
    if isinstance(row, InProcess):
        options = ["--seconds", str(SECONDS), "--samples", "1"]
        with worker(row, loop, options, core if row.pinned else None) as process:
            time.sleep(0.5)  # past its imports
            with recorded(process.pid, counts):
                read_line(process, timeout=10 * SECONDS)
        return None, counts
    with tempfile.TemporaryDirectory(prefix="benches-") as folder:
        with worker(row, loop, ["--folder", folder], core) as process:
            address = read_line(process)
            with recorded(process.pid, counts):
                sample = row.load(Target(address, process.pid, load_core, SECONDS, 0.5))
    return sample, counts


def main() -> None:
    parser = argparse.ArgumentParser("python -m benches.profile", description="Where a row's CPU time goes.")
    parser.add_argument("pattern", help="only rows that match this expression")
    parser.add_argument("--loops", default=f"{OURS},uvloop", help="separated by commas; default: %(default)s")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if re.search(arguments.pattern, row.name, re.IGNORECASE)]
    loops = arguments.loops.split(",")
    if not rows or set(loops) - FACTORIES.keys():
        parser.error("no row or no loop has such a name")
    for row in rows:
        for loop in loops:
            sample, counts = profile(row, loop)
            total = counts.total()
            cost = f", {sample.cost * 1e6:.1f} µs" if sample else ""
            parts = ", ".join(f"{part} {count / total:.0%}" for part, count in counts.most_common())
            print(f"{row.name}: {loop}{cost}: {parts}", flush=True)


if __name__ == "__main__":
    main()
