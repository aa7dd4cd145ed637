//! Whoever cancels a call from another thread may count on it: either it was never made, or it is over. (asyncio's
//! `_ThreadSafeHandle`, from 3.14 on.)

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::py::this_thread;

/// No thread: what `running_in` says before and after the call.
pub const NO_THREAD: u64 = 0;

/// Lets other threads wait until a callback has returned. One for all the calls of a loop: there is hardly ever anybody
/// who waits.
#[derive(Default)]
pub struct ReturnSignal {
    waiting: AtomicUsize,
    mutex: Mutex<()>,
    returned: Condvar,
}

impl ReturnSignal {
    fn tell(&self) {
        if self.waiting.load(SeqCst) > 0 {
            // Whoever has seen the callback running holds the mutex until it waits.
            drop(self.mutex.lock());
            self.returned.notify_all();
        }
    }

    pub fn wait_while(&self, running: impl Fn() -> bool) {
        self.waiting.fetch_add(1, SeqCst);
        let guard = self.mutex.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.returned.wait_while(guard, |()| running()));
        self.waiting.fetch_sub(1, SeqCst);
    }
}

/// A callback is on; over when this is dropped, also by a panic.
pub struct Running<'a>(&'a AtomicU64, &'a ReturnSignal);

impl<'a> Running<'a> {
    pub fn enter(running_in: &'a AtomicU64, signal: &'a ReturnSignal) -> Self {
        running_in.store(this_thread(), SeqCst);
        Running(running_in, signal)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(NO_THREAD, SeqCst);
        self.1.tell();
    }
}
