"""The event loop that programs see.

`_core.EventLoop` does what happens once per event. `asyncio.BaseEventLoop`, behind it in the method
resolution order, is the rest: argument checks, name resolution, servers, executors, the exception handler,
all of it the code of the Python that runs. What stands here happens once per program, connection or process:
the hooks that `BaseEventLoop` leaves to its heirs. Where the standard library's own heir, the selector loop,
has a hook that rests on nothing but `add_reader` and `add_writer`, that very function is used.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import socket
import sys
import threading
import weakref
from asyncio import sslproto, unix_events
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVarTuple, Unpack

from . import _core, streams
from .signals import Signals

if TYPE_CHECKING:
    import ssl

_core._check_interpreter()
streams.use()

_Selector: Any = unix_events._UnixSelectorEventLoop

_Ts = TypeVarTuple("_Ts")


# For the children that the process forks.
_loops: weakref.WeakSet[Loop] = weakref.WeakSet()


class Loop(_core.EventLoop, asyncio.BaseEventLoop):
    """An asyncio event loop on a mio reactor.

    It has every method of `asyncio.AbstractEventLoop`, documented there, with the arguments that the running
    Python has.

    `tls` says whose TLS it uses: "mioloop", its own, or "stdlib", the standard library's protocol, so that
    you can tell whose fault a problem is. The default is what the environment variable MIOLOOP_TLS says when
    the loop is made, and without that "mioloop". The attribute of the same name holds for connections made
    from then on. Encryption is the `ssl` module's either way. Raises ValueError for any other name.
    """

    def __init__(self, *, tls: str | None = None) -> None:
        super().__init__()
        self._signals = Signals()
        _loops.add(self)
        self._unix_server_sockets: dict[socket.socket, int] = {}
        if sys.version_info >= (3, 14):
            # Before, the policy has the watcher. A thread waits for each process where there are no pidfds.
            pidfd = unix_events.can_use_pidfd()
            self._watcher = unix_events._PidfdChildWatcher() if pidfd else unix_events._ThreadedChildWatcher()
        try:
            self.tls = os.environ.get("MIOLOOP_TLS") or "mioloop" if tls is None else tls
        except ValueError:
            self.close()
            raise

    def run_forever(self) -> None:
        """Run until `stop()` is called, or `KeyboardInterrupt` or `SystemExit` is raised in a callback.

        Raises RuntimeError if the loop is closed or running, or if another loop runs in this thread.
        """
        # Here already: 3.13.0's own check comes too late to leave the loop that runs alone.
        self._check_closed()  # type: ignore[attr-defined]
        self._check_running()  # type: ignore[attr-defined]
        self._signals.begin_run(self)
        self._stay(True)
        try:
            super().run_forever()
        finally:
            self._stay(False)
            self._signals.end_run()

    def close(self) -> None:
        """Close the loop and let go of all that it holds. A second time does nothing.

        Raises RuntimeError if the loop is running.
        """
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        super().close()
        try:
            self._signals.close(self)
        finally:
            self._release()

    def _transport_was_collected(self, server: asyncio.Server) -> None:
        """Have the server wait for one less, as a transport's `__del__` does in asyncio from 3.13 on."""
        if vars(server):  # Else the collector has taken it too.
            server._detach(self)  # type: ignore[attr-defined]

    def _make_default_executor(self) -> Any:
        from .executor import DefaultExecutor

        self._default_executor = DefaultExecutor()
        return self._default_executor

    # Signals.

    def add_signal_handler(self, sig: int, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts) -> None:
        """Call `callback(*args)` in the loop whenever the process receives signal `sig`.

        Raises ValueError for what is no signal, RuntimeError for one that can't be caught or outside the main
        thread, TypeError for a coroutine function. As `asyncio.loop.add_signal_handler`.
        """
        self._signals.add(self, sig, callback, args)

    def remove_signal_handler(self, sig: int) -> bool:
        """Give signal `sig` its default action back. Return whether there was a handler.

        As `asyncio.loop.remove_signal_handler`.
        """
        return self._signals.remove(sig)

    @property
    def tls(self) -> str:
        return self._tls

    @tls.setter
    def tls(self, tls: str) -> None:
        if tls not in ("mioloop", "stdlib"):
            raise ValueError(f'MIOLOOP_TLS or tls is to be "mioloop" or "stdlib", not {tls!r}')
        self._tls = tls

    # Transports.

    @functools.wraps(asyncio.BaseEventLoop.create_connection, assigned=())
    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        **options: Any,
    ) -> tuple[Any, asyncio.BaseProtocol]:
        """Connect to a TCP server; return a transport, and the protocol that `protocol_factory` made.

        Raises OSError if there is no connection to be had. As `asyncio.loop.create_connection`, whose options
        it takes.
        """
        connection = None if options else self._begin_connection(host, port)
        if connection is None:
            return await super().create_connection(protocol_factory, host, port, **options)
        await connection
        protocol = protocol_factory()
        waiter = self.create_future()
        transport = connection._make_transport(protocol, waiter)
        try:
            await waiter
        except:
            transport.close()
            raise
        return transport, protocol

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        context: Any = None,
        server_side: bool = False,
        server_hostname: str | None = None,
        **timeouts: Any,
    ) -> asyncio.Transport:
        make: Any = _core._SSLProtocolTransport if self.tls == "mioloop" else sslproto.SSLProtocol
        ssl_protocol = make(self, protocol, sslcontext, waiter, server_side, server_hostname, **timeouts)
        self._make_socket_transport(rawsock, ssl_protocol, extra=extra, server=server, context=context)
        transport: asyncio.Transport = ssl_protocol._app_transport
        return transport

    async def start_tls(
        self,
        transport: asyncio.BaseTransport,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport | None:
        """Make the connection of `transport` secure; return the transport that `protocol` is to use now.

        Timeouts are in seconds. Raises TypeError for what is no context, or a transport that can't be
        upgraded, and what a failed handshake raises. As `asyncio.loop.start_tls`.
        """
        if self.tls != "mioloop":
            return await super().start_tls(
                transport,
                protocol,
                sslcontext,
                server_side=server_side,
                server_hostname=server_hostname,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
            )
        module: Any = sslproto.ssl  # type: ignore[attr-defined]
        if module is None:
            raise RuntimeError("Python ssl module is not available")
        if not isinstance(sslcontext, module.SSLContext):
            raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        beneath: Any = transport
        waiter = self.create_future()
        secured = _core._SSLProtocolTransport(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            call_connection_made=False,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        # Nothing may come before connection_made.
        beneath.pause_reading()
        reader = getattr(protocol, "_stream_reader", None) if server_side else None
        if reader is not None and reader._buffer:
            # A client may have begun its handshake in the same segment as what asked for it.
            secured.data_received(reader._buffer)
            reader._buffer.clear()
        beneath.set_protocol(secured)
        begin = self.call_soon(secured.connection_made, transport)
        resume = self.call_soon(beneath.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            begin.cancel()
            resume.cancel()
            # It has the exception, whose traceback has this frame.
            del waiter
            raise
        return secured

    _make_read_pipe_transport = _Selector._make_read_pipe_transport
    _make_write_pipe_transport = _Selector._make_write_pipe_transport
    if sys.version_info >= (3, 12):
        _make_subprocess_transport = _Selector._make_subprocess_transport
    else:

        async def _make_subprocess_transport(self, *args: Any, **options: Any) -> asyncio.SubprocessTransport:
            from .child_watcher import set_default

            set_default()
            transport: asyncio.SubprocessTransport = await _Selector._make_subprocess_transport(
                self, *args, **options
            )
            return transport

    _child_watcher_callback = _Selector._child_watcher_callback

    # Servers.

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        context: Any = None,
    ) -> None:
        if sslcontext is None:
            self._start_listening(protocol_factory, sock, server, backlog, context)
        elif self.tls == "mioloop":
            tls = (sslcontext, ssl_handshake_timeout, ssl_shutdown_timeout)
            self._start_listening(protocol_factory, sock, server, backlog, context, tls)
        else:
            # A handshake takes a task of its own.
            timeouts = (ssl_handshake_timeout, ssl_shutdown_timeout)
            options = {"context": context} if context is not None else {}
            _Selector._start_serving(
                self, protocol_factory, sock, sslcontext, server, backlog, *timeouts, **options
            )

    _accept_connection = _Selector._accept_connection
    _accept_connection2 = _Selector._accept_connection2

    def _stop_serving(self, sock: socket.socket) -> None:
        inode = self._unix_server_sockets.pop(sock, None)
        path = sock.getsockname() if inode is not None else None
        if not self._stop_listening(sock.fileno()):
            self._remove_reader(sock.fileno())
        sock.close()
        if path is not None:
            self._remove_socket_file(path, inode)

    def _remove_socket_file(self, path: str, inode: int | None) -> None:
        # Another server may have taken the path over in the meantime; its file has another inode.
        try:
            if os.stat(path).st_ino == inode:
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            unix_events.logger.error(  # type: ignore[attr-defined]
                "Unable to clean up listening UNIX socket %r: %r", path, error
            )

    create_unix_connection = _Selector.create_unix_connection
    create_unix_server = _Selector.create_unix_server

    # Sockets.

    sock_connect = _Selector.sock_connect
    _sock_connect = _Selector._sock_connect
    _sock_connect_cb = _Selector._sock_connect_cb
    _sock_write_done = _Selector._sock_write_done

    # Sendfile.

    async def _sendfile_native(
        self, transp: _core.StreamTransport, file: Any, offset: int, count: int | None
    ) -> int:
        resume_reading = transp.is_reading()
        transp.pause_reading()
        await transp._make_empty_waiter()
        self._lend_descriptor(transp, True)
        try:
            assert transp._sock is not None, "the empty waiter fails on a closed transport"
            return await self.sock_sendfile(transp._sock, file, offset, count, fallback=False)
        finally:
            self._lend_descriptor(transp, False)
            transp._reset_empty_waiter()
            if resume_reading:
                transp.resume_reading()

    _sock_sendfile_native = _Selector._sock_sendfile_native
    _sock_sendfile_native_impl = _Selector._sock_sendfile_native_impl
    _sock_sendfile_update_filepos = _Selector._sock_sendfile_update_filepos
    _sock_add_cancellation_callback = _Selector._sock_add_cancellation_callback


_core._use_connections(Loop)


def _before_fork() -> None:
    """What is written is written once, although there will be two of the loop that writes it."""
    for loop in list(_loops):
        loop._before_fork()


def _after_fork() -> None:
    """The child has its parent's loops; from now on they are two of each."""
    for loop in list(_loops):
        loop._after_fork()
        loop._signals.after_fork(loop)


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def _park_other_threads() -> None:
    """The interpreter ends; loops still running are in daemon threads.

    Before 3.14 it ends such a thread by unwinding it as soon as that wants to run Python code, and a stack
    with Rust frames on it can't be unwound so: the process would abort. So each is put to sleep first.
    Threads that call a loop run Python code of its in debug mode only; they do so no longer.
    """
    _core._end_debug_calls()
    for loop in list(_loops):
        if loop._thread_id not in (None, threading.get_ident()):
            asleep = threading.Event()
            with contextlib.suppress(RuntimeError):  # Closed meanwhile.
                loop.call_soon_threadsafe(_sleep_for_good, asleep)
                asleep.wait(1)


def _sleep_for_good(asleep: threading.Event) -> None:
    asleep.set()
    threading.Event().wait()


if sys.version_info < (3, 14):
    atexit.register(_park_other_threads)
