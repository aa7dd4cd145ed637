//! Jobs for threads that know nothing of Python, which watch for the next one before they part.
//!
//! To hand a job to a thread that sleeps costs more than most jobs do. A program that awaits one operation after the
//! other may have its next job within microseconds, so whoever has run out of them stays for a moment, as long as that
//! pays: see [`crate::watch`]. One at a time is enough for that.
//!
//! Where the threads come from is the caller's business, who is told when another one is needed.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::watch::{self, Patience};

/// The jobs that no thread has begun, in order.
pub struct Jobs<J> {
    queue: Mutex<Queue<J>>,
    /// For threads that sleep until there is more to do.
    more: Condvar,
    /// There is a job: for whoever watches.
    some: AtomicBool,
    /// As many threads can be had at once.
    most: usize,
}

struct Job<J> {
    number: u64,
    more_soon: bool,
    work: J,
}

struct Queue<J> {
    jobs: VecDeque<Job<J>>,
    submitted: u64,
    /// The threads that were asked for and have not come yet.
    coming: usize,
    /// Those that have, whether they have a job or wait for one.
    here: usize,
    /// One of them has no job and watches.
    watching: bool,
    /// So many sleep, or were called and have not looked yet.
    asleep: usize,
    closed: bool,
    patience: Patience,
}

/// What a submitted job asks for.
#[must_use]
#[derive(Debug, PartialEq)]
pub enum Need {
    Nothing,
    /// A thread that calls [`Jobs::work`]. If there is none to be had, [`Jobs::take_back`] is to be called.
    Thread,
}

