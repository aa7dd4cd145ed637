"""A program that makes many short TLS connections and prints how far its memory grew in the second half
of them.

    python -m tests.stress.short_connections asyncio:SelectorEventLoop CERTIFICATE 2000

Client and server share the process, so that what either of them leaks is seen. The first half fills every
cache and free list there is. The certificate's file is its own authority.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import ssl
import sys

AT_ONCE = 20


def resident() -> int:
    """The bytes of memory that the process has in use."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.readline()).upper())
    writer.close()
    await writer.wait_closed()


async def ask(port: int, context: ssl.SSLContext, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"question %d\n" % number)
    assert await reader.read() == b"QUESTION %d\n" % number
    writer.close()
    await writer.wait_closed()


async def main(certificate: str, count: int) -> int:
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(certificate)
    client_context = ssl.create_default_context(cafile=certificate)
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # newer Pythons have it set
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_context)
    port = server.sockets[0].getsockname()[1]
    sizes: list[int] = []
    for _half in range(2):
        for start in range(0, count // 2, AT_ONCE):
            await asyncio.gather(*(ask(port, client_context, start + number) for number in range(AT_ONCE)))
        sizes.append(resident())
    server.close()
    await server.wait_closed()
    return sizes[1] - sizes[0]


if __name__ == "__main__":
    loop_name, certificate, count = sys.argv[1:]
    module, attribute = loop_name.split(":")
    with asyncio.Runner(loop_factory=getattr(importlib.import_module(module), attribute)) as runner:
        print(runner.run(main(certificate, int(count))))
