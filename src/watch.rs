//! Waiting for another thread's news: watching for a moment, then sleeping.
//!
//! To fall asleep and be woken by another thread costs the two of them some 10 to 20 µs of processor time. When the
//! news comes sooner than that, watching for it in a loop is the cheaper way of waiting; when it does not, the watching
//! was in vain. [`Patience`] goes by what came of it lately, so that a program whose news never comes so soon pays for
//! next to none.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// About what it costs to fall asleep and be woken.
const WATCH: Duration = Duration::from_micros(20);

/// With a single processor there is nothing to watch for: who has the news can't run meanwhile.
static SEVERAL_PROCESSORS: LazyLock<bool> =
    LazyLock::new(|| thread::available_parallelism().is_ok_and(|processors| processors.get() > 1));

/// With the GIL, before anybody watches: a fork, which comes with the GIL held, must not find that half done.
pub fn prepare() {
    LazyLock::force(&SEVERAL_PROCESSORS);
}

/// Whether it pays to watch before sleeping.
#[derive(Default)]
pub struct Patience {
    /// In a row.
    failures: u32,
    /// How many waits come before the next attempt.
    pause: u32,
}

impl Patience {
    /// The longest pause between attempts is 2 to the power of this: then watching costs 0.1 µs a wait.
    const MOST_FAILURES: u32 = 8;

    pub fn is_exhausted(&mut self) -> bool {
        if !*SEVERAL_PROCESSORS {
            return true;
        }
        let exhausted = self.pause > 0;
        self.pause = self.pause.saturating_sub(1);
        exhausted
    }

    /// Watches for as long as it may pay, and says whether the news has come.
    pub fn watch(&mut self, news: impl Fn() -> bool) -> bool {
        let come = watch(news);
        self.failures = if come { 0 } else { (self.failures + 1).min(Self::MOST_FAILURES) };
        self.pause = if come { 0 } else { (1 << self.failures) - 1 };
        come
    }
}

fn watch(news: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..16 {
            if news() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= WATCH {
            return false;
        }
    }
}

/// Where a thread waits until it is called.
pub struct Parker {
    state: AtomicU32,
    thread: Thread,
}

const WATCHING: u32 = 0;
const ASLEEP: u32 = 1;
/// Called, by a thread that still has the GIL.
const CALLED: u32 = 2;
/// Called, and the GIL may well be free.
const FREE: u32 = 3;

impl Parker {
    /// For the current thread, which has the GIL.
    pub fn new() -> Self {
        prepare();
        Parker { state: AtomicU32::new(WATCHING), thread: thread::current() }
    }

    /// Before others get to know that the thread can be called.
    pub fn prepare(&self) {
        self.state.store(WATCHING, SeqCst);
    }

    /// Ends the wait, which the thread has begun or is about to begin.
    pub fn call(&self) {
        self.end_wait(FREE);
    }

    /// As `call`, by a thread that is going to let go of the GIL and will say so.
    pub fn call_early(&self) {
        self.end_wait(CALLED);
    }

    fn end_wait(&self, state: u32) {
        if self.state.swap(state, SeqCst) == ASLEEP {
            self.thread.unpark();
        }
    }

    /// Tells a thread that was called, and watches, that the caller lets go of the GIL.
    pub fn set_free(&self) {
        let _ = self.state.compare_exchange(CALLED, FREE, SeqCst, SeqCst);
    }

    /// Waits, without the GIL, until the thread is called, or for as long as `timeout`. Returns whether it was called.
    pub fn wait(&self, patience: &mut Patience, timeout: Option<Duration>) -> bool {
        if !patience.is_exhausted() {
            patience.watch(|| self.state.load(SeqCst) != WATCHING);
        }
        let called = self.sleep(timeout);
        if called && *SEVERAL_PROCESSORS && self.state.load(SeqCst) == CALLED {
            // Without a limit, a caller that goes on computing would keep the job from its turn at the GIL.
            watch(|| self.state.load(SeqCst) == FREE);
        }
        called
    }

    fn sleep(&self, timeout: Option<Duration>) -> bool {
        if self.state.compare_exchange(WATCHING, ASLEEP, SeqCst, SeqCst).is_err() {
            return true;
        }
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        while self.state.load(SeqCst) == ASLEEP {
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(Duration::ZERO) => {
                    return self.state.compare_exchange(ASLEEP, WATCHING, SeqCst, SeqCst).is_err();
                }
                Some(left) => thread::park_timeout(left),
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    fn impatient() -> Patience {
        Patience { failures: 0, pause: u32::MAX }
    }

    #[test]
    fn patience_runs_out_and_comes_back() {
        let mut patience = Patience::default();
        let mut attempts = |news: bool| {
            let attempts =
                (0..10_000).filter(|_| !patience.is_exhausted() && patience.watch(|| news) == news);
            attempts.count()
        };
        if *SEVERAL_PROCESSORS {
            assert!((40..60).contains(&attempts(false)));
            assert!(attempts(true) > 9_000);
        } else {
            assert_eq!((attempts(false), attempts(true)), (0, 0));
        }
    }

    #[test]
    fn a_call_is_never_missed() {
        for mut patience in [Patience::default(), impatient()] {
            let (sender, receiver) = mpsc::channel();
            let (done_sender, done) = mpsc::channel();
            let thread = thread::spawn(move || {
                let parker = Arc::new(Parker::new());
                for _ in 0..2000 {
                    parker.prepare();
                    sender.send(parker.clone()).unwrap();
                    assert!(parker.wait(&mut patience, None));
                    done_sender.send(()).unwrap();
                }
            });
            for turn in 0..2000 {
                let parker = receiver.recv().unwrap();
                if turn % 3 == 0 {
                    thread::sleep(Duration::from_micros(turn % 50));
                }
                if turn % 2 == 0 {
                    parker.call();
                } else {
                    parker.call_early();
                    parker.set_free();
                }
                done.recv().unwrap();
            }
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_wait_ends_after_its_timeout() {
        let parker = Parker::new();
        parker.prepare();
        assert!(!parker.wait(&mut impatient(), Some(Duration::from_millis(1))));
        // Called in between: then it was called, and not too late.
        parker.call();
        assert!(parker.wait(&mut impatient(), Some(Duration::ZERO)));
        let free = AtomicBool::new(true);
        assert!(watch(|| free.load(SeqCst)));
    }
}
