//! A client's connection in the making: to a host in digits, and with nothing else asked for.
//!
//! `BaseEventLoop.create_connection` does all that anybody may ask for, in Python, and makes a socket object on the way
//! that hardly anybody looks at. For the plain case, a host and a port, that is half of what a connection costs; a
//! [`Connection`] is that case. Whatever else is asked for, has been replaced, or fails at once is left to asyncio, which
//! then begins from the start: its errors are its own.
//!
//! As in asyncio the connection is waited for in the poller, even if the kernel would have it ready at once. A server in
//! the same loop has thereby accepted it before the client can do anything with it.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyInt, PyModule, PyString, PyType};

use super::StreamTransport;
use super::socket::Names;
use crate::event_loop::EventLoop;
use crate::fd_watch::{self, Side};
use crate::py::{
    Asyncio, AttachedCell, Awaitable, Class, Step, audit, copy_current_context, coroutine_methods,
};
use crate::waiter::Waiter;

/// What `create_connection` comes by in asyncio; an attribute of the loop may be in the way of each.
const HOOKS: [&str; 6] = [
    "_connect_sock",
    "_create_connection_transport",
    "_ensure_resolved",
    "_make_socket_transport",
    "_sock_connect",
    "sock_connect",
];

/// What must be as it was.
struct Originals {
    event_loop: Class,
    socket: Class,
    /// Of modules, by module and name.
    names: Vec<(Py<PyModule>, Py<PyString>, Py<PyAny>)>,
    hooks: Vec<Py<PyString>>,
}

static ORIGINALS: PyOnceLock<Originals> = PyOnceLock::new();

/// Lets plain connections of loops of just this class be made by the core. Only the first call counts.
#[pyfunction]
pub fn _use_connections(event_loop: &Bound<'_, PyType>) -> PyResult<()> {
    let py = event_loop.py();
    let original = |module: &str, name: &str| {
        let module = py.import(module)?;
        let value = module.getattr(name)?.unbind();
        PyResult::Ok((module.unbind(), PyString::intern(py, name).unbind(), value))
    };
    let originals = Originals {
        event_loop: Class::new(event_loop)?,
        socket: Class::new(Asyncio::get(py)?.socket.bind(py))?,
        names: vec![
            original("socket", "socket")?,
            original("asyncio.base_events", "socket")?,
            original("asyncio.base_events", "_ipaddr_info")?,
            original("asyncio.base_events", "_set_nodelay")?,
        ],
        hooks: HOOKS.iter().map(|name| PyString::intern(py, name).unbind()).collect(),
    };
    let _first = ORIGINALS.set(py, originals);
    Ok(())
}

