//! The writes of one iteration leave at its end, but for the first.
//!
//! The first goes to the socket at once, as in asyncio: it may be all there is, and somebody waits for it. Those that
//! follow are held back, and all that one connection has leaves in one system call. A server that answers sixteen
//! pipelined requests one by one makes two calls in place of sixteen, and the peer wakes up twice. Also those of *other*
//! connections wait: what leaves in a row finds its reader awake (a proxy on this machine, say), and to wake it for each
//! answer is the dearest part of a send. Nobody waits for long: the loop lets all send when many wait, and nobody holds
//! more than [`MOST`] bytes.
//!
//! Where a connection's first write was not all there was the last time, it is not expected to be this time, and waits
//! for the others: a server that writes its answers' heads and bodies apart makes one call for each answer.
//!
//! To a program it looks as if they were sent: the size of the write buffer, the water marks and `pause_writing` know
//! nothing of what is held back, and whatever could tell the difference (`close`, `abort`, `write_eof`, `sendfile`, a
//! look at the socket) sends it first. Only an error is heard of at the end of the iteration.

use pyo3::prelude::*;

use super::StreamTransport;
use super::write::WRITE_FAILED;
use crate::transport::Transport;

/// More than this, in bytes, is not held back.
pub const MOST: usize = 32 * 1024;

impl StreamTransport {
    /// Whether a write of `size` bytes is held back; then the caller puts it into the buffer and calls `held_back`.
    pub(super) fn holds_back(slf: &Bound<'_, Self>, size: usize) -> bool {
        let (py, this) = (slf.py(), slf.get());
        let event_loop = slf.as_super().get().event_loop.get();
        let mut output = this.output.borrow_mut(py);
        if output.held_back {
            output.several = true;
            return true;
        }
        if !output.buffer.is_empty() {
            // The socket is full, and what waits for it is no secret.
            return false;
        }
        let Some((turn, first)) = event_loop.begin_write(py) else {
            return false;
        };
        let follows = output.turn.replace(turn) == Some(turn);
        let several = std::mem::replace(&mut output.several, follows);
        // Another thread's write would wait until the loop wakes.
        output.held_back = (!first || several) && size <= MOST && event_loop.is_running_here(py);
        if !output.held_back {
            return false;
        }
        if !std::mem::replace(&mut output.queued, true) {
            drop(output);
            event_loop.send_at_end_of_turn(py, slf.clone().unbind());
        }
        true
    }

    /// The buffer has grown by what is held back.
    pub(super) fn held_back(slf: &Bound<'_, Self>) -> PyResult<()> {
        let size = slf.get().output.borrow_mut(slf.py()).buffer.size();
        if size > MOST { Self::send_held_back(slf) } else { Ok(()) }
    }

    /// In a forked child: it is the parent that sends it.
    pub fn forget_held_back(&self, py: Python<'_>) {
        let held_back = {
            let mut output = self.output.borrow_mut(py);
            output.queued = false;
            std::mem::replace(&mut output.held_back, false)
        };
        if held_back {
            self.clear(py);
        }
    }

    /// It is no longer among those that the loop will ask to send.
    pub fn leave_senders(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().output.borrow_mut(slf.py()).queued = false;
        Self::send_held_back(slf)
    }

    /// Sends what was held back as far as the socket takes it, before the connection ends by another error than this might
    /// come across.
    pub fn try_to_send_held_back(slf: &Bound<'_, Self>) {
        if std::mem::replace(&mut slf.get().output.borrow_mut(slf.py()).held_back, false) {
            let _ends_anyway = Self::flush(slf);
        }
    }

    /// Sends what was held back.
    pub fn send_held_back(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this, base) = (slf.py(), slf.get(), slf.as_super());
        if !std::mem::replace(&mut this.output.borrow_mut(py).held_back, false) || this.is_empty(py) {
            return Ok(());
        }
        if let Err(error) = Self::flush(slf) {
            return Transport::fatal_error(base, error.into(), WRITE_FAILED);
        }
        if this.is_empty(py) {
            return Ok(());
        }
        Transport::watch_writable(base)?;
        Self::note_pending(slf);
        Transport::grown(base)
    }
}

impl Transport {
    /// Lets nothing be held back any longer.
    pub(in crate::transport) fn send_held_back(slf: &Bound<'_, Self>) -> PyResult<()> {
        match slf.cast::<StreamTransport>() {
            Ok(stream) => StreamTransport::send_held_back(stream),
            Err(_) => Ok(()),
        }
    }

    /// The same of a protocol that is Rust.
    pub(in crate::transport) fn flush_protocol(slf: &Bound<'_, Self>) -> PyResult<()> {
        let native = slf.get().native_protocol(slf.py());
        native.map_or(Ok(()), |(object, native)| native.flush(&object))
    }
}
