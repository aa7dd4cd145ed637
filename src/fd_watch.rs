//! `add_reader`, `add_writer` and their opposites: callbacks on the user's own descriptors; and the waits of `sock_*`.
//!
//! Callbacks are level-triggered, as users rely on. A wait is over with its first event, so a descriptor that is only
//! waited for is registered to tell once. When the wait is over that registration is kept, silent: the next wait
//! arms it anew, which is one system call instead of the two for a registration of its own. Arming asks the
//! kernel, as every new callback does, so a number that is another file's by now is found out.

use std::os::fd::RawFd;

use pyo3::exceptions::{PyAttributeError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyTuple};

use crate::event_loop::{EventLoop, Owner, cancel_stale};
use crate::handle::Handle;
use crate::py::copy_current_context;
use crate::reactor::{Direction, Key, Reactor, Readiness, Trigger};
use crate::sys;
use crate::transport::Transport;
use crate::waiter::Waiter;

/// Who is to hear of a descriptor. With nobody on either side it is a registration that is kept for the next wait.
#[derive(Default)]
pub struct FdWatch {
    reader: Option<Registrant>,
    writer: Option<Registrant>,
    /// The file object that was registered first. Kept, as asyncio's selectors do: it stays open until it is removed,
    /// and when the program closes it, it can still be removed by what it was added by.
    file: Option<Py<PyAny>>,
}

enum Registrant {
    Callback(Py<Handle>),
    Waiter(Py<Waiter>),
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Reader,
    Writer,
}

impl FdWatch {
    pub fn traverse(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for registrant in [&self.reader, &self.writer].into_iter().flatten() {
            match registrant {
                Registrant::Callback(handle) => visit.call(handle)?,
                Registrant::Waiter(waiter) => visit.call(waiter)?,
            }
        }
        visit.call(&self.file)
    }

    /// Tells the callbacks that they will never run.
    pub fn cancel(self, py: Python<'_>) -> PyResult<()> {
        for registrant in [self.reader, self.writer].into_iter().flatten() {
            cancel(py, registrant)?;
        }
        Ok(())
    }

    fn side(&mut self, side: Side) -> &mut Option<Registrant> {
        match side {
            Side::Reader => &mut self.reader,
            Side::Writer => &mut self.writer,
        }
    }

    fn direction(&self) -> Option<Direction> {
        Direction::new(self.reader.is_some(), self.writer.is_some())
    }

    /// Level-triggered as soon as there is a callback.
    fn trigger(&self) -> Trigger {
        match (&self.reader, &self.writer) {
            (Some(Registrant::Callback(_)), _) | (_, Some(Registrant::Callback(_))) => Trigger::Level,
            _ => Trigger::Once,
        }
    }
}

/// Ends what had been registered. A wait that is pushed out ends with its task, if it is cancelled: as in asyncio.
fn cancel(py: Python<'_>, registrant: Registrant) -> PyResult<()> {
    match registrant {
        Registrant::Callback(handle) => handle.call_method0(py, intern!(py, "cancel")).map(drop),
        Registrant::Waiter(_) => Ok(()),
    }
}

/// What an event leaves over, to be dropped outside the borrow of the reactor: that may run Python code.
#[derive(Default)]
pub struct Garbage(Vec<Registrant>, Vec<Owner>);

/// A watched descriptor is ready: hands what is to run to `queue`, the reader first. The handles are queued, not the
/// source, so that to cancel them until they run is enough.
pub fn on_event(
    py: Python<'_>,
    reactor: &mut Reactor<Owner>,
    key: Key,
    readiness: Readiness,
    garbage: &mut Garbage,
    mut queue: impl FnMut(Py<Handle>),
) {
    let Some(Owner::Watch(watch)) = reactor.owner_mut(key) else { return };
    let was = (watch.trigger(), watch.direction());
    for (side, ready) in [(Side::Reader, readiness.readable), (Side::Writer, readiness.writable)] {
        let over = match watch.side(side) {
            // Cancelled, and not removed: it would be reported for ever, and never run.
            Some(Registrant::Callback(handle)) if handle.get().is_cancelled(py) => true,
            Some(Registrant::Callback(handle)) => {
                if ready {
                    queue(handle.clone_ref(py));
                }
                false
            }
            Some(Registrant::Waiter(waiter)) if ready => {
                waiter.get().fire(py).into_iter().for_each(&mut queue);
                true
            }
            Some(Registrant::Waiter(_)) | None => false,
        };
        if over {
            garbage.0.extend(watch.side(side).take());
        }
    }
    // A registration that tells once has fallen silent; the other side may still wait.
    let now = (watch.trigger(), watch.direction());
    if was.0 == Trigger::Once || was != now {
        garbage.1.extend(settle(reactor, key, was.0));
    }
}

