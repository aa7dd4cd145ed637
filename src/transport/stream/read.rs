//! Reading: from the socket to the protocol.

use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::StreamTransport;
use super::received::{is_large, room_after};
use crate::event_loop::READ_SIZE;
use crate::py::{UnfinishedBytes, is_fatal};
use crate::sys;
use crate::transport::Transport;
use crate::transport::protocol::{Kind, NativeProtocol};
use crate::transport::socket::ShortRead;

const READ_FAILED: &str = "Fatal read error on socket transport";

/// None at the end of the stream.
type Received<'py> = sys::Result<Option<Bound<'py, PyBytes>>>;

impl StreamTransport {
    /// Reads once, at most a buffer full: the others want their turn too.
    pub fn read_ready(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.as_super().get());
        let protocol = {
            let state = this.state.borrow_mut(py);
            match &state.protocol {
                Some(protocol) if state.may_read() => (protocol.object.bind(py).clone(), protocol.kind),
                _ => return Ok(()),
            }
        };
        let result = match protocol {
            (protocol, Kind::Plain) => Self::read_for_protocol(slf, &protocol),
            (protocol, Kind::Buffered) => Self::read_into_protocol(slf, &protocol),
            (protocol, Kind::Native(native)) => Self::read_natively(slf, &protocol, native),
        };
        this.read_on(py);
        result
    }

    /// For a `Protocol`: bytes.
    fn read_for_protocol(slf: &Bound<'_, Self>, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.as_super().get());
        let data = match room_after(slf.get().last_received(py)) {
            None => Self::receive_and_copy(slf),
            Some(size) => Self::receive_into_room(slf, UnfinishedBytes::new(py, size)?),
        };
        let data = match data {
            Ok(Some(data)) => data,
            Ok(None) => return Self::read_eof(slf, protocol),
            Err(error) => return Self::read_failed(slf, error),
        };
        match this.call_protocol(protocol, intern!(py, "data_received"), (data,)) {
            Err(error) => Self::protocol_failed(slf, error, "data_received"),
            Ok(_) => Ok(()),
        }
    }

    fn receive_and_copy<'py>(slf: &Bound<'py, Self>) -> Received<'py> {
        let (py, this) = (slf.py(), slf.as_super().get());
        let size = this.event_loop.get().with_read_buffer(py, |buffer| Self::receive(slf, buffer))?;
        // SAFETY: `receive` has just filled the loop's buffer with so many bytes.
        let data = unsafe { Self::with_received(slf, size, |data| PyBytes::new(py, data)) };
        Ok((size > 0).then_some(data))
    }

    fn receive_into_room<'py>(slf: &Bound<'py, Self>, mut room: UnfinishedBytes) -> Received<'py> {
        let py = slf.py();
        let size = Self::receive(slf, room.spare())?;
        // SAFETY: `receive` says that the kernel has written so many bytes to the front of it.
        unsafe { room.advance(size) };
        let data = room.finish(py);
        // To shrink an object can't fail but for want of memory, which takes the received bytes with it.
        let data = data.map_err(|_| sys::Error { errno: libc::ENOMEM })?;
        Ok((size > 0).then_some(data))
    }

    /// Shows the front of the loop's buffer to `work`, which must not call into Python.
    ///
    /// # Safety
    /// So many bytes have been received into it, now or before.
    pub(in crate::transport) unsafe fn with_received<R>(
        slf: &Bound<'_, Self>,
        size: usize,
        work: impl FnOnce(&[u8]) -> R,
    ) -> R {
        slf.as_super().get().event_loop.get().with_read_buffer(slf.py(), |buffer| {
            // SAFETY: initialised, as the caller knows; within the buffer, since more can't have been received.
            work(unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), size) })
        })
    }

    /// For a `BufferedProtocol`: straight into its buffer.
    fn read_into_protocol(slf: &Bound<'_, Self>, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.as_super().get());
        let lent = this.call_protocol(protocol, intern!(py, "get_buffer"), (-1,)).and_then(|lent| match lent
            .len(
        )? {
            0 => Err(PyRuntimeError::new_err("get_buffer() returned an empty buffer")),
            _ => Ok(lent),
        });
        let lent = match lent {
            Ok(lent) => lent,
            Err(error) => return Self::protocol_failed(slf, error, "get_buffer"),
        };
        // The protocol may have closed the transport or paused it; it hasn't been given anything yet.
        if !this.state.borrow_mut(py).may_read() {
            return Ok(());
        }
        let received = match writable(&lent) {
            Ok(buffer) => {
                // SAFETY: `writable` has checked that the buffer is contiguous and may be written to; its exporter
                // keeps the memory in place as long as `buffer` is held. Nobody else runs meanwhile: no Python code
                // does, and other threads need the interpreter lock. Uninitialised bytes are only written to.
                let memory = unsafe {
                    std::slice::from_raw_parts_mut(
                        buffer.buf_ptr().cast::<MaybeUninit<u8>>(),
                        buffer.len_bytes(),
                    )
                };
                Self::receive(slf, memory)
            }
            Err(error) if is_fatal(py, &error) => return Err(error),
            Err(error) => return Transport::fatal_error_in_context(slf.as_super(), error, READ_FAILED),
        };
        // It may be resized in `buffer_updated`.
        drop(lent);
        match received {
            Err(error) => Self::read_failed(slf, error),
            Ok(0) => Self::read_eof(slf, protocol),
            Ok(size) => match this.call_protocol(protocol, intern!(py, "buffer_updated"), (size,)) {
                Err(error) => Self::protocol_failed(slf, error, "buffer_updated"),
                Ok(_) => Ok(()),
            },
        }
    }

    /// For a protocol that is Rust.
    fn read_natively(
        slf: &Bound<'_, Self>,
        protocol: &Bound<'_, PyAny>,
        native: &'static dyn NativeProtocol,
    ) -> PyResult<()> {
        match native.offer(protocol, slf, &mut |memory| Self::receive(slf, memory)) {
            Err(error) => Self::read_failed(slf, error),
            Ok(0) => Self::read_eof(slf, protocol),
            Ok(size) => match native.received(protocol, slf, size) {
                Err(error) => Self::protocol_failed(slf, error, "data_received"),
                Ok(()) => Ok(()),
            },
        }
    }

    /// Receives, and notes whether there can be more.
    fn receive(slf: &Bound<'_, Self>, buffer: &mut [MaybeUninit<u8>]) -> sys::Result<usize> {
        let (py, this, base) = (slf.py(), slf.get(), slf.as_super().get());
        let mut state = base.state.borrow_mut(py);
        let (mut size, mut short_read_drains) = match receive_once(base.fd, state.short_read, buffer) {
            Ok(received) => received,
            Err(error) => {
                state.readable &= error.errno != libc::EAGAIN;
                return Err(error);
            }
        };
        let mut part = size;
        // On a Unix socket FIONREAD counts past an urgent byte; the poller has told of that.
        let look_again = part != this.last_received(py) && state.short_read != ShortRead::Open;
        while look_again && is_large(part) && size < buffer.len().min(READ_SIZE) && more_has_come(base.fd) {
            let rest = receive_once(base.fd, state.short_read, &mut buffer[size..]);
            // (Unless somebody else has taken it: then it is the next read that finds out.)
            (part, short_read_drains) = rest.unwrap_or((0, false));
            size += part;
        }
        if size < buffer.len() && short_read_drains && !state.read_closed {
            state.readable = false;
        }
        // (recv(2) gives 2 GiB at most.)
        this.last_received.set(py, size as u32);
        Ok(size)
    }

    fn read_failed(slf: &Bound<'_, Self>, error: sys::Error) -> PyResult<()> {
        match error.is_transient() {
            true => Ok(()),
            false => Transport::fatal_error_in_context(slf.as_super(), error.into(), READ_FAILED),
        }
    }

    /// The peer will send no more. The protocol decides whether it may still be written to.
    fn read_eof(slf: &Bound<'_, Self>, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.as_super().get());
        Transport::log_debug(slf.as_super(), "%r received EOF")?;
        let keep_open = this.call_protocol(protocol, intern!(py, "eof_received"), ());
        let keep_open = keep_open.and_then(|keep_open| keep_open.is_truthy());
        match keep_open {
            Err(error) => Self::protocol_failed(slf, error, "eof_received"),
            Ok(true) => {
                this.state.borrow_mut(py).at_eof = true;
                Transport::settle(slf.as_super())
            }
            Ok(false) => Transport::close(slf.as_super()),
        }
    }

    fn protocol_failed(slf: &Bound<'_, Self>, error: PyErr, method: &str) -> PyResult<()> {
        if is_fatal(slf.py(), &error) {
            return Err(error);
        }
        Transport::fatal_error_in_context(
            slf.as_super(),
            error,
            &format!("Fatal error: protocol.{method}() call failed."),
        )
    }
}

