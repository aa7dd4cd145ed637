//! The stream transport: TCP and Unix connections, for `Protocol` and `BufferedProtocol`.
//!
//! It remembers what the poller last said. The poller reports edges, so a transport that stops reading before the
//! socket is drained (it has had its share of this iteration, or the protocol has paused it) keeps `readable` set and
//! schedules itself when it may go on; no system call is needed to pause or to resume. A read that fills less than
//! its buffer has drained the socket (epoll(7), on stream sockets), unless the event said that the peer has closed:
//! that is told once, and the end of the stream is still to be read.
//!
//! Writes go to the socket at once. Only when it takes no more does the poller get to hear of it.
//!
//! Every call into a protocol may do anything: close the transport, switch its protocol, write to it. So no borrow of
//! the state spans one, and what was known before the call is looked up again after it.

mod lifecycle;
mod read;
mod socket;
mod write;

use std::os::fd::{OwnedFd, RawFd};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

use super::flow::{FlowControl, Signal};
use super::write_buffer::WriteBuffer;
use crate::event_loop::EventLoop;
use crate::py::{Asyncio, AttachedCell, copy_current_context, in_context, is_fatal};
use crate::reactor::{Direction, Key, Readiness};
use crate::sys::SocketAddress;
use socket::{Names, Socket};

struct Protocol {
    object: Py<PyAny>,
    /// It lends its own buffer instead of being given bytes.
    buffered: bool,
}

impl Protocol {
    fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffered = object.is_instance(Asyncio::get(object.py())?.buffered_protocol.bind(object.py()))?;
        Ok(Protocol {
            object: object.clone().unbind(),
            buffered,
        })
    }
}

struct State {
    socket: Socket,
    protocol: Option<Protocol>,
    server: Option<Py<PyAny>>,
    names: Option<Box<Names>>,
    /// What `get_extra_info` has told, or was given.
    extra: Option<Py<PyDict>>,
    /// The registration, once there is one, and what it asks for.
    registration: Option<(Key, Direction)>,

    // Reading.
    started: bool,
    paused: bool,
    readable: bool,
    read_closed: bool,
    at_eof: bool,

    // Writing.
    buffer: WriteBuffer,
    flow: FlowControl,
    /// `write_eof` was called.
    eof: bool,
    /// A `sendfile` waits here until the buffer is empty; until it is over nothing else may write.
    empty_waiter: Option<Py<PyAny>>,

    // The end.
    closing: bool,
    /// Counts from the moment that `connection_lost` is scheduled: first that, then the writes that came too late.
    conn_lost: u32,
}

impl State {
    fn may_read(&self) -> bool {
        self.started && !self.paused && !self.closing && !self.at_eof
    }
}

/// A connection (asyncio's `Transport`, of which it is an instance in the eyes of `isinstance`).
#[pyclass(frozen, weakref, module = "mioloop._core")]
pub struct StreamTransport {
    event_loop: Py<EventLoop>,
    /// The protocol's callbacks run in it.
    context: Py<PyAny>,
    fd: RawFd,
    state: AttachedCell<State>,
}

impl StreamTransport {
    /// A transport for a connection that a listener has accepted.
    pub fn accepted(
        event_loop: &Bound<'_, EventLoop>,
        fd: OwnedFd,
        peer: SocketAddress,
        protocol: &Bound<'_, PyAny>,
        server: Option<Py<PyAny>>,
        context: Py<PyAny>,
    ) -> PyResult<()> {
        let names = Names::new(&fd, peer)?;
        let socket = Socket::accepted(fd, &names)?;
        let slf = Self::create(event_loop, socket, protocol, None, None, server, context)?;
        slf.get().state.borrow_mut(event_loop.py()).names = Some(Box::new(names));
        Ok(())
    }

