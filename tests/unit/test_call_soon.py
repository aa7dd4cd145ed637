"""call_soon: first in, first out, once each, in the right context, and never in the iteration that
scheduled it.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from typing import Any, ClassVar

import pytest

from .support import Caught, run_once

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("NAME", default="unset")


class Token:
    """Something that a weak reference can watch."""


def test_runs_in_order_and_once(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    for number in range(1000):
        loop.call_soon(log.append, number)
    run_once(loop)
    run_once(loop)
    assert log == list(range(1000))


def test_does_not_run_before_the_loop_does(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    loop.call_soon(log.append, 1)
    assert log == []
    run_once(loop)
    assert log == [1]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 20, 255])
def test_passes_positional_arguments(loop: asyncio.AbstractEventLoop, count: int) -> None:
    log: list[tuple[object, ...]] = []
    loop.call_soon(lambda *args: log.append(args), *range(count))
    run_once(loop)
    assert log == [tuple(range(count))]


def test_arguments_are_passed_by_identity(loop: asyncio.AbstractEventLoop) -> None:
    log: list[object] = []
    argument = object()
    loop.call_soon(log.append, argument)
    run_once(loop)
    assert log[0] is argument


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
def test_keyword_arguments_are_refused(loop: Any, method: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        getattr(loop, method)(print, x=1)


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
def test_a_callback_is_required(loop: Any, method: str) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        getattr(loop, method)()


def test_the_callback_may_be_a_keyword(loop: Any) -> None:
    log: list[str] = []
    loop.call_soon(callback=lambda: log.append("called"))
    run_once(loop)
    assert log == ["called"]


class Adder:
    """Callables of every sort: bound, class and static methods, instances."""

    log: ClassVar[list[object]] = []

    def bound(self, value: object) -> None:
        self.log.append(value)

    @classmethod
    def of_class(cls, value: object) -> None:
        cls.log.append(value)

    @staticmethod
    def static(value: object) -> None:
        Adder.log.append(value)

    def __call__(self, value: object) -> None:
        self.log.append(value)


def test_any_callable_will_do(loop: asyncio.AbstractEventLoop) -> None:
    Adder.log = []
    loop.call_soon(Adder().bound, 1)
    loop.call_soon(Adder.of_class, 2)
    loop.call_soon(Adder.static, 3)
    loop.call_soon(Adder(), 4)
    loop.call_soon(Adder.log.append, 5)
    loop.call_soon(type, 6)
    run_once(loop)
    assert Adder.log == [1, 2, 3, 4, 5]


@pytest.mark.normal_mode
def test_an_uncallable_is_reported_when_it_should_run(loop: Any, caught: Caught) -> None:
    handle = loop.call_soon(None, 1)
    run_once(loop)
    context = caught.take()
    assert context["message"].startswith("Exception in callback None(")
    assert isinstance(context["exception"], TypeError)
    assert str(context["exception"]) == "'NoneType' object is not callable"
    assert context["handle"] is handle


def test_what_a_callback_schedules_runs_in_the_next_iteration(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []

    def first() -> None:
        log.append("first")
        loop.call_soon(log.append, "third")

    loop.call_soon(first)
    loop.call_soon(log.append, "second")
    run_once(loop)
    assert log == ["first", "second"]
    run_once(loop)
    assert log == ["first", "second", "third"]


def test_a_chain_takes_one_link_each_iteration(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []

    def link(number: int) -> None:
        log.append(number)
        loop.call_soon(link, number + 1)

    loop.call_soon(link, 0)
    for number in range(200):
        run_once(loop)
        assert log == list(range(number + 1))


def test_two_chains_alternate(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []

    def link(name: str, left: int) -> None:
        log.append(name)
        if left:
            loop.call_soon(link, name, left - 1)
        elif name == "b":
            loop.stop()

    loop.call_soon(link, "a", 300)
    loop.call_soon(link, "b", 300)
    loop.run_forever()
    assert log == ["a", "b"] * 301


def test_the_current_context_is_copied_by_default(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []

    def callback() -> None:
        log.append(NAME.get())
        NAME.set("changed inside")

    context = contextvars.copy_context()
    context.run(NAME.set, "caller")
    context.run(loop.call_soon, callback)
    context.run(NAME.set, "changed later")
    run_once(loop)
    assert log == ["caller"]
    assert context[NAME] == "changed later"
    assert NAME.get() == "unset"


def test_each_call_copies_anew(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []

    def callback(name: str) -> None:
        log.append(NAME.get())
        NAME.set(name)

    loop.call_soon(callback, "a")
    loop.call_soon(callback, "b")
    run_once(loop)
    assert log == ["unset", "unset"]


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
def test_a_given_context_is_used_itself(loop: Any, method: str) -> None:
    context = contextvars.copy_context()
    getattr(loop, method)(NAME.set, "inside", context=context)
    run_once(loop)
    assert context[NAME] == "inside"
    assert NAME.get() == "unset"


def test_context_none_means_the_current_one(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    context = contextvars.copy_context()
    context.run(NAME.set, "caller")
    context.run(lambda: loop.call_soon(lambda: log.append(NAME.get()), context=None))
    run_once(loop)
    assert log == ["caller"]


def test_callbacks_that_share_a_context_see_each_other(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    context = contextvars.copy_context()
    loop.call_soon(NAME.set, "one", context=context)
    loop.call_soon(lambda: log.append(NAME.get()), context=context)
    run_once(loop)
    assert log == ["one"]


def test_a_nested_call_inherits_the_callbacks_context(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []
    context = contextvars.copy_context()

    def outer() -> None:
        NAME.set("outer")
        loop.call_soon(lambda: log.append(NAME.get()))

    loop.call_soon(outer, context=context)
    run_once(loop)
    run_once(loop)
    assert log == ["outer"]


def test_a_context_that_is_already_entered_is_an_error(
    loop: asyncio.AbstractEventLoop, caught: Caught
) -> None:
    context = contextvars.copy_context()
    called: list[int] = []
    loop.call_soon(called.append, 1, context=context)
    context.run(run_once, loop)
    error = caught.take()["exception"]
    assert isinstance(error, RuntimeError)
    assert "cannot enter context" in str(error)
    assert called == []


def test_the_context_is_left_after_an_exception(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    context = contextvars.copy_context()

    def fails() -> None:
        raise ValueError

    loop.call_soon(fails, context=context)
    run_once(loop)
    assert isinstance(caught.take()["exception"], ValueError)
    assert context.run(lambda: 5) == 5


def test_callback_and_arguments_die_after_the_run(loop: asyncio.AbstractEventLoop) -> None:
    token = Token()
    seen = weakref.ref(token)
    loop.call_soon(lambda _token: None, token)
    del token
    assert seen() is not None
    run_once(loop)
    run_once(loop)
    gc.collect()
    assert seen() is None


def test_a_callback_may_schedule_many(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []

    def burst() -> None:
        for number in range(10_000):
            loop.call_soon(log.append, number)

    loop.call_soon(burst)
    run_once(loop)
    assert log == []
    run_once(loop)
    assert log == list(range(10_000))
