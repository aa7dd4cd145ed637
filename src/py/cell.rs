//! State that Python's threads share under the interpreter lock.

use std::cell::{BorrowMutError, RefCell, RefMut};

use pyo3::Python;

/// Mutable state that is only reached while attached to the interpreter, which the token proves.
///
/// A borrow must not span a call into Python: that may run any code, come back here and find the cell taken, which
/// is a panic (it reaches Python as an exception). Dropping the last reference to an object is such a call too, so
/// values are taken out under the borrow and dropped after it.
pub struct AttachedCell<T>(RefCell<T>);

// SAFETY: every access takes a `Python` token, so the interpreter lock orders them; `RefCell` finds re-entrance on
// one thread. Interpreters without that lock enable it again on importing this module, which does not declare
// itself free of it.
unsafe impl<T: Send> Sync for AttachedCell<T> {}

impl<T> AttachedCell<T> {
    pub const fn new(value: T) -> Self {
        AttachedCell(RefCell::new(value))
    }

    pub fn borrow_mut(&self, _py: Python<'_>) -> RefMut<'_, T> {
        self.0.borrow_mut()
    }

    pub fn replace(&self, py: Python<'_>, value: T) -> T {
        std::mem::replace(&mut self.borrow_mut(py), value)
    }

    /// For the collector, which runs whenever Python allocates, also under a borrow of ours. What it can't see it
    /// leaves alive.
    ///
    /// The collector calls `__traverse__` attached, though pyo3 gives no token there.
    pub fn borrow_for_traverse(&self) -> Result<RefMut<'_, T>, BorrowMutError> {
        self.0.try_borrow_mut()
    }
}
