//! `write` and `drain` of a writer.

use pyo3::intern;
use pyo3::prelude::*;

use super::attributes::{Attributes, attribute, is_false};
use super::class::Classes;
use super::operation::{Attempt, StreamOperation, Work};
use crate::transport::data::Data;
use crate::transport::{StreamTransport, TlsTransport};

/// The methods that the core gives to writers.
#[pyclass(subclass, frozen, name = "StreamWriter", module = "mioloop._core")]
pub struct StreamWriterMethods;

#[pymethods]
impl StreamWriterMethods {
    /// As `asyncio.StreamWriter.write`.
    fn write<'py>(slf: &Bound<'py, Self>, data: &Bound<'py, PyAny>) -> PyResult<()> {
        let (py, writer) = (slf.py(), slf.as_any());
        let classes = Classes::get(py)?;
        if classes.fast_writer.is_class_of(writer)
            && let Some(transport) = attribute!(Attributes::of(writer)?, "_transport")?
        {
            if let Ok(transport) = transport.cast_exact::<StreamTransport>() {
                return StreamTransport::write_data(transport, &Data::new(data)?);
            }
            if let Ok(transport) = transport.cast_exact::<TlsTransport>() {
                return TlsTransport::write(transport, data);
            }
        }
        classes.fast_writer.call_original(writer, "write", Some(data.clone())).map(drop)
    }

    /// As `asyncio.StreamWriter.drain`.
    fn drain<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, writer) = (slf.py(), slf.as_any());
        let classes = Classes::get(py)?;
        match classes.fast_writer.is_class_of(writer) {
            true => StreamOperation::make(writer, None, Work::Drain),
            false => classes.fast_writer.call_original(writer, "drain", None),
        }
    }
}

/// A drain that has nothing to wait for and nothing to report is done at once.
pub fn attempt_drain<'py>(writer: &Bound<'py, PyAny>) -> PyResult<Attempt<'py>> {
    match has_nothing_to_do(writer)? {
        Some(true) => Ok(Attempt::Done(writer.py().None().into_bound(writer.py()))),
        _ => Ok(Attempt::StepAside),
    }
}

/// None where that can't be told.
fn has_nothing_to_do(writer: &Bound<'_, PyAny>) -> PyResult<Option<bool>> {
    let py = writer.py();
    let classes = Classes::get(py)?;
    if !classes.fast_writer.is_class_of(writer) {
        return Ok(None);
    }
    let writer = Attributes::of(writer)?;
    let (Some(reader), Some(transport), Some(protocol)) =
        (attribute!(writer, "_reader")?, attribute!(writer, "_transport")?, attribute!(writer, "_protocol")?)
    else {
        return Ok(None);
    };
    if !reader.is_none() {
        let Some(reader) = classes.reader_attributes(&reader)? else { return Ok(None) };
        if !attribute!(reader, "_exception")?.is_some_and(|exception| exception.is_none()) {
            return Ok(None);
        }
    }
    let closing = if let Ok(transport) = transport.cast_exact::<StreamTransport>() {
        transport.as_super().get().is_closing(py)
    } else if let Ok(transport) = transport.cast_exact::<TlsTransport>() {
        transport.get().is_closing(py)?
    } else {
        return Ok(None);
    };
    if closing || !classes.protocol.is_class_of(&protocol) {
        return Ok(None);
    }
    let protocol = Attributes::of(&protocol)?;
    let helper = protocol.get(intern!(py, "_drain_helper"))?;
    let lost = attribute!(protocol, "_connection_lost")?;
    let paused = attribute!(protocol, "_paused")?;
    Ok(Some(helper.is_none() && is_false(&lost) && is_false(&paused)))
}
