//! A listening socket: accepts in batches and makes a transport of each connection.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::address;
use super::socket::Names;
use super::{StreamTransport, TlsTransport, tls};
use crate::event_loop::{EventLoop, Owner};
use crate::py::{Asyncio, AttachedCell, copy_current_context, in_context, is_fatal};
use crate::reactor::{Direction, Key, Readiness};
use crate::sys;

/// How long to wait, in seconds, when descriptors or memory have run out (asyncio's `ACCEPT_RETRY_DELAY`).
const RETRY_DELAY: f64 = 1.0;

/// Accepts connections, plain or TLS, for an `asyncio.Server`.
#[pyclass(frozen, weakref, module = "mioloop._core")]
pub struct Listener {
    event_loop: Py<EventLoop>,
    fd: RawFd,
    /// How many connections one iteration accepts at most.
    batch: usize,
    /// Each connection's callbacks run in a copy of it.
    context: Py<PyAny>,
    parts: AttachedCell<Option<Parts>>,
}

struct Parts {
    socket: Py<PyAny>,
    protocol_factory: Py<PyAny>,
    server: Option<Py<PyAny>>,
    /// Connections are to be secure.
    tls: Option<Tls>,
    key: Option<Key>,
    /// Waits before it tries again.
    paused: bool,
}

/// A context, and two timeouts in seconds or None, as `_start_serving` is given them.
type Tls = (Py<PyAny>, Option<Py<PyAny>>, Option<Py<PyAny>>);

#[pymethods]
impl EventLoop {
    /// Accepts connections on `sock`, a listening socket that does not block, until `_stop_listening`.
    /// With `tls`, a context and the timeouts of handshake and shutdown, each connection is a TLS server's.
    #[pyo3(signature = (protocol_factory, sock, server, backlog, context=None, tls=None))]
    fn _start_listening(
        slf: &Bound<'_, Self>,
        protocol_factory: Py<PyAny>,
        sock: &Bound<'_, PyAny>,
        server: Option<Py<PyAny>>,
        backlog: i64,
        context: Option<Py<PyAny>>,
        tls: Option<Tls>,
    ) -> PyResult<()> {
        let py = slf.py();
        let fd: RawFd = sock.call_method0(intern!(py, "fileno"))?.extract()?;
        let context = match context {
            Some(context) => context,
            None => copy_current_context(py)?,
        };
        let parts =
            Parts { socket: sock.clone().unbind(), protocol_factory, server, tls, key: None, paused: false };
        let listener = Listener {
            event_loop: slf.clone().unbind(),
            fd,
            batch: usize::try_from(backlog).unwrap_or(0).max(1),
            context,
            parts: AttachedCell::new(Some(parts)),
        };
        let listener = Bound::new(py, listener)?;
        let key = slf.get().register(py, fd, Direction::Read, Owner::Listener(listener.clone().unbind()))?;
        if let Some(parts) = listener.get().parts.borrow_mut(py).as_mut() {
            parts.key = Some(key);
        }
        Ok(())
    }

    /// Stops what `_start_listening` began. Returns whether there was a listener on `fd`.
    fn _stop_listening(&self, py: Python<'_>, fd: RawFd) -> PyResult<bool> {
        if self.check_open(py).is_err() {
            return Ok(false);
        }
        let found = self.with_reactor(py, |reactor| {
            let key = reactor.key_of(fd)?;
            match reactor.owner(key) {
                Some(Owner::Listener(listener)) => Some((key, listener.clone_ref(py))),
                _ => None,
            }
        })?;
        let Some((key, listener)) = found else {
            return Ok(false);
        };
        self.deregister(py, key);
        drop(listener.get().parts.replace(py, None));
        Ok(true)
    }
}

