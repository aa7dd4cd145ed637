//! The slots of an operation's class that are used for every message, as the C API has them.
//!
//! Through pyo3's a result would leave as a StopIteration, made only to be taken apart by the interpreter at once;
//! `am_send`, which pyo3 does not know, gives it back as it is. (3.11 awaits by `am_send`. From 3.12 on only tasks do;
//! `await` goes on by `tp_iternext`, which gives it a StopIteration.)

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use pyo3::PyTypeInfo;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::panic::PanicException;
use pyo3::prelude::*;

use super::operation::{Sent, StreamOperation};
use crate::py::{attached, stop_iteration};

/// Called once, before the first operation is made.
pub fn install(py: Python<'_>) {
    let class = StreamOperation::type_object_raw(py);
    // SAFETY: attached; the class is a heap type of this module's, whose `tp_as_async` points into itself, and that no
    // other thread uses yet. The functions have the signatures that the slots want.
    unsafe {
        if let Some(slots) = (*class).tp_as_async.as_mut() {
            slots.am_await = Some(ffi::PyObject_SelfIter);
            slots.am_send = Some(send);
        }
        (*class).tp_iternext = Some(next);
    }
}

/// The slot `tp_iternext`, which `await` uses from 3.12 on.
unsafe extern "C" fn next(slf: *mut ffi::PyObject) -> *mut ffi::PyObject {
    let step = |py: Python<'_>| {
        // SAFETY: the interpreter calls the slot with an instance of the class, alive.
        let slf = unsafe { Bound::from_borrowed_ptr(py, slf).cast_into_unchecked::<StreamOperation>() };
        match guarded(|| StreamOperation::send_none(&slf)) {
            Ok(Sent::Yielded(object)) => return object.into_ptr(),
            // The end of an iterator without an exception stands for None.
            Ok(Sent::Returned(result)) if result.is_none() => {}
            Ok(Sent::Returned(result)) => stop_iteration(result).restore(py),
            Err(error) => error.restore(py),
        }
        ptr::null_mut()
    };
    // SAFETY: the interpreter calls slots attached.
    unsafe { attached(step) }
}

/// A panic as an exception.
fn guarded<'py>(step: impl FnOnce() -> PyResult<Sent<'py>>) -> PyResult<Sent<'py>> {
    let sent = catch_unwind(AssertUnwindSafe(step));
    sent.unwrap_or_else(|_| Err(PanicException::new_err("a stream operation panicked")))
}

/// The slot `am_send`.
unsafe extern "C" fn send(
    slf: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    let step = |py: Python<'_>| {
        // SAFETY: the interpreter calls the slot with an instance of the class, and both objects alive.
        let (slf, value) = unsafe {
            let slf = Bound::from_borrowed_ptr(py, slf).cast_into_unchecked::<StreamOperation>();
            (slf, Bound::from_borrowed_ptr(py, value))
        };
        let sent = guarded(|| match value.is_none() {
            true => StreamOperation::send_none(&slf),
            false => Err(PyTypeError::new_err("can't send non-None value to a just-started coroutine")),
        });
        let (kind, object) = match sent {
            Ok(Sent::Yielded(object)) => (ffi::PySendResult::PYGEN_NEXT, object.into_ptr()),
            Ok(Sent::Returned(object)) => (ffi::PySendResult::PYGEN_RETURN, object.into_ptr()),
            Err(error) => {
                error.restore(py);
                (ffi::PySendResult::PYGEN_ERROR, std::ptr::null_mut())
            }
        };
        // SAFETY: the caller passes a place for the result, and takes the reference.
        unsafe { *result = object };
        kind
    };
    // SAFETY: the interpreter calls slots attached.
    unsafe { attached(step) }
}
