//! The attributes of a stream's objects, read past their class, and the bytes of a reader's buffer.

use std::os::raw::c_void;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyInt, PyString};

use super::place::Place;

/// `Attributes::get` for a name that is spelled out: most often without a look-up.
macro_rules! attribute {
    ($attributes:expr, $name:literal) => {{
        static PLACE: $crate::transport::streams::place::Place =
            $crate::transport::streams::place::Place::new();
        let attributes = &$attributes;
        attributes.get_at(pyo3::intern!(attributes.py(), $name), &PLACE)
    }};
}
pub(super) use attribute;

/// An object's own attributes: its `__dict__`. What its class may define is not looked at.
pub struct Attributes<'py>(Bound<'py, PyDict>);

impl<'py> Attributes<'py> {
    pub fn of(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        // SAFETY: attached; the function takes any object, and gives a new reference, or null with an exception set
        // for one that has no `__dict__`.
        let dict = unsafe {
            let dict = ffi::PyObject_GenericGetDict(object.as_ptr(), std::ptr::null_mut::<c_void>());
            Bound::from_owned_ptr_or_err(object.py(), dict)?
        };
        Ok(Attributes(dict.cast_into::<PyDict>()?))
    }

    pub fn py(&self) -> Python<'py> {
        self.0.py()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn get(&self, name: &Bound<'py, PyString>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.0.get_item(name)
    }

    /// The same. `place` is where the attribute was the last time.
    #[inline(always)]
    pub fn get_at(&self, name: &Bound<'py, PyString>, place: &Place) -> PyResult<Option<Bound<'py, PyAny>>> {
        place.get(&self.0, name)
    }

    pub fn set(&self, name: &Bound<'py, PyString>, value: &Bound<'py, PyAny>) -> PyResult<()> {
        self.0.set_item(name, value)
    }

    /// A reader's buffer, if it is what asyncio made it.
    pub fn buffer(&self) -> PyResult<Option<Bound<'py, PyByteArray>>> {
        let buffer = attribute!(self, "_buffer")?;
        Ok(buffer.and_then(|buffer| buffer.cast_into_exact::<PyByteArray>().ok()))
    }

    /// A reader's limit, if it is a number of bytes.
    pub fn limit(&self) -> PyResult<Option<i64>> {
        let limit = attribute!(self, "_limit")?;
        Ok(limit.and_then(|limit| small_int(&limit)))
    }
}

/// The value of a number that is exactly an int and not huge.
pub fn small_int(number: &Bound<'_, PyAny>) -> Option<i64> {
    let number = number.cast_exact::<PyInt>().ok()?;
    let mut overflow = 0;
    // SAFETY: attached, on a live int, for which the call does not fail; a huge one is told by `overflow`.
    let value = unsafe { ffi::PyLong_AsLongLongAndOverflow(number.as_ptr(), &mut overflow) };
    (overflow == 0).then_some(value)
}

pub fn is_false(value: &Option<Bound<'_, PyAny>>) -> bool {
    value.as_ref().is_some_and(|value| value.cast_exact::<PyBool>().is_ok_and(|value| !value.is_true()))
}

pub fn is_true(value: &Option<Bound<'_, PyAny>>) -> bool {
    value.as_ref().is_some_and(|value| value.cast_exact::<PyBool>().is_ok_and(|value| value.is_true()))
}

/// Adds bytes at the buffer's end. BufferError while somebody holds a view of it. Runs no Python code.
pub fn append(buffer: &Bound<'_, PyByteArray>, data: &[u8]) -> PyResult<()> {
    let length = buffer.len();
    buffer.resize(length + data.len())?;
    // SAFETY: attached all the while, and no Python code runs: nobody resizes the buffer or reads what is not written
    // yet. `data` is not in it, since it is borrowed and the buffer was just resized.
    unsafe { buffer.as_bytes_mut()[length..].copy_from_slice(data) };
    Ok(())
}

/// Where `separator`, one byte or more, is in the buffer behind its first `offset` bytes.
pub fn find(buffer: &Bound<'_, PyByteArray>, separator: &[u8], offset: usize) -> Option<usize> {
    // SAFETY: attached, and no Python code runs while the slice lives.
    let rest = unsafe { buffer.as_bytes() }.get(offset..)?;
    crate::sys::find(rest, separator).map(|position| offset + position)
}

/// Takes the first `count` bytes out of the buffer, or all if it has fewer. BufferError while somebody holds a view of
/// it; then nothing is taken.
pub fn take<'py>(buffer: &Bound<'py, PyByteArray>, count: usize) -> PyResult<Bound<'py, PyBytes>> {
    let count = count.min(buffer.len());
    // SAFETY: attached, and the slice is copied before any Python code runs: making bytes runs none.
    let taken = PyBytes::new(buffer.py(), &unsafe { buffer.as_bytes() }[..count]);
    match count == buffer.len() {
        true => buffer.resize(0)?,
        false => delete_front(buffer, count)?,
    }
    Ok(taken)
}

fn delete_front(buffer: &Bound<'_, PyByteArray>, count: usize) -> PyResult<()> {
    // SAFETY: attached, on a live object; a count that is a size of something fits. (pyo3's `del_slice` wants a
    // PySequence, and to know a bytearray for one it asks an abstract class of Python's.)
    match unsafe { ffi::PySequence_DelSlice(buffer.as_ptr(), 0, count as ffi::Py_ssize_t) } {
        0 => Ok(()),
        _ => Err(PyErr::fetch(buffer.py())),
    }
}