impl Listener {
    /// Connections may be waiting. What this returns as an error leaves the loop, if it is fatal.
    pub fn on_ready(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        for _ in 0..this.batch {
            if this.parts.borrow_mut(py).as_ref().is_none_or(|parts| parts.paused) {
                return Ok(());
            }
            let connected = match sys::accept(this.fd) {
                Ok((accepted, peer)) => Self::connected(slf, accepted, peer),
                Err(error) => match error.errno {
                    libc::EAGAIN => return Ok(()),
                    // A signal, or a peer that has given up already; the next one may be waiting.
                    libc::EINTR | libc::ECONNABORTED => Ok(()),
                    libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                        return Self::out_of_resources(slf, error);
                    }
                    _ => {
                        Self::pause(slf)?;
                        return Err(error.into());
                    }
                },
            };
            if connected.is_err() {
                this.accept_again(py)?;
                return connected;
            }
        }
        // Edge-triggered: nothing will tell us of those that are still in the queue.
        this.accept_again(py)
    }

    fn accept_again(&self, py: Python<'_>) -> PyResult<()> {
        let key = self.parts.borrow_mut(py).as_ref().and_then(|parts| parts.key);
        if let Some(key) = key {
            self.event_loop.get().schedule_source(py, key, Readiness::READABLE);
        }
        Ok(())
    }

    /// Descriptors or memory have run out: trying again at once would only spin.
    fn out_of_resources(slf: &Bound<'_, Self>, error: sys::Error) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let Some(socket) = this.parts.borrow_mut(py).as_ref().map(|parts| parts.socket.clone_ref(py)) else {
            return Ok(());
        };
        Self::pause(slf)?;
        let context = PyDict::new(py);
        context.set_item(intern!(py, "message"), "socket.accept() out of system resource")?;
        context.set_item(intern!(py, "exception"), PyErr::from(error))?;
        context.set_item(intern!(py, "socket"), Asyncio::get(py)?.transport_socket.call1(py, (socket,))?)?;
        EventLoop::call_exception_handler(this.event_loop.bind(py), &context)
    }

    fn pause(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if let Some(parts) = this.parts.borrow_mut(py).as_mut() {
            parts.paused = true;
        }
        let resume = slf.getattr(intern!(py, "_resume"))?;
        let event_loop = this.event_loop.bind(py);
        event_loop.call_method1(intern!(py, "call_later"), (RETRY_DELAY, resume)).map(drop)
    }

    fn connected(slf: &Bound<'_, Self>, accepted: OwnedFd, peer: sys::SocketAddress) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let (factory, server, tls) = match this.parts.borrow_mut(py).as_ref() {
            Some(parts) => (
                parts.protocol_factory.clone_ref(py),
                parts.server.as_ref().map(|server| server.clone_ref(py)),
                parts.tls.as_ref().map(|(context, handshake, shutdown)| {
                    let copy =
                        |object: &Option<Py<PyAny>>| object.as_ref().map(|object| object.bind(py).clone());
                    (context.bind(py).clone(), copy(handshake), copy(shutdown))
                }),
            ),
            None => return Ok(()),
        };
        let event_loop = this.event_loop.bind(py);
        if event_loop.get().is_debug(py) {
            in_context(this.context.bind(py), || log_connection(py, &server, &accepted, &peer))?;
        }
        // As if the connection were a task of its own, which is what it is in asyncio.
        let context = this.context.bind(py).call_method0(intern!(py, "copy"))?;
        let mut protocol = None;
        let made = in_context(&context, || factory.bind(py).call0()).and_then(|made| {
            let protocol = protocol.insert(made);
            let secured;
            let protocol = match tls {
                None => &*protocol,
                Some((context, handshake_timeout, shutdown_timeout)) => {
                    let settings = tls::Settings {
                        event_loop,
                        context: &context,
                        server_side: true,
                        server_hostname: None,
                        handshake_timeout,
                        shutdown_timeout,
                    };
                    secured = TlsTransport::accepted(settings, protocol)?.into_any();
                    &secured
                }
            };
            let names = Names::new(&accepted, &peer)?;
            let connection = (accepted, names);
            StreamTransport::connected(event_loop, connection, protocol, None, server, context.unbind())
                .map(drop)
        });
        match made {
            Err(error) if is_fatal(py, &error) => Err(error),
            // asyncio keeps quiet about it unless in debug mode; the connection is closed.
            Err(error) if event_loop.get().is_debug(py) => {
                let context = PyDict::new(py);
                let message = "Error on transport creation for incoming connection";
                context.set_item(intern!(py, "message"), message)?;
                context.set_item(intern!(py, "exception"), error)?;
                if let Some(protocol) = protocol.filter(|protocol| !protocol.is_none()) {
                    context.set_item(intern!(py, "protocol"), protocol)?;
                }
                EventLoop::call_exception_handler(event_loop, &context)
            }
            _ => Ok(()),
        }
    }
}

/// As asyncio does, but for the socket's own words: it has no object yet, and one made to be shown would be a second owner
/// of the descriptor.
fn log_connection(
    py: Python<'_>,
    server: &Option<Py<PyAny>>,
    accepted: &OwnedFd,
    peer: &sys::SocketAddress,
) -> PyResult<()> {
    let message = "%r got a new connection from %r: <socket.socket fd=%d>";
    let arguments = (message, server, address::to_python(py, peer)?, accepted.as_raw_fd());
    Asyncio::get(py)?.logger.bind(py).call_method1(intern!(py, "debug"), arguments).map(drop)
}

#[pymethods]
impl Listener {
    #[pyo3(name = "_resume")]
    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(parts) = self.parts.borrow_mut(py).as_mut() {
            parts.paused = false;
        }
        self.accept_again(py)
    }

    fn __repr__(&self) -> String {
        format!("<Listener fd={}>", self.fd)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.context)?;
        if let Ok(parts) = self.parts.borrow_for_traverse() {
            if let Some(parts) = parts.as_ref() {
                visit.call(&parts.socket)?;
                visit.call(&parts.protocol_factory)?;
                visit.call(&parts.server)?;
                if let Some((context, handshake_timeout, shutdown_timeout)) = &parts.tls {
                    visit.call(context)?;
                    visit.call(handshake_timeout)?;
                    visit.call(shutdown_timeout)?;
                }
            }
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        drop(self.parts.replace(py, None));
    }
}
