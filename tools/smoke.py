"""What an installed mioloop must be able to do, with nothing but itself and the standard library.

An echo server, a child process, TLS to itself; on its own `run`, in asyncio's runner and after `install`.
"""

import asyncio
import ssl
import sys
import tempfile
from pathlib import Path

import mioloop

MESSAGE = bytes(range(256)) * 4096


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def talk(server_context: ssl.SSLContext | None, client_context: ssl.SSLContext | None) -> None:
    async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_context) as server:
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address, ssl=client_context)

        async def send() -> None:
            writer.write(MESSAGE)
            await writer.drain()

        sending = asyncio.create_task(send())
        assert await reader.readexactly(len(MESSAGE)) == MESSAGE
        await sending
        writer.close()
        await writer.wait_closed()


async def make_certificate(folder: Path) -> Path:
    """By openssl, which is also the child process with pipes to be tried."""
    chain = folder / "chain.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    process = await asyncio.create_subprocess_exec(
        *("openssl", *options.split()),
        *("-subj", "/CN=localhost", "-keyout", str(folder / "key.pem"), "-out", str(chain)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return chain


async def main() -> None:
    assert type(asyncio.get_running_loop()) is mioloop.Loop
    await talk(None, None)
    with tempfile.TemporaryDirectory() as folder:
        chain = await make_certificate(Path(folder))
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_context.load_cert_chain(chain, chain.with_name("key.pem"))
        client_context = ssl.create_default_context(cafile=str(chain))
        client_context.check_hostname = False
        await talk(server_context, client_context)


if __name__ == "__main__":
    mioloop.run(main())
    with asyncio.Runner(loop_factory=mioloop.new_event_loop) as runner:
        runner.run(main())
    if sys.version_info < (3, 16):
        mioloop.install()
        asyncio.run(main())
    python = sys.version.split()[0]
    print(f"mioloop {mioloop.__version__} on Python {python}: an echo server, a child process, TLS")
