//! One iteration's turn, and what waits for its end.
//!
//! Transports put off what is cheaper done once: a stream holds writes back, a TLS transport encrypts them and delivers
//! what it was not allowed to before. What is waiting is in the loop's sight until it is done, because a fork can come
//! at any time, in any callback: then it is done before.

use std::collections::VecDeque;
use std::num::NonZero;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;

use super::EventLoop;
use crate::transport::{StreamTransport, TlsTransport};

/// When more transports than this hold something back, all send when the callback has returned. Four are nearly as good as
/// sixteen, and sixty-four no better.
const MOST_SENDERS: usize = 16;

/// One iteration, while its callbacks run.
#[derive(Default)]
pub(super) struct Turn {
    /// Counts from 1; None outside.
    number: Option<NonZero<u64>>,
    /// The number of the last one.
    last: u64,
    /// A stream has been written to.
    written: bool,
    /// Transports that hold writes back until it ends.
    senders: VecDeque<Py<StreamTransport>>,
    /// Transports that have put off something else: to encrypt what was written, to deliver what was received.
    put_off: VecDeque<Py<TlsTransport>>,
    /// Transports that wait for the program to return from a callback, the innermost last.
    callers: Vec<Py<TlsTransport>>,
}

impl Turn {
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.senders.iter().try_for_each(|transport| visit.call(transport))?;
        self.put_off.iter().try_for_each(|transport| visit.call(transport))?;
        self.callers.iter().try_for_each(|transport| visit.call(transport))
    }
}

/// For transports.
impl EventLoop {
    /// The number of the iteration whose callbacks run now; none outside of the loop's own running, and at an
    /// iteration's end.
    pub fn turn(&self, py: Python<'_>) -> Option<NonZero<u64>> {
        self.turn.borrow_mut(py).number
    }

    /// Notes that a stream is written to; the iteration's number, and whether it is the first stream in it.
    pub fn begin_write(&self, py: Python<'_>) -> Option<(NonZero<u64>, bool)> {
        let mut turn = self.turn.borrow_mut(py);
        let first = !std::mem::replace(&mut turn.written, true);
        turn.number.map(|number| (number, first))
    }

    /// Has a transport send at the end of the iteration what it holds back.
    pub fn send_at_end_of_turn(&self, py: Python<'_>, transport: Py<StreamTransport>) {
        let waiting = {
            let mut turn = self.turn.borrow_mut(py);
            turn.senders.push_back(transport);
            turn.senders.len()
        };
        if waiting > MOST_SENDERS {
            self.many_wait.set(py, true);
        }
    }

    /// Lets a TLS transport do what it has put off, when all that is ready in this iteration has run.
    pub fn at_end_of_iteration(&self, py: Python<'_>, transport: Py<TlsTransport>) {
        self.turn.borrow_mut(py).put_off.push_back(transport);
    }

    /// A TLS transport calls the program, in the middle of its work.
    pub fn program_is_called(&self, py: Python<'_>, transport: Py<TlsTransport>) {
        self.turn.borrow_mut(py).callers.push(transport);
    }

    pub fn program_has_returned(&self, py: Python<'_>, transport: &Bound<'_, TlsTransport>) {
        let caller = {
            let mut turn = self.turn.borrow_mut(py);
            // By name: another thread's call may have begun later and not returned yet.
            let place = turn.callers.iter().rposition(|caller| caller.is(transport));
            place.map(|place| turn.callers.remove(place))
        };
        drop(caller);
    }
}

impl EventLoop {
    /// Lets all transports that hold writes back send them.
    #[cold]
    pub(super) fn send_all_held_back(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this, mut sent) = (slf.py(), slf.get(), Ok(()));
        this.many_wait.set(py, false);
        loop {
            let next = this.turn.borrow_mut(py).senders.pop_front();
            let Some(transport) = next else { return sent };
            let done = StreamTransport::leave_senders(transport.bind(py));
            sent = sent.and(Self::report_unless_fatal(slf, intern!(py, "Exception in a transport"), done));
        }
    }

    pub(super) fn has_put_off_nothing(&self, py: Python<'_>) -> bool {
        self.turn.borrow_mut(py).put_off.is_empty()
    }

    pub(super) fn begin_turn(&self, py: Python<'_>) {
        let mut turn = self.turn.borrow_mut(py);
        turn.last += 1;
        turn.number = NonZero::new(turn.last);
        turn.written = false;
    }

    #[inline]
    pub(super) fn end_turn(slf: &Bound<'_, Self>) -> PyResult<()> {
        let count = {
            let mut turn = slf.get().turn.borrow_mut(slf.py());
            // What is written from now on does not wait: the loop may stop here.
            turn.number = None;
            if turn.put_off.is_empty() && turn.senders.is_empty() {
                return Ok(());
            }
            turn.put_off.len()
        };
        Self::do_put_off(slf, count)
    }

    fn do_put_off(slf: &Bound<'_, Self>, count: usize) -> PyResult<()> {
        let (py, this, mut ended) = (slf.py(), slf.get(), Ok(()));
        // What they put off now is for the next iteration.
        for _ in 0..count {
            let next = this.turn.borrow_mut(py).put_off.pop_front();
            let Some(transport) = next else { break };
            let done = TlsTransport::end_of_iteration(transport.bind(py));
            ended = ended.and(Self::report_unless_fatal(slf, intern!(py, "Exception in a transport"), done));
        }
        ended.and(Self::send_all_held_back(slf))
    }

    /// What waits for the iteration's end, or for the program's return from a callback, leaves now.
    pub(super) fn send_put_off(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this, mut sent) = (slf.py(), slf.get(), Ok(()));
        let (number, put_off, callers) = {
            let mut turn = this.turn.borrow_mut(py);
            let put_off: Vec<_> = turn.put_off.iter().map(|transport| transport.clone_ref(py)).collect();
            let callers: Vec<_> = turn.callers.iter().map(|transport| transport.clone_ref(py)).collect();
            // TLS over TLS: what is written to the one beneath does not wait there.
            (turn.number.take(), put_off, callers)
        };
        for transport in put_off.iter().chain(callers.iter().rev()) {
            sent = sent.and(TlsTransport::send_put_off(transport.bind(py)));
        }
        let senders: Vec<_> = {
            let turn = this.turn.borrow_mut(py);
            turn.senders.iter().map(|transport| transport.clone_ref(py)).collect()
        };
        for transport in senders {
            sent = sent.and(StreamTransport::send_held_back(transport.bind(py)));
        }
        // Only now: what a protocol writes in `pause_writing` would wait too.
        this.turn.borrow_mut(py).number = number;
        sent
    }

    /// In a forked child, which is not in the turn: the parent goes on with it.
    pub(super) fn forget_turn(&self, py: Python<'_>) {
        let turn = {
            let mut turn = self.turn.borrow_mut(py);
            let last = turn.last;
            std::mem::replace(&mut *turn, Turn { last, ..Turn::default() })
        };
        for transport in turn.put_off.iter().chain(&turn.callers) {
            transport.get().forget_put_off(py);
        }
        for transport in &turn.senders {
            transport.get().forget_held_back(py);
        }
    }
}
