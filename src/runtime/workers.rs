//! The queue in front of tokio's threads: a thread that comes for one job stays for the next.
//!
//! tokio's own queue wakes a thread while it holds the lock that this thread wants first, so that the two of them fall
//! asleep and wake each other once more for every job. That costs more than a small job does. Here a thread is called
//! when the lock is free, the last one to fall asleep first, so that the others may retire.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::sys;
use crate::watch::Parker;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Who has nothing to do. Each is called by whoever takes it out.
    idle: Vec<Arc<Parker>>,
    /// Who was called and has not looked at the queue yet.
    coming: usize,
    /// Who was started and is not there yet. That may take its time: where the process may have no more threads, tokio
    /// starts one when another has ended.
    starting: usize,
    threads: usize,
}

/// What a new job asks for.
enum Need {
    Nothing,
    Call(Arc<Parker>),
    Grow,
}

impl State {
    /// Who is to be called for what is in the queue. (One at a time: whoever comes calls the next.)
    fn call(&mut self) -> Option<Arc<Parker>> {
        if self.jobs.is_empty() || self.coming > 0 {
            return None;
        }
        let parker = self.idle.pop()?;
        self.coming += 1;
        Some(parker)
    }

    fn need(&mut self, most: usize) -> Need {
        if self.jobs.len() > self.coming + self.starting + self.idle.len() && self.threads < most {
            self.threads += 1;
            self.starting += 1;
            return Need::Grow;
        }
        self.call().map_or(Need::Nothing, Need::Call)
    }
}

pub struct Workers {
    state: Mutex<State>,
    most: usize,
    /// How long one waits for its next job before it ends.
    idle_time: Duration,
}

impl Workers {
    pub fn new(most: usize, idle_time: Duration) -> Self {
        Workers { state: Mutex::default(), most, idle_time }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a job done; `start` finds a thread to `serve` on, if it takes one more. If that fails, it does not serve.
    pub fn submit(&self, job: Job, start: impl FnOnce() -> sys::Result<()>) -> sys::Result<()> {
        let need = {
            let mut state = self.lock();
            state.jobs.push_back(job);
            state.need(self.most)
        };
        match need {
            Need::Nothing => Ok(()),
            Need::Call(parker) => {
                parker.call();
                Ok(())
            }
            Need::Grow => start().or_else(|error| self.do_without(error)),
        }
    }

    /// No thread could be had for the last job: those that there are will come to it, or else it is taken back.
    fn do_without(&self, error: sys::Error) -> sys::Result<()> {
        let mut state = self.lock();
        state.threads -= 1;
        state.starting -= 1;
        let job = if state.threads == 0 { state.jobs.pop_back() } else { None };
        drop(state);
        // Outside the lock, as it gives back what it was to work with.
        match job.map(drop) {
            Some(()) => Err(error),
            None => Ok(()),
        }
    }

    /// What a thread does: jobs, until there has been nothing to do for long.
    pub fn serve(&self) {
        let parker = Arc::new(Parker::new());
        let mut state = self.lock();
        state.starting -= 1;
        loop {
            while let Some(job) = state.jobs.pop_front() {
                let next = state.call();
                drop(state);
                if let Some(next) = next {
                    next.call();
                }
                // What the job has borrowed comes back by `Drop`, and whoever waits for it hears that it failed.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.lock();
            }
            match self.wait(state, &parker) {
                Some(called) => state = called,
                None => return,
            }
        }
    }

    /// Until somebody calls; None: nobody has for long.
    fn wait<'s>(
        &'s self,
        mut state: MutexGuard<'s, State>,
        parker: &Arc<Parker>,
    ) -> Option<MutexGuard<'s, State>> {
        state.idle.push(parker.clone());
        loop {
            parker.prepare();
            drop(state);
            // The next job is seldom so near that watching for it would pay: between two the loop has its own work.
            let in_time = parker.sleep(Some(self.idle_time));
            state = self.lock();
            // Who is called is no longer idle. (The parker alone does not tell: a call that was overtaken by the end of
            // the wait that it was meant for ends the next one.)
            let Some(index) = state.idle.iter().position(|idle| Arc::ptr_eq(idle, parker)) else {
                state.coming -= 1;
                return Some(state);
            };
            if !in_time {
                state.idle.remove(index);
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    fn workers(idle_time: Duration) -> Arc<Workers> {
        crate::watch::count_processors();
        Arc::new(Workers::new(3, idle_time))
    }

    fn submit(workers: &Arc<Workers>, job: impl FnOnce() + Send + 'static) -> sys::Result<()> {
        workers.submit(Box::new(job), || {
            let workers = workers.clone();
            thread::spawn(move || workers.serve());
            Ok(())
        })
    }

    #[test]
    fn every_job_is_done_once_by_few_threads() {
        let workers = workers(Duration::from_secs(10));
        let (sender, done) = mpsc::channel();
        for round in 0..200 {
            for number in 0..round % 20 {
                let sender = sender.clone();
                submit(&workers, move || sender.send(number).unwrap()).unwrap();
            }
            let mut numbers: Vec<_> = (0..round % 20).map(|_| done.recv().unwrap()).collect();
            numbers.sort_unstable();
            assert_eq!(numbers, (0..round % 20).collect::<Vec<_>>());
        }
        assert!((1..=3).contains(&workers.lock().threads));
    }

    #[test]
    fn jobs_do_not_wait_for_one_that_takes_long() {
        let workers = workers(Duration::from_secs(10));
        let ((end, ended), (sender, done)) = (mpsc::channel::<()>(), mpsc::channel());
        submit(&workers, move || assert!(ended.recv().is_ok())).unwrap();
        for number in 0..100 {
            let sender = sender.clone();
            submit(&workers, move || sender.send(number).unwrap()).unwrap();
            assert_eq!(done.recv().unwrap(), number);
        }
        end.send(()).unwrap();
    }

    #[test]
    fn a_job_that_panics_leaves_its_thread_alive() {
        let workers = workers(Duration::from_secs(10));
        let (sender, done) = mpsc::channel();
        // Without a message, which the hook would write.
        submit(&workers, || std::panic::resume_unwind(Box::new(()))).unwrap();
        submit(&workers, move || sender.send(()).unwrap()).unwrap();
        done.recv().unwrap();
    }

    #[test]
    fn threads_that_have_nothing_to_do_end() {
        let workers = workers(Duration::from_millis(1));
        for _ in 0..10 {
            let (sender, done) = mpsc::channel();
            submit(&workers, move || sender.send(()).unwrap()).unwrap();
            done.recv().unwrap();
            while workers.lock().threads > 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(workers.lock().idle.is_empty());
    }

    #[test]
    fn without_a_thread_the_job_is_taken_back() {
        let workers = workers(Duration::from_secs(10));
        let refuse = || Err(sys::Error { errno: libc::EAGAIN });
        let (sender, done) = mpsc::channel::<()>();
        let refused = workers.submit(Box::new(move || drop(sender)), refuse);
        assert_eq!(refused, Err(sys::Error { errno: libc::EAGAIN }));
        assert!(done.recv().is_err());
        // With one the job waits for it.
        let ((end, ended), (sender, done)) = (mpsc::channel::<()>(), mpsc::channel());
        submit(&workers, move || assert!(ended.recv().is_ok())).unwrap();
        workers.submit(Box::new(move || sender.send(()).unwrap()), refuse).unwrap();
        end.send(()).unwrap();
        done.recv().unwrap();
    }
}
