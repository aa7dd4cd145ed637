//! The process's one tokio runtime: threads for work that blocks, without the interpreter.
//!
//! It starts with the first job and is never ended: at exit its threads vanish with the process, so that one that hangs
//! in the kernel (a FIFO that nobody opens, a dead file server) holds nobody up. Writes that are under way then are
//! waited for, within reason ([`wait_for_writes`]).
//!
//! A forked child has none of the threads, and locks that they may have held. It leaves its parent's runtime where it
//! is, for ever, and starts its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::Python;
use tokio::runtime::{Builder, Runtime};

use crate::linger::{Jobs, Need};
use crate::sys;

/// As asyncio's default executor: more threads gain nothing where the page cache answers, and a disk little.
const MOST_THREADS: usize = 32;
const THREADS_BESIDES_CORES: usize = 4;

/// How long a thread waits for its next job before it ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    runtime: Runtime,
    jobs: Jobs<Job>,
}

static CURRENT: AtomicPtr<Pool> = AtomicPtr::new(ptr::null_mut());
static GENERATION: AtomicU64 = AtomicU64::new(0);
static WRITES: AtomicUsize = AtomicUsize::new(0);

/// A number that is another one in a forked child: what was begun in the parent will not end here.
pub fn generation() -> u64 {
    GENERATION.load(SeqCst)
}

/// Does the job on a thread that may block. It runs detached from the interpreter, and has nothing to do with it.
///
/// `more_soon`: whether the next one may come at once when this one is done.
///
/// The token stands for the interpreter lock: with it nobody else starts the runtime, and nobody forks, meanwhile.
pub fn spawn_blocking(
    py: Python<'_>,
    more_soon: bool,
    job: impl FnOnce() + Send + 'static,
) -> sys::Result<()> {
    let pool = current(py)?;
    let (number, Need::Thread) = pool.jobs.submit(more_soon, Box::new(job)) else { return Ok(()) };
    // tokio panics where the process may have no more threads.
    let spawned = catch_unwind(AssertUnwindSafe(|| {
        drop(pool.runtime.spawn_blocking(|| pool.jobs.work(None, |job| job())));
    }));
    match spawned.err().and_then(|_| pool.jobs.take_back(number)) {
        Some(_job) => Err(sys::Error { errno: libc::EAGAIN }),
        None => Ok(()),
    }
}

fn current(_py: Python<'_>) -> sys::Result<&'static Pool> {
    static FORK_HANDLER: Once = Once::new();
    // SAFETY: null, or a pool that was leaked below and is therefore never freed.
    if let Some(pool) = unsafe { CURRENT.load(SeqCst).as_ref() } {
        return Ok(pool);
    }
    FORK_HANDLER.call_once(|| {
        // SAFETY: the handler stores to atomics, which is all that a fork of many threads allows.
        unsafe { libc::pthread_atfork(None, None, Some(after_fork_in_child)) };
    });
    let cores = thread::available_parallelism().map_or(1, usize::from);
    // No scheduler and no drivers: nothing but the pool of blocking threads is used.
    let most_threads = MOST_THREADS.min(cores + THREADS_BESIDES_CORES);
    let runtime = Builder::new_current_thread()
        .max_blocking_threads(most_threads)
        .thread_keep_alive(IDLE)
        .thread_name("mioloop-files")
        .build()?;
    let pool: &'static mut Pool = Box::leak(Box::new(Pool { runtime, jobs: Jobs::new(most_threads) }));
    CURRENT.store(pool, SeqCst);
    Ok(pool)
}

extern "C" fn after_fork_in_child() {
    CURRENT.store(ptr::null_mut(), SeqCst);
    WRITES.store(0, SeqCst);
    GENERATION.fetch_add(1, SeqCst);
}

/// Something is being written, for as long as this lives: the process had better not end.
pub struct Writing(());

impl Writing {
    pub fn begin() -> Self {
        WRITES.fetch_add(1, SeqCst);
        Writing(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        WRITES.fetch_sub(1, SeqCst);
    }
}

/// Waits until nothing is being written any more; gives up after a while, as a pipe that nobody reads stays full.
pub fn wait_for_writes(py: Python<'_>, at_most: Duration) {
    py.detach(|| {
        let start = Instant::now();
        while WRITES.load(SeqCst) > 0 && start.elapsed() < at_most {
            thread::sleep(Duration::from_millis(1));
        }
    });
}
