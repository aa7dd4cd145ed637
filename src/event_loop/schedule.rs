//! Scheduling: `call_soon` and its kin.

use std::sync::{Arc, PoisonError};

use mio::Waker;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyType};
use pyo3::{ffi, intern};

use super::{EventLoop, Ready, Ringer};
use crate::handle::{Handle, TimerHandle, add_delay};
use crate::py::{Arguments, Function, add_method, enter_fast};
use crate::sys;
use crate::timers::TimerKey;

/// # Safety
/// As `enter_fast`, for an `EventLoop`.
unsafe extern "C" fn call_soon(
    slf: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: as the caller promises.
    unsafe { enter_fast(slf, args, count, names, EventLoop::call_soon) }
}

/// # Safety
/// As `enter_fast`, for an `EventLoop`.
unsafe extern "C" fn call_soon_threadsafe(
    slf: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: as the caller promises.
    unsafe { enter_fast(slf, args, count, names, EventLoop::call_soon_threadsafe) }
}

/// # Safety
/// As `enter_fast`, for an `EventLoop`.
unsafe extern "C" fn call_later(
    slf: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: as the caller promises.
    unsafe { enter_fast(slf, args, count, names, EventLoop::call_later) }
}

/// # Safety
/// As `enter_fast`, for an `EventLoop`.
unsafe extern "C" fn call_at(
    slf: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: as the caller promises.
    unsafe { enter_fast(slf, args, count, names, EventLoop::call_at) }
}

/// Adds the methods of this file to the class.
pub fn add_methods(class: &Bound<'_, PyType>) -> PyResult<()> {
    let methods = [
        (
            c"call_soon",
            call_soon as ffi::PyCFunctionFastWithKeywords,
            c"call_soon($self, callback, *args, context=None)\n--\n\n\
Schedules `callback(*args)` for the next iteration. Callbacks run in the order in which they were scheduled.

`context`: the `contextvars.Context` to run in; a copy of the current one by default.
Returns a `Handle`. Raises RuntimeError if the loop is closed; in debug mode also if the thread is not the
loop's, and TypeError for what can't be called.
As `asyncio.loop.call_soon`.",
        ),
        (
            c"call_soon_threadsafe",
            call_soon_threadsafe,
            c"call_soon_threadsafe($self, callback, *args, context=None)\n--\n\n\
As `call_soon`, from any thread: an idle loop wakes up for it.",
        ),
        (
            c"call_later",
            call_later,
            c"call_later($self, delay, callback, *args, context=None)\n--\n\n\
Schedules `callback(*args)` for `delay` seconds from now. Returns a `TimerHandle`.

Raises as `call_soon` does, and TypeError for a delay that is no number. As `asyncio.loop.call_later`.",
        ),
        (
            c"call_at",
            call_at,
            c"call_at($self, when, callback, *args, context=None)\n--\n\n\
Schedules `callback(*args)` for a time of the loop's clock, in seconds (see `time`). Returns a `TimerHandle`.

Timers for the same time run in the order in which they were scheduled. Raises as `call_later` does.
As `asyncio.loop.call_at`.",
        ),
    ];
    for (name, function, doc) in methods {
        // SAFETY: the functions are for loops.
        unsafe { add_method(class, name, Function::Fast(function), doc)? };
    }
    Ok(())
}

