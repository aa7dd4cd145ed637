//! `readline`, `readuntil`, `read` and `readexactly` of a reader.

use std::convert::Infallible;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes};

use super::attributes::{Attributes, attribute, find, is_false, is_true, small_int, take};
use super::class::Classes;
use super::operation::{Attempt, Order, Progress, StreamOperation, Work};
use crate::py::AttachedCell;

/// The methods that the core gives to readers.
#[pyclass(subclass, frozen, name = "StreamReader", module = "mioloop._core")]
pub struct StreamReaderMethods;

#[pymethods]
impl StreamReaderMethods {
    /// As `asyncio.StreamReader.readline`.
    fn readline<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        begin(slf, "readline", Some(Work::ReadLine), None)
    }

    /// As `asyncio.StreamReader.readuntil`.
    #[pyo3(signature = (separator = Argument::Missing), text_signature = "($self, separator=b'\\n')")]
    fn readuntil<'py>(slf: &Bound<'py, Self>, separator: Argument<'py>) -> PyResult<Bound<'py, PyAny>> {
        let separator = match separator {
            Argument::Given(separator) => separator,
            Argument::Missing => PyBytes::new(slf.py(), b"\n").into_any(),
        };
        let work = match separator.cast_exact::<PyBytes>() {
            Ok(bytes) if !bytes.as_bytes().is_empty() => Some(Work::ReadUntil),
            _ => None,
        };
        begin(slf, "readuntil", work, Some(separator))
    }

    /// As `asyncio.StreamReader.read`.
    #[pyo3(signature = (n = Argument::Missing), text_signature = "($self, n=-1)")]
    fn read<'py>(slf: &Bound<'py, Self>, n: Argument<'py>) -> PyResult<Bound<'py, PyAny>> {
        let Argument::Given(n) = n else { return begin(slf, "read", Some(Work::ReadAll), None) };
        let work = match small_int(&n) {
            Some(n) if n < 0 => Some(Work::ReadAll),
            Some(n) => Some(Work::Read(n as usize)),
            None => None,
        };
        begin(slf, "read", work, Some(n))
    }

    /// As `asyncio.StreamReader.readexactly`.
    fn readexactly<'py>(slf: &Bound<'py, Self>, n: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let work = small_int(&n).and_then(|n| usize::try_from(n).ok()).map(Work::ReadExactly);
        begin(slf, "readexactly", work, Some(n))
    }
}

/// An argument that has a default, for which None is not another name.
enum Argument<'py> {
    Missing,
    Given(Bound<'py, PyAny>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Argument<'py> {
    type Error = Infallible;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, Infallible> {
        Ok(Argument::Given(object.to_owned()))
    }
}

/// What a call returns: an operation of ours, if there is work for one.
fn begin<'py>(
    reader: &Bound<'py, StreamReaderMethods>,
    name: &str,
    work: Option<Work>,
    argument: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let (py, reader) = (reader.py(), reader.as_any());
    let classes = Classes::get(py)?;
    if let (Some(work), Some(_)) = (work, classes.reader_attributes(reader)?) {
        let separator = match work {
            Work::ReadUntil => argument.map(|separator| separator.cast_into()).transpose()?,
            _ => None,
        };
        return StreamOperation::make(reader, separator, work);
    }
    classes.fast_reader.call_original(reader, name, argument)
}

