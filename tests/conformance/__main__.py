"""The command line: `python -m tests.conformance`, from the project's root."""

import argparse
import importlib.util
import json
import platform
import signal
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

from . import baseline, exclusions
from .report import Comparison, Summary
from .supervisor import Mode, Result, run_module

# The modules that take longest go first, so that no job is left alone with one at the end.
SLOW = ("test_subprocess", "test_tasks", "test_ssl", "test_taskgroups", "test_sslproto", "test_events")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description="asyncio's own tests on our loop"
    )
    option = parser.add_argument
    option("--loop", default="mioloop:new_event_loop", metavar="MODULE:FACTORY")
    option("--modules", metavar="NAMES", help="only these, separated by commas: test_tasks,test_ssl")
    option("--jobs", type=int, default=2, help="child processes at a time (default: %(default)s)")
    option(
        "--baseline-cache",
        type=Path,
        default=baseline.FOLDER,
        metavar="FOLDER",
        help="where the standard loop's results are kept (default: target/conformance)",
    )
    option("--debug", action="store_true", help="asyncio's debug mode, for both loops")
    option(
        "--strict",
        action="store_true",
        help="-X dev -W error::ResourceWarning for both loops; such a warning fails its test",
    )
    option("--verbose", action="store_true", help="print the traceback of each missing test")
    option("--json", type=Path, metavar="FILE", help="write every test's outcome here")
    return parser.parse_args()


def choose_modules(names: str | None) -> list[str]:
    known = {file.stem for file in baseline.test_folder().glob("test_*.py")} - set(exclusions.INSIDES)
    chosen = set(names.split(",")) if names else known
    if unknown := chosen - known:
        raise SystemExit(f"no such module, or one left out: {', '.join(sorted(unknown))}")
    order = {name: place for place, name in enumerate(SLOW)}
    return [
        exclusions.PREFIX + name
        for name in sorted(chosen, key=lambda name: (order.get(name, len(SLOW)), name))
    ]


def main() -> int:
    options = arguments()
    # Not imported here: what is under test may crash, and only the children are made for that.
    if importlib.util.find_spec(options.loop.partition(":")[0].partition(".")[0]) is None:
        raise SystemExit(f"--loop {options.loop}: no such module")
    mode = Mode(debug=options.debug, strict=options.strict)
    modules = choose_modules(options.modules)
    remembered = baseline.Baseline(options.baseline_cache, mode)
    stop = threading.Event()
    # Ended from outside, it still has children to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    standard: dict[str, Result] = {}
    ours: dict[str, Result] = {}
    comparisons: list[Comparison] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting: dict[Future[Result], tuple[dict[str, Result], str]] = {}
        try:
            for module in modules:
                for loop, results in ((None, standard), (options.loop, ours)):
                    known = remembered.get(module) if loop is None else None
                    if known:
                        results[module] = known
                    else:
                        waiting[pool.submit(run_module, module, loop, mode, stop=stop)] = (results, module)
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    results, module = waiting.pop(future)
                    results[module] = future.result()
                    if module in standard and module in ours:
                        comparison = Comparison(module, standard[module], ours[module])
                        comparisons.append(comparison)
                        print(*comparison.lines(options.verbose), sep="\n", flush=True)
        except BaseException:
            stop.set()
            for future in waiting:
                future.cancel()
            raise
    remembered.add(standard.items())
    summary = Summary(options.loop, comparisons, everything=options.modules is None)
    print(*summary.lines(), sep="\n")
    if options.json:
        about = {"python": platform.python_version(), "mode": asdict(mode)}
        options.json.write_text(json.dumps(about | summary.as_json(), indent=1))
    return 0 if summary.succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
