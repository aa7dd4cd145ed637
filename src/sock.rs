//! `sock_recv` and its kin: a socket's own methods, awaited.
//!
//! Each call gives a [`SocketOperation`], which is to `await` what a coroutine is. It tries the system call first; only
//! if that would block does it wait for the descriptor, and when that is ready it tries again *itself*. The data is
//! therefore never on its way in a future when the task is cancelled: either the caller has it, or it is still in the
//! kernel. (asyncio receives in a callback and passes the bytes through a future; a cancellation that comes between
//! loses them.)

use std::os::fd::RawFd;

use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyStopIteration, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PySlice, PyString, PyTuple, PyType};

use crate::event_loop::{EventLoop, READ_SIZE};
use crate::fd_watch;
use crate::handle::Handle;
use crate::py::{Asyncio, AttachedCell, would_block};
use crate::sys;
use crate::transport::Data;

/// What to do on the socket.
enum Work {
    /// Receive up to so many bytes from a plain socket.
    Receive { size: usize },
    /// Call the method once; its result is the operation's.
    Once { method: Py<PyString>, args: Py<PyTuple> },
    /// Send all of the data: bytes, or a view of what can change.
    SendAll { data: Py<PyAny>, sent: usize },
}

/// The next attempt of it.
enum Next<'py> {
    Receive(usize),
    Call(Bound<'py, PyString>, Bound<'py, PyTuple>),
    Send(Bound<'py, PyAny>, usize),
}

enum Phase {
    Created,
    /// Registered for the descriptor, until the handle has woken us.
    Waiting {
        fd: RawFd,
        waiter: Py<Handle>,
    },
    Finished,
}

struct State {
    work: Work,
    phase: Phase,
}

/// An awaitable operation on a socket that does not block. It has a coroutine's methods, so that it can be a task.
#[pyclass(frozen, weakref, module = "mioloop._core")]
pub struct SocketOperation {
    event_loop: Py<EventLoop>,
    socket: Py<PyAny>,
    /// Waits until the socket can be written to, not read from.
    writes: bool,
    name: &'static str,
    state: AttachedCell<State>,
}

#[pymethods]
impl EventLoop {
    /// Receives up to `n` bytes; an empty result is the end of the stream. As `asyncio.loop.sock_recv`.
    fn sock_recv(slf: &Bound<'_, Self>, sock: Py<PyAny>, n: &Bound<'_, PyAny>) -> PyResult<SocketOperation> {
        match n.extract::<usize>() {
            Ok(size) if size <= READ_SIZE && is_plain_socket(sock.bind(slf.py()))? => {
                Ok(operation(slf, sock, "sock_recv", Work::Receive { size }, false))
            }
            _ => once(slf, sock, "sock_recv", "recv", (n,), false),
        }
    }

    /// Receives into a writable buffer; returns how many bytes. As `asyncio.loop.sock_recv_into`.
    fn sock_recv_into(slf: &Bound<'_, Self>, sock: Py<PyAny>, buf: Py<PyAny>) -> PyResult<SocketOperation> {
        once(slf, sock, "sock_recv_into", "recv_into", (buf,), false)
    }

    /// Receives a datagram of up to `bufsize` bytes; returns it with its sender's address.
    /// As `asyncio.loop.sock_recvfrom`.
    fn sock_recvfrom(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        bufsize: Py<PyAny>,
    ) -> PyResult<SocketOperation> {
        once(slf, sock, "sock_recvfrom", "recvfrom", (bufsize,), false)
    }

    /// Receives a datagram into a buffer, of up to `nbytes` bytes (0: its size); returns how many, and the sender's
    /// address. As `asyncio.loop.sock_recvfrom_into`.
    #[pyo3(signature = (sock, buf, nbytes=0))]
    fn sock_recvfrom_into(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        buf: &Bound<'_, PyAny>,
        nbytes: i64,
    ) -> PyResult<SocketOperation> {
        let nbytes = if nbytes == 0 { buf.len()? as i64 } else { nbytes };
        once(slf, sock, "sock_recvfrom_into", "recvfrom_into", (buf, nbytes), false)
    }

    /// Sends a datagram to `address`; returns how many bytes. As `asyncio.loop.sock_sendto`.
    fn sock_sendto(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        data: Py<PyAny>,
        address: Py<PyAny>,
    ) -> PyResult<SocketOperation> {
        once(slf, sock, "sock_sendto", "sendto", (data, address), true)
    }

