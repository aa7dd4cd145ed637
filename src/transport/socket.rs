//! The socket under a transport, and what `get_extra_info` tells of it.
//!
//! A connection that the loop has accepted or made itself is only a descriptor: the Python object is made when somebody asks
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
    /// Accepted or connected by us.
    Own(OwnedFd),
    Python(Py<PyAny>),
    Closed,
}

/// Where a connection goes from and to. Kept beside the socket, because they are asked for when the peer is gone and the
/// kernel knows no more; and without the room for a long path that the kernel's type has, eight times what most need,
/// because a server has many.
pub(super) struct Names {
    /// The local address, and behind it the peer's.
    bytes: Box<[u8]>,
    local_length: u8,
}

impl Names {
    pub fn new(fd: &OwnedFd, peer: &SocketAddress) -> sys::Result<Self> {
        Ok(Names::of_both(&SocketAddress::local(fd.as_raw_fd())?, peer))
    }

    /// Those of a connection, if they are all that Python would say.
    pub fn of(fd: RawFd) -> Option<Self> {
        let (local, peer) = (SocketAddress::local(fd).ok()?, SocketAddress::peer(fd).ok()?);
        matches!(local.family(), libc::AF_INET | libc::AF_INET6 | libc::AF_UNIX)
            .then(|| Names::of_both(&local, &peer))
    }

    fn of_both(local: &SocketAddress, peer: &SocketAddress) -> Self {
        const { assert!(SocketAddress::LONGEST <= u8::MAX as usize) };
        Names {
            bytes: [local.bytes(), peer.bytes()].concat().into(),
            local_length: local.bytes().len() as u8,
        }
    }

    pub fn local(&self) -> SocketAddress {
        SocketAddress::from_bytes(&self.bytes[..self.local_length.into()])
    }

    pub fn peer(&self) -> SocketAddress {
        SocketAddress::from_bytes(&self.bytes[self.local_length.into()..])
    }

    pub fn is_internet(&self) -> bool {
        is_internet(self.local().family())
    }

    pub fn short_read(&self) -> ShortRead {
        ShortRead::of(self.local().family())
    }
}

fn is_internet(family: libc::c_int) -> bool {
    matches!(family, libc::AF_INET | libc::AF_INET6)
}

/// What it means that a read of a stream fills less than its buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ShortRead {
    /// There is no more. Nothing but bytes travels on the internet families' streams.
    Drains,
    /// The same, unless the kernel says that it has dropped what came along with the bytes: behind a descriptor, where
    /// nobody asks for it, a read ends (unix(7), recvmsg(2)).
    DrainsUnlessCut,
    /// Nothing.
    Open,
}

impl ShortRead {
    pub fn of(family: libc::c_int) -> Self {
        match family {
            _ if is_internet(family) => ShortRead::Drains,
            libc::AF_UNIX if cfg!(target_os = "linux") => ShortRead::DrainsUnlessCut,
            _ => ShortRead::Open,
        }
    }
}

impl Socket {
    pub fn own(fd: OwnedFd, names: &Names) -> sys::Result<Self> {
        if names.is_internet() {
            sys::set_nodelay(fd.as_raw_fd())?;
        }
        Ok(Socket::Own(fd))
    }

    /// Holds a socket of the program's. Should the program close it, as long as we use it, its number must not become
    /// another file's under our hands: like a file made of it (`socket.makefile`) we count as a user.
    pub fn hold(sock: &Bound<'_, PyAny>) -> PyResult<Self> {
        if is_socket(sock)? {
            let users: i64 = sock.getattr(intern!(sock.py(), "_io_refs"))?.extract()?;
            sock.setattr(intern!(sock.py(), "_io_refs"), users + 1)?;
        }
        Ok(Socket::Python(sock.clone().unbind()))
    }

    pub fn is_closed(&self) -> bool {
        matches!(self, Socket::Closed)
    }

    pub fn fd(&self, py: Python<'_>) -> PyResult<RawFd> {
        match self {
            Socket::Own(fd) => Ok(fd.as_raw_fd()),
            Socket::Python(socket) => socket.call_method0(py, intern!(py, "fileno"))?.extract(py),
            Socket::Closed => Ok(-1),
        }
    }

    /// Closes the descriptor. A Python socket closes itself, when the last file made of it is closed.
    pub fn close(self, py: Python<'_>) -> PyResult<()> {
        match self {
            Socket::Own(_) | Socket::Closed => Ok(()),
            Socket::Python(socket) => {
                let socket = socket.bind(py);
                if is_socket(socket)? {
                    socket.call_method0(intern!(py, "_decref_socketios"))?;
                }
                socket.call_method0(intern!(py, "close")).map(drop)
            }
        }
    }
}

fn is_socket(sock: &Bound<'_, PyAny>) -> PyResult<bool> {
    sock.is_instance(Asyncio::get(sock.py())?.socket.bind(sock.py()))
}

