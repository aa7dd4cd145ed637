//! What transports, listeners and socket operations may ask of the loop: the whole of it.

use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::{EventLoop, Owner, Ready};
use crate::handle::Handle;
use crate::py::this_thread;
use crate::reactor::{Direction, Key, Reactor, Readiness, Trigger};
use crate::transport::Transport;

/// As much as one read of a stream takes at most: the bound on what one connection gets in an iteration.
pub const READ_SIZE: usize = 256 * 1024;

pub type ReadBuffer = Box<[MaybeUninit<u8>]>;

impl EventLoop {
    /// `call_soon` for the core itself, in a given context.
    pub fn schedule<'py>(
        slf: &Bound<'py, Self>,
        callback: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        context: &Py<PyAny>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.check_open(py)?;
        let handle = Handle::create_ready(slf, &callback, args.as_slice(), Some(context.bind(py)))?;
        this.push_ready(py, Ready::Call(handle.unbind()));
        Ok(())
    }

    /// Runs a handle that is made already in the next iteration.
    pub fn schedule_handle(&self, py: Python<'_>, handle: Py<Handle>) {
        self.push_ready(py, Ready::Call(handle));
    }

    /// Lets a transport begin to read when what is scheduled by now has run: its protocol's `connection_made`.
    pub fn schedule_start(&self, py: Python<'_>, transport: Py<Transport>) {
        self.push_ready(py, Ready::Start(transport));
    }

    /// Whether the loop runs, and this is its thread.
    pub fn is_running_here(&self, py: Python<'_>) -> bool {
        self.thread_id.get(py) == Some(this_thread())
    }

    /// Gives a source another turn in the next iteration: it stopped before it was drained.
    pub fn schedule_source(&self, py: Python<'_>, key: Key, readiness: Readiness) {
        let first = match self.reactor.borrow_mut(py).as_mut() {
            Some(reactor) => reactor.mark_ready(key, readiness),
            None => false,
        };
        if first {
            self.push_ready(py, Ready::Source(key));
        }
    }

    /// Has the next iteration look for I/O, however busy it is: for somebody who watches a descriptor from now on.
    pub fn poll_soon(&self, py: Python<'_>) {
        self.poll_soon.set(py, true);
    }

    /// Runs something on the reactor; a closed loop has none.
    pub fn with_reactor<R>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Reactor<Owner>) -> R,
    ) -> PyResult<R> {
        self.check_open(py)?;
        let mut reactor = self.reactor.borrow_mut(py);
        match reactor.as_mut() {
            Some(reactor) => Ok(work(reactor)),
            None => {
                drop(reactor);
                Err(pyo3::exceptions::PyRuntimeError::new_err("Event loop is closed"))
            }
        }
    }

    /// Watches a descriptor, edge-triggered.
    pub fn register(&self, py: Python<'_>, fd: RawFd, direction: Direction, owner: Owner) -> PyResult<Key> {
        let (key, stale) =
            self.with_reactor(py, |reactor| reactor.register(fd, Trigger::Edge, direction, owner))??;
        self.poll_soon(py);
        cancel_stale(py, stale)?;
        Ok(key)
    }

    pub fn modify(&self, py: Python<'_>, key: Key, direction: Direction) -> PyResult<()> {
        Ok(self.with_reactor(py, |reactor| reactor.modify(key, direction))??)
    }

    /// Whom a source's events are for from now on.
    pub fn change_owner(&self, py: Python<'_>, key: Key, mut owner: Owner) {
        if let Some(place) = self.reactor.borrow_mut(py).as_mut().and_then(|reactor| reactor.owner_mut(key)) {
            std::mem::swap(place, &mut owner);
        }
        drop(owner);
    }

    /// Stops watching a descriptor that stays open.
    pub fn deregister(&self, py: Python<'_>, key: Key) {
        let owner = self.reactor.borrow_mut(py).as_mut().and_then(|reactor| reactor.deregister(key));
        drop(owner);
    }

    /// Stops watching a descriptor that is about to be closed.
    pub fn forget(&self, py: Python<'_>, key: Key) {
        let owner = self.reactor.borrow_mut(py).as_mut().and_then(|reactor| reactor.forget(key));
        drop(owner);
    }

    /// Lends the loop's buffer to `read`, which must not call into Python.
    pub fn with_read_buffer<R>(&self, py: Python<'_>, read: impl FnOnce(&mut [MaybeUninit<u8>]) -> R) -> R {
        let mut buffer = self.read_buffer.borrow_mut(py);
        read(buffer.get_or_insert_with(|| vec![MaybeUninit::uninit(); READ_SIZE].into_boxed_slice()))
    }
}

/// Tells the callbacks that were registered for a file which is closed by now: they will never run.
pub fn cancel_stale(py: Python<'_>, stale: Option<Owner>) -> PyResult<()> {
    match stale {
        Some(Owner::Watch(watch)) => watch.cancel(py),
        Some(Owner::Transport(_) | Owner::Dormant(_) | Owner::Listener(_)) | None => Ok(()),
    }
}
