//! Reading: from what was received to the program's protocol.
//!
//! A record is read at a time. Whether there is another can be asked of the BIO; to ask OpenSSL instead would make an
//! exception of each "no". All that one event has brought goes to a `Protocol` in one call, as it does in asyncio.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PySlice};

use super::backlog::RECORD;
use super::engine::Outcome;
use super::work::Todo;
use super::{TlsTransport, Told};
use crate::event_loop::READ_SIZE;
use crate::py::{Asyncio, UnfinishedBytes, is_fatal};
use crate::transport::flow::Signal;
use crate::transport::protocol::Kind;
use crate::transport::streams;

const FAILED: &str = "Fatal error on SSL protocol";

/// Why reading has stopped.
enum Stop {
    Drained,
    /// It has had its share.
    Share,
    /// The peer has sent its close_notify.
    Closed,
    Failed(PyErr),
}

impl TlsTransport {
    pub(super) fn read(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let protocol = {
            let state = this.state.borrow_mut(py);
            match &state.protocol {
                Some(protocol) if !state.paused && !state.is_deaf() => {
                    Some((protocol.object.bind(py).clone(), protocol.kind))
                }
                _ => None,
            }
        };
        let stop = match &protocol {
            Some((protocol, Kind::Buffered)) => Self::read_into_protocol(slf, protocol)?,
            Some((protocol, kind)) => Self::read_for_protocol(slf, protocol, *kind)?,
            None => Stop::Drained,
        };
        match stop {
            Stop::Drained => {}
            Stop::Share => this.state.borrow_mut(py).todo |= Todo::READ,
            Stop::Closed => {
                let told = Self::call_eof_received(slf);
                this.state.borrow_mut(py).todo |= Todo::CLOSE;
                told?;
            }
            Stop::Failed(error) if !error.is_instance_of::<PyException>(py) => return Err(error),
            Stop::Failed(error) => {
                Self::send_waiting(slf)?;
                return Self::fatal_error(slf, error, FAILED);
            }
        }
        if protocol.is_some() {
            // OpenSSL may have answered something on its own: a KeyUpdate, a renegotiation.
            this.state.borrow_mut(py).todo |= Todo::WRITE;
        }
        Self::control_reading(slf)
    }