/// Whether there is another part of a message. The peer's system call is under way still, most likely, and the rest has
/// come while the beginning was copied. To look costs little beside a large part, and saves the protocol a call and the
/// peer an answer in parts. (To receive in place of that would take the error of a connection that was reset behind the
/// data out of a `write`'s sight, and an urgent byte from whoever wants it.)
fn more_has_come(fd: RawFd) -> bool {
    sys::available(fd).is_ok_and(|size| size > 0)
}

/// Also whether it has drained the socket if it has not filled the buffer.
fn receive_once(
    fd: RawFd,
    short_read: ShortRead,
    buffer: &mut [MaybeUninit<u8>],
) -> sys::Result<(usize, bool)> {
    match short_read {
        ShortRead::Drains => Ok((sys::recv(fd, buffer)?, true)),
        ShortRead::Open => Ok((sys::recv(fd, buffer)?, false)),
        ShortRead::DrainsUnlessCut => {
            let (size, cut) = sys::recv_bytes_of_message(fd, buffer)?;
            Ok((size, !cut))
        }
    }
}

/// A view of what `get_buffer` has lent, with the errors of `socket.recv_into`.
fn writable(lent: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(lent)?;
    match buffer.readonly() || !buffer.is_c_contiguous() {
        true => {
            let name = lent.get_type().name()?;
            let message = format!("recv_into() argument 1 must be read-write bytes-like object, not {name}");
            Err(PyTypeError::new_err(message))
        }
        false => Ok(buffer),
    }
}
