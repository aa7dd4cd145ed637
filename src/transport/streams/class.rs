//! asyncio's stream classes, asked before each use of a method of ours whether they still are as asyncio made them.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use super::attributes::Attributes;
use super::slots;
use crate::py::Class;

/// The classes of streams: asyncio's protocol, and those that readers and writers change to.
pub struct Classes {
    pub fast_reader: Class,
    /// How many attributes a reader has of its own; with more, one may hide a method.
    reader_attributes: usize,
    pub protocol: Class,
    pub fast_writer: Class,
    /// Calls a protocol's `connection_made`.
    pub connection_made: Py<PyAny>,
    enabled: AtomicBool,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

/// Lets streams be served by the core, whose classes these are: what a reader changes to, asyncio's protocol, what a
/// writer changes to.
///
/// `reader_attributes` is how many attributes a new reader has, and `connection_made(protocol, transport)` is called
/// in place of the protocol's method, which it calls in turn. Only the first call counts.
#[pyfunction]
pub fn _use_streams(
    classes: &Bound<'_, PyTuple>,
    reader_attributes: usize,
    connection_made: Py<PyAny>,
) -> PyResult<()> {
    let py = classes.py();
    let (fast_reader, protocol, fast_writer): (Bound<'_, PyType>, Bound<'_, PyType>, Bound<'_, PyType>) =
        classes.extract()?;
    let classes = Classes {
        fast_reader: Class::new(&fast_reader)?,
        reader_attributes,
        protocol: Class::new(&protocol)?,
        fast_writer: Class::new(&fast_writer)?,
        connection_made,
        enabled: AtomicBool::new(true),
    };
    if CLASSES.set(py, classes).is_ok() {
        slots::install(py);
    }
    Ok(())
}

/// Turns the core's streams on or off, for connections to come; returns whether they were on.
#[pyfunction]
pub fn _enable_streams(py: Python<'_>, enabled: bool) -> bool {
    CLASSES.get(py).is_some_and(|classes| classes.enabled.swap(enabled, Ordering::Relaxed))
}

impl Classes {
    pub fn get(py: Python<'_>) -> PyResult<&'static Classes> {
        CLASSES.get(py).ok_or_else(|| PyRuntimeError::new_err("mioloop is not imported"))
    }

    /// None where streams are left to asyncio.
    pub fn enabled(py: Python<'_>) -> Option<&'static Classes> {
        CLASSES.get(py).filter(|classes| classes.enabled.load(Ordering::Relaxed))
    }

    /// The attributes of a reader whose methods are asyncio's or ours, none of them hidden by one of the instance.
    pub fn reader_attributes<'py>(&self, reader: &Bound<'py, PyAny>) -> PyResult<Option<Attributes<'py>>> {
        if !self.fast_reader.is_class_of(reader) {
            return Ok(None);
        }
        let attributes = Attributes::of(reader)?;
        Ok((attributes.len() == self.reader_attributes).then_some(attributes))
    }
}
