//! Mebibytes from a server that writes as soon as somebody connects: one transfer to warm up, one that
//! counts.

use std::io::Read;
use std::net::TcpStream;
use std::time::Instant;

use crate::options::Options;
use crate::pattern::compare;
use crate::window::{PATIENCE, Window};

const MEBIBYTE: usize = 1024 * 1024;

pub fn run(options: &Options) -> Result<String, String> {
    // The byte at position p of the transfer is p modulo 256.
    let expected: Vec<u8> = (0..MEBIBYTE + 256).map(|position| position as u8).collect();
    let mut buffer = vec![0; MEBIBYTE];
    let mut window = Window::new(options)?;
    transfer(options, &expected, &mut buffer)?;
    window.open()?;
    transfer(options, &expected, &mut buffer)?;
    window.close(Instant::now(), options.size as u64)
}

fn transfer(options: &Options, expected: &[u8], buffer: &mut [u8]) -> Result<(), String> {
    let describe = |error: std::io::Error| format!("transfer: {error}");
    let mut stream = TcpStream::connect(options.socket_address()?).map_err(describe)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(describe)?;
    let mut position = 0;
    while position < options.size * MEBIBYTE {
        let n = stream.read(buffer).map_err(describe)?;
        if n == 0 {
            return Err(format!("transfer: the server hung up after {position} bytes"));
        }
        let phase = position % 256;
        compare(&buffer[..n], &expected[phase..phase + n], 0, 0, position)?;
        position += n;
    }
    Ok(())
}
