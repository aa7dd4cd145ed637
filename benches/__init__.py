"""mioloop beside the other event loops, on the same work, in the same run.

    python -m benches                      every row on every loop that is installed
    python -m benches --rows 'echo|queue' --loops mioloop,uvloop --rounds 9
    python -m benches.instructions         instructions per operation, against the stored counts
    python -m benches.micro_pyperf         the in-process rows under pyperf, to compare two builds
    python -m benches.floor                what TLS costs without a loop
    python -m benches.pyperformance        pyperformance's asyncio benchmarks on both loops

`make bench` keeps its samples in `results/`, row by row: an interrupted run is taken up again with --resume,
and `make bench-report` puts the page together from the files that are there. What is to be said of a row
stands in `notes.toml`.

The measure is the CPU time of the process under test (user and system) per operation: on a machine with other
things to do it is steadier than the clock, and it is what a user pays for. Rows marked (wall) take the clock
instead, since their work happens in other processes, and the memory row takes bytes.

A sample is one loop doing one row's work in a process of its own. Loops take turns, round by round, so that
a machine that slows down slows them all; a row's figure is the median over the rounds. Servers run on one
core and what loads them on another. The other loops are never needed: one that can't be imported is left
out.

How it fits together: `row` says what a row is; `micro`, `network`, `http` and `process` hold the rows;
`worker` is the fresh process that a sample runs in; `runner` starts workers and load; `results` keeps what
they give; `report` and `plot` show it; `floor` has TLS servers without a loop; `load/` is the network load,
a Rust program; `train` is the work that the wheels are optimised for. Linux only, as it reads other
processes' CPU clocks.
"""
