//! `add_reader`, `add_writer` and their opposites: level-triggered callbacks on the user's own descriptors.

use std::os::fd::RawFd;

use pyo3::exceptions::{PyAttributeError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::event_loop::{EventLoop, Owner, cancel_stale};
use crate::handle::Handle;
use crate::py::Asyncio;
use crate::reactor::{Direction, Key, Reactor, Readiness, Trigger};
use crate::sys;

/// The callbacks of one descriptor. At least one is there.
pub struct FdWatch {
    reader: Option<Py<Handle>>,
    writer: Option<Py<Handle>>,
}

/// Which of the two.
#[derive(Clone, Copy)]
enum Side {
    Reader,
    Writer,
}

impl Side {
    fn of_waiter(writes: bool) -> Side {
        if writes { Side::Writer } else { Side::Reader }
    }
}

impl FdWatch {
    /// What an event calls, the reader first.
    pub fn ready_handles(&self, py: Python<'_>, readiness: Readiness) -> impl Iterator<Item = Py<Handle>> {
        let pick = |ready: bool, handle: &Option<Py<Handle>>| {
            handle.as_ref().filter(|_| ready).map(|handle| handle.clone_ref(py))
        };
        let reader = pick(readiness.readable, &self.reader);
        let writer = pick(readiness.writable, &self.writer);
        reader.into_iter().chain(writer)
    }

    /// A handle that was cancelled, and not removed: it would be reported for ever, and never run.
    pub fn has_cancelled(&self, py: Python<'_>) -> bool {
        [&self.reader, &self.writer].into_iter().flatten().any(|handle| handle.get().is_cancelled(py))
    }

    pub fn into_handles(self) -> impl Iterator<Item = Py<Handle>> {
        self.reader.into_iter().chain(self.writer)
    }

    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.reader)?;
        visit.call(&self.writer)
    }

    fn side(&mut self, side: Side) -> &mut Option<Py<Handle>> {
        match side {
            Side::Reader => &mut self.reader,
            Side::Writer => &mut self.writer,
        }
    }

    fn direction(&self) -> Option<Direction> {
        Direction::new(self.reader.is_some(), self.writer.is_some())
    }
}

#[pymethods]
impl EventLoop {
    /// Calls `callback(*args)` whenever `fd`, a descriptor or an object with `fileno()`, can be read, for as long as
    /// it can. A callback registered before is replaced.
    ///
    /// Raises ValueError for what is no descriptor, RuntimeError for one that a transport uses, and the kernel's
    /// OSError for one that can't be watched (PermissionError for a regular file). As `asyncio.loop.add_reader`.
    #[pyo3(signature = (fd, callback, *args))]
    fn add_reader(
        slf: &Bound<'_, Self>,
        fd: &Bound<'_, PyAny>,
        callback: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
    ) -> PyResult<()> {
        ensure_no_transport(slf, fd)?;
        add(slf, fd, Side::Reader, callback, args, None).map(drop)
    }

    /// As `add_reader`, for writing. As `asyncio.loop.add_writer`.
    #[pyo3(signature = (fd, callback, *args))]
    fn add_writer(
        slf: &Bound<'_, Self>,
        fd: &Bound<'_, PyAny>,
        callback: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
    ) -> PyResult<()> {
        ensure_no_transport(slf, fd)?;
        add(slf, fd, Side::Writer, callback, args, None).map(drop)
    }

    /// Stops what `add_reader` began. Returns whether there was a callback. As `asyncio.loop.remove_reader`.
    fn remove_reader(slf: &Bound<'_, Self>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        ensure_no_transport(slf, fd)?;
        remove(slf, fd, Side::Reader)
    }

    /// Stops what `add_writer` began. Returns whether there was a callback. As `asyncio.loop.remove_writer`.
    fn remove_writer(slf: &Bound<'_, Self>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        ensure_no_transport(slf, fd)?;
        remove(slf, fd, Side::Writer)
    }

    // The standard library's transports call these, for descriptors of their own.