/// Makes the registration what the watch needs, now that one has left it. It fails if the file was closed meanwhile;
/// then there is nothing to take back, and the other side stays for its owner to remove.
fn settle(reactor: &mut Reactor<Owner>, key: Key, was: Trigger) -> Option<Owner> {
    let Some(Owner::Watch(watch)) = reactor.owner(key) else { return None };
    match (watch.direction(), was) {
        (Some(direction), _) => {
            let _closed_meanwhile = reactor.rearm(key, watch.trigger(), direction);
            None
        }
        // Kept: at worst it tells once more, to nobody.
        (None, Trigger::Once) => None,
        (None, _) => reactor.deregister(key),
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

/// What `fileno()` says, or the number itself; with the messages of asyncio and of the `selectors` module.
fn raw_fileno(fd: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    let py = fd.py();
    if let Ok(number) = fd.extract::<RawFd>() {
        return Ok(number);
    }
    let number = fd.call_method0(intern!(py, "fileno")).and_then(|number| number.extract());
    number.map_err(|error| {
        let expected = error.is_instance_of::<PyAttributeError>(py)
            || error.is_instance_of::<PyTypeError>(py)
            || error.is_instance_of::<PyValueError>(py);
        match expected {
            true => PyValueError::new_err(format!("Invalid file object: {}", repr(fd))),
            false => error,
        }
    })
}

fn check_fileno(number: RawFd) -> PyResult<RawFd> {
    match number < 0 {
        true => Err(PyValueError::new_err(format!("Invalid file descriptor: {number}"))),
        false => Ok(number),
    }
}

fn repr(object: &Bound<'_, PyAny>) -> String {
    object.repr().map_or_else(|_| "<unprintable object>".to_owned(), |text| text.to_string())
}

fn ensure_no_transport(slf: &Bound<'_, EventLoop>, fd: &Bound<'_, PyAny>) -> PyResult<()> {
    if slf.get().check_open(slf.py()).is_err() {
        // Adding raises that itself; removing answers "there was none".
        return Ok(());
    }
    ensure_free(slf, raw_fileno(fd)?, || repr(fd))
}

/// A transport that is closing does not count, as in asyncio: who has seen `close()` takes the number for his own.
fn ensure_free(slf: &Bound<'_, EventLoop>, number: RawFd, shown: impl FnOnce() -> String) -> PyResult<()> {
    match user_of(slf, number)? {
        Some(transport) if !transport.get().is_closing(slf.py()) => Err(PyRuntimeError::new_err(format!(
            "File descriptor {} is used by transport {}",
            shown(),
            repr(&transport)
        ))),
        _ => Ok(()),
    }
}

fn user_of<'py>(slf: &Bound<'py, EventLoop>, number: RawFd) -> PyResult<Option<Bound<'py, Transport>>> {
    let py = slf.py();
    slf.get().with_reactor(py, |reactor| {
        let owner = reactor.key_of(number).and_then(|key| reactor.owner(key));
        owner.and_then(|owner| owner.transport(py)).map(|transport| transport.into_bound(py))
    })
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
    let number = check_fileno(raw_fileno(fd)?)?;
    let context = match context {
        Some(context) => context,
        None => copy_current_context(py)?,
    };
    let handle = new_handle(slf, callback, args, context)?;
    let file = (!fd.is_instance_of::<PyInt>()).then(|| fd.clone().unbind());
    put(slf, number, side, Registrant::Callback(handle.clone_ref(py)), file)?;
    Ok(handle)
}

fn new_handle(
    slf: &Bound<'_, EventLoop>,
    callback: Bound<'_, PyAny>,
    args: Bound<'_, PyTuple>,
    context: Py<PyAny>,
) -> PyResult<Py<Handle>> {
    let context = context.into_bound(slf.py());
    Ok(Handle::create(slf, &callback, args.as_slice(), Some(&context))?.unbind())
}

