//! The span in which messages count: opened after the warm-up, closed by time, with the server's CPU clock
//! read at both of its ends.

use std::time::{Duration, Instant};

use crate::options::Options;

pub struct Window {
    clock: libc::clockid_t,
    opens: Instant,
    length: Duration,
    begin: Option<(Instant, Duration)>,
    count: u64,
    /// Nanoseconds from a message's sending to its return.
    latencies: Vec<u32>,
}

impl Window {
    pub fn new(options: &Options) -> Result<Self, String> {
        let mut clock = 0;
        // SAFETY: the pointer is to a live local of the type that the call fills in.
        let failure = unsafe { libc::clock_getcpuclockid(options.server, &mut clock) };
        if failure != 0 {
            return Err(format!("no CPU clock for process {}", options.server));
        }
        Ok(Self {
            clock,
            opens: Instant::now() + options.warmup,
            length: options.seconds,
            begin: None,
            count: 0,
            latencies: Vec::new(),
        })
    }

    /// Counts one finished operation that began at `since`.
    pub fn count(&mut self, since: Instant, now: Instant) {
        if self.begin.is_some() {
            self.count += 1;
            self.latencies.push((now - since).as_nanos().min(u32::MAX as u128) as u32);
        }
    }

    /// Opens the window when its time has come; returns the result once its length is over.
    pub fn tick(&mut self, now: Instant) -> Result<Option<String>, String> {
        match self.begin {
            None if now >= self.opens => self.begin = Some((now, self.server_cpu()?)),
            Some((begin, _)) if now - begin >= self.length => return self.close(now, self.count).map(Some),
            _ => (),
        }
        Ok(None)
    }

    /// For work of a fixed amount rather than a fixed length: opens at once.
    pub fn open(&mut self) -> Result<(), String> {
        self.begin = Some((Instant::now(), self.server_cpu()?));
        Ok(())
    }

    /// Ends the span after `count` operations.
    pub fn close(&mut self, now: Instant, count: u64) -> Result<String, String> {
        let (begin, cpu_before) = self.begin.ok_or("the window was never opened")?;
        let cpu = self.server_cpu()? - cpu_before;
        if count == 0 {
            return Err("not one operation ended within the window".into());
        }
        self.latencies.sort_unstable();
        let percentile = |percent: usize| match self.latencies.len() {
            0 => "null".into(),
            n => format!("{:.1}", self.latencies[(n * percent / 100).min(n - 1)] as f64 / 1000.0),
        };
        let latency = format!(r#"{{"p50": {}, "p99": {}}}"#, percentile(50), percentile(99));
        Ok(format!(
            r#"{{"operations": {count}, "seconds": {:.6}, "server_cpu": {:.6}, "latency_us": {latency}}}"#,
            (now - begin).as_secs_f64(),
            cpu.as_secs_f64(),
        ))
    }

    fn server_cpu(&self) -> Result<Duration, String> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a live local of the type that the call fills in.
        if unsafe { libc::clock_gettime(self.clock, &mut time) } != 0 {
            return Err("the server has ended".into());
        }
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

/// How long no event at all may mean that the server still works.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Polls until something happens; silence for longer than `PATIENCE` is the server's fault.
pub fn poll(poll: &mut mio::Poll, events: &mut mio::Events) -> Result<(), String> {
    loop {
        match poll.poll(events, Some(PATIENCE)) {
            Ok(()) if events.is_empty() => return Err("the server has fallen silent".into()),
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(error) => return Err(format!("poll: {error}")),
        }
    }
}
