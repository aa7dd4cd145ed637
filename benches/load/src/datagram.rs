//! Datagrams out and back, one on its way for each socket. On the loopback none may be lost.

use std::io::ErrorKind;
use std::time::Instant;

use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};

use crate::options::Options;
use crate::pattern::{Pattern, compare};
use crate::window::{Window, poll};

struct Peer {
    socket: UdpSocket,
    sequence: u64,
    since: Instant,
}

pub fn run(options: &Options) -> Result<String, String> {
    let describe = |error: std::io::Error| format!("udp: {error}");
    let address = options.socket_address()?;
    let pattern = Pattern::new(options.size, false);
    let mut poller = Poll::new().map_err(describe)?;
    let mut peers = Vec::with_capacity(options.connections);
    for id in 0..options.connections {
        let mut socket =
            UdpSocket::bind("127.0.0.1:0".parse().map_err(|_| "no loopback")?).map_err(describe)?;
        socket.connect(address).map_err(describe)?;
        poller.registry().register(&mut socket, Token(id), Interest::READABLE).map_err(describe)?;
        socket.send(pattern.message(id, 0)).map_err(describe)?;
        peers.push(Peer { socket, sequence: 0, since: Instant::now() });
    }
    let mut window = Window::new(options)?;
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    let mut result: Option<String> = None;
    let mut ended = 0;
    loop {
        poll(&mut poller, &mut events)?;
        for event in &events {
            let id = event.token().0;
            let peer = &mut peers[id];
            // One read is enough: nothing more can come before the next datagram is out, and that is a new
            // event.
            match peer.socket.recv(&mut buffer) {
                Ok(n) if n != options.size => {
                    return Err(format!("socket {id}: {n} bytes came back, not {}", options.size));
                }
                Ok(n) => {
                    compare(&buffer[..n], pattern.message(id, peer.sequence), id, peer.sequence, 0)?;
                    let now = Instant::now();
                    window.count(peer.since, now);
                    if result.is_some() {
                        ended += 1;
                        continue;
                    }
                    peer.since = now;
                    peer.sequence += 1;
                    peer.socket.send(pattern.message(id, peer.sequence)).map_err(describe)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => (),
                Err(error) => return Err(describe(error)),
            }
        }
        // Then each socket's last datagram has to come back, so that not one that was lost goes unnoticed.
        result = match result {
            None => window.tick(Instant::now())?,
            Some(json) if ended == peers.len() => return Ok(json),
            waiting => waiting,
        };
    }
}
