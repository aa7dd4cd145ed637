//! The events that the `socket` module tells audit hooks (PEP 578).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

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

/// Whether anybody would hear of an event. Nobody hears of this question.
pub fn is_heard(py: Python<'_>) -> bool {
    // Asked for the event's arguments, which only happens if there is a hook to give them to.
    unsafe extern "C" fn refuse(_: *mut c_void) -> *mut ffi::PyObject {
        // SAFETY: the interpreter calls this attached; the exception lives for ever.
        unsafe { ffi::PyErr_SetNone(ffi::PyExc_SystemError) };
        ptr::null_mut()
    }
    let convert: unsafe extern "C" fn(*mut c_void) -> *mut ffi::PyObject = refuse;
    // SAFETY: attached; the format asks for a function of this type and for what to pass to it. It fails, so no hook is
    // called.
    let result = unsafe {
        PySys_Audit(c"socket.connect".as_ptr(), c"(O&)".as_ptr(), convert, ptr::null_mut::<c_void>())
    };
    outcome(py, result).is_err()
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