/// Registers one side of a descriptor, and ends what had its place.
fn put(
    slf: &Bound<'_, EventLoop>,
    fd: RawFd,
    side: Side,
    registrant: Registrant,
    file: Option<Py<PyAny>>,
) -> PyResult<()> {
    let (py, this) = (slf.py(), slf.get());
    let flusher = flusher(slf, fd, side)?;
    let ended = this.with_reactor(py, |reactor| register(reactor, fd, side, registrant, file, flusher))??;
    this.poll_soon(py);
    end(py, ended)
}

/// Ends what had been registered in the place of something new.
fn end(py: Python<'_>, replaced: Replaced) -> PyResult<()> {
    match replaced {
        Replaced::Registrant(old, garbage) => {
            drop(garbage);
            cancel(py, old)
        }
        Replaced::Owner(stale) => cancel_stale(py, Some(stale)),
        Replaced::Nothing(garbage) => {
            drop(garbage);
            Ok(())
        }
    }
}

/// Who reads from a descriptor whose transport is closing must not keep that from sending what it has still to send.
fn flusher(slf: &Bound<'_, EventLoop>, fd: RawFd, side: Side) -> PyResult<Option<Py<Handle>>> {
    let py = slf.py();
    match user_of(slf, fd)? {
        Some(transport) if side == Side::Reader && transport.get().is_sending(py) => {
            let write = transport.getattr(intern!(py, "_write_ready"))?;
            new_handle(slf, write, PyTuple::empty(py), copy_current_context(py)?).map(Some)
        }
        _ => Ok(None),
    }
}

/// What had the place of a new callback. Given back, because to drop it can run Python code.
enum Replaced {
    Nothing(Option<Py<PyAny>>),
    Registrant(Registrant, Option<Py<PyAny>>),
    /// All that was registered for another file under the same number.
    Owner(Owner),
}

fn register(
    reactor: &mut Reactor<Owner>,
    fd: RawFd,
    side: Side,
    registrant: Registrant,
    file: Option<Py<PyAny>>,
    flusher: Option<Py<Handle>>,
) -> sys::Result<Replaced> {
    let is_callback = matches!(registrant, Registrant::Callback(_));
    let known = reactor.key_of(fd).and_then(|key| match reactor.owner_mut(key) {
        Some(Owner::Watch(watch)) => {
            let other = match side {
                Side::Reader => &watch.writer,
                Side::Writer => &watch.reader,
            };
            let level = is_callback || matches!(other, Some(Registrant::Callback(_)));
            Some((key, other.is_some(), level))
        }
        _ => None,
    });
    let alone = match side {
        Side::Reader => Direction::Read,
        Side::Writer => Direction::Write,
    };
    let trigger = |level| if level { Trigger::Level } else { Trigger::Once };
    if let Some((key, has_other, level)) = known {
        let direction = if has_other { Direction::Both } else { alone };
        // Told to the kernel even if nothing changes, because only it knows whether the number still names the file
        // that was registered. If not, the old callbacks are of no more use, neither of them.
        match reactor.rearm(key, trigger(level), direction) {
            Err(error) if error.errno == libc::ENOENT => {}
            result => {
                result?;
                if let Some(Owner::Watch(watch)) = reactor.owner_mut(key) {
                    let was_idle = watch.direction().is_none();
                    let garbage = if was_idle { std::mem::replace(&mut watch.file, file) } else { file };
                    return Ok(match watch.side(side).replace(registrant) {
                        Some(old) => Replaced::Registrant(old, garbage),
                        None => Replaced::Nothing(garbage),
                    });
                }
                return Ok(Replaced::Nothing(file));
            }
        }
    }
    let mut watch = FdWatch { file, ..FdWatch::default() };
    *watch.side(side) = Some(registrant);
    let direction = match flusher {
        Some(flusher) => {
            watch.writer = Some(Registrant::Callback(flusher));
            Direction::Both
        }
        None => alone,
    };
    let trigger = watch.trigger();
    let (_, stale) = reactor.register(fd, trigger, direction, Owner::Watch(watch))?;
    Ok(stale.map_or(Replaced::Nothing(None), Replaced::Owner))
}