impl EventLoop {
    fn call_soon<'py>(slf: &Bound<'py, Self>, arguments: Arguments<'_, 'py>) -> PyResult<Bound<'py, Handle>> {
        let ([callback], args, context) = arguments.split("call_soon", ["callback"])?;
        let (py, this) = (slf.py(), slf.get());
        this.check_open(py)?;
        if let Some(_debug) = this.debug_call(py) {
            slf.call_method0(intern!(py, "_check_thread"))?;
            check_callback(slf, callback, "call_soon")?;
        }
        let handle = Handle::create_ready(slf, callback, args, context)?;
        this.push_ready(py, Ready::Call(handle.clone().unbind()));
        Ok(handle)
    }

    fn call_soon_threadsafe<'py>(
        slf: &Bound<'py, Self>,
        arguments: Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, Handle>> {
        let ([callback], args, context) = arguments.split("call_soon_threadsafe", ["callback"])?;
        let (py, this) = (slf.py(), slf.get());
        this.check_open(py)?;
        if let Some(_debug) = this.debug_call(py) {
            check_callback(slf, callback, "call_soon_threadsafe")?;
        }
        let handle = Handle::create_from_thread(slf, callback, args, context)?;
        this.push_ready(py, Ready::Call(handle.clone().unbind()));
        this.wake(py)?;
        Ok(handle)
    }

    fn call_later<'py>(
        slf: &Bound<'py, Self>,
        arguments: Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, TimerHandle>> {
        let ([delay, callback], args, context) = arguments.split("call_later", ["delay", "callback"])?;
        let when = add_delay(sys::monotonic(), delay)?;
        Self::schedule_timer(slf, when, None, callback, args, context)
    }

    fn call_at<'py>(
        slf: &Bound<'py, Self>,
        arguments: Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, TimerHandle>> {
        let ([when, callback], args, context) = arguments.split("call_at", ["when", "callback"])?;
        if when.is_none() {
            return Err(PyTypeError::new_err("when cannot be None"));
        }
        let (seconds, given) = match when.cast_exact::<PyFloat>() {
            Ok(when) => (when.value(), None),
            Err(_) => (when.extract()?, Some(when)),
        };
        Self::schedule_timer(slf, seconds, given, callback, args, context)
    }
}

#[pymethods]
impl EventLoop {
    /// Wakes the loop from its poll; the standard library calls it after scheduling from another thread.
    fn _write_to_self(&self, py: Python<'_>) -> PyResult<()> {
        self.wake(py)
    }
}

impl EventLoop {
    fn schedule_timer<'py>(
        slf: &Bound<'py, Self>,
        when: f64,
        given: Option<&Bound<'py, PyAny>>,
        callback: &Bound<'py, PyAny>,
        args: &[Bound<'py, PyAny>],
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, TimerHandle>> {
        let (py, this) = (slf.py(), slf.get());
        this.check_open(py)?;
        if let Some(_debug) = this.debug_call(py) {
            slf.call_method0(intern!(py, "_check_thread"))?;
            // Under this name for `call_later` too, as in asyncio, where the one calls the other.
            check_callback(slf, callback, "call_at")?;
        }
        let timer = TimerHandle::create(slf, when, given, callback, args, context)?;
        let key = this.timers.borrow_mut(py).insert(when, timer.clone().unbind());
        timer.get().set_key(py, Some(key));
        Ok(timer)
    }

    /// Takes a cancelled timer out of the queue.
    pub fn cancel_timer(&self, py: Python<'_>, key: TimerKey) {
        let held = self.timers.borrow_mut(py).cancel(key);
        drop(held.map(|timer| timer.into_bound(py)));
    }

    /// Queues something for the next iteration, from any thread; one that is not the loop's has to wake it then.
    #[inline(always)]
    pub(super) fn push_ready(&self, py: Python<'_>, item: Ready) {
        self.ready.borrow_mut(py).push_back(item);
    }

    /// Ends the loop's sleep, if it sleeps. Many calls in a row cost one system call, the first one's.
    #[inline]
    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        match self.claim_waker(py) {
            Some(waker) => Ok(waker.wake().map_err(sys::Error::from)?),
            None => Ok(()),
        }
    }

    /// For threads that know nothing of Python.
    pub fn ringer(&self, _py: Python<'_>) -> Ringer {
        let waker = self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner);
        Ringer::new(self.shared.bell.clone(), waker.as_ref().map(Arc::downgrade).unwrap_or_default())
    }

    /// What to wake the loop with. Nobody else will do it, so this is not to be given up.
    #[inline]
    pub(super) fn claim_waker(&self, _py: Python<'_>) -> Option<Arc<Waker>> {
        // Most often so, and to change it costs more.
        if self.shared.bell.is_loop_awake() {
            return None;
        }
        self.take_waker()
    }

    #[cold]
    fn take_waker(&self) -> Option<Arc<Waker>> {
        if !self.shared.bell.rouse() {
            return None;
        }
        self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn check_callback(slf: &Bound<'_, EventLoop>, callback: &Bound<'_, PyAny>, method: &str) -> PyResult<()> {
    slf.call_method1(intern!(slf.py(), "_check_callback"), (callback, method)).map(drop)
}