impl Originals {
    fn are_intact(&self, event_loop: &Bound<'_, EventLoop>) -> PyResult<bool> {
        let py = event_loop.py();
        if !self.event_loop.is_class_of(event_loop.as_any()) || !self.socket.is_intact(py) {
            return Ok(false);
        }
        for (module, name, original) in &self.names {
            if !module.bind(py).dict().get_item(name)?.is_some_and(|now| now.is(original)) {
                return Ok(false);
            }
        }
        let own = event_loop.getattr(intern!(py, "__dict__"))?.cast_into::<PyDict>()?;
        for name in &self.hooks {
            if own.contains(name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

enum Phase {
    Begun(OwnedFd),
    Waiting(OwnedFd, Py<Waiter>),
    Connected(OwnedFd),
    Over,
}

/// A connection on its way: awaited, it is there, and can be made a transport.
#[pyclass(frozen, module = "mioloop._core")]
pub struct Connection {
    event_loop: Py<EventLoop>,
    host: Py<PyString>,
    target: SocketAddr,
    phase: AttachedCell<Phase>,
}

#[pymethods]
impl EventLoop {
    /// Begins to connect to a host and a port. None: there is more to it, and asyncio is to do it all.
    fn _begin_connection(
        slf: &Bound<'_, Self>,
        host: &Bound<'_, PyAny>,
        port: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Connection>> {
        let py = slf.py();
        let (Ok(host), Ok(port)) = (host.cast_exact::<PyString>(), port.cast_exact::<PyInt>()) else {
            return Ok(None);
        };
        let Some(target) = plain_target(host, port) else { return Ok(None) };
        let Some(originals) = ORIGINALS.get(py) else { return Ok(None) };
        // Audit hooks are shown a socket object. Debug mode logs.
        if slf.get().is_debug(py)
            || slf.get().check_open(py).is_err()
            || !originals.are_intact(slf)?
            || audit::is_heard(py)
        {
            return Ok(None);
        }
        let Ok(socket) = mio::net::TcpStream::connect(target) else { return Ok(None) };
        Ok(Some(Connection {
            event_loop: slf.clone().unbind(),
            host: host.clone().unbind(),
            target,
            phase: AttachedCell::new(Phase::Begun(socket.into())),
        }))
    }
}

/// None: a name, or an address that means another one.
fn plain_target(host: &Bound<'_, PyString>, port: &Bound<'_, PyInt>) -> Option<SocketAddr> {
    let host: IpAddr = host.to_str().ok()?.parse().ok()?;
    let port: u16 = port.extract().ok()?;
    (port != 0 && !host.is_unspecified()).then(|| SocketAddr::new(host, port))
}

impl Awaitable for Connection {
    fn step<'py>(slf: &Bound<'py, Self>) -> PyResult<Step<'py>> {
        let (py, this) = (slf.py(), slf.get());
        match this.phase.replace(py, Phase::Over) {
            Phase::Begun(fd) => this.wait(py, fd),
            Phase::Waiting(fd, waiter) if !waiter.get().is_over(py) => {
                fd_watch::stop_waiting(
                    this.event_loop.bind(py),
                    fd.as_raw_fd(),
                    Side::Writer,
                    waiter.bind(py),
                )?;
                this.wait(py, fd)
            }
            Phase::Waiting(fd, _) => {
                let socket = TcpStream::from(fd);
                match socket.take_error() {
                    Ok(None) => {
                        drop(this.phase.replace(py, Phase::Connected(socket.into())));
                        Ok(Step::Done(py.None().into_bound(py)))
                    }
                    Ok(Some(error)) | Err(error) => Err(this.failed(py, &error)),
                }
            }
            Phase::Connected(_) | Phase::Over => {
                Err(PyRuntimeError::new_err("cannot reuse already awaited connection"))
            }
        }
    }

    fn give_up(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().end(slf.py())
    }
}

coroutine_methods!(Connection);

impl Connection {
    fn wait<'py>(&self, py: Python<'py>, fd: OwnedFd) -> PyResult<Step<'py>> {
        let event_loop = self.event_loop.bind(py);
        let waiter = Waiter::new(event_loop)?;
        fd_watch::wait_for(event_loop, fd.as_raw_fd(), Side::Writer, &waiter)?;
        drop(self.phase.replace(py, Phase::Waiting(fd, waiter.clone().unbind())));
        Ok(Step::Wait(waiter.into_any()))
    }

    /// asyncio's error, with the address as it was resolved.
    fn failed(&self, py: Python<'_>, error: &std::io::Error) -> PyErr {
        let (host, port) = (self.host.bind(py), self.target.port());
        let address = match self.target {
            SocketAddr::V4(_) => (host, port).into_pyobject(py),
            SocketAddr::V6(_) => (host, port, 0, 0).into_pyobject(py),
        };
        match address.and_then(|address| address.repr()) {
            Ok(address) => {
                PyOSError::new_err((error.raw_os_error(), format!("Connect call failed {address}")))
            }
            Err(error) => error,
        }
    }

    /// Leaves nobody waiting, and no descriptor open.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        match self.phase.replace(py, Phase::Over) {
            Phase::Waiting(fd, waiter) if !waiter.get().is_over(py) => fd_watch::stop_waiting(
                self.event_loop.bind(py),
                fd.as_raw_fd(),
                Side::Writer,
                waiter.bind(py),
            ),
            _ => Ok(()),
        }
    }
}

#[pymethods]
impl Connection {
    /// Once it is there: makes it a transport, as the loop's `_make_socket_transport` would.
    fn _make_transport<'py>(
        &self,
        py: Python<'py>,
        protocol: &Bound<'py, PyAny>,
        waiter: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let fd = match self.phase.replace(py, Phase::Over) {
            Phase::Connected(fd) => fd,
            _ => return Err(PyRuntimeError::new_err("not connected")),
        };
        let event_loop = self.event_loop.bind(py);
        event_loop.get().check_open(py)?;
        if let Some(names) = Names::of(fd.as_raw_fd()) {
            let context = copy_current_context(py)?;
            let transport =
                StreamTransport::connected(event_loop, (fd, names), protocol, Some(waiter), None, context)?;
            return Ok(transport.into_any());
        }
        // The peer is gone already, and the kernel says no more where it was.
        let options = PyDict::new(py);
        options.set_item(intern!(py, "fileno"), fd.as_raw_fd())?;
        let socket = Asyncio::get(py)?.socket.bind(py).call((), Some(&options))?;
        let _now_the_sockets = fd.into_raw_fd();
        socket.call_method1(intern!(py, "setblocking"), (false,))?;
        event_loop.call_method1(intern!(py, "_make_socket_transport"), (socket, protocol, waiter))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        match self.phase.borrow_for_traverse() {
            Ok(phase) => match &*phase {
                Phase::Waiting(_, waiter) => visit.call(waiter),
                _ => Ok(()),
            },
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Connection {
    /// A descriptor must not be closed while it is watched: its number is soon another's.
    fn drop(&mut self) {
        Python::attach(|py| {
            if let Err(error) = self.end(py) {
                error.write_unraisable(py, None);
            }
        });
    }
}
