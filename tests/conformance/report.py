"""Compares what the standard loop and ours came to, and says so.

The measure is the standard loop: every test that it passes has to pass on ours. A test that ours skips, or
that never ran, is missing just as one that fails, and so is what goes wrong outside of any test on ours
alone.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from . import exclusions
from .exclusions import PREFIX
from .supervisor import Outcome, Result

ABSENT = Outcome("failed", "did not run")


@dataclass(frozen=True)
class Comparison:
    """One module on both loops."""

    module: str
    standard: Result
    ours: Result

    @property
    def expected(self) -> list[str]:
        return self.standard.named("passed")

    @property
    def missing(self) -> dict[str, Outcome]:
        wanted = {test: self.ours.outcomes.get(test, ABSENT) for test in self.expected}
        # Only what is no test has a space in its name: a fixture, or "module <exit>".
        outside = [name for name in self.ours.named("failed") if " " in name]
        wanted |= {name: self.ours.outcomes[name] for name in outside if name not in self.standard.outcomes}
        return {test: outcome for test, outcome in wanted.items() if outcome.status != "passed"}

    @property
    def passed(self) -> int:
        return sum(self.ours.outcomes.get(test, ABSENT).status == "passed" for test in self.expected)

    @property
    def unproven(self) -> list[str]:
        """Tests that passed without a loop of ours though the standard run made loops: no proof of ours."""
        return [
            test
            for test in self.ours.named("passed")
            if (standard := self.standard.outcomes.get(test, ABSENT).loops)
            and not self.ours.outcomes[test].loops.keys() - standard.keys()
        ]

    def lines(self, verbose: bool) -> list[str]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.ours.loops().items())) or "none"
        found = [
            f"{self.module.removeprefix(PREFIX):26} passed {self.passed}/{len(self.expected)}"
            f"  failed {len(self.ours.named('failed'))}  skipped {len(self.ours.named('skipped'))}"
            f"  excluded {len(self.ours.excluded)}  loops: {kinds}  {self.ours.seconds:.1f} s"
        ]
        missing = self.missing
        if unrun := [test for test, outcome in missing.items() if outcome is ABSENT]:
            found.append(f"    {len(unrun)} tests did not run")
        for test, outcome in missing.items():
            if outcome is ABSENT:
                continue
            why = f"skipped: {outcome.detail}" if outcome.status == "skipped" else outcome.detail
            found.append(f"    {self._short(test)}: {why}")
            if verbose and outcome.traceback:
                found += [f"        {line}" for line in outcome.traceback.rstrip().splitlines()]
        for test in self.standard.named("failed"):
            detail = self.standard.outcomes[test].detail
            found.append(f"    (standard loop fails) {self._short(test)}: {detail}")
        found += [f"    (passed without a loop of ours) {self._short(test)}" for test in self.unproven]
        return found

    def _short(self, test: str) -> str:
        return test.removeprefix(self.module + ".").removeprefix(PREFIX)


@dataclass(frozen=True)
class Summary:
    """The whole run."""

    loop: str
    comparisons: list[Comparison]
    everything: bool  # all modules ran, so every exclusion had its chance

    @property
    def stale(self) -> list[str]:
        used = {entry for comparison in self.comparisons for entry in comparison.ours.excluded.values()}
        required = [entry.test for entry in exclusions.applicable() if not entry.backported]
        return [test for test in required if self.everything and test not in used]

    @property
    def succeeded(self) -> bool:
        wrong = any(comparison.missing or comparison.unproven for comparison in self.comparisons)
        return not wrong and not self.stale and any(comparison.expected for comparison in self.comparisons)

    def lines(self) -> list[str]:
        expected = sum(len(comparison.expected) for comparison in self.comparisons)
        passed = sum(comparison.passed for comparison in self.comparisons)
        missing = sum(len(comparison.missing) for comparison in self.comparisons)
        loops = sum((comparison.ours.loops() for comparison in self.comparisons), Counter[str]()).total()
        found = [f"exclusion that names no test: {entry}" for entry in self.stale]
        name = self.loop.partition(":")[0]
        total = f"total: standard loop {expected}, {name} {passed}, missing {missing}"
        return [*found, f"{total}; {loops} loops of {name}"]

    def as_json(self) -> dict[str, Any]:
        return {
            "loop": self.loop,
            "total": {
                "standard": sum(len(comparison.expected) for comparison in self.comparisons),
                "passed": sum(comparison.passed for comparison in self.comparisons),
                "missing": sum(len(comparison.missing) for comparison in self.comparisons),
            },
            "modules": {
                comparison.module.removeprefix(PREFIX): {
                    "standard": asdict(comparison.standard),
                    "ours": asdict(comparison.ours),
                    "missing": sorted(comparison.missing),
                }
                for comparison in self.comparisons
            },
        }
