//! Transports: what stands between a socket and a protocol.
//!
//! [`Transport`] is what all of them are: a socket, a protocol, flow control and an end. [`StreamTransport`] and
//! [`DatagramTransport`] add how bytes go in and out. [`TlsTransport`]
//! stands between a stream transport and a protocol. A [`Listener`] makes transports of what it accepts, a
//! [`Connection`] one of what has been connected to.

mod address;
mod base;
mod connect;
mod data;
mod datagram;
mod flow;
mod lifecycle;
mod listener;
mod peers;
mod protocol;
mod socket;
mod stream;
mod streams;
mod tls;

pub use address::to_python as address_to_python;
pub use base::Transport;
pub use connect::{_use_connections, Connection};
pub use data::Data;
pub use datagram::DatagramTransport;
pub use listener::Listener;
pub use stream::StreamTransport;
pub use streams::{_enable_streams, _use_streams, StreamOperation, StreamReaderMethods, StreamWriterMethods};
pub use tls::TlsTransport;
