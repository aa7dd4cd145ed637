//! What the loop has to do with the jobs of an executor: it watches for those that end soon, and takes their results.
//!
//! A result comes in as a call of `call_soon_threadsafe` does, and in order with these: what a job has scheduled so is
//! run before its own future is resolved.

use std::sync::Arc;

use mio::Waker;
use pyo3::Python;

use super::bell::Bell;
use super::{EventLoop, Ready};
use crate::executor::Finished;
use crate::watch::{Parker, Patience};

#[derive(Default)]
pub(super) struct Jobs {
    /// How many are queued or running.
    unfinished: usize,
    farewell: Farewell,
}

/// For the loop's thread to do when it has let go of the GIL and before it sleeps.
#[derive(Default)]
pub(super) struct Farewell {
    /// The last worker that was called, which may wait for that GIL.
    called: Option<Arc<Parker>>,
    patience: Patience,
    watches: bool,
}

impl Farewell {
    pub fn is_watching(&self) -> bool {
        self.watches
    }

    /// Returns whether there is news, so that sleep is out of the question.
    pub fn say(&mut self, bell: &Bell) -> bool {
        if let Some(parker) = self.called.take() {
            parker.set_free();
        }
        self.watches && self.patience.watch(|| bell.has_news())
    }
}

/// Tells a loop that something has come in for it. Apart from that, so that it can be done without the GIL: the loop
/// would not get further without it.
#[must_use]
pub struct News {
    bell: Arc<Bell>,
    waker: Option<Arc<Waker>>,
}

impl News {
    pub fn tell(self) {
        self.bell.set_rung(true);
        if let Some(waker) = self.waker {
            // It can only fail if somebody has closed its descriptor; asyncio does not tell of that either.
            let _ = waker.wake();
        }
    }
}

impl EventLoop {
    /// Takes the result of a job, in whatever thread. A closed loop is not interested.
    pub fn post(&self, py: Python<'_>, finished: Finished) -> Option<News> {
        self.check_open(py).ok()?;
        self.push_ready(py, Ready::Finished(Box::new(finished)));
        Some(News { bell: self.shared.bell.clone(), waker: self.claim_waker(py) })
    }

    pub fn job_begun(&self, py: Python<'_>) {
        self.jobs.borrow_mut(py).unfinished += 1;
    }

    pub fn job_ended(&self, py: Python<'_>) {
        let mut jobs = self.jobs.borrow_mut(py);
        // In a forked child there are none, but the one that has forked ends in the child too.
        jobs.unfinished = jobs.unfinished.saturating_sub(1);
    }

    /// Notes a worker that was called and is going to want the GIL.
    pub fn worker_called(&self, py: Python<'_>, parker: Arc<Parker>) {
        self.jobs.borrow_mut(py).farewell.called = Some(parker);
    }

    pub(super) fn take_farewell(&self, py: Python<'_>) -> Farewell {
        let mut jobs = self.jobs.borrow_mut(py);
        let mut farewell = std::mem::take(&mut jobs.farewell);
        // Of much mail, the more comes the longer the loop sleeps; and who brings it can use the processor.
        let awaited = jobs.unfinished > 0 || self.awaited_mail(py) == 1;
        farewell.watches = awaited && !farewell.patience.is_exhausted();
        if farewell.watches {
            self.shared.bell.set_rung(false);
        }
        farewell
    }

    pub(super) fn put_farewell(&self, py: Python<'_>, farewell: Farewell) {
        self.jobs.borrow_mut(py).farewell = farewell;
    }

    pub(super) fn forget_jobs(&self, py: Python<'_>) {
        drop(self.jobs.replace(py, Jobs::default()));
    }
}
