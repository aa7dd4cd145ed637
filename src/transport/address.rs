//! Socket addresses as Python's socket module writes them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::sys::{Address, SocketAddress};

/// The address as `socket.getsockname()` would return it; `None` for a family that only the socket module knows.
pub fn to_python<'py>(py: Python<'py>, address: &SocketAddress) -> PyResult<Option<Bound<'py, PyAny>>> {
    let object = match address.parse() {
        Address::V4 { host, port } => (host, port).into_pyobject(py)?.into_any(),
        Address::V6 { host, port, flow_info, scope_id } => {
            (host, port, flow_info, scope_id).into_pyobject(py)?.into_any()
        }
        Address::Unix(path) if path.first() == Some(&0) => PyBytes::new(py, &path).into_any(),
        Address::Unix(path) => std::ffi::OsStr::from_bytes(&path).into_pyobject(py)?.into_any(),
        Address::Other => return Ok(None),
    };
    Ok(Some(object))
}

/// The address as the kernel wants it. None for what must be resolved, and for what the socket module shall judge.
pub fn from_python(family: libc::c_int, address: &Bound<'_, PyTuple>) -> Option<SocketAddress> {
    let host = address.get_item(0).ok()?;
    let host = host.cast::<pyo3::types::PyString>().ok()?.to_str().ok()?.to_owned();
    let port: u16 = address.get_item(1).ok()?.extract().ok()?;
    match (family, address.len()) {
        (libc::AF_INET, 2) => Some(SocketAddress::v4(host.parse::<Ipv4Addr>().ok()?, port)),
        // With a scope in its name, or flow information, it is the socket module's.
        (libc::AF_INET6, 2) => Some(SocketAddress::v6(host.parse::<Ipv6Addr>().ok()?, port, 0, 0)),
        _ => None,
    }
}
