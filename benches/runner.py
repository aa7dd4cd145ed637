"""Takes the samples: a fresh process for each, loops in turn, round by round."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mioloop.bench import FACTORIES

from .load_program import LoadFailed, last_line
from .results import Result
from .row import InProcess, Sample, Served, Target


@dataclass(frozen=True)
class Effort:
    """How long each part of a sample takes, in seconds. Another round tells more than a longer sample."""

    in_process: float = 0.2
    samples: int = 3
    served: float = 1.2
    warmup: float = 0.3


QUICK = Effort(in_process=0.05, samples=1, served=0.4, warmup=0.1)


class SampleFailed(Exception):
    """A loop could not do a row's work; the text is the reason to print."""


def cores() -> tuple[int | None, int | None]:
    """One core for the process under test and another for what loads it; none where there is only one.

    The first and the last, as neighbours in number are often two threads of one physical core.
    """
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[-1]) if len(usable) > 1 else (None, None)


def measure(result: Result, loops: Sequence[str], effort: Effort) -> None:
    """Takes one round of a row: a sample of each loop."""
    # Whoever comes first in one round comes last in the next.
    first = result.rounds % len(loops)
    for loop in (*loops[first:], *loops[:first]):
        if loop in result.failures:
            continue
        try:
            result.samples.setdefault(loop, []).append(take_sample(result.row, loop, effort))
        except SampleFailed as reason:
            result.failures[loop] = str(reason)
            result.samples.pop(loop, None)
    result.rounds += 1


def missing(row: InProcess | Served) -> list[str]:
    """What a row needs and the machine hasn't."""
    programs = [] if isinstance(row, InProcess) else row.programs
    programs = [program for program in programs if shutil.which(program) is None]
    return programs + [module for module in row.modules if importlib.util.find_spec(module) is None]


def take_sample(row: InProcess | Served, loop: str, effort: Effort) -> Sample:
    core, load_core = cores()
    if isinstance(row, InProcess):
        options = ["--seconds", str(effort.in_process), "--samples", str(effort.samples)]
        with worker(row, loop, options, core if row.pinned else None) as process:
            return Sample(**json.loads(read_line(process)))
    with (
        tempfile.TemporaryDirectory(prefix="benches-") as folder,
        worker(row, loop, ["--folder", folder], core) as process,
    ):
        address = read_line(process)
        try:
            return row.load(Target(address, process.pid, load_core, effort.served, effort.warmup))
        except (LoadFailed, OSError) as error:
            raise SampleFailed(str(error)) from error


@contextlib.contextmanager
def worker(
    row: InProcess | Served, loop: str, options: Sequence[str], core: int | None
) -> Iterator[subprocess.Popen[str]]:
    """The process under test, ended when the block is left; a failure tells what it last complained of."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    command = [sys.executable, "-m", "benches.worker", FACTORIES[loop], row.name, *options]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=pin)
        try:
            yield process
        except SampleFailed as failure:
            process.kill()
            errors.seek(0)
            raise SampleFailed(last_line(errors.read()) or str(failure)) from failure
        finally:
            process.kill()
            process.communicate()


def read_line(process: subprocess.Popen[str], timeout: float = 30) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(timeout):
            raise SampleFailed(f"hung for {timeout:.0f} s")
    line = process.stdout.readline().strip()
    if not line:
        raise SampleFailed(f"ended with exit code {process.wait()}")
    return line
