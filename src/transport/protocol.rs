//! The protocol of a transport, and the one place that tells its kinds apart.
//!
//! Most protocols are Python, and are called by name each time, as asyncio calls them: a method that is reassigned, on
//! the instance or on the class, is noticed. (A bound method kept from an earlier look would save nothing: CPython
//! finds the function in its method cache and makes no bound one.) A protocol that is Rust itself gets its bytes where
//! it wants them, without a Python frame; for all that happens seldom it too has the methods that asyncio names.

use std::mem::MaybeUninit;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::base::Transport;
use super::{StreamTransport, TlsTransport, streams, tls};
use crate::py::Asyncio;
use crate::sys;

/// How a protocol gets its bytes.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// `data_received` is given bytes.
    Plain,
    /// It lends its own buffer by `get_buffer`, and `buffer_updated` is told.
    Buffered,
    /// Rust code that knows the object.
    Native(&'static dyn NativeProtocol),
}

pub(super) struct Protocol {
    pub object: Py<PyAny>,
    pub kind: Kind,
}

impl Protocol {
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let kind = match native(object) {
            Some(native) => Kind::Native(native),
            None if object.is_instance(Asyncio::get(py)?.buffered_protocol.bind(py))? => Kind::Buffered,
            None => Kind::Plain,
        };
        Ok(Protocol { object: object.clone().unbind(), kind })
    }
}

impl Kind {
    /// What tells the protocol of its connection, and its arguments: a call to be scheduled.
    pub fn begin<'py>(
        self,
        object: &Bound<'py, PyAny>,
        transport: &Bound<'py, Transport>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        match self {
            Kind::Native(native) => native.begin(object, transport),
            Kind::Plain | Kind::Buffered => connection_made(object, transport),
        }
    }
}

pub(super) fn connection_made<'py>(
    object: &Bound<'py, PyAny>,
    transport: &Bound<'py, Transport>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
    let method = object.getattr(intern!(object.py(), "connection_made"))?;
    Ok((method, PyTuple::new(object.py(), [transport])?))
}

/// A protocol that receives in Rust. `object` is the protocol as Python sees it, which `get_protocol` returns; it has
/// the methods `connection_made`, `eof_received`, `connection_lost`, `pause_writing` and `resume_writing`, and is called
/// by them as every protocol is.
///
/// It writes by [`StreamTransport::write_data`], and ends the connection by `Transport::close`, `force_close` and
/// `fatal_error`.
pub(super) trait NativeProtocol: Sync {
    /// As `Kind::begin`.
    fn begin<'py>(
        &self,
        object: &Bound<'py, PyAny>,
        transport: &Bound<'py, Transport>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        connection_made(object, transport)
    }

    /// Offers memory, at least a byte of it, to `receive`, and returns what that returns. Must not call into Python.
    fn offer(
        &self,
        object: &Bound<'_, PyAny>,
        transport: &Bound<'_, StreamTransport>,
        receive: Receive<'_>,
    ) -> sys::Result<usize>;

    /// `size` bytes, more than none, are at the front of what was offered. Not called in the transport's context
    /// (see `Transport::call_protocol`). An error ends the connection as one from `data_received` does.
    fn received(
        &self,
        object: &Bound<'_, PyAny>,
        transport: &Bound<'_, StreamTransport>,
        size: usize,
    ) -> PyResult<()>;

    /// The transport is about to end, or to be looked at past us: all that was written shall be with it.
    fn flush(&self, _object: &Bound<'_, PyAny>) -> PyResult<()> {
        Ok(())
    }

    /// The transport holds less than before.
    fn sent(&self, _object: &Bound<'_, PyAny>) -> PyResult<()> {
        Ok(())
    }
}

/// Receives once from the socket.
pub(super) type Receive<'a> = &'a mut dyn FnMut(&mut [MaybeUninit<u8>]) -> sys::Result<usize>;

/// The Rust half of a protocol that has one.
fn native(object: &Bound<'_, PyAny>) -> Option<&'static dyn NativeProtocol> {
    match object.cast_exact::<TlsTransport>() {
        Ok(_) => Some(tls::NATIVE),
        Err(_) => streams::native(object),
    }
}
