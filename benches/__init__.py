"""mioloop beside the other event loops, on the same work, in the same run.

    python -m benches                      every row on every loop that is installed
    python -m benches --rows 'echo|queue' --loops mioloop,uvloop --rounds 9
    python -m benches.instructions         instructions per operation, against the stored counts

The measure is the CPU time of the process under test (user and system) per operation: on a machine with other
things to do it is steadier than the clock, and it is what a user pays for. Rows marked (wall) take the clock
instead, since their work happens in other processes, and the memory row takes bytes.

A sample is one loop doing one row's work in a process of its own. Loops take turns, round by round, so that
a machine that slows down slows them all; a row's figure is the median over the rounds. Servers run on one
core and what loads them on another. The other loops are never needed: one that can't be imported is left
out.

How it fits together: `row` says what a row is; `micro`, `network`, `http` and `process` hold the rows;
`worker` is the fresh process that a sample runs in; `runner` starts workers and load; `report` and `plot`
show the results; `load/` is the network load, a Rust program. Linux only, as it reads other processes' CPU
clocks.
"""
