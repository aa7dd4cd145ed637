"""create_future, create_task and task factories."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import sys
from typing import Any

import pytest

from .support import Caught, run, run_once

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("NAME", default="unset")


async def answer() -> int:
    return 42


def test_create_future(loop: asyncio.AbstractEventLoop) -> None:
    future = loop.create_future()
    assert isinstance(future, asyncio.Future)
    assert future.get_loop() is loop
    assert not future.done()


def test_done_callbacks_run_in_order_in_the_next_iteration(loop: asyncio.AbstractEventLoop) -> None:
    log: list[int] = []
    future = loop.create_future()
    for number in range(5):
        future.add_done_callback(functools.partial(lambda number, _future: log.append(number), number))
    loop.call_soon(future.set_result, None)
    run_once(loop)
    assert log == []
    run_once(loop)
    assert log == [0, 1, 2, 3, 4]


def test_create_task(loop: asyncio.AbstractEventLoop) -> None:
    task = loop.create_task(answer())
    assert isinstance(task, asyncio.Task)
    assert task.get_loop() is loop
    assert not task.done()
    assert loop.run_until_complete(task) == 42


def test_create_task_takes_a_name(loop: asyncio.AbstractEventLoop) -> None:
    task = loop.create_task(answer(), name="its name")
    assert task.get_name() == "its name"
    unnamed = loop.create_task(answer())
    assert unnamed.get_name().startswith("Task-")
    loop.run_until_complete(asyncio.gather(task, unnamed))


def test_create_task_takes_a_context(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        NAME.set("inside")

    context = contextvars.copy_context()
    loop.run_until_complete(loop.create_task(main(), context=context))
    assert context[NAME] == "inside"
    loop.run_until_complete(loop.create_task(main()))
    assert NAME.get() == "unset"


def test_create_task_refuses_other_keywords(loop: Any) -> None:
    coroutine = answer()
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        loop.create_task(coroutine, colour="red")
    coroutine.close()


@pytest.mark.parametrize("wrong", [None, 5, answer, "text"])
def test_create_task_takes_coroutines_alone(loop: Any, wrong: object) -> None:
    with pytest.raises(TypeError, match="^a coroutine was expected, got "):
        loop.create_task(wrong)


def test_tasks_take_turns(loop: asyncio.AbstractEventLoop) -> None:
    log: list[str] = []

    async def worker(name: str) -> None:
        for _ in range(3):
            log.append(name)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(worker("a"), worker("b"), worker("c"))

    run(loop, main())
    assert log == ["a", "b", "c"] * 3


def test_current_task_and_all_tasks(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        other = loop.create_task(asyncio.sleep(3600))
        assert {task, other} <= asyncio.all_tasks()
        other.cancel()
        await asyncio.wait([other])
        assert other not in asyncio.all_tasks()

    run(loop, main())
    assert asyncio.all_tasks(loop) == set()
    assert asyncio.current_task(loop) is None


def test_a_lost_exception_is_reported(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    async def fails() -> None:
        raise ValueError("nobody asked")

    loop.create_task(fails())
    run_once(loop)
    run_once(loop)
    context = caught.take()
    assert context["message"] == "Task exception was never retrieved"
    assert str(context["exception"]) == "nobody asked"


def test_a_future_with_a_lost_exception_is_reported(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    loop.create_future().set_exception(ValueError("nobody asked"))
    assert caught.take()["message"] == "Future exception was never retrieved"


def test_a_pending_task_that_dies_is_reported(loop: asyncio.AbstractEventLoop, caught: Caught) -> None:
    async def waits() -> None:
        await loop.create_future()

    task = loop.create_task(waits())
    run_once(loop)
    coroutine = task.get_coro()
    assert coroutine is not None
    del task
    coroutine.close()
    del coroutine
    gc.collect()
    assert caught.take()["message"] == "Task was destroyed but it is pending!"
    gc.collect()  # the report brought the task back to life for a moment


# task factories


class MarkedTask(asyncio.Task[Any]):
    """A task class of the program's own."""