    /// Reads records until there are no more, each by `read`, and says why it has stopped.
    fn read_records<'py>(
        slf: &Bound<'py, Self>,
        mut read: impl FnMut(usize) -> PyResult<Outcome<usize>>,
    ) -> PyResult<Stop> {
        let (py, this) = (slf.py(), slf.get());
        let mut size = 0;
        // No more comes out of a small message than goes in, unless its beginning went in before. (`ssl` allocates as
        // much as is asked for, and gives back what it does not need.)
        let mut limit = Self::feed(slf)?.unwrap_or(RECORD).min(RECORD);
        loop {
            match read(limit) {
                Ok(Outcome::Done(0)) => return Ok(Stop::Closed),
                Ok(Outcome::Done(count)) => {
                    // (A class of the user's may have come to the end, and tells the next time.)
                    let record_is_read = (count < limit || count == RECORD) && !this.engine.is_custom();
                    size += count;
                    if size >= READ_SIZE {
                        return Ok(Stop::Share);
                    }
                    if record_is_read && this.engine.incoming(py)? == 0 && Self::feed(slf)?.is_none() {
                        return Ok(Stop::Drained);
                    }
                }
                Ok(Outcome::Again) if Self::feed(slf)?.is_some() => {}
                Ok(Outcome::Again) => return Ok(Stop::Drained),
                Err(error) => return Ok(Stop::Failed(error)),
            }
            limit = RECORD;
        }
    }

    /// For a `Protocol`: bytes; for a reader of asyncio's, what its buffer grows by. What came before an error is
    /// delivered before it.
    fn read_for_protocol<'py>(
        slf: &Bound<'py, Self>,
        protocol: &Bound<'py, PyAny>,
        kind: Kind,
    ) -> PyResult<Stop> {
        let (py, this) = (slf.py(), slf.get());
        let mut pieces = Vec::new();
        let stop = if matches!(kind, Kind::Native(_)) || this.engine.is_custom() {
            Self::read_records(slf, |limit| {
                Ok(this.engine.read(py, limit)?.map(|data| {
                    let size = data.as_bytes().len();
                    pieces.extend((size > 0).then_some(data));
                    size
                }))
            })?
        } else {
            let mut whole = Whole::default();
            let stop = Self::read_records(slf, |limit| whole.read(slf, limit))?;
            pieces.extend(whole.finish(py)?);
            stop
        };
        if pieces.is_empty() {
            return Ok(stop);
        }
        let delivered = match kind {
            Kind::Native(_) => streams::feed(protocol, &pieces),
            Kind::Plain | Kind::Buffered => Ok(false),
        };
        let delivered = match delivered {
            Ok(false) => join(py, pieces)
                .and_then(|data| {
                    Self::calling(slf, || protocol.call_method1(intern!(py, "data_received"), (data,)))
                })
                .map(drop),
            delivered => delivered.map(drop),
        };
        match delivered {
            Ok(()) => Ok(stop),
            Err(error) if is_fatal(py, &error) => {
                // The loop ends here, for now; what it has not come to is for the next run.
                if !matches!(stop, Stop::Drained) {
                    slf.get().state.borrow_mut(py).todo |= Todo::READ;
                }
                Err(error)
            }
            Err(error) => Ok(Stop::Failed(error)),
        }
    }

    /// For a `BufferedProtocol`: into its buffer.
    fn read_into_protocol<'py>(slf: &Bound<'py, Self>, protocol: &Bound<'py, PyAny>) -> PyResult<Stop> {
        let (py, this) = (slf.py(), slf.get());
        let mut pending = this.engine.incoming(py)?;
        if pending == 0 && Self::feed(slf)?.is_some() {
            pending = this.engine.incoming(py)?;
        }
        let hint = pending + this.state.borrow_mut(py).received_size;
        let phase = this.phase(py);
        let lent = Self::calling(slf, || protocol.call_method1(intern!(py, "get_buffer"), (hint,)));
        let buffer = match lent {
            Ok(buffer) => buffer,
            Err(error) => return Ok(Stop::Failed(error)),
        };
        let room = match PyUntypedBuffer::get(&buffer).map(|buffer| buffer.len_bytes()) {
            Ok(0) => {
                return Ok(Stop::Failed(PyRuntimeError::new_err("get_buffer() returned an empty buffer")));
            }
            Ok(room) => room,
            Err(error) => return Ok(Stop::Failed(error)),
        };
        // The protocol may have closed the transport or paused it; it hasn't been given anything yet.
        {
            let state = this.state.borrow_mut(py);
            if state.paused || state.is_deaf() || state.phase != phase {
                return Ok(Stop::Drained);
            }
        }
        let mut filled = 0;
        let stop = loop {
            let read = match filled {
                0 => this.engine.read_into(&buffer, room),
                // Of a view: a part of a bytearray is a copy.
                _ => rest_of(&buffer, filled).and_then(|rest| this.engine.read_into(&rest, room - filled)),
            };
            match read {
                Ok(Outcome::Done(0)) => break Stop::Closed,
                Ok(Outcome::Done(count)) => {
                    filled += count.min(room - filled);
                    // What is left of the record is not in the BIO any more.
                    if filled == room {
                        break Stop::Share;
                    }
                    let may_be_all = !this.engine.is_custom() && this.engine.incoming(py)? == 0;
                    if may_be_all && Self::feed(slf)?.is_none() {
                        break Stop::Drained;
                    }
                }
                Ok(Outcome::Again) if Self::feed(slf)?.is_some() => {}
                Ok(Outcome::Again) => break Stop::Drained,
                Err(error) => break Stop::Failed(error),
            }
        };
        // It may be resized in `buffer_updated`.
        drop(buffer);
        if filled == 0 {
            return Ok(stop);
        }
        match Self::calling(slf, || protocol.call_method1(intern!(py, "buffer_updated"), (filled,))) {
            Ok(_) => Ok(stop),
            Err(error) if is_fatal(py, &error) => {
                if !matches!(stop, Stop::Drained) {
                    this.state.borrow_mut(py).todo |= Todo::READ;
                }
                Err(error)
            }
            Err(error) => Ok(Stop::Failed(error)),
        }
    }

    /// What the peer sent before the program has closed is read by nobody, but OpenSSL wants it out of the way.
    pub(super) fn discard(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, engine) = (slf.py(), &slf.get().engine);
        let mut read = |limit| Ok(engine.read(py, limit)?.map(|data| data.as_bytes().len()));
        while let Stop::Share = Self::read_records(slf, &mut read)? {}
        Ok(())
    }

    pub(super) fn call_eof_received(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let protocol = {
            let mut state = this.state.borrow_mut(py);
            if state.told != Told::Made {
                return Ok(());
            }
            state.told = Told::Eof;
            state.protocol.as_ref().map(|protocol| protocol.object.bind(py).clone())
        };
        let Some(protocol) = protocol else { return Ok(()) };
        let keep_open = Self::calling(slf, || protocol.call_method0(intern!(py, "eof_received")));
        match keep_open.and_then(|keep_open| keep_open.is_truthy()) {
            Ok(false) => Ok(()),
            Ok(true) => {
                let logger = Asyncio::get(py)?.logger.bind(py);
                let message = "returning true from eof_received() has no effect when using ssl";
                logger.call_method1(intern!(py, "warning"), (message,)).map(drop)
            }
            Err(error) if is_fatal(py, &error) => Err(error),
            Err(error) => {
                Self::send_waiting(slf)?;
                Self::fatal_error(slf, error, "Error calling eof_received()")
            }
        }
    }

    /// How much the peer has sent that was not decrypted.
    pub(super) fn read_buffer_size(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.engine.incoming(py)? + self.state.borrow_mut(py).received_size)
    }

    /// Stops the peer, by way of the transport beneath, when too much waits; and lets it go on.
    pub(super) fn control_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        {
            let state = this.state.borrow_mut(py);
            // Nothing waits for a protocol that reads.
            if state.beneath.is_none() || !(state.paused || state.reading.is_paused()) {
                return Ok(());
            }
        }
        let size = this.read_buffer_size(py)?;
        let signal = this.state.borrow_mut(py).reading.changed(size);
        match signal {
            Some(Signal::Pause) => this.beneath(py)?.pause_reading(py),
            Some(Signal::Resume) => this.beneath(py)?.resume_reading(py),
            None => Ok(()),
        }
    }
}

