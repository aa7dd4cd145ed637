//! The command line: `load MODE ADDRESS --server PID [--connections N] [--size BYTES] [--depth N] [--lines]
//! [--warmup SECONDS] [--seconds SECONDS]`.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

#[derive(Clone, Copy)]
pub enum Mode {
    /// Messages out and back over TCP.
    Tcp,
    /// The same over a Unix stream socket; the address is a path.
    Unix,
    /// Datagrams out and back.
    Udp,
    /// Connections opened and closed, no data.
    Connect,
    /// Megabytes read from a server that only writes.
    Bulk,
}

pub struct Options {
    pub mode: Mode,
    pub address: String,
    /// Process whose CPU time is measured.
    pub server: libc::pid_t,
    pub connections: usize,
    /// Bytes of a message; for `Bulk` the mebibytes that the server sends.
    pub size: usize,
    /// Messages a connection keeps on their way.
    pub depth: usize,
    /// Messages end with a newline, for servers that read lines.
    pub lines: bool,
    pub warmup: Duration,
    pub seconds: Duration,
}

impl Options {
    pub fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mode = match args.next().as_deref() {
            Some("tcp") => Mode::Tcp,
            Some("unix") => Mode::Unix,
            Some("udp") => Mode::Udp,
            Some("connect") => Mode::Connect,
            Some("bulk") => Mode::Bulk,
            _ => return Err("the first argument is a mode: tcp, unix, udp, connect or bulk".into()),
        };
        let mut options = Options {
            mode,
            address: args.next().ok_or("the second argument is the server's address")?,
            server: 0,
            connections: 50,
            size: 1024,
            depth: 1,
            lines: false,
            warmup: Duration::from_millis(300),
            seconds: Duration::from_secs(2),
        };
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{name} wants a value"));
            match name.as_str() {
                "--server" => options.server = parse(&name, &value()?)?,
                "--connections" => options.connections = parse(&name, &value()?)?,
                "--size" => options.size = parse(&name, &value()?)?,
                "--depth" => options.depth = parse(&name, &value()?)?,
                "--lines" => options.lines = true,
                "--warmup" => options.warmup = Duration::from_secs_f64(parse(&name, &value()?)?),
                "--seconds" => options.seconds = Duration::from_secs_f64(parse(&name, &value()?)?),
                _ => return Err(format!("unknown option {name}")),
            }
        }
        if options.server == 0 {
            return Err("--server PID is missing".into());
        }
        if options.connections == 0 || options.size < 2 || options.depth == 0 {
            return Err("--connections and --depth start at 1, --size at 2".into());
        }
        Ok(options)
    }

    pub fn socket_address(&self) -> Result<SocketAddr, String> {
        parse("the address", &self.address)
    }
}

fn parse<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name}: {value:?} makes no sense"))
}
