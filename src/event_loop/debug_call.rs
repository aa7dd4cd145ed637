//! Debug mode's Python code in a thread that the interpreter's end may find in it.
//!
//! Before 3.14 the interpreter ends a daemon thread by unwinding it, as soon as that wants the GIL back; and a stack with
//! Rust frames on it can't be unwound so. Scheduling runs Python code in debug mode only: it checks the callback, and
//! notes where the program was. So from the exit hooks on no other thread begins with that, and the interpreter waits
//! for those that are at it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::EventLoop;
use crate::py::this_thread;

/// The thread that ends the interpreter; 0 as long as it does not end.
static ENDING: AtomicU64 = AtomicU64::new(0);
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Nobody is in such code for long; this is in case that he is stopped in a debugger.
const PATIENCE: Duration = Duration::from_secs(1);

/// While it lives, the interpreter does not end.
pub struct DebugCall(());

impl EventLoop {
    /// Whether to do what debug mode has to do in Python.
    #[inline]
    pub fn debug_call(&self, py: Python<'_>) -> Option<DebugCall> {
        if self.is_debug(py) { DebugCall::begin() } else { None }
    }
}

impl DebugCall {
    #[cold]
    fn begin() -> Option<Self> {
        let ending = ENDING.load(SeqCst);
        if ending != 0 && ending != this_thread() {
            return None;
        }
        UNDER_WAY.fetch_add(1, SeqCst);
        Some(DebugCall(()))
    }
}

impl Drop for DebugCall {
    fn drop(&mut self) {
        // A forked child may have begun to count anew.
        let _ = UNDER_WAY.fetch_update(SeqCst, SeqCst, |count| count.checked_sub(1));
    }
}

/// The child has none of the threads that were at it.
pub fn after_fork() {
    UNDER_WAY.store(0, SeqCst);
}

/// The interpreter ends, in this thread: no other begins with debug mode's Python code, and none is in it any more.
#[pyfunction]
pub fn _end_debug_calls(py: Python<'_>) {
    ENDING.store(this_thread(), SeqCst);
    py.detach(|| {
        let begun = Instant::now();
        while UNDER_WAY.load(SeqCst) > 0 && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}
