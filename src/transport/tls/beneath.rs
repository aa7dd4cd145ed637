//! Towards the transport beneath: what it calls, and how it is called.

use std::ops::Range;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::framing::Framing;
use super::work::Todo;
use super::{Beneath, Phase, TlsTransport, not_connected};
use crate::event_loop::{EventLoop, READ_SIZE};
use crate::py::{Asyncio, UnfinishedBytes};
use crate::sys;
use crate::sys::memory::LEARNS;
use crate::transport::protocol::{NativeProtocol, Receive};
use crate::transport::{Data, StreamTransport, Transport};

/// As much as OpenSSL is given at once, two records: its buffer keeps the size it has grown to.
const CHUNK: usize = 33 * 1024;

/// From so much on the next is likely to be much too, and is received where it can stay until OpenSSL is given it: if
/// malloc does not give so large a block back to the kernel each time.
const MUCH: usize = 64 * 1024;

/// TLS as the protocol of a stream transport, without a Python frame.
struct Tls;

pub(in crate::transport) static NATIVE: &dyn NativeProtocol = &Tls;

impl NativeProtocol for Tls {
    fn offer(
        &self,
        object: &Bound<'_, PyAny>,
        transport: &Bound<'_, StreamTransport>,
        receive: Receive<'_>,
    ) -> sys::Result<usize> {
        let (py, event_loop) = (transport.py(), &transport.as_super().get().event_loop);
        let Ok(tls) = object.cast::<TlsTransport>() else { return Err(sys::Error { errno: libc::EBADF }) };
        if transport.get().last_received(py) < MUCH || !LEARNS {
            let size = event_loop.get().with_read_buffer(py, receive)?;
            // SAFETY: so many bytes have been received into the loop's buffer.
            unsafe { StreamTransport::with_received(transport, size, |bytes| tls.get().take_in(py, bytes)) };
            Ok(size)
        } else {
            let no_memory = |_| sys::Error { errno: libc::ENOMEM };
            let mut room = UnfinishedBytes::new(py, READ_SIZE).map_err(no_memory)?;
            let size = receive(room.spare())?;
            // SAFETY: the kernel has written so many bytes to the front of it.
            unsafe { room.advance(size) };
            tls.get().keep(py, room.finish(py).map_err(no_memory)?);
            Ok(size)
        }
    }

    fn received(
        &self,
        object: &Bound<'_, PyAny>,
        _transport: &Bound<'_, StreamTransport>,
        _size: usize,
    ) -> PyResult<()> {
        match object.cast::<TlsTransport>() {
            Ok(tls) => TlsTransport::advance_in_context(tls, Todo::READ),
            Err(_) => Ok(()),
        }
    }

    fn flush(&self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        match object.cast::<TlsTransport>() {
            Ok(tls) => {
                // TLS over TLS: what is written up there goes through here.
                TlsTransport::flush_protocol(tls)?;
                TlsTransport::send_put_off(tls)
            }
            Err(_) => Ok(()),
        }
    }

    fn sent(&self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        match object.cast::<TlsTransport>() {
            // Nobody has to be told.
            Ok(tls) if !tls.get().state.borrow_mut(tls.py()).writing.is_paused() => Ok(()),
            Ok(tls) => TlsTransport::advance_in_context(tls, Todo::SENT),
            Err(_) => Ok(()),
        }
    }
}

impl TlsTransport {
    /// Keeps a copy of what was received, until OpenSSL is given it.
    fn take_in(&self, py: Python<'_>, received: &[u8]) {
        for chunk in received.chunks(CHUNK) {
            self.keep(py, PyBytes::new(py, chunk));
        }
    }

    fn keep(&self, py: Python<'_>, received: Bound<'_, PyBytes>) {
        let mut state = self.state.borrow_mut(py);
        if !state.finished && !received.as_bytes().is_empty() {
            state.received_size += received.as_bytes().len();
            state.received.push_back(received.unbind());
        }
    }

