//! Where a loop gets its results from the blocking threads.
//!
//! A thread posts a letter and, if the box was empty, tells the loop, which then delivers whatever is there. Letters name
//! a number, not a future: what is Python's stays with the loop.
//!
//! A loop of ours is told by its bell. Any other watches a descriptor.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyOSError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use slab::Slab;

use super::outcome::Outcome;
use crate::event_loop::{EventLoop, Ringer};
use crate::py::AttachedCell;
use crate::runtime::{self, Writing};
use crate::sys;
use crate::sys::files::Signal;

struct Letter {
    number: usize,
    result: sys::Result<Outcome>,
}

/// The half of a mailbox that threads hold.
pub struct Letterbox {
    letters: Mutex<Vec<Letter>>,
    call: Call,
}

/// How a loop gets to know that there are letters.
enum Call {
    Bell(Ringer),
    Signal(Signal),
}

impl Letterbox {
    fn post(&self, letter: Letter) {
        let first = {
            let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
            letters.push(letter);
            letters.len() == 1
        };
        match &self.call {
            _ if !first => {}
            Call::Bell(ringer) => ringer.ring(),
            Call::Signal(signal) => signal.set(),
        }
    }
}

/// Who waits for a letter: a number in somebody's mailbox, to be used once. If it is dropped, by a panic or because
/// there is no thread for the job, the letter says that the job was not done.
pub struct Recipient {
    letterbox: Option<Arc<Letterbox>>,
    number: usize,
}

impl Recipient {
    pub fn send(mut self, result: sys::Result<Outcome>) {
        self.post(result);
    }

    fn post(&mut self, result: sys::Result<Outcome>) {
        if let Some(letterbox) = self.letterbox.take() {
            letterbox.post(Letter { number: self.number, result });
        }
    }
}

impl Drop for Recipient {
    fn drop(&mut self) {
        self.post(Err(sys::Error { errno: libc::ECANCELED }));
    }
}

struct Waiting {
    future: Py<PyAny>,
    /// What the error is about: no, one or two names of files.
    names: [Option<Py<PyAny>>; 2],
}

/// The results on their way to one event loop.
#[pyclass(frozen, weakref, module = "mioloop._core")]
pub struct Mailbox {
    letterbox: Arc<Letterbox>,
    waiting: AttachedCell<Slab<Waiting>>,
}

impl Mailbox {
    /// Has the future told of a letter that will come.
    pub fn expect(&self, py: Python<'_>, future: Py<PyAny>, names: [Option<Py<PyAny>>; 2]) -> Recipient {
        let number = self.waiting.borrow_mut(py).insert(Waiting { future, names });
        Recipient { letterbox: Some(self.letterbox.clone()), number }
    }

    /// Does a job on a blocking thread and sends its result to the future.
    pub fn submit(
        &self,
        py: Python<'_>,
        future: Py<PyAny>,
        names: [Option<Py<PyAny>>; 2],
        writing: Option<Writing>,
        job: impl FnOnce() -> sys::Result<Outcome> + Send + 'static,
    ) -> PyResult<()> {
        let recipient = self.expect(py, future, names);
        let job = move || {
            let result = job();
            drop(writing);
            recipient.send(result);
        };
        Ok(self.spawn(py, job)?)
    }

    /// As `submit`, for a job that nobody waits for here.
    pub fn spawn(&self, py: Python<'_>, job: impl FnOnce() + Send + 'static) -> sys::Result<()> {
        // Another loop is asleep by the time of the result, and long in coming back with more.
        let more_soon = matches!(self.letterbox.call, Call::Bell(_));
        runtime::spawn_blocking(py, more_soon, job)
    }

    /// How many letters are to come.
    pub fn awaits(&self, py: Python<'_>) -> usize {
        self.waiting.borrow_mut(py).len()
    }