def make_marked(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Future[Any]:
    return MarkedTask(coro, loop=loop, **kwargs)


def test_the_task_factory_makes_every_task(loop: asyncio.AbstractEventLoop) -> None:
    assert loop.get_task_factory() is None
    loop.set_task_factory(make_marked)
    assert loop.get_task_factory() is make_marked

    async def main() -> None:
        assert isinstance(asyncio.current_task(), MarkedTask)
        assert isinstance(asyncio.create_task(answer(), name="a"), MarkedTask)
        assert isinstance(asyncio.ensure_future(answer()), MarkedTask)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    loop.set_task_factory(None)
    assert loop.get_task_factory() is None
    task = loop.create_task(answer())
    assert not isinstance(task, MarkedTask)
    loop.run_until_complete(task)


def test_the_task_factory_is_given_name_and_context(loop: asyncio.AbstractEventLoop) -> None:
    loop.set_task_factory(make_marked)
    context = contextvars.copy_context()

    async def main() -> None:
        NAME.set("inside")

    task = loop.create_task(main(), name="its name", context=context)
    assert task.get_name() == "its name"
    loop.run_until_complete(task)
    assert context[NAME] == "inside"


def test_a_task_factory_that_fails(loop: asyncio.AbstractEventLoop) -> None:
    def fails(_loop: object, _coro: object, **_kwargs: object) -> asyncio.Future[Any]:
        raise LookupError("no task")

    loop.set_task_factory(fails)
    coroutine = answer()
    with pytest.raises(LookupError, match="no task"):
        loop.create_task(coroutine)
    coroutine.close()
    loop.set_task_factory(None)


@pytest.mark.parametrize("wrong", [5, "text", object()])
def test_a_task_factory_has_to_be_callable(loop: Any, wrong: object) -> None:
    with pytest.raises(TypeError, match="^task factory must be a callable or None$"):
        loop.set_task_factory(wrong)
    assert loop.get_task_factory() is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_task_factory(loop: Any) -> None:
    log: list[object] = []

    async def at_once() -> int:
        log.append("ran at once")
        return 5

    async def blocks() -> None:
        log.append("started at once")
        await asyncio.sleep(0)
        log.append("went on later")

    async def main() -> None:
        task = asyncio.create_task(at_once(), name="done")
        assert task.done()
        assert task.result() == 5
        assert task.get_name() == "done"
        waiting = asyncio.create_task(blocks())
        assert not waiting.done()
        log.append("main")
        await waiting

    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    run(loop, main())
    loop.set_task_factory(None)
    assert log == ["ran at once", "started at once", "main", "went on later"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="the keyword came with Python 3.14")
def test_eager_start(loop: Any) -> None:
    async def main() -> None:
        task = loop.create_task(answer(), eager_start=True)
        assert task.done()
        assert task.result() == 42
        lazy = loop.create_task(answer(), eager_start=False)
        assert not lazy.done()
        assert await lazy == 42

    run(loop, main())


@pytest.mark.skipif(sys.version_info < (3, 14), reason="from Python 3.14 on the factory gets every keyword")
def test_the_task_factory_gets_keywords_of_the_callers_own(loop: Any) -> None:
    seen: dict[str, object] = {}

    def make(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        seen.update(kwargs)
        return asyncio.Task(coro, loop=loop)

    loop.set_task_factory(make)
    loop.run_until_complete(loop.create_task(answer(), name="n", colour="red"))
    assert seen == {"name": "n", "colour": "red"}


def test_task_groups_and_timeouts(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> list[int]:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer()) for _ in range(10)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(3600)
        return [task.result() for task in tasks]

    assert run(loop, main()) == [42] * 10


# what a program puts in the place of asyncio's classes


def test_the_task_class_is_looked_up_each_time(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, object]] = []

    class Replaced(asyncio.Task[Any]):
        def __init__(self, coro: Any, **options: Any) -> None:
            made.append(options)
            super().__init__(coro, **options)

    before = loop.create_task(answer())
    monkeypatch.setattr(asyncio.tasks, "Task", Replaced)
    task = loop.create_task(answer(), name="named")
    monkeypatch.undo()
    after = loop.create_task(answer())
    assert [type(each) is Replaced for each in (before, task, after)] == [False, True, False]
    assert task.get_name() == "named"
    assert made[0]["loop"] is loop
    for each in (before, task, after):
        assert loop.run_until_complete(each) == 42


def test_the_future_class_is_looked_up_each_time(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Replaced(asyncio.Future[Any]):
        pass

    monkeypatch.setattr(asyncio.futures, "Future", Replaced)
    replaced = loop.create_future()
    monkeypatch.undo()
    assert type(replaced) is Replaced
    assert replaced.get_loop() is loop
    assert type(loop.create_future()) is asyncio.Future


def test_a_subclass_of_the_loop_may_make_tasks_itself(loop_factory: Any) -> None:
    made: list[str] = []
    new_loop = loop_factory()
    base: Any = type(new_loop)
    new_loop.close()

    class Loop(base):  # type: ignore[misc]
        def create_task(self, coro: Any, **options: Any) -> Any:
            made.append("task")
            return super().create_task(coro, **options)

        def create_future(self) -> Any:
            made.append("future")
            return super().create_future()

        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
            made.append("call")
            return super().call_soon(callback, *args, context=context)

    loop = Loop()
    assert loop.run_until_complete(answer()) == 42
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    assert set(made) == {"task", "future", "call"}


def test_create_task_on_a_closed_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.close()
    coroutine = answer()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.create_task(coroutine)
    coroutine.close()


@pytest.mark.parametrize("arguments", [(), (None, None), (None, None, None)])
def test_create_task_takes_one_argument(loop: Any, arguments: tuple[object, ...]) -> None:
    with pytest.raises(TypeError, match="create_task\\(\\)"):
        loop.create_task(*arguments)


def test_create_task_with_everything_by_name(loop: Any) -> None:
    async def main() -> str:
        return NAME.get()

    context = contextvars.copy_context()
    context.run(NAME.set, "given")
    first = loop.create_task(coro=main(), name="one", context=context)
    second = loop.create_task(main(), **{"".join(["na", "me"]): "two", "context": context})
    assert [first.get_name(), second.get_name()] == ["one", "two"]
    for task in (first, second):
        assert loop.run_until_complete(task) == "given"


def test_where_a_task_was_made_in_debug_mode(loop: Any) -> None:
    loop.set_debug(True)
    task, future = loop.create_task(answer()), loop.create_future()
    assert task._source_traceback[-1].name == "test_where_a_task_was_made_in_debug_mode"
    assert future._source_traceback[-1].name == "create_future"
    assert loop.run_until_complete(task) == 42


def test_the_task_factory_as_an_attribute(loop: Any) -> None:
    assert loop._task_factory is None
    loop._task_factory = make_marked
    assert loop.get_task_factory() is make_marked
    task = loop.create_task(answer())
    assert type(task) is MarkedTask
    loop._task_factory = None
    assert loop.get_task_factory() is None
    assert loop.run_until_complete(task) == 42
