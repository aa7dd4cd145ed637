//! Places for what Python's threads share under the interpreter lock, where a count of borrows would cost too much.

use std::cell::Cell;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::{Bound, ffi};

/// A place for one reference. Nothing is lent out of it: it is copied, taken or put, each in one step, and whatever
/// it gives up is handed over, to be dropped by the caller, which may run Python code.
pub struct Slot<T = PyAny>(Cell<Option<Py<T>>>);

// SAFETY: as for `AttachedCell`: every access takes a `Python` token or is the collector's, and none of them runs
// Python code half-way.
unsafe impl<T> Sync for Slot<T> {}

impl<T> Slot<T> {
    pub const fn empty() -> Self {
        Slot(Cell::new(None))
    }

    /// Fills a slot that is empty.
    pub fn fill(&self, value: Bound<'_, T>) {
        let old = self.0.replace(Some(value.unbind()));
        debug_assert!(old.is_none());
        // Not even looked at: to drop a `Py` costs more than to have it.
        std::mem::forget(old);
    }

    pub fn put<'py>(&self, value: Bound<'py, T>) -> Option<Bound<'py, T>> {
        let py = value.py();
        self.0.replace(Some(value.unbind())).map(|old| old.into_bound(py))
    }

    pub fn take<'py>(&self, py: Python<'py>) -> Option<Bound<'py, T>> {
        self.0.take().map(|value| value.into_bound(py))
    }

    pub fn get<'py>(&self, py: Python<'py>) -> Option<Bound<'py, T>> {
        self.peek().map(|value| value.bind(py).clone())
    }

    pub fn is_empty(&self, _py: Python<'_>) -> bool {
        self.peek().is_none()
    }

    /// The object, for as long as the slot keeps it; null if there is none.
    pub fn as_ptr(&self, _py: Python<'_>) -> *mut ffi::PyObject {
        self.peek().map_or(std::ptr::null_mut(), Py::as_ptr)
    }

    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(self.peek())
    }

    /// For this type's own methods, none of which changes the slot while it has this.
    fn peek(&self) -> Option<&Py<T>> {
        // SAFETY: nobody else looks at the cell meanwhile: this thread is attached, or the collector keeps the others
        // away; and no method calls anything that could come back here before the reference is gone. (`visit` of
        // the collector does not run Python code.)
        unsafe { (*self.0.as_ptr()).as_ref() }
    }
}

/// A small value.
pub struct AttachedValue<T: Copy>(Cell<T>);

// SAFETY: as for `AttachedCell`; a value is read or written in one step.
unsafe impl<T: Copy + Send> Sync for AttachedValue<T> {}

impl<T: Copy> AttachedValue<T> {
    pub const fn new(value: T) -> Self {
        AttachedValue(Cell::new(value))
    }

    pub fn get(&self, _py: Python<'_>) -> T {
        self.0.get()
    }

    /// As `AttachedCell::borrow_for_traverse`.
    pub fn get_for_traverse(&self) -> T {
        self.0.get()
    }

    pub fn set(&self, _py: Python<'_>, value: T) {
        self.0.set(value);
    }

    pub fn replace(&self, _py: Python<'_>, value: T) -> T {
        self.0.replace(value)
    }
}
