//! `sock_recv` and its kin: a socket's own methods, awaited.
//!
//! Each call gives a [`SocketOperation`], which is to `await` what a coroutine is. It tries the system call first; only
//! if that would block does it wait for the descriptor, and when that is ready it tries again *itself*. The data is
//! therefore never on its way in a future when the task is cancelled: either the caller has it, or it is still in the
//! kernel. (asyncio receives in a callback and passes the bytes through a future; a cancellation that comes between
//! loses them.)

use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PySlice, PyString, PyTuple};

use crate::event_loop::{EventLoop, READ_SIZE};
use crate::fd_watch::{self, Side};
use crate::py::{
    Asyncio, AttachedCell, Awaitable, Step, coroutine_methods, in_destructor, warn_never_awaited, would_block,
};
use crate::sys;
use crate::transport::Data;
use crate::waiter::Waiter;

/// What to do on the socket.
enum Work {
    /// Receive up to so many bytes from a plain socket.
    Receive { size: usize },
    /// Receive into a buffer of the program's.
    ReceiveInto { buffer: Py<PyAny> },
    /// Call the method once; its result is the operation's.
    Once { method: Py<PyString>, args: Py<PyTuple> },
    /// Accept a connection.
    Accept,
    /// Send all of the data: bytes, or a view of what can change.
    SendAll { data: Py<PyAny>, sent: usize },
}

/// The next attempt of it.
enum Next<'py> {
    Receive(usize),
    ReceiveInto(Bound<'py, PyAny>),
    Call(Bound<'py, PyString>, Bound<'py, PyTuple>),
    Accept,
    Send(Bound<'py, PyAny>, usize),
}

enum Phase {
    Created,
    Waiting { fd: RawFd, waiter: Py<Waiter> },
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
    /// Of the very class whose methods are known to be what the system call does.
    plain: bool,
    /// What it waits for: the reader's side, or the writer's.
    side: Side,
    name: &'static str,
    state: AttachedCell<State>,
}

#[pymethods]
impl EventLoop {
    /// Receives up to `n` bytes; an empty result is the end of the stream. As `asyncio.loop.sock_recv`.
    fn sock_recv(slf: &Bound<'_, Self>, sock: Py<PyAny>, n: &Bound<'_, PyAny>) -> PyResult<SocketOperation> {
        match n.extract::<usize>() {
            // Of no bytes at all the socket object does not ask the kernel.
            Ok(size) if (1..=READ_SIZE).contains(&size) && is_plain_socket(sock.bind(slf.py()))? => {
                operation(slf, sock, "sock_recv", Work::Receive { size }, Side::Reader)
            }
            _ => once(slf, sock, "sock_recv", "recv", (n,), Side::Reader),
        }
    }

    /// Receives into a writable buffer; returns how many bytes. As `asyncio.loop.sock_recv_into`.
    fn sock_recv_into(slf: &Bound<'_, Self>, sock: Py<PyAny>, buf: Py<PyAny>) -> PyResult<SocketOperation> {
        operation(slf, sock, "sock_recv_into", Work::ReceiveInto { buffer: buf }, Side::Reader)
    }

    /// Receives a datagram of up to `bufsize` bytes; returns it with its sender's address.
    /// As `asyncio.loop.sock_recvfrom`.
    fn sock_recvfrom(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        bufsize: Py<PyAny>,
    ) -> PyResult<SocketOperation> {
        once(slf, sock, "sock_recvfrom", "recvfrom", (bufsize,), Side::Reader)
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
        once(slf, sock, "sock_recvfrom_into", "recvfrom_into", (buf, nbytes), Side::Reader)
    }

    /// Sends a datagram to `address`; returns how many bytes. As `asyncio.loop.sock_sendto`.
    fn sock_sendto(
        slf: &Bound<'_, Self>,
        sock: Py<PyAny>,
        data: Py<PyAny>,
        address: Py<PyAny>,
    ) -> PyResult<SocketOperation> {
        once(slf, sock, "sock_sendto", "sendto", (data, address), Side::Writer)
    }

    /// Sends all of `data`. If it fails, nobody knows how much was sent. As `asyncio.loop.sock_sendall`.
    fn sock_sendall(slf: &Bound<'_, Self>, sock: Py<PyAny>, data: Py<PyAny>) -> PyResult<SocketOperation> {
        operation(slf, sock, "sock_sendall", Work::SendAll { data, sent: 0 }, Side::Writer)
    }

    /// Accepts a connection on a listening socket; returns its socket, which does not block, and the peer's address.
    ///
    /// Cancelled at any point, it has not taken a connection out of the queue. As `asyncio.loop.sock_accept`.
    fn sock_accept(slf: &Bound<'_, Self>, sock: Py<PyAny>) -> PyResult<SocketOperation> {
        operation(slf, sock, "sock_accept", Work::Accept, Side::Reader)
    }
}

fn operation(
    event_loop: &Bound<'_, EventLoop>,
    socket: Py<PyAny>,
    name: &'static str,
    work: Work,
    side: Side,
) -> PyResult<SocketOperation> {
    let plain = is_plain_socket(socket.bind(event_loop.py()))?;
    let state = AttachedCell::new(State { work, phase: Phase::Created });
    Ok(SocketOperation { event_loop: event_loop.clone().unbind(), socket, plain, side, name, state })
}

fn is_plain_socket(socket: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(socket.get_type().is(&Asyncio::get(socket.py())?.socket))
}

fn once<'py>(
    event_loop: &Bound<'py, EventLoop>,
    socket: Py<PyAny>,
    name: &'static str,
    method: &str,
    args: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
    side: Side,
) -> PyResult<SocketOperation> {
    let py = event_loop.py();
    let work =
        Work::Once { method: PyString::intern(py, method).unbind(), args: args.into_pyobject(py)?.unbind() };
    operation(event_loop, socket, name, work, side)
}

