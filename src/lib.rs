//! mioloop's core: everything that asyncio does once per event.
//!
//! Imports point one way, from the loop down to the helpers over the C API:
//! `event_loop -> transport, sock, fd_watch -> handle -> reactor, timers, sys, py`.

mod event_loop;
mod fd_watch;
mod handle;
mod py;
mod reactor;
mod sock;
mod sys;
mod timers;
mod transport;

/// The extension module behind the `mioloop` package.
#[pyo3::pymodule]
mod _core {
    #[pymodule_export]
    use crate::event_loop::EventLoop;
    #[pymodule_export]
    use crate::handle::{Handle, TimerHandle};
    #[pymodule_export]
    use crate::sock::SocketOperation;
    #[pymodule_export]
    use crate::transport::{DatagramTransport, Listener, StreamTransport, Transport};
}