    /// Gives the results that have come to the futures that wait for them.
    pub fn collect(&self, py: Python<'_>) {
        let letters =
            std::mem::take(&mut *self.letterbox.letters.lock().unwrap_or_else(PoisonError::into_inner));
        for letter in letters {
            let Some(waiting) = self.take(py, letter.number) else { continue };
            if let Err(error) = waiting.deliver(py, letter.result) {
                error.write_unraisable(py, Some(waiting.future.bind(py)));
            }
        }
    }

    fn new(call: Call) -> Self {
        let letterbox = Letterbox { letters: Mutex::new(Vec::new()), call };
        Mailbox { letterbox: Arc::new(letterbox), waiting: AttachedCell::new(Slab::new()) }
    }

    fn take(&self, py: Python<'_>, number: usize) -> Option<Waiting> {
        self.waiting.borrow_mut(py).try_remove(number)
    }
}

#[pymethods]
impl Mailbox {
    /// For a loop that is not ours, which watches its descriptor.
    #[new]
    fn with_signal() -> PyResult<Self> {
        Ok(Mailbox::new(Call::Signal(Signal::new()?)))
    }

    /// That of a loop of ours, which keeps it.
    #[staticmethod]
    fn of<'py>(event_loop: &Bound<'py, EventLoop>) -> PyResult<Bound<'py, Mailbox>> {
        let (py, this) = (event_loop.py(), event_loop.get());
        this.check_open(py)?;
        if let Some(mailbox) = this.mailbox(py) {
            return Ok(mailbox);
        }
        let mailbox = Bound::new(py, Mailbox::new(Call::Bell(this.ringer(py))))?;
        this.set_mailbox(py, Some(mailbox.clone()));
        Ok(mailbox)
    }

    /// The descriptor that is readable when there is something to deliver; -1 if it is a loop of ours.
    fn fileno(&self) -> RawFd {
        match &self.letterbox.call {
            Call::Bell(_) => -1,
            Call::Signal(signal) => signal.fd(),
        }
    }

    /// What is to be done when the descriptor is readable.
    fn deliver(&self, py: Python<'_>) {
        // Before the letters are taken: one that comes now raises it again.
        if let Call::Signal(signal) = &self.letterbox.call {
            signal.clear();
        }
        self.collect(py);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(waiting) = self.waiting.borrow_for_traverse() {
            for (_, waiting) in waiting.iter() {
                visit.call(&waiting.future)?;
                visit.call(&waiting.names[0])?;
                visit.call(&waiting.names[1])?;
            }
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        drop(self.waiting.replace(py, Slab::new()));
    }
}

impl Waiting {
    fn deliver(&self, py: Python<'_>, result: sys::Result<Outcome>) -> PyResult<()> {
        let future = self.future.bind(py);
        if future.call_method0(intern!(py, "done"))?.is_truthy()? {
            // Cancelled: what was opened is closed here, as the result is dropped.
            return Ok(());
        }
        let error = match result.and_then(Outcome::give_back) {
            Ok(outcome) => match outcome.into_python(py) {
                Ok(value) => return future.call_method1(intern!(py, "set_result"), (value,)).map(drop),
                Err(error) => error,
            },
            Err(error) => {
                let names = [0, 1].map(|at| self.names[at].as_ref().map(|name| name.bind(py)));
                os_error(py, error, names)?
            }
        };
        future.call_method1(intern!(py, "set_exception"), (error,))?;
        // A task that is cancelled before it hears of the error is no reason to log it.
        future.call_method0(intern!(py, "exception")).map(drop)
    }
}

/// The OSError that the standard library raises: its subclass goes by errno, its text is the C library's.
pub fn os_error(py: Python<'_>, error: sys::Error, names: [Option<&Bound<'_, PyAny>>; 2]) -> PyResult<PyErr> {
    let plain = PyErr::from(error);
    let (errno, text) = plain.value(py).getattr("args")?.extract::<(i32, String)>()?;
    Ok(match names.map(|name| name.map(|name| name.clone().unbind())) {
        [None, _] => plain,
        [Some(name), None] => PyOSError::new_err((errno, text, name)),
        [Some(name), Some(second)] => PyOSError::new_err((errno, text, name, py.None(), second)),
    })
}
