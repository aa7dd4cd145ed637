//! The socket under a transport, and what `get_extra_info` tells of it.
//!
//! A connection that the loop has accepted itself is only a descriptor: the Python object is made when somebody asks
//! for it, which for most connections nobody does.

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::address;
use super::base::Transport;
use crate::event_loop::EventLoop;
use crate::py::Asyncio;
use crate::sys::{self, SocketAddress};

pub(super) enum Socket {
    Accepted(OwnedFd),
    Python(Py<PyAny>),
    Closed,
}

/// Where an accepted connection goes from and to. Kept beside the socket, because they are asked for when the peer is
/// gone and the kernel knows no more.
pub(super) struct Names {
    local: SocketAddress,
    peer: SocketAddress,
}

impl Names {
    pub fn new(fd: &OwnedFd, peer: SocketAddress) -> sys::Result<Self> {
        Ok(Names { local: SocketAddress::local(fd.as_raw_fd())?, peer })
    }
}

impl Socket {
    pub fn accepted(fd: OwnedFd, names: &Names) -> sys::Result<Self> {
        if matches!(names.local.family(), libc::AF_INET | libc::AF_INET6) {
            sys::set_nodelay(fd.as_raw_fd())?;
        }
        Ok(Socket::Accepted(fd))
    }

    pub fn is_closed(&self) -> bool {
        matches!(self, Socket::Closed)
    }

    pub fn fd(&self, py: Python<'_>) -> PyResult<RawFd> {
        match self {
            Socket::Accepted(fd) => Ok(fd.as_raw_fd()),
            Socket::Python(socket) => socket.call_method0(py, intern!(py, "fileno"))?.extract(py),
            Socket::Closed => Ok(-1),
        }
    }

    /// Closes the descriptor. A Python socket closes itself, when the last file made of it is closed.
    pub fn close(self, py: Python<'_>) -> PyResult<()> {
        match self {
            Socket::Accepted(_) | Socket::Closed => Ok(()),
            Socket::Python(socket) => socket.call_method0(py, intern!(py, "close")).map(drop),
        }
    }
}

/// The dictionary behind `get_extra_info` for a socket that Python has made. (The names and the errors that are
/// overlooked are asyncio's.)
pub(super) fn extra_info(
    event_loop: &Bound<'_, EventLoop>,
    sock: &Bound<'_, PyAny>,
    extra: Option<Bound<'_, PyDict>>,
) -> PyResult<Py<PyDict>> {
    let py = sock.py();
    event_loop.get().check_open(py)?;
    event_loop.call_method1(intern!(py, "_ensure_fd_no_transport"), (sock,))?;
    let asyncio = Asyncio::get(py)?;
    let extra = extra.unwrap_or_else(|| PyDict::new(py));
    extra.set_item(intern!(py, "socket"), asyncio.transport_socket.call1(py, (sock,))?)?;
    let name = |method: &Bound<'_, pyo3::types::PyString>| match sock.call_method0(method) {
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyOSError>(py) => Ok(py.None()),
        name => name.map(Bound::unbind),
    };
    extra.set_item(intern!(py, "sockname"), name(intern!(py, "getsockname"))?)?;
    if !extra.contains(intern!(py, "peername"))? {
        extra.set_item(intern!(py, "peername"), name(intern!(py, "getpeername"))?)?;
    }
    Ok(extra.unbind())
}

/// One item of it, made now if nobody has asked for it before.
pub(super) fn extra_info_item<'py>(
    slf: &Bound<'py, Transport>,
    name: &str,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let (py, this) = (slf.py(), slf.get());
    let extra = {
        let mut state = this.state.borrow_mut(py);
        state.extra.get_or_insert_with(|| PyDict::new(py).unbind()).bind(py).clone()
    };
    if let Some(known) = extra.get_item(name)? {
        return Ok(Some(known));
    }
    let made = match name {
        "socket" => match python_socket(slf)? {
            Some(socket) => Some(Asyncio::get(py)?.transport_socket.bind(py).call1((socket,))?),
            None => None,
        },
        "sockname" | "peername" => {
            let address = match &this.state.borrow_mut(py).names {
                Some(names) if name == "sockname" => Some(names.local),
                Some(names) => Some(names.peer),
                None => None,
            };
            match address {
                Some(address) => address::to_python(py, &address)?,
                None => None,
            }
        }
        _ => None,
    };
    if let Some(made) = &made {
        extra.set_item(name, made)?;
    }
    Ok(made)
}

/// The socket as a Python object, which owns the descriptor from then on. None when it is closed.
pub(super) fn python_socket<'py>(slf: &Bound<'py, Transport>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let (py, this) = (slf.py(), slf.get());
    match &this.state.borrow_mut(py).socket {
        Socket::Python(socket) => return Ok(Some(socket.bind(py).clone())),
        Socket::Closed => return Ok(None),
        Socket::Accepted(_) => {}
    }
    let options = PyDict::new(py);
    options.set_item(intern!(py, "fileno"), this.fd)?;
    let socket = Asyncio::get(py)?.socket.bind(py).call((), Some(&options))?;
    let old =
        std::mem::replace(&mut this.state.borrow_mut(py).socket, Socket::Python(socket.clone().unbind()));
    match old {
        Socket::Accepted(fd) => drop(fd.into_raw_fd()),
        // Python code ran meanwhile (a collection may): whoever was quicker owns the descriptor.
        Socket::Python(_) | Socket::Closed => {}
    }
    socket.call_method1(intern!(py, "setblocking"), (false,))?;
    Ok(Some(socket))
}
