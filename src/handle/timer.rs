//! Calls for a time.

use pyo3::basic::CompareOp;
use pyo3::exceptions::PyTypeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyType};
use pyo3::{PyClassInitializer, ffi};

use super::{Handle, Parts};
use crate::event_loop::EventLoop;
use crate::py::{
    Asyncio, AttachedValue, Blank, Function, Pool, Recycled, Slot, add_method, enter_plain, recycle, track,
};
use crate::timers::TimerKey;

/// A call scheduled for a time (asyncio's `TimerHandle`).
#[pyclass(extends = Handle, frozen, module = "mioloop._core")]
pub struct TimerHandle {
    when: AttachedValue<f64>,
    /// The time as `call_at` was given it, if that was no float: `when()` returns the very object.
    given: Slot,
    /// Its place in the timer queue, until it fires or is cancelled.
    key: AttachedValue<Option<TimerKey>>,
}

impl Recycled for TimerHandle {
    fn blank() -> PyClassInitializer<Self> {
        let timer = TimerHandle {
            when: AttachedValue::new(0.0),
            given: Slot::empty(),
            key: AttachedValue::new(None),
        };
        PyClassInitializer::from(Handle::empty_one()).add_subclass(timer)
    }

    fn empty(dead: &Bound<'_, Self>) {
        let py = dead.py();
        drop(dead.get().given.take(py));
        dead.get().key.set(py, None);
        dead.as_super().get().let_go_of_all(py);
    }

    fn pool() -> &'static Pool {
        static POOL: Pool = Pool::new();
        &POOL
    }
}

impl TimerHandle {
    /// As `Handle::create_ready`. `given`: the time as it was given, if that was no float.
    #[inline]
    pub fn create<'py>(
        event_loop: &Bound<'py, EventLoop>,
        when: f64,
        given: Option<&Bound<'py, PyAny>>,
        callback: &Bound<'py, PyAny>,
        arguments: &[Bound<'py, PyAny>],
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, TimerHandle>> {
        let py = event_loop.py();
        let parts = Parts::new(event_loop, callback, arguments, context)?;
        let blank = Blank::<TimerHandle>::new(py)?;
        let handle = blank.get().as_super().get();
        parts.fill(handle);
        if context.is_none() {
            handle.drop_empty_context(py);
        }
        let timer = blank.get().get();
        timer.when.set(py, when);
        if let Some(given) = given {
            timer.given.fill(given.clone());
        }
        // Asked now, when no other code runs before the timer is in the queue.
        if event_loop.get().keeps_queued_alive(py) {
            return Ok(blank.publish_untracked());
        }
        let timer = blank.publish();
        timer.as_super().get().trace_origin(event_loop)?;
        Ok(timer)
    }

    pub fn set_key(&self, py: Python<'_>, key: Option<TimerKey>) {
        self.key.set(py, key);
    }

    fn cancel(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this, handle) = (slf.py(), slf.get(), slf.as_super().get());
        if let Some(key) = this.key.replace(py, None) {
            handle.event_loop(py).get().cancel_timer(py, key);
            // The caller has it, and its context may refer to whom he belongs to.
            track(slf);
        }
        handle.cancel_with(py, "TimerHandle", || this.when(py).str().ok().map(|when| when.to_string()))
    }
}

/// # Safety
/// As `enter_plain`, for a `TimerHandle`.
unsafe extern "C" fn cancel(slf: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: as the caller promises.
    unsafe { enter_plain(slf, TimerHandle::cancel) }
}

pub fn prepare_class(py: Python<'_>) -> PyResult<()> {
    let doc =
        c"cancel($self)\n--\n\nCancels the call, unless it has run, and lets go of the callback and its \
arguments at once.";
    // SAFETY: the function is for timer handles.
    unsafe { add_method(&py.get_type::<TimerHandle>(), c"cancel", Function::Plain(cancel), doc)? };
    recycle::<TimerHandle>(py);
    Ok(())
}

#[pymethods]
impl TimerHandle {
    /// The time at which the call is due, in seconds of the loop's clock (`loop.time()`).
    fn when<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.given.get(py).unwrap_or_else(|| PyFloat::new(py, self.when.get(py)).into_any())
    }

    #[getter]
    fn _when<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.when(py)
    }

    #[getter]
    fn _scheduled(&self, py: Python<'_>) -> bool {
        self.key.get(py).is_some()
    }

    #[getter(__class__)]
    fn class(&self, py: Python<'_>) -> PyResult<Py<PyType>> {
        Ok(Asyncio::get(py)?.timer_handle.clone_ref(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.given.traverse(visit)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        slf.get().describe(slf)
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        self.when(py).hash()
    }

    /// Timers are ordered by their time; two are equal if they also call the same thing.
    fn __richcmp__(slf: &Bound<'_, Self>, other: &Bound<'_, PyAny>, op: CompareOp) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let Ok(other) = other.cast::<TimerHandle>() else {
            return Ok(py.NotImplemented());
        };
        let (a, b) = (slf.get().when.get(py), other.get().when.get(py));
        let result = match op {
            CompareOp::Lt => a < b,
            CompareOp::Gt => a > b,
            CompareOp::Le => a < b || Self::same_call(slf, other)?,
            CompareOp::Ge => a > b || Self::same_call(slf, other)?,
            CompareOp::Eq => Self::same_call(slf, other)?,
            CompareOp::Ne => !Self::same_call(slf, other)?,
        };
        Ok(result.into_pyobject(py)?.to_owned().into_any().unbind())
    }
}

impl TimerHandle {
    fn describe(&self, slf: &Bound<'_, Self>) -> PyResult<String> {
        let when = self.when(slf.py()).str()?.to_string();
        slf.as_super().get().describe(slf.py(), "TimerHandle", Some(&when))
    }

    fn same_call(a: &Bound<'_, Self>, b: &Bound<'_, Self>) -> PyResult<bool> {
        let py = a.py();
        if a.get().when.get(py) != b.get().when.get(py) {
            return Ok(false);
        }
        let (a, b) = (a.as_super().get(), b.as_super().get());
        match (a.call(py)?, b.call(py)?) {
            (Some((callback, args)), Some((other_callback, other_args))) => {
                Ok(callback.eq(other_callback)? && args.eq(other_args)?)
            }
            (a, b) => Ok(a.is_none() && b.is_none()),
        }
    }
}

/// The number of seconds in `delay`, added to `now` as Python adds it, so that whatever Python can't add raises what
/// Python raises.
pub fn add_delay(now: f64, delay: &Bound<'_, PyAny>) -> PyResult<f64> {
    if let Ok(delay) = delay.cast_exact::<PyFloat>() {
        return Ok(now + delay.value());
    }
    if delay.is_none() {
        return Err(PyTypeError::new_err("delay must not be None"));
    }
    PyFloat::new(delay.py(), now).add(delay)?.extract()
}
