//! Backpressure: when a protocol is told to pause and to resume writing.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// asyncio's default for the high-water mark of a transport over a socket, in bytes.
pub const DEFAULT_HIGH: usize = 64 * 1024;

/// What the protocol has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Pause,
    Resume,
}

/// A water mark as a program gives it: any number. What is too large to count stands for "never".
pub fn limit(number: &Bound<'_, PyAny>) -> PyResult<i64> {
    number.extract::<i64>().or_else(|_| number.extract::<f64>().map(|number| number as i64))
}

/// The water marks, in bytes, and whether the protocol was told to pause.
#[derive(Clone, Copy)]
pub struct FlowControl {
    low: usize,
    high: usize,
    default_high: usize,
    paused: bool,
}

impl FlowControl {
    pub fn new(default_high: usize) -> Self {
        FlowControl { low: default_high / 4, high: default_high, default_high, paused: false }
    }

    pub fn limits(&self) -> (usize, usize) {
        (self.low, self.high)
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// As `asyncio.WriteTransport.set_write_buffer_limits`: what is missing follows from the other.
    pub fn set_limits(&mut self, high: Option<i64>, low: Option<i64>) -> PyResult<()> {
        let high = high.unwrap_or_else(|| low.map_or(self.default_high as i64, |low| low.saturating_mul(4)));
        let low = low.unwrap_or(high.div_euclid(4));
        if !(high >= low && low >= 0) {
            return Err(PyValueError::new_err(format!("high ({high}) must be >= low ({low}) must be >= 0")));
        }
        (self.low, self.high) = (low as usize, high as usize);
        Ok(())
    }

    /// The buffer has grown.
    pub fn grown(&mut self, size: usize) -> Option<Signal> {
        let pause = size > self.high && !self.paused;
        self.paused |= pause;
        pause.then_some(Signal::Pause)
    }

    /// The buffer has shrunk.
    pub fn shrunk(&mut self, size: usize) -> Option<Signal> {
        let resume = self.paused && size <= self.low;
        self.paused &= !resume;
        resume.then_some(Signal::Resume)
    }

    /// For a TLS transport, where asyncio pauses as soon as the mark is reached. (An empty buffer reaches none: there
    /// asyncio pauses at a mark of nought what nothing would resume.)
    pub fn is_reached(&self, size: usize) -> bool {
        size > 0 && size >= self.high
    }

    /// As `grown` and `shrunk`, for a TLS transport.
    pub fn changed(&mut self, size: usize) -> Option<Signal> {
        if self.is_reached(size) {
            let pause = !self.paused;
            self.paused = true;
            return pause.then_some(Signal::Pause);
        }
        self.shrunk(size)
    }
}
