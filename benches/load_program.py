"""Builds and runs the load generator, and anything else that has to stay off the server's core."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .row import Sample, Target

MANIFEST = Path(__file__).with_name("load") / "Cargo.toml"


class LoadFailed(Exception):
    """The load broke off: the server did something wrong, or could not be reached."""


@functools.cache
def build() -> str:
    """Compiles the generator where it isn't up to date; cargo says where the program is."""
    # Among the project's other build output, unless told otherwise.
    environment = {"CARGO_TARGET_DIR": str(MANIFEST.parents[2] / "target" / "load"), **os.environ}
    options = ["--release", "--locked", "--quiet", "--message-format=json", "--manifest-path", str(MANIFEST)]
    output = subprocess.run(
        ["cargo", "build", *options], check=True, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout
    artifacts = [json.loads(line) for line in output.splitlines()]
    return next(str(artifact["executable"]) for artifact in artifacts if artifact.get("executable"))


def last_line(text: str) -> str:
    """The one that says what went wrong, in what a failed program has written."""
    return text.strip().rpartition("\n")[2]


def run_on_core(command: Sequence[str], core: int | None, timeout: float) -> str:
    """Runs a command on one core and returns its output."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, preexec_fn=pin)
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"no end after {timeout:.0f} s") from None
    if done.returncode != 0:
        raise LoadFailed(last_line(done.stderr) or f"exit code {done.returncode}")
    return done.stdout


def load_with(
    mode: str, size: int = 1024, connections: int = 50, depth: int = 1, lines: bool = False
) -> Callable[[Target], Sample]:
    """A load of the generator's; its options are described in `load/src/options.rs`."""

    def load(target: Target) -> Sample:
        command = [
            *(build(), mode, target.address),
            *("--server", str(target.pid)),
            *("--connections", str(connections)),
            *("--size", str(size)),
            *("--depth", str(depth)),
            *("--warmup", str(target.warmup)),
            *("--seconds", str(target.seconds)),
        ]
        if lines:
            command.append("--lines")
        result = json.loads(run_on_core(command, target.core, timeout=60))
        operations = result["operations"]
        latency = result["latency_us"]
        return Sample(
            cost=result["server_cpu"] / operations,
            rate=operations / result["seconds"],
            p50_us=latency["p50"],
            p99_us=latency["p99"],
        )

    return load
