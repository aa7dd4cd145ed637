"""asyncio's streams on mioloop: the classes that readers and writers change to, with methods of the core.

A reader and a writer are asyncio's own, with asyncio's attributes, until their connection begins; then they
become instances of subclasses that differ in nothing but the speed of the methods named here. Where one is of
a class derived from asyncio's, or a method of it is patched, all is left to the methods that Python finds.

``MIOLOOP_STREAMS=asyncio`` in the environment, looked at when mioloop is imported, leaves all streams to
asyncio's own methods. Debug mode does so too: its tracebacks and stacks shall show those.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import streams
from types import FunctionType, SimpleNamespace
from typing import Any

from . import _core


def _subclass(name: str, base: type, methods: type, *names: str) -> Any:
    """A class with the layout of `base`, as an object has to have that changes its class."""
    body: dict[str, Any] = {"__slots__": (), "__module__": base.__module__, "__doc__": base.__doc__}
    body |= {method: methods.__dict__[method] for method in names}
    # `methods` stands in the bases so that its methods take the instances for their own.
    return type(name, (base, methods), body)


_Reader = _subclass(
    "StreamReader",
    asyncio.StreamReader,
    _core.StreamReader,
    "readline",
    "readuntil",
    "read",
    "readexactly",
)
_Writer = _subclass("StreamWriter", asyncio.StreamWriter, _core.StreamWriter, "write", "drain")


def _connection_made(protocol: Any, transport: asyncio.Transport) -> None:
    """Call the protocol's `connection_made`; the stream that it hands out is fast from the first moment."""
    accept = protocol._client_connected_cb
    if accept is None:
        protocol.connection_made(transport)
        _change(protocol._stream_reader)
        return

    def accept_changed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        protocol._client_connected_cb = accept
        _change(reader)
        _change(writer)
        return accept(reader, writer)

    protocol._client_connected_cb = accept_changed
    try:
        protocol.connection_made(transport)
    finally:
        protocol._client_connected_cb = accept


def _change(stream: Any) -> None:
    if type(stream) is asyncio.StreamReader:
        stream.__class__ = _Reader
    elif type(stream) is asyncio.StreamWriter:
        stream.__class__ = _Writer


def _is_untouched(*classes: type) -> bool:
    """Whether the functions of these classes are those of asyncio's own source."""
    return all(
        value.__globals__ is streams.__dict__ and value.__qualname__ == f"{base.__qualname__}.{name}"
        for cls in classes
        for base in cls.__mro__
        if base.__module__ == streams.__name__
        for name, value in vars(base).items()
        if isinstance(value, FunctionType)
    )


def use() -> None:
    """Have the core serve asyncio's streams, unless something speaks against it."""
    if os.environ.get("MIOLOOP_STREAMS") == "asyncio":
        return
    # Patched before we could look: what asyncio's methods do can't be known.
    if not _is_untouched(asyncio.StreamReader, asyncio.StreamReaderProtocol, asyncio.StreamWriter):
        return
    loop: Any = SimpleNamespace(get_debug=lambda: False)
    attributes = len(vars(asyncio.StreamReader(loop=loop)))
    _core._use_streams((_Reader, asyncio.StreamReaderProtocol, _Writer), attributes, _connection_made)
