//! An open file, shared between the loop's thread and the blocking ones.
//!
//! There is one [`Buffered`], and it is handed over: while a job has it, everybody else waits for a turn. So no lock is
//! held while the disk works, and what a cancelled job does still happens in one piece, before whatever comes next.
//!
//! A method gives its result if it needs no job. If it does, or if it is not its turn, it gives a future, whose result
//! is None when a turn has come and the method is to be called again. The future is made by `context`, a Python function
//! that knows the running loop; it returns the loop's mailbox and a new future.

use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use super::buffered::{Buffered, Need};
use super::mailbox::{Mailbox, Recipient};
use super::outcome::Outcome;
use crate::runtime::{self, Writing};
use crate::sys;
use crate::sys::found::make_ordinary;

enum Place {
    Here(Box<Buffered>),
    /// With a job, begun in this generation of the process.
    Away(u64),
    Closed,
}

struct State {
    place: Place,
    /// Somebody has called `close` while a job had the file: it is closed as soon as it is back.
    closing: bool,
    /// The descriptor has O_NONBLOCK, which means nothing for a regular file, and goes before anybody gets to see it.
    is_nonblocking: bool,
    close_error: Option<sys::Error>,
    waiting: Vec<Recipient>,
}

impl State {
    fn is_closed(&self) -> bool {
        self.closing || matches!(self.place, Place::Closed)
    }

    fn take_quick_to_close(&mut self) -> Option<Box<Buffered>> {
        match &self.place {
            Place::Here(buffered) if buffered.is_quick_to_close() => {}
            _ => return None,
        }
        match std::mem::replace(&mut self.place, Place::Closed) {
            Place::Here(buffered) => Some(buffered),
            Place::Away(_) | Place::Closed => None,
        }
    }
}

struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file is on loan to a job. It comes back when this is dropped, also by a panic.
struct Loan {
    shared: Arc<Shared>,
    buffered: Option<Box<Buffered>>,
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some(buffered) = self.buffered.take() else { return };
        let mut state = self.shared.lock();
        if state.closing {
            // Not under the lock, which the loop's thread must never have to wait for.
            drop(state);
            let error = buffered.close().err();
            state = self.shared.lock();
            state.close_error = error;
            state.place = Place::Closed;
        } else {
            state.place = Place::Here(buffered);
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for recipient in waiting {
            recipient.send(Ok(Outcome::Turn));
        }
    }
}

/// A file that is open; the core of those of `mioloop.fs`.
#[pyclass(frozen, weakref, module = "mioloop._core")]
pub struct File {
    fd: RawFd,
    shared: Arc<Shared>,
}

type Answer<'py> = PyResult<Bound<'py, PyAny>>;

fn closed() -> PyErr {
    PyValueError::new_err("I/O operation on closed file.")
}

/// What is here and free to use, if it is.
fn here(state: &mut State) -> PyResult<Option<&mut Box<Buffered>>> {
    match &mut state.place {
        _ if state.closing => Err(closed()),
        Place::Closed => Err(closed()),
        Place::Away(generation) if *generation != runtime::generation() => {
            Err(PyRuntimeError::new_err("the file was in use when the process was forked"))
        }
        Place::Away(_) => Ok(None),
        Place::Here(buffered) => Ok(Some(buffered)),
    }
}

impl File {
    pub fn new(buffered: Box<Buffered>) -> Self {
        let fd = buffered.file().as_raw_fd();
        let place = Place::Here(buffered);
        let (closing, is_nonblocking) = (false, false);
        let state = State { place, closing, is_nonblocking, close_error: None, waiting: Vec::new() };
        File { fd, shared: Arc::new(Shared { state: Mutex::new(state) }) }
    }

    /// As `new`, of a descriptor that has O_NONBLOCK.
    pub fn new_nonblocking(buffered: Box<Buffered>) -> Self {
        let file = File::new(buffered);
        file.shared.lock().is_nonblocking = true;
        file
    }

