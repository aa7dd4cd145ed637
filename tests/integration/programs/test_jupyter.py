"""IPython, and a Jupyter kernel with a client: code that awaits at the top level, and what interrupts it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ipykernel
import IPython
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from ..conftest import Run
from .processes import PATIENCE

assert ipykernel and IPython  # run in processes of their own

LOOP = "type(asyncio.get_running_loop()).__module__.split('.')[0]"


def on_loop(loop_name: str) -> list[str]:
    """The beginning of a command line that runs a module on the loop under test."""
    return [sys.executable, "-m", *(["mioloop", "-m"] if loop_name.startswith("mioloop") else [])]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    folders = {"IPYTHONDIR": "ipython", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    return {name: str(tmp_path / folder) for name, folder in folders.items()}


def test_ipython(loop_name: str, environment: dict[str, str]) -> None:
    cell = f"import asyncio; await asyncio.sleep(0); print('on', {LOOP})"
    done = subprocess.run(
        [*on_loop(loop_name), "IPython", "--colors=NoColor", "-c", cell],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **environment},
    )
    assert f"on {loop_name.split(':')[0]}" in done.stdout, done.stdout + done.stderr


@asynccontextmanager
async def kernel(
    loop_name: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[AsyncKernelManager, AsyncKernelClient]]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = Path(environment["JUPYTER_DATA_DIR"], "kernels", "tested")
    folder.mkdir(parents=True)
    argv = [*on_loop(loop_name), "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "tested", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    manager = AsyncKernelManager(kernel_name="tested")
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=PATIENCE)
        yield manager, client
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        manager.context.destroy(linger=0)


async def execute(client: AsyncKernelClient, code: str) -> tuple[str, str]:
    """A cell's status and what it printed."""
    request = client.execute(code)
    text = ""
    while True:
        message: dict[str, Any] = await client.get_iopub_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "stream":
            text += message["content"]["text"]
        elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            break
    while True:
        reply = await client.get_shell_msg(timeout=PATIENCE)
        if reply["parent_header"].get("msg_id") == request:
            return reply["content"]["status"], text


def test_jupyter_kernel(
    run: Run,
    loop_name: str,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with kernel(loop_name, environment, monkeypatch) as (manager, client):
            code = f"import asyncio\nawait asyncio.sleep(0)\nprint({LOOP})"
            assert await execute(client, code) == ("ok", loop_name.split(":")[0] + "\n")

            # A task goes on from cell to cell.
            await execute(client, "work = asyncio.create_task(asyncio.sleep(0.01, 'done'))")
            assert await execute(client, "print(await work)") == ("ok", "done\n")

            # An interrupt ends the cell and leaves the kernel be: while it awaits, and while it computes.
            # One signal, sent when the cell says that it is there. ipykernel cancels a cell that awaits from
            # within its signal handler, which does not wake asyncio's own loop: there it has to come round.
            waits = "await asyncio.sleep(1000)"
            if loop_name.startswith("asyncio"):
                waits = "while True: await asyncio.sleep(0.01)"
            for n, body in enumerate([waits, "while True: pass"]):
                there = tmp_path / f"there-{n}"
                cell = asyncio.create_task(execute(client, f"open({str(there)!r}, 'w').close()\n{body}"))
                while not there.exists():
                    await asyncio.sleep(0.01)
                await manager.interrupt_kernel()
                assert (await cell)[0] == "error"
                assert await execute(client, "print(6 * 7)") == ("ok", "42\n")

    run(main())
