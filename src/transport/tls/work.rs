//! One thing after the other: what is to be done, and by whom.
//!
//! Everything that happens to the transport, from above or from below, sets a flag and calls [`TlsTransport::advance`].
//! The first to come does the work, and that of all who come while it is at it.

use std::ops::{BitOr, BitOrAssign};

use pyo3::prelude::*;

use super::{Phase, TlsTransport};
use crate::py::{in_context, this_thread};

/// Things to do, a bit for each. They are done in the order in which they stand here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Todo(u8);

impl Todo {
    /// The transport beneath is lost.
    pub const LOST: Todo = Todo(1);
    pub const START: Todo = Todo(1 << 1);
    /// The program, or the peer by its close_notify, wants the connection to end.
    pub const CLOSE: Todo = Todo(1 << 2);
    /// After a `close`, whose close_notify is still sent.
    pub const ABORT: Todo = Todo(1 << 3);
    /// Something was written, or may be written again.
    pub const WRITE: Todo = Todo(1 << 4);
    /// Less is held than before, or the water marks are new.
    pub const SENT: Todo = Todo(1 << 5);
    /// Something was received, or may be delivered again.
    pub const READ: Todo = Todo(1 << 6);
    /// The transport beneath has come to its end, after all that was received.
    pub const EOF: Todo = Todo(1 << 7);

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn has(self, any: Todo) -> bool {
        self.0 & any.0 != 0
    }

    fn take_next(&mut self) -> Option<Todo> {
        self.take_next_of(*self)
    }

    fn take_next_of(&mut self, some: Todo) -> Option<Todo> {
        let some = self.0 & some.0;
        let first = some & some.wrapping_neg();
        self.0 &= !first;
        (first != 0).then_some(Todo(first))
    }
}

/// What the program asks for, and what depends on nothing else.
const ORDERS: Todo = Todo(Todo::CLOSE.0 | Todo::ABORT.0 | Todo::WRITE.0);

impl BitOr for Todo {
    type Output = Todo;

    fn bitor(self, other: Todo) -> Todo {
        Todo(self.0 | other.0)
    }
}

impl BitOrAssign for Todo {
    fn bitor_assign(&mut self, other: Todo) {
        self.0 |= other.0;
    }
}

/// Somebody is at work; whatever happens, he is not when this is dropped.
struct Working<'a, 'py>(&'a Bound<'py, TlsTransport>);

impl Drop for Working<'_, '_> {
    fn drop(&mut self) {
        let slf = self.0;
        let left = {
            let mut state = slf.get().state.borrow_mut(slf.py());
            state.busy = false;
            state.in_program = None;
            !state.todo.is_empty()
        };
        // An exception has interrupted the work (KeyboardInterrupt, for one); the rest is done later.
        if left {
            TlsTransport::queue(slf);
        }
    }
}

/// The program is being called.
struct Calling<'a, 'py> {
    tls: &'a Bound<'py, TlsTransport>,
    before: Option<u64>,
}

impl Drop for Calling<'_, '_> {
    fn drop(&mut self) {
        let (py, this) = (self.tls.py(), self.tls.get());
        this.state.borrow_mut(py).in_program = self.before;
        this.event_loop.get().program_has_returned(py, self.tls);
    }
}

/// The program is being called, and has asked for work that can't wait until it returns.
struct Interrupting<'a, 'py>(&'a Bound<'py, TlsTransport>, u64);

impl Drop for Interrupting<'_, '_> {
    fn drop(&mut self) {
        self.0.get().state.borrow_mut(self.0.py()).in_program = Some(self.1);
    }
}

impl TlsTransport {
    /// Calls the program. To be used between two calls of OpenSSL only, with nothing encrypted in a variable.
    pub(super) fn calling<R>(slf: &Bound<'_, Self>, call: impl FnOnce() -> R) -> R {
        let (py, this) = (slf.py(), slf.get());
        let before = this.state.borrow_mut(py).in_program.replace(this_thread());
        this.event_loop.get().program_is_called(py, slf.clone().unbind());
        let _calling = Calling { tls: slf, before };
        call()
    }