    /// Tries to answer at once; otherwise has `job` do it. `prepare` is what the loop's thread does before; `writes`:
    /// the process should not end meanwhile.
    fn answer<'py, A>(
        &self,
        context: &Bound<'py, PyAny>,
        writes: bool,
        attempt: A,
        prepare: impl FnOnce(Python<'py>, &mut Buffered) -> PyResult<()>,
        job: impl FnOnce(&mut Buffered) -> sys::Result<Outcome> + Send + 'static,
    ) -> Answer<'py>
    where
        A: Fn(Python<'py>, &mut Buffered) -> Option<Answer<'py>>,
    {
        let py = context.py();
        if let Some(buffered) = here(&mut self.shared.lock())? {
            if let Some(answer) = attempt(py, buffered) {
                return answer;
            }
        }
        // Outside the lock, as it runs Python code.
        let (mailbox, future): (Bound<'py, Mailbox>, Bound<'py, PyAny>) = context.call0()?.extract()?;
        let mut state = self.shared.lock();
        let Some(buffered) = here(&mut state)? else {
            let recipient = mailbox.get().expect(py, future.clone().unbind(), [None, None]);
            state.waiting.push(recipient);
            return Ok(future);
        };
        prepare(py, buffered)?;
        let writes = writes || buffered.is_pending();
        let Some(mut loan) = self.lend(&mut state) else { return Err(closed()) };
        drop(state);
        let writing = writes.then(Writing::begin);
        // If there is no thread to be had, the closure is dropped, and the loan with it.
        mailbox.get().submit(py, future.clone().unbind(), [None, None], None, move || {
            let result = match &mut loan.buffered {
                Some(buffered) => job(buffered),
                None => Ok(Outcome::Turn),
            };
            drop(loan);
            drop(writing);
            result
        })?;
        Ok(future)
    }

    /// Takes the file out, if it is here.
    fn lend(&self, state: &mut State) -> Option<Loan> {
        let away = Place::Away(runtime::generation());
        match std::mem::replace(&mut state.place, away) {
            Place::Here(buffered) => Some(Loan { shared: self.shared.clone(), buffered: Some(buffered) }),
            other => {
                state.place = other;
                None
            }
        }
    }

    fn read<'py>(&self, context: &Bound<'py, PyAny>, need: Need, fill: u64) -> Answer<'py> {
        let py = context.py();
        let lent = {
            let mut state = self.shared.lock();
            let may_try = match here(&mut state)? {
                Some(buffered) => match buffered.take(py, need, fill) {
                    Some(bytes) => return bytes.map(Bound::into_any),
                    None => buffered.may_try(),
                },
                None => false,
            };
            may_try.then(|| self.lend(&mut state)).flatten()
        };
        // As a job does it, detached and without the lock: whoever is asked before a file is read (fanotify) may be another
        // thread of this very process, which may use this very file.
        let filled = lent.and_then(|mut loan| py.detach(|| loan.buffered.as_mut()?.try_fill(need)));
        let fill = filled.unwrap_or(fill);
        self.answer(
            context,
            false,
            |py, buffered| Some(buffered.take(py, need, fill)?.map(Bound::into_any)),
            |py, buffered| buffered.prepare(py, need),
            move |buffered| buffered.fill(need).map(Outcome::Number),
        )
    }
}

#[pymethods]
impl File {
    /// A file for a descriptor that is open already; `owned`: it is closed with the file. It is only taken over if
    /// that succeeds.
    #[staticmethod]
    fn adopt(fd: RawFd, owned: bool, buffering: usize) -> PyResult<Self> {
        if fd < 0 {
            return Err(sys::Error { errno: libc::EBADF }.into());
        }
        // SAFETY: the caller has the descriptor open, and gives it up if it is to be owned; else `Buffered` never
        // closes it.
        let file = unsafe { std::fs::File::from_raw_fd(fd) };
        let mut buffered = Buffered::new(file, owned, buffering);
        if let Ok(metadata) = buffered.file().metadata() {
            buffered.set_size_hint(metadata.len());
        }
        Ok(File::new(Box::new(buffered)))
    }

    /// The descriptor. ValueError if the file is closed.
    fn fileno(&self) -> PyResult<RawFd> {
        // Locked to the end: whoever closes the descriptor, so that its number may be another's, asks for the lock first.
        let mut state = self.shared.lock();
        if state.is_closed() {
            return Err(closed());
        }
        if std::mem::take(&mut state.is_nonblocking) {
            make_ordinary(self.fd)?;
            if let Place::Here(buffered) = &mut state.place {
                buffered.share();
            }
        }
        Ok(self.fd)
    }

    #[getter]
    fn closed(&self) -> bool {
        self.shared.lock().is_closed()
    }

    /// Whether a job has the file.
    #[getter]
    fn busy(&self) -> bool {
        matches!(self.shared.lock().place, Place::Away(_))
    }

