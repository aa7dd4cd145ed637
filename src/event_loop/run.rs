//! One iteration: look for I/O and timers, run what was ready.
//!
//! ```text
//!   I/O events ┬──> ready ──> run as many as there were when the iteration began
//!   timers ────┘      ^                      │
//!                     └──── call_soon ───────┘
//! ```
//!
//! The poll is a system call, so a loop that is busy with callbacks does not make one in each iteration: I/O is looked
//! at when nothing is ready or a callback has begun to watch a descriptor, and otherwise once in [`POLL_INTERVAL`] seconds
//! or [`POLL_ITERATIONS`] iterations, whichever comes first. Timers are compared with the clock in every iteration, so they keep asyncio's order; but the
//! clock is read only if one of them could be due ([`sys::LazyClock`]).

use std::sync::atomic::Ordering;
use std::time::Duration;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::{EventLoop, Owner, Ready};
use crate::fd_watch;
use crate::handle::Handle;
use crate::py::{Asyncio, is_fatal, track};
use crate::reactor::{Key, Poller, Readiness};
use crate::sys;
use crate::transport::{Listener, Transport};

const POLL_INTERVAL: f64 = 250e-6;
/// The clock says it well enough; this is in case that it stands still.
const POLL_ITERATIONS: u32 = 1024;

/// No poll lasts longer (asyncio's limit too): what the kernel takes as a timeout is bounded.
const LONGEST_POLL: f64 = 24.0 * 3600.0;

/// asyncio runs timers that are due within the resolution of its clock.
const CLOCK_RESOLUTION: f64 = 1e-9;

/// When the loop last looked for I/O, and what it knows of the time.
struct Pace {
    clock: sys::LazyClock,
    polled: f64,
    iterations: u32,
}

impl Pace {
    /// The first iteration polls whatever is ready: `stop()` before `run_forever()` asks for just that.
    fn new() -> Self {
        Pace { clock: sys::LazyClock::new(), polled: f64::NEG_INFINITY, iterations: 0 }
    }

    /// Whether it is time to look for I/O, although something is ready.
    #[inline]
    fn is_poll_due(&mut self) -> bool {
        let due = self.polled + POLL_INTERVAL;
        self.iterations >= POLL_ITERATIONS || !self.clock.is_surely_before(due) && self.clock.read() >= due
    }
}

/// For as long as the loop is in `_run_once`, which nothing can collect, it keeps what is ready and what waits for its
/// time alive. What is still there afterwards is the collector's business again. True: within another run, which sees to
/// that.
struct InRun<'a, 'py>(Python<'py>, &'a EventLoop, bool);

impl<'a, 'py> InRun<'a, 'py> {
    fn begin(py: Python<'py>, event_loop: &'a EventLoop) -> Self {
        let within = event_loop.in_run.replace(py, true);
        if !within {
            event_loop.timers.borrow_mut(py).mark();
        }
        InRun(py, event_loop, within)
    }
}

impl Drop for InRun<'_, '_> {
    fn drop(&mut self) {
        let InRun(py, event_loop, within) = *self;
        if !within {
            event_loop.leave_run(py);
        }
    }
}

#[pymethods]
impl EventLoop {
    /// Runs iterations until `stop()` is called, if the loop's own `run_forever` has asked for that.
    ///
    /// `BaseEventLoop.run_forever` calls this in a loop of its own and leaves that when `_stopping` is set. Staying
    /// here until then is the same, without a Python frame for each iteration. Whoever else calls it gets one iteration:
    /// programs do so, to let the loop run from another one.
    fn _run_once(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        let once = this.in_run.get(slf.py()) || !this.stays.get(slf.py());
        let _in_run = InRun::begin(slf.py(), this);
        let mut pace = Pace::new();
        loop {
            this.begin_turn(slf.py());
            let ran = Self::run_iteration(slf, &mut pace);
            // However it ended: what was written in it shall not wait for the next.
            let ended = Self::end_turn(slf);
            ran.and(ended)?;
            if once || this.shared.stopping.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
    }

    /// Whether `_run_once` goes on until `stop()`.
    fn _stay(&self, py: Python<'_>, stay: bool) {
        self.stays.set(py, stay);
    }
}

impl EventLoop {
    /// What is queued is the collector's business from now on. Of the timers these are only the ones that were added
    /// in this run: to begin and end a run costs the same, however many are waiting.
    pub(super) fn leave_run(&self, py: Python<'_>) {
        self.in_run.set(py, false);
        drop(self.loop_keyword.take(py));
        for item in self.ready.borrow_mut(py).iter() {
            if let Ready::Call(handle) = item {
                track(handle.bind(py));
            }
        }
        self.timers.borrow_mut(py).for_each_since_mark(|timer| track(timer.bind(py)));
    }

