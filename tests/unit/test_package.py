"""The package's few names: run, install, new_event_loop, the policy. They are uvloop's, with uvloop's
signatures.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.metadata
import inspect
import os
import subprocess
import sys
import sysconfig
from typing import Any

import pytest

import mioloop

from .support import SAFETY

with_policies = pytest.mark.skipif(sys.version_info >= (3, 16), reason="Python 3.16 has no policies any more")


def child(script: str, *options: str) -> tuple[str, str, int]:
    """What is installed for a whole process belongs in a fresh one: its output, errors and status."""
    command = [sys.executable, "-W", "error", *options, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SAFETY)
    return result.stdout, result.stderr, result.returncode


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_the_names() -> None:
    for name in ("Loop", "new_event_loop", "run", "install", "EventLoopPolicy"):
        if name == "EventLoopPolicy" and sys.version_info >= (3, 16):
            continue
        assert name in mioloop.__all__
        assert callable(getattr(mioloop, name))
    assert mioloop.__version__ == importlib.metadata.version("mioloop")


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="^module 'mioloop' has no attribute 'nothing'$"):
        mioloop.nothing  # noqa: B018


def test_every_public_method_of_the_abstract_loop() -> None:
    """None is left to AbstractEventLoop, where it would raise NotImplementedError."""
    for name in vars(asyncio.AbstractEventLoop):
        if not name.startswith("_"):
            assert getattr(mioloop.Loop, name) is not getattr(asyncio.AbstractEventLoop, name), name


def test_new_event_loop() -> None:
    one, other = mioloop.new_event_loop(), mioloop.new_event_loop()
    try:
        assert type(one) is mioloop.Loop
        assert one is not other
        assert not one.is_running()
    finally:
        one.close()
        other.close()


def test_the_class_makes_loops_and_has_heirs() -> None:
    class Heir(mioloop.Loop):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def call_soon(self, callback: Any, *args: Any, **options: Any) -> asyncio.Handle:  # type: ignore[override]
            calls.append(callback)
            return super().call_soon(callback, *args, **options)

    calls: list[Any] = []
    loop = Heir("heir")
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert calls == [loop.stop]
    assert loop.name == "heir"


# run


def test_run_returns_the_result() -> None:
    async def main() -> str:
        assert isinstance(asyncio.get_running_loop(), mioloop.Loop)
        return "result"

    assert mioloop.run(main()) == "result"


def test_run_raises_the_exception() -> None:
    async def main() -> None:
        raise LookupError("from main")

    with pytest.raises(LookupError, match="from main"):
        mioloop.run(main())


def test_run_closes_the_loop() -> None:
    assert mioloop.run(running_loop()).is_closed()


def test_run_cancels_what_is_left() -> None:
    log: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            log.append("cancelled")

    async def main() -> None:
        log.append(str(asyncio.ensure_future(background()).done()))
        await asyncio.sleep(0)

    mioloop.run(main())
    assert log == ["False", "cancelled"]


def test_run_in_debug_mode() -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert mioloop.run(main(), debug=True) is True
    assert mioloop.run(main(), debug=False) is False


def test_run_with_a_loop_factory() -> None:
    assert isinstance(
        mioloop.run(running_loop(), loop_factory=asyncio.SelectorEventLoop), asyncio.SelectorEventLoop
    )


def test_run_inside_a_running_loop() -> None:
    async def main() -> None:
        coroutine = running_loop()
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop$"):
            mioloop.run(coroutine)
        coroutine.close()

    mioloop.run(main())


@pytest.mark.parametrize("wrong", [None, 5, running_loop])
def test_run_of_no_coroutine(wrong: Any) -> None:
    error = (TypeError, ValueError)  # asyncio's Runner changed its mind
    with pytest.raises(
        error, match="a coroutine was expected, got|An asyncio.Future, a coroutine or an awaitable"
    ):
        mioloop.run(wrong)


def test_the_signature_of_run() -> None:
    parameters = inspect.signature(mioloop.run).parameters
    assert list(parameters) == ["main", "loop_factory", "debug"]
    assert parameters["loop_factory"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["debug"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["debug"].default is None


def test_a_runner() -> None:
    with asyncio.Runner(loop_factory=mioloop.new_event_loop) as runner:
        assert isinstance(runner.get_loop(), mioloop.Loop)
        assert runner.run(running_loop()) is runner.run(running_loop())


# install and the policy, each in an interpreter of its own, where every warning is an error


@with_policies
def test_install() -> None:
    script = """