/// Goes as far as it gets with what is in the buffer.
pub fn attempt<'py>(order: &Order<'py>, progress: &AttachedCell<Progress>) -> PyResult<Attempt<'py>> {
    let (py, work) = (order.stream.py(), order.work);
    let Some(attributes) = Classes::get(py)?.reader_attributes(&order.stream)? else {
        return Ok(Attempt::StepAside);
    };
    loop {
        let (Some(buffer), Some(limit)) = (attributes.buffer()?, attributes.limit()?) else {
            return Ok(Attempt::StepAside);
        };
        let waited = progress.borrow_mut(py).waited;
        if !waited && !attribute!(attributes, "_exception")?.is_some_and(|exception| exception.is_none()) {
            return Ok(Attempt::StepAside);
        }
        // What asyncio does with the two answers that are neither is up to asyncio.
        let eof = attribute!(attributes, "_eof")?;
        let (at_eof, open) = (is_true(&eof), is_false(&eof));
        if !at_eof && !open {
            return Ok(Attempt::StepAside);
        }
        let limit = usize::try_from(limit).unwrap_or(0);
        let length = buffer.len();
        let count = match work {
            Work::ReadLine | Work::ReadUntil => {
                let separator = order.separator.as_ref().map_or(&b"\n"[..], |separator| separator.as_bytes());
                let searched = progress.borrow_mut(py).searched;
                match find(&buffer, separator, searched) {
                    // Too long: an error, which asyncio's own method raises.
                    Some(position) if position > limit => return Ok(Attempt::StepAside),
                    Some(position) => position + separator.len(),
                    None => {
                        let searched = (length + 1).saturating_sub(separator.len());
                        if searched > limit {
                            return Ok(Attempt::StepAside);
                        }
                        progress.borrow_mut(py).searched = searched;
                        match work {
                            _ if open => return wait(attributes),
                            // The end of the stream without a separator. asyncio does not resume reading here.
                            Work::ReadLine => return Ok(Attempt::Done(take(&buffer, length)?.into_any())),
                            _ => return Ok(Attempt::StepAside),
                        }
                    }
                }
            }
            Work::Read(0) => 0,
            Work::Read(_) | Work::ReadAll if length == 0 && open && !waited => return wait(attributes),
            Work::Read(size) => size,
            Work::ReadAll => limit,
            Work::ReadExactly(size) if length >= size => size,
            Work::ReadExactly(_) if open => return wait(attributes),
            _ => return Ok(Attempt::StepAside),
        };
        let taken = take(&buffer, count)?;
        if count > 0 {
            maybe_resume(&attributes, buffer.len(), limit)?;
        }
        if !matches!(work, Work::ReadAll) {
            return Ok(Attempt::Done(taken.into_any()));
        }
        let mut progress = progress.borrow_mut(py);
        if taken.as_bytes().is_empty() {
            let all = PyBytes::new(py, &progress.blocks);
            return Ok(Attempt::Done(all.into_any()));
        }
        progress.blocks.extend_from_slice(taken.as_bytes());
        progress.waited = false;
    }
}

/// Waits, unless that is an error: somebody else does.
fn wait(attributes: Attributes<'_>) -> PyResult<Attempt<'_>> {
    let waiter = attribute!(attributes, "_waiter")?;
    match waiter.is_some_and(|waiter| waiter.is_none()) {
        true => Ok(Attempt::Wait(attributes)),
        false => Ok(Attempt::StepAside),
    }
}

/// asyncio's `_wait_for_data` up to the point where it waits. Returns the iterator of the waiter.
pub fn begin_wait<'py>(attributes: &Attributes<'py>) -> PyResult<Bound<'py, PyAny>> {
    let py = attributes.py();
    if !is_false(&attribute!(attributes, "_paused")?) {
        resume(attributes)?;
    }
    let event_loop = attribute!(attributes, "_loop")?.unwrap_or_else(|| py.None().into_bound(py));
    let waiter = event_loop.call_method0(intern!(py, "create_future"))?;
    attributes.set(intern!(py, "_waiter"), &waiter)?;
    // asyncio's futures have the iterator under both names, and this way is the short one.
    match waiter.try_iter() {
        Ok(iterator) => Ok(iterator.into_any()),
        Err(_) => waiter.call_method0(intern!(py, "__await__")),
    }
}

/// asyncio's `_maybe_resume_transport`.
fn maybe_resume(attributes: &Attributes<'_>, length: usize, limit: usize) -> PyResult<()> {
    let paused = attribute!(attributes, "_paused")?;
    match is_false(&paused) || length > limit {
        true => Ok(()),
        false => resume(attributes),
    }
}

fn resume(attributes: &Attributes<'_>) -> PyResult<()> {
    let py = attributes.py();
    attributes.set(intern!(py, "_paused"), &PyBool::new(py, false))?;
    match attribute!(attributes, "_transport")? {
        Some(transport) => transport.call_method0(intern!(py, "resume_reading")).map(drop),
        None => Ok(()),
    }
}
