"""What the kernel has in memory is opened, read and looked at on the loop's thread; otherwise nobody can
tell."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mioloop import _core, fs
from mioloop.fs import _at_once

from .support import SAFETY, at_once, run, seen, until
from .test_fs_process import PRELUDE, child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can do this")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def anew() -> None:
    """Nothing was done at once yet, so that it is nobody else's turn."""
    for _ in range(65):
        _core._stat_at_once(b"/nowhere\0", "/nowhere", True)
    _core._others_had_turn(_core._refusal())
    _core._stat_at_once(b"/nowhere\0", "/nowhere", True)


@pytest.fixture(autouse=True)
def _anew() -> None:
    anew()


def is_opened_at_once(path: Path) -> bool:
    file = _core._open_at_once(os.fsencode(path), str(path), 0)
    if file is None:
        return False
    assert file.close(no_context) is True
    return True


def no_context() -> Any:
    raise AssertionError("it needs a thread")


@pytest.fixture(params=["here", "memory"])
def known(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file that is known to be local, and was read; not where the platform has no such thing.

    In memory is also on a mount of its own, which makes a difference: see `src/sys/found.rs`.
    """
    if request.param == "here":
        yield made_known(tmp_path)
        return
    memory = Path("/dev/shm")
    if not memory.is_mount() or not os.access(memory, os.W_OK):
        pytest.skip("there is no such mount here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield made_known(Path(folder))


def made_known(folder: Path) -> Path:
    path = folder / "file"
    path.write_bytes(b"one\ntwo\n")
    seen(path)
    asyncio.run(fs.read_bytes(path))
    if not is_opened_at_once(path):
        pytest.skip("not here: it takes Linux 6.8, and a local file system")
    return path


def test_it_waits_for_nothing(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    async def read() -> bytes:
        async with fs.open(known, "rb") as file:
            return await file.read()

    async def read_line() -> str:
        async with fs.open(known) as file:
            return await file.readline()

    async def main() -> None:
        link = known.with_name("link")
        link.symlink_to(known)
        assert link.is_file()
        await fs.lstat(link)
        assert at_once(fs.read_bytes(known)) == b"one\ntwo\n"
        assert at_once(fs.read_text(known, "utf-8")) == "one\ntwo\n"
        assert at_once(read()) == b"one\ntwo\n"
        assert at_once(read_line()) == "one\n"
        assert at_once(fs.stat(known)) == os.stat(known)
        assert at_once(fs.lstat(link)) == os.lstat(link)
        assert stat.S_ISLNK(at_once(fs.lstat(link)).st_mode)
        assert at_once(fs.exists(known)) and at_once(fs.isfile(known)) and at_once(fs.isdir(known.parent))
        assert at_once(fs.getsize(known)) == 8

    run(loop, main())


def test_what_is_surely_not_there(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    missing = known.with_name("missing")

    async def main() -> None:
        # The first look is the kernel's way to know.
        assert not await fs.exists(missing)
        try:
            _core._stat_at_once(os.fsencode(missing), str(missing), True)
        except FileNotFoundError:
            pass
        else:
            pytest.skip("this file system does not keep in mind what is not there")
        assert not at_once(fs.exists(missing))
        for attempt in (fs.read_bytes, fs.open, fs.stat):
            with pytest.raises(FileNotFoundError) as caught:
                at_once(attempt(missing))
            assert caught.value.args == (errno.ENOENT, os.strerror(errno.ENOENT))
            assert caught.value.filename == str(missing)
        missing.touch()
        assert await fs.read_bytes(missing) == b""

    run(loop, main())


def outcome(attempt: Callable[..., Any], *args: Any) -> Any:
    try:
        return attempt(*args)
    except OSError as error:
        return type(error), error.args, error.filename
    except ValueError:
        return ValueError


def read_theirs(path: Any) -> bytes:
    with open(path, "rb") as file:
        return file.read()


async def read_ours(path: Any) -> bytes:
    async with fs.open(path, "rb") as file:
        return await file.read()


@pytest.fixture
def tree(known: Path) -> Path:
    where = known.parent
    (where / "folder").mkdir()
    (where / "folder" / "inner").write_text("inner")
    (where / "empty").touch()
    (where / "secret").write_text("secret")
    (where / "secret").chmod(0)
    (where / "link").symlink_to("file")
    (where / "linklink").symlink_to("link")
    (where / "folderlink").symlink_to("folder")
    (where / "dangling").symlink_to("nowhere")
    (where / "circle").symlink_to("circle")
    (where / "device").symlink_to("/dev/null")
    (where / "process").symlink_to("/proc/self/cmdline")
    (where / "opened").symlink_to("/proc/self/fd")
    for path in ("file", "folder/inner"):
        seen(where / path)
    return where


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "file",
        "folder",
        "folder/",
        "folder/inner",
        "folderlink/inner",
        "folderlink/../file",
        "empty",
        "secret",
        "link",
        "linklink",
        "dangling",
        "circle",
        "device",
        "process",
        "missing",
        "missing/below",
        "file/",
        "file/below",
        "link/below",
        "x" * 300,
        "x/" * 3000,
        "\0",
        "",
    ],
)
@pytest.mark.parametrize("ours, theirs", [(fs.read_bytes, read_theirs), (read_ours, read_theirs)])
def test_results_and_errors_are_the_same(
    loop: asyncio.AbstractEventLoop,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    enabled: bool,
    name: str,
    ours: Any,
    theirs: Any,
) -> None:
    monkeypatch.setattr(_at_once, "enabled", enabled)
    monkeypatch.chdir(tree)
    # The second time the kernel knows what it did not know the first time.
    paths: list[Any] = [name, os.path.join(tree, name), os.fsencode(name), Path(name)]

    def in_loop(function: Any, path: Any) -> Any:
        return run(loop, function(path))

    for path in paths * 2:
        assert outcome(in_loop, ours, path) == outcome(theirs, path)
        assert outcome(in_loop, fs.stat, path) == outcome(os.stat, path)
        assert outcome(in_loop, fs.lstat, path) == outcome(os.lstat, path)
        assert run(loop, fs.exists(path)) == os.path.exists(path)


def test_a_descriptor_by_its_name(loop: asyncio.AbstractEventLoop, tree: Path) -> None:
    """A link of a kind of its own, which leads to a file that may have no name."""
    with (tree / "file").open("rb") as file:
        path = tree / "opened" / str(file.fileno())
        for _ in range(2):
            assert run(loop, fs.read_bytes(path)) == b"one\ntwo\n"
            assert run(loop, read_ours(path)) == b"one\ntwo\n"
        (tree / "file").unlink()
        assert run(loop, fs.read_bytes(path)) == b"one\ntwo\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_who_may_not_read(loop_factory: LoopFactory, known: Path) -> None:
    script = """
import tempfile

async def main():
    await fs.stat(path)
    try:
        os.seteuid(12345)
        os.stat(path)
    except OSError:
        print("cannot", flush=True)
        os._exit(0)
    for _ in range(2):
        for read in (fs.read_bytes, fs.open):
            try:
                await read(path)
            except PermissionError:
                print("no", end=" ")
        print((await fs.stat(path)).st_size)
    os.seteuid(0)

with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    path = os.path.join(folder, "secret")
    with open(path, "w") as file:
        file.write("secret")
    os.chmod(path, 0)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
"""
    result = child(loop_factory, script, known.parent)
    if result.stdout == "cannot\n":
        pytest.skip("root has not all its powers here")
    assert (result.returncode, result.stdout) == (0, "no no 6\n" * 2), result.stderr


def test_a_fifo_is_not_opened_to_see_what_it_is(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    fifo = known.with_name("fifo")
    os.mkfifo(fifo)
    # A reader that comes and goes would let the writer in.
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"written"), daemon=True)
    writer.start()
    name = os.fsencode(fifo)
    for _ in range(3):
        assert _core._open_at_once(name, str(fifo), 0) is None
        assert _core._read_at_once(name, str(fifo)) is None
        status = _core._stat_at_once(name, str(fifo), True)
        assert status is not None and stat.S_ISFIFO(status.st_mode)
        time.sleep(0.01)
        assert writer.is_alive()
    assert run(loop, fs.read_bytes(fifo)) == b"written"
    writer.join(SAFETY)


def test_files_that_are_not_local(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    for path in ("/proc/self/status", "/dev/null"):
        if not os.path.exists(path):
            continue
        for _ in range(2):
            assert not is_opened_at_once(Path(path))
            with open(path, "rb") as file:
                length = len(file.read())
            assert (len(run(loop, fs.read_bytes(path))) > 0) == (length > 0)


SIZES = [0, 1, 2, 4095, 4096, 65535, 65536, 65537, 131071, 131072, 131073, 300_000]


@pytest.mark.parametrize("size", SIZES)
def test_small_files_and_large_ones(loop: asyncio.AbstractEventLoop, known: Path, size: int) -> None:
    data = os.urandom(size)
    known.write_bytes(data)
    seen(known)

    async def main() -> None:
        anew()
        if size < 65536:
            assert at_once(fs.read_bytes(known)) == data
        else:
            assert await fs.read_bytes(known) == data
        assert await read_ours(known) == data

    run(loop, main())


STEPS: list[Any] = [*SIZES[:6], "read", "open", "stat", "delete", "cut", "unseen"]


@given(st.lists(st.sampled_from(STEPS), max_size=20))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_between(known: Path, steps: list[Any]) -> None:
    """As the standard library sees it, at every step."""

    async def main() -> None:
        for step in steps:
            if isinstance(step, int):
                known.write_bytes(os.urandom(step))
                seen(known)
            elif step == "delete":
                known.unlink(missing_ok=True)
            elif step == "cut" and known.exists():
                os.truncate(known, known.stat().st_size // 2)
            elif step == "unseen" and known.exists():
                seen(known, read=False)
            elif step in ("read", "open", "stat"):
                ours: Any = {"read": fs.read_bytes, "open": read_ours, "stat": fs.stat}[step]
                theirs: Any = os.stat if step == "stat" else read_theirs
                for attempt in range(2):
                    try:
                        result = await ours(known)
                    except OSError as error:
                        result = type(error), error.args, error.filename
                    expected = outcome(theirs, known)
                    if step == "stat" and isinstance(result, os.stat_result):
                        assert result.st_size == expected.st_size and result.st_ino == expected.st_ino
                    else:
                        assert result == expected, (step, attempt)
        known.write_bytes(b"")

    asyncio.run(main())


def test_a_read_that_is_taken_down_is_a_threads(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    if os.statvfs(known).f_flag & os.ST_NOATIME:
        pytest.skip("this file system takes nothing down")
    seen(known, read=False)
    if not isinstance(file := _core._read_at_once(os.fsencode(known), str(known)), _core.File):
        pytest.skip("this file system is memory")
    assert file.close(no_context) is True
    before = known.stat().st_atime_ns

    async def main() -> None:
        assert await fs.read_bytes(known) == b"one\ntwo\n"

    run(loop, main())
    assert known.stat().st_atime_ns > before


def test_what_is_not_in_the_page_cache(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    data = os.urandom(50_000)

    async def main() -> None:
        known.write_bytes(data)
        with known.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        seen(known)
        assert await fs.read_bytes(known) == data
        with known.open("rb") as file:
            # The first pages alone.
            os.posix_fadvise(file.fileno(), 8192, 0, os.POSIX_FADV_DONTNEED)
        assert await read_ours(known) == data

    run(loop, main())


def test_an_open_file_stays_the_same(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    other = known.with_name("other")

    async def main() -> None:
        file = at_once(fs.open(known, "rb"))
        other.write_bytes(b"other")
        other.replace(known)
        assert await file.read() == b"one\ntwo\n"
        # It was the last name of the file: to close it is to remove it, which takes a thread.
        closing = file.close()
        assert asyncio.isfuture(closing.send(None))
        closing.close()
        await file.close()
        assert await fs.read_bytes(known) == b"other"

    run(loop, main())


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 5000, 8192])
@pytest.mark.parametrize("after", [1, 3192, 4096, 100_000, -1])
@pytest.mark.parametrize("buffering", [-1, 4096])
def test_a_file_that_changes_before_it_is_read(
    loop: asyncio.AbstractEventLoop, known: Path, size: int, after: int, buffering: int
) -> None:
    data = os.urandom(size)

    async def main() -> None:
        known.write_bytes(data)
        seen(known)
        anew()
        file = at_once(fs.open(known, "rb", buffering))
        if after < 0:
            os.truncate(known, size // 2)
        else:
            with known.open("ab") as other:
                other.write(os.urandom(after))
                other.flush()
                os.fsync(other.fileno())
                # Not what was there before, as far as it shares no page with the rest.
                os.posix_fadvise(other.fileno(), size, 0, os.POSIX_FADV_DONTNEED)
        assert await file.read() == known.read_bytes()
        assert await file.read() == b""
        await file.close()

    run(loop, main())


def test_a_position_that_others_move(known: Path) -> None:
    async def main() -> None:
        for position in (0, 4, 8):
            anew()
            async with fs.open(known, "rb") as file:
                os.lseek(file.fileno(), position, os.SEEK_SET)
                assert await file.read() == b"one\ntwo\n"[position:]
                assert await file.read() == b""
            async with fs.open(known, "rb") as file:
                assert await file.seek(position) == position
                assert await file.read() == b"one\ntwo\n"[position:]

    asyncio.run(main())


@pytest.mark.parametrize("buffering", [-1, 0])
def test_the_descriptor_is_an_ordinary_one(known: Path, buffering: int) -> None:
    async def main() -> None:
        file = at_once(fs.open(known, "rb", buffering))
        with known.open("rb") as model:
            flags = fcntl.fcntl(model.fileno(), fcntl.F_GETFL)
        assert fcntl.fcntl(file.fileno(), fcntl.F_GETFL) == flags
        assert os.get_blocking(file.fileno()) and not os.get_inheritable(file.fileno())
        await file.close()

    asyncio.run(main())


def test_only_to_read(known: Path) -> None:
    async def main() -> None:
        for mode in ("r+b", "wb", "ab"):
            opening = fs.open(known, mode)
            assert asyncio.isfuture(opening.send(None))
            opening.close()
            async with fs.open(known, mode):
                pass

    asyncio.run(main())


def test_whoever_has_a_lease_is_not_waited_for(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    told = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(known, os.O_RDWR)

    async def main() -> None:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"no leases here: {error}")
        assert not is_opened_at_once(known)
        reading = asyncio.ensure_future(fs.read_bytes(known))
        await asyncio.sleep(0.02)
        assert not reading.done()
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert await reading == b"one\ntwo\n"

    try:
        run(loop, main())
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, told)


def test_others_have_their_turn(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    works: list[Any] = [
        lambda: fs.read_bytes(known),
        lambda: read_ours(known),
        lambda: fs.stat(known),
        lambda: fs.exists(known.with_name("missing")),
    ]

    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        await asyncio.sleep(0)
        for work in works:
            await work()
            before = turns
            for _ in range(1000):
                await work()
            assert turns - before >= 10
        task.cancel()

    run(loop, main())


def test_giving_way_takes_no_thread(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    def use_up() -> None:
        anew()
        for _ in range(63):
            at_once(fs.stat(known))

    async def main() -> None:
        for function in (fs.read_bytes, read_ours):
            use_up()
            work: Any = function(known)
            assert work.send(None) is None
            assert at_once(work) == b"one\ntwo\n"
        use_up()
        works: list[Any] = [fs.read_bytes(known) for _ in range(100)]
        for work in works:
            assert work.send(None) is None
        # In the next iteration each of them has its turn, and who asks for more not before the one after it.
        assert at_once(works[0]) == b"one\ntwo\n"
        for _ in range(63):
            at_once(fs.stat(known))
        for work in works[1:]:
            more: Any = fs.stat(known)
            assert more.send(None) is None
            more.close()
            assert at_once(work) == b"one\ntwo\n"

    run(loop, main())


def test_it_takes_a_loop(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for enabled in (True, False):
        monkeypatch.setattr(_at_once, "enabled", enabled)
        for function in (fs.read_bytes, fs.stat, fs.open):
            work: Any = function(known)
            with pytest.raises(RuntimeError, match="no running event loop"):
                work.send(None)


@pytest.fixture
def _no_descriptors_left() -> Iterator[None]:
    gc.collect()
    before = os.listdir("/proc/self/fd")
    yield
    assert set(os.listdir("/proc/self/fd")) <= set(before)


@pytest.mark.usefixtures("_no_descriptors_left")
def test_nothing_is_left_open(tree: Path) -> None:
    names = [*os.listdir(tree), "missing"]
    for _ in range(3):
        for name in names:
            path = os.fsencode(tree / name)
            for attempt in (
                lambda path=path, name=name: _core._open_at_once(path, name, 8192),
                lambda path=path, name=name: _core._read_at_once(path, name),
                lambda path=path, name=name: _core._stat_at_once(path, name, True),
                lambda path=path, name=name: _core._stat_at_once(path, name, False),
            ):
                result = outcome(attempt)
                if isinstance(result, _core.File):
                    assert result.close(no_context) is True


def test_cancelled(loop: asyncio.AbstractEventLoop, known: Path) -> None:
    """Before it has begun, or too late."""

    async def main() -> None:
        await fs.listdir(known.parent)
        before = len(os.listdir("/proc/self/fd"))
        for turns in range(3):
            task = asyncio.ensure_future(fs.open(known, "rb"))
            for _ in range(turns):
                await asyncio.sleep(0)
            assert task.cancel() == (turns < 1 or not task.done())
            await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled():
                await task.result().close()
            del task
        await until(lambda: len(os.listdir("/proc/self/fd")) == before)

    run(loop, main())


def test_audit_hooks_are_told_once(loop_factory: LoopFactory, known: Path) -> None:
    script = """
async def main():
    events = []
    await fs.read_bytes(path)
    sys.addaudithook(lambda event, args: events.append(args[1]) if args and args[0] == path else None)
    for enabled in (True, False):
        fs._at_once.enabled = enabled
        for _ in range(2):
            await fs.read_bytes(path)
            async with fs.open(path, "rb"):
                pass
            await fs.stat(path)
        print(events)
        events.clear()

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""
    result = child(loop_factory, script, known.parent)
    assert (result.returncode, result.stdout) == (0, "['r', 'r', 'r', 'r']\n" * 2), result.stderr


def test_a_forked_child(loop_factory: LoopFactory, known: Path) -> None:
    """It opens its own files, and not those that its parent has under the same numbers."""
    script = """
from mioloop import _core
asyncio.run(fs.read_bytes(path))
other = os.path.join(folder, "other")
with open(other, "wb") as file:
    file.write(b"other")
files = [open(other, "rb") for _ in range(20)]
if (pid := os.fork()) == 0:
    os.closerange(3, 50)
    os._exit(_core._read_at_once(os.fsencode(path), path) not in (b"one\\ntwo\\n", None))
for file in files:
    file.close()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    result = child(loop_factory, "import warnings; warnings.simplefilter('ignore')" + script, known.parent)
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


FORBID = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)

def forbid(number, error):
    # A filter of the kernel: this call fails, the others don't.
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | error), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
"""
READ = """
async def main():
    for _ in range(3):
        assert await fs.read_bytes(path) == b"one\\ntwo\\n"
        async with fs.open(path, "rb") as file:
            assert await file.read() == b"one\\ntwo\\n"
        assert (await fs.stat(path)).st_size == 8
    from mioloop import _core
    print([_core._read_at_once(os.fsencode(path), path), _core._stat_at_once(os.fsencode(path), path, True)])

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_a_kernel_or_a_container_that_does_not_allow_it(
    loop_factory: LoopFactory, known: Path, error: int
) -> None:
    forbid = f"forbid({437}, {error})\n"
    result = child(loop_factory, READ, known.parent, PRELUDE + FORBID + forbid)
    if "AssertionError: 22" in result.stderr:
        pytest.skip("this kernel has no filters")
    assert (result.returncode, result.stdout) == (0, "[None, None]\n"), result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change the root")
@pytest.mark.parametrize("near", [True, False])
def test_without_proc(loop_factory: LoopFactory, tmp_path: Path, near: bool) -> None:
    """What lies on another mount is opened by its name there."""
    before = (
        PRELUDE
        + f"near = {near}\n"
        + """
import ctypes, mioloop, encodings.idna
libc = ctypes.CDLL(None, use_errno=True)
far = os.path.join(folder, "far")
os.mkdir(far)
can = near or (
    libc.unshare(0x20000) == 0
    and libc.mount(None, b"/", None, 0x44000, None) == 0
    and libc.mount(b"x", far.encode(), b"tmpfs", 0, None) == 0
)
with open(os.path.join(folder if near else far, "file"), "wb") as file:
    file.write(b"one\\ntwo\\n")
try:
    os.chroot(folder if can else "/nowhere")
except OSError:
    print("cannot", flush=True)
    os._exit(0)
path = "/file" if near else "/far/file"
fs.open
"""
    )
    made_known(tmp_path)
    script = READ.replace(", _core._stat_at_once(os.fsencode(path), path, True)", "")
    result = child(loop_factory, script, tmp_path, before)
    if result.stdout == "cannot\n":
        pytest.skip("root has not all its powers here")
    expected = "[b'one\\ntwo\\n']\n" if near else "[None]\n"
    assert (result.returncode, result.stdout) == (0, expected), result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_a_file_system_that_does_not_answer(loop_factory: LoopFactory, known: Path) -> None:
    """FUSE, and nobody is there to answer: what may ask it is a thread's."""
    script = """
import ctypes, signal
from mioloop import _core
libc = ctypes.CDLL(None, use_errno=True)
try:
    fuse = os.open("/dev/fuse", os.O_RDWR)
except OSError:
    fuse = -1
private = libc.unshare(0x20000) == 0 and libc.mount(None, b"/", None, 0x44000, None) == 0
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
if not private or fuse < 0 or libc.mount(b"x", folder.encode(), b"fuse", 0, options) != 0:
    print("cannot mount", flush=True)
    os._exit(0)
signal.alarm(20)
for name in (folder, path):
    encoded = os.fsencode(name)
    print([_core._open_at_once(encoded, name, 0), _core._read_at_once(encoded, name)])
    print([_core._stat_at_once(encoded, name, True), _core._stat_at_once(encoded, name, False)])

async def main():
    waiting = [asyncio.ensure_future(function(path)) for function in (fs.stat, fs.open, fs.read_bytes)]
    await asyncio.sleep(0.02)
    print([work.done() for work in waiting], flush=True)
    libc.umount2(folder.encode(), 3)
    os._exit(0)

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""
    result = child(loop_factory, script, known.parent)
    if result.stdout == "cannot mount\n":
        pytest.skip("nothing can be mounted here")
    expected = "[None, None]\n" * 4 + "[False, False, False]\n"
    assert (result.returncode, result.stdout) == (0, expected), result.stderr


WATCH = """
import ctypes, struct, threading
from mioloop import _core
libc = ctypes.CDLL(None, use_errno=True)
watch = libc.fanotify_init(4, 0)
if watch < 0 or libc.fanotify_mark(watch, 1, ctypes.c_uint64(mask), -100, path.encode()) != 0:
    print("cannot watch", flush=True)
    os._exit(0)
signal.alarm(20)
asked = []

def allow():
    while True:
        events = os.read(watch, 4096)
        while events:
            length, _, _, _, mask, fd, _ = struct.unpack_from("=IBBHQii", events)
            events = events[length:]
            asked.append(mask)
            os.write(watch, struct.pack("=iI", fd, 1))
            os.close(fd)

threading.Thread(target=allow, daemon=True).start()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be asked")
@pytest.mark.parametrize("mask", [0x10000, 0x20000], ids=["open", "access"])
def test_a_thread_of_this_process_is_asked(loop_factory: LoopFactory, known: Path, mask: int) -> None:
    """By the kernel, whether a file may be opened or read: it needs the interpreter to answer."""
    script = f"""
import signal
mask = {mask}

async def main():
    for _ in range(2):
        assert await fs.read_bytes(path) == b"one\\ntwo\\n"
    exec(WATCH, globals())
    for _ in range(3):
        assert await fs.read_bytes(path) == b"one\\ntwo\\n"
        async with fs.open(path, "rb") as file:
            assert await file.read() == b"one\\ntwo\\n"
    print(set(asked) == {{mask}}, flush=True)
    os._exit(0)

WATCH = {WATCH!r}
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""
    result = child(loop_factory, script, known.parent)
    if result.stdout == "cannot watch\n":
        pytest.skip("nothing can be watched here")
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


def test_it_can_be_left_to_the_threads(loop_factory: LoopFactory, known: Path) -> None:
    script = "print(fs._at_once.enabled)"
    for name, value, expected in (
        ("MIOLOOP_FS", "threads", "False\n"),
        ("MIOLOOP_FS", "", "True\n"),
        ("LD_PRELOAD", "libc.so.6", "False\n"),
    ):
        before = f"import os\nos.environ['{name}'] = {value!r}\n" + PRELUDE
        result = child(loop_factory, script, known.parent, before)
        assert (result.returncode, result.stdout) == (0, expected), result.stderr
