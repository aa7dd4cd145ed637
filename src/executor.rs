//! The default executor: what `run_in_executor(None, ...)` and `asyncio.to_thread` run on.
//!
//! ```text
//!   run_in_executor ──> queue ──> worker: the call, with the GIL ──> EventLoop::post ──> future.set_result
//! ```
//!
//! The workers are threads of Python's `threading`, each of which runs a [`Worker`]. What they share is only touched
//! with the GIL held, which every job needs anyway. So there is no lock that a fork could leave locked in the child or
//! that could be waited for in the wrong order, and "the queue is empty, so I sleep" is one step.
//!
//! A small job costs less than handing it over. What is dear is, in this order: putting a thread to sleep and waking it
//! up, waiting for the GIL, a system call. Hence three rules:
//! - A worker tells the loop of its results when it has let go of the GIL, or else has another job at hand: the loop
//!   would wake up only to wait. The other way round, a worker that watches for a job begins when the loop lets go.
//! - Whoever has nothing to do may watch for news for as long as sleeping and waking would cost, while that pays: see
//!   [`crate::watch`].
//! - Of several jobs only the first wakes a worker; each worker that takes one wakes the next if there is more to do.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyBaseException, PyRuntimeError};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::event_loop::{EventLoop, News};
use crate::py::{Asyncio, AttachedCell};
use crate::watch::{Parker, Patience};

/// A call to make. `future` is the event loop's, or a `concurrent.futures.Future` that the call itself resolves.
struct Job {
    event_loop: Option<Py<EventLoop>>,
    future: Py<PyAny>,
    callable: Py<PyAny>,
    args: Py<PyTuple>,
}

/// A call that was made: what the loop's thread puts into the future.
pub struct Finished {
    future: Py<PyAny>,
    outcome: Result<Py<PyAny>, Py<PyBaseException>>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// The workers that have nothing to do. The last to come is the first to be called, so that the others may retire.
    idle: Vec<Arc<Parker>>,
    /// The workers that were called or started and have not looked at the queue yet.
    coming: usize,
    threads: usize,
    /// Why no more jobs are taken.
    closed: Option<&'static str>,
    /// Goes up in a forked child, which has none of the threads.
    generation: u64,
}

/// What a new job asks for.
enum Need {
    Nothing,
    Call(Arc<Parker>),
    Grow,
}

impl State {
    /// Who is to be called for what is in the queue. (One at a time: whoever comes calls the next.)
    fn call(&mut self) -> Option<Arc<Parker>> {
        if self.queue.is_empty() || self.coming > 0 {
            return None;
        }
        let parker = self.idle.pop()?;
        self.coming += 1;
        Some(parker)
    }

    fn need(&mut self, limit: usize) -> Need {
        if self.queue.len() > self.coming + self.idle.len() && self.threads < limit {
            self.threads += 1;
            self.coming += 1;
            return Need::Grow;
        }
        self.call().map_or(Need::Nothing, Need::Call)
    }
}

/// The Rust half of `mioloop.executor.DefaultExecutor`.
#[pyclass(subclass, frozen, module = "mioloop._core")]
pub struct ThreadPool {
    state: Arc<AttachedCell<State>>,
}

#[pymethods]
impl ThreadPool {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        ThreadPool { state: Arc::new(AttachedCell::new(State::default())) }
    }

    /// Has `callable(*args)` called in a thread. It resolves `future` itself.
    fn _submit(
        slf: &Bound<'_, Self>,
        future: Py<PyAny>,
        callable: Py<PyAny>,
        args: Py<PyTuple>,
    ) -> PyResult<()> {
        Self::enqueue(slf, Job { event_loop: None, future, callable, args }).map(drop)
    }

    /// Takes no more jobs. The threads end when those that there are have been run.
    ///
    /// `exiting`: whether it is because the interpreter ends.
    fn _close(&self, py: Python<'_>, exiting: bool) {
        let reason = match exiting {
            true => "cannot schedule new futures after interpreter shutdown",
            false => "cannot schedule new futures after shutdown",
        };
        self.close(py, reason);
    }

    /// Takes the jobs back that no thread has begun: their loops, if they have one, and futures.
    fn _drain(&self, py: Python<'_>) -> Vec<(Option<Py<EventLoop>>, Py<PyAny>)> {
        let jobs = std::mem::take(&mut self.state.borrow_mut(py).queue);
        jobs.into_iter()
            .map(|job| {
                if let Some(event_loop) = &job.event_loop {
                    event_loop.get().job_ended(py);
                }
                (job.event_loop, job.future)
            })
            .collect()
    }

    /// In a child process, just forked: there are no threads, and what was queued is the parent's to do.
    fn _after_fork(&self, py: Python<'_>) {
        let mut state = self.state.borrow_mut(py);
        let fresh = State { closed: state.closed, generation: state.generation + 1, ..State::default() };
        let inherited = std::mem::replace(&mut *state, fresh);
        drop(state);
        drop(inherited);
    }
}