impl Awaitable for SocketOperation {
    fn step<'py>(slf: &Bound<'py, Self>) -> PyResult<Step<'py>> {
        let (py, this) = (slf.py(), slf.get());
        let outcome = this.begin(py).and_then(|()| {
            // Of another class it is asked when it has to be: it may be no socket at all.
            let fd = if this.plain { Some(this.fileno(py)?) } else { None };
            match this.attempt(py, fd) {
                Ok(None) => this.wait(py, fd).map(Step::Wait),
                Ok(Some(result)) => Ok(Step::Done(result)),
                Err(error) if would_block(py, &error) => this.wait(py, fd).map(Step::Wait),
                Err(error) => Err(error),
            }
        });
        if !matches!(outcome, Ok(Step::Wait(_))) {
            this.finish(py)?;
        }
        outcome
    }

    fn give_up(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().finish(slf.py())
    }
}

coroutine_methods!(SocketOperation);

impl SocketOperation {
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
        if !self.plain {
            Asyncio::get(py)?.check_ssl_socket.call1(py, (socket,))?;
        }
        if self.event_loop.get().is_debug(py) {
            let timeout: Option<f64> = socket.call_method0(intern!(py, "gettimeout"))?.extract()?;
            if timeout != Some(0.0) {
                return Err(PyValueError::new_err("the socket must be non-blocking"));
            }
        }
        Ok(())
    }

    /// Tries the call. None, like an error that says so: it would block. `fd`: of a plain socket.
    fn attempt<'py>(&self, py: Python<'py>, fd: Option<RawFd>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let next = match &self.state.borrow_mut(py).work {
            Work::Receive { size } => Next::Receive(*size),
            Work::ReceiveInto { buffer } => Next::ReceiveInto(buffer.bind(py).clone()),
            Work::Once { method, args } => Next::Call(method.bind(py).clone(), args.bind(py).clone()),
            Work::Accept => Next::Accept,
            Work::SendAll { data, sent } => Next::Send(data.bind(py).clone(), *sent),
        };
        match next {
            Next::Receive(size) => self.receive(py, fd, size),
            Next::ReceiveInto(buffer) => self.receive_into(fd, &buffer),
            Next::Call(method, args) => self.socket.bind(py).call_method1(method, args).map(Some),
            Next::Accept => {
                let accepted = self.socket.bind(py).call_method0(intern!(py, "accept"))?;
                accepted.get_item(0)?.call_method1(intern!(py, "setblocking"), (false,))?;
                Ok(Some(accepted))
            }
            Next::Send(data, sent) => self.send_all(py, fd, data, sent),
        }
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.socket.bind(py).call_method0(intern!(py, "fileno"))?.extract()
    }

    /// `socket.recv`, past the socket object: no BlockingIOError is made only to be thrown away.
    fn receive<'py>(
        &self,
        py: Python<'py>,
        fd: Option<RawFd>,
        size: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        // Only of a plain socket is it asked; -1 is nobody's.
        let fd = fd.unwrap_or(-1);
        let received: sys::Result<_> = self.event_loop.get().with_read_buffer(py, |buffer| {
            let received = sys::recv(fd, &mut buffer[..size])?;
            // SAFETY: the kernel has written `received` bytes to the front of the buffer.
            let data = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), received) };
            Ok(PyBytes::new(py, data))
        });
        unless_blocked(received.map(Bound::into_any))
    }

    /// `socket.recv_into`.
    fn receive_into<'py>(
        &self,
        fd: Option<RawFd>,
        buffer: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = buffer.py();
        let fits =
            |view: &PyUntypedBuffer| !view.readonly() && view.is_c_contiguous() && view.len_bytes() > 0;
        let (fd, view) = match (fd, PyUntypedBuffer::get(buffer)) {
            (Some(fd), Ok(view)) if fits(&view) => (fd, view),
            // Of any other class, or with an argument that only the socket's own method can refuse.
            _ => return self.socket.bind(py).call_method1(intern!(py, "recv_into"), (buffer,)).map(Some),
        };
        // SAFETY: contiguous and writable, as was just checked, so these bytes lie there; the exporter keeps them there
        // as long as `view` is held. Attached throughout, so no Python code touches them, and they are only written to.
        let memory = unsafe {
            std::slice::from_raw_parts_mut(view.buf_ptr().cast::<MaybeUninit<u8>>(), view.len_bytes())
        };
        let received = sys::recv(fd, memory);
        drop(view);
        match unless_blocked(received)? {
            Some(size) => Ok(Some(size.into_pyobject(py)?.into_any())),
            None => Ok(None),
        }
    }

    /// Sends the rest of the data, as much as the socket takes.
    fn send_all<'py>(
        &self,
        py: Python<'py>,
        fd: Option<RawFd>,
        mut data: Bound<'py, PyAny>,
        mut sent: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        loop {
            let (now, total) = match (fd, Data::new(&data)) {
                (Some(fd), Ok(bytes)) => {
                    let bytes = bytes.as_slice();
                    // It may have shrunk, if its owner did not keep to the rules of buffers.
                    let rest = bytes.get(sent..).unwrap_or_default();
                    match unless_blocked(sys::send(fd, rest))? {
                        Some(now) => (now, bytes.len()),
                        None => return Ok(None),
                    }
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
                return Ok(Some(py.None().into_bound(py)));
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

    fn wait<'py>(&self, py: Python<'py>, fd: Option<RawFd>) -> PyResult<Bound<'py, PyAny>> {
        let event_loop = self.event_loop.bind(py);
        let fd = match fd {
            Some(fd) => fd,
            None => self.fileno(py)?,
        };
        let waiter = Waiter::new(event_loop)?;
        fd_watch::wait_for(event_loop, fd, self.side, &waiter)?;
        let phase = Phase::Waiting { fd, waiter: waiter.clone().unbind() };
        let old = std::mem::replace(&mut self.state.borrow_mut(py).phase, phase);
        drop(old);
        Ok(waiter.into_any())
    }

    /// Leaves nobody waiting.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let phase = std::mem::replace(&mut self.state.borrow_mut(py).phase, Phase::Finished);
        match phase {
            Phase::Waiting { fd, waiter } if !waiter.get().is_over(py) => {
                fd_watch::stop_waiting(self.event_loop.bind(py), fd, self.side, waiter.bind(py))
            }
            Phase::Waiting { .. } | Phase::Created | Phase::Finished => Ok(()),
        }
    }
}

/// None: the call would block.
fn unless_blocked<T>(result: sys::Result<T>) -> PyResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_transient() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[pymethods]
impl SocketOperation {
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
                Work::ReceiveInto { buffer } => visit.call(buffer)?,
                Work::Receive { .. } | Work::Accept => {}
            }
            if let Phase::Waiting { waiter, .. } = &state.phase {
                visit.call(waiter)?;
            }
        }
        Ok(())
    }
}

impl Drop for SocketOperation {
    /// Dropped while it waits: whoever awaited it was dropped before. Before it has begun: as a coroutine, it says so.
    fn drop(&mut self) {
        Python::attach(|py| {
            let waiting = match self.state.borrow_mut(py).phase {
                Phase::Finished => return,
                Phase::Created => false,
                Phase::Waiting { .. } => true,
            };
            in_destructor(py, || match waiting {
                true => self.finish(py),
                false => warn_never_awaited(py, self.name),
            });
        });
    }
}
