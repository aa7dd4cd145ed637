//! Socket addresses as Python's socket module writes them.

use std::os::unix::ffi::OsStrExt;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::sys::{Address, SocketAddress};

/// The address as `socket.getsockname()` would return it; `None` for a family that only the socket module knows.
pub fn to_python<'py>(py: Python<'py>, address: &SocketAddress) -> PyResult<Option<Bound<'py, PyAny>>> {
    let object = match address.parse() {
        Address::V4 { host, port } => (host, port).into_pyobject(py)?.into_any(),
        Address::V6 {
            host,
            port,
            flow_info,
            scope_id,
        } => (host, port, flow_info, scope_id).into_pyobject(py)?.into_any(),
        Address::Unix(path) if path.first() == Some(&0) => PyBytes::new(py, &path).into_any(),
        Address::Unix(path) => std::ffi::OsStr::from_bytes(&path).into_pyobject(py)?.into_any(),
        Address::Other => return Ok(None),
    };
    Ok(Some(object))
}