    /// True as soon as no job has the file.
    fn turn<'py>(&self, context: &Bound<'py, PyAny>) -> Answer<'py> {
        let done = |_: &mut Buffered| Ok(Outcome::Done);
        self.answer(context, false, |py, _| Some(true.into_bound_py_any(py)), |_, _| Ok(()), done)
    }

    /// Up to `size` bytes, fewer only at the end; all of them if `size` is negative. If a future comes instead, its
    /// result goes into the next call's `fill`. So with all that read.
    #[pyo3(name = "read")]
    fn read_exactly<'py>(&self, size: isize, fill: u64, context: &Bound<'py, PyAny>) -> Answer<'py> {
        self.read(context, usize::try_from(size).map_or(Need::All, Need::Exactly), fill)
    }

    /// Up to `size` bytes, those that a single system call gives.
    fn read1<'py>(&self, size: usize, fill: u64, context: &Bound<'py, PyAny>) -> Answer<'py> {
        self.read(context, Need::Some(size), fill)
    }

    /// A line, of at most `size` bytes unless that is negative.
    fn readline<'py>(&self, size: isize, fill: u64, context: &Bound<'py, PyAny>) -> Answer<'py> {
        self.read(context, Need::Line(usize::try_from(size).unwrap_or(usize::MAX)), fill)
    }

    /// What was read ahead, without taking it.
    fn peek<'py>(&self, fill: u64, context: &Bound<'py, PyAny>) -> Answer<'py> {
        self.read(context, Need::Look, fill)
    }

    /// Writes bytes; the result is how many.
    fn write<'py>(&self, data: &Bound<'py, PyAny>, context: &Bound<'py, PyAny>) -> Answer<'py> {
        let data: PyBackedBytes = data.extract()?;
        let for_later = data.clone_ref(context.py());
        self.answer(
            context,
            true,
            |py, buffered| match buffered.try_write(&for_later) {
                Ok(true) => Some(for_later.len().into_bound_py_any(py)),
                Ok(false) => None,
                Err(error) => Some(Err(error.into())),
            },
            |_, _| Ok(()),
            move |buffered| {
                let written = buffered.write(&data).map(|count| count as u64);
                Ok(Outcome::Written(written, data))
            },
        )
    }

    /// Gives the kernel what is pending; the result is true.
    fn flush<'py>(&self, context: &Bound<'py, PyAny>) -> Answer<'py> {
        self.answer(
            context,
            true,
            |py, buffered| {
                if buffered.is_pending() {
                    return None;
                }
                buffered.give_back();
                Some(true.into_bound_py_any(py))
            },
            |_, _| Ok(()),
            |buffered| buffered.flush().map(|()| Outcome::Done),
        )
    }

    /// The position.
    fn tell<'py>(&self, context: &Bound<'py, PyAny>) -> Answer<'py> {
        self.answer(
            context,
            false,
            |py, buffered| Some(number(py, buffered.tell())),
            |_, _| Ok(()),
            |buffered| buffered.tell().map(Outcome::Number),
        )
    }

    /// Moves; the result is the new position.
    fn seek<'py>(&self, offset: i64, whence: i32, context: &Bound<'py, PyAny>) -> Answer<'py> {
        self.answer(
            context,
            false,
            |py, buffered| buffered.try_seek(offset, whence).map(|position| number(py, position)),
            |_, _| Ok(()),
            move |buffered| buffered.seek(offset, whence).map(Outcome::Number),
        )
    }

    /// Cuts the file off, or fills it up with zeros; at the position, if no size is given. The result is the size.
    fn truncate<'py>(&self, size: Option<u64>, context: &Bound<'py, PyAny>) -> Answer<'py> {
        self.answer(
            context,
            true,
            |_, _| None,
            |_, _| Ok(()),
            move |buffered| buffered.truncate(size).map(Outcome::Number),
        )
    }

    /// Closes the file, at the latest when the job that has it returns it; it can't be called off. The result is true.
    fn close<'py>(&self, context: &Bound<'py, PyAny>) -> Answer<'py> {
        let py = context.py();
        if let Some(buffered) = self.shared.lock().take_quick_to_close() {
            buffered.close()?;
            return true.into_bound_py_any(py);
        }
        let (mailbox, future): (Bound<'py, Mailbox>, Bound<'py, PyAny>) = context.call0()?.extract()?;
        let mut state = self.shared.lock();
        if let Some(error) = state.close_error.take() {
            return Err(error.into());
        }
        match &state.place {
            Place::Closed => return true.into_bound_py_any(py),
            Place::Away(generation) if *generation != runtime::generation() => {
                return true.into_bound_py_any(py);
            }
            _ => {}
        }
        state.closing = true;
        let recipient = mailbox.get().expect(py, future.clone().unbind(), [None, None]);
        state.waiting.push(recipient);
        if let Some(loan) = self.lend(&mut state) {
            drop(state);
            let writing = Writing::begin();
            // To give it back is to close it: here and now, if there is no thread to be had.
            let job = move || {
                drop(loan);
                drop(writing);
            };
            let _ = mailbox.get().spawn(py, job);
        }
        Ok(future)
    }
}

fn number(py: Python<'_>, number: sys::Result<u64>) -> Answer<'_> {
    match number {
        Ok(number) => number.into_bound_py_any(py),
        Err(error) => Err(error.into()),
    }
}
