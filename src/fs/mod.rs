//! Files: what `mioloop.fs` is made of.
//!
//! ```text
//!   loop's thread                                  a blocking thread (runtime.rs)
//!   File, Mailbox::stat …  ── job ──────────────>  system calls on a Buffered, a path
//!          ^                                                 │
//!          └──────── Mailbox <── letters, bell ─────────────┘
//! ```
//!
//! The work is the standard library's and tokio's blocking threads are where it is done. (`tokio::fs::File` is the same
//! calls on the same threads, with a copy through a buffer of its own and a hop for every call; here a call that the
//! buffer can answer makes no hop, nor does what the kernel has in memory: `at_once`.) A blocking thread never touches
//! Python: results travel as plain memory, and a batch of them costs one wake-up. A loop of ours has its bell; for any
//! other the wake-up is a descriptor that it watches, which every asyncio loop can do.

mod at_once;
mod buffered;
mod file;
mod mailbox;
mod memory;
mod outcome;
mod paths;

use std::time::Duration;

use pyo3::prelude::*;

pub use at_once::{_open_at_once, _others_had_turn, _read_at_once, _refusal, _stat_at_once};
pub use file::File;
pub use mailbox::Mailbox;

/// Waits, for `seconds` at most, until no write is under way. At the end of the interpreter.
#[pyfunction]
pub fn _wait_for_writes(py: Python<'_>, seconds: f64) {
    crate::runtime::wait_for_writes(py, Duration::from_secs_f64(seconds.clamp(0.0, 60.0)));
}
