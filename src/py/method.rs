//! Methods that are called once per event, without what pyo3 does around its own.
//!
//! pyo3's `*args` is a new tuple for each call, and every method of its keeps count of how often the thread has entered
//! it. These take the arguments as the interpreter has them (the vectorcall protocol), and the count is not theirs: so
//! nothing here may drop a `Py`, which would be put off until pyo3 is entered next. What is owned is a `Bound`.

use std::any::Any;
use std::ffi::{CStr, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PyTypeError;
use pyo3::panic::PanicException;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyString, PyTuple, PyType};
use pyo3::{Borrowed, ffi, intern};

/// What a method is to the interpreter.
#[derive(Clone, Copy)]
pub enum Function {
    Plain(ffi::PyCFunction),
    Fast(ffi::PyCFunctionFastWithKeywords),
}

/// Adds a method to a class.
///
/// `doc` begins with the signature, as CPython's own do: `name($self, …)\n--\n\n`.
///
/// # Safety
/// `function` is one for objects of this class.
pub unsafe fn add_method(
    class: &Bound<'_, PyType>,
    name: &'static CStr,
    function: Function,
    doc: &'static CStr,
) -> PyResult<()> {
    let py = class.py();
    let (ml_meth, ml_flags): (_, c_int) = match function {
        Function::Plain(function) => (ffi::PyMethodDefPointer { PyCFunction: function }, ffi::METH_NOARGS),
        Function::Fast(function) => (
            ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: function },
            ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ),
    };
    let definition = ffi::PyMethodDef { ml_name: name.as_ptr(), ml_meth, ml_flags, ml_doc: doc.as_ptr() };
    // Never freed: the descriptor points to it, and the class lives as long as the process.
    let definition = Box::leak(Box::new(definition));
    // SAFETY: the definition is complete, and lasts; the function fits the flags.
    let descriptor =
        unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyDescr_NewMethod(class.as_type_ptr(), definition))? };
    class.setattr(PyString::from_bytes(py, name.to_bytes())?, descriptor)
}

/// Runs the body of a method that takes no arguments.
///
/// # Safety
/// For CPython to call, attached, with an object of class `T`.
#[inline(always)]
pub unsafe fn enter_plain<'py, T, R>(
    slf: *mut ffi::PyObject,
    body: impl FnOnce(&Bound<'py, T>) -> PyResult<R>,
) -> *mut ffi::PyObject
where
    R: IntoResult,
{
    // SAFETY: as the caller promises.
    unsafe {
        let py = Python::assume_attached();
        let slf = Borrowed::from_ptr(py, slf);
        let slf = slf.cast_unchecked::<T>();
        guarded(py, || body(&slf))
    }
}

/// Runs the body of a method that takes arguments.
///
/// # Safety
/// For CPython to call, attached, with an object of class `T` and the arguments of `METH_FASTCALL | METH_KEYWORDS`.
#[inline(always)]
pub unsafe fn enter_fast<'a, 'py: 'a, T: 'a, R>(
    slf: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
    body: impl FnOnce(&Bound<'py, T>, Arguments<'a, 'py>) -> PyResult<R>,
) -> *mut ffi::PyObject
where
    R: IntoResult,
{
    // SAFETY: as the caller promises: `count` arguments by position, and behind them one for each name; all of them
    // stay alive during the call. A `Bound` is nothing but a pointer that is not null.
    unsafe {
        let py = Python::assume_attached();
        let slf = Borrowed::from_ptr(py, slf);
        let slf = slf.cast_unchecked::<T>();
        let names = Borrowed::from_ptr_or_opt(py, names).map(|names| names.cast_unchecked::<PyTuple>());
        let total = count as usize + names.map_or(0, |names| names.len());
        let all: &[Bound<'_, PyAny>] =
            if total == 0 { &[] } else { std::slice::from_raw_parts(args.cast(), total) };
        let (positional, values) = all.split_at(count as usize);
        guarded(py, || body(&slf, Arguments { positional, names, values }))
    }
}

/// An exception or a panic becomes Python's exception, and anything else its result.
#[inline(always)]
fn guarded<R: IntoResult>(py: Python<'_>, body: impl FnOnce() -> PyResult<R>) -> *mut ffi::PyObject {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(result)) => return result.into_result(py),
        Ok(Err(error)) => error,
        Err(payload) => panic_error(payload),
    };
    error.restore(py);
    std::ptr::null_mut()
}

#[cold]
fn panic_error(payload: Box<dyn Any + Send>) -> PyErr {
    let message = match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => {
            payload.downcast::<&str>().map_or("a panic".to_owned(), |message| message.to_string())
        }
    };
    PanicException::new_err((message,))
}