import asyncio, mioloop

async def main():
    assert type(asyncio.get_running_loop()) is mioloop.Loop

mioloop.install()
asyncio.run(main())
loop = asyncio.new_event_loop()
assert type(loop) is mioloop.Loop
loop.close()
mioloop.install()
asyncio.run(main())
print("installed")
"""
    assert child(script) == ("installed\n", "", 0)


@with_policies
def test_the_policy() -> None:
    script = """
import asyncio, mioloop, warnings

policy = mioloop.EventLoopPolicy()
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # asyncio's own, of the function called
    asyncio.set_event_loop_policy(policy)
    assert asyncio.get_event_loop_policy() is policy
    assert isinstance(policy, asyncio.AbstractEventLoopPolicy)

async def main():
    assert type(asyncio.get_running_loop()) is mioloop.Loop
    assert asyncio.get_event_loop() is asyncio.get_running_loop()

asyncio.run(main())
loop = policy.new_event_loop()
assert type(loop) is mioloop.Loop
policy.set_event_loop(loop)
assert policy.get_event_loop() is loop
policy.set_event_loop(None)
loop.close()
print("set")
"""
    assert child(script) == ("set\n", "", 0)


def test_importing_it_changes_nothing() -> None:
    script = """
import asyncio, mioloop

async def main():
    assert not isinstance(asyncio.get_running_loop(), mioloop.Loop)

asyncio.run(main())
print("nothing changed")
"""
    assert child(script) == ("nothing changed\n", "", 0)


def test_in_place_of_uvloop() -> None:
    script = """
import asyncio
import ctypes
import mioloop as uvloop

async def main():
    return type(asyncio.get_running_loop()) is uvloop.Loop

print(uvloop.run(main()))
"""
    assert child(script) == ("True\n", "", 0)


def test_a_fork_after_the_import() -> None:
    """The child has a loop of its own, and the parent's stays whole."""
    script = """
import asyncio, mioloop, os, warnings

warnings.simplefilter("ignore", DeprecationWarning)  # of forking in a process with threads

async def main(text):
    await asyncio.sleep(0.001)
    print(text, flush=True)

loop = mioloop.new_event_loop()
loop.run_until_complete(main("parent"))
pid = os.fork()
if pid == 0:
    mioloop.run(main("child"))
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
loop.run_until_complete(main("parent again"))
loop.close()
"""
    assert child(script) == ("parent\nchild\nparent again\n", "", 0)


def test_types_are_published() -> None:
    folder = os.path.dirname(mioloop.__file__)
    assert os.path.exists(os.path.join(folder, "py.typed"))


@pytest.mark.skipif(
    not (3, 13) <= sys.version_info < (3, 15),
    reason="where a module definition says it, and is what was used",
)
def test_the_core_asks_for_the_interpreter_lock() -> None:
    """Without the lock its state would be unprotected. The answer is in slot Py_mod_gil of the definition."""
    py_mod_gil, used, offset_of_slots = 4, 0, 9 * ctypes.sizeof(ctypes.c_void_p)
    get_definition = ctypes.pythonapi.PyModule_GetDef
    get_definition.restype, get_definition.argtypes = ctypes.c_void_p, [ctypes.py_object]
    definition = get_definition(mioloop._core)
    slots = ctypes.c_void_p.from_address(definition + offset_of_slots).value
    assert slots is not None
    answers = {}
    while number := ctypes.c_int.from_address(slots).value:
        value = ctypes.c_void_p.from_address(slots + ctypes.sizeof(ctypes.c_void_p)).value
        answers[number] = value or 0
        slots += 2 * ctypes.sizeof(ctypes.c_void_p)
    assert answers[py_mod_gil] == used


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter always has the lock"
)
def test_the_import_turns_the_interpreter_lock_on() -> None:
    script = "import sys, mioloop; print(sys._is_gil_enabled())"
    assert child(script, "-W", "ignore") == ("True\n", "", 0)
