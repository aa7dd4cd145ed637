"""Programs and libraries that people run on an event loop, each in its current release, on real servers.

What they need is the dependency group `programs`; a test whose libraries are missing says so and is skipped,
except under CI, where everything has to run. `python -m tests.integration.programs` prints the versions.
"""
