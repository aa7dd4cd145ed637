//! Awaitables made in Rust, which are to `await` what a coroutine is.
//!
//! A coroutine hands its result over in a StopIteration, unless it is asked by the C slot `am_send`, as tasks do, and
//! `await` on 3.11: then result and future come without an exception. pyo3 knows no name for that slot, so it is put
//! into the finished class here; and beside it those that `await` uses from 3.12 on, without what pyo3 does around them.

use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyRuntimeWarning, PyStopIteration, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;
use pyo3::{Borrowed, PyClass};

/// What one step of an awaitable came to.
pub enum Step<'py> {
    /// It waits for this future.
    Wait(Bound<'py, PyAny>),
    /// It is done, and this is the result.
    Done(Bound<'py, PyAny>),
}

/// A class with a coroutine's methods; `coroutine_methods!` gives it those.
pub trait Awaitable: PyClass {
    /// Goes on until it must wait.
    fn step<'py>(slf: &Bound<'py, Self>) -> PyResult<Step<'py>>;

    /// Nobody wants the result any more.
    fn give_up(slf: &Bound<'_, Self>) -> PyResult<()>;

    /// What a program may send into it: only None makes sense.
    fn send<'py>(slf: &Bound<'py, Self>, value: &Bound<'_, PyAny>) -> PyResult<Step<'py>> {
        match value.is_none() {
            true => Self::step(slf),
            false => Err(PyTypeError::new_err("only None can be sent to it")),
        }
    }
}

/// A step as Python's iterators have it.
pub fn iterate<'py, T: Awaitable>(
    slf: &Bound<'py, T>,
    value: &Bound<'_, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    match T::send(slf, value)? {
        Step::Wait(future) => Ok(future),
        Step::Done(result) => Err(stop_iteration(result)),
    }
}

/// What the interpreter says of a coroutine that is dropped before it has begun.
pub fn warn_never_awaited(py: Python<'_>, name: &str) -> PyResult<()> {
    let message = CString::new(format!("coroutine '{name}' was never awaited"))?;
    PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &message, 1)
}

/// For a destructor: what its work raises is for `sys.unraisablehook`, and an exception that is on its way stays.
pub fn in_destructor(py: Python<'_>, work: impl FnOnce() -> PyResult<()>) {
    let pending = PyErr::take(py);
    if let Err(error) = work() {
        error.write_unraisable(py, None);
    }
    if let Some(pending) = pending {
        pending.restore(py);
    }
}

/// What hands a result over. An object at once: what pyo3 has in its place until somebody asks costs more.
pub fn stop_iteration(result: Bound<'_, PyAny>) -> PyErr {
    let class = result.py().get_type::<PyStopIteration>();
    class.call1((result,)).map_or_else(|error| error, PyErr::from_value)
}

/// The exception that `throw(exc, value)` means.
pub fn thrown(exc: Bound<'_, PyAny>, value: Option<Bound<'_, PyAny>>) -> PyErr {
    match (exc.cast::<PyType>(), value) {
        (Ok(class), None) => PyErr::from_type(class.clone(), ()),
        (Ok(class), Some(value)) if !value.is_instance_of::<PyBaseException>() => {
            PyErr::from_type(class.clone(), (value.unbind(),))
        }
        (_, value) => PyErr::from_value(value.unwrap_or(exc)),
    }
}

/// The methods of a coroutine, for a class that is [`Awaitable`].
macro_rules! coroutine_methods {
    ($class:ident) => {
        #[pymethods]
        impl $class {
            fn __await__(slf: Py<Self>) -> Py<Self> {
                slf
            }

            fn __iter__(slf: Py<Self>) -> Py<Self> {
                slf
            }

            fn __next__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
                $crate::py::iterate(slf, &slf.py().None().into_bound(slf.py()))
            }

            /// As of a coroutine; only None makes sense.
            #[pyo3(signature = (value, /))]
            fn send<'py>(slf: &Bound<'py, Self>, value: &Bound<'_, PyAny>) -> PyResult<Bound<'py, PyAny>> {
                $crate::py::iterate(slf, value)
            }

            /// As of a coroutine: cancels the operation.
            #[pyo3(signature = (exc, value=None, _traceback=None))]
            fn throw(
                slf: &Bound<'_, Self>,
                exc: Bound<'_, PyAny>,
                value: Option<Bound<'_, PyAny>>,
                _traceback: Option<Bound<'_, PyAny>>,
            ) -> PyResult<()> {
                $crate::py::Awaitable::give_up(slf)?;
                Err($crate::py::thrown(exc, value))
            }

            /// As of a coroutine: gives the operation up.
            fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
                $crate::py::Awaitable::give_up(slf)
            }
        }
    };
}
pub(crate) use coroutine_methods;