    // Always: an iteration of one small callback is nearly as short as the call would be.
    #[inline(always)]
    fn run_iteration(slf: &Bound<'_, Self>, pace: &mut Pace) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        pace.clock.glance();
        let idle = this.ready.borrow_mut(py).is_empty() && this.has_put_off_nothing(py);
        let due = pace.is_poll_due() || this.poll_soon.get(py);
        if idle || due {
            let timeout = if idle { this.time_to_sleep(py, pace.clock.read()) } else { Some(Duration::ZERO) };
            if this.poll(py, timeout, due)? {
                pace.polled = pace.clock.read();
                pace.iterations = 0;
                this.poll_soon.set(py, false);
            }
        }
        pace.iterations += 1;
        this.queue_due_timers(py, &mut pace.clock);
        // Counted now: what the callbacks schedule runs in the next iteration.
        let count = this.ready.borrow_mut(py).len();
        let debug = this.is_debug(py);
        for _ in 0..count {
            let item = this.ready.borrow_mut(py).pop_front();
            match item {
                Some(item) if debug => Self::run_ready_timed(slf, item)?,
                Some(Ready::Call(handle)) => Self::run_call(handle.into_bound(py))?,
                Some(item) => Self::run_ready(slf, item)?,
                None => break,
            }
            if this.many_wait.get(py) {
                Self::send_all_held_back(slf)?;
            }
        }
        Ok(())
    }

    #[inline]
    fn run_call(handle: Bound<'_, Handle>) -> PyResult<()> {
        let result = Handle::run(&handle);
        Handle::leave_queue(&handle);
        result
    }

    /// How long nothing will happen by itself; `None`: for ever.
    fn time_to_sleep(&self, py: Python<'_>, now: f64) -> Option<Duration> {
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Some(Duration::ZERO);
        }
        let deadline = self.timers.borrow_mut(py).sleep_until(now)?;
        Some(Duration::from_secs_f64((deadline - now).clamp(0.0, LONGEST_POLL)))
    }

    /// Waits for events and queues what they make ready. Signal handlers of Python run before that: one that raises
    /// leaves the loop here.
    ///
    /// Instead of sleeping it may watch for a job to end. If one does, or has, I/O has not been looked at, and the result
    /// is false; when it is `due`, it is looked at first, or jobs that end one after the other would keep it waiting.
    fn poll(&self, py: Python<'_>, timeout: Option<Duration>, due: bool) -> PyResult<bool> {
        let Some(mut poller) = self.poller.replace(py, None) else {
            return self.check_open(py).map(|()| true);
        };
        let polled = if timeout == Some(Duration::ZERO) {
            Some(poller.poll(timeout))
        } else {
            self.sleep(py, &mut poller, timeout, due)
        };
        let events = match polled {
            Some(Ok(())) => {
                self.queue_events(py, poller.events());
                Ok(())
            }
            Some(Err(error)) if error.errno != libc::EINTR => Err(error),
            Some(Err(_)) | None => Ok(()),
        };
        drop(self.poller.replace(py, Some(poller)));
        events?;
        self.collect_mail(py);
        if polled.is_some() {
            py.check_signals()?;
        }
        Ok(polled.is_some())
    }

    /// Waits without the GIL, for events or for a job to end.
    fn sleep(
        &self,
        py: Python<'_>,
        poller: &mut Poller,
        timeout: Option<Duration>,
        due: bool,
    ) -> Option<sys::Result<()>> {
        let mut farewell = self.take_farewell(py);
        let bell = &*self.shared.bell;
        // Nothing was queued, and for that one needs the GIL.
        bell.become_drowsy();
        let polled = py.detach(|| {
            let polled = if due && (farewell.is_watching() || bell.has_mail()) {
                Some(poller.poll(Some(Duration::ZERO)))
            } else if farewell.say(bell) || bell.has_mail() {
                None
            } else {
                // Whoever came before has not woken us.
                Some(poller.poll(if bell.fall_asleep() { timeout } else { Some(Duration::ZERO) }))
            };
            bell.wake_up();
            polled
        });
        self.put_farewell(py, farewell);
        polled
    }

    fn queue_events(&self, py: Python<'_>, events: impl Iterator<Item = (Key, Readiness)>) {
        let mut garbage = fd_watch::Garbage::default();
        {
            let mut reactor = self.reactor.borrow_mut(py);
            let Some(reactor) = reactor.as_mut() else { return };
            let mut ready = self.ready.borrow_mut(py);
            for (key, readiness) in events {
                match reactor.owner(key) {
                    // The registration is over; the kernel had the event already.
                    None => {}
                    Some(Owner::Watch(_)) => {
                        fd_watch::on_event(py, reactor, key, readiness, &mut garbage, |handle| {
                            ready.push_back(Ready::Call(handle));
                        });
                    }
                    Some(Owner::Transport(_) | Owner::Dormant(_) | Owner::Listener(_)) => {
                        let first = reactor.mark_ready(key, readiness);
                        ready.extend(first.then_some(Ready::Source(key)));
                    }
                }
            }
        }
        drop(garbage);
    }

