"""`python -m mioloop`: runs a program unchanged, as `python` itself would, on mioloop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .support import SAFETY

PROGRAM = """
import asyncio, sys

async def main():
    return type(asyncio.get_running_loop()).__module__.split(".")[0]

if __name__ == "__main__":
    print(asyncio.run(main()), sys.argv[1:])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(PROGRAM)
    (package / "part.py").write_text(PROGRAM)
    return tmp_path


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "mioloop", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SAFETY,
    )


def test_a_script_with_arguments(folder: Path) -> None:
    result = call(folder, "program.py", "a", "b")
    assert (result.stdout, result.stderr, result.returncode) == ("mioloop ['a', 'b']\n", "", 0)


def test_options_behind_the_script_are_the_scripts(folder: Path) -> None:
    result = call(folder, "program.py", "-m", "--help", "-x", "--", "-")
    assert result.stdout == "mioloop ['-m', '--help', '-x', '--', '-']\n"


@pytest.mark.parametrize("module", ["program", "package", "package.part"])
def test_a_module_with_arguments(folder: Path, module: str) -> None:
    result = call(folder, "-m", module, "a", "--help", "-m")
    assert (result.stdout, result.stderr, result.returncode) == ("mioloop ['a', '--help', '-m']\n", "", 0)


def test_what_the_program_sees_of_itself(folder: Path) -> None:
    """The same words under `python` and under `python -m mioloop`."""
    (folder / "words.py").write_text("WORD = 'a sibling can be imported'\n")
    (folder / "self.py").write_text(
        "import sys, words\n"
        "print(__name__, __file__, __package__, __doc__, __spec__)\n"
        "print(sys.argv, sys.path[0], words.WORD)\n"
        "print(sys.modules['__main__'].__dict__ is globals())\n"
    )
    script = str(folder / "self.py")
    plain = subprocess.run(
        [sys.executable, script, "a"], cwd=folder, capture_output=True, text=True, timeout=SAFETY
    )
    ours = call(folder, script, "a")
    ours_words, plain_words = ours.stdout.splitlines(), plain.stdout.splitlines()
    assert ours.stderr == ""
    assert ours_words[0].split()[:2] == plain_words[0].split()[:2]
    assert ours_words[1:] == plain_words[1:]


@pytest.mark.parametrize(
    ("ending", "status", "errors"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('a message')", 1, "a message\n"),
        ("raise SystemExit(7)", 7, ""),
    ],
)
def test_the_exit_status(folder: Path, ending: str, status: int, errors: str) -> None:
    (folder / "ends.py").write_text(f"import sys\n{ending}\n")
    result = call(folder, "ends.py")
    assert (result.returncode, result.stderr) == (status, errors)


def test_an_exception(folder: Path) -> None:
    (folder / "fails.py").write_text("def fails():\n    raise LookupError('not found')\n\nfails()\n")
    result = call(folder, "fails.py")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert "fails.py" in result.stderr
    assert result.stderr.endswith("LookupError: not found\n")


def test_a_missing_script(folder: Path) -> None:
    result = call(folder, "missing.py")
    assert result.returncode != 0
    assert "missing.py" in result.stderr
    assert "No such file or directory" in result.stderr


def test_a_missing_module(folder: Path) -> None:
    result = call(folder, "-m", "missing_module")
    assert result.returncode != 0
    assert "No module named missing_module" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["-m"], ["--nonsense"]])
def test_a_wrong_call(folder: Path, arguments: list[str]) -> None:
    result = call(folder, *arguments)
    assert result.returncode == 2
    assert "usage: " in result.stderr
    assert "Traceback" not in result.stderr


def test_help(folder: Path) -> None:
    result = call(folder, "--help")
    assert result.returncode == 0
    assert "python -m mioloop" in result.stdout


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run has its loop_factory from Python 3.12 on")
def test_a_program_that_chooses_its_loop_itself_has_it(folder: Path) -> None:
    (folder / "chooses.py").write_text(
        "import asyncio\n"
        "async def main():\n"
        "    print(isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop))\n"
        "asyncio.run(main(), loop_factory=asyncio.SelectorEventLoop)\n"
    )
    assert call(folder, "chooses.py").stdout == "True\n"