/// What a method may return.
pub trait IntoResult {
    /// A new reference; or null, with an exception set.
    fn into_result(self, py: Python<'_>) -> *mut ffi::PyObject;
}

impl<T> IntoResult for Bound<'_, T> {
    fn into_result(self, _py: Python<'_>) -> *mut ffi::PyObject {
        self.into_ptr()
    }
}

impl IntoResult for () {
    fn into_result(self, py: Python<'_>) -> *mut ffi::PyObject {
        py.None().into_ptr()
    }
}

impl IntoResult for bool {
    fn into_result(self, py: Python<'_>) -> *mut ffi::PyObject {
        PyBool::new(py, self).to_owned().into_ptr()
    }
}

impl IntoResult for f64 {
    fn into_result(self, py: Python<'_>) -> *mut ffi::PyObject {
        PyFloat::new(py, self).into_ptr()
    }
}

/// The arguments of one call.
#[derive(Clone, Copy)]
pub struct Arguments<'a, 'py> {
    pub positional: &'a [Bound<'py, PyAny>],
    /// The names of the arguments that `values` has.
    pub names: Option<Borrowed<'a, 'py, PyTuple>>,
    pub values: &'a [Bound<'py, PyAny>],
}

/// Whether a keyword is `context`: most often the interned string, but on 3.11 not asyncio's own.
#[inline]
fn is_context(name: &Bound<'_, PyAny>) -> bool {
    // SAFETY: the interpreter gives strings as the names of arguments.
    name.is(intern!(name.py(), "context"))
        || unsafe { ffi::PyUnicode_CompareWithASCIIString(name.as_ptr(), c"context".as_ptr()) == 0 }
}

type Split<'a, 'py, const N: usize> =
    ([&'a Bound<'py, PyAny>; N], &'a [Bound<'py, PyAny>], Option<&'a Bound<'py, PyAny>>);

impl<'a, 'py> Arguments<'a, 'py> {
    /// The arguments that were given by name.
    #[inline]
    pub fn by_name<'s>(&'s self) -> impl Iterator<Item = (&'s Bound<'py, PyAny>, &'a Bound<'py, PyAny>)> {
        self.names.as_ref().map_or(&[][..], |names| names.as_slice()).iter().zip(self.values)
    }

    /// As a Python function has them that is declared `def method(self, *required, *args, context=None)`, with `N`
    /// required arguments. A context of None is none.
    #[inline(always)]
    pub fn split<const N: usize>(self, method: &str, required: [&str; N]) -> PyResult<Split<'a, 'py, N>> {
        let context = match (self.names, self.values) {
            (None, _) => None,
            (Some(names), [value]) if is_context(&names.as_slice()[0]) => Some(value),
            _ => return self.split_by_name(method, required),
        };
        match self.positional.split_first_chunk::<N>() {
            Some((first, rest)) => Ok((first.each_ref(), rest, context.filter(|context| !context.is_none()))),
            None => self.split_by_name(method, required),
        }
    }

    /// The same, where a name is not the interned one or an argument is missing.
    #[cold]
    #[inline(never)]
    fn split_by_name<const N: usize>(self, method: &str, required: [&str; N]) -> PyResult<Split<'a, 'py, N>> {
        let given = self.positional.len().min(N);
        let (first, rest) = self.positional.split_at(given);
        let mut found: [Option<&Bound<'py, PyAny>>; N] = [None; N];
        for (place, value) in found.iter_mut().zip(first) {
            *place = Some(value);
        }
        let mut context = None;
        let names = self.names.iter().flat_map(|names| names.as_slice());
        for (name, value) in names.zip(self.values) {
            let name = name.cast::<PyString>()?.to_string_lossy();
            match required.iter().position(|known| *known == name) {
                Some(place) if found[place].is_some() => {
                    let message = format!("EventLoop.{method}() got multiple values for argument '{name}'");
                    return Err(PyTypeError::new_err(message));
                }
                Some(place) => found[place] = Some(value),
                None if name == "context" => context = Some(value),
                None => {
                    let message = format!("EventLoop.{method}() got an unexpected keyword argument '{name}'");
                    return Err(PyTypeError::new_err(message));
                }
            }
        }
        let all: Vec<&Bound<'py, PyAny>> = found.iter().flatten().copied().collect();
        if let Ok(all) = <[_; N]>::try_from(all) {
            return Ok((all, rest, context.filter(|context| !context.is_none())));
        }
        let missing: Vec<String> = (required.iter().zip(found))
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| format!("'{name}'"))
            .collect();
        Err(PyTypeError::new_err(format!(
            "EventLoop.{method}() missing {} required positional argument{}: {}",
            missing.len(),
            if missing.len() > 1 { "s" } else { "" },
            missing.join(" and ")
        )))
    }
}
