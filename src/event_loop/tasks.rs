//! `create_task` and `create_future`, for asyncio's own tasks and futures.
//!
//! `BaseEventLoop` has both, and is right in everything: task factories, classes that a program has put in the place of
//! asyncio's, each version's keywords. What stands here is the usual case of them, without a Python frame; all else is
//! handed on.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use pyo3::{ffi, intern};

use super::EventLoop;
use crate::py::{Arguments, Asyncio, Function, add_method, enter_fast, enter_plain};

/// # Safety
/// As `enter_fast`, for an `EventLoop`.
unsafe extern "C" fn create_task(
    slf: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: as the caller promises.
    unsafe { enter_fast(slf, args, count, names, EventLoop::create_task) }
}

/// # Safety
/// As `enter_plain`, for an `EventLoop`.
unsafe extern "C" fn create_future(slf: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: as the caller promises.
    unsafe { enter_plain(slf, EventLoop::create_future) }
}

/// What `create_task` takes beside the coroutine, in the version that runs.
enum Keywords {
    Named,
    NamedAndAny,
    Any,
}

/// In this version a task factory is called with just what `create_task` was called with, behind the loop.
static FACTORY_GETS_ALL: AtomicBool = AtomicBool::new(false);

fn keywords_of_create_task(py: Python<'_>) -> PyResult<Keywords> {
    const CO_VARKEYWORDS: u32 = 8;
    let code = Asyncio::get(py)?.base_event_loop.bind(py).getattr("create_task")?.getattr("__code__")?;
    let takes_any = code.getattr("co_flags")?.extract::<u32>()? & CO_VARKEYWORDS != 0;
    let names_some = code.getattr("co_kwonlyargcount")?.extract::<u32>()? > 0;
    Ok(match (names_some, takes_any) {
        (true, true) => Keywords::NamedAndAny,
        (true, false) => Keywords::Named,
        (false, _) => Keywords::Any,
    })
}

/// Adds the methods of this file to the class.
pub fn add_methods(class: &Bound<'_, PyType>) -> PyResult<()> {
    let keywords = keywords_of_create_task(class.py())?;
    FACTORY_GETS_ALL.store(matches!(keywords, Keywords::Any), Ordering::Relaxed);
    let task_doc = match keywords {
        Keywords::Named => {
            c"create_task($self, coro, *, name=None, context=None)\n--\n\nSchedules a coroutine. Returns a task. \
As `asyncio.loop.create_task`."
        }
        Keywords::NamedAndAny => {
            c"create_task($self, coro, *, name=None, context=None, **kwargs)\n--\n\nSchedules a coroutine. \
Returns a task. As `asyncio.loop.create_task`."
        }
        Keywords::Any => {
            c"create_task($self, coro, **kwargs)\n--\n\nSchedules a coroutine. Returns a task. \
As `asyncio.loop.create_task`."
        }
    };
    let future_doc = c"create_future($self)\n--\n\nReturns a new future of the loop.";
    // SAFETY: the functions are for loops.
    unsafe {
        add_method(class, c"create_task", Function::Fast(create_task), task_doc)?;
        add_method(class, c"create_future", Function::Plain(create_future), future_doc)
    }
}