impl<J> Jobs<J> {
    /// With the GIL.
    pub fn new(most: usize) -> Self {
        watch::prepare();
        let queue = Queue {
            jobs: VecDeque::new(),
            submitted: 0,
            coming: 0,
            here: 0,
            watching: false,
            asleep: 0,
            closed: false,
            patience: Patience::default(),
        };
        Jobs { queue: Mutex::new(queue), more: Condvar::new(), some: AtomicBool::new(false), most }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `more_soon`: whether the next job may come at once when this one is done. Returns the job's number.
    pub fn submit(&self, more_soon: bool, work: J) -> (u64, Need) {
        let mut queue = self.lock();
        queue.submitted += 1;
        let number = queue.submitted;
        queue.jobs.push_back(Job { number, more_soon, work });
        self.some.store(true, Ordering::Release);
        let (jobs, watching) = (queue.jobs.len(), usize::from(queue.watching));
        let mut need = Need::Nothing;
        // Those that are coming don't count: a thread that could not be started may never come.
        if jobs > watching + queue.asleep && queue.coming + queue.here < self.most {
            queue.coming += 1;
            need = Need::Thread;
        } else if jobs > watching && queue.asleep > 0 {
            drop(queue);
            self.more.notify_one();
        }
        (number, need)
    }

    /// The thread that a job needed does not come. Returns the job, unless others have begun with it, or will.
    pub fn take_back(&self, number: u64) -> Option<J> {
        let mut queue = self.lock();
        queue.coming = queue.coming.saturating_sub(1);
        if queue.here == 0 {
            return self.remove(&mut queue, |job| job.number == number);
        }
        self.more.notify_one();
        None
    }

    /// Nobody wants the one that `is_it` any more. Returns it if no thread has begun with it.
    pub fn forget(&self, is_it: impl Fn(&J) -> bool) -> Option<J> {
        self.remove(&mut self.lock(), |job| is_it(&job.work))
    }

    /// There will be no more jobs, and those that nobody has begun are not to be done. The threads end.
    pub fn close(&self) {
        let left = {
            let mut queue = self.lock();
            queue.closed = true;
            std::mem::take(&mut queue.jobs)
        };
        self.more.notify_all();
        drop(left);
    }

    /// A thread's part: does jobs for as long as there are any or soon will be, and then sleeps for `idle`, if given, in
    /// case that there are more.
    pub fn work(&self, idle: Option<Duration>, work: impl Fn(J)) {
        {
            let mut queue = self.lock();
            // One that was given up may come after all.
            queue.coming = queue.coming.saturating_sub(1);
            queue.here += 1;
        }
        let mut more_soon = false;
        while let Some(job) = self.next(more_soon, idle) {
            more_soon = job.more_soon;
            // The panic has been told of; what the job held says that it was not done.
            let _ = catch_unwind(AssertUnwindSafe(|| work(job.work)));
        }
    }

    fn next(&self, more_soon: bool, idle: Option<Duration>) -> Option<Job<J>> {
        let mut queue = self.lock();
        if more_soon && queue.jobs.is_empty() && !queue.watching && !queue.patience.is_exhausted() {
            queue.watching = true;
            let mut patience = std::mem::take(&mut queue.patience);
            drop(queue);
            patience.watch(|| self.some.load(Ordering::Acquire));
            queue = self.lock();
            queue.watching = false;
            queue.patience = patience;
        }
        let mut time_left = idle;
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                self.some.store(!queue.jobs.is_empty(), Ordering::Relaxed);
                return Some(job);
            }
            let Some(time) = time_left.filter(|_| !queue.closed) else {
                // In one step with the last look, so that nobody counts on it any more.
                queue.here -= 1;
                return None;
            };
            queue.asleep += 1;
            let (guard, waited) = self.more.wait_timeout(queue, time).unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.asleep -= 1;
            if waited.timed_out() {
                time_left = None;
            }
        }
    }

    fn remove(&self, queue: &mut Queue<J>, is_it: impl Fn(&Job<J>) -> bool) -> Option<J> {
        let place = queue.jobs.iter().position(is_it)?;
        let job = queue.jobs.remove(place)?;
        self.some.store(!queue.jobs.is_empty(), Ordering::Relaxed);
        Some(job.work)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;

    /// Submits from several threads, and gets threads from the system or not.
    fn run(most: usize, idle: Option<Duration>, fails: bool) {
        const EACH: usize = 2000;
        let jobs = Arc::new(Jobs::<usize>::new(most));
        let (done, results) = mpsc::channel();
        let now = Arc::new(AtomicUsize::new(0));
        let submitters: Vec<_> = (0..3)
            .map(|part| {
                let (jobs, done, now) = (jobs.clone(), done.clone(), now.clone());
                thread::spawn(move || {
                    for turn in 0..EACH {
                        let (number, need) = jobs.submit(turn % 3 > 0, part * EACH + turn);
                        if need == Need::Thread && fails && turn % 5 == 0 {
                            // None to be had. What is given back is done here.
                            if let Some(job) = jobs.take_back(number) {
                                done.send(job).unwrap();
                            }
                        } else if need == Need::Thread {
                            let (jobs, done, now) = (jobs.clone(), done.clone(), now.clone());
                            thread::spawn(move || {
                                assert!(now.fetch_add(1, Ordering::SeqCst) < most);
                                jobs.work(idle, |job| {
                                    done.send(job).unwrap();
                                    assert!(job % 97 > 0, "a job that panics");
                                });
                                now.fetch_sub(1, Ordering::SeqCst);
                            });
                        }
                        if turn % 7 == 0 {
                            thread::sleep(Duration::from_micros(turn as u64 % 50));
                        }
                    }
                })
            })
            .collect();
        let mut all: Vec<_> = (0..3 * EACH)
            .map(|_| results.recv_timeout(Duration::from_secs(60)).expect("a job was left"))
            .collect();
        all.sort_unstable();
        assert_eq!(all, (0..3 * EACH).collect::<Vec<_>>());
        submitters.into_iter().for_each(|thread| thread.join().unwrap());
        jobs.close();
        while Arc::strong_count(&jobs) > 1 {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn every_job_is_done_once() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        for idle in [None, Some(Duration::from_micros(50)), Some(Duration::from_secs(60))] {
            for fails in [false, true] {
                run(3, idle, fails);
            }
        }
        std::panic::set_hook(hook);
    }

    #[test]
    fn what_nobody_wants_is_not_done() {
        let jobs = Jobs::new(1);
        let (first, need) = jobs.submit(true, "first");
        assert_eq!(need, Need::Thread);
        let (_, need) = jobs.submit(true, "second");
        assert_eq!((need, jobs.forget(|job| *job == "second")), (Need::Nothing, Some("second")));
        assert_eq!((jobs.take_back(first), jobs.take_back(first)), (Some("first"), None));
        jobs.work(None, |_| panic!("there is nothing to do"));
    }
}