    /// Gives OpenSSL more of it, to the end of a record if that is there, and returns how much. None if there is no more.
    pub(super) fn feed(slf: &Bound<'_, Self>) -> PyResult<Option<usize>> {
        let (py, this) = (slf.py(), slf.get());
        let mut fed = None;
        while let Some((piece, chunk, is_whole)) = this.next_chunk(py) {
            this.engine.feed(&piece, chunk.clone())?;
            fed = Some(fed.unwrap_or(0) + chunk.len());
            if is_whole {
                break;
            }
        }
        Ok(fed)
    }

    /// A part of a piece, and whether a record ends with it.
    fn next_chunk<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyBytes>, Range<usize>, bool)> {
        let mut state = self.state.borrow_mut(py);
        let piece = state.received.pop_front()?;
        let (start, end) = (state.received_from, piece.as_bytes(py).len());
        let size = state.framing.advance(&piece.as_bytes(py)[start..end.min(start + CHUNK)]);
        let chunk = start..start + size;
        state.received_size -= size;
        state.received_from = if chunk.end < end { chunk.end } else { 0 };
        if chunk.end < end {
            state.received.push_front(piece.clone_ref(py));
        }
        Some((piece.into_bound(py), chunk, state.framing.is_between_records()))
    }

    /// It is nobody's any more.
    pub(super) fn forget_received(&self, py: Python<'_>) {
        let mut state = self.state.borrow_mut(py);
        state.received.clear();
        (state.received_from, state.received_size) = (0, 0);
        state.framing = Framing::default();
    }

    pub(super) fn beneath<'py>(&self, py: Python<'py>) -> PyResult<BoundBeneath<'py>> {
        match &self.state.borrow_mut(py).beneath {
            Some(Beneath::Stream(stream)) => Ok(BoundBeneath::Stream(stream.bind(py).clone())),
            Some(Beneath::Other(other)) => Ok(BoundBeneath::Other(other.bind(py).clone())),
            None => Err(not_connected()),
        }
    }

    /// How much the stream beneath holds. What another transport holds is its own.
    pub(super) fn pending_beneath(&self, py: Python<'_>) -> usize {
        let stream = match &self.state.borrow_mut(py).beneath {
            Some(Beneath::Stream(stream)) => stream.bind(py).clone(),
            _ => return 0,
        };
        stream.as_super().get().state.borrow_mut(py).pending
    }
}

impl TlsTransport {
    /// We are beneath another TLS transport, and about to end or to be looked at past it: what was written shall be here.
    pub(super) fn flush_protocol(slf: &Bound<'_, Self>) -> PyResult<()> {
        match slf.get().protocol(slf.py()) {
            Some(protocol) => Tls.flush(&protocol),
            None => Ok(()),
        }
    }
}

impl Beneath {
    pub fn object<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        match self {
            Beneath::Stream(stream) => stream.bind(py).clone().into_any(),
            Beneath::Other(other) => other.bind(py).clone(),
        }
    }
}

