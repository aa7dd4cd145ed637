//! The threads that look names up for one loop. They know nothing of Python, so they neither need the interpreter lock
//! nor keep the interpreter from ending.
//!
//! A loop has its own, so that one whose name server is silent does not hold another one up. They are started when there
//! is more to do than threads that wait for it, up to as many as asyncio's default executor would have, and end when
//! they have waited for a while.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use mio::Waker;

use super::request::{Answer, Request};
use crate::sys;

/// How long a thread waits for another look-up.
const IDLE: Duration = Duration::from_secs(3);

pub struct Threads {
    shared: Arc<Shared>,
    most: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    outbox: Mutex<Outbox>,
    /// The outbox is not empty.
    answered: AtomicBool,
    /// The loop's, which closes it: no thread of ours may keep it open, least of all in a forked child.
    waker: Weak<Waker>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(u64, Request)>,
    threads: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Outbox {
    answers: Vec<(u64, Answer)>,
    /// So is the loop.
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Threads {
    /// Starts none yet. They end the loop's sleep when there are answers.
    pub fn new(waker: Weak<Waker>) -> Self {
        let shared = Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            outbox: Mutex::default(),
            answered: AtomicBool::new(false),
            waker,
        };
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Threads { shared: Arc::new(shared), most: (processors + 4).min(32) }
    }

    pub fn submit(&self, number: u64, request: Request) -> sys::Result<()> {
        let mut queue = lock(&self.shared.queue);
        queue.jobs.push_back((number, request));
        if queue.jobs.len() <= queue.idle || queue.threads >= self.most {
            drop(queue);
            self.shared.work.notify_one();
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        match thread::Builder::new().name("mioloop-names".to_owned()).spawn(move || shared.serve()) {
            Ok(_detached) => queue.threads += 1,
            // Those that there are will come to it.
            Err(_) if queue.threads > 0 => {}
            Err(error) => {
                queue.jobs.pop_back();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Nobody waits for it any more: if no thread has begun, none will.
    pub fn forget(&self, number: u64) {
        lock(&self.shared.queue).jobs.retain(|(other, _)| *other != number);
    }

    #[inline]
    pub fn have_answered(&self) -> bool {
        self.shared.answered.load(Ordering::Acquire)
    }

    /// The answers since the last time.
    pub fn take(&self) -> Vec<(u64, Answer)> {
        let mut outbox = lock(&self.shared.outbox);
        self.shared.answered.store(false, Ordering::Relaxed);
        std::mem::take(&mut outbox.answers)
    }

    /// In a child process: none of the threads is here, and the locks may be held for ever.
    pub fn leave_to_parent(self) {
        std::mem::forget(self);
    }
}

impl Drop for Threads {
    /// Waits for nobody: a look-up that is under way ends when it ends.
    fn drop(&mut self) {
        let answers = {
            let mut outbox = lock(&self.shared.outbox);
            outbox.closed = true;
            std::mem::take(&mut outbox.answers)
        };
        drop(answers);
        let mut queue = lock(&self.shared.queue);
        queue.closed = true;
        queue.jobs.clear();
        drop(queue);
        self.shared.work.notify_all();
    }
}

impl Shared {
    /// A thread's life.
    fn serve(&self) {
        // Signals are for the threads that run Python, which have system calls to be interrupted in.
        sys::block_signals();
        while let Some((number, request)) = self.next() {
            let answer = request.answer();
            let first = {
                let mut outbox = lock(&self.outbox);
                if outbox.closed {
                    return;
                }
                outbox.answers.push((number, answer));
                !self.answered.swap(true, Ordering::Release)
            };
            // Without the lock, which the loop takes as soon as it is awake.
            if let Some(waker) = self.waker.upgrade().filter(|_| first) {
                // It can only fail if somebody has closed its descriptor.
                let _ = waker.wake();
            }
        }
    }

    fn next(&self) -> Option<(u64, Request)> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue.idle += 1;
            let (guard, waited) = self.work.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.idle -= 1;
            if waited.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return None;
            }
        }
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
        let threads = Threads::new(Weak::new());
        for number in 0..100 {
            threads.submit(number, request(c"127.0.0.1")).unwrap();
        }
        assert_eq!(wait_for_answers(&threads, 100), (0..100).collect::<Vec<_>>());
        assert!(lock(&threads.shared.queue).threads <= threads.most);
    }

    #[test]
    fn threads_that_have_nothing_to_do_end() {
        let threads = Threads::new(Weak::new());
        threads.submit(1, request(c"127.0.0.1")).unwrap();
        wait_for_answers(&threads, 1);
        while lock(&threads.shared.queue).threads > 0 {
            thread::sleep(Duration::from_millis(10));
        }
        threads.submit(2, request(c"127.0.0.1")).unwrap();
        assert_eq!(wait_for_answers(&threads, 1), [2]);
    }

    #[test]
    fn dropped_threads_end() {
        let threads = Threads::new(Weak::new());
        threads.submit(1, request(c"127.0.0.1")).unwrap();
        let shared = Arc::clone(&threads.shared);
        drop(threads);
        while Arc::strong_count(&shared) > 1 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
