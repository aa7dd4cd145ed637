"""The hot methods take their arguments in a way of their own, and still as Python functions do."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import pickle
from typing import Any

import pytest

from .support import run_once

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("NAME", default="unset")

METHODS: dict[str, tuple[object, ...]] = {
    "call_soon": (),
    "call_soon_threadsafe": (),
    "call_later": (0,),
    "call_at": (0,),
}

every_method = pytest.mark.parametrize("method", METHODS)


def named_context() -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(NAME.set, "given")
    return context


@every_method
@pytest.mark.parametrize("count", range(7))
def test_context_behind_any_number_of_arguments(loop: Any, method: str, count: int) -> None:
    log: list[object] = []

    def callback(*args: object) -> None:
        log.append((NAME.get(), args))

    getattr(loop, method)(*METHODS[method], callback, *range(count), context=named_context())
    getattr(loop, method)(*METHODS[method], callback, *range(count), context=None)
    run_once(loop)
    assert log == [("given", tuple(range(count))), ("unset", tuple(range(count)))]


@every_method
def test_a_name_that_is_not_the_interned_one(loop: Any, method: str) -> None:
    log: list[str] = []
    name = "".join(["con", "text"])
    getattr(loop, method)(*METHODS[method], lambda: log.append(NAME.get()), **{name: named_context()})
    run_once(loop)
    assert log == ["given"]


@every_method
def test_all_by_name(loop: Any, method: str) -> None:
    log: list[str] = []
    names = {"call_later": ("delay",), "call_at": ("when",)}.get(method, ())
    options = dict(zip(names, METHODS[method], strict=True))
    getattr(loop, method)(context=named_context(), callback=lambda: log.append(NAME.get()), **options)
    run_once(loop)
    assert log == ["given"]


@every_method
@pytest.mark.parametrize("options", [{"x": 1}, {"x": 1, "context": None}, {"contexts": None}])
def test_other_names_are_refused(loop: Any, method: str, options: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=rf"{method}\(\) got an unexpected keyword argument"):
        getattr(loop, method)(*METHODS[method], print, **options)
    number: Any = {1: 2}
    with pytest.raises(TypeError, match="keywords must be strings"):
        getattr(loop, method)(*METHODS[method], print, **number)


@every_method
def test_an_argument_given_twice(loop: Any, method: str) -> None:
    with pytest.raises(TypeError, match=rf"{method}\(\) got multiple values for argument 'callback'"):
        getattr(loop, method)(*METHODS[method], print, callback=print)


@every_method
def test_missing_arguments(loop: Any, method: str) -> None:
    with pytest.raises(TypeError, match=rf"{method}\(\) missing \d required positional arguments?: '"):
        getattr(loop, method)()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'callback'"):
        getattr(loop, method)(*METHODS[method], context=None)


def test_two_are_missing(loop: Any) -> None:
    with pytest.raises(TypeError, match="missing 2 required positional arguments: 'delay' and 'callback'"):
        loop.call_later()


@every_method
def test_a_context_that_is_none(loop: Any, method: str) -> None:
    """What is no context is found out at the latest when the callback shall run."""
    seen: list[object] = []
    loop.set_exception_handler(lambda _loop, context: seen.append(context["exception"]))
    getattr(loop, method)(*METHODS[method], print, context=5)
    run_once(loop)
    assert isinstance(seen[0], TypeError | AttributeError)


@pytest.mark.mioloop_only(reason="asyncio's are Python functions")
@pytest.mark.parametrize(
    "method",
    [*METHODS, "create_task", "create_future", "time", "get_debug", "is_running", "is_closed"],
)
def test_signature_and_documentation(loop: Any, method: str) -> None:
    """What programs look at: the same parameters as asyncio's own, and a text."""
    ours = inspect.signature(getattr(loop, method))
    theirs = inspect.signature(getattr(asyncio.BaseEventLoop, method))
    assert list(ours.parameters) == list(theirs.parameters)[1:]
    assert inspect.getdoc(getattr(loop, method))
    function = getattr(type(loop), method)
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("method", ["create_future", "time", "get_debug", "is_running", "is_closed"])
def test_no_arguments_are_taken(loop: Any, method: str) -> None:
    with pytest.raises(TypeError, match=rf"{method}\(\) takes "):
        getattr(loop, method)(1)


@pytest.mark.parametrize("method", [*METHODS, "create_task", "time"])
def test_a_method_of_another_object(loop: Any, method: str) -> None:
    """Called through the class, with what is no loop."""
    with pytest.raises((TypeError, AttributeError)):
        getattr(type(loop), method)(object(), *METHODS.get(method, ()), print)
