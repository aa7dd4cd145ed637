//! The threads that look names up for one loop. They know nothing of Python, so they neither need the interpreter lock
//! nor keep the interpreter from ending.
//!
//! A loop has its own, so that one whose name server is silent does not hold another one up. They are started when there
//! is more to do than threads that wait for it, up to as many as asyncio's default executor would have, and end when
//! they have waited for a while.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::request::{Answer, Request};
use crate::event_loop::Ringer;
use crate::linger::{Jobs, Need};
use crate::sys;

/// How long a thread waits for another look-up.
const IDLE: Duration = Duration::from_secs(3);

pub struct Threads {
    shared: Arc<Shared>,
}

struct Shared {
    jobs: Jobs<(u64, Request)>,
    /// None: the loop is closed.
    outbox: Mutex<Option<Vec<(u64, Answer)>>>,
    ringer: Ringer,
}

impl Threads {
    /// Starts none yet. They ring when there are answers.
    pub fn new(ringer: Ringer) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let jobs = Jobs::new((processors + 4).min(32));
        Threads { shared: Arc::new(Shared { jobs, outbox: Mutex::new(Some(Vec::new())), ringer }) }
    }

    pub fn submit(&self, number: u64, request: Request) -> sys::Result<()> {
        let jobs = &self.shared.jobs;
        let (job, Need::Thread) = jobs.submit(true, (number, request)) else { return Ok(()) };
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new().name("mioloop-names".to_owned()).spawn(move || {
            // Signals are for the threads that run Python, which have system calls to be interrupted in.
            sys::block_signals();
            shared.jobs.work(Some(IDLE), |(number, request)| shared.answer(number, &request));
        });
        match spawned.map_err(|error| (error, jobs.take_back(job))) {
            Err((error, Some(_request))) => Err(error.into()),
            Err((_, None)) | Ok(_) => Ok(()),
        }
    }

    /// Nobody waits for it any more: if no thread has begun, none will.
    pub fn forget(&self, number: u64) {
        drop(self.shared.jobs.forget(|(other, _)| *other == number));
    }

    /// The answers since the last time.
    pub fn take(&self) -> Vec<(u64, Answer)> {
        self.shared.outbox().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// In a child process: none of the threads is here, and the locks may be held for ever.
    pub fn leave_to_parent(self) {
        std::mem::forget(self);
    }
}

impl Drop for Threads {
    /// Waits for nobody: a look-up that is under way ends when it ends.
    fn drop(&mut self) {
        let answers = self.shared.outbox().take();
        drop(answers);
        self.shared.jobs.close();
    }
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Option<Vec<(u64, Answer)>>> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, number: u64, request: &Request) {
        let answer = request.answer();
        if let Some(answers) = self.outbox().as_mut() {
            answers.push((number, answer));
        }
        self.ringer.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::names::Hints;

    fn request(host: &std::ffi::CStr) -> Request {
        Request::Addresses { host: Some(host.to_owned()), service: None, hints: Hints::default() }
    }

    fn wait_for_answers(threads: &Threads, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            numbers.extend(threads.take().into_iter().map(|(number, _)| number));
            thread::sleep(Duration::from_millis(1));
        }
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn every_look_up_is_answered_once() {
        let threads = Threads::new(Ringer::default());
        for number in 0..100 {
            threads.submit(number, request(c"127.0.0.1")).unwrap();
        }
        assert_eq!(wait_for_answers(&threads, 100), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn threads_that_have_nothing_to_do_end() {
        let threads = Threads::new(Ringer::default());
        threads.submit(1, request(c"127.0.0.1")).unwrap();
        wait_for_answers(&threads, 1);
        while Arc::strong_count(&threads.shared) > 1 {
            thread::sleep(Duration::from_millis(10));
        }
        threads.submit(2, request(c"127.0.0.1")).unwrap();
        assert_eq!(wait_for_answers(&threads, 1), [2]);
    }

    #[test]
    fn dropped_threads_end() {
        let threads = Threads::new(Ringer::default());
        threads.submit(1, request(c"127.0.0.1")).unwrap();
        let shared = Arc::clone(&threads.shared);
        drop(threads);
        while Arc::strong_count(&shared) > 1 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
