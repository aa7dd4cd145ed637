"""Makes the standard loop's class give out our loops instead.

asyncio makes loops in many ways: `asyncio.new_event_loop()`, the default policy, `asyncio.EventLoop`,
`asyncio.SelectorEventLoop(selector)`, `Runner` and `IsolatedAsyncioTestCase` without a factory. All of them
end in a call of one class, which asyncio's modules hold under several names and the default policy as
`_loop_factory`. All of these, found by identity, are given a stand-in whose metaclass answers the call with
our loop. It has to happen before a test module is imported, since some keep the class in attributes of
their own.

What is left alone, on purpose:
- subclasses of the standard class: a test that derives from it overrides private parts that only it has;
- `BaseEventLoop` and its subclasses (`test_utils.TestLoop`, loops with a mocked selector): these are the
  tests' own fakes, not loops that a program would run;
- programs that the tests start: they see an unpatched asyncio.
"""

import asyncio
import importlib
import sys
from asyncio import unix_events
from collections import Counter
from collections.abc import Callable
from typing import Any

STANDARD: Any = unix_events._UnixSelectorEventLoop

# The classes of the loops made where a test asked for a standard one, and how many; counted in both runs.
made: Counter[type] = Counter()


def load_factory(spec: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory named `module:attribute`."""
    module, _, name = spec.partition(":")
    factory: Callable[[], asyncio.AbstractEventLoop] = getattr(importlib.import_module(module), name)
    return factory


def install(factory: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
    """From now on a call of the standard class returns `factory()`; with None a standard loop, counted."""

    class Replaced(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls is not stand_in:
                return super().__call__(*args, **kwargs)
            if factory is None:
                loop = STANDARD(*args, **kwargs)
            else:
                for selector in (*args, *kwargs.values()):
                    if selector is not None:
                        selector.close()  # a standard loop would own it
                loop = factory()
            made[type(loop)] += 1
            return loop

        def __instancecheck__(cls, instance: object) -> bool:
            # Whether a loop is what asyncio.EventLoop makes has the answer that a program would get.
            return super().__instancecheck__(instance) or (cls is stand_in and type(instance) in made)

    stand_in = Replaced(STANDARD.__name__, (STANDARD,), {"__module__": STANDARD.__module__})
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "asyncio":
            for attribute, value in list(vars(module).items()):
                if value is STANDARD:
                    setattr(module, attribute, stand_in)
                elif isinstance(value, type) and vars(value).get("_loop_factory") is STANDARD:
                    value._loop_factory = stand_in  # type: ignore[attr-defined]