    /// Sends all of `data`. If it fails, nobody knows how much was sent. As `asyncio.loop.sock_sendall`.
    fn sock_sendall(slf: &Bound<'_, Self>, sock: Py<PyAny>, data: Py<PyAny>) -> SocketOperation {
        operation(slf, sock, "sock_sendall", Work::SendAll { data, sent: 0 }, true)
    }
}

fn operation(
    event_loop: &Bound<'_, EventLoop>,
    socket: Py<PyAny>,
    name: &'static str,
    work: Work,
    writes: bool,
) -> SocketOperation {
    let state = AttachedCell::new(State { work, phase: Phase::Created });
    SocketOperation { event_loop: event_loop.clone().unbind(), socket, writes, name, state }
}

/// Of the very class whose methods are known to be what the system call does.
fn is_plain_socket(socket: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(socket.get_type().is(&Asyncio::get(socket.py())?.socket))
}

fn once<'py>(
    event_loop: &Bound<'py, EventLoop>,
    socket: Py<PyAny>,
    name: &'static str,
    method: &str,
    args: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
    writes: bool,
) -> PyResult<SocketOperation> {
    let py = event_loop.py();
    let work =
        Work::Once { method: PyString::intern(py, method).unbind(), args: args.into_pyobject(py)?.unbind() };
    Ok(operation(event_loop, socket, name, work, writes))
}

impl SocketOperation {
    /// Goes on until it must wait, and returns the future to wait for; the result comes as StopIteration.
    fn step<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let outcome = match self.begin(py) {
            Ok(()) => self.attempt(py),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(Some(result)) => {
                self.finish(py)?;
                Err(PyStopIteration::new_err((result.unbind(),)))
            }
            Ok(None) => self.wait(py),
            Err(error) => {
                self.finish(py)?;
                Err(error)
            }
        }
    }

    /// The checks of asyncio, made when the operation is first awaited, as in a coroutine.
    fn begin(&self, py: Python<'_>) -> PyResult<()> {
        match self.state.borrow_mut(py).phase {
            Phase::Created => {}
            Phase::Waiting { .. } => return Ok(()),
            Phase::Finished => {
                return Err(PyRuntimeError::new_err(format!("cannot reuse already awaited {}()", self.name)));
            }
        }
        let socket = self.socket.bind(py);
        Asyncio::get(py)?.check_ssl_socket.call1(py, (socket,))?;
        if self.event_loop.get().is_debug(py) {
            let timeout: Option<f64> = socket.call_method0(intern!(py, "gettimeout"))?.extract()?;
            if timeout != Some(0.0) {
                return Err(PyValueError::new_err("the socket must be non-blocking"));
            }
        }
        Ok(())
    }

    /// Tries the call. None: it would block.
    fn attempt<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let result = match &self.state.borrow_mut(py).work {
            Work::Receive { size } => Next::Receive(*size),
            Work::Once { method, args } => Next::Call(method.bind(py).clone(), args.bind(py).clone()),
            Work::SendAll { data, sent } => Next::Send(data.bind(py).clone(), *sent),
        };
        let result = match result {
            Next::Receive(size) => self.receive(py, size),
            Next::Call(method, args) => self.socket.bind(py).call_method1(method, args),
            Next::Send(data, sent) => self.send_all(py, data, sent),
        };
        match result {
            Ok(result) => Ok(Some(result)),
            Err(error) if would_block(py, &error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.socket.bind(py).call_method0(intern!(py, "fileno"))?.extract()
    }

    /// `socket.recv`, past the socket object: no BlockingIOError is made only to be thrown away.
    fn receive<'py>(&self, py: Python<'py>, size: usize) -> PyResult<Bound<'py, PyAny>> {
        let fd = self.fileno(py)?;
        let received: sys::Result<_> = self.event_loop.get().with_read_buffer(py, |buffer| {
            let received = sys::recv(fd, &mut buffer[..size])?;
            // SAFETY: the kernel has written `received` bytes to the front of the buffer.
            let data = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), received) };
            Ok(PyBytes::new(py, data))
        });
        Ok(received?.into_any())
    }

    /// Sends the rest of the data, as much as the socket takes.
    fn send_all<'py>(
        &self,
        py: Python<'py>,
        mut data: Bound<'py, PyAny>,
        mut sent: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let plain = is_plain_socket(self.socket.bind(py))?;
        loop {
            let (now, total) = match (plain, Data::new(&data)) {
                (true, Ok(bytes)) => {
                    let bytes = bytes.as_slice();
                    // It may have shrunk, if its owner did not keep to the rules of buffers.
                    let rest = bytes.get(sent..).unwrap_or_default();
                    (sys::send(self.fileno(py)?, rest)?, bytes.len())
                }
                // Of any other class, or with an argument that only the socket's own method can refuse.
                _ => {
                    let rest = match sent {
                        0 => data.clone(),
                        _ => data.get_item(PySlice::new(py, sent as isize, isize::MAX, 1))?,
                    };
                    let now = self.socket.bind(py).call_method1(intern!(py, "send"), (rest,))?.extract()?;
                    (now, PyMemoryView::from(&data)?.getattr(intern!(py, "nbytes"))?.extract()?)
                }
            };
            if sent + now >= total {
                return Ok(py.None().into_bound(py));
            }
            if sent == 0 {
                // From now on a view, which keeps whoever owns the bytes from resizing them.
                data = PyMemoryView::from(&data)?.call_method1(intern!(py, "cast"), ("B",))?;
            }
            sent += now;
            let work = Work::SendAll { data: data.clone().unbind(), sent };
            let old = std::mem::replace(&mut self.state.borrow_mut(py).work, work);
            drop(old);
        }
    }

    fn wait<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let event_loop = self.event_loop.bind(py);
        let future = event_loop.call_method0(intern!(py, "create_future"))?;
        let (fd, waiter) = fd_watch::add_waiter(event_loop, self.socket.bind(py), self.writes, &future)?;
        future.setattr(intern!(py, "_asyncio_future_blocking"), true)?;
        let phase = Phase::Waiting { fd, waiter };
        let old = std::mem::replace(&mut self.state.borrow_mut(py).phase, phase);
        drop(old);
        Ok(future)
    }

    /// Leaves no registration behind, unless it is somebody else's by now.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let phase = std::mem::replace(&mut self.state.borrow_mut(py).phase, Phase::Finished);
        match phase {
            Phase::Waiting { fd, waiter } => {
                fd_watch::remove_waiter(self.event_loop.bind(py), fd, waiter.bind(py), self.writes)
            }
            Phase::Created | Phase::Finished => Ok(()),
        }
    }
}