/// What is to be known of a socket that Python has made.
pub(super) struct Facts {
    pub names: Option<Names>,
    pub extra: Option<Py<PyDict>>,
    pub short_read: ShortRead,
}

impl Facts {
    /// Checks that a transport may have the socket, prepares it and looks at it. Its names become Python objects, and it
    /// a `TransportSocket`, when somebody asks.
    pub fn of(
        event_loop: &Bound<'_, EventLoop>,
        sock: &Bound<'_, PyAny>,
        extra: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let (py, asyncio) = (sock.py(), Asyncio::get(sock.py())?);
        check_free(event_loop, sock)?;
        if sock.get_type().is(&asyncio.socket) {
            let fd = sock.call_method0(intern!(py, "fileno"))?.extract()?;
            if let Some(names) = Names::of(fd) {
                let protocol: libc::c_int = sock.getattr(intern!(py, "proto"))?.extract()?;
                let short_read = names.short_read();
                if names.is_internet() && protocol == libc::IPPROTO_TCP {
                    sys::set_nodelay(fd)?;
                }
                return Ok(Facts { names: Some(names), extra: extra.map(Bound::unbind), short_read });
            }
        }
        let extra = ask(sock, extra)?;
        asyncio.set_nodelay.call1(py, (sock,))?;
        let family = sock.getattr(intern!(py, "family"))?.extract();
        let short_read = family.map_or(ShortRead::Open, ShortRead::of);
        Ok(Facts { names: None, extra: Some(extra), short_read })
    }
}

/// The dictionary behind `get_extra_info` for a socket that Python has made, checked as `Facts::of` checks it.
pub(super) fn extra_info(
    event_loop: &Bound<'_, EventLoop>,
    sock: &Bound<'_, PyAny>,
    extra: Option<Bound<'_, PyDict>>,
) -> PyResult<Py<PyDict>> {
    check_free(event_loop, sock)?;
    ask(sock, extra)
}

fn check_free(event_loop: &Bound<'_, EventLoop>, sock: &Bound<'_, PyAny>) -> PyResult<()> {
    event_loop.get().check_open(sock.py())?;
    event_loop.call_method1(intern!(sock.py(), "_ensure_fd_no_transport"), (sock,)).map(drop)
}

/// What the socket itself says. (The names and the errors that are overlooked are asyncio's.)
fn ask(sock: &Bound<'_, PyAny>, extra: Option<Bound<'_, PyDict>>) -> PyResult<Py<PyDict>> {
    let py = sock.py();
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
    // Made before the borrow: to make an object can start the collector, and that can run any code.
    let fresh = PyDict::new(py);
    let extra = this.state.borrow_mut(py).extra.get_or_insert_with(|| fresh.unbind()).bind(py).clone();
    if let Some(known) = extra.get_item(name)? {
        return Ok(Some(known));
    }
    let made = match name {
        "socket" => {
            let socket = match python_socket(slf)? {
                Some(socket) => socket,
                None => closed_socket(slf)?,
            };
            Some(Asyncio::get(py)?.transport_socket.bind(py).call1((socket,))?)
        }
        "sockname" | "peername" => {
            let address = match &this.state.borrow_mut(py).names {
                Some(names) if name == "sockname" => Some(names.local()),
                Some(names) => Some(names.peer()),
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
        Socket::Own(_) => {}
    }
    let options = PyDict::new(py);
    options.set_item(intern!(py, "fileno"), this.fd)?;
    let socket = Asyncio::get(py)?.socket.bind(py).call((), Some(&options))?;
    let still_ours = {
        let mut state = this.state.borrow_mut(py);
        let still_ours = matches!(state.socket, Socket::Own(_));
        if still_ours {
            let old = std::mem::replace(&mut state.socket, Socket::Python(socket.clone().unbind()));
            if let Socket::Own(fd) = old {
                let _now_the_sockets = fd.into_raw_fd();
            }
        }
        still_ours
    };
    if !still_ours {
        // Another thread was quicker, to make one or to close the transport; the descriptor is not this object's.
        socket.call_method0(intern!(py, "detach"))?;
        return python_socket(slf);
    }
    let held = Socket::hold(&socket)?;
    drop(held);
    socket.call_method1(intern!(py, "setblocking"), (false,))?;
    Ok(Some(socket))
}

/// What is told of the socket when it is closed: one that is, of the same family.
fn closed_socket<'py>(slf: &Bound<'py, Transport>) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let family = slf.get().state.borrow_mut(py).names.as_ref().map(|names| names.local().family());
    let socket = Asyncio::get(py)?.socket.bind(py).call1((family.unwrap_or(libc::AF_INET),))?;
    socket.call_method0(intern!(py, "close"))?;
    Ok(socket)
}
