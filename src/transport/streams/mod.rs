//! asyncio's own streams, without a Python frame for each message.
//!
//! `StreamReader`, `StreamReaderProtocol` and `StreamWriter` stay what they are: Python objects with asyncio's attributes,
//! whose methods programs call, patch and override. What is here does the same to the same attributes, in Rust:
//!
//! ```text
//!   recv ──> received: reader._buffer grows, reader._waiter is done ──> task ──> StreamOperation takes from reader._buffer
//! ```
//!
//! That asyncio's method and ours may take turns on one object is what keeps this honest. Ours steps aside, for the
//! method that Python would call, wherever it is not certain to do the same: a class that is not exactly asyncio's,
//! a patched method, an attribute of another type, anything that ends in an error.
//!
//! A reader and a writer change their class when their connection begins, to a subclass that has nothing new but these
//! methods (python/mioloop/streams.py). Methods in the instance would be a cycle through each reader, which has to die
//! when its last user drops it, and asyncio's own classes are not ours to patch: other loops use them too.

mod attributes;
mod class;
mod operation;
mod place;
mod reader;
mod slots;
mod writer;

use pyo3::exceptions::PyNotImplementedError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyTuple, PyWeakrefMethods, PyWeakrefReference};

use super::StreamTransport;
use super::base::Transport;
use super::protocol::{NativeProtocol, Receive, connection_made};
use crate::sys;
use attributes::{Attributes, append, attribute, is_false};
use class::Classes;

pub use class::{_enable_streams, _use_streams};
pub use operation::StreamOperation;
pub use reader::StreamReaderMethods;
pub use writer::StreamWriterMethods;

/// The protocol of a stream, if it is asyncio's and to be served here.
pub(super) fn native(object: &Bound<'_, PyAny>) -> Option<&'static dyn NativeProtocol> {
    let classes = Classes::enabled(object.py())?;
    classes.protocol.is_class_of(object).then_some(&StreamProtocol)
}

/// What calls the protocol's `connection_made` on behalf of a transport that is not a socket's. None where that is left
/// to the protocol.
pub(super) fn begins(protocol: &Bound<'_, PyAny>, is_debug: bool) -> Option<&'static Py<PyAny>> {
    let classes = Classes::enabled(protocol.py())?;
    (!is_debug && classes.protocol.is_class_of(protocol)).then_some(&classes.connection_made)
}

/// `data_received` with all the pieces at once, if they can be appended to the reader's buffer without it.
pub(super) fn feed(protocol: &Bound<'_, PyAny>, pieces: &[Bound<'_, PyBytes>]) -> PyResult<bool> {
    let Some(reader) = Hungry::behind(protocol)? else { return Ok(false) };
    for (index, piece) in pieces.iter().enumerate() {
        match append(&reader.buffer, piece.as_bytes()) {
            // Somebody holds a view of the buffer; that fails before anything is appended.
            Err(_) if index == 0 => return Ok(false),
            appended => appended?,
        }
    }
    reader.fed().map(|()| true)
}

struct StreamProtocol;

impl NativeProtocol for StreamProtocol {
    fn begin<'py>(
        &self,
        object: &Bound<'py, PyAny>,
        transport: &Bound<'py, Transport>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let py = object.py();
        match Classes::enabled(py) {
            // In debug mode tracebacks and the stacks of tasks shall show asyncio's own methods.
            Some(classes) if !transport.get().is_debug(py) => {
                let args = (object, transport).into_pyobject(py)?;
                Ok((classes.connection_made.bind(py).clone(), args))
            }
            _ => connection_made(object, transport),
        }
    }

    fn offer(
        &self,
        _object: &Bound<'_, PyAny>,
        transport: &Bound<'_, StreamTransport>,
        receive: Receive<'_>,
    ) -> sys::Result<usize> {
        transport.as_super().get().event_loop.get().with_read_buffer(transport.py(), receive)
    }

    fn received(
        &self,
        object: &Bound<'_, PyAny>,
        transport: &Bound<'_, StreamTransport>,
        size: usize,
    ) -> PyResult<()> {
        let (py, base) = (object.py(), transport.as_super().get());
        if let Some(reader) = Hungry::behind(object)? {
            // SAFETY: `offer` has received them into the loop's buffer.
            let appended = unsafe {
                StreamTransport::with_received(transport, size, |data| append(&reader.buffer, data))
            };
            // Fails while somebody holds a view of the buffer, an error that asyncio's method shall raise.
            if appended.is_ok() {
                return reader.fed();
            }
        }
        // SAFETY: as above.
        let data = unsafe { StreamTransport::with_received(transport, size, |data| PyBytes::new(py, data)) };
        base.call_protocol(object, intern!(py, "data_received"), (data,)).map(drop)
    }
}

/// A reader to which `feed_data` would do no more than what is done here.
struct Hungry<'py> {
    attributes: Attributes<'py>,
    buffer: Bound<'py, PyByteArray>,
    limit: i64,
}

impl<'py> Hungry<'py> {
    fn behind(protocol: &Bound<'py, PyAny>) -> PyResult<Option<Self>> {
        let py = protocol.py();
        let Some(classes) = Classes::enabled(py) else { return Ok(None) };
        if !classes.protocol.is_class_of(protocol) {
            return Ok(None);
        }
        let protocol = Attributes::of(protocol)?;
        if protocol.get(intern!(py, "data_received"))?.is_some() {
            return Ok(None);
        }
        let reference = attribute!(protocol, "_stream_reader_wr")?;
        let reader = match reference.as_ref().map(|reference| reference.cast::<PyWeakrefReference>()) {
            Some(Ok(reference)) => reference.upgrade(),
            _ => None,
        };
        let Some(reader) = reader else { return Ok(None) };
        let Some(attributes) = classes.reader_attributes(&reader)? else { return Ok(None) };
        if !is_false(&attribute!(attributes, "_eof")?) {
            return Ok(None);
        }
        Ok(match (attributes.buffer()?, attributes.limit()?) {
            (Some(buffer), Some(limit)) => Some(Hungry { attributes, buffer, limit }),
            _ => None,
        })
    }

    /// The rest of `feed_data`, once the bytes are in the buffer.
    fn fed(&self) -> PyResult<()> {
        let (py, attributes) = (self.buffer.py(), &self.attributes);
        let none = py.None().into_bound(py);
        if let Some(waiter) = attribute!(attributes, "_waiter")?.filter(|waiter| !waiter.is_none()) {
            attributes.set(intern!(py, "_waiter"), &none)?;
            if let Err(error) = waiter.call_method1(intern!(py, "set_result"), (&none,)) {
                // asyncio asks before; but a waiter hardly ever is.
                if !waiter.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
                    return Err(error);
                }
            }
        }
        if self.buffer.len() as i64 <= self.limit.saturating_mul(2)
            || !is_false(&attribute!(attributes, "_paused")?)
        {
            return Ok(());
        }
        match attribute!(attributes, "_transport")?.filter(|transport| !transport.is_none()) {
            None => Ok(()),
            Some(transport) => match transport.call_method0(intern!(py, "pause_reading")) {
                // As in asyncio: all the data will have to be buffered.
                Err(error) if error.is_instance_of::<PyNotImplementedError>(py) => {
                    attributes.set(intern!(py, "_transport"), &none)
                }
                Err(error) => Err(error),
                Ok(_) => attributes.set(intern!(py, "_paused"), &PyBool::new(py, true)),
            },
        }
    }
}
