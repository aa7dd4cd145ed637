//! Transports: what stands between a socket and a protocol.

mod address;
mod data;
mod flow;
mod listener;
mod stream;
mod write_buffer;

pub use listener::Listener;
pub use stream::StreamTransport;
