//! The event loop: its state, and the names of it that Python sees.
//!
//! The class is a base of `mioloop.Loop`, before `asyncio.BaseEventLoop`: what is here shadows the standard library's
//! method of the same name, and all the rest of a loop is the standard library's own code.

mod bell;
mod debug_call;
mod jobs;
mod run;
mod schedule;
mod services;
mod tasks;
mod turn;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use mio::Waker;
use pyo3::exceptions::{PyImportError, PyRuntimeError};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple, PyWeakrefMethods, PyWeakrefReference};

use crate::executor::Finished;
use crate::fd_watch::FdWatch;
use crate::fs::Mailbox;
use crate::handle::{Handle, ReturnSignal, TimerHandle};
use crate::py::{AttachedCell, AttachedValue, Function, Slot, add_method, enter_plain};
use crate::reactor::{Key, Poller, Reactor};
use crate::resolver::{self, NameService};
use crate::sys;
use crate::timers::TimerQueue;
use crate::transport::{Listener, Transport};

use bell::Bell;
use jobs::Jobs;
use turn::Turn;

pub use bell::Ringer;
pub use debug_call::_end_debug_calls;
pub use jobs::News;
pub use services::{READ_SIZE, ReadBuffer, cancel_stale};

/// Something to do in this iteration or the next.
enum Ready {
    Call(Py<Handle>),
    /// A registered source that can be read or written.
    Source(Key),
    /// A transport whose protocol has been told of the connection, and that may read from now on.
    Start(Py<Transport>),
    /// A job of an executor is done.
    Finished(Box<Finished>),
}

impl Ready {
    fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Ready::Call(handle) => visit.call(handle),
            Ready::Source(_) => Ok(()),
            Ready::Start(transport) => visit.call(transport),
            Ready::Finished(finished) => finished.traverse(visit),
        }
    }
}

/// On whose behalf a descriptor is watched.
pub enum Owner {
    Watch(FdWatch),
    Transport(Py<Transport>),
    /// One that neither receives nor has anything to send. It lives as long as the program wants it, as in asyncio,
    /// whose selector does not know it meanwhile; its end takes it out of the reactor.
    Dormant(Py<PyWeakrefReference>),
    Listener(Py<Listener>),
}

impl Owner {
    /// Another reference to the same transport or listener; a watch has one owner only.
    fn shared(&self, py: Python<'_>) -> Option<Owner> {
        match self {
            Owner::Watch(_) => None,
            Owner::Transport(_) | Owner::Dormant(_) => self.transport(py).map(Owner::Transport),
            Owner::Listener(listener) => Some(Owner::Listener(listener.clone_ref(py))),
        }
    }

    pub fn transport(&self, py: Python<'_>) -> Option<Py<Transport>> {
        match self {
            Owner::Transport(transport) => Some(transport.clone_ref(py)),
            Owner::Dormant(reference) => reference.bind(py).upgrade_as().ok().flatten().map(Bound::unbind),
            Owner::Watch(_) | Owner::Listener(_) => None,
        }
    }

    fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Owner::Dormant(reference) => visit.call(reference),
            Owner::Watch(watch) => watch.traverse(visit),
            Owner::Transport(transport) => visit.call(transport),
            Owner::Listener(listener) => visit.call(listener),
        }
    }
}

/// What any thread may touch, without the interpreter lock's help.
struct Shared {
    bell: Arc<Bell>,
    stopping: AtomicBool,
    return_signal: ReturnSignal,
    waker: Mutex<Option<Arc<Waker>>>,
}

/// The Rust half of `mioloop.Loop`.
#[pyclass(subclass, frozen, module = "mioloop._core")]
pub struct EventLoop {
    ready: AttachedCell<VecDeque<Ready>>,
    timers: AttachedCell<TimerQueue<Py<TimerHandle>>>,
    reactor: AttachedCell<Option<Reactor<Owner>>>,
    /// Away while a poll is on.
    poller: AttachedCell<Option<Poller>>,
    read_buffer: AttachedCell<Option<ReadBuffer>>,
    jobs: AttachedCell<Jobs>,
    turn: AttachedCell<Turn>,
    closed: AttachedValue<bool>,
    debug: AttachedValue<bool>,
    /// The thread that runs the loop, as `threading.get_ident()` names it.
    thread_id: AttachedValue<Option<u64>>,
    /// Within `_run_once`: whoever called that keeps the loop alive.
    in_run: AttachedValue<bool>,
    /// `_run_once` is to stay until `stop()`.
    stays: AttachedValue<bool>,
    /// More transports hold writes back than are to wait for one another.
    many_wait: AttachedValue<bool>,
    /// The next iteration polls.
    poll_soon: AttachedValue<bool>,
    /// What makes tasks instead of `asyncio.Task`.
    task_factory: Slot,
    /// `{"loop": self}`, for `tasks.rs`; only within `_run_once`, as the two keep each other alive.
    loop_keyword: Slot<PyDict>,
    shared: Shared,
    name_service: AttachedCell<Option<Py<NameService>>>,
    mailbox: AttachedCell<Option<Py<Mailbox>>>,
}

