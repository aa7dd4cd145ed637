//! Puts a server under load and prints, as one line of JSON, what it did and what CPU the server spent on it.
//!
//! The server is another process that knows nothing of this: its CPU clock is read from outside, when
//! counting begins and when it ends, so that neither start-up nor tear-down is in the figure. Every byte that
//! comes back is checked: a server that loses, swaps or alters data ends the run with an error instead of a
//! fine figure.

mod bulk;
mod connect;
mod datagram;
mod echo;
mod options;
mod pattern;
mod window;

use std::process::ExitCode;

use options::{Mode, Options};

fn run(options: &Options) -> Result<String, String> {
    match options.mode {
        Mode::Tcp => echo::run_tcp(options),
        Mode::Unix => echo::run_unix(options),
        Mode::Udp => datagram::run(options),
        Mode::Connect => connect::run(options),
        Mode::Bulk => bulk::run(options),
    }
}

fn main() -> ExitCode {
    match Options::from_args(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("load: {message}");
            ExitCode::FAILURE
        }
    }
}
