"""The interpreter's own `test.test_asyncio`, run on another event loop.

`python -m tests.conformance` (from the project's root) runs each module of the installed test package
twice: on the standard loop, which gives the baseline, and with every loop that the tests make replaced by
ours. A test that the baseline passes and ours does not is *missing*; with none missing the exit status is
0. A test that fails or is skipped on the standard loop is not held against ours.

    __main__.py     the command line
    exclusions.py   what is left out, each with its reason: the only such place
    replace.py      turns the standard loop's class into a maker of our loops
    child.py        the process that runs tests and streams what they came to
    supervisor.py   starts children, times them out, resumes after a crash or a hang
    baseline.py     remembers the standard loop's results on an unchanged machine
    report.py       compares the two runs
    test_runner.py  tests of all this, on tiny modules of their own
"""
