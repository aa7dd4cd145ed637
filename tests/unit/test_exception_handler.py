"""call_exception_handler and the default handler, as programs call and replace them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from .support import Caught


def loop_class(loop_factory: Any) -> Any:
    """The class of the loop under test, for a program that derives its own from it."""
    loop = loop_factory()
    loop.close()
    return type(loop)


def test_set_and_get(loop: asyncio.AbstractEventLoop) -> None:
    def handler(_loop: object, _context: object) -> None: ...

    loop.set_exception_handler(handler)
    assert loop.get_exception_handler() is handler
    loop.set_exception_handler(None)
    assert loop.get_exception_handler() is None


@pytest.mark.parametrize("wrong", [5, "text", object()])
def test_it_has_to_be_callable(loop: Any, wrong: object) -> None:
    before = loop.get_exception_handler()
    with pytest.raises(TypeError, match="^A callable object or None is expected, got "):
        loop.set_exception_handler(wrong)
    assert loop.get_exception_handler() == before


def test_it_is_called_with_loop_and_context(loop: asyncio.AbstractEventLoop) -> None:
    log: list[tuple[object, object]] = []
    loop.set_exception_handler(lambda *args: log.append(args))
    context = {"message": "something happened"}
    loop.call_exception_handler(context)
    assert len(log) == 1
    assert log[0][0] is loop
    assert log[0][1] is context


def test_the_default_handler_logs(loop: asyncio.AbstractEventLoop, caught: Caught, caplog: Any) -> None:
    loop.set_exception_handler(None)
    error = ValueError("what happened")
    loop.call_exception_handler({"message": "It broke", "exception": error, "second": 2, "first": "one"})
    context = caught.take()
    assert context["message"] == "It broke\nfirst: 'one'\nsecond: 2"
    assert context["exception"] is error
    assert caplog.records[-1].levelno == logging.ERROR


def test_the_default_handler_has_a_default_message(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    loop.default_exception_handler({"exception": ValueError()})
    assert caught.take()["message"] == "Unhandled exception in event loop"


def test_the_default_handler_logs_a_failed_callback(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    def fails() -> None:
        raise ValueError("logged")

    loop.set_exception_handler(None)
    loop.call_soon(fails)
    loop.call_soon(loop.stop)
    loop.run_forever()
    context = caught.take()
    assert context["message"].startswith("Exception in callback ")
    assert "\nhandle: <Handle " in context["message"]
    assert str(context["exception"]) == "logged"


def test_debug_mode_logs_where_the_handle_was_made(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    def reports() -> None:
        loop.call_exception_handler({"message": "from inside a callback"})

    loop.set_debug(True)
    loop.set_exception_handler(None)
    loop.call_soon(reports)
    loop.call_soon(loop.stop)
    loop.run_forever()
    message = caught.take()["message"]
    assert "Handle created at (most recent call last):" in message
    assert __file__ in message


def test_an_overridden_default_handler_is_used(loop_factory: Any) -> None:
    log: list[dict[str, Any]] = []

    class Loop(loop_class(loop_factory)):  # type: ignore[misc]
        def default_exception_handler(self, context: dict[str, Any]) -> None:
            log.append(context)

    loop = Loop()
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert isinstance(log[0]["exception"], ZeroDivisionError)


def test_an_overridden_call_exception_handler_is_used(loop_factory: Any) -> None:
    log: list[dict[str, Any]] = []

    class Loop(loop_class(loop_factory)):  # type: ignore[misc]
        def call_exception_handler(self, context: dict[str, Any]) -> None:
            log.append(context)

    loop = Loop()
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert isinstance(log[0]["exception"], ZeroDivisionError)


def test_a_default_handler_that_fails_is_logged(loop_factory: Any, caught: Caught) -> None:
    class Loop(loop_class(loop_factory)):  # type: ignore[misc]
        def default_exception_handler(self, context: dict[str, Any]) -> None:
            raise RuntimeError("the last resort failed")

    loop = Loop()
    loop.call_exception_handler({"message": "any"})
    loop.close()
    context = caught.take()
    assert context["message"] == "Exception in default exception handler"
    assert str(context["exception"]) == "the last resort failed"
