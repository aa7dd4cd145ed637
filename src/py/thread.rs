//! Threads, as `threading.get_ident()` names them.

use pyo3::ffi;

pub fn this_thread() -> u64 {
    // SAFETY: asks the operating system for a number, and needs nothing for it.
    unsafe { ffi::PyThread_get_thread_ident() as u64 }
}