impl EventLoop {
    fn create_task<'py>(
        slf: &Bound<'py, Self>,
        arguments: Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        if FACTORY_GETS_ALL.load(Ordering::Relaxed)
            && arguments.positional.len() == 1
            && let Some(factory) = this.task_factory.get(py)
        {
            this.check_open(py)?;
            return call_factory(slf, &factory, &arguments);
        }
        let asyncio = Asyncio::get(py)?;
        let names = arguments.names.as_ref().map_or(&[][..], |names| names.as_slice());
        let (name, context) = (intern!(py, "name"), intern!(py, "context"));
        // A program's own class gets its arguments, and debug mode its traceback, from asyncio's own code.
        let usual = !this.is_debug(py)
            && this.task_factory.is_empty(py)
            && arguments.positional.len() == 1
            && names.iter().all(|given| given.is(name) || given.is(context))
            && asyncio
                .tasks
                .bind(py)
                .get_item(intern!(py, "Task"))?
                .is_some_and(|class| class.is(&asyncio.fast_task));
        if !usual {
            return hand_on(slf, intern!(py, "create_task"), arguments);
        }
        this.check_open(py)?;
        if names.is_empty() {
            let coroutine = PyTuple::new(py, arguments.positional)?;
            return asyncio.fast_task.bind(py).call(coroutine, Some(&loop_keyword(slf)?));
        }
        let keywords = std::iter::once(intern!(py, "loop").as_any()).chain(names.iter().map(Bound::as_any));
        let keywords = PyTuple::new(py, keywords.collect::<Vec<_>>())?;
        let mut all = [slf.as_ptr(); 4];
        all[0] = arguments.positional[0].as_ptr();
        for (place, value) in all[2..].iter_mut().zip(arguments.values) {
            *place = value.as_ptr();
        }
        // SAFETY: attached; one argument by position, and behind it one for each of the keywords, of which there are at
        // most three, because no call has a keyword twice. All are alive.
        unsafe {
            let task = asyncio.fast_task.as_ptr();
            let task = ffi::PyObject_Vectorcall(task, all.as_ptr(), 1, keywords.as_ptr());
            Bound::from_owned_ptr_or_err(py, task)
        }
    }

    fn create_future<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let asyncio = Asyncio::get(py)?;
        let class = asyncio.futures.bind(py).get_item(intern!(py, "Future"))?;
        if slf.get().is_debug(py) || !class.is_some_and(|class| class.is(&asyncio.fast_future)) {
            let none = Arguments { positional: &[], names: None, values: &[] };
            return hand_on(slf, intern!(py, "create_future"), none);
        }
        asyncio.fast_future.bind(py).call(PyTuple::empty(py), Some(&loop_keyword(slf)?))
    }
}

/// What asyncio's classes are called with, `{"loop": slf}`, for nobody to change. They have no vectorcall, so they would
/// get a new dict for each call; a loop that runs keeps this one.
#[inline]
fn loop_keyword<'py>(slf: &Bound<'py, EventLoop>) -> PyResult<Bound<'py, PyDict>> {
    let (py, this) = (slf.py(), slf.get());
    if let Some(kept) = this.loop_keyword.get(py) {
        return Ok(kept);
    }
    let keyword = PyDict::new(py);
    keyword.set_item(intern!(py, "loop"), slf)?;
    if this.in_run.get(py) {
        drop(this.loop_keyword.put(keyword.clone()));
    }
    Ok(keyword)
}

/// Calls a task factory with the one argument by position, and those by keyword.
fn call_factory<'py>(
    slf: &Bound<'py, EventLoop>,
    factory: &Bound<'py, PyAny>,
    arguments: &Arguments<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let objects = [slf.as_any()].into_iter().chain(arguments.positional).chain(arguments.values);
    let all: Vec<_> = objects.map(Bound::as_ptr).collect();
    let by_position = 1 + arguments.positional.len();
    let names = arguments.names.as_ref().map_or(std::ptr::null_mut(), |names| names.as_ptr());
    // SAFETY: attached; the names are those of the last arguments, as `create_task` was given both. All are alive.
    unsafe {
        let task = ffi::PyObject_Vectorcall(factory.as_ptr(), all.as_ptr(), by_position, names);
        Bound::from_owned_ptr_or_err(slf.py(), task)
    }
}

/// Calls the method of `BaseEventLoop`.
#[cold]
fn hand_on<'py>(
    slf: &Bound<'py, EventLoop>,
    method: &Bound<'py, PyString>,
    arguments: Arguments<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let function = Asyncio::get(py)?.base_event_loop.bind(py).getattr(method)?;
    let mut all = vec![slf.as_any()];
    all.extend(arguments.positional);
    let keywords = PyDict::new(py);
    for (name, value) in arguments.names.iter().flat_map(|names| names.as_slice()).zip(arguments.values) {
        keywords.set_item(name, value)?;
    }
    function.call(PyTuple::new(py, all)?, Some(&keywords))
}
