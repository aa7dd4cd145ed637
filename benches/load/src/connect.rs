//! Connections opened and closed again. The client shuts its side down at once; the server's own end of file,
//! which is its default answer to the client's, shows that it has accepted the connection and let go of it.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr};
use std::time::Instant;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::options::Options;
use crate::window::{Window, poll};

struct Attempt {
    stream: TcpStream,
    since: Instant,
    shut: bool,
}

impl Attempt {
    fn start(address: SocketAddr, registry: &Registry, token: Token) -> Result<Self, String> {
        let since = Instant::now();
        let mut stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
        registry
            .register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)
            .map_err(|error| format!("register: {error}"))?;
        Ok(Self { stream, since, shut: false })
    }

    /// Goes on with the connection as far as it can; true when the server has closed it.
    fn advance(&mut self) -> Result<bool, String> {
        let describe = |error: std::io::Error| format!("connection: {error}");
        if !self.shut {
            if let Some(error) = self.stream.take_error().map_err(describe)? {
                return Err(describe(error));
            }
            match self.stream.shutdown(Shutdown::Write) {
                Ok(()) => self.shut = true,
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(false),
                Err(error) => return Err(describe(error)),
            }
        }
        match self.stream.read(&mut [0]) {
            Ok(0) => Ok(true),
            Ok(_) => Err("connection: bytes that nobody sent".into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(describe(error)),
        }
    }
}

pub fn run(options: &Options) -> Result<String, String> {
    let address = options.socket_address()?;
    let mut poller = Poll::new().map_err(|error| format!("epoll: {error}"))?;
    let mut attempts = (0..options.connections)
        .map(|id| Attempt::start(address, poller.registry(), Token(id)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut window = Window::new(options)?;
    let mut events = Events::with_capacity(1024);
    loop {
        poll(&mut poller, &mut events)?;
        for event in &events {
            let attempt = &mut attempts[event.token().0];
            if attempt.advance()? {
                window.count(attempt.since, Instant::now());
                *attempt = Attempt::start(address, poller.registry(), event.token())?;
            }
        }
        if let Some(json) = window.tick(Instant::now())? {
            return Ok(json);
        }
    }
}