/// Wakes `waiter` when the descriptor can be read, or written to.
pub fn wait_for(
    slf: &Bound<'_, EventLoop>,
    number: RawFd,
    side: Side,
    waiter: &Bound<'_, Waiter>,
) -> PyResult<()> {
    let number = check_fileno(number)?;
    let py = slf.py();
    let registrant = Registrant::Waiter(waiter.clone().unbind());
    let replaced = slf.get().with_reactor(py, |reactor| {
        match reactor.key_of(number).and_then(|key| reactor.owner(key)) {
            Some(Owner::Transport(_) | Owner::Dormant(_)) => Err(registrant),
            _ => Ok(register(reactor, number, side, registrant, None, None)),
        }
    })?;
    match replaced {
        Ok(replaced) => end(py, replaced?),
        Err(registrant) => {
            ensure_free(slf, number, || number.to_string())?;
            put(slf, number, side, registrant, None)
        }
    }
}

/// Ends what `wait_for` began, if it has not ended, and nobody has taken the place.
pub fn stop_waiting(
    slf: &Bound<'_, EventLoop>,
    fd: RawFd,
    side: Side,
    waiter: &Bound<'_, Waiter>,
) -> PyResult<()> {
    let (py, this) = (slf.py(), slf.get());
    if this.check_open(py).is_err() {
        return Ok(());
    }
    let removed = this.with_reactor(py, |reactor| {
        let key = reactor.key_of(fd)?;
        let Some(Owner::Watch(watch)) = reactor.owner_mut(key) else { return None };
        match watch.side(side) {
            Some(Registrant::Waiter(current)) if current.is(waiter) => take(reactor, key, side),
            _ => None,
        }
    })?;
    drop(removed);
    Ok(())
}

fn remove(slf: &Bound<'_, EventLoop>, fd: &Bound<'_, PyAny>, side: Side) -> PyResult<bool> {
    let (py, this) = (slf.py(), slf.get());
    if this.check_open(py).is_err() {
        return Ok(false);
    }
    let number = raw_fileno(fd).and_then(check_fileno);
    let (key, removed) = this.with_reactor(py, |reactor| {
        let key = match &number {
            Ok(number) => reactor.key_of(*number),
            // Closed since it was registered: it is known by itself.
            Err(_) => key_of_file(reactor, fd),
        };
        (key, key.and_then(|key| take(reactor, key, side)))
    })?;
    if key.is_none() {
        number?;
    }
    match removed {
        Some((registrant, file, owner)) => {
            drop((file, owner));
            cancel(py, registrant)?;
            Ok(true)
        }
        None => Ok(false),
    }
}

fn key_of_file(reactor: &Reactor<Owner>, file: &Bound<'_, PyAny>) -> Option<Key> {
    reactor.keys().find(|key| match reactor.owner(*key) {
        Some(Owner::Watch(watch)) => watch.file.as_ref().is_some_and(|known| known.is(file)),
        _ => false,
    })
}

/// Takes one side out, with what becomes unused by that.
fn take(
    reactor: &mut Reactor<Owner>,
    key: Key,
    side: Side,
) -> Option<(Registrant, Option<Py<PyAny>>, Option<Owner>)> {
    let Some(Owner::Watch(watch)) = reactor.owner_mut(key) else { return None };
    let was = watch.trigger();
    let registrant = watch.side(side).take()?;
    let file = match watch.direction() {
        Some(_) => None,
        None => watch.file.take(),
    };
    // What tells once may go on being armed for too much: it is not worth a system call.
    let owner = match was {
        Trigger::Once => None,
        _ => settle(reactor, key, was),
    };
    Some((registrant, file, owner))
}

#[pymethods]
impl Transport {
    /// Sends what is left of a transport that is closing, and whose number somebody else reads from.
    fn _write_ready(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        Transport::on_ready(slf, Readiness::WRITABLE)?;
        if !this.is_sending(py) {
            let removed = this.event_loop().with_reactor(py, |reactor| {
                reactor.key_of(this.fd()).and_then(|key| take(reactor, key, Side::Writer))
            })?;
            drop(removed);
        }
        Ok(())
    }
}