/// Puts the slots into the class; once, before an instance is made.
pub fn install_slots<T: Awaitable>(py: Python<'_>) -> PyResult<()> {
    let class = py.get_type::<T>();
    let class = class.as_type_ptr();
    // SAFETY: attached. A class that pyo3 makes is a heap type, whose `tp_as_async` points into the type object itself,
    // for as long as that lives. The functions have the signatures of the slots, and do what pyo3's do. The module is
    // being made, so there are neither instances nor subclasses yet that could have copied the slots. `PyType_Modified`
    // makes the interpreter forget what it has cached of the class.
    unsafe {
        let Some(methods) = (*class).tp_as_async.as_mut() else {
            return Err(PyRuntimeError::new_err("a class without __await__"));
        };
        methods.am_send = Some(send::<T>);
        methods.am_await = Some(ffi::PyObject_SelfIter);
        (*class).tp_iternext = Some(next::<T>);
        ffi::PyType_Modified(class);
    }
    Ok(())
}

/// Enters pyo3 from a slot that is not its own.
///
/// `Python::attach` would do, but for the end of the interpreter: coroutines that nobody has finished are closed then,
/// `finally` and all, and pyo3 attaches no more (it panics). The caller is attached nevertheless.
///
/// # Safety
/// The thread must be attached to the interpreter.
pub unsafe fn attached<R>(work: impl FnOnce(Python<'_>) -> R) -> R {
    let mut work = Some(work);
    match Python::try_attach(|py| work.take().map(|work| work(py))) {
        Some(Some(result)) => result,
        _ => {
            // SAFETY: as the caller promises.
            let py = unsafe { Python::assume_attached() };
            work.map(|work| work(py)).expect("pyo3 has refused to attach, so it has not done the work")
        }
    }
}

/// A step, for a slot of the class.
///
/// # Safety
/// `slf` is an instance of class `T`, alive for as long as the call lasts.
unsafe fn guarded<'py, T: Awaitable>(
    py: Python<'py>,
    slf: *mut ffi::PyObject,
    step: impl FnOnce(&Bound<'py, T>) -> PyResult<Step<'py>>,
) -> PyResult<Step<'py>> {
    // SAFETY: as the caller promises.
    let slf = unsafe { Bound::from_borrowed_ptr(py, slf).cast_into_unchecked::<T>() };
    // Through C code a panic must not unwind.
    catch_unwind(AssertUnwindSafe(|| step(&slf)))
        .unwrap_or_else(|_panic| Err(PyRuntimeError::new_err("mioloop: an operation panicked")))
}

/// The slot `tp_iternext`.
unsafe extern "C" fn next<T: Awaitable>(slf: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the interpreter calls slots attached, with an instance of the class.
    unsafe {
        attached(|py| match guarded(py, slf, T::step) {
            Ok(Step::Wait(future)) => future.into_ptr(),
            // The end of an iterator without an exception stands for None.
            Ok(Step::Done(result)) if result.is_none() => std::ptr::null_mut(),
            Ok(Step::Done(result)) => {
                stop_iteration(result).restore(py);
                std::ptr::null_mut()
            }
            Err(error) => {
                error.restore(py);
                std::ptr::null_mut()
            }
        })
    }
}

/// The slot `am_send`.
unsafe extern "C" fn send<T: Awaitable>(
    slf: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    let step = |py: Python<'_>| {
        // SAFETY: the interpreter calls a class's slot with an instance of the class, and with a value; both references
        // are the caller's for as long as the call lasts.
        let step = unsafe {
            let value = Borrowed::from_ptr(py, value);
            guarded::<T>(py, slf, |slf| T::send(slf, &value))
        };
        let (outcome, object) = match step {
            Ok(Step::Wait(future)) => (ffi::PySendResult::PYGEN_NEXT, future.into_ptr()),
            Ok(Step::Done(value)) => (ffi::PySendResult::PYGEN_RETURN, value.into_ptr()),
            Err(error) => {
                error.restore(py);
                (ffi::PySendResult::PYGEN_ERROR, std::ptr::null_mut())
            }
        };
        // SAFETY: `result` points to where the caller wants its new reference, or null beside an exception.
        unsafe { *result = object };
        outcome
    };
    // SAFETY: the interpreter calls slots attached.
    unsafe { attached(step) }
}