    /// Does what is to be done, `todo` too; or leaves it to whoever is at it. An error is one that the transport
    /// beneath has to answer, or that leaves the loop.
    pub(super) fn advance(slf: &Bound<'_, Self>, todo: Todo) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        {
            let mut state = this.state.borrow_mut(py);
            state.todo |= todo;
            if state.busy {
                return Ok(());
            }
            state.busy = true;
        }
        let _working = Working(slf);
        loop {
            let (next, phase) = {
                let mut state = this.state.borrow_mut(py);
                (state.todo.take_next(), state.phase)
            };
            match next {
                None => return Ok(()),
                Some(Todo::LOST) => Self::lost(slf)?,
                Some(Todo::START) => Self::start_handshake(slf)?,
                Some(order) if ORDERS.has(order) => Self::carry_out(slf, order)?,
                Some(Todo::SENT) => Self::control_writing(slf)?,
                Some(Todo::READ) => match phase {
                    // It has timed out.
                    Phase::Handshaking if this.state.borrow_mut(py).closed => this.forget_received(py),
                    Phase::Handshaking => Self::handshake(slf)?,
                    Phase::Wrapped => Self::read(slf)?,
                    Phase::Flushing => Self::flush(slf)?,
                    Phase::Shutdown => Self::shut_down(slf)?,
                    // Before the beginning it waits for that.
                    Phase::Unwrapped if !this.state.borrow_mut(py).closed => {}
                    Phase::Unwrapped => this.forget_received(py),
                },
                Some(Todo::EOF) => Self::end_of_stream(slf)?,
                Some(_) => {}
            }
        }
    }

    fn carry_out(slf: &Bound<'_, Self>, order: Todo) -> PyResult<()> {
        match order {
            Todo::CLOSE => Self::start_shutdown(slf),
            Todo::ABORT => Self::abort_now(slf),
            Todo::WRITE if slf.get().phase(slf.py()) == Phase::Wrapped => Self::write_out(slf, false),
            _ => Ok(()),
        }
    }

    /// `advance`, in the context in which the program's callbacks run.
    pub(super) fn advance_in_context(slf: &Bound<'_, Self>, todo: Todo) -> PyResult<()> {
        let py = slf.py();
        let context = slf.get().state.borrow_mut(py).context.as_ref().map(|context| context.bind(py).clone());
        match context {
            Some(context) => in_context(&context, || Self::advance(slf, todo)),
            None => Self::advance(slf, todo),
        }
    }

    /// Has the loop come back at the end of this iteration.
    pub(super) fn queue(slf: &Bound<'_, Self>) {
        let (py, this) = (slf.py(), slf.get());
        let queued = std::mem::replace(&mut this.state.borrow_mut(py).queued, true);
        if !queued {
            this.event_loop.get().at_end_of_iteration(py, slf.clone().unbind());
        }
    }

    /// What was written leaves before the iteration's end; also while the program is being called, and has not returned
    /// to us. (Not if another thread has called it, which would not wait for us when it comes back.)
    pub fn send_put_off(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this, thread) = (slf.py(), slf.get(), this_thread());
        {
            let mut state = this.state.borrow_mut(py);
            if state.in_program != Some(thread) {
                drop(state);
                return Self::advance(slf, Todo::WRITE);
            }
            state.in_program = None;
            state.todo |= Todo::WRITE;
        }
        let _interrupting = Interrupting(slf, thread);
        loop {
            let order = this.state.borrow_mut(py).todo.take_next_of(ORDERS);
            match order {
                Some(order) => Self::carry_out(slf, order)?,
                None => return Ok(()),
            }
        }
    }

    /// In a forked child. The thread that was at work is the parent's, which does it and sends what was written.
    pub fn forget_put_off(&self, py: Python<'_>) {
        let backlog = {
            let mut state = self.state.borrow_mut(py);
            (state.queued, state.resumed, state.todo) = (false, false, Todo::default());
            // Within OpenSSL it stays busy for ever: nobody can tell what state that is in.
            state.busy &= state.in_program.take().is_none();
            std::mem::take(&mut state.backlog)
        };
        drop(backlog);
    }

    /// The iteration is at its end.
    pub fn end_of_iteration(slf: &Bound<'_, Self>) -> PyResult<()> {
        let todo = {
            let mut state = slf.get().state.borrow_mut(slf.py());
            state.queued = false;
            if std::mem::take(&mut state.resumed) { Todo::READ } else { Todo::default() }
        };
        Self::advance_in_context(slf, todo)
    }
}
