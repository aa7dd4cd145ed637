"""pyperformance's asyncio benchmarks on asyncio's own loop and on mioloop, compared by pyperf.

    python -m benches.pyperformance --output FOLDER [--table FILE] [-- more of pyperformance's options]

pyperformance runs each benchmark in a virtual environment that it makes, with next to no environment
variables. PYTHONPATH can be let through, so the switch of loops is a folder on it: mioloop and a
`sitecustomize` that installs it. The benchmarks are not touched. That the hook ran in a benchmark's process,
and not only somewhere, is checked: it leaves a mark there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("asyncio", "asyncio_tcp", "asyncio_tcp_ssl", "asyncio_websockets", "tornado_http")
TREES = [
    f"async_tree{eager}{kind}{group}"
    for eager in ("", "_eager")
    for kind in ("", "_cpu_io_mixed", "_io", "_memoization")
    for group in ("", "_tg")
]

HOOK = """\
import pathlib, sys
import mioloop
mioloop.install()
if any(argument.endswith("run_benchmark.py") for argument in sys.orig_argv):
    pathlib.Path(__file__).with_name("used").touch()
"""


def run(command: list[str], folder: Path, **environment: str) -> None:
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, **environment})


def put_hook(folder: Path) -> None:
    """Makes `folder` one that, on PYTHONPATH, has every Python process run on mioloop."""
    import mioloop

    shutil.rmtree(folder, ignore_errors=True)
    package = Path(mioloop.__file__).parent
    suffixes = ("__pycache__", "*.pyi")
    shutil.copytree(package, folder / "mioloop", ignore=shutil.ignore_patterns(*suffixes))
    # mioloop asks for its own version, which an installed package has in its metadata.
    metadata = importlib.metadata.distribution("mioloop").read_text("METADATA")
    about = folder / f"mioloop-{mioloop.__version__}.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text(metadata or "")
    (folder / "sitecustomize.py").write_text(HOOK)


def available(python: str) -> list[str]:
    """Those of the benchmarks that this Python has: some need a newer one."""
    listed = subprocess.run(
        [python, "-m", "pyperformance", "list", "-b", "all"], check=True, capture_output=True, text=True
    ).stdout
    names = {line[2:].strip() for line in listed.splitlines() if line.startswith("- ")}
    return [name for name in (*TREES, *BENCHMARKS) if name in names]


def main() -> None:
    parser = argparse.ArgumentParser("python -m benches.pyperformance")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="for results and environments"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the comparison there (markdown)")
    parser.add_argument("--benchmarks", help="separated by commas; default: all about asyncio that there are")
    parser.add_argument("rest", nargs="*", help="pyperformance's own options, as --fast, after a --")
    arguments = parser.parse_args()
    folder: Path = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    hook = folder / "hook"
    put_hook(hook)
    names = arguments.benchmarks or ",".join(available(sys.executable))
    for loop in ("asyncio", "mioloop"):
        results = folder / f"{loop}.json"
        results.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pyperformance", "run", "-b", names, "-o", str(results)]
        command += arguments.rest
        if loop == "mioloop":
            run([*command, "--inherit-environ", "PYTHONPATH"], folder, PYTHONPATH=str(hook))
            if not (hook / "used").exists():
                sys.exit("the benchmarks did not run on mioloop: the hook was not called")
        else:
            run(command, folder)
    compare = [sys.executable, "-m", "pyperf", "compare_to", "asyncio.json", "mioloop.json"]
    compare += ["--table", "--table-format", "md"]
    compared = subprocess.run(compare, check=True, cwd=folder, capture_output=True, text=True).stdout
    # A table for each of pyperformance's groups, and one of all at the end.
    table = compared[compared.rindex("| Benchmark") :]
    print(table)
    if arguments.table:
        arguments.table.write_text(table)


if __name__ == "__main__":
    main()
