//! Messages over stream sockets: each connection keeps `depth` of them on their way, and sends the next one
//! as soon as one is back.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::time::Instant;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token};

use crate::options::Options;
use crate::pattern::{Pattern, compare};
use crate::window::{Window, poll};

pub fn run_tcp(options: &Options) -> Result<String, String> {
    let address = options.socket_address()?;
    run(options, || {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(TcpStream::from_std(stream))
    })
}

pub fn run_unix(options: &Options) -> Result<String, String> {
    run(options, || {
        let stream = std::os::unix::net::UnixStream::connect(&options.address)?;
        stream.set_nonblocking(true)?;
        Ok(UnixStream::from_std(stream))
    })
}

struct Connection<S> {
    id: usize,
    stream: S,
    /// The message being sent, and how much of it is out.
    sending: u64,
    sent: usize,
    /// The message being received, and how much of it is in.
    receiving: u64,
    received: usize,
    /// When each message on its way was handed to the kernel.
    since: VecDeque<Instant>,
}

fn run<S: Read + Write + Source>(
    options: &Options,
    connect: impl Fn() -> std::io::Result<S>,
) -> Result<String, String> {
    let pattern = Pattern::new(options.size, options.lines);
    let mut poller = Poll::new().map_err(|error| format!("epoll: {error}"))?;
    let mut connections = Vec::with_capacity(options.connections);
    for id in 0..options.connections {
        let mut stream = connect().map_err(|error| format!("connect: {error}"))?;
        poller
            .registry()
            .register(&mut stream, Token(id), Interest::READABLE | Interest::WRITABLE)
            .map_err(|error| format!("register: {error}"))?;
        connections.push(Connection {
            id,
            stream,
            sending: 0,
            sent: 0,
            receiving: 0,
            received: 0,
            since: VecDeque::with_capacity(options.depth),
        });
    }
    let mut window = Window::new(options)?;
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 256 * 1024];
    let mut result = None;
    loop {
        poll(&mut poller, &mut events)?;
        for event in &events {
            let connection = &mut connections[event.token().0];
            if event.is_readable() {
                connection.receive(&pattern, &mut buffer, &mut window)?;
            }
            connection.send(&pattern, if result.is_none() { options.depth } else { 0 })?;
        }
        // Then all that is still on its way has to come back, so that not one connection's silence goes
        // unnoticed.
        result = match result {
            None => window.tick(Instant::now())?,
            Some(json) if connections.iter().all(Connection::is_idle) => return Ok(json),
            waiting => waiting,
        };
    }
}

impl<S: Read + Write> Connection<S> {
    fn receive(&mut self, pattern: &Pattern, buffer: &mut [u8], window: &mut Window) -> Result<(), String> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(format!("connection {}: the server hung up", self.id)),
                Ok(n) => {
                    self.check(&buffer[..n], pattern, window)?;
                    if n < buffer.len() {
                        return Ok(()); // a short read has emptied the socket: the next bytes bring a new event
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(format!("connection {}: {error}", self.id)),
            }
        }
    }

    fn check(&mut self, mut bytes: &[u8], pattern: &Pattern, window: &mut Window) -> Result<(), String> {
        let now = Instant::now();
        while !bytes.is_empty() {
            let on_its_way = self.receiving < self.sending || self.received < self.sent;
            if !on_its_way {
                return Err(format!("connection {}: the server sent more than it got", self.id));
            }
            let message = pattern.message(self.id, self.receiving);
            let (part, rest) = bytes.split_at(bytes.len().min(message.len() - self.received));
            let expected = &message[self.received..self.received + part.len()];
            compare(part, expected, self.id, self.receiving, self.received)?;
            self.received += part.len();
            bytes = rest;
            if self.received == message.len() {
                self.received = 0;
                self.receiving += 1;
                let since = self.since.pop_front().ok_or("a message came back before it was sent")?;
                window.count(since, now);
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.receiving == self.sending && self.sent == 0
    }

    /// Fills up what is on its way to `depth` messages, as far as the kernel takes them. One that has begun
    /// is ended in any case.
    fn send(&mut self, pattern: &Pattern, depth: usize) -> Result<(), String> {
        loop {
            let begun = self.sending + u64::from(self.sent > 0);
            let until = begun.max(self.receiving + depth as u64);
            if self.sending == until {
                return Ok(());
            }
            let mut slices = Vec::with_capacity(depth);
            for sequence in self.sending..until {
                let message = pattern.message(self.id, sequence);
                slices.push(IoSlice::new(if slices.is_empty() { &message[self.sent..] } else { message }));
            }
            let now = Instant::now();
            match self.stream.write_vectored(&slices) {
                Ok(mut n) => {
                    while n > 0 {
                        if self.sent == 0 {
                            self.since.push_back(now);
                        }
                        let step = n.min(pattern.message(self.id, self.sending).len() - self.sent);
                        self.sent += step;
                        n -= step;
                        if self.sent == pattern.message(self.id, self.sending).len() {
                            self.sent = 0;
                            self.sending += 1;
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(format!("connection {}: {error}", self.id)),
            }
        }
    }
}