    fn queue_due_timers(&self, py: Python<'_>, clock: &mut sys::LazyClock) {
        let mut timers = self.timers.borrow_mut(py);
        let Some(earliest) = timers.none_before() else { return };
        if clock.is_surely_before(earliest - CLOCK_RESOLUTION) {
            return;
        }
        let end = clock.read() + CLOCK_RESOLUTION;
        let mut ready = self.ready.borrow_mut(py);
        timers.take_before(end, |timer| {
            timer.get().set_key(py, None);
            ready.push_back(Ready::Call(timer.into_bound(py).into_super().unbind()));
        });
    }

    /// An error from here leaves the loop.
    fn run_ready(slf: &Bound<'_, Self>, item: Ready) -> PyResult<()> {
        let py = slf.py();
        let mut message = intern!(py, "Exception in a transport");
        let result = match item {
            Ready::Call(handle) => return Self::run_call(handle.into_bound(py)),
            Ready::Start(transport) => Transport::start_reading(transport.bind(py)),
            Ready::Source(key) => match slf.get().take_ready(py, key) {
                Some((Owner::Transport(transport), ready)) => Transport::on_ready(transport.bind(py), ready),
                Some((Owner::Listener(listener), _)) => Listener::on_ready(listener.bind(py)),
                Some((Owner::Watch(_) | Owner::Dormant(_), _)) | None => Ok(()),
            },
            Ready::Finished(finished) => {
                message = intern!(py, "Exception in resolving the future of an executor's job");
                finished.deliver(py)
            }
        };
        Self::report_unless_fatal(slf, message, result)
    }

    /// Keeps what has gone wrong with a transport from leaving the loop.
    pub(super) fn report_unless_fatal(
        slf: &Bound<'_, Self>,
        message: &Bound<'_, PyString>,
        result: PyResult<()>,
    ) -> PyResult<()> {
        let py = slf.py();
        match result {
            Err(error) if !is_fatal(py, &error) => {
                let context = PyDict::new(py);
                context.set_item(intern!(py, "message"), message)?;
                context.set_item(intern!(py, "exception"), error)?;
                Self::call_exception_handler(slf, &context)
            }
            result => result,
        }
    }

    fn take_ready(&self, py: Python<'_>, key: Key) -> Option<(Owner, Readiness)> {
        let mut reactor = self.reactor.borrow_mut(py);
        let (owner, ready) = reactor.as_mut()?.take_ready(key)?;
        Some((owner.shared(py)?, ready))
    }

    fn source(&self, py: Python<'_>, key: Key) -> Option<Owner> {
        self.reactor.borrow_mut(py).as_ref()?.owner(key)?.shared(py)
    }

    /// Debug mode: tells of callbacks that hold the loop up for longer than `slow_callback_duration`.
    fn run_ready_timed(slf: &Bound<'_, Self>, item: Ready) -> PyResult<()> {
        let py = slf.py();
        let subject = match &item {
            Ready::Call(handle) if handle.get().is_cancelled(py) => return Self::run_ready(slf, item),
            Ready::Call(handle) => handle.clone_ref(py).into_any(),
            Ready::Start(transport) => transport.clone_ref(py).into_any(),
            Ready::Source(key) => match slf.get().source(py, *key) {
                Some(Owner::Transport(transport)) => transport.into_any(),
                Some(Owner::Listener(listener)) => listener.into_any(),
                Some(Owner::Watch(_) | Owner::Dormant(_)) | None => return Ok(()),
            },
            Ready::Finished(_) => return Self::run_ready(slf, item),
        };
        let is_handle = matches!(item, Ready::Call(_));
        if is_handle {
            slf.setattr(intern!(py, "_current_handle"), &subject)?;
        }
        let start = sys::monotonic();
        let result = Self::run_ready(slf, item);
        let duration = sys::monotonic() - start;
        if is_handle {
            slf.setattr(intern!(py, "_current_handle"), py.None())?;
        }
        result?;
        let limit: f64 = slf.getattr(intern!(py, "slow_callback_duration"))?.extract()?;
        if duration >= limit {
            let asyncio = Asyncio::get(py)?;
            let what = if is_handle { asyncio.format_handle.call1(py, (subject,))? } else { subject };
            let message = "Executing %s took %.3f seconds";
            asyncio.logger.call_method1(py, intern!(py, "warning"), (message, what, duration))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_loop_polls_first_of_all_and_then_seldom() {
        let mut pace = Pace::new();
        assert!(pace.is_poll_due());
        pace.polled = pace.clock.read() + 1000.0;
        pace.clock.glance();
        assert!(!pace.is_poll_due());
        pace.polled = pace.clock.read() - POLL_INTERVAL;
        pace.clock.glance();
        assert!(pace.is_poll_due());
        pace.polled = pace.clock.read() + 1000.0;
        pace.iterations = POLL_ITERATIONS;
        assert!(pace.is_poll_due());
    }
}
