"""Thousands of processes, wave after wave: each exit code arrives, no descriptor and no zombie stays."""

import asyncio
import os

import mioloop

WAVES, PROCESSES = 100, 20


def children() -> list[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_thousands_of_processes() -> None:
    async def exit_code(number: int) -> int:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", f"exit {number}", stdout=asyncio.subprocess.PIPE
        )
        await process.communicate()
        assert process.returncode is not None
        return process.returncode

    async def wave() -> None:
        codes = await asyncio.gather(*(exit_code(number) for number in range(PROCESSES)))
        assert codes == list(range(PROCESSES))

    async def main() -> None:
        await wave()
        before = descriptors()
        for _ in range(WAVES):
            await wave()
        assert descriptors() == before
        assert children() == []

    mioloop.run(main())