    fn create<'py>(
        event_loop: &Bound<'py, EventLoop>,
        socket: Socket,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Bound<'py, PyAny>>,
        extra: Option<Py<PyDict>>,
        server: Option<Py<PyAny>>,
        context: Py<PyAny>,
    ) -> PyResult<Bound<'py, Self>> {
        let py = event_loop.py();
        let fd = socket.fd(py)?;
        let transport = StreamTransport {
            event_loop: event_loop.clone().unbind(),
            context,
            fd,
            state: AttachedCell::new(State {
                socket,
                protocol: Some(Protocol::new(protocol)?),
                server: None,
                names: None,
                extra,
                registration: None,
                started: false,
                paused: false,
                readable: false,
                read_closed: false,
                at_eof: false,
                buffer: WriteBuffer::default(),
                flow: FlowControl::new(),
                eof: false,
                empty_waiter: None,
                closing: false,
                conn_lost: 0,
            }),
        };
        let slf = Bound::new(py, transport)?;
        let this = slf.get();
        if let Some(server) = server {
            attach_to_server(&slf, server.bind(py))?;
            this.state.borrow_mut(py).server = Some(server);
        }
        // The order is asyncio's: the protocol learns of the connection, then reading starts, then whoever waits for
        // the transport is told.
        let connection_made = protocol.getattr(intern!(py, "connection_made"))?;
        let args = PyTuple::new(py, [&slf])?;
        EventLoop::schedule(event_loop, connection_made, args, &this.context)?;
        event_loop.get().schedule_start(py, slf.clone().unbind());
        if let Some(waiter) = waiter {
            let wake = Asyncio::get(py)?.set_result_unless_cancelled.bind(py).clone();
            let args = (waiter, py.None()).into_pyobject(py)?;
            EventLoop::schedule(event_loop, wake, args, &this.context)?;
        }
        Ok(slf)
    }

    /// The source is ready in some way. What this returns as an error leaves the loop.
    pub fn on_ready(slf: &Bound<'_, Self>, readiness: Readiness) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        {
            let mut state = this.state.borrow_mut(py);
            state.readable |= readiness.readable;
            state.read_closed |= readiness.read_closed;
        }
        if readiness.readable {
            Self::read_ready(slf)?;
        }
        if readiness.writable {
            Self::write_ready(slf)?;
        }
        Ok(())
    }

    fn is_debug(&self, py: Python<'_>) -> bool {
        self.event_loop.get().is_debug(py)
    }

    fn protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.state
            .borrow_mut(py)
            .protocol
            .as_ref()
            .map(|protocol| protocol.object.bind(py).clone())
    }

    /// Calls a method of the protocol in the transport's context.
    fn call_protocol<'py>(
        &self,
        protocol: &Bound<'py, PyAny>,
        method: &Bound<'py, PyString>,
        args: impl pyo3::call::PyCallArgs<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        in_context(self.context.bind(protocol.py()), || {
            protocol.call_method1(method, args)
        })
    }

    /// Tells the protocol to pause or to resume writing. What it raises is reported and changes nothing.
    fn signal(slf: &Bound<'_, Self>, signal: Option<Signal>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let (Some(signal), Some(protocol)) = (signal, this.protocol(py)) else {
            return Ok(());
        };
        let (method, message) = match signal {
            Signal::Pause => (intern!(py, "pause_writing"), "protocol.pause_writing() failed"),
            Signal::Resume => (intern!(py, "resume_writing"), "protocol.resume_writing() failed"),
        };
        match protocol.call_method0(method) {
            Err(error) if !is_fatal(py, &error) => Self::report(slf, message, error),
            result => result.map(drop),
        }
    }

    /// Hands an error to the loop's exception handler.
    fn report(slf: &Bound<'_, Self>, message: &str, error: PyErr) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let context = PyDict::new(py);
        context.set_item(intern!(py, "message"), message)?;
        context.set_item(intern!(py, "exception"), error)?;
        context.set_item(intern!(py, "transport"), slf)?;
        context.set_item(intern!(py, "protocol"), this.protocol(py))?;
        EventLoop::call_exception_handler(this.event_loop.bind(py), &context)
    }

    fn log_debug(slf: &Bound<'_, Self>, message: &str) -> PyResult<()> {
        let py = slf.py();
        if slf.get().is_debug(py) {
            Asyncio::get(py)?
                .logger
                .call_method1(py, intern!(py, "debug"), (message, slf))?;
        }
        Ok(())
    }

    fn describe(&self, py: Python<'_>) -> String {
        let state = self.state.borrow_mut(py);
        let mut text = "<StreamTransport".to_owned();
        if state.socket.is_closed() {
            text.push_str(" closed");
        } else if state.closing {
            text.push_str(" closing");
        }
        text.push_str(&format!(" fd={}", self.fd));
        if !state.socket.is_closed() {
            let polling = |yes| if yes { "polling" } else { "idle" };
            let (read, write) = (polling(state.may_read()), polling(!state.buffer.is_empty()));
            text.push_str(&format!(
                " read={read} write=<{write}, bufsize={}>",
                state.buffer.size()
            ));
        }
        text + ">"
    }
}

