//! The events that the `socket` module tells audit hooks (PEP 578).

use std::ffi::{CStr, c_char, c_int};

use pyo3::ffi;
use pyo3::prelude::*;

use crate::sys::names::Hints;

// Not in pyo3's bindings. Costs nothing as long as nobody listens.
unsafe extern "C" {
    fn PySys_Audit(event: *const c_char, format: *const c_char, ...) -> c_int;
}

fn outcome(py: Python<'_>, result: c_int) -> PyResult<()> {
    match result {
        0 => Ok(()),
        _ => Err(PyErr::fetch(py)),
    }
}

pub fn getaddrinfo(host: &Bound<'_, PyAny>, port: &Bound<'_, PyAny>, hints: Hints) -> PyResult<()> {
    const EVENT: &CStr = c"socket.getaddrinfo";
    let (host_pointer, port_pointer): (*mut ffi::PyObject, *mut ffi::PyObject) =
        (host.as_ptr(), port.as_ptr());
    // SAFETY: attached; the format asks for two objects and three ints, which is what follows.
    let result = unsafe {
        PySys_Audit(
            EVENT.as_ptr(),
            c"OOiii".as_ptr(),
            host_pointer,
            port_pointer,
            hints.family,
            hints.kind,
            hints.protocol,
        )
    };
    outcome(host.py(), result)
}

pub fn getnameinfo(address: &Bound<'_, PyAny>) -> PyResult<()> {
    let pointer: *mut ffi::PyObject = address.as_ptr();
    // SAFETY: attached; the format asks for one object, which is what follows.
    let result = unsafe { PySys_Audit(c"socket.getnameinfo".as_ptr(), c"(O)".as_ptr(), pointer) };
    outcome(address.py(), result)
}
