"""For any program of calls and cancels, mioloop runs the callbacks in asyncio's order.

hypothesis invents a program; it runs on asyncio and on the loop under test, and the two logs must be
equal. Every timer is already due when it is set, and no two deadlines are equal (asyncio leaves their
order open), so no clock has a say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Log = list[tuple[object, ...]]

METHODS = ["soon", "threadsafe", "later", "at", "sleep"]
LONGEST = 200  # iterations; more than any program here takes


@dataclass
class Step:
    """One callback: how it is scheduled, what it schedules and cancels in turn."""

    method: str
    delay: int
    children: list[Step] = field(default_factory=list)
    cancels: list[int] = field(default_factory=list)
    raises: bool = False
    stops: bool = False


# A parent of 0 is the program itself; any other number picks one of the steps before.
SEEDS = st.tuples(
    st.sampled_from(METHODS),
    st.integers(0, 9),
    st.integers(0, 8),
    st.lists(st.integers(0, 60), max_size=2),
    st.sampled_from([False] * 9 + [True]),
    st.sampled_from([False] * 9 + [True]),
)


def grow(seeds: list[tuple[str, int, int, list[int], bool, bool]]) -> list[Step]:
    """A program as a tree: what its first callbacks are, and what each of them schedules in turn."""
    program: list[Step] = []
    steps: list[Step] = []
    for method, delay, parent, cancels, raises, stops in seeds:
        step = Step(method, delay, cancels=cancels, raises=raises, stops=stops)
        siblings = steps[-parent].children if 0 < parent <= len(steps) else program
        siblings.append(step)
        steps.append(step)
    return program


PROGRAMS: st.SearchStrategy[list[Step]] = st.lists(SEEDS, min_size=15, max_size=60).map(grow)


class Interpreter:
    """Runs a program on a loop and writes down what happened."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.log: Log = []
        self.handles: list[asyncio.Handle] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.scheduled = 0
        loop.set_exception_handler(
            lambda _loop, context: self.log.append(("error", str(context["exception"])))
        )

    def schedule(self, step: Step) -> None:
        number = self.scheduled
        self.scheduled += 1
        loop = self.loop
        if step.method == "soon":
            self.handles.append(loop.call_soon(self.perform, number, step))
        elif step.method == "threadsafe":
            self.handles.append(loop.call_soon_threadsafe(self.perform, number, step))
        elif step.method == "later":
            # A thousand seconds apart: a stall between two calls can't swap them.
            self.handles.append(loop.call_later(-1000 * step.delay, self.perform, number, step))
        elif step.method == "at":
            self.handles.append(loop.call_at(-1000 * step.delay - number, self.perform, number, step))
        else:
            self.tasks.append(loop.create_task(self.sleeper(number, step)))

    async def sleeper(self, number: int, step: Step) -> None:
        for _ in range(step.delay % 3):
            await asyncio.sleep(0)
        step_without_error = Step(step.method, 0, step.children, step.cancels, False, step.stops)
        self.perform(number, step_without_error)

    def perform(self, number: int, step: Step) -> None:
        self.log.append(("run", number))
        for index in step.cancels:
            if self.handles:
                self.handles[index % len(self.handles)].cancel()
        for child in step.children:
            self.schedule(child)
        if step.stops:
            self.loop.stop()
        if step.raises:
            raise ValueError(f"in {number}")

    def run(self, program: list[Step], cancelled_outside: list[int]) -> Log:
        try:
            for step in program:
                self.schedule(step)
            for index in cancelled_outside:
                if self.handles:
                    self.handles[index % len(self.handles)].cancel()
            for _ in range(LONGEST):
                self.log.append(("iteration",))
                self.loop.stop()
                self.loop.run_forever()
            return self.log
        finally:
            for task in self.tasks:
                assert task.done()
            self.loop.close()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=PROGRAMS, cancelled_outside=st.lists(st.integers(0, 20), max_size=3))
def test_same_order_as_asyncio_one_iteration_at_a_time(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], program: list[Step], cancelled_outside: list[int]
) -> None:
    reference = Interpreter(asyncio.SelectorEventLoop()).run(program, cancelled_outside)
    assert Interpreter(loop_factory()).run(program, cancelled_outside) == reference


def run_freely(loop: asyncio.AbstractEventLoop, program: list[Step]) -> Log:
    """The program in one run_forever, which a chain longer than any program stops at its end."""
    interpreter = Interpreter(loop)

    def last(left: int) -> None:
        if left:
            loop.call_soon(last, left - 1)
        else:
            loop.stop()

    try:
        for step in program:
            interpreter.schedule(step)
        loop.call_soon(last, LONGEST)
        loop.run_forever()
        assert all(task.done() for task in interpreter.tasks)
        return interpreter.log
    finally:
        loop.close()


def without_stops(program: list[Step]) -> list[Step]:
    return [
        Step(step.method, step.delay, without_stops(step.children), step.cancels, step.raises)
        for step in program
    ]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=PROGRAMS.map(without_stops))
def test_same_order_as_asyncio_in_one_run(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], program: list[Step]
) -> None:
    assert run_freely(loop_factory(), program) == run_freely(asyncio.SelectorEventLoop(), program)


def fire(loop: asyncio.AbstractEventLoop, microseconds: list[int], cancelled: set[int]) -> list[int]:
    """Sets timers that lie ahead, lets them all come due in a callback; the order in which they fire."""
    log: list[int] = []
    try:
        start = loop.time()
        timers = [loop.call_at(start + offset * 1e-6, log.append, offset) for offset in microseconds]
        for index in cancelled:
            timers[index % len(timers)].cancel()
        loop.call_soon(time.sleep, 0.0006)
        loop.call_soon(lambda: loop.call_soon(lambda: loop.call_soon(loop.stop)))
        loop.run_forever()
        return log
    finally:
        loop.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    microseconds=st.lists(st.integers(-500, 500), min_size=1, max_size=60, unique=True),
    cancelled=st.sets(st.integers(0, 60)),
)
def test_timers_ahead_fire_in_order(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], microseconds: list[int], cancelled: set[int]
) -> None:
    dead = {index % len(microseconds) for index in cancelled}
    expected = sorted(offset for index, offset in enumerate(microseconds) if index not in dead)
    assert fire(loop_factory(), microseconds, cancelled) == expected
