"""Work for profile-guided optimisation: every row once on mioloop, in processes that live to write a profile.

The wheel build runs this with an instrumented mioloop (see `tools/wheels`). A sample of the benchmark itself
ends its server with SIGKILL, which leaves no profile.
"""

from __future__ import annotations

import signal
import tempfile

from .load_program import LoadFailed
from .loops import OURS
from .row import InProcess, Target
from .rows import ROWS
from .runner import QUICK, cores, missing, read_line, worker


def main() -> None:
    # A shell has its background jobs ignore it, and what is ignored stays so in the processes below.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    core, load_core = cores()
    for row in ROWS:
        if missing(row):
            continue
        with tempfile.TemporaryDirectory(prefix="benches-") as folder:
            options = ["--folder", folder, "--seconds", str(QUICK.in_process)]
            with worker(row, OURS, options, core) as process:
                address = read_line(process)
                if not isinstance(row, InProcess):
                    try:
                        row.load(Target(address, process.pid, load_core, QUICK.served, QUICK.warmup))
                    except LoadFailed as failure:
                        # An instrumented server is slow; the profile of what it did is as good.
                        print(f"{row.name}: {failure}", flush=True)
                    process.send_signal(signal.SIGINT)
                process.wait(30)


if __name__ == "__main__":
    main()
