//! Scheduling: `call_soon` and its kin.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use mio::Waker;
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyTuple};

use super::{EventLoop, Ready};
use crate::handle::{Handle, TimerHandle, add_delay};
use crate::py::copy_current_context;
use crate::sys;
use crate::timers::TimerKey;

#[pymethods]
impl EventLoop {
    /// Schedules `callback(*args)` for the next iteration. Callbacks run in the order in which they were scheduled.
    ///
    /// `context`: the `contextvars.Context` to run in; a copy of the current one by default.
    /// Returns a `Handle`. Raises RuntimeError if the loop is closed; in debug mode also if the thread is not the
    /// loop's, and TypeError for what can't be called.
    /// As `asyncio.loop.call_soon`.
    #[pyo3(signature = (callback, *args, context=None))]
    fn call_soon(
        slf: &Bound<'_, Self>,
        callback: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
        context: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Py<Handle>> {
        let (py, this) = (slf.py(), slf.get());
        this.check_open(py)?;
        if this.is_debug(py) {
            slf.call_method0(intern!(py, "_check_thread"))?;
            check_callback(slf, &callback, "call_soon")?;
        }
        let handle = Self::new_handle(slf, callback, args, context)?;
        let handle = Py::new(py, handle)?;
        this.push_ready(py, Ready::Call(handle.clone_ref(py)));
        Ok(handle)
    }

    /// As `call_soon`, from any thread: an idle loop wakes up for it.
    #[pyo3(signature = (callback, *args, context=None))]
    fn call_soon_threadsafe(
        slf: &Bound<'_, Self>,
        callback: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
        context: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Py<Handle>> {
        let (py, this) = (slf.py(), slf.get());
        this.check_open(py)?;
        if this.is_debug(py) {
            check_callback(slf, &callback, "call_soon_threadsafe")?;
        }
        let handle = Self::new_handle(slf, callback, args, context)?;
        let handle = Py::new(py, handle.guarded(py))?;
        this.push_incoming(Ready::Call(handle.clone_ref(py)));
        this.wake()?;
        Ok(handle)
    }

    /// Schedules `callback(*args)` for `delay` seconds from now. Returns a `TimerHandle`.
    ///
    /// Raises as `call_soon` does, and TypeError for a delay that is no number. As `asyncio.loop.call_later`.
    #[pyo3(signature = (delay, callback, *args, context=None))]
    fn call_later(
        slf: &Bound<'_, Self>,
        delay: &Bound<'_, PyAny>,
        callback: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
        context: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Py<TimerHandle>> {
        let when = add_delay(sys::monotonic(), delay)?;
        Self::schedule_timer(slf, when, None, callback, args, context)
    }

    /// Schedules `callback(*args)` for a time of the loop's clock, in seconds (see `time`). Returns a `TimerHandle`.
    ///
    /// Timers for the same time run in the order in which they were scheduled. Raises as `call_later` does.
    /// As `asyncio.loop.call_at`.
    #[pyo3(signature = (when, callback, *args, context=None))]
    fn call_at(
        slf: &Bound<'_, Self>,
        when: &Bound<'_, PyAny>,
        callback: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
        context: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Py<TimerHandle>> {
        if when.is_none() {
            return Err(PyTypeError::new_err("when cannot be None"));
        }
        let (when, given) = match when.cast_exact::<PyFloat>() {
            Ok(when) => (when.value(), None),
            Err(_) => (when.extract()?, Some(when.clone().unbind())),
        };
        Self::schedule_timer(slf, when, given, callback, args, context)
    }

    /// Wakes the loop from its poll; the standard library calls it after scheduling from another thread.
    fn _write_to_self(&self) -> PyResult<()> {
        self.wake()
    }
}

impl EventLoop {
    fn new_handle(
        slf: &Bound<'_, Self>,
        callback: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
        context: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Handle> {
        let py = slf.py();
        let context = match context {
            Some(context) => context.unbind(),
            None => copy_current_context(py)?,
        };
        let handle = Handle::new(slf, callback.unbind(), args.unbind(), context);
        if slf.get().is_debug(py) {
            handle.trace_origin(py)?;
        }
        Ok(handle)
    }

    fn schedule_timer(
        slf: &Bound<'_, Self>,
        when: f64,
        given: Option<Py<PyAny>>,
        callback: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
        context: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Py<TimerHandle>> {
        let (py, this) = (slf.py(), slf.get());
        this.check_open(py)?;
        if this.is_debug(py) {
            slf.call_method0(intern!(py, "_check_thread"))?;
            // Under this name for `call_later` too, as in asyncio, where the one calls the other.
            check_callback(slf, &callback, "call_at")?;
        }
        let handle = Self::new_handle(slf, callback, args, context)?;
        let timer = TimerHandle::create(py, when, given, handle)?;
        let key = this.timers.borrow_mut(py).insert(when, timer.clone().unbind());
        timer.get().set_key(py, Some(key));
        Ok(timer.unbind())
    }

    /// Takes a cancelled timer out of the queue.
    pub fn cancel_timer(&self, py: Python<'_>, key: TimerKey) {
        let held = self.timers.borrow_mut(py).cancel(key);
        drop(held);
    }

    /// Queues something for the next iteration, behind whatever other threads have scheduled before: in one thread,
    /// calls of `call_soon` and `call_soon_threadsafe` run in the order they were made.
    pub(super) fn push_ready(&self, py: Python<'_>, item: Ready) {
        if self.shared.has_incoming.load(Ordering::Relaxed) {
            self.take_over_incoming(py);
        }
        self.ready.borrow_mut(py).push_back(item);
    }

    pub(super) fn take_over_incoming(&self, py: Python<'_>) {
        let incoming = self.take_incoming();
        self.ready.borrow_mut(py).extend(incoming);
    }

    pub(super) fn push_incoming(&self, item: Ready) {
        self.shared.incoming.lock().unwrap_or_else(PoisonError::into_inner).push(item);
        self.shared.has_incoming.store(true, Ordering::SeqCst);
    }

    /// Ends the loop's sleep, if it sleeps. Many calls in a row cost one system call: the first one takes the flag.
    fn wake(&self) -> PyResult<()> {
        match self.claim_waker() {
            Some(waker) => Ok(waker.wake().map_err(sys::Error::from)?),
            None => Ok(()),
        }
    }

    /// What to wake the loop with. Nobody else will do it, so this is not to be given up.
    pub(super) fn claim_waker(&self) -> Option<Arc<Waker>> {
        if !self.shared.sleeping.swap(false, Ordering::SeqCst) {
            return None;
        }
        self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn check_callback(slf: &Bound<'_, EventLoop>, callback: &Bound<'_, PyAny>, method: &str) -> PyResult<()> {
    slf.call_method1(intern!(slf.py(), "_check_callback"), (callback, method)).map(drop)
}
