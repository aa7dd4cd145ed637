//! The threads that look names up for one loop. They know nothing of Python, so they neither need the interpreter lock
//! nor keep the interpreter from ending.
//!
//! A loop has its own, so that one whose name server is silent does not hold another one up. They are started when there
//! is more to do than threads that wait for it, up to as many as asyncio's default executor would have, and end when
//! they have waited for a while.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::request::{Answer, Request};
use crate::sys;

/// How long a thread waits for another look-up.
const IDLE: Duration = Duration::from_secs(3);

pub struct Threads {
    shared: Arc<Shared>,
    most: usize,
    /// Can be read when there are answers.
    signal: UnixStream,
    other_end: RawFd,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    outbox: Mutex<Outbox>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(u64, Request)>,
    threads: usize,
    idle: usize,
    closed: bool,
}

struct Outbox {
    answers: Vec<(u64, Answer)>,
    /// None when the loop is closed.
    signal: Option<UnixStream>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Threads {
    /// Starts none yet.
    pub fn new() -> sys::Result<Self> {
        let (signal, other) = UnixStream::pair()?;
        signal.set_nonblocking(true)?;
        other.set_nonblocking(true)?;
        let other_end = other.as_raw_fd();
        let outbox = Outbox { answers: Vec::new(), signal: Some(other) };
        let shared = Shared { queue: Mutex::default(), work: Condvar::new(), outbox: Mutex::new(outbox) };
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Ok(Threads { shared: Arc::new(shared), most: (processors + 4).min(32), signal, other_end })
    }

    /// The descriptor that can be read when there are answers.
    pub fn fd(&self) -> RawFd {
        self.signal.as_raw_fd()
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

    /// The answers since the last time.
    pub fn take(&self) -> Vec<(u64, Answer)> {
        let mut outbox = lock(&self.shared.outbox);
        let mut buffer = [0; 16];
        while (&self.signal).read(&mut buffer).is_ok_and(|size| size == buffer.len()) {}
        std::mem::take(&mut outbox.answers)
    }

    /// In a child process: lets go of what is the parent's. None of its threads is here, and its locks may be held for
    /// ever.
    pub fn leave_to_parent(self) {
        let number = self.other_end;
        // SAFETY: all of `self` is given up without being dropped, but for the two descriptors, which are closed once.
        unsafe {
            let this = std::mem::ManuallyDrop::new(self);
            drop(std::ptr::read(&this.signal));
            libc::close(number);
        }
    }
}

impl Drop for Threads {
    /// Waits for nobody: a look-up that is under way ends when it ends.
    fn drop(&mut self) {
        let outbox = {
            let mut outbox = lock(&self.shared.outbox);
            (std::mem::take(&mut outbox.answers), outbox.signal.take())
        };
        drop(outbox);
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
            let mut outbox = lock(&self.outbox);
            let Outbox { answers, signal } = &mut *outbox;
            let Some(signal) = signal else { return };
            let first = answers.is_empty();
            answers.push((number, answer));
            if first {
                match signal.write(&[0]) {
                    Ok(_) => {}
                    // Full of signals that have not been read: it is readable.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
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
        let threads = Threads::new().unwrap();
        for number in 0..100 {
            threads.submit(number, request(c"127.0.0.1")).unwrap();
        }
        assert_eq!(wait_for_answers(&threads, 100), (0..100).collect::<Vec<_>>());
        assert!(lock(&threads.shared.queue).threads <= threads.most);
    }

    #[test]
    fn threads_that_have_nothing_to_do_end() {
        let threads = Threads::new().unwrap();
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
        let threads = Threads::new().unwrap();
        threads.submit(1, request(c"127.0.0.1")).unwrap();
        let shared = Arc::clone(&threads.shared);
        drop(threads);
        while Arc::strong_count(&shared) > 1 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