#[pymethods]
impl SocketOperation {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.step(py)
    }

    /// As of a coroutine; only None makes sense.
    #[pyo3(signature = (value, /))]
    fn send<'py>(&self, py: Python<'py>, value: &Bound<'_, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        match value.is_none() {
            true => self.step(py),
            false => Err(PyTypeError::new_err("a socket operation can only be sent None")),
        }
    }

    /// As of a coroutine: cancels the operation.
    #[pyo3(signature = (exc, value=None, _traceback=None))]
    fn throw(
        &self,
        py: Python<'_>,
        exc: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        _traceback: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.finish(py)?;
        Err(match (exc.cast::<PyType>(), value) {
            (Ok(class), None) => PyErr::from_type(class.clone(), ()),
            (Ok(class), Some(value)) if !value.is_instance_of::<PyBaseException>() => {
                PyErr::from_type(class.clone(), (value.unbind(),))
            }
            (_, value) => PyErr::from_value(value.unwrap_or(exc)),
        })
    }

    /// As of a coroutine: gives the operation up.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.finish(py)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<SocketOperation {} {}>", self.name, self.socket.bind(py).repr()?))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.socket)?;
        if let Ok(state) = self.state.borrow_for_traverse() {
            match &state.work {
                Work::Once { args, .. } => visit.call(args)?,
                Work::SendAll { data, .. } => visit.call(data)?,
                Work::Receive { .. } => {}
            }
            if let Phase::Waiting { waiter, .. } = &state.phase {
                visit.call(waiter)?;
            }
        }
        Ok(())
    }
}

impl Drop for SocketOperation {
    /// Dropped while it waits: whoever awaited it was dropped before.
    fn drop(&mut self) {
        Python::attach(|py| {
            let pending = PyErr::take(py);
            if let Err(error) = self.finish(py) {
                error.write_unraisable(py, None);
            }
            if let Some(pending) = pending {
                pending.restore(py);
            }
        });
    }
}
