//! The stream transport: TCP and Unix connections, for `Protocol` and `BufferedProtocol`.
//!
//! A read that fills less than its buffer has drained the socket (epoll(7), on stream sockets), so one message costs
//! one system call; unless the event said that the peer has closed: that is told once, and the end of the stream is
//! still to be read.

mod coalesce;
mod read;
pub(in crate::transport) mod received;
mod write;
mod write_buffer;

use std::num::NonZero;
use std::os::fd::OwnedFd;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::base::{Parts, Transport};
use super::protocol::Protocol;
use super::socket::{Facts, Names, Socket};
use crate::event_loop::EventLoop;
use crate::py::{AttachedCell, AttachedValue, copy_current_context, minor_version};
use write_buffer::WriteBuffer;

/// A connection.
#[pyclass(extends = Transport, frozen, module = "mioloop._core")]
pub struct StreamTransport {
    output: AttachedCell<Output>,
    /// How many bytes the last read gave.
    last_received: AttachedValue<u32>,
}

#[derive(Default)]
struct Output {
    buffer: WriteBuffer,
    /// What is in the buffer waits for the end of the iteration, not for the socket.
    held_back: bool,
    /// The loop will ask it to send at the end of the iteration.
    queued: bool,
    /// The iteration of the last write.
    turn: Option<NonZero<u64>>,
    /// In that iteration there was more than one.
    several: bool,
    /// `write_eof` was called.
    eof: bool,
    /// A `sendfile` waits here until the buffer is empty; until it is over nothing else may write.
    empty_waiter: Option<Py<PyAny>>,
}

impl StreamTransport {
    /// A transport for a connection that we have accepted or made.
    pub(super) fn connected<'py>(
        event_loop: &Bound<'py, EventLoop>,
        (fd, names): (OwnedFd, Names),
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Bound<'py, PyAny>>,
        server: Option<Py<PyAny>>,
        context: Py<PyAny>,
    ) -> PyResult<Bound<'py, Self>> {
        let parts = Parts {
            name: "StreamTransport",
            event_loop: event_loop.clone(),
            short_read: names.short_read(),
            protocol: Protocol::new(protocol)?,
            extra: None,
            context,
            socket: Socket::own(fd, &names)?,
            names: Some(names),
        };
        Self::create(parts, waiter, server)
    }

    fn create<'py>(
        parts: Parts<'py>,
        waiter: Option<Bound<'py, PyAny>>,
        server: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, Self>> {
        let py = parts.event_loop.py();
        let stream = StreamTransport {
            output: AttachedCell::new(Output::default()),
            last_received: AttachedValue::new(0),
        };
        let slf = Bound::new(py, PyClassInitializer::from(Transport::new(parts)?).add_subclass(stream))?;
        if let Some(server) = server {
            attach_to_server(&slf, server.bind(py))?;
            slf.as_super().get().state.borrow_mut(py).server = Some(server);
        }
        Transport::begin(slf.as_super(), waiter)?;
        Ok(slf)
    }

    pub(super) fn last_received(&self, py: Python<'_>) -> usize {
        self.last_received.get(py) as usize
    }

    /// Drops what was not sent.
    pub(super) fn clear(&self, py: Python<'_>) {
        self.output.borrow_mut(py).buffer.clear();
    }
}

/// From 3.13 on a server knows its connections, before it only counted them.
fn attach_to_server(slf: &Bound<'_, StreamTransport>, server: &Bound<'_, PyAny>) -> PyResult<()> {
    let (py, attach) = (slf.py(), intern!(slf.py(), "_attach"));
    match minor_version(py) >= 13 {
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
        let facts = Facts::of(slf, sock, extra)?;
        let parts = Parts {
            name: "StreamTransport",
            event_loop: slf.clone(),
            names: facts.names,
            short_read: facts.short_read,
            protocol: Protocol::new(protocol)?,
            extra: facts.extra,
            context: context.map_or_else(|| copy_current_context(py), Ok)?,
            // The last that can fail: from here on the socket is the transport's to close.
            socket: Socket::hold(sock)?,
        };
        StreamTransport::create(parts, waiter, server)
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

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.output.borrow_for_traverse() {
            Ok(output) => visit.call(&output.empty_waiter),
            Err(_) => Ok(()),
        }
    }

    fn __clear__(&self, py: Python<'_>) {
        let waiter = self.output.borrow_mut(py).empty_waiter.take();
        drop(waiter);
    }
}