/// The transport beneath, to be called without a borrow.
pub(super) enum BoundBeneath<'py> {
    Stream(Bound<'py, StreamTransport>),
    Other(Bound<'py, PyAny>),
}

impl BoundBeneath<'_> {
    /// Sends ciphertext, in one system call where that can be.
    pub fn send(&self, py: Python<'_>, pieces: Vec<Bound<'_, PyBytes>>) -> PyResult<()> {
        match self {
            BoundBeneath::Stream(stream) => {
                let pieces: Vec<_> = pieces.into_iter().map(Data::Bytes).collect();
                match pieces.as_slice() {
                    [] => Ok(()),
                    [piece] => StreamTransport::write_data(stream, piece),
                    pieces => StreamTransport::write_pieces(stream, pieces),
                }
            }
            BoundBeneath::Other(other) => pieces
                .iter()
                .try_for_each(|piece| other.call_method1(intern!(py, "write"), (piece,)).map(drop)),
        }
    }

    /// Sends what a stream holds back until the end of the iteration.
    pub fn send_held_back(&self) -> PyResult<()> {
        match self {
            BoundBeneath::Stream(stream) => StreamTransport::send_held_back(stream),
            BoundBeneath::Other(_) => Ok(()),
        }
    }

    /// Whether whatever is written from now on is dropped.
    pub fn is_lost(&self, py: Python<'_>) -> bool {
        match self {
            BoundBeneath::Stream(stream) => stream.as_super().get().state.borrow_mut(py).conn_lost > 0,
            BoundBeneath::Other(other) => match other.cast::<TlsTransport>() {
                Ok(tls) => tls.get().beneath(py).map_or(true, |beneath| beneath.is_lost(py)),
                Err(_) => false,
            },
        }
    }

    pub fn is_closing(&self, py: Python<'_>) -> PyResult<bool> {
        match self {
            BoundBeneath::Stream(stream) => Ok(stream.as_super().get().is_closing(py)),
            BoundBeneath::Other(other) => other.call_method0(intern!(py, "is_closing"))?.is_truthy(),
        }
    }

    pub fn close(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            BoundBeneath::Stream(stream) => Transport::close(stream.as_super()),
            BoundBeneath::Other(other) => other.call_method0(intern!(py, "close")).map(drop),
        }
    }

    pub fn force_close(&self, py: Python<'_>, exc: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        match (self, exc) {
            (BoundBeneath::Stream(stream), exc) => Transport::force_close(stream.as_super(), exc),
            (BoundBeneath::Other(other), None) => other.call_method0(intern!(py, "abort")).map(drop),
            (BoundBeneath::Other(other), Some(exc)) => {
                other.call_method1(intern!(py, "_force_close"), (exc,)).map(drop)
            }
        }
    }

    pub fn pause_reading(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            BoundBeneath::Stream(stream) => Transport::pause_reading(stream.as_super()),
            BoundBeneath::Other(other) => other.call_method0(intern!(py, "pause_reading")).map(drop),
        }
    }

    pub fn resume_reading(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            BoundBeneath::Stream(stream) => Transport::resume_reading(stream.as_super()),
            BoundBeneath::Other(other) => other.call_method0(intern!(py, "resume_reading")).map(drop),
        }
    }
}

/// A protocol's methods.
#[pymethods]
impl TlsTransport {
    fn connection_made(slf: &Bound<'_, Self>, transport: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let (beneath, context) = match transport.cast::<StreamTransport>() {
            Ok(stream) => {
                let context = stream.as_super().get().context.clone_ref(py);
                (Beneath::Stream(stream.clone().unbind()), Some(context))
            }
            Err(_) => (Beneath::Other(transport.clone().unbind()), None),
        };
        let old = {
            let mut state = this.state.borrow_mut(py);
            (state.beneath.replace(beneath), std::mem::replace(&mut state.context, context))
        };
        drop(old);
        Self::advance(slf, Todo::START)
    }

    /// From a transport that is not ours.
    fn data_received(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        slf.get().take_in(slf.py(), Data::new(data)?.as_slice());
        Self::advance(slf, Todo::READ)
    }

    /// Whether the transport beneath shall stay open: while the program does not read, and has not seen all.
    fn eof_received(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let (py, this) = (slf.py(), slf.get());
        if this.is_debug(py) {
            let logger = Asyncio::get(py)?.logger.bind(py);
            logger.call_method1(intern!(py, "debug"), ("%r received EOF", slf))?;
        }
        this.state.borrow_mut(py).eof = true;
        Self::advance(slf, Todo::EOF)?;
        let state = this.state.borrow_mut(py);
        Ok(state.phase == Phase::Flushing && state.paused)
    }

    fn connection_lost(slf: &Bound<'_, Self>, exc: Option<Py<PyAny>>) -> PyResult<()> {
        let py = slf.py();
        let old = std::mem::replace(&mut slf.get().state.borrow_mut(py).lost_reason, exc);
        drop(old);
        Self::advance(slf, Todo::LOST)
    }

    fn pause_writing(&self, py: Python<'_>) {
        self.state.borrow_mut(py).beneath_full = true;
    }

    fn resume_writing(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().state.borrow_mut(slf.py()).beneath_full = false;
        Self::advance_in_context(slf, Todo::WRITE)
    }
}

/// Calls `callback` after asyncio's manner, in the context that is current.
pub(super) fn call_soon(
    event_loop: &Bound<'_, EventLoop>,
    callback: Bound<'_, PyAny>,
    argument: Option<&Py<PyAny>>,
) -> PyResult<()> {
    event_loop.call_method1(intern!(event_loop.py(), "call_soon"), (callback, argument)).map(drop)
}