impl EventLoop {
    pub fn name_service<'py>(&self, py: Python<'py>) -> Option<Bound<'py, NameService>> {
        self.name_service.borrow_mut(py).as_ref().map(|service| service.bind(py).clone())
    }

    pub fn set_name_service(&self, py: Python<'_>, service: Option<Bound<'_, NameService>>) {
        let old = self.name_service.replace(py, service.map(Bound::unbind));
        drop(old);
    }

    pub fn mailbox<'py>(&self, py: Python<'py>) -> Option<Bound<'py, Mailbox>> {
        self.mailbox.borrow_mut(py).as_ref().map(|mailbox| mailbox.bind(py).clone())
    }

    pub fn set_mailbox(&self, py: Python<'_>, mailbox: Option<Bound<'_, Mailbox>>) {
        let old = self.mailbox.replace(py, mailbox.map(Bound::unbind));
        drop(old);
    }

    /// How many things threads that know nothing of Python are to bring.
    fn awaited_mail(&self, py: Python<'_>) -> usize {
        let names = self.name_service.borrow_mut(py);
        let mailbox = self.mailbox.borrow_mut(py);
        names.as_ref().map_or(0, |names| names.get().awaits(py))
            + mailbox.as_ref().map_or(0, |mailbox| mailbox.get().awaits(py))
    }

    /// Gives what such threads have brought to those who wait for it.
    #[inline]
    fn collect_mail(&self, py: Python<'_>) {
        if self.shared.bell.take_mail() {
            self.empty_boxes(py);
        }
    }

    #[cold]
    fn empty_boxes(&self, py: Python<'_>) {
        if let Some(names) = self.name_service(py) {
            names.get().collect(py);
        }
        if let Some(mailbox) = self.mailbox(py) {
            mailbox.get().collect(py);
        }
    }

    pub fn is_debug(&self, py: Python<'_>) -> bool {
        self.debug.get(py)
    }

    /// Whether handles that are queued now are surely alive until they have run or are cancelled. (Debug mode hands them
    /// out earlier.)
    pub fn keeps_queued_alive(&self, py: Python<'_>) -> bool {
        self.in_run.get(py) && !self.is_debug(py)
    }

    /// Tells threads that wait for a callback to return.
    pub fn return_signal(&self) -> &ReturnSignal {
        &self.shared.return_signal
    }

    pub fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        match self.closed.get(py) {
            true => Err(PyRuntimeError::new_err("Event loop is closed")),
            false => Ok(()),
        }
    }

    /// `loop.call_exception_handler(context)`, which users override.
    pub fn call_exception_handler(slf: &Bound<'_, Self>, context: &Bound<'_, PyDict>) -> PyResult<()> {
        slf.call_method1(intern!(slf.py(), "call_exception_handler"), (context,)).map(drop)
    }

    /// Lets go of all that the loop holds. The parts are dropped outside the borrows: that may run Python code.
    fn let_go(&self, py: Python<'_>) {
        if self.in_run.get(py) {
            self.leave_run(py);
        }
        let ready = self.ready.replace(py, VecDeque::new());
        let timers = self.timers.replace(py, TimerQueue::new());
        let owners = self.reactor.borrow_mut(py).as_mut().map(Reactor::take_all);
        let turn = self.turn.replace(py, Turn::default());
        let names = self.name_service.replace(py, None);
        let mailbox = self.mailbox.replace(py, None);
        drop((ready, timers, owners, turn, names, mailbox));
    }
}

/// Raises ImportError in any interpreter but the first that calls it.
///
/// What the core has looked up of the standard library belongs to one interpreter; in another it would be the wrong
/// objects. (pyo3 refuses to initialise the module there, but CPython may hand out the one that exists.)
#[pyfunction]
pub fn _check_interpreter(_py: Python<'_>) -> PyResult<()> {
    static FIRST: OnceLock<i64> = OnceLock::new();
    // SAFETY: attached, as the token shows.
    let id = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    match *FIRST.get_or_init(|| id) == id {
        true => Ok(()),
        false => Err(PyImportError::new_err("mioloop can be used in one interpreter of a process only")),
    }
}

/// What programs ask in between, of which pyo3's own way would be a good part of the cost.
mod questions {
    use super::*;

    type Object = *mut ffi::PyObject;

