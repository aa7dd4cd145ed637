//! The bytes that are sent, and the check of those that come back.
//!
//! There are a few different messages, and which one is due depends on the connection and on how many came
//! before. So a repeated, lost or exchanged message is noticed, not only a damaged one.

/// A prime, so that runs of lost messages seldom go unnoticed; small, so that large ones fit into the cache.
const VARIANTS: usize = 7;

pub struct Pattern {
    messages: Vec<Vec<u8>>,
}

impl Pattern {
    pub fn new(size: usize, lines: bool) -> Self {
        let mut state: u32 = 2_463_534_242;
        let mut letter = || {
            // xorshift: no period that a block-wise mistake could hide in
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            b'a' + (state >> 16) as u8 % 26
        };
        let message = |_| {
            let mut message: Vec<u8> = (0..size).map(|_| letter()).collect();
            if lines {
                message[size - 1] = b'\n';
            }
            message
        };
        Self { messages: (0..VARIANTS).map(message).collect() }
    }

    /// Message number `sequence` of a connection.
    pub fn message(&self, connection: usize, sequence: u64) -> &[u8] {
        &self.messages[(connection + (sequence % VARIANTS as u64) as usize) % VARIANTS]
    }
}

/// Says where two runs of bytes differ.
pub fn compare(
    received: &[u8],
    expected: &[u8],
    connection: usize,
    sequence: u64,
    offset: usize,
) -> Result<(), String> {
    if received == expected {
        return Ok(());
    }
    let at = received.iter().zip(expected).take_while(|(a, b)| a == b).count();
    Err(format!("connection {connection}, message {sequence}: the byte at {} came back wrong", offset + at))
}