/// All that one event brings, as one object, into which it is decrypted. Most often that is a record, whose own object
/// will do.
#[derive(Default)]
struct Whole<'py> {
    first: Option<Bound<'py, PyBytes>>,
    /// From the second record on, with the first at its front.
    all: Option<UnfinishedBytes>,
}

impl<'py> Whole<'py> {
    fn read(&mut self, slf: &Bound<'py, TlsTransport>, limit: usize) -> PyResult<Outcome<usize>> {
        let (py, this) = (slf.py(), slf.get());
        if self.first.is_none() {
            return Ok(this.engine.read(py, limit)?.map(|data| {
                let size = data.as_bytes().len();
                self.first = Some(data).filter(|_| size > 0);
                size
            }));
        }
        if self.all.is_none() && this.read_buffer_size(py)? == 0 {
            // Most likely OpenSSL has no more of it either.
            return match this.engine.read(py, limit)? {
                Outcome::Done(data) => {
                    let size = data.as_bytes().len();
                    self.with_room(slf, size)?.append(data.as_bytes());
                    Ok(Outcome::Done(size))
                }
                Outcome::Again => Ok(Outcome::Again),
            };
        }
        let all = self.with_room(slf, limit)?;
        let read = this.engine.read_into_memory(py, &mut all.spare()[..limit])?;
        if let Outcome::Done(size) = read {
            // SAFETY: OpenSSL has written so many bytes to the front of it, of `limit` at most.
            unsafe { all.advance(size.min(limit)) };
        }
        Ok(read)
    }

    /// With room for so much more. It is made for all that waits, which does not grow when it is decrypted, but that a
    /// part of it may be with OpenSSL already; and so that there is room for a look at the end.
    fn with_room(&mut self, slf: &Bound<'py, TlsTransport>, more: usize) -> PyResult<&mut UnfinishedBytes> {
        let py = slf.py();
        let all = match self.all.take() {
            Some(all) if all.room() >= more => all,
            old => {
                let there = match (&old, &self.first) {
                    (Some(old), _) => old.as_slice(),
                    (None, Some(first)) => first.as_bytes(),
                    (None, None) => &[],
                };
                let expected = slf.get().read_buffer_size(py)?.min(READ_SIZE) + 2 * RECORD;
                let mut all = UnfinishedBytes::new(py, there.len() + expected.max(more))?;
                all.append(there);
                all
            }
        };
        Ok(self.all.insert(all))
    }

    fn finish(self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        match self.all {
            Some(all) => all.finish(py).map(Some),
            None => Ok(self.first),
        }
    }
}

/// A view of what is behind the first `filled` bytes.
fn rest_of<'py>(buffer: &Bound<'py, PyAny>, filled: usize) -> PyResult<Bound<'py, PyAny>> {
    let py = buffer.py();
    let view = PyMemoryView::from(buffer)?.call_method1(intern!(py, "cast"), ("B",))?;
    view.get_item(PySlice::new(py, filled as isize, isize::MAX, 1))
}

/// All the pieces as one.
fn join<'py>(py: Python<'py>, mut pieces: Vec<Bound<'py, PyBytes>>) -> PyResult<Bound<'py, PyBytes>> {
    if pieces.len() == 1 {
        return Ok(pieces.remove(0));
    }
    let size = pieces.iter().map(|piece| piece.as_bytes().len()).sum();
    PyBytes::new_with(py, size, |mut joined| {
        for piece in &pieces {
            let (front, back) = joined.split_at_mut(piece.as_bytes().len());
            front.copy_from_slice(piece.as_bytes());
            joined = back;
        }
        Ok(())
    })
}
