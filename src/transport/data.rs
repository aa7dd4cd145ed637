//! What is handed to `write`: bytes, or anything that shows bytes.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::py::minor_version;

/// The argument of a write, readable without a copy.
pub enum Data<'py> {
    /// Of Rust code; what can't be sent at once must be copied.
    #[allow(dead_code, reason = "only protocols that are Rust write so")]
    Slice(&'py [u8]),
    /// Immutable: what can't be sent at once may be kept without a copy.
    Bytes(Bound<'py, PyBytes>),
    /// Somebody else may change it later: what can't be sent at once must be copied.
    Buffer(PyUntypedBuffer),
}

impl<'py> Data<'py> {
    /// Any C-contiguous buffer will do, as for `socket.send`. asyncio takes bytes, bytearray and memoryview only, and
    /// its TypeError is raised for what is no buffer at all.
    pub fn new(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        // Of a subclass, whose instances may do anything when they are dropped, only the buffer is used.
        if let Ok(bytes) = object.cast_exact::<PyBytes>() {
            return Ok(Data::Bytes(bytes.clone()));
        }
        let buffer = PyUntypedBuffer::get(object).map_err(|error| {
            match error.is_instance_of::<PyTypeError>(object.py()) {
                true => Self::type_error(object),
                false => error,
            }
        })?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("memoryview: underlying buffer is not C-contiguous"));
        }
        Ok(Data::Buffer(buffer))
    }

    fn type_error(object: &Bound<'_, PyAny>) -> PyErr {
        let kinds = match minor_version(object.py()) >= 14 {
            true => "bytes, bytearray, or memoryview object",
            false => "bytes-like object",
        };
        match object.get_type().name() {
            Ok(name) => PyTypeError::new_err(format!("data argument must be a {kinds}, not '{name}'")),
            Err(error) => error,
        }
    }

    /// The bytes. They must not be used after Python code has run, which could change them.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Data::Slice(slice) => slice,
            Data::Bytes(bytes) => bytes.as_bytes(),
            Data::Buffer(buffer) if buffer.len_bytes() == 0 => &[],
            // SAFETY: the buffer is C-contiguous (checked in `new`), so `len_bytes` bytes lie at `buf_ptr`, and its
            // exporter keeps them there as long as the view is held. Callers only pass the slice to a system call
            // or copy it, attached throughout, so no Python code writes to it meanwhile.
            Data::Buffer(buffer) => unsafe {
                std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes())
            },
        }
    }
}