/// From 3.13 on a server knows its connections, before it only counted them.
fn attach_to_server(slf: &Bound<'_, StreamTransport>, server: &Bound<'_, PyAny>) -> PyResult<()> {
    let (py, attach) = (slf.py(), intern!(slf.py(), "_attach"));
    match py.version_info() >= (3, 13) {
        true => server.call_method1(attach, (slf,)).map(drop),
        false => server.call_method0(attach).map(drop),
    }
}

#[pymethods]
impl EventLoop {
    /// The hook by which `BaseEventLoop` turns a connected socket into a transport.
    #[pyo3(signature = (sock, protocol, waiter=None, *, extra=None, server=None, context=None))]
    fn _make_socket_transport<'py>(
        slf: &Bound<'py, Self>,
        sock: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Bound<'py, PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
        server: Option<Py<PyAny>>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, StreamTransport>> {
        let py = slf.py();
        slf.get().check_open(py)?;
        slf.call_method1(intern!(py, "_ensure_fd_no_transport"), (sock,))?;
        let context = match context {
            Some(context) => context,
            None => copy_current_context(py)?,
        };
        let extra = socket::extra_info(sock, extra)?;
        let socket = Socket::Python(sock.clone().unbind());
        StreamTransport::create(slf, socket, protocol, waiter, Some(extra), server, context)
    }
}

#[pymethods]
impl StreamTransport {
    #[classattr]
    fn _start_tls_compatible() -> bool {
        true
    }

    #[classattr]
    fn _sendfile_compatible(py: Python<'_>) -> PyResult<Py<PyAny>> {
        let modes = py.import("asyncio.constants")?.getattr("_SendfileMode")?;
        Ok(modes.getattr("TRY_NATIVE")?.unbind())
    }

    /// Information about the connection: `socket`, `sockname`, `peername`, and what a TLS layer adds.
    ///
    /// Returns `default` for a name that is not known. As `asyncio.BaseTransport.get_extra_info`.
    #[pyo3(signature = (name, default=None))]
    fn get_extra_info(
        slf: &Bound<'_, Self>,
        name: &str,
        default: Option<Py<PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        Ok(socket::extra_info_item(slf, name)?.map(Bound::unbind).or(default))
    }

    /// The protocol. As `asyncio.BaseTransport.get_protocol`.
    fn get_protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.protocol(py)
    }

    /// Lets another protocol have the connection from now on. As `asyncio.BaseTransport.set_protocol`.
    fn set_protocol(&self, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        let new = Protocol::new(protocol)?;
        let old = self.state.borrow_mut(protocol.py()).protocol.replace(new);
        drop(old);
        Ok(())
    }

    #[getter]
    fn _loop(&self, py: Python<'_>) -> Py<EventLoop> {
        self.event_loop.clone_ref(py)
    }

    #[getter]
    fn _sock_fd(&self) -> RawFd {
        self.fd
    }

    #[getter]
    fn _sock<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        socket::python_socket(slf)
    }

    #[getter(__class__)]
    fn class(&self, py: Python<'_>) -> PyResult<Py<PyType>> {
        Ok(Asyncio::get(py)?.transport.clone_ref(py))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        self.describe(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.context)?;
        if let Ok(state) = self.state.borrow_for_traverse() {
            if let Some(protocol) = &state.protocol {
                visit.call(&protocol.object)?;
            }
            if let Socket::Python(socket) = &state.socket {
                visit.call(socket)?;
            }
            visit.call(&state.server)?;
            visit.call(&state.extra)?;
            visit.call(&state.empty_waiter)?;
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        let parts = {
            let mut state = self.state.borrow_mut(py);
            // The socket stays, for `Drop` to find it unclosed.
            (
                state.protocol.take(),
                state.server.take(),
                state.extra.take(),
                state.empty_waiter.take(),
            )
        };
        drop(parts);
    }
}