impl ThreadPool {
    /// Queues a job. Returns the worker that was called for it early, if any.
    fn enqueue(slf: &Bound<'_, Self>, job: Job) -> PyResult<Option<Arc<Parker>>> {
        let (py, state) = (slf.py(), &slf.get().state);
        let limit = slf.getattr(intern!(py, "_max_workers"))?.extract()?;
        let future = job.future.clone_ref(py);
        let need = {
            let mut state = state.borrow_mut(py);
            if let Some(reason) = state.closed {
                return Err(PyRuntimeError::new_err(reason));
            }
            state.queue.push_back(job);
            state.need(limit)
        };
        match need {
            Need::Nothing => Ok(None),
            Need::Call(parker) => {
                parker.call_early();
                Ok(Some(parker))
            }
            Need::Grow => Self::grow(slf, &future).map(|()| None),
        }
    }

    /// Starts another thread. If that fails, the others have to do; without any the job is taken back.
    fn grow(slf: &Bound<'_, Self>, future: &Py<PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let generation = this.state.borrow_mut(py).generation;
        let error = match Worker::new(slf, generation) {
            Ok(worker) => {
                match slf.call_method1(intern!(py, "_start_thread"), (worker.clone_ref(py),)) {
                    Ok(_) => return Ok(()),
                    // A KeyboardInterrupt may have come when the thread had started.
                    Err(error) if worker.get().called_off.replace(py, true) => return Err(error),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let no_threads_left = error.is_instance_of::<PyRuntimeError>(py);
        let job = {
            let mut state = this.state.borrow_mut(py);
            if state.generation != generation {
                return Err(error);
            }
            state.threads -= 1;
            state.coming -= 1;
            match state.queue.iter().position(|job| job.future.is(future)) {
                Some(index) if state.threads == 0 || !no_threads_left => state.queue.remove(index),
                _ => None,
            }
        };
        match job.is_none() && no_threads_left {
            true => Ok(()),
            false => Err(error),
        }
    }

    fn close(&self, py: Python<'_>, reason: &'static str) {
        let idle = {
            let mut state = self.state.borrow_mut(py);
            state.closed = Some(reason);
            state.coming += state.idle.len();
            std::mem::take(&mut state.idle)
        };
        for parker in idle {
            parker.call();
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // Python objects are deallocated attached, but for the very end of the interpreter.
        Python::try_attach(|py| self.close(py, "cannot schedule new futures after shutdown"));
    }
}

/// What a thread of the pool runs: `run` is the target of its `threading.Thread`.
///
/// It does not hold the pool, which would never be collected then. Nor does the collector look into the queue: the jobs
/// are as good as on the stacks of the threads that will run them.
#[pyclass(frozen, module = "mioloop._core")]
pub struct Worker {
    state: Arc<AttachedCell<State>>,
    generation: u64,
    /// How long it stays without work, unless it is the only one.
    idle_time: Duration,
    /// A Python function that does nothing: to call one is to hand the GIL over, if somebody has waited for long.
    pause: Py<PyAny>,
    /// By whoever comes first: the thread itself, or whoever failed to start it.
    called_off: AttachedCell<bool>,
}

enum Step {
    Run(Job, Option<Arc<Parker>>),
    Wait(Option<Duration>),
    End,
}

#[pymethods]
impl Worker {
    /// Runs jobs until there is nothing more to do.
    fn run(&self, py: Python<'_>) {
        if self.called_off.replace(py, true) {
            return;
        }
        let parker = Arc::new(Parker::new());
        let mut patience = Patience::default();
        // Whether it counts as coming; and what it has for a loop.
        let (mut called, mut news) = (true, None::<News>);
        loop {
            match self.next_step(py, &parker, called) {
                Step::Run(job, next) => {
                    if let Some(next) = next {
                        next.call();
                    }
                    // The job may take its time, so the results before it can't wait for the GIL to be free.
                    if let Some(news) = news.take() {
                        news.tell();
                    }
                    if !called {
                        self.pause(py);
                    }
                    called = false;
                    news = run(py, job);
                }
                Step::Wait(timeout) => {
                    called = py.detach(|| {
                        if let Some(news) = news.take() {
                            news.tell();
                        }
                        parker.wait(&mut patience, timeout)
                    });
                    if !called && self.retire(py, &parker) {
                        return;
                    }
                    called = true;
                }
                Step::End => {
                    if let Some(news) = news.take() {
                        news.tell();
                    }
                    return;
                }
            }
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.pause)
    }
}

impl Worker {
    fn new(pool: &Bound<'_, ThreadPool>, generation: u64) -> PyResult<Py<Worker>> {
        let py = pool.py();
        let state = pool.get().state.clone();
        let seconds: f64 = pool.getattr(intern!(py, "_idle_seconds"))?.extract()?;
        let pause = pool.getattr(intern!(py, "_pause"))?.unbind();
        let called_off = AttachedCell::new(false);
        let idle_time = Duration::from_secs_f64(seconds);
        Py::new(py, Worker { state, generation, idle_time, pause, called_off })
    }

    fn next_step(&self, py: Python<'_>, parker: &Arc<Parker>, called: bool) -> Step {
        let mut state = self.state.borrow_mut(py);
        if state.generation != self.generation {
            // The job has forked, and this is the child: it has no such thread, only its continuation.
            return Step::End;
        }
        if called {
            state.coming -= 1;
        }
        if let Some(job) = state.queue.pop_front() {
            let next = state.call();
            return Step::Run(job, next);
        }
        if state.closed.is_some() {
            state.threads -= 1;
            return Step::End;
        }
        // A timeout costs, so only the one at the bottom has it, who is called least. The last of all stays.
        let timeout = (state.idle.is_empty() && state.threads > 1).then_some(self.idle_time);
        parker.prepare();
        state.idle.push(parker.clone());
        Step::Wait(timeout)
    }

    /// Nobody has called for long. Returns whether to end, which is not so if somebody calls at this very moment.
    fn retire(&self, py: Python<'_>, parker: &Arc<Parker>) -> bool {
        let mut state = self.state.borrow_mut(py);
        let Some(index) = state.idle.iter().position(|idle| Arc::ptr_eq(idle, parker)) else { return false };
        state.idle.remove(index);
        state.threads -= 1;
        // The others have no timeout; the first of them that settles down again gets it.
        let others = std::mem::take(&mut state.idle);
        state.coming += others.len();
        drop(state);
        for other in others {
            other.call();
        }
        true
    }

    fn pause(&self, py: Python<'_>) {
        if let Err(error) = self.pause.call0(py) {
            // An exception that somebody has sent to this thread (PyThreadState_SetAsyncExc).
            error.write_unraisable(py, None);
        }
    }
}

/// Makes the call and gives the loop what comes of it; the caller tells the loop when it is time.
fn run(py: Python<'_>, job: Job) -> Option<News> {
    let Job { event_loop, future, callable, args } = job;
    let Some(event_loop) = event_loop else {
        if let Err(error) = call(py, &callable, &args) {
            PyErr::from_value(error.into_bound(py).into_any()).write_unraisable(py, Some(callable.bind(py)));
        }
        return None;
    };
    let this = event_loop.get();
    let cancelled = future.call_method0(py, intern!(py, "cancelled")).and_then(|answer| answer.is_truthy(py));
    if matches!(cancelled, Ok(true)) {
        this.job_ended(py);
        return None;
    }
    let outcome = call(py, &callable, &args);
    drop((callable, args));
    this.job_ended(py);
    this.post(py, Finished { future, outcome })
}

/// A call whose exception comes as the object it is. (pyo3's own would let a Rust panic, of another extension say, go
/// on here instead of handing it to the future.)
fn call(py: Python<'_>, callable: &Py<PyAny>, args: &Py<PyTuple>) -> Result<Py<PyAny>, Py<PyBaseException>> {
    // SAFETY: attached; both are live objects and `args` is a tuple. The result is a new reference, or null with an
    // exception set.
    let result = unsafe { ffi::PyObject_Call(callable.as_ptr(), args.as_ptr(), std::ptr::null_mut()) };
    // SAFETY: as above.
    match unsafe { Bound::from_owned_ptr_or_opt(py, result) } {
        Some(result) => Ok(result.unbind()),
        None => Err(raised(py)),
    }
}

/// The exception that is set, which is not any more then.
fn raised(py: Python<'_>) -> Py<PyBaseException> {
    let (mut kind, mut value, mut traceback) =
        (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    // Deprecated from 3.12 on, where there is something simpler that 3.11 has not.
    #[allow(deprecated)]
    // SAFETY: attached, and an exception is set; the three references are ours then. Normalised, the value is an
    // instance of an exception, to which its traceback (or null) may be given.
    unsafe {
        ffi::PyErr_Fetch(&raw mut kind, &raw mut value, &raw mut traceback);
        ffi::PyErr_NormalizeException(&raw mut kind, &raw mut value, &raw mut traceback);
        if !traceback.is_null() {
            ffi::PyException_SetTraceback(value, traceback);
        }
        drop(Bound::from_owned_ptr_or_opt(py, kind));
        drop(Bound::from_owned_ptr_or_opt(py, traceback));
        Bound::from_owned_ptr(py, value).cast_into_unchecked().unbind()
    }
}

impl Finished {
    /// Resolves the future, in the loop's thread. Nobody is interested if it was cancelled.
    pub fn deliver(self, py: Python<'_>) -> PyResult<()> {
        let future = self.future.bind(py);
        if future.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
            return Ok(());
        }
        let error = match self.outcome {
            Ok(result) => {
                return future.call_method1(intern!(py, "set_result"), (result,)).map(drop);
            }
            Err(error) => Asyncio::get(py)?.convert_future_exception.call1(py, (error,))?,
        };
        let set_exception = intern!(py, "set_exception");
        match future.call_method1(set_exception, (error,)) {
            // Before 3.12 a future refuses StopIteration. Better to tell whoever waits than to leave it waiting.
            Err(error) if !future.call_method0(intern!(py, "done"))?.is_truthy()? => {
                future.call_method1(set_exception, (error,)).map(drop)
            }
            result => result.map(drop),
        }
    }

    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.future)?;
        match &self.outcome {
            Ok(result) => visit.call(result),
            Err(error) => visit.call(error),
        }
    }
}

#[pymethods]
impl EventLoop {
    /// Has `func(*args)` called in a thread, or by whatever the executor has. Returns a future of this loop.
    ///
    /// `executor`: a `concurrent.futures.Executor`, or None for the loop's own threads.
    /// Raises RuntimeError if the loop is closed, or the executor has been shut down; in debug mode TypeError for
    /// what can't be called. As `asyncio.loop.run_in_executor`.
    #[pyo3(signature = (executor, func, *args))]
    fn run_in_executor<'py>(
        slf: &Bound<'py, Self>,
        executor: Option<Bound<'py, PyAny>>,
        func: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        this.check_open(py)?;
        if this.is_debug(py) {
            slf.call_method1(intern!(py, "_check_callback"), (&func, intern!(py, "run_in_executor")))?;
        }
        let executor = match executor {
            Some(executor) => executor,
            None => default_executor(slf)?,
        };
        let Ok(pool) = executor.cast::<ThreadPool>() else {
            let future = executor.call_method1(intern!(py, "submit"), prepend(&func, &args)?)?;
            let options = PyDict::new(py);
            options.set_item(intern!(py, "loop"), slf)?;
            return Asyncio::get(py)?.wrap_future.bind(py).call((future,), Some(&options));
        };
        let future = slf.call_method0(intern!(py, "create_future"))?;
        let job = Job {
            event_loop: Some(slf.clone().unbind()),
            future: future.clone().unbind(),
            callable: func.unbind(),
            args: args.unbind(),
        };
        this.job_begun(py);
        match ThreadPool::enqueue(pool, job) {
            Ok(Some(parker)) => this.worker_called(py, parker),
            Ok(None) => {}
            Err(error) => {
                this.job_ended(py);
                return Err(error);
            }
        }
        Ok(future)
    }
}

fn default_executor<'py>(event_loop: &Bound<'py, EventLoop>) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    if event_loop.getattr(intern!(py, "_executor_shutdown_called"))?.is_truthy()? {
        // Which raises.
        event_loop.call_method0(intern!(py, "_check_default_executor"))?;
    }
    let executor = event_loop.getattr(intern!(py, "_default_executor"))?;
    match executor.is_none() {
        true => event_loop.call_method0(intern!(py, "_make_default_executor")),
        false => Ok(executor),
    }
}

fn prepend<'py>(first: &Bound<'py, PyAny>, rest: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
    PyTuple::new(first.py(), std::iter::once(first.clone()).chain(rest.iter()).collect::<Vec<_>>())
}
