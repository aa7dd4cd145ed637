//! Calls into Python within a context (PEP 567).

use pyo3::ffi;
use pyo3::prelude::*;

/// `contextvars.copy_context()`, without the Python call.
pub fn copy_current_context(py: Python<'_>) -> PyResult<Py<PyAny>> {
    // SAFETY: attached, as `py` shows; the result is a new reference or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()).map(Bound::unbind) }
}

/// `contextvars.Context()`
pub fn new_context(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: as above.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_New()) }
}

/// Whether it is a context, and has no variables.
pub fn is_empty(context: &Bound<'_, PyAny>) -> bool {
    // SAFETY: attached, and the object is alive; the second call is for contexts only, which have a length.
    unsafe { ffi::PyContext_CheckExact(context.as_ptr()) != 0 && ffi::PyObject_Size(context.as_ptr()) == 0 }
}

/// Does `work` as `context.run` would. A context that is entered already is asyncio's RuntimeError.
pub fn in_context<R>(context: &Bound<'_, PyAny>, work: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    EnteredContext::enter(context)?.run(work)
}

/// The same for work that must not be lost: where the context is entered already, by a program that runs the loop within a
/// callback, it is done in the current one.
pub fn in_context_or_this<R>(context: &Bound<'_, PyAny>, work: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    match EnteredContext::enter(context) {
        Ok(entered) => entered.run(work),
        Err(_) => work(),
    }
}

/// The context is the current one for as long as this lives; a panic leaves it too.
struct EnteredContext<'a, 'py>(&'a Bound<'py, PyAny>);

impl<'a, 'py> EnteredContext<'a, 'py> {
    fn enter(context: &'a Bound<'py, PyAny>) -> PyResult<Self> {
        // SAFETY: attached; anything but a context is a TypeError.
        match unsafe { ffi::PyContext_Enter(context.as_ptr()) } {
            0 => Ok(EnteredContext(context)),
            _ => Err(PyErr::fetch(context.py())),
        }
    }

    fn run<R>(self, work: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
        let result = work();
        self.exit()?;
        result
    }

    /// Fails if the work has left the context in its turn, or entered another and not left it.
    fn exit(self) -> PyResult<()> {
        let context = self.0;
        std::mem::forget(self);
        // SAFETY: attached; the context was entered by `enter`, by this thread.
        match unsafe { ffi::PyContext_Exit(context.as_ptr()) } {
            0 => Ok(()),
            _ => Err(PyErr::fetch(context.py())),
        }
    }
}

impl Drop for EnteredContext<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: as in `exit`.
        if unsafe { ffi::PyContext_Exit(self.0.as_ptr()) } != 0 {
            PyErr::fetch(self.0.py()).write_unraisable(self.0.py(), Some(self.0));
        }
    }
}