    /// # Safety
    /// As `enter_plain`, for an `EventLoop`.
    pub unsafe extern "C" fn time(slf: Object, _: Object) -> Object {
        // SAFETY: as the caller promises.
        unsafe { enter_plain(slf, |_: &Bound<'_, EventLoop>| Ok(sys::monotonic())) }
    }

    /// # Safety
    /// As `enter_plain`, for an `EventLoop`.
    pub unsafe extern "C" fn get_debug(slf: Object, _: Object) -> Object {
        // SAFETY: as the caller promises.
        unsafe { enter_plain(slf, |slf: &Bound<'_, EventLoop>| Ok(slf.get().is_debug(slf.py()))) }
    }

    /// # Safety
    /// As `enter_plain`, for an `EventLoop`.
    pub unsafe extern "C" fn is_running(slf: Object, _: Object) -> Object {
        // SAFETY: as the caller promises.
        unsafe {
            enter_plain(slf, |slf: &Bound<'_, EventLoop>| Ok(slf.get().thread_id.get(slf.py()).is_some()))
        }
    }

    /// # Safety
    /// As `enter_plain`, for an `EventLoop`.
    pub unsafe extern "C" fn is_closed(slf: Object, _: Object) -> Object {
        // SAFETY: as the caller promises.
        unsafe { enter_plain(slf, |slf: &Bound<'_, EventLoop>| Ok(slf.get().closed.get(slf.py()))) }
    }
}

/// Makes the class ready for use: adds the methods that are not pyo3's.
pub fn prepare_class(py: Python<'_>) -> PyResult<()> {
    let class = py.get_type::<EventLoop>();
    let questions = [
        (
            c"time",
            questions::time as ffi::PyCFunction,
            c"time($self)\n--\n\nThe time, in seconds, of the clock that `call_at` goes by: that of \
`time.monotonic()`.",
        ),
        (c"get_debug", questions::get_debug, c"get_debug($self)\n--\n\nWhether debug mode is on."),
        (c"is_running", questions::is_running, c"is_running($self)\n--\n\nWhether the loop runs now."),
        (c"is_closed", questions::is_closed, c"is_closed($self)\n--\n\nWhether the loop was closed."),
    ];
    for (name, function, doc) in questions {
        // SAFETY: the functions are for loops.
        unsafe { add_method(&class, name, Function::Plain(function), doc)? };
    }
    schedule::add_methods(&class)?;
    tasks::add_methods(&class)
}

#[pymethods]
impl EventLoop {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        sys::memory::keep_freed();
        let (reactor, poller) = Reactor::new()?;
        let waker = reactor.waker()?;
        Ok(EventLoop {
            ready: AttachedCell::new(VecDeque::new()),
            timers: AttachedCell::new(TimerQueue::new()),
            reactor: AttachedCell::new(Some(reactor)),
            poller: AttachedCell::new(Some(poller)),
            read_buffer: AttachedCell::new(None),
            jobs: AttachedCell::new(Jobs::default()),
            turn: AttachedCell::new(Turn::default()),
            name_service: AttachedCell::new(None),
            mailbox: AttachedCell::new(None),
            closed: AttachedValue::new(false),
            debug: AttachedValue::new(false),
            thread_id: AttachedValue::new(None),
            in_run: AttachedValue::new(false),
            stays: AttachedValue::new(false),
            many_wait: AttachedValue::new(false),
            poll_soon: AttachedValue::new(false),
            task_factory: Slot::empty(),
            loop_keyword: Slot::empty(),
            shared: Shared {
                bell: Arc::default(),
                stopping: AtomicBool::new(false),
                return_signal: ReturnSignal::default(),
                waker: Mutex::new(Some(Arc::new(waker))),
            },
        })
    }

    /// Makes `run_forever` return at the end of the current iteration; if the loop does not run, the next
    /// `run_forever` does one iteration.
    fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
    }

    /// Frees what the core holds: queues, registrations, descriptors. `Loop.close` calls it last.
    fn _release(&self, py: Python<'_>) {
        self.let_go(py);
        let parts = (
            self.reactor.replace(py, None),
            self.poller.replace(py, None),
            self.read_buffer.replace(py, None),
        );
        let waker = self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop((parts, waker));
    }

    /// The process is about to fork, perhaps in the middle of an iteration, whose end parent and child may both come
    /// to: only one of them shall send. (In another thread it is the parent that comes to it.)
    fn _before_fork(slf: &Bound<'_, Self>) -> PyResult<()> {
        match slf.get().is_running_here(slf.py()) {
            true => Self::send_put_off(slf),
            false => Ok(()),
        }
    }

    /// In a child process, just forked: parts from what the parent goes on using.
    fn _after_fork(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        debug_call::after_fork();
        // What is done for it is done for the parent, whose threads may have the locks of these.
        resolver::after_fork(slf);
        this.set_mailbox(py, None);
        if this.check_open(py).is_err() {
            return Ok(());
        }
        let (poller, waker) = this.with_reactor(py, |reactor| -> PyResult<_> {
            let poller = reactor.renew()?;
            Ok((poller, reactor.waker()?))
        })??;
        // The thread that sat in the poll is not there any more, unless it is this one, which is not in it.
        this.shared.bell.wake_up();
        let waker = this.shared.waker.lock().unwrap_or_else(PoisonError::into_inner).replace(Arc::new(waker));
        drop((this.poller.replace(py, Some(poller)), waker));
        this.forget_jobs(py);
        if this.thread_id.get(py).is_some() && !this.is_running_here(py) {
            // Whoever runs it is the parent's.
            this.forget_turn(py);
            this.leave_run(py);
        }
        Ok(())
    }

    // What `BaseEventLoop` keeps in attributes, its own code and other people's reads and assigns. Here they are
    // windows on the core's state.

    #[getter]
    fn _closed(&self, py: Python<'_>) -> bool {
        self.closed.get(py)
    }

    #[setter(_closed)]
    fn set_closed(&self, py: Python<'_>, closed: bool) {
        self.closed.set(py, closed);
    }

    #[getter]
    fn _stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::SeqCst)
    }

    #[setter(_stopping)]
    fn set_stopping(&self, stopping: bool) {
        self.shared.stopping.store(stopping, Ordering::SeqCst);
    }

    #[getter]
    fn _debug(&self, py: Python<'_>) -> bool {
        self.is_debug(py)
    }

    #[setter(_debug)]
    fn set_debug_flag(&self, debug: &Bound<'_, PyAny>) -> PyResult<()> {
        self.debug.set(debug.py(), debug.is_truthy()?);
        Ok(())
    }

    #[getter]
    fn _thread_id(&self, py: Python<'_>) -> Option<u64> {
        self.thread_id.get(py)
    }

    #[setter(_thread_id)]
    fn set_thread_id(&self, py: Python<'_>, thread_id: Option<u64>) {
        self.thread_id.set(py, thread_id);
    }

    #[getter]
    fn _task_factory<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.task_factory.get(py)
    }

    #[setter(_task_factory)]
    fn set_task_factory_slot(&self, factory: Bound<'_, PyAny>) {
        let old = match factory.is_none() {
            true => self.task_factory.take(factory.py()),
            false => self.task_factory.put(factory),
        };
        drop(old);
    }

    /// A picture of the handles that are ready; changing it changes nothing.
    #[getter]
    fn _ready<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let handles: Vec<Py<Handle>> = (self.ready.borrow_mut(py).iter())
            .filter_map(|ready| match ready {
                Ready::Call(handle) => Some(handle.clone_ref(py)),
                Ready::Source(_) | Ready::Start(_) | Ready::Finished(_) => None,
            })
            .collect();
        PyList::new(py, handles)
    }

    /// `BaseEventLoop.__init__` assigns an empty queue. The queue is the core's.
    #[setter(_ready)]
    fn set_ready(&self, _queue: &Bound<'_, PyAny>) {}

    /// A picture of the timers that are waiting, in no order; changing it changes nothing.
    #[getter]
    fn _scheduled<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let timers: Vec<Py<TimerHandle>> =
            self.timers.borrow_mut(py).values().map(|timer| timer.clone_ref(py)).collect();
        PyList::new(py, timers)
    }

    /// As `_ready`.
    #[setter(_scheduled)]
    fn set_scheduled(&self, _timers: &Bound<'_, PyAny>) {}

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(ready) = self.ready.borrow_for_traverse() {
            for item in ready.iter() {
                item.traverse(visit)?;
            }
        }
        self.task_factory.traverse(visit)?;
        self.loop_keyword.traverse(visit)?;
        // While the loop runs, its timers are surely alive, and may be many: what the collector is not told of, it keeps.
        if (!self.in_run.get_for_traverse() || self.debug.get_for_traverse())
            && let Ok(timers) = self.timers.borrow_for_traverse()
        {
            for timer in timers.values() {
                visit.call(timer)?;
            }
        }
        if let Ok(reactor) = self.reactor.borrow_for_traverse() {
            for owner in reactor.iter().flat_map(|reactor| reactor.owners()) {
                owner.traverse(visit)?;
            }
        }
        if let Ok(turn) = self.turn.borrow_for_traverse() {
            turn.traverse(&visit)?;
        }
        if let Ok(names) = self.name_service.borrow_for_traverse() {
            visit.call(names.as_ref())?;
        }
        if let Ok(mailbox) = self.mailbox.borrow_for_traverse() {
            visit.call(mailbox.as_ref())?;
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        self.let_go(py);
        drop(self.task_factory.take(py));
    }
}