    #[pyo3(signature = (fd, callback, *args, context=None))]
    fn _add_reader(
        slf: &Bound<'_, Self>,
        fd: &Bound<'_, PyAny>,
        callback: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<Py<Handle>> {
        add(slf, fd, Side::Reader, callback, args, context)
    }

    #[pyo3(signature = (fd, callback, *args, context=None))]
    fn _add_writer(
        slf: &Bound<'_, Self>,
        fd: &Bound<'_, PyAny>,
        callback: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<Py<Handle>> {
        add(slf, fd, Side::Writer, callback, args, context)
    }

    fn _remove_reader(slf: &Bound<'_, Self>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        remove(slf, fd, Side::Reader)
    }

    fn _remove_writer(slf: &Bound<'_, Self>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        remove(slf, fd, Side::Writer)
    }

    /// Raises RuntimeError if a transport of this loop uses the descriptor.
    fn _ensure_fd_no_transport(slf: &Bound<'_, Self>, fd: &Bound<'_, PyAny>) -> PyResult<()> {
        ensure_no_transport(slf, fd)
    }
}

/// The number behind a descriptor or a file object, with the messages of the `selectors` module.
pub fn fileno(fd: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    let py = fd.py();
    let number = match fd.extract::<RawFd>() {
        Ok(number) => number,
        Err(_) => {
            let number = fd.call_method0(intern!(py, "fileno")).and_then(|number| number.extract());
            number.map_err(|error| {
                let expected = error.is_instance_of::<PyAttributeError>(py)
                    || error.is_instance_of::<PyTypeError>(py)
                    || error.is_instance_of::<PyValueError>(py);
                match expected {
                    true => PyValueError::new_err(format!("Invalid file object: {}", repr(fd))),
                    false => error,
                }
            })?
        }
    };
    if number < 0 {
        return Err(PyValueError::new_err(format!("Invalid file descriptor: {number}")));
    }
    Ok(number)
}

fn repr(object: &Bound<'_, PyAny>) -> String {
    object.repr().map_or_else(|_| "<unprintable object>".to_owned(), |text| text.to_string())
}

fn ensure_no_transport(slf: &Bound<'_, EventLoop>, fd: &Bound<'_, PyAny>) -> PyResult<()> {
    let (py, this) = (slf.py(), slf.get());
    if this.check_open(py).is_err() {
        // Adding raises that itself; removing answers "there was none".
        return Ok(());
    }
    let number = fileno(fd)?;
    let transport =
        this.with_reactor(py, |reactor| match reactor.key_of(number).and_then(|key| reactor.owner(key)) {
            Some(Owner::Transport(transport)) => Some(transport.clone_ref(py)),
            _ => None,
        })?;
    match transport {
        Some(transport) => Err(PyRuntimeError::new_err(format!(
            "File descriptor {} is used by transport {}",
            repr(fd),
            repr(transport.bind(py))
        ))),
        None => Ok(()),
    }
}

fn add(
    slf: &Bound<'_, EventLoop>,
    fd: &Bound<'_, PyAny>,
    side: Side,
    callback: Bound<'_, PyAny>,
    args: Bound<'_, PyTuple>,
    context: Option<Py<PyAny>>,
) -> PyResult<Py<Handle>> {
    let (py, this) = (slf.py(), slf.get());
    this.check_open(py)?;
    let fd = fileno(fd)?;
    let context = context.map(|context| context.into_bound(py));
    let handle = Handle::create(slf, &callback, args.as_slice(), context.as_ref())?.unbind();
    match this.with_reactor(py, |reactor| put(reactor, fd, side, handle.clone_ref(py)))?? {
        Replaced::Handle(old) => drop(old.call_method0(py, intern!(py, "cancel"))?),
        Replaced::Owner(stale) => cancel_stale(py, Some(stale))?,
        Replaced::Nothing => {}
    }
    Ok(handle)
}

/// What had the place of a new callback. Given back, because to drop it can run Python code.
enum Replaced {
    Nothing,
    Handle(Py<Handle>),
    /// All that was registered for another file under the same number.
    Owner(Owner),
}

/// Registers one side of a descriptor.
fn put(reactor: &mut Reactor<Owner>, fd: RawFd, side: Side, handle: Py<Handle>) -> sys::Result<Replaced> {
    let watched = reactor.key_of(fd).and_then(|key| match reactor.owner(key) {
        Some(Owner::Watch(watch)) => Some((key, watch.direction())),
        _ => None,
    });
    if let Some((key, Some(direction))) = watched {
        let wanted = match (side, direction) {
            (Side::Reader, Direction::Read) => Direction::Read,
            (Side::Writer, Direction::Write) => Direction::Write,
            _ => Direction::Both,
        };
        // Told to the kernel even if nothing changes, because only it knows whether the number still names the file
        // that was registered. If not, the old callbacks are of no more use, neither of them.
        match reactor.modify(key, wanted) {
            Err(error) if error.errno == libc::ENOENT => {}
            result => {
                result?;
                if let Some(Owner::Watch(watch)) = reactor.owner_mut(key) {
                    let old = watch.side(side).replace(handle);
                    return Ok(old.map_or(Replaced::Nothing, Replaced::Handle));
                }
            }
        }
    }
    let mut watch = FdWatch { reader: None, writer: None };
    *watch.side(side) = Some(handle);
    let direction = match side {
        Side::Reader => Direction::Read,
        Side::Writer => Direction::Write,
    };
    let (_, stale) = reactor.register(fd, Trigger::Level, direction, Owner::Watch(watch))?;
    Ok(stale.map_or(Replaced::Nothing, Replaced::Owner))
}

/// Wakes `future` when the descriptor can be read, or written to. Returns the descriptor's number, and the handle to
/// give to [`remove_waiter`].
pub fn add_waiter(
    slf: &Bound<'_, EventLoop>,
    socket: &Bound<'_, PyAny>,
    writes: bool,
    future: &Bound<'_, PyAny>,
) -> PyResult<(RawFd, Py<Handle>)> {
    let py = slf.py();
    let number = fileno(socket)?;
    let fd = number.into_pyobject(py)?.into_any();
    ensure_no_transport(slf, &fd)?;
    let wake = Asyncio::get(py)?.set_result_unless_cancelled.bind(py).clone();
    let args = (future, py.None()).into_pyobject(py)?;
    let handle = add(slf, &fd, Side::of_waiter(writes), wake, args, None)?;
    Ok((number, handle))
}

/// Ends what `add_waiter` began, unless somebody has registered another callback in its place.
pub fn remove_waiter(
    slf: &Bound<'_, EventLoop>,
    fd: RawFd,
    handle: &Bound<'_, Handle>,
    writes: bool,
) -> PyResult<()> {
    let (py, this) = (slf.py(), slf.get());
    if this.check_open(py).is_err() || handle.get().is_cancelled(py) {
        return Ok(());
    }
    let removed = this.with_reactor(py, |reactor| take(reactor, fd, Side::of_waiter(writes)))?;
    drop(removed);
    handle.call_method0(intern!(py, "cancel")).map(drop)
}

fn remove(slf: &Bound<'_, EventLoop>, fd: &Bound<'_, PyAny>, side: Side) -> PyResult<bool> {
    let (py, this) = (slf.py(), slf.get());
    if this.check_open(py).is_err() {
        return Ok(false);
    }
    let fd = fileno(fd)?;
    let removed = this.with_reactor(py, |reactor| take(reactor, fd, side))?;
    match removed {
        Some(handle) => {
            handle.call_method0(py, intern!(py, "cancel"))?;
            Ok(true)
        }
        None => Ok(false),
    }
}

fn take(reactor: &mut Reactor<Owner>, fd: RawFd, side: Side) -> Option<Py<Handle>> {
    let key = reactor.key_of(fd)?;
    let Some(Owner::Watch(watch)) = reactor.owner_mut(key) else {
        return None;
    };
    let handle = watch.side(side).take()?;
    match watch.direction() {
        // It fails if the file was closed meanwhile; then there is nothing to take back, and the other side stays for
        // its owner to remove.
        Some(direction) => drop(reactor.modify(key, direction)),
        None => drop(reactor.deregister(key)),
    }
    Some(handle)
}

/// Takes the cancelled handles of a source out, as if they had been removed.
pub fn take_cancelled(py: Python<'_>, reactor: &mut Reactor<Owner>, key: Key) -> Vec<Py<Handle>> {
    let mut taken = Vec::new();
    let Some(fd) = reactor.fd_of(key) else { return taken };
    for side in [Side::Reader, Side::Writer] {
        let is_cancelled = match reactor.owner_mut(key) {
            Some(Owner::Watch(watch)) => {
                watch.side(side).as_ref().is_some_and(|handle| handle.get().is_cancelled(py))
            }
            _ => false,
        };
        if is_cancelled {
            taken.extend(take(reactor, fd, side));
        }
    }
    taken
}
